"""Simulated recordings: robots that drive about in a room, switch their LEDs, and photograph each other."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from glimpose.config import load, to_dict
from glimpose.data.led_h5_writer import join_recordings, ml_row, read_source, write_recording
from glimpose.data.sensor import SensorConfig
from glimpose.render.scene import Renderer, make_renderer
from glimpose.robots.body import Color
from glimpose.robots.drive import Drive, DriveConfig, draw_drive, switches
from glimpose.robots.leds import LedRobot, load_leds
from glimpose.robots.photograph import CAMERA, Moment, Photographer
from glimpose.robots.place import Arrangement, Place, PlaceConfig

FRAMES_PER_PART = 50
"""What an interruption loses at most."""
PAUSE_S = 10.0
"""Between two drives."""
SENSOR = SensorConfig(
    native_scale=(1.0, 1.0),
    exposure_gain=(1.0, 1.0),  # exposure is the place's, for it counts before LEDs saturate
    channel_gain=(0.93, 1.07),
    gamma=(0.85, 1.2),
    contrast=(0.9, 1.15),
    black_level=(-0.02, 0.04),
    saturation=(0.75, 1.35),
    hue_rad=(-0.06, 0.06),
    gray_prob=0.0,
    shading=(0.0, 0.15),
    motion_px=(1.5, 6.0),
    motion_prob=0.3,
)


@dataclass(frozen=True)
class LedLightConfig:
    """How LEDs shine."""

    colors: tuple[Color, ...] = ((8, 36, 255),)
    """Proportions of red, green and blue light; one is drawn for each drive."""
    radiance: tuple[float, float] = (2.5, 9.0)
    """Of the strongest colour; 1 is where the sensor saturates at an exposure of 1."""


@dataclass(frozen=True)
class SimulationConfig:
    """What is recorded, and how."""

    robot: Path = Path("robomaster")
    """A robot that comes with glimpose, or a file of its LEDs beside the simulation's own."""
    place: PlaceConfig = field(default_factory=PlaceConfig)
    drive: DriveConfig = field(default_factory=DriveConfig)
    leds: LedLightConfig = field(default_factory=LedLightConfig)
    sensor: SensorConfig = SENSOR
    supersampling: float = 1.25
    """Pixels drawn per pixel of the image, along each axis."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.supersampling <= 8:
            raise ValueError(f"supersampling is {self.supersampling:g}, expected 0.1 to 8")


@dataclass(frozen=True)
class Take:
    """All that is drawn at random for one drive."""

    camera_robot: int
    arrangement: Arrangement
    drive: Drive
    led_radiance: np.ndarray
    """robots × LEDs × RGB, of LEDs that are on."""
    lamp_on: np.ndarray
    """frames × lamps, bool."""
    exposure: np.ndarray
    """frames."""

    def moment(self, frame: int) -> Moment:
        """Pick one frame."""
        return Moment(
            self.camera_robot,
            self.drive.poses[frame],
            self.led_radiance * self.drive.led_on[frame, ..., None],
            np.array([lamp.radiance for lamp in self.arrangement.lamps]).reshape(-1, 3) * self.lamp_on[frame, :, None],
            float(self.exposure[frame]),
        )


class Simulator:
    """Frame i is a function of (config, robot, seed, i) alone."""

    def __init__(self, config: SimulationConfig, robot: LedRobot, seed: int, renderer: Renderer) -> None:
        self.config = config
        self.robot = robot
        self.seed = seed
        self.place = Place(config.place)
        self.photographer = Photographer(robot, config.place, config.sensor, config.supersampling, renderer)
        self.take = lru_cache(maxsize=2)(self._take)

    def row(self, index: int) -> dict[str, Any]:
        """Photograph frame ``index`` and lay it out with its ground truth."""
        number, frame = divmod(index, self.config.drive.frames_per_drive)
        take = self.take(number)
        rng = np.random.default_rng([self.seed, 2, index])
        image, seen = self.photographer.photograph(take.arrangement, take.moment(frame), rng)
        names = self.robot.led_names
        return ml_row(
            image,
            index / self.config.drive.frame_rate_hz + number * PAUSE_S,
            take.camera_robot + 1,
            {i + 1: pose for i, pose in enumerate(take.drive.poses[frame])},
            {i + 1: dict(zip(names, on, strict=True)) for i, on in enumerate(take.drive.led_on[frame])},
            {i + 1: num for i, num in seen.items()},
            CAMERA,
            self.robot.gimbal_m,
        )

    def _take(self, number: int) -> Take:
        """Draw what happens in one drive; the robots' cameras take turns."""
        rng = np.random.default_rng([self.seed, 1, number])
        drives, leds, place = self.config.drive, self.config.leds, self.config.place
        camera_robot = number % drives.num_robots
        arrangement = self.place.arrange(rng)
        drive = draw_drive(rng, drives, camera_robot, len(self.robot.leds), place.arena_m, arrangement.obstacles)
        color = np.array(leds.colors[int(rng.integers(len(leds.colors)))])
        strength = rng.uniform(*leds.radiance) * rng.uniform(0.8, 1.2, (*drive.led_on.shape[1:], 1))
        dwell_frames = np.array([lamp.dwell_s for lamp in arrangement.lamps]) * drives.frame_rate_hz
        lamp_on = switches(rng, drives.frames_per_drive, dwell_frames) | np.isinf(dwell_frames)
        exposure = np.log(rng.uniform(*place.exposure)) + 0.2 * _wander(rng, drives.frames_per_drive)
        return Take(camera_robot, arrangement, drive, strength * color / color.max(), lamp_on, np.exp(exposure))


def load_simulation(path: Path, overrides: Sequence[str] = ()) -> tuple[SimulationConfig, LedRobot]:
    """Read a simulation's TOML file, and that of the robot which it names."""
    config = load(SimulationConfig, path, overrides)
    return config, load_leds(config.robot, beside=path.parent)


def simulate(
    config: SimulationConfig,
    robot: LedRobot,
    out: Path,
    num_frames: int,
    seed: int = 0,
    *,
    resume: bool = False,
    num_workers: int = 0,
    renderer: Literal["auto", "gl", "raster"] = "auto",
) -> None:
    """Write a recording in the ML layout, with ground truth; ``resume`` goes on after an interruption.

    Until it's complete, its parts lie in a hidden folder beside it. Raises ValueError rather than overwrite anything
    or mix parts of different configs or seeds.
    """
    if num_frames < 1 or seed < 0:
        raise ValueError(f"{num_frames} frames with seed {seed} asked for, expected at least 1 and a seed from 0 on")
    if out.exists():
        raise ValueError(f"{out}: exists already; choose another name or remove it")
    folder = out.with_name(f".{out.name}.parts")
    if folder.exists() and not resume:
        raise ValueError(f"{folder}: holds an interrupted simulation; go on with --resume, or remove the folder")
    job = _Job(config, robot, seed, renderer)
    spans = [(start, min(start + FRAMES_PER_PART, num_frames)) for start in range(0, num_frames, FRAMES_PER_PART)]
    parts = {folder / f"{start:07d}-{stop:07d}.h5": (start, stop) for start, stop in spans}
    missing = [(job, part, span) for part, span in parts.items() if not _is_done(part, job)]
    with tqdm(total=num_frames, unit="frame", desc=out.name) as progress, _mapper(num_workers) as over:
        progress.update(num_frames - sum(stop - start for _, _, (start, stop) in missing))
        for num_written in over(_write_part, missing):
            progress.update(num_written)
    join_recordings(list(parts), out)
    shutil.rmtree(folder)


@dataclass(frozen=True)
class _Job:
    """What a frame is a function of, besides its number, and who draws it."""

    config: SimulationConfig
    robot: LedRobot
    seed: int
    renderer: Literal["auto", "gl", "raster"]

    @property
    def source(self) -> str:
        return json.dumps({"simulation": to_dict(self.config), "robot": to_dict(self.robot), "seed": self.seed})


@lru_cache(maxsize=1)
def _simulator(job: _Job) -> Simulator:
    """Each process has its own, for a renderer can't be sent."""
    return Simulator(job.config, job.robot, job.seed, make_renderer(job.renderer))


def _write_part(task: tuple[_Job, Path, tuple[int, int]]) -> int:
    job, part, (start, stop) = task
    simulator = _simulator(job)
    rows = (simulator.row(i) for i in range(start, stop))
    robots = range(1, job.config.drive.num_robots + 1)
    write_recording(part, rows, stop - start, robots, job.robot.led_names, CAMERA, job.source)
    return stop - start


def _is_done(part: Path, job: _Job) -> bool:
    if part.exists() and read_source(part) != job.source:
        raise ValueError(f"{part}: of another config or seed than asked for; remove the folder to start anew")
    return part.exists()


@contextmanager
def _mapper(num_workers: int) -> Iterator[Callable]:
    """Give a map that works here or, because OpenGL doesn't survive a fork, in spawned processes."""
    if num_workers == 0:
        yield map
    else:
        with get_context("spawn").Pool(num_workers) as pool:
            yield pool.imap_unordered


def _wander(rng: np.random.Generator, num: int) -> np.ndarray:
    """A slowly changing value of unit variance."""
    values = rng.normal(size=num)
    for i in range(1, num):
        values[i] = 0.97 * values[i - 1] + (1 - 0.97**2) ** 0.5 * values[i]
    return values
