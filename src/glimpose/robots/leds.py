"""Which LEDs a robot has, where they are, and from where each is seen."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from glimpose.config import load

MIRROR_TOLERANCE_DEG = 5.0
MIRROR_TOLERANCE_M = 0.02
SAME_HEIGHT_M = 0.05
"""LEDs so much higher or lower than a point that is pointed at count 1/e of those at its height."""


@dataclass(frozen=True)
class Led:
    """One light, in the robot's base frame (x forward, y left, z up, origin on the floor)."""

    name: str
    azimuth_deg: float
    """Direction it faces: 0 forward, +90 left."""
    half_width_deg: float = 90.0
    """It is seen from bearings within this of its azimuth."""
    position_m: tuple[float, float, float] | None = None
    """Its centre: for drawing, and for telling from a light that is pointed at where the robot is."""
    size_m: tuple[float, float] = (0.051, 0.028)
    """Width and height of the plate that shines."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"name is '{self.name}', expected letters, digits and underscores")
        if not 0 < self.half_width_deg <= 180:
            raise ValueError(f"half_width_deg of LED {self.name} is {self.half_width_deg:g}, expected 0 to 180")


@dataclass(frozen=True)
class LedRobot:
    """A kind of robot, as far as its LEDs tell."""

    name: str
    leds: tuple[Led, ...]
    gimbal_m: tuple[float, float, float]
    """The point whose image position is learned about and scored, in the base frame."""

    def __post_init__(self) -> None:
        if not self.leds:
            raise ValueError("leds: none given, expected at least one")
        doubled = {led.name for led in self.leds if self.led_names.count(led.name) > 1}
        if doubled:
            raise ValueError(f"leds: {', '.join(sorted(doubled))} given more than once")

    @property
    def led_names(self) -> tuple[str, ...]:
        """In the order of the file, as everywhere."""
        return tuple(led.name for led in self.leds)

    @property
    def azimuths_rad(self) -> np.ndarray:
        """K angles α_k."""
        return np.deg2rad([led.azimuth_deg for led in self.leds])

    @property
    def half_widths_rad(self) -> np.ndarray:
        """K half-widths of the arcs from which the LEDs are seen."""
        return np.deg2rad([led.half_width_deg for led in self.leds])

    def faces(self, bearing_rad: np.ndarray | float) -> np.ndarray:
        """Tell which LEDs can be seen from bearings ψ: bool, [..., K]."""
        away = np.asarray(bearing_rad)[..., None] - self.azimuths_rad
        return np.abs(np.arctan2(np.sin(away), np.cos(away))) <= self.half_widths_rad + 1e-9

    def shining_m(self, bearing_rad: float, height_m: float) -> np.ndarray:
        """Middle of the LEDs at about a height that can be seen from a bearing, base frame.

        It is on the base's axis where there are none, or the file tells no positions. Its z is the height given.
        """
        places = [led.position_m or (0.0, 0.0, np.inf) for led in self.leds]
        at_height = np.exp(-(((np.array(places)[:, 2] - height_m) / SAME_HEIGHT_M) ** 2))
        weight = at_height * (0.0 if np.isnan(bearing_rad) else self.faces(bearing_rad))
        middle = weight @ np.array(places)[:, :2] / max(weight.sum(), 1e-6)
        return np.array([*middle, height_m])

    @cached_property
    def mirrored(self) -> tuple[int, ...]:
        """For each LED the index of the one that takes its place in a mirror image (left and right swapped)."""
        return tuple(self._mirror(led) for led in self.leds)

    @property
    def is_symmetric(self) -> bool:
        """Whether every LED has one that takes its place in a mirror image."""
        return all(len(self._twins(led)) == 1 for led in self.leds)

    def _mirror(self, led: Led) -> int:
        found = self._twins(led)
        if len(found) != 1:
            names = ", ".join(self.leds[i].name for i in found) or "none"
            raise ValueError(
                f"{self.name}: the mirror image of LED {led.name} could be {names}; pictures can't be flipped. "
                "Give LEDs their position_m, or switch flips off"
            )
        return found[0]

    def _twins(self, led: Led) -> list[int]:
        """Find LEDs that are where the mirror image of this one is."""
        found = []
        for i, other in enumerate(self.leds):
            turn = (other.azimuth_deg + led.azimuth_deg + 180) % 360 - 180
            distance_m = 0.0
            if led.position_m is not None and other.position_m is not None:
                distance_m = float(np.linalg.norm(np.array(led.position_m) * [1, -1, 1] - other.position_m))
            if abs(turn) <= MIRROR_TOLERANCE_DEG and distance_m <= MIRROR_TOLERANCE_M:
                found.append(i)
        return found


def load_leds(robot: Path, beside: Path | None = None) -> LedRobot:
    """Read a robot's LEDs from a TOML file, or those of a robot that comes with glimpose, by name ("robomaster").

    A relative file is looked for in the folder ``beside``, if one is given. Raises FileNotFoundError, or ValueError
    naming the key at fault.
    """
    if robot.suffix:
        return load(LedRobot, robot if beside is None else beside / robot)
    shipped = {path.stem: path for path in Path(__file__).parent.glob("*.toml")}
    if str(robot) not in shipped:
        raise FileNotFoundError(
            f"{robot}: no such robot; expected a .toml file, or one of {', '.join(sorted(shipped))}"
        )
    return load(LedRobot, shipped[str(robot)])
