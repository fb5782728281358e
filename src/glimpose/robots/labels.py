"""A frame's labels as arrays, and its picture as the network sees it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from glimpose.data.led_h5 import RobotState

MIN_VISIBLE_PX = 50
"""Robots of which fewer pixels are to be seen count as hidden."""


@dataclass(frozen=True)
class Labels:
    """What a frame says of its T targets; rows of NaN where a recording doesn't."""

    led_on: np.ndarray
    """T×K bool."""
    uv_px: np.ndarray
    """T×2."""
    log_range: np.ndarray
    """T: logarithm of depth over focal length, metres per pixel: what apparent size tells."""
    bearing_rad: np.ndarray
    """T."""
    is_visible: np.ndarray
    """T float: 1 or 0, or NaN."""


def is_seen(robot: RobotState) -> bool | None:
    """Whether a robot can be found: its joint in the picture, and enough of it not hidden; None if nobody says."""
    if robot.is_visible and robot.num_visible_px is not None:
        return robot.num_visible_px >= MIN_VISIBLE_PX
    return robot.is_visible


def lone_robot(robots: Sequence[RobotState]) -> RobotState | None:
    """Give the robot that can be found in a frame, if it's the only one."""
    seen = [robot for robot in robots if is_seen(robot)]
    return seen[0] if len(seen) == 1 else None


def labels_of(robots: Sequence[RobotState], num_leds: int, focal_px: float) -> Labels:
    """Gather the labels of a frame's targets."""

    def known(value: float | None) -> float:
        return math.nan if value is None else float(value)

    depth_m = np.array([known(robot.z_m) for robot in robots])
    return Labels(
        led_on=np.array([robot.led_on for robot in robots], bool).reshape(-1, num_leds),
        uv_px=np.array([(np.nan, np.nan) if r.uv_px is None else r.uv_px for r in robots], float).reshape(-1, 2),
        log_range=np.log(np.where(depth_m > 0, depth_m, np.nan) / focal_px),
        bearing_rad=np.array([known(robot.bearing_rad) for robot in robots]),
        is_visible=np.array([known(is_seen(robot)) for robot in robots]),
    )


def input_image(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize a photograph to what the network sees, averaging over the pixels that become one."""
    height, width = image.shape[:2]
    size = round(width * scale), round(height * scale)
    if size == (width, height):
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def scaled(labels: Labels, factor_u: float, factor_v: float) -> Labels:
    """Move labels along with a picture that is resized by a factor for each axis."""
    uv_px = (labels.uv_px + 0.5) * (factor_u, factor_v) - 0.5
    return replace(labels, uv_px=uv_px, log_range=labels.log_range - 0.5 * math.log(factor_u * factor_v))


def resize(image: np.ndarray, labels: Labels, scale: float) -> tuple[np.ndarray, Labels]:
    """Resize a frame."""
    small = input_image(image, scale)
    return small, scaled(labels, small.shape[1] / image.shape[1], small.shape[0] / image.shape[0])
