"""Recordings of robots that tell each other which of their LEDs are on, in the HDF5 layouts of the public ones.

ML (several LEDs): attrs["RIDs"] names the robots "RM<n>"; ``image`` N×H×W×3, ``robot_id`` (whose camera it was),
``timestamp``, ``RM{b}_led_{name}`` 0 or 1, and as ground truth, all of it optional: ``RM{a}_proj_uvz_RM{b}`` (gimbal
joint of b in a's image), ``RM{a}_pose_rel_RM{b}`` (x, y, θ of b in a's base frame), ``RM{a}_pose``,
``RM{a}_camera_pose``. Files written here also hold the camera and in how many pixels b is seen, ``RM{b}_visible_px``.

LP (a single LED): ``image`` N×1×H×W, ``led_status``, and optionally ``proj_u``, ``proj_v``, ``pose_rel``, ``subset``.

Base frames have x forward, y left, z up, and lie on the floor under the robot. The bearing ψ of a target is the
direction, in its own base frame, from which the camera robot is seen: 0 from its front, +90° from its left.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import cv2
import h5py
import numpy as np

LP_SUBSETS = {"TR1": 0, "TE1": 1, "TE0": 2, "MSG": 3, "NOV": 4}
"""In frames of NOV no robot is in view and no LED state is known."""
_ML_LEDS = ("bb", "bl", "br", "bf", "tl", "tr")


@dataclass(frozen=True)
class RobotCamera:
    """A robot's camera: what it sees, and where it is mounted."""

    K: np.ndarray
    width: int
    height: int
    distortion: np.ndarray
    """OpenCV's k1, k2, p1, p2, k3."""
    base_T_cam: np.ndarray


def _mounted(position_m: Sequence[float], pitch_down_deg: float) -> np.ndarray:
    """base_T_cam of a camera that looks forward and a little down."""
    pitch = np.deg2rad(pitch_down_deg)
    forward = np.array([np.cos(pitch), 0, -np.sin(pitch)])
    right = np.array([0.0, -1.0, 0.0])
    base_T_cam = np.eye(4)
    base_T_cam[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    base_T_cam[:3, 3] = position_m
    return base_T_cam


ROBOMASTER_CAMERA = RobotCamera(
    K=np.array([[314.267, 0, 322.317], [0, 314.248, 176.740], [0, 0, 1]]),
    width=640,
    height=360,
    distortion=np.array([-0.0717, 0.0385, -0.00146, 0.00022, -0.0383]),
    base_T_cam=_mounted((0.0749, 0.0001, 0.2340), 1.6),
)
"""Of the public ML recordings, which don't hold it."""


@dataclass(frozen=True)
class RobotState:
    """What is known of one target in one frame; None where the recording doesn't say."""

    name: str
    led_on: np.ndarray
    """K bool, in the order of the recording's LED names."""
    uv_px: np.ndarray | None = None
    """Of its gimbal joint, in the image or outside."""
    z_m: float | None = None
    """Depth of that joint; negative behind the camera."""
    distance_m: float | None = None
    """In the ground plane, from base to base. (The public files call the forward component so.)"""
    bearing_rad: float | None = None
    """Direction, in the target's base frame, from which the camera robot is seen."""
    base_T_target: np.ndarray | None = None
    """(x, y, θ) of the target in the camera robot's base frame."""
    is_visible: bool | None = None
    """Its gimbal joint lies in the image and before the camera; something may stand between."""
    num_visible_px: int | None = None
    """Pixels in which the robot is seen."""


@dataclass(frozen=True)
class LedFrame:
    """One photograph and the robots that may be in it."""

    image: np.ndarray
    """H×W×3 uint8 RGB."""
    timestamp_s: float
    """NaN where the recording doesn't say."""
    robots: tuple[RobotState, ...]


@dataclass(frozen=True)
class _Target:
    """One robot's labels over the frames of a recording; NaN where unknown."""

    name: str
    is_target: np.ndarray  # N bool: not the robot that takes the picture
    led_on: np.ndarray  # N×K bool
    uvz: np.ndarray  # N×3
    pose: np.ndarray  # N×3: (x, y, θ) in the camera robot's base frame
    distance_m: np.ndarray  # N
    bearing_rad: np.ndarray  # N
    num_visible_px: np.ndarray | None = None  # N

    def state(self, i: int, width: int, height: int) -> RobotState:
        u, v, z = self.uvz[i]
        # Without depth, as in LP recordings, what has a place in the image is before the camera.
        is_before = z > 0 or np.isnan(z)
        return RobotState(
            name=self.name,
            led_on=self.led_on[i],
            uv_px=None if np.isnan(u + v) else self.uvz[i, :2],
            z_m=_known(z),
            distance_m=_known(self.distance_m[i]),
            bearing_rad=_known(self.bearing_rad[i]),
            base_T_target=None if np.isnan(self.pose[i]).any() else self.pose[i],
            is_visible=None if np.isnan(u + v) else bool(0 < u < width and 0 < v < height and is_before),
            num_visible_px=None if self.num_visible_px is None else int(self.num_visible_px[i]),
        )


class Recording:
    """Frames of a recording, read from its file one by one; may be pickled, forked and used by several processes."""

    def __init__(
        self,
        path: Path,
        rows: np.ndarray,
        led_names: tuple[str, ...],
        camera: RobotCamera | None,
        image_size: tuple[int, int],
        timestamps_s: np.ndarray,
        targets: Sequence[_Target],
    ) -> None:
        self.path = path
        self.led_names = led_names
        self.camera = camera
        """None for LP recordings, whose camera is not known."""
        self.width, self.height = image_size
        self._rows = rows
        self._timestamps_s = timestamps_s
        self._targets = tuple(targets)
        self._file: h5py.File | None = None
        self._process: int | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> LedFrame:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: frame {index} of {len(self)}")
        index %= len(self)
        return LedFrame(self.image(index), float(self._timestamps_s[index]), self.robots(index))

    def image(self, index: int) -> np.ndarray:
        """Read one photograph, H×W×3 uint8 RGB; grey ones get three equal channels."""
        try:
            image = self._open()["image"][self._rows[index]]
        except OSError as error:
            raise ValueError(f"{self.path}: image {self._rows[index]} can't be read ({error}); was it cut?") from None
        return image if image.shape[-1] == 3 else cv2.cvtColor(image.reshape(image.shape[-2:]), cv2.COLOR_GRAY2RGB)

    def robots(self, index: int) -> tuple[RobotState, ...]:
        """Return what is known of the targets in a frame, without reading the image."""
        return tuple(t.state(index, self.width, self.height) for t in self._targets if t.is_target[index])

    def led_states(self, index: int) -> np.ndarray:
        """Return which LEDs of each target are on, targets × LEDs, without reading the image."""
        states = [target.led_on[index] for target in self._targets if target.is_target[index]]
        return np.array(states, bool).reshape(-1, len(self.led_names))

    def _open(self) -> h5py.File:
        # A file opened before a fork is not to be used after it.
        if self._file is None or self._process != os.getpid():
            self._file, self._process = h5py.File(self.path, "r"), os.getpid()
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_process": None}


def open_recording(
    path: Path,
    *,
    led_names: Sequence[str] | None = None,
    subsets: Sequence[str] | None = None,
    allow_constant_leds: bool = False,
) -> Recording:
    """Open a recording of either layout and check everything but the pixels.

    ``led_names`` chooses and orders the LEDs (default: all there are); ``subsets`` chooses frames of an LP recording.
    An LED that never changes teaches nothing, so it's refused unless allowed, as for scoring. Raises FileNotFoundError,
    or ValueError naming the key at fault.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such recording")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: not a readable HDF5 file ({error}); was it cut short? Copy it again") from None
    with file:
        reader = _Reader(path, file)
        if "led_status" in file:
            recording = reader.single_led(subsets)
        else:
            if subsets is not None:
                raise ValueError(f"{path}: subsets {', '.join(subsets)} asked for, but only LP recordings have subsets")
            recording = reader.multi_led(led_names)
    if not allow_constant_leds:
        _check_changes(recording)
    return recording


class _Reader:
    """Reads and checks the labels of a file."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self.file = file
        if "image" not in file:
            self.fail(f"has no key 'image'; found {', '.join(sorted(file)) or 'nothing'}")
        images = file["image"]
        if images.dtype != np.uint8 or images.ndim != 4 or (images.shape[-1] != 3 and images.shape[1] != 1):
            self.fail(f"image is {images.dtype} {images.shape}, expected uint8 N×H×W×3 (ML) or N×1×H×W (LP)")
        self.num = images.shape[0]
        if self.num == 0:
            self.fail("image has no frames")

    def fail(self, message: str) -> NoReturn:
        raise ValueError(f"{self.path}: {message}")

    def column(self, key: str, width: int | None = None) -> np.ndarray:
        """Read N values, or N × (at least ``width``) of which the first are taken, as float64."""
        if key not in self.file:
            self.fail(f"missing key '{key}'")
        values = np.asarray(self.file[key], dtype=np.float64)
        if len(values) != self.num:
            self.fail(f"{key} has {len(values)} rows, but there are {self.num} images")
        values = values.reshape(self.num, -1)
        if values.shape[1] < (width or 1):
            self.fail(f"{key} has {values.shape[1]} values a frame, expected {width or 1}")
        return values[:, 0] if width is None else values[:, :width]

    def optional(self, key: str, width: int | None = None) -> np.ndarray:
        if key in self.file:
            return self.column(key, width)
        return np.full(self.num if width is None else (self.num, width), np.nan)

    def leds(self, key: str, is_known: np.ndarray) -> np.ndarray:
        states = self.column(key)
        wrong = np.flatnonzero(is_known & (states != 0) & (states != 1))
        if len(wrong):
            self.fail(f"{key} is {states[wrong[0]]:g} in frame {wrong[0]}, expected 0 or 1")
        return states == 1

    def multi_led(self, asked: Sequence[str] | None) -> Recording:
        if "RIDs" not in self.file.attrs:
            self.fail("missing attribute 'RIDs', expected the robots' names, such as ['RM1', 'RM2']")
        robots = [rid.decode() if isinstance(rid, bytes) else str(rid) for rid in self.file.attrs["RIDs"]]
        if any(not (robot.startswith("RM") and robot[2:].isdigit()) for robot in robots):
            self.fail(f"RIDs are {robots}, expected names such as 'RM1'")
        camera_robot = self.column("robot_id")
        unknown = set(camera_robot) - {int(robot[2:]) for robot in robots}
        if unknown:
            self.fail(f"robot_id holds {min(unknown):g}, but RIDs name only {', '.join(robots)}")
        led_names = self.led_names(robots, asked)
        targets = [self.target(robot, robots, camera_robot, led_names) for robot in robots]
        return Recording(
            self.path,
            np.arange(self.num),
            led_names,
            self.camera(),
            (self.file["image"].shape[2], self.file["image"].shape[1]),
            self.optional("timestamp"),
            targets,
        )

    def led_names(self, robots: Sequence[str], asked: Sequence[str] | None) -> tuple[str, ...]:
        prefixes = tuple(f"{robot}_led_" for robot in robots)
        recorded = {key.partition("_led_")[2] for key in self.file if key.startswith(prefixes)}
        if not recorded:
            self.fail(f"has no LED states: expected keys such as '{robots[0]}_led_bf'")
        if asked is not None:
            missing = [name for name in asked if name not in recorded]
            if missing:
                self.fail(f"has no states of LED {', '.join(missing)}; recorded are {', '.join(sorted(recorded))}")
            return tuple(asked)
        stored = [str(name) for name in self.file.attrs.get("led_names", _ML_LEDS)]
        return tuple([name for name in stored if name in recorded] + sorted(recorded - set(stored)))

    def target(self, robot: str, robots: Sequence[str], camera_robot: np.ndarray, led_names: Sequence[str]) -> _Target:
        is_target = camera_robot != int(robot[2:])
        led_on = np.stack([self.leds(f"{robot}_led_{name}", is_target) for name in led_names], axis=1)
        uvz, pose, seen_from = (np.full((self.num, 3), np.nan) for _ in range(3))
        for other in robots:
            if other != robot:
                rows = camera_robot == int(other[2:])
                uvz[rows] = self.optional(f"{other}_proj_uvz_{robot}", 3)[rows]
                pose[rows] = self.optional(f"{other}_pose_rel_{robot}", 3)[rows]
                seen_from[rows] = self.optional(f"{robot}_pose_rel_{other}", 3)[rows]
        return _Target(
            robot,
            is_target,
            led_on,
            uvz,
            pose,
            distance_m=np.hypot(pose[:, 0], pose[:, 1]),
            bearing_rad=np.arctan2(seen_from[:, 1], seen_from[:, 0]),
            num_visible_px=self.column(f"{robot}_visible_px") if f"{robot}_visible_px" in self.file else None,
        )

    def camera(self) -> RobotCamera:
        _, height, width, _ = self.file["image"].shape
        attrs = self.file.attrs
        if "K" not in attrs:
            camera = ROBOMASTER_CAMERA
            if (width, height) != (camera.width, camera.height):
                self.fail(
                    f"images are {width}×{height}, but without an attribute 'K' the camera is taken for the public "
                    f"recordings', of {camera.width}×{camera.height}; store K, distortion and base_T_cam as attributes"
                )
            return camera
        shapes = {"K": (3, 3), "distortion": (5,), "base_T_cam": (4, 4)}
        values = {}
        for key, shape in shapes.items():
            if key not in attrs:
                self.fail(f"missing attribute '{key}'; expected beside 'K'")
            values[key] = np.asarray(attrs[key], dtype=np.float64)
            if values[key].shape != shape:
                self.fail(f"attribute '{key}' has shape {values[key].shape}, expected {shape}")
        return RobotCamera(width=width, height=height, **values)

    def single_led(self, subsets: Sequence[str] | None) -> Recording:
        unknown = set(subsets or ()) - set(LP_SUBSETS)
        if unknown:
            self.fail(f"no such subset {', '.join(sorted(unknown))}; expected {', '.join(LP_SUBSETS)}")
        subset = self.column("subset") if subsets is not None else self.optional("subset")
        is_chosen = np.ones(self.num, bool) if subsets is None else np.isin(subset, [LP_SUBSETS[s] for s in subsets])
        if not is_chosen.any():
            self.fail(f"has no frames of subset {', '.join(subsets or ())}")
        rows = np.flatnonzero(is_chosen)
        is_target = subset != LP_SUBSETS["NOV"]
        uv = [self.optional(key) for key in ("proj_u", "proj_v")]
        unknown_values = np.full((len(rows), 3), np.nan)
        target = _Target(
            "robot",
            is_target[rows],
            self.leds("led_status", is_target)[rows, None],
            np.stack([*uv, np.full(self.num, np.nan)], axis=1)[rows],
            unknown_values,
            distance_m=self.optional("pose_rel")[rows],
            bearing_rad=unknown_values[:, 0],
        )
        height, width = self.file["image"].shape[-2:]
        return Recording(self.path, rows, ("led",), None, (width, height), self.optional("timestamp")[rows], [target])


def _check_changes(recording: Recording) -> None:
    states = np.concatenate([target.led_on[target.is_target] for target in recording._targets])
    for k, name in enumerate(recording.led_names):
        if len(np.unique(states[:, k])) < 2:
            value = "unknown" if len(states) == 0 else f"always {int(states[0, k])}"
            raise ValueError(
                f"{recording.path}: LED {name} is {value}: it carries no information; leave it out of the LED names, "
                "or record longer"
            )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
