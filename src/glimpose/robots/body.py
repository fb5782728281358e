"""The RoboMaster's body, built from primitives, and the plates of its LEDs."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from glimpose.render.mesh import Mesh, box_mesh, cylinder_mesh
from glimpose.robots.leds import Led, LedRobot

Color = tuple[int, int, int]
Position = tuple[float, float, float]

DARK, GREY, LIGHT, RUBBER, ORANGE = (52, 54, 60), (112, 115, 120), (206, 208, 210), (30, 30, 33), (214, 92, 34)
OFF_PLATE = (74, 78, 86)
"""What an LED's cover looks like when nothing shines through."""
PLATE_THICKNESS_M = 0.004
RIM_M = 0.0045
"""Width of the frame around an LED of the chassis, and how far it is from the plate's edge to the frame's middle."""


def part(mesh: Mesh, color: Color | None, at: Position, turn_deg: Position = (0, 0, 0)) -> Mesh:
    """Paint a mesh if a colour is given, turn it about the fixed axes x, y, z in this order, and move it."""
    turn = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix().astype(np.float32)
    return replace(
        mesh,
        vertices=mesh.vertices @ turn.T + np.array(at, np.float32),
        normals=mesh.normals @ turn.T,
        colors=mesh.colors if color is None else np.full_like(mesh.colors, color),
    )


def box(size: Position, color: Color, at: Position, turn_deg: Position = (0, 0, 0)) -> Mesh:
    """Box of these edge lengths, around a point."""
    return part(box_mesh(size), color, at, turn_deg)


def rod(radius: float, length: float, color: Color, at: Position, along: str = "z", segments: int = 20) -> Mesh:
    """Cylinder along an axis, around a point."""
    turn_deg: Position = {"x": (0.0, 90.0, 0.0), "y": (90.0, 0.0, 0.0), "z": (0.0, 0.0, 0.0)}[along]
    return part(cylinder_mesh(radius, length, segments), color, at, turn_deg)


def assemble(parts: Iterable[Mesh]) -> Mesh:
    """Join untextured meshes into one."""
    parts = list(parts)
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in parts[:-1])])
    return Mesh(
        vertices=np.concatenate([mesh.vertices for mesh in parts]),
        faces=np.concatenate([mesh.faces + start for mesh, start in zip(parts, starts, strict=True)]).astype(np.int32),
        normals=np.concatenate([mesh.normals for mesh in parts]),
        colors=np.concatenate([mesh.colors for mesh in parts]),
    )


def robot_body(robot: LedRobot) -> Mesh:
    """Chassis, wheels, turret and gun in the base frame; the LEDs' plates are `led_plate`'s.

    The wheels stand out as far as hides the sides' LEDs from bearings more than 55° off; a frame around each chassis
    LED does so from 80° on.
    """
    return assemble([*_chassis(), *(m for led in robot.leds for m in _frame(led)), *_turret()])


def led_plate(led: Led) -> Mesh:
    """The cover that shines, in the base frame."""
    return box((PLATE_THICKNESS_M, *led.size_m), OFF_PLATE, _position(led), (0, 0, led.azimuth_deg))


def _chassis() -> list[Mesh]:
    parts = [
        box((0.30, 0.15, 0.07), DARK, (0, 0, 0.07)),
        box((0.24, 0.12, 0.012), GREY, (0, 0, 0.109)),
        # A sloped bow and white cheeks tell the front from the rear, which is blunt and carries the battery.
        box((0.022, 0.15, 0.075), LIGHT, (0.153, 0, 0.072)),
        box((0.05, 0.15, 0.02), LIGHT, (0.135, 0, 0.107), (0, 25, 0)),
        box((0.024, 0.15, 0.06), DARK, (-0.153, 0, 0.062)),
        box((0.07, 0.085, 0.05), (66, 62, 58), (-0.112, 0, 0.135)),
        box((0.004, 0.05, 0.012), ORANGE, (-0.149, 0, 0.145)),
    ]
    for side in (1, -1):
        parts.append(box((0.084, 0.022, 0.05), GREY, (0, side * 0.084, 0.065)))
        for x in (0.1, -0.1):
            parts.append(_wheel((x, side * 0.11, 0.05)))
            parts.append(rod(0.022, 0.004, GREY, (x, side * 0.136, 0.05), "y", 12))
    return parts


def _wheel(at: Position) -> Mesh:
    """A cylinder striped like the rollers of a mecanum wheel."""
    wheel = rod(0.05, 0.05, RUBBER, at, "y", 32)
    stripes = np.arange(len(wheel.vertices)) // 2 % 2 == 0
    return replace(wheel, colors=np.where(stripes[:, None], wheel.colors, 85).astype(np.uint8))


def _frame(led: Led) -> list[Mesh]:
    """Four bars around an LED of the chassis; those of the turret lie flush in its ears."""
    x, y, z = _position(led)
    if z > 0.15 or led.half_width_deg >= 90:
        return []
    width, height = led.size_m
    depth = PLATE_THICKNESS_M + 2 * (width / 2 + RIM_M) / np.tan(np.deg2rad(80))
    to_side = np.array([-np.sin(np.deg2rad(led.azimuth_deg)), np.cos(np.deg2rad(led.azimuth_deg)), 0])
    turn = (0, 0, led.azimuth_deg)
    bars = []
    for side in (1, -1):
        beside = np.array([x, y, z]) + side * (width / 2 + RIM_M) * to_side
        bars.append(box((depth, RIM_M, height + 3 * RIM_M), DARK, tuple(beside), turn))
        bars.append(box((depth, width + 3 * RIM_M, RIM_M), DARK, (x, y, z + side * (height / 2 + RIM_M)), turn))
    return bars


def _turret() -> list[Mesh]:
    parts = [
        rod(0.062, 0.03, GREY, (-0.002, 0, 0.127)),
        rod(0.045, 0.02, DARK, (-0.002, 0, 0.15)),
        box((0.115, 0.08, 0.075), LIGHT, (-0.008, 0, 0.197)),
        box((0.06, 0.06, 0.02), LIGHT, (0.0, 0, 0.242)),
        # The camera looks out over the gun; what carries them is dark.
        box((0.012, 0.07, 0.06), DARK, (0.052, 0, 0.2)),
        box((0.018, 0.035, 0.03), DARK, (0.058, 0, 0.234)),
        rod(0.01, 0.004, (12, 12, 16), (0.068, 0, 0.234), "x"),
        rod(0.008, 0.11, DARK, (0.105, 0, 0.185), "x"),
        rod(0.0105, 0.018, ORANGE, (0.163, 0, 0.185), "x"),
        # The hopper at the back.
        rod(0.028, 0.055, (150, 152, 156), (-0.062, 0, 0.235)),
        box((0.03, 0.07, 0.05), DARK, (-0.075, 0, 0.185)),
    ]
    for side in (1, -1):
        parts.append(box((0.04, 0.012, 0.09), GREY, (-0.002, side * 0.047, 0.17)))
        parts.append(rod(0.036, 0.025, DARK, (-0.002, side * 0.0575, 0.206), "y", 28))
    return parts


def _position(led: Led) -> Position:
    if led.position_m is None:
        raise ValueError(f"LED {led.name} has no position_m; drawing the robot needs it")
    return led.position_m
