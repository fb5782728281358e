"""Random drives: where robots are, which of their LEDs are on, and whose camera looks, frame by frame."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STEP_S = 0.05
"""Longest step of the integration."""
BODY_RADIUS_M = 0.22


@dataclass(frozen=True)
class DriveConfig:
    """How robots move about: omnidirectional, each with a heading of its own."""

    num_robots: int = 2
    frames_per_drive: int = 60
    """After this many, everybody starts somewhere else and the next robot's camera looks."""
    frame_rate_hz: float = 3.0
    speed_m_per_s: tuple[float, float] = (0.2, 0.8)
    turn_rate_deg_per_s: float = 90.0
    approach_probability: float = 0.12
    """Share of ways that lead close to another robot."""
    gaze_deg: float = 22.0
    """Standard deviation of how far off the other robot the camera robot looks."""
    look_away_probability: float = 0.18
    """Share of time in which the camera robot looks anywhere."""
    led_dwell_s: tuple[float, float] = (0.6, 3.0)
    """Mean time between two switchings; each LED has its own, drawn anew for each drive."""

    def __post_init__(self) -> None:
        if self.num_robots < 2:
            raise ValueError(f"num_robots is {self.num_robots}, expected at least 2: one looks, the others are seen")
        for name in ("frames_per_drive", "frame_rate_hz"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        if not 0 < self.led_dwell_s[0] <= self.led_dwell_s[1]:
            raise ValueError(f"led_dwell_s is {self.led_dwell_s}, expected times above 0, the shorter one first")


@dataclass(frozen=True)
class Drive:
    """What happens in the frames of one drive."""

    poses: np.ndarray
    """frames × robots × (x, y, θ) in the room."""
    led_on: np.ndarray
    """frames × robots × LEDs, bool."""


def draw_drive(
    rng: np.random.Generator,
    config: DriveConfig,
    camera_robot: int,
    num_leds: int,
    arena_m: tuple[float, float],
    obstacles: Sequence[tuple[float, float, float]],
) -> Drive:
    """Let robots drive in an arena around the room's origin, past obstacles (x, y, radius)."""
    poses = _moves(rng, config, camera_robot, np.array(arena_m) / 2 - BODY_RADIUS_M, np.array(obstacles).reshape(-1, 3))
    dwell_s = rng.uniform(*config.led_dwell_s, (config.num_robots, num_leds))
    return Drive(poses, switches(rng, config.frames_per_drive, dwell_s * config.frame_rate_hz))


def switches(rng: np.random.Generator, num_frames: int, dwell_frames: np.ndarray) -> np.ndarray:
    """Random on and off, each half of the time, with these mean times between switchings: bool, frames × ..."""
    is_switched = rng.random((num_frames, *dwell_frames.shape)) < (1 - np.exp(-2 / dwell_frames)) / 2
    is_switched[0] = rng.random(dwell_frames.shape) < 0.5
    return np.cumsum(is_switched, axis=0) % 2 == 1


def _moves(
    rng: np.random.Generator, config: DriveConfig, camera_robot: int, half_m: np.ndarray, obstacles: np.ndarray
) -> np.ndarray:
    num = config.num_robots
    place = _start(rng, num, half_m, obstacles)
    velocity = np.zeros((num, 2))
    goal, speed = place.copy(), np.zeros(num)
    heading = rng.uniform(-np.pi, np.pi, num)
    aim = heading.copy()  # for the camera robot relative to the direction of the robot that it watches
    watched = camera_robot
    patience_s = np.zeros(num)
    steps = int(np.ceil(1 / (config.frame_rate_hz * STEP_S)))  # per frame
    step_s = 1 / (config.frame_rate_hz * steps)
    max_turn = np.deg2rad(config.turn_rate_deg_per_s) * step_s
    poses = np.empty((config.frames_per_drive, num, 3))
    for step in range(config.frames_per_drive * steps):
        for i in range(num):
            if np.hypot(*(goal[i] - place[i])) < 0.15 or rng.random() < 0.1 * step_s:
                goal[i], speed[i] = _goal(rng, config, i, place, half_m), rng.uniform(*config.speed_m_per_s)
            patience_s[i] -= step_s
            if patience_s[i] <= 0:
                patience_s[i] = rng.uniform(1.5, 4.0)
                is_careful = i == camera_robot and rng.random() >= config.look_away_probability
                aim[i] = rng.normal(0, np.deg2rad(config.gaze_deg)) if is_careful else rng.uniform(-np.pi, np.pi)
                if i == camera_robot:
                    watched = int(rng.choice([j for j in range(num) if j != i]))
            wanted = aim[i]
            if i == camera_robot:
                wanted += np.arctan2(*(place[watched] - place[i])[::-1])
            turn = (wanted - heading[i] + np.pi) % (2 * np.pi) - np.pi
            # All start with the heading that they want.
            heading[i] += turn if step == 0 else np.clip(0.25 * turn, -max_turn, max_turn)
        to_goal = goal - place
        wish = to_goal / np.maximum(np.linalg.norm(to_goal, axis=1, keepdims=True), 0.3) * speed[:, None]
        velocity += 0.12 * (wish + _repulsion(place, obstacles) - velocity)
        place = np.clip(place + velocity * step_s, -half_m, half_m)
        if step % steps == 0:
            poses[step // steps] = np.column_stack([place, (heading + np.pi) % (2 * np.pi) - np.pi])
    return poses


def _start(rng: np.random.Generator, num: int, half_m: np.ndarray, obstacles: np.ndarray) -> np.ndarray:
    """Places that are free, as far as a hundred trials find some."""
    places: list[np.ndarray] = []
    for _ in range(num):
        for _ in range(100):
            place = rng.uniform(-half_m, half_m)
            if all(np.hypot(*(place - other)) > 0.6 for other in places) and not _blocked(place, obstacles):
                break
        places.append(place)
    return np.array(places)


def _goal(rng: np.random.Generator, config: DriveConfig, i: int, place: np.ndarray, half_m: np.ndarray) -> np.ndarray:
    if rng.random() < config.approach_probability:
        other = rng.choice(np.delete(place, i, axis=0))
        angle, distance_m = rng.uniform(-np.pi, np.pi), rng.uniform(0.6, 1.4)
        return np.clip(other + distance_m * np.array([np.cos(angle), np.sin(angle)]), -half_m, half_m)
    return rng.uniform(-half_m, half_m)


def _blocked(place: np.ndarray, obstacles: np.ndarray) -> bool:
    return bool((np.hypot(*(obstacles[:, :2] - place).T) < obstacles[:, 2] + BODY_RADIUS_M).any())


def _repulsion(place: np.ndarray, obstacles: np.ndarray) -> np.ndarray:
    """Velocities that keep robots apart from each other and from obstacles."""
    away = place[:, None] - np.concatenate([place, obstacles[:, :2]])[None]
    distance_m = np.linalg.norm(away, axis=2)
    reach_m = np.concatenate([np.full(len(place), BODY_RADIUS_M + 0.15), obstacles[:, 2]]) + BODY_RADIUS_M
    strength = np.clip(4 * (1 - distance_m / reach_m), 0, None) * (distance_m > 1e-9)
    return (strength[..., None] * away / np.maximum(distance_m, 1e-9)[..., None]).sum(1) * 2
