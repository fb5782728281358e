"""Files about robots' poses that people read too: predictions as CSV, cameras as JSON."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glimpose.data.bop_results import RESULT_FIELDS, ResultRow, read_results_csv
from glimpose.data.fields import mapping, number, numbers
from glimpose.data.files import read_json, write_text
from glimpose.data.led_h5 import RobotCamera, open_recording

UNCALIBRATED = "uncalibrated"
"""Stands where metres would, as long as nobody has told the scale."""
LED_PREFIX = "led_"
NUMBERS = {
    "u_px": "place in the photograph of the joint that is learned about",
    "v_px": "",
    "distance_m": "in the ground plane, from base to base",
    "bearing_deg": "direction, in the robot's base frame, from which the camera's robot is seen",
    "bearing_spread_deg": "circular standard deviation",
    "x_m": "place and direction of the robot's base in that of the camera's robot",
    "y_m": "",
    "theta_deg": "",
    "cam_x_m": "the joint in the camera frame",
    "cam_y_m": "",
    "cam_z_m": "",
    "presence": "probability, or another score, of there being a robot",
}


@dataclass(frozen=True)
class RobotPose:
    """One robot in one frame, as predicted; NaN where a method can't tell."""

    frame: str
    """Number in a recording, or name of an image file."""
    robot_index: int
    """0 is the surest of its frame."""
    values: Mapping[str, float]
    """By the names of `NUMBERS`."""
    led_prob: Mapping[str, float]
    """By LED: probability of being on, of those that can be seen."""


def write_robot_poses(path: Path, poses: Sequence[RobotPose], led_names: Sequence[str], is_calibrated: bool) -> None:
    """Write predictions; without a calibration, distances say so and what follows from them is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["frame", "robot_index", *NUMBERS, *(LED_PREFIX + name for name in led_names)])
    for pose in poses:
        cells = {key: _told(pose.values[key]) for key in NUMBERS}
        if not is_calibrated:
            cells["distance_m"] = UNCALIBRATED
        leds = [_told(pose.led_prob[name]) for name in led_names]
        writer.writerow([pose.frame, pose.robot_index, *cells.values(), *leds])
    write_text(path, text.getvalue())


def read_robot_poses(path: Path) -> list[RobotPose]:
    """Read predictions, of whichever program; an empty cell is NaN, and so is an uncalibrated distance."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of predictions")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [key for key in ("frame", "robot_index", *NUMBERS) if key not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: no column {', '.join(missing)}; expected a file that glimpose predict wrote")
        return [_read_row(row, f"{path}, line {line}") for line, row in enumerate(reader, start=2)]


def robot_poses_from_bop(path: Path, camera: RobotCamera, gimbal_m: Sequence[float]) -> list[RobotPose]:
    """Read what a method for objects found, in BOP's format: poses of the robot's mesh in its base frame.

    The image's id is the frame's number. LED states and spreads are NaN.
    """
    by_frame: dict[int, list[ResultRow]] = defaultdict(list)
    for row in sorted(read_results_csv(path), key=lambda row: -row.score):
        by_frame[row.im_id].append(row)
    poses = []
    for im_id, rows in sorted(by_frame.items()):
        for index, row in enumerate(rows):
            joint = row.cam_T_obj[:3] @ [*gimbal_m, 1]
            u, v, w = camera.K @ joint
            base_T_obj = camera.base_T_cam @ row.cam_T_obj
            x, y = base_T_obj[:2, 3]
            theta_deg = math.degrees(math.atan2(base_T_obj[1, 0], base_T_obj[0, 0]))
            values = dict.fromkeys(NUMBERS, math.nan) | {
                "u_px": u / w,
                "v_px": v / w,
                "distance_m": math.hypot(x, y),
                "bearing_deg": math.degrees(math.atan2(-y, -x)) - theta_deg,
                "x_m": x,
                "y_m": y,
                "theta_deg": theta_deg,
                **dict(zip(("cam_x_m", "cam_y_m", "cam_z_m"), joint, strict=True)),
                "presence": row.score,
            }
            poses.append(RobotPose(str(im_id), index, values, {}))
    return poses


def is_bop(path: Path) -> bool:
    """Tell a file of objects' poses from one of robots', by its first line."""
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        return file.readline().startswith(RESULT_FIELDS[0])


def _read_row(row: Mapping[str, str], where: str) -> RobotPose:
    if None in row.values() or None in row:
        raise ValueError(f"{where}: has another number of cells than the header; was the file cut short?")
    leds = {key.removeprefix(LED_PREFIX): _number(row, key, where) for key in row if key.startswith(LED_PREFIX)}
    if not row["robot_index"].isdecimal():
        raise ValueError(f"{where}: robot_index is {row['robot_index']!r}, expected 0, 1, …")
    return RobotPose(row["frame"], int(row["robot_index"]), {key: _number(row, key, where) for key in NUMBERS}, leds)


def _number(row: Mapping[str, str], key: str, where: str) -> float:
    text = row[key].strip()
    if not text or (key == "distance_m" and text == UNCALIBRATED):
        return math.nan
    return number(row, key, where)


def _told(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""


def read_robot_camera(path: Path) -> RobotCamera:
    """Read a robot's camera: from a recording, or from JSON with fx, fy, cx, cy, width, height.

    The JSON may also hold ``distortion`` (OpenCV's k1, k2, p1, p2, k3) and ``base_T_cam``, 16 numbers row by row. A
    camera of which the mounting isn't known is taken to look straight ahead from the base's origin, at unknown height.
    """
    path = Path(path)
    if path.suffix.lower() in (".h5", ".hdf5"):
        camera = open_recording(path, allow_constant_leds=True).camera
        if camera is None:
            raise ValueError(f"{path}: this recording doesn't tell its camera; give a camera.json")
        return camera
    content = mapping(read_json(path), path)
    fx, fy, cx, cy = (number(content, key, path) for key in ("fx", "fy", "cx", "cy"))
    width, height = (int(number(content, key, path)) for key in ("width", "height"))
    base_T_cam = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, np.nan], [0, 0, 0, 1]])
    if "base_T_cam" in content:
        base_T_cam = numbers(content["base_T_cam"], 16, path, "base_T_cam").reshape(4, 4)
    distortion = np.zeros(5)
    if "distortion" in content:
        distortion = numbers(content["distortion"], 5, path, "distortion")
    return RobotCamera(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), width, height, distortion, base_T_cam)
