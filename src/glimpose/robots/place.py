"""Places in which robots drive: a furnished room that stays as it is, and what is rearranged for each drive."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glimpose.data.backgrounds import Backgrounds
from glimpose.render.mesh import Mesh
from glimpose.robots.body import DARK, Color, Position, assemble, box, part, rod
from glimpose.robots.furniture import draw_piece, draw_thing
from glimpose.robots.room import FloorKind, room_mesh

Disc = tuple[float, float, float]
"""x, y and radius on the floor, metres."""


@dataclass(frozen=True)
class PlaceConfig:
    """What a place looks like; colours are as a white light shows them, 0..255."""

    seed: int = 0
    """Of what stays: floor, walls and furniture."""
    room_m: Position = (7.8, 6.8, 2.7)
    arena_m: tuple[float, float] = (5.6, 4.8)
    """Where robots drive, in the room's middle; furniture stands along the walls."""
    floor: FloorKind = "tiles"
    floor_colors: tuple[Color, Color] = ((176, 172, 164), (120, 118, 114))
    """Of the floor, and of its joints or speckles."""
    wall_colors: tuple[Color, ...] = ((214, 210, 200),)
    furniture_colors: tuple[Color, ...] = ((150, 110, 70), (200, 196, 190), (90, 92, 98))
    num_furniture: int = 12
    """Pieces tried; those that find no room are left out."""
    num_pictures: int = 6
    """On the walls."""
    clutter: tuple[int, int] = (4, 10)
    """Boxes, cylinders and balls around the arena; from here on rearranged for each drive."""
    obstacles: tuple[int, int] = (0, 3)
    """The same in the arena, where they hide robots."""
    distractors: tuple[int, int] = (3, 9)
    """Coloured lights that have nothing to do with robots, and switch on and off."""
    distractor_colors: tuple[Color, ...] = ((8, 36, 255), (255, 20, 15), (20, 255, 50), (255, 160, 60), (255, 255, 255))
    """Proportions of red, green and blue light; the first is that of LEDs by default."""
    ambient: Color = (150, 150, 150)
    lamp: Color = (130, 130, 130)
    """What surfaces receive that face the lamps."""
    lamp_directions: tuple[Position, ...] = ((0.4, 0.3, 1.0), (-0.6, 0.1, 0.8))
    ceiling_lights: int = 4
    exposure: tuple[float, float] = (0.8, 1.3)
    photographs: Path | None = None
    """Folder of pictures for the walls and boxes; procedural ones when none is given."""

    def __post_init__(self) -> None:
        if any(arena > room - 1 for arena, room in zip(self.arena_m, self.room_m, strict=False)):
            raise ValueError(f"arena_m {self.arena_m}, room_m {self.room_m}: expected at least 0.5 m around the arena")
        for name in ("clutter", "obstacles", "distractors", "exposure"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (name == "exposure" and low == 0):
                raise ValueError(f"{name} is {(low, high)}, expected two numbers above 0, the smaller one first")


@dataclass(frozen=True)
class Lamp:
    """Something that shines: a mesh in the room's frame, and how bright it is when it's on."""

    mesh: Mesh
    radiance: np.ndarray
    dwell_s: float
    """Mean time between switchings; infinite for lamps that stay on."""


@dataclass(frozen=True, eq=False)
class Arrangement:
    """What stands in a place during one drive, in the room's frame (origin on the floor in the middle, z up)."""

    meshes: tuple[Mesh, ...]
    """The first one is the floor."""
    lamps: tuple[Lamp, ...]
    footprints: tuple[Disc, ...]
    obstacles: tuple[Disc, ...]
    """The footprints in the arena."""


class Place:
    """A room and its furniture, a function of the config alone."""

    def __init__(self, config: PlaceConfig) -> None:
        self.config = config
        self.backgrounds = Backgrounds(config.photographs)
        rng = np.random.default_rng([config.seed, 71])
        c = config
        self.room = room_mesh(rng, c.room_m, c.floor, c.floor_colors, c.wall_colors, c.num_pictures, self.backgrounds)
        self.furniture, self.footprints = _furnish(rng, config)
        self.ceiling_lights = _ceiling_lights(config)

    def arrange(self, rng: np.random.Generator) -> Arrangement:
        """Put obstacles, clutter and distracting lights somewhere."""
        obstacles, clutter = (
            [(*_spot(rng, self.config, in_arena), rng.uniform(0.06, 0.22)) for _ in range(_count(rng, bounds))]
            for in_arena, bounds in ((True, self.config.obstacles), (False, self.config.clutter))
        )
        things = [draw_thing(rng, *disc, self.backgrounds) for disc in (*obstacles, *clutter)]
        distractors = [_distractor(rng, self.config) for _ in range(_count(rng, self.config.distractors))]
        solid = [*self.furniture, *(carrier for _, carrier in distractors)]
        return Arrangement(
            (*self.room, *([assemble(solid)] if solid else []), *things),  # few meshes are drawn faster than many
            (*self.ceiling_lights, *(lamp for lamp, _ in distractors)),
            (*self.footprints, *obstacles, *clutter),
            tuple(obstacles),
        )


def _furnish(rng: np.random.Generator, config: PlaceConfig) -> tuple[list[Mesh], list[Disc]]:
    """Put pieces along the walls, their backs to them."""
    meshes: list[Mesh] = []
    footprints: list[Disc] = []
    half_m = np.array(config.room_m[:2]) / 2
    for _ in range(config.num_furniture):
        piece, depth_m, width_m = draw_piece(rng, config.furniture_colors)
        side = int(rng.integers(4))
        reach_m, run_m = half_m if side % 2 == 0 else half_m[::-1]
        out, along = reach_m - depth_m / 2 - 0.02, rng.uniform(width_m / 2 - run_m, run_m - width_m / 2)
        cos, sin = np.cos(np.pi / 2 * side), np.sin(np.pi / 2 * side)
        x, y, radius_m = cos * out - sin * along, sin * out + cos * along, (depth_m + width_m) / 4
        if all(np.hypot(x - a, y - b) > radius_m + other_m for a, b, other_m in footprints):
            meshes.append(part(piece, None, (x, y, 0), (0, 0, 90 * side + 180)))
            footprints.append((x, y, radius_m))
    return meshes, footprints


def _ceiling_lights(config: PlaceConfig) -> list[Lamp]:
    radiance = 4 * np.array(config.lamp) / max(config.lamp)
    length_m, _, height_m = config.room_m
    places = (np.arange(config.ceiling_lights) + 0.5) / max(config.ceiling_lights, 1) - 0.5
    white = (240, 240, 240)
    return [Lamp(box((0.3, 1.2, 0.04), white, (x * length_m, 0, height_m - 0.03)), radiance, np.inf) for x in places]


def _distractor(rng: np.random.Generator, config: PlaceConfig) -> tuple[Lamp, Mesh]:
    """A bar or disc that shines, on a wall or, at a robot's height, on a stand; and what carries it."""
    color = np.array(config.distractor_colors[int(rng.integers(len(config.distractor_colors)))])
    is_on_wall, is_disc = rng.random(2) < 0.4
    x, y = _spot(rng, config, in_arena=False)
    facing = rng.uniform(-np.pi, np.pi)
    z, scale = (
        (rng.uniform(0.1, 1.6), rng.uniform(1, 5)) if is_on_wall else (rng.uniform(0.04, 0.3), rng.uniform(0.6, 2))
    )
    if is_on_wall:
        half_x, half_y = np.array(config.room_m[:2]) / 2 - 0.03
        if half_x - abs(x) < half_y - abs(y):
            x, facing = np.sign(x) * half_x, np.pi * (x > 0)
        else:
            y, facing = np.sign(y) * half_y, np.pi / 2 * -np.sign(y)
    width, height = scale * rng.uniform(0.03, 0.08), scale * rng.uniform(0.015, 0.04)
    turn = (0, 0, float(np.rad2deg(facing)))
    grey = (110, 110, 115)
    shape = rod(height, 0.012, grey, (0, 0, 0), "x") if is_disc else box((0.012, width, height), grey, (0, 0, 0))
    behind = (x - 0.03 * np.cos(facing), y - 0.03 * np.sin(facing))
    if is_on_wall:
        carrier = box((0.01, 1.3 * width, 1.5 * height), DARK, (*behind, z), turn)
    else:
        carrier = box((0.04, 1.3 * width, z + height), DARK, (*behind, (z + height) / 2), turn)
    dwell_s = float(np.exp(rng.uniform(np.log(0.7), np.log(8.0))))
    return Lamp(part(shape, None, (x, y, z), turn), rng.uniform(1.5, 8) * color / color.max(), dwell_s), carrier


def _spot(rng: np.random.Generator, config: PlaceConfig, in_arena: bool) -> tuple[float, float]:
    """A place on the floor, in the arena or between it and the walls."""
    arena_m, room_m = np.array(config.arena_m) / 2, np.array(config.room_m[:2]) / 2 - 0.2
    while True:
        spot = rng.uniform(-1, 1, 2) * (arena_m if in_arena else room_m)
        if in_arena or (np.abs(spot) > arena_m).any():
            return float(spot[0]), float(spot[1])


def _count(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))
