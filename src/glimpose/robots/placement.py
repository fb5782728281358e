"""From where a network points and how large it sees a robot to where that stands, in metres.

All vectors from the camera are in the axes of the camera robot's base: x forward, y left, z up.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from glimpose.data.led_h5 import RobotCamera
from glimpose.robots.leds import LedRobot

FARTHEST_M = 10.0
"""Where neither size nor slope changes with distance any more, unless a calibration tells better."""


@dataclass(frozen=True)
class Calibration:
    """What turns a network's sightings into metres; `calibrate` finds it out, and checkpoints hold it.

    A robot's distance shows twice: in its size, and, for both robots stand on the same floor, in how far below the
    horizon it is seen. What both are off by often has opposite signs, so their geometric mean is used.
    """

    scale_m: float
    """Depth over focal length, metres per pixel of the network's input, of what has a size of 1 (a range of 1)."""
    glare: float = 0.0
    """Size that is left at any distance: the light of an LED spreads in the lens and on the sensor."""
    height_m: float | None = None
    """How high above the floor the point is that the network points at; None if it's the joint, or unknown."""
    horizon: float | None = None
    """Slope of the ray (rise over run) to a robot infinitely far away; None if slopes agree on no height, so that
    distances are told by size alone, and nothing is known of the point but its median height."""
    farthest_m: float = FARTHEST_M
    """Neither size nor slope is believed to tell a distance above this one."""

    def distance_m(self, log_range: float, slope: float, reach_px: float, camera_height_m: float) -> float:
        """Distance from the camera in the ground plane.

        ``slope`` is the rise over run of the ray to where the network points, and ``reach_px`` the focal length in the
        network's input times the run of that ray at a depth of 1. A camera at an unknown height (NaN) knows sizes only.
        """
        by_size_m = self._believed_m((math.exp(-log_range) - self.glare) / (self.scale_m * reach_px))
        if self.horizon is None or self.height_m is None or math.isnan(camera_height_m):
            return by_size_m
        by_slope_m = self._believed_m((slope - self.horizon) / (self.height_m - camera_height_m))
        return math.sqrt(by_size_m * by_slope_m)

    def _believed_m(self, nearness_per_m: float) -> float:
        return 1 / max(nearness_per_m, 1 / self.farthest_m)

    def to_joint_m(
        self,
        uv_px: np.ndarray,
        log_range: float,
        bearing_rad: float,
        focal_px: float,
        camera: RobotCamera,
        robot: LedRobot,
    ) -> np.ndarray:
        """From the camera to the joint of a robot of which the network points at a pixel of the photograph.

        Nothing in its training ties the point to the joint (docs/lab-book.md). Where slopes agree on its height, it is
        taken for the middle of the LEDs at that height that are seen from the bearing. ``focal_px`` is that of the
        network's input.
        """
        toward, camera_height_m = direction(uv_px, camera), float(camera.base_T_cam[2, 3])
        run, slope = run_and_slope(toward)
        distance_m = self.distance_m(log_range, slope, focal_px * run, camera_height_m)
        if self.height_m is None or math.isnan(camera_height_m):
            return distance_m / run * toward
        ahead = toward[:2] / run
        left = np.array([-ahead[1], ahead[0]])
        xy_m = distance_m * ahead
        if self.horizon is not None:
            xy_m -= _left_of_joint_m(bearing_rad, self.height_m, robot) * left
            xy_m *= distance_m / np.hypot(*xy_m)  # to the joint, whichever way it lies from the light
        return np.array([*xy_m, robot.gimbal_m[2] - camera_height_m])


def _left_of_joint_m(bearing_rad: float, height_m: float, robot: LedRobot) -> float:
    """How far left of the joint, seen from a bearing, the LEDs at some height are; 0 for an unknown bearing."""
    if math.isnan(bearing_rad):
        return 0.0
    x, y, _ = robot.shining_m(bearing_rad, height_m) - robot.gimbal_m
    return float(x * math.sin(bearing_rad) - y * math.cos(bearing_rad))


def focal_px(camera: RobotCamera) -> float:
    """Mean focal length."""
    return math.sqrt(camera.K[0, 0] * camera.K[1, 1])


def ray(uv_px: np.ndarray, camera: RobotCamera) -> np.ndarray:
    """(x, y, 1) of what is seen at a pixel, in the camera's frame, with the lens's distortion undone."""
    x, y = cv2.undistortPoints(np.array([[uv_px]], np.float64), camera.K, camera.distortion)[0, 0]
    return np.array([x, y, 1.0])


def direction(uv_px: np.ndarray, camera: RobotCamera) -> np.ndarray:
    """From the camera to what is seen at a pixel and a depth of 1."""
    seen: np.ndarray = camera.base_T_cam[:3, :3] @ ray(uv_px, camera)
    return seen


def run_and_slope(toward: np.ndarray) -> tuple[float, float]:
    """How far a direction goes in the ground plane, and its rise over that run."""
    run = float(np.hypot(*toward[:2]))
    return run, float(toward[2]) / run


def project(from_camera_m: np.ndarray, camera: RobotCamera) -> np.ndarray:
    """Pixel at which a point is seen."""
    xyz = camera.base_T_cam[:3, :3].T @ from_camera_m
    uv_px, _ = cv2.projectPoints(xyz[None], np.zeros(3), np.zeros(3), camera.K, camera.distortion)
    return uv_px.ravel()


def place(
    to_joint_m: np.ndarray, bearing_rad: float, camera: RobotCamera, robot: LedRobot
) -> tuple[np.ndarray, np.ndarray]:
    """Return (x, y, θ) in the camera robot's base frame, and cam_T_robot, of a robot whose joint is there.

    Both robots stand on the same floor: where the camera's height is known, the robot's follows from it, otherwise
    from the joint's. Without a bearing the robot is taken to face the way the camera's robot does.
    """
    R, mount_m = camera.base_T_cam[:3, :3], camera.base_T_cam[:3, 3]
    joint_m = np.array(robot.gimbal_m)
    for _ in range(3):  # the base's place and its direction tell each other; the joint is near its middle
        x, y = (mount_m + to_joint_m - joint_m)[:2]
        theta = _heading_rad(np.array([x, y]), bearing_rad)
        base_R_target = Rotation.from_euler("z", 0 if math.isnan(theta) else theta).as_matrix()
        joint_m = base_R_target @ robot.gimbal_m
    from_camera = to_joint_m - joint_m
    if not math.isnan(mount_m[2]):
        from_camera[2] = -mount_m[2]
    cam_T_robot = np.eye(4)
    cam_T_robot[:3, :3] = R.T @ base_R_target
    cam_T_robot[:3, 3] = R.T @ from_camera
    return np.array([x, y, theta]), cam_T_robot


def _heading_rad(xy_m: np.ndarray, bearing_rad: float) -> float:
    """Direction that a robot at a place in the camera robot's base frame has, seen from a bearing: -π to π."""
    theta = math.atan2(-xy_m[1], -xy_m[0]) - bearing_rad
    return math.atan2(math.sin(theta), math.cos(theta))
