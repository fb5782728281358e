"""Deferred shading: colours from what a renderer drew, the same for every backend."""

from collections.abc import Sequence
from dataclasses import dataclass, field

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
    seen = np.flatnonzero(buffers.mask)
    if seen.size == 0:
        return rgb
    label = buffers.mask.reshape(-1)[seen]
    materials = [Material()] * int(label.max()) if materials is None else materials
    if label.max() > len(materials):
        raise ValueError(f"shade: {len(materials)} materials, but the mask holds instance {label.max()}")
    normal = buffers.normal.reshape(-1, 3)[seen]
    albedo = buffers.albedo.reshape(-1, 3)[seen] * _per_label([m.gain / 255 for m in materials])[label]
    specular = _per_label([m.specular for m in materials])[label]
    shininess = _per_label([m.shininess for m in materials])[label]
    is_glossy = any(m.specular > 0 for m in materials)
    xyz_cam = None if K is None else _unproject(buffers.depth, seen, K)
    to_viewer = np.array([0, 0, -1], np.float32) if xyz_cam is None else -_unit(xyz_cam)

    # Ambient light is linear in the normal: half ground and half sky, tilted by how much the surface looks up.
    tilt = np.outer(_unit(lighting.up), lighting.sky - lighting.ground) / 2
    diffuse = normal @ tilt.astype(np.float32) + ((lighting.sky + lighting.ground) / 2).astype(np.float32)
    highlights = np.zeros_like(albedo) if is_glossy else None
    for light in lighting.lights:
        color = light.color.astype(np.float32)
        to_light, falloff = _incidence(light, xyz_cam)
        lambert = np.maximum(_dot(normal, to_light), 0) * falloff
        diffuse += lambert[:, None] * color
        if highlights is not None:
            halfway = _unit(to_light + to_viewer)
            cosine = np.maximum(_dot(normal, halfway), 1e-6)
            # A highlight fades where the surface turns away from the lamp.
            gloss = specular * np.exp(shininess * np.log(cosine)) * np.minimum(8 * lambert, falloff)
            highlights += gloss[:, None] * color
    albedo *= diffuse
    if highlights is not None:
        albedo += highlights
    rgb.reshape(-1, 3)[seen] = np.clip(albedo, 0, 1, out=albedo)
    return rgb


def _per_label(values: Sequence) -> np.ndarray:
    """Table that the values of an instance map look up."""
    return np.array([np.zeros_like(values[0]), *values], dtype=np.float32)


def _incidence(light: Light, xyz_cam: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | np.float32]:
    """Direction to the light, unit length, and its strength; per point for near lamps."""
    if light.position is None:
        return _unit(light.direction).astype(np.float32), np.float32(1)
    if xyz_cam is None:
        raise ValueError("shade: a light with a position needs the points it shines on; pass K")
    to_light = light.position.astype(np.float32) - xyz_cam
    squared = np.maximum(_dot(to_light, to_light), 1e-8)
    reference = np.square(light.position - xyz_cam.mean(0)).sum()
    return to_light / np.sqrt(squared)[:, None], (reference / squared).astype(np.float32)


def _unproject(depth: np.ndarray, seen: np.ndarray, K: np.ndarray) -> np.ndarray:
    row, column = np.divmod(seen, depth.shape[1])
    rays = np.stack([column, row, np.ones_like(row)], axis=1).astype(np.float32) @ np.linalg.inv(K).T.astype(np.float32)
    return rays * depth.reshape(-1)[seen, None]


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a @ b if b.ndim == 1 else np.einsum("ni,ni->n", a, b)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector, axis=-1, keepdims=True)
