"""Relative poses of robots in recordings and photographs, written to a file, with pictures to look at."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from glimpose.data.files import find_images, read_image, write_image
from glimpose.data.led_h5 import RobotCamera, open_recording
from glimpose.data.robot_poses import RobotPose, read_robot_camera, write_robot_poses
from glimpose.robots.estimator import RobotEstimate, RobotEstimator
from glimpose.viz.overlay import PoseLabel, draw_poses

logger = logging.getLogger(__name__)

RECORDING_SUFFIXES = (".h5", ".hdf5")
SHOWN_PRESENCE = 0.5
"""Pictures leave out robots that are less likely there; the file has them."""


@dataclass(frozen=True)
class View:
    """One picture to look for robots in."""

    frame: str
    image: np.ndarray
    camera: RobotCamera | None


class Views:
    """The frames of a recording, or image files with one camera; pictures are read when asked for."""

    def __init__(self, inputs: Sequence[Path], camera: Path | None) -> None:
        recordings = [path for path in inputs if path.suffix.lower() in RECORDING_SUFFIXES]
        self.camera = read_robot_camera(camera) if camera else None
        self.recording = None
        self.files: list[Path] = []
        if not recordings:
            self.files = [path for entry in inputs for path in find_images(entry)]
        elif len(inputs) == 1:
            self.recording = open_recording(recordings[0], allow_constant_leds=True)
            self.camera = self.camera or self.recording.camera
        else:
            raise ValueError(f"{recordings[0]}: give one recording alone, or images; got {len(inputs)} inputs")

    def __len__(self) -> int:
        return len(self.files) if self.recording is None else len(self.recording)

    def __getitem__(self, index: int) -> View:
        if self.recording is None:
            path = self.files[index]
            return View(path.name, read_image(path), self.camera)
        return View(str(index), self.recording.image(index), self.camera)

    def where(self, index: int) -> str:
        """Name a picture as errors do."""
        return str(self.files[index]) if self.recording is None else f"{self.recording.path}, frame {index}"


def predict(estimator: RobotEstimator, views: Views, out: Path, overlay: Path | None = None) -> list[RobotPose]:
    """Find robots in every picture and write them; at least one for each, however unlikely.

    With ``overlay``, pictures go into that folder; they show robots that are likely there.
    """
    led_names = estimator.model.robot.led_names
    is_calibrated = estimator.calibration is not None and views.camera is not None
    if not is_calibrated:
        logger.warning("distances are uncalibrated: no metres without glimpose calibrate and a camera")
    rows: list[RobotPose] = []
    for index in tqdm(range(len(views)), desc="predict", unit="image", disable=None):
        view = views[index]
        try:
            estimates = estimator(view.image, view.camera)
        except ValueError as error:
            raise ValueError(f"{views.where(index)}: {error}") from None
        rows += [_row(view.frame, i, estimate, estimator) for i, estimate in enumerate(estimates)]
        if overlay is not None:
            overlay.mkdir(parents=True, exist_ok=True)
            write_image(overlay / f"{Path(view.frame).stem:0>6}.jpg", draw(view, estimates, estimator))
    write_robot_poses(out, rows, led_names, is_calibrated)
    return rows


def _row(frame: str, index: int, estimate: RobotEstimate, estimator: RobotEstimator) -> RobotPose:
    pose = np.full(3, np.nan) if estimate.base_T_target is None else estimate.base_T_target
    joint = np.full(3, np.nan)
    if estimate.cam_T_robot is not None:
        joint = estimate.cam_T_robot[:3] @ [*estimator.model.robot.gimbal_m, 1]
    values = {
        "u_px": estimate.uv_px[0],
        "v_px": estimate.uv_px[1],
        "distance_m": math.nan if estimate.distance_m is None else estimate.distance_m,
        "bearing_deg": math.degrees(estimate.bearing_rad),
        "bearing_spread_deg": math.degrees(estimate.bearing_spread_rad),
        "x_m": pose[0],
        "y_m": pose[1],
        "theta_deg": math.degrees(pose[2]),
        **dict(zip(("cam_x_m", "cam_y_m", "cam_z_m"), joint, strict=True)),
        "presence": estimate.presence,
    }
    names = estimator.model.robot.led_names
    led_prob = estimate.led_prob if len(estimate.led_prob) else np.full(len(names), np.nan)
    return RobotPose(frame, index, values, dict(zip(names, led_prob, strict=True)))


def draw(view: View, estimates: Sequence[RobotEstimate], estimator: RobotEstimator) -> np.ndarray:
    """Draw a box and axes of every robot that is likely there, or a cross on it where there are no metres."""
    robot = estimator.model.robot
    places = np.array([led.position_m or robot.gimbal_m for led in robot.leds])
    bounds_m = np.stack([np.minimum(places.min(0), 0), places.max(0)])
    image, labels = view.image.copy(), []
    for estimate in estimates:
        if estimate.presence < SHOWN_PRESENCE:
            continue
        if estimate.cam_T_robot is None:
            u, v = (round(float(x)) for x in estimate.uv_px)
            cv2.drawMarker(image, (u, v), (255, 255, 255), cv2.MARKER_CROSS, 24, 2, cv2.LINE_AA)
        else:
            labels.append(PoseLabel(robot.name, estimate.presence, estimate.cam_T_robot, bounds_m))
    return draw_poses(image, np.eye(3) if view.camera is None else view.camera.K, labels)
