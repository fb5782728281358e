"""Deferred shading: colours from what a renderer drew, the same for every backend."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
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
    left, top, width, height = cv2.boundingRect(buffers.mask)
    if width == 0:
        return rgb
    box = np.s_[top : top + height, left : left + width]
    # In the background albedo and normal are zero, and so becomes the colour.
    mask, normal = buffers.mask[box], buffers.normal[box]
    num_instances = int(mask.max())
    materials = [Material()] * num_instances if materials is None else materials
    if num_instances > len(materials):
        raise ValueError(f"shade: {len(materials)} materials, but the mask holds instance {num_instances}")
    points = None if K is None else _unproject(buffers.depth[box], K, left, top)
    centre = None if points is None else points[mask > 0].mean(0)
    to_viewer = np.array([0, 0, -1], np.float32) if points is None else -_unit(points)
    is_glossy = any(m.specular > 0 for m in materials)
    if is_glossy:
        facing_viewer = _dot(normal, to_viewer)
        specular, shininess = (
            _look_up([getattr(m, name) for m in materials], mask) for name in ("specular", "shininess")
        )

    # Ambient light is linear in the normal: half ground and half sky, tilted by how much the surface looks up.
    tilt = np.outer(lighting.sky - lighting.ground, _unit(lighting.up)) / 2
    received: np.ndarray = cv2.transform(normal, np.column_stack([tilt, (lighting.sky + lighting.ground) / 2]))
    reflected = np.zeros_like(received)
    for light in lighting.lights:
        to_light, falloff = _incidence(light, points, centre)
        facing_light = _dot(normal, to_light)
        lambert = np.maximum(facing_light, 0) * falloff
        received += lambert[..., None] * light.color.astype(np.float32)
        if is_glossy:
            # Of the halfway vector (l + v) / |l + v| between lamp and viewer only the angle to the normal counts.
            halfway_length = np.sqrt(np.maximum(2 + 2 * _dot(to_viewer, to_light), 1e-6))
            cosine = np.maximum((facing_light + facing_viewer) / halfway_length, 1e-6)
            # A highlight fades where the surface turns away from the lamp.
            highlight = specular * np.exp(shininess * np.log(cosine)) * np.minimum(8 * lambert, falloff)
            reflected += highlight[..., None] * light.color.astype(np.float32)
    received *= _saturated(buffers.albedo[box], materials, mask)
    received *= _look_up([m.gain / 255 for m in materials], mask)
    received += reflected
    np.clip(received, 0, 1, out=rgb[box])
    return rgb


def _saturated(albedo: np.ndarray, materials: Sequence[Material], mask: np.ndarray) -> np.ndarray:
    if all(m.saturation == 1 for m in materials):
        return albedo
    albedo = albedo.astype(np.float32)
    grey = cv2.transform(albedo, np.full((1, 3), 1 / 3, np.float32))[..., None]
    colored = grey + _look_up([m.saturation for m in materials], mask)[..., None] * (albedo - grey)
    return np.maximum(colored, 0, out=colored)


def _look_up(values: Sequence, mask: np.ndarray) -> np.ndarray:
    """Spread values per instance over pixels."""
    return np.array([np.zeros_like(values[0]), *values], dtype=np.float32).take(mask, axis=0)


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


def _unproject(depth: np.ndarray, K: np.ndarray, left: int, top: int) -> np.ndarray:
    """Points in the camera frame; on the background those at one metre."""
    z = np.where(depth > 0, depth, np.float32(1))
    u = np.arange(left, left + depth.shape[1], dtype=np.float32)
    v = np.arange(top, top + depth.shape[0], dtype=np.float32)
    return cv2.transform(cv2.merge([u * z, v[:, None] * z, z]), np.linalg.inv(K))


def _dot(a: np.ndarray, b: np.ndarray) -> Any:
    """Scalar products of vectors or images of vectors."""
    if b.ndim < a.ndim:
        return a @ b
    return b @ a if a.ndim < b.ndim else np.einsum("...i,...i->...", a, b)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt(_dot(vector, vector))[..., None]
