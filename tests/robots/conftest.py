"""Fixtures: a box with four lights, one on each side, and a recording of it in an empty room."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from glimpose.data.led_h5 import RobotCamera
from glimpose.data.led_h5_writer import ml_row, write_recording
from glimpose.robots.leds import LedRobot, load_leds

ROBOT = """
name = "box"
gimbal_m = [0.0, 0.0, 0.1]
[[leds]]
name = "front"
azimuth_deg = 0
[[leds]]
name = "back"
azimuth_deg = 180
[[leds]]
name = "left"
azimuth_deg = 90
[[leds]]
name = "right"
azimuth_deg = -90
"""
COLORS = {"front": (255, 60, 40), "back": (60, 80, 255), "left": (60, 255, 60), "right": (250, 240, 60)}
MOUNT_M = (0.05, 0.0, 0.25)
CAMERA = RobotCamera(
    K=np.array([[80.0, 0, 79.5], [0, 80.0, 35.5], [0, 0, 1]]),
    width=160,
    height=72,
    distortion=np.zeros(5),
    base_T_cam=np.array([[0, 0, 1, MOUNT_M[0]], [-1, 0, 0, MOUNT_M[1]], [0, -1, 0, MOUNT_M[2]], [0, 0, 0, 1.0]]),
)


@dataclass(frozen=True)
class Room:
    recording: Path
    robot_file: Path
    robot: LedRobot
    camera: RobotCamera


def draw(rng: np.random.Generator, others: dict[int, np.ndarray], led_on: dict[int, dict[str, bool]], robot: LedRobot):
    """Paint boxes with their lights, the farthest first, and tell how many pixels of each there are."""
    background = rng.integers(90, 160, (9, 20, 3)).astype(np.uint8)
    image = cv2.resize(background, (CAMERA.width, CAMERA.height), interpolation=cv2.INTER_LINEAR)
    owner = np.zeros(image.shape[:2], int)
    for number, (x, y, theta) in sorted(others.items(), key=lambda item: -item[1][0]):
        z = x - MOUNT_M[0]
        if z < 0.2:
            continue
        u, v = CAMERA.K[0, 2] - 80 * (y - MOUNT_M[1]) / z, CAMERA.K[1, 2] + 80 * (MOUNT_M[2] - 0.1) / z
        half = 80 * 0.16 / z
        corners = [round(u - half), round(v - 0.6 * half), round(u + half), round(v + 0.6 * half)]
        cv2.rectangle(image, tuple(corners[:2]), tuple(corners[2:]), (35, 35, 40), -1)
        left, top, right, bottom = np.clip(corners, 0, [CAMERA.width, CAMERA.height] * 2)
        owner[top:bottom, left:right] = number
        psi = np.arctan2(-y, -x) - theta
        for led in robot.leds:
            away = np.deg2rad(led.azimuth_deg) - psi  # seen from above, the side it is on
            if np.cos(away) > 0:
                color = COLORS[led.name] if led_on[number][led.name] else tuple(c // 4 for c in COLORS[led.name])
                center = (round(u + np.sin(away) * 0.75 * half), round(v))
                cv2.circle(image, center, max(1, round(0.3 * half)), color, -1)
    noisy = image + rng.normal(0, 3, image.shape)
    pixels = {number: int((owner == number).sum()) for number in others}
    return noisy.clip(0, 255).astype(np.uint8), pixels


def record(path: Path, robot: LedRobot, num_frames: int, seed: int, num_targets: int = 1) -> Path:
    """Write a recording in which robot 1 looks at the others, one frame in six without any of them in view."""
    rng = np.random.default_rng(seed)
    numbers = range(1, num_targets + 2)

    def rows():
        for i in range(num_frames):
            poses = {1: np.zeros(3)}
            for number in numbers[1:]:
                x = rng.uniform(0.6, 2.0)
                away = rng.random() < 1 / 6
                poses[number] = np.array([-x if away else x, rng.uniform(-0.6, 0.6) * x, rng.uniform(-np.pi, np.pi)])
            led_on = {n: {name: bool(rng.random() < 0.5) for name in robot.led_names} for n in numbers}
            image, pixels = draw(rng, {n: poses[n] for n in numbers[1:]}, led_on, robot)
            yield ml_row(image, i / 3, 1, poses, led_on, pixels, CAMERA, robot.gimbal_m)

    write_recording(path, rows(), num_frames, list(numbers), robot.led_names, CAMERA, source="tests")
    return path


@pytest.fixture(scope="session")
def room(tmp_path_factory) -> Room:
    folder = tmp_path_factory.mktemp("room")
    (folder / "box.toml").write_text(ROBOT)
    robot = load_leds(folder / "box.toml")
    return Room(record(folder / "room.h5", robot, 120, seed=0), folder / "box.toml", robot, CAMERA)


@pytest.fixture(scope="session")
def crowd(tmp_path_factory, room) -> Path:
    """Record two robots at a time."""
    return record(tmp_path_factory.mktemp("crowd") / "crowd.h5", room.robot, 40, seed=1, num_targets=2)
