"""What stands in rooms: furniture, and boxes, cylinders and balls."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from glimpose.data.backgrounds import Backgrounds, random_colour
from glimpose.render.mesh import Mesh, box_mesh, sphere_mesh
from glimpose.robots.body import DARK, Color, assemble, box, part, rod

Piece = tuple[Mesh, float, float]
"""It stands on z = 0 around the origin and looks along +x; with its depth and width in metres."""
Tone = Callable[[], Color]
"""Draws a colour that furniture has here."""


def draw_piece(rng: np.random.Generator, colors: tuple[Color, ...]) -> Piece:
    """Draw a piece of furniture in one or two of these colours, a little lighter or darker."""

    def tone() -> Color:
        return _color(np.array(colors[int(rng.integers(len(colors)))]) * rng.uniform(0.8, 1.15))

    return _PIECES[int(rng.integers(len(_PIECES)))](rng, tone)


def draw_thing(rng: np.random.Generator, x: float, y: float, radius_m: float, backgrounds: Backgrounds) -> Mesh:
    """Draw a box, cylinder or ball that stands on the floor there; some boxes carry pictures."""
    kind, height_m, turn_deg = rng.random(), rng.uniform(0.08, 0.5), rng.uniform(0, 180)
    if kind < 0.35:
        side_m = 1.4 * radius_m
        mesh = box_mesh((side_m, side_m, height_m))
        flat = np.where(np.abs(mesh.normals[:, :1]) > 0.5, mesh.vertices[:, 1:], mesh.vertices[:, [0, 2]])
        uv = (flat / [side_m, height_m] + 0.5).astype(np.float32)
        printed = replace(mesh, uv=uv, texture=backgrounds.texture(rng, 96, 96))
        return part(printed, None, (x, y, height_m / 2), (0, 0, turn_deg))
    color = _color(random_colour(rng))
    if kind < 0.6:
        return box((1.5 * radius_m, radius_m, height_m), color, (x, y, height_m / 2), (0, 0, turn_deg))
    if kind < 0.85:
        return rod(radius_m, height_m, color, (x, y, height_m / 2))
    return part(sphere_mesh(radius_m, 2), color, (x, y, radius_m))


def _table(rng: np.random.Generator, tone: Tone) -> Piece:
    depth, width, height, color = rng.uniform(0.5, 0.8), rng.uniform(0.8, 1.6), rng.uniform(0.45, 0.78), tone()
    parts = [box((depth, width, 0.04), tone(), (0, 0, height))]
    for x in (depth / 2 - 0.05, 0.05 - depth / 2):
        parts += [box((0.05, 0.05, height), color, (x, side * (width / 2 - 0.05), height / 2)) for side in (1, -1)]
    for _ in range(3):
        size, at = 0.08 * rng.uniform(0.6, 3.0, 3), (rng.uniform(-0.2, 0.2), rng.uniform(-0.3, 0.3), height + 0.1)
        parts.append(box(tuple(size), _color(random_colour(rng)), at, (0, 0, rng.uniform(0, 180))))
    return assemble(parts), depth, width


def _chair(rng: np.random.Generator, tone: Tone) -> Piece:
    seat, frame = tone(), tone()
    parts = [box((0.42, 0.42, 0.05), seat, (0, 0, 0.45)), box((0.03, 0.4, 0.35), seat, (-0.2, 0, 0.75))]
    parts.append(box((0.02, 0.03, 0.3), frame, (-0.19, 0, 0.5)))
    parts += [rod(0.018, 0.45, frame, (x, y, 0.225), segments=8) for x in (0.18, -0.18) for y in (0.18, -0.18)]
    return assemble(parts), 0.45, 0.45


def _shelf(rng: np.random.Generator, tone: Tone) -> Piece:
    color, depth, width, height = tone(), 0.32, rng.uniform(0.6, 1.2), rng.uniform(0.8, 1.9)
    parts = [box((depth, 0.03, height), color, (0, side * width / 2, height / 2)) for side in (1, -1)]
    parts.append(box((0.02, width, height), color, (-depth / 2, 0, height / 2)))
    for z in np.arange(0.05, height, 0.36):
        parts.append(box((depth, width, 0.03), color, (0, 0, z)))
        y = -width / 2 + 0.05
        while y < width / 2 - 0.1:
            thick, tall = rng.uniform(0.025, 0.1), rng.uniform(0.12, 0.28)
            if rng.random() < 0.8:
                parts.append(box((0.2, thick, tall), _color(random_colour(rng)), (0, y + thick / 2, z + tall / 2)))
            y += thick + 0.008
    return assemble(parts), depth, width


def _cabinet(rng: np.random.Generator, tone: Tone) -> Piece:
    front, depth, width, height = tone(), 0.45, rng.uniform(0.5, 1.1), rng.uniform(0.5, 1.2)
    parts = [
        box((depth, width, height), tone(), (0, 0, height / 2 + 0.04)),
        box((0.4, width, 0.05), DARK, (0, 0, 0.03)),
    ]
    for z in np.arange(0.2, height, 0.27):
        parts.append(box((0.02, width - 0.06, 0.24), front, (depth / 2, 0, z)))
        parts.append(box((0.02, 0.12, 0.015), (190, 190, 190), (depth / 2 + 0.02, 0, z + 0.06)))
    return assemble(parts), depth, width


def _sofa(rng: np.random.Generator, tone: Tone) -> Piece:
    color, width = tone(), rng.uniform(1.2, 1.8)
    parts = [box((0.75, width, 0.3), color, (0, 0, 0.22)), box((0.2, width, 0.4), color, (-0.28, 0, 0.55))]
    for side in (1, -1):
        parts.append(box((0.75, 0.16, 0.45), color, (0, side * (width / 2 - 0.08), 0.3)))
        parts.append(box((0.1, 0.35, 0.3), _color(random_colour(rng)), (-0.1, 0.3 * side, 0.5), (0, 15, 0)))
    return assemble(parts), 0.75, width


def _plant(rng: np.random.Generator, tone: Tone) -> Piece:
    parts = [rod(0.13, 0.26, tone(), (0, 0, 0.13))]
    for _ in range(14):
        at = (rng.normal(0, 0.12), rng.normal(0, 0.12), rng.uniform(0.4, 0.9))
        green = _color(rng.uniform((20, 80, 20), (90, 150, 80)))
        parts.append(box((0.02, 0.12, 0.22), green, at, tuple(rng.uniform(-60, 60, 3))))
    return assemble(parts), 0.4, 0.4


_PIECES = (_table, _table, _chair, _chair, _shelf, _shelf, _cabinet, _sofa, _plant)


def _color(rgb: np.ndarray) -> Color:
    r, g, b = np.clip(rgb, 0, 255).astype(int).tolist()
    return r, g, b
