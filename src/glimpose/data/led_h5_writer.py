"""Writes recordings of robots and their LEDs in the ML layout, which `led_h5` describes and reads."""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.spatial.transform import Rotation

from glimpose.data.led_h5 import RobotCamera


def ml_row(
    image: np.ndarray,
    timestamp_s: float,
    camera_robot: int,
    poses: Mapping[int, np.ndarray],
    led_on: Mapping[int, Mapping[str, bool]],
    num_visible_px: Mapping[int, int],
    camera: RobotCamera,
    gimbal_m: Sequence[float],
) -> dict[str, Any]:
    """Lay out one frame in the ML layout: what `write_recording` takes.

    ``poses`` are (x, y, θ) of the robots' bases in the room, ``gimbal_m`` is the gimbal joint in any base frame.
    """
    row: dict[str, Any] = {"image": image, "timestamp": float(timestamp_s), "robot_id": np.int64(camera_robot)}
    quaternion = Rotation.from_matrix(camera.base_T_cam[:3, :3]).as_quat()
    cam_T_base = np.linalg.inv(camera.base_T_cam)
    for a, pose in poses.items():
        row[f"RM{a}_pose"] = np.asarray(pose, np.float64)
        row[f"RM{a}_camera_pose"] = np.concatenate([camera.base_T_cam[:3, 3], quaternion])
        row[f"RM{a}_visible_px"] = np.int64(num_visible_px.get(a, 0))
        row |= {f"RM{a}_led_{name}": np.uint8(is_on) for name, is_on in led_on[a].items()}
        for b, other in poses.items():
            if a != b:
                relative = relative_pose(pose, other)
                cos, sin = np.cos(relative[2]), np.sin(relative[2])
                x, y, z = gimbal_m
                joint = [relative[0] + cos * x - sin * y, relative[1] + sin * x + cos * y, z, 1.0]
                u, v, w = camera.K @ (cam_T_base @ joint)[:3]
                row[f"RM{a}_pose_rel_RM{b}"] = relative
                row[f"RM{a}_proj_uvz_RM{b}"] = np.array([u / w, v / w, w])
    return row


def relative_pose(pose: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(x, y, θ) of another robot in one's base frame, from the (x, y, θ) of both in the room; θ in −π..π."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    dx, dy, turn = other - pose
    return np.array([cos * dx + sin * dy, cos * dy - sin * dx, np.arctan2(np.sin(turn), np.cos(turn))])


def write_recording(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    num_frames: int,
    robots: Sequence[int],
    led_names: Sequence[str],
    camera: RobotCamera,
    source: str,
) -> None:
    """Write rows, as `ml_row` makes them, to a file that appears only when all are there; one image per chunk.

    ``source`` tells what it was made from; `read_source` gives it back.
    """
    with _Partial(path) as file:
        file.attrs.update(
            RIDs=[f"RM{robot}" for robot in robots],
            led_names=list(led_names),
            K=camera.K,
            distortion=camera.distortion,
            base_T_cam=camera.base_T_cam,
            source=source,
        )
        num_written = 0
        for row in rows:
            for key, value in row.items():
                if num_written == 0:
                    _create(file, key, np.shape(value), np.asarray(value).dtype, num_frames)
                file[key][num_written] = value
            num_written += 1
        assert num_written == num_frames, f"{num_written} rows given, {num_frames} announced"


def join_recordings(parts: Sequence[Path], path: Path) -> None:
    """Write several recordings of the same robots and camera as one, without compressing images anew."""
    with ExitStack() as stack:
        sources = [stack.enter_context(h5py.File(part, "r")) for part in parts]
        file = stack.enter_context(_Partial(path))
        file.attrs.update(sources[0].attrs)
        for key, column in sources[0].items():
            _create(file, key, column.shape[1:], column.dtype, sum(len(source["image"]) for source in sources))
        start = 0
        for source in sources:
            if set(source) != set(file):
                raise ValueError(f"{source.filename}: other keys than in {sources[0].filename}: can't be joined")
            num = len(source["image"])
            for key in set(source) - {"image"}:
                file[key][start : start + num] = source[key][:]
            for i in range(num):
                skipped, chunk = source["image"].id.read_direct_chunk((i, 0, 0, 0))
                file["image"].id.write_direct_chunk((start + i, 0, 0, 0), chunk, skipped)
            start += num


def read_source(path: Path) -> str:
    """Return what a recording written here was made from."""
    with h5py.File(path, "r") as file:
        return str(file.attrs["source"])


def _create(file: h5py.File, key: str, shape: tuple[int, ...], dtype: Any, num_frames: int) -> None:
    options = {"chunks": (1, *shape), "compression": "gzip", "compression_opts": 1} if key == "image" else {}
    file.create_dataset(key, (num_frames, *shape), dtype, **options)


class _Partial:
    """An HDF5 file that takes its name only when it's complete."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")

    def __enter__(self) -> h5py.File:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = h5py.File(self.partial, "w")
        return self.file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.file.close()
        if kind is None:
            os.replace(self.partial, self.path)
        self.partial.unlink(missing_ok=True)
