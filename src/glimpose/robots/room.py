"""Floors and walls: large planes with drawn textures."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import cv2
import numpy as np

from glimpose.data.backgrounds import Backgrounds
from glimpose.render.mesh import Mesh
from glimpose.robots.body import Color, Position

FloorKind = Literal["tiles", "planks", "carpet"]
FLOOR_PX = 1024
WALL_PX_PER_M = 140


def plane(
    corner: Position, along: Position, up: Position, texture: np.ndarray | None = None, color: Color = (225, 225, 222)
) -> Mesh:
    """Rectangle with a texture or colour, from its lower left corner; it's seen from both sides."""
    a, b, c = (np.array(v, np.float32) for v in (corner, along, up))
    normal = np.cross(b, c)
    return Mesh(
        vertices=np.stack([a, a + b, a + b + c, a + c]),
        faces=np.array([[0, 1, 2], [0, 2, 3]], np.int32),
        normals=np.tile(normal / np.linalg.norm(normal), (4, 1)).astype(np.float32),
        colors=np.tile(np.array(color, np.uint8), (4, 1)),
        uv=np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32),
        texture=texture,
    )


def room_mesh(
    rng: np.random.Generator,
    size_m: Position,
    floor: FloorKind,
    floor_colors: tuple[Color, Color],
    wall_colors: tuple[Color, ...],
    num_pictures: int,
    backgrounds: Backgrounds,
) -> list[Mesh]:
    """Floor, ceiling and four walls of a room around the origin; the floor comes first, at z = 0."""
    length, width, height = size_m
    x, y = length / 2, width / 2
    color, joint = (np.array(c, np.float32) for c in floor_colors)
    texture = np.clip(_FLOORS[floor](rng, color, joint, (length, width)), 0, 255).astype(np.uint8)
    meshes = [
        plane((-x, -y, 0), (length, 0, 0), (0, width, 0), texture),
        plane((-x, y, height), (length, 0, 0), (0, -width, 0)),
    ]
    sides: list[tuple[Position, Position]] = [
        ((-x, y, 0), (length, 0, 0)),
        ((x, y, 0), (0, -width, 0)),
        ((x, -y, 0), (-length, 0, 0)),
        ((-x, -y, 0), (0, width, 0)),
    ]
    wall_of_picture = rng.integers(len(sides), size=num_pictures)
    for i, (corner, along) in enumerate(sides):
        paint = np.array(wall_colors[i % len(wall_colors)], np.float32)
        wall = _Wall(rng, paint, float(np.abs(along).sum()), height)
        wall.open(rng)
        for _ in range(np.count_nonzero(wall_of_picture == i)):
            wall.hang_picture(rng, backgrounds)
        meshes.append(plane(corner, along, (0, 0, height), np.clip(wall.image, 0, 255).astype(np.uint8)))
    return meshes


def _noise(rng: np.random.Generator, height: int, width: int, *cells: tuple[int, int]) -> np.ndarray:
    """Mean of smooth random fields with so many rows and columns of cells: about −1..1, [height width 1]."""
    fields = [cv2.resize(rng.uniform(-1, 1, grid), (width, height), interpolation=cv2.INTER_CUBIC) for grid in cells]
    return np.mean(fields, axis=0)[..., None]


def _tiles(rng: np.random.Generator, color: np.ndarray, joint: np.ndarray, size_m: tuple[float, float]) -> np.ndarray:
    columns, rows = (round(side / 0.45) for side in size_m)
    shade = rng.uniform(0.9, 1.08, (rows, columns)).astype(np.float32)
    image = cv2.resize(shade, (FLOOR_PX, FLOOR_PX), interpolation=cv2.INTER_NEAREST)[..., None] * color
    image += 14 * _noise(rng, FLOOR_PX, FLOOR_PX, (60, 60), (160, 160))
    for line in np.linspace(0, FLOOR_PX - 3, rows + 1).astype(int):
        image[line : line + 3] = joint
    for line in np.linspace(0, FLOOR_PX - 3, columns + 1).astype(int):
        image[:, line : line + 3] = joint
    return image


def _planks(rng: np.random.Generator, color: np.ndarray, joint: np.ndarray, size_m: tuple[float, float]) -> np.ndarray:
    image: np.ndarray = np.empty((FLOOR_PX, FLOOR_PX, 3), np.float32)
    for top, bottom in pairwise(np.linspace(0, FLOOR_PX, round(size_m[1] / 0.16) + 1).astype(int)):
        grain = _noise(rng, bottom - top, FLOOR_PX, (3, 12), (bottom - top, 40))
        ends = np.sort(rng.integers(0, FLOOR_PX, 5))
        tone = rng.uniform(0.78, 1.15, len(ends) + 1)[np.searchsorted(ends, np.arange(FLOOR_PX))]
        image[top:bottom] = color * tone[:, None] + 20 * grain
        image[top] = joint
        for end in ends:
            image[top:bottom, end : end + 2] = joint
    return image


def _carpet(rng: np.random.Generator, color: np.ndarray, other: np.ndarray, size_m: tuple[float, float]) -> np.ndarray:
    blend = np.clip(0.5 + 1.2 * _noise(rng, FLOOR_PX, FLOOR_PX, (90, 90), (220, 220)), 0, 1)
    return color * blend + other * (1 - blend) + 9 * _noise(rng, FLOOR_PX, FLOOR_PX, (500, 500))


_FLOORS: dict[FloorKind, Callable[..., np.ndarray]] = {"tiles": _tiles, "planks": _planks, "carpet": _carpet}


class _Wall:
    """A wall being painted: paint and a skirting board, to which more is added."""

    def __init__(self, rng: np.random.Generator, paint: np.ndarray, length_m: float, height_m: float) -> None:
        self.paint, self.length_m, self.height_m = paint, length_m, height_m
        height, width = round(height_m * WALL_PX_PER_M), round(length_m * WALL_PX_PER_M)
        self.image = paint + 10 * _noise(rng, height, width, (3, 6), (12, 30), (60, 160))
        self.image[-round(0.08 * WALL_PX_PER_M) :] = paint * rng.choice([0.45, 0.7, 1.1])

    def fill(self, left_m: float, bottom_m: float, width_m: float, height_m: float, content: np.ndarray) -> None:
        """Cover a rectangle by an image, whatever its size, or by a colour."""
        left, bottom = round(left_m * WALL_PX_PER_M), len(self.image) - round(bottom_m * WALL_PX_PER_M)
        width, height = (max(round(side * WALL_PX_PER_M), 2) for side in (width_m, height_m))
        content = np.broadcast_to(content, (2, 2, 3)) if content.ndim == 1 else content
        self.image[bottom - height : bottom, left : left + width] = cv2.resize(
            content.astype(np.float32), (width, height)
        )

    def open(self, rng: np.random.Generator) -> None:
        """Add a door or a window."""
        left_m = rng.uniform(0.2, self.length_m - 1.8)
        if rng.random() < 0.5:
            wood = self.paint * rng.uniform(0.5, 0.9, 3)
            self.fill(left_m - 0.05, 0, 1.0, 2.1, 0.7 * wood)
            self.fill(left_m, 0, 0.9, 2.05, wood + 6 * rng.normal(size=(24, 10, 1)))
        else:
            sky = np.linspace(255, 200, 20)[:, None, None] * np.array([0.93, 0.97, 1.0]) + rng.normal(0, 8, (20, 26, 1))
            self.fill(left_m - 0.06, 0.84, 1.62, 1.32, np.full(3, 235.0))
            self.fill(left_m, 0.9, 1.5, 1.2, sky)

    def hang_picture(self, rng: np.random.Generator, backgrounds: Backgrounds) -> None:
        """Add a framed picture."""
        width_m, height_m = rng.uniform(0.3, 1.3), rng.uniform(0.25, 0.9)
        left_m, bottom_m = (
            rng.uniform(0.1, self.length_m - width_m - 0.1),
            rng.uniform(0.3, self.height_m - height_m - 0.3),
        )
        self.fill(left_m - 0.03, bottom_m - 0.03, width_m + 0.06, height_m + 0.06, np.full(3, rng.uniform(10, 240)))
        picture = backgrounds.texture(rng, round(160 * height_m), round(160 * width_m))
        self.fill(left_m, bottom_m, width_m, height_m, picture)
