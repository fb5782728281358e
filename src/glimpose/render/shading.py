"""Deferred shading: colours from what a renderer drew, the same for every backend."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from glimpose.render.scene import Buffers


def _vector(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


@dataclass(frozen=True)
class Light:
    """A lamp, far away in a direction or near at a position."""

    direction: Float[np.ndarray, "3"]
    """Towards the lamp, camera frame; any length. A position, where given, counts instead."""
    color: Float[np.ndarray, "3"]
    """What a surface that faces the lamp receives; from a near lamp, at the mean point of what is seen."""
    position: Float[np.ndarray, "3"] | None = None
    """Camera frame, metres; the light of a near lamp falls off with the square of the distance."""


@dataclass(frozen=True)
class Lighting:
    """Ambient light from a sky and the ground under it, and lamps."""

    sky: Float[np.ndarray, "3"] = field(default_factory=lambda: _vector(0.6, 0.6, 0.6))
    ground: Float[np.ndarray, "3"] = field(default_factory=lambda: _vector(0.3, 0.3, 0.3))
    up: Float[np.ndarray, "3"] = field(default_factory=lambda: _vector(0.0, -1.0, 0.0))
    """Towards the sky, camera frame; any length."""
    lights: tuple[Light, ...] = (Light(_vector(0.3, -0.5, -1.0), _vector(0.5, 0.5, 0.5)),)


@dataclass(frozen=True)
class Material:
    """How one instance reflects."""

    gain: Float[np.ndarray, "3"] = field(default_factory=lambda: np.ones(3))
    """Multiplies the albedo, per channel."""
    saturation: float = 1.0
    """How far the albedo is from grey, relative to what was drawn."""
    specular: float = 0.0
    """Strength of highlights, which have the lamp's colour."""
    shininess: float = 20.0
    """Blinn and Phong's exponent: larger is glossier, with smaller highlights."""


def shade(
    buffers: Buffers,
    lighting: Lighting,
    materials: Sequence[Material] | None = None,
    K: Float[np.ndarray, "3 3"] | None = None,
) -> Float[np.ndarray, "h w 3"]:
    """Light what was drawn (hemispheric ambient, Lambert, Blinn–Phong, no shadows): RGB in 0..1, background 0.

    There is one material per instance, or plain ones for all. Without K the viewer counts as infinitely far, which
    only highlights notice; near lamps need it.
    """
    rgb = np.zeros((*buffers.mask.shape, 3), np.float32)
    # Only what is seen: one row per pixel.
    pixels = np.flatnonzero(buffers.mask)
    if not len(pixels):
        return rgb
    instance = buffers.mask.ravel()[pixels] - 1
    num_instances = int(instance.max()) + 1
    materials = [Material()] * num_instances if materials is None else materials
    if num_instances > len(materials):
        raise ValueError(f"shade: {len(materials)} materials, but the mask holds instance {num_instances}")
    normal, albedo = (image.reshape(-1, 3).take(pixels, axis=0) for image in (buffers.normal, buffers.albedo))
    points = None if K is None else _unproject(buffers.depth, K, pixels)
    centre = None if points is None else points.mean(0)
    to_viewer = np.array([0, 0, -1], np.float32) if points is None else -_unit(points)
    is_glossy = any(m.specular > 0 for m in materials)
    if is_glossy:
        facing_viewer = _dot(normal, to_viewer)
        specular, shininess = (
            _look_up([getattr(m, name) for m in materials], instance) for name in ("specular", "shininess")
        )

    # Ambient light is linear in the normal: half ground and half sky, tilted by how much the surface looks up.
    tilt = np.outer(_unit(lighting.up), lighting.sky - lighting.ground) / 2
    received = normal @ tilt.astype(np.float32) + ((lighting.sky + lighting.ground) / 2).astype(np.float32)
    lamberts, highlights = [], []
    for light in lighting.lights:
        to_light, falloff = _incidence(light, points, centre)
        facing_light = _dot(normal, to_light)
        lamberts.append(np.maximum(facing_light, 0) * falloff)
        if is_glossy:
            # Of the halfway vector (l + v) / |l + v| between lamp and viewer only the angle to the normal counts.
            halfway_length = np.sqrt(np.maximum(2 + 2 * _dot(to_viewer, to_light), 1e-6))
            cosine = np.maximum((facing_light + facing_viewer) / halfway_length, 1e-6)
            # A highlight fades where the surface turns away from the lamp.
            highlights.append(specular * np.exp(shininess * np.log(cosine)) * np.minimum(8 * lamberts[-1], falloff))
    colors = np.array([light.color for light in lighting.lights], np.float32)
    if lamberts:
        received += np.stack(lamberts, axis=1) @ colors
    received *= _saturated(albedo, materials, instance)
    received *= _look_up([m.gain / 255 for m in materials], instance)
    if highlights:
        received += np.stack(highlights, axis=1) @ colors
    rgb.reshape(-1, 3)[pixels] = np.clip(received, 0, 1, out=received)
    return rgb


def _saturated(albedo: np.ndarray, materials: Sequence[Material], instance: np.ndarray) -> np.ndarray:
    if all(m.saturation == 1 for m in materials):
        return albedo
    albedo = albedo.astype(np.float32)
    grey = albedo.mean(-1, keepdims=True)
    colored = grey + _look_up([m.saturation for m in materials], instance)[:, None] * (albedo - grey)
    return np.maximum(colored, 0, out=colored)


def _look_up(values: Sequence, instance: np.ndarray) -> np.ndarray:
    """Spread values per instance over pixels."""
    return np.array(values, dtype=np.float32).take(instance, axis=0)


def _incidence(
    light: Light, points: np.ndarray | None, centre: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | np.float32]:
    """Direction to the light, unit length, and its strength; per point for near lamps."""
    if light.position is None:
        return _unit(light.direction).astype(np.float32), np.float32(1)
    if points is None:
        raise ValueError("shade: a light with a position needs the points it shines on; pass K")
    to_light = light.position.astype(np.float32) - points
    squared = np.maximum(_dot(to_light, to_light), 1e-8)
    reference = np.square(light.position - centre).sum()
    return to_light / np.sqrt(squared)[..., None], (reference / squared).astype(np.float32)


def _unproject(depth: np.ndarray, K: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Points in the camera frame that pixels, numbered row by row, see; n×3."""
    v, u = np.divmod(pixels, depth.shape[1])
    uv1 = np.stack([u, v, np.ones_like(u)], axis=1).astype(np.float32)
    return depth.ravel()[pixels, None] * (uv1 @ np.linalg.inv(K).T.astype(np.float32))


def _dot(a: np.ndarray, b: np.ndarray) -> Any:
    """Scalar products of vectors or rows of vectors."""
    if b.ndim < a.ndim:
        return a @ b
    return b @ a if a.ndim < b.ndim else np.einsum("...i,...i->...", a, b)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt(_dot(vector, vector))[..., None]
