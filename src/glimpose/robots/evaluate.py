"""Scores a file of robots' poses against a recording that tells the truth."""

import csv
import io
import json
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glimpose.data.files import write_text
from glimpose.data.led_h5 import Recording, RobotState, open_recording
from glimpose.data.robot_poses import RobotPose, is_bop, read_robot_poses, robot_poses_from_bop
from glimpose.metrics.recall import match_greedily
from glimpose.metrics.robot_errors import (
    bearing_error_rad,
    is_near,
    pixel_error_px,
    position_error_m,
    relative_distance_error,
)
from glimpose.metrics.scores import roc_auc
from glimpose.robots.labels import is_seen
from glimpose.robots.leds import LedRobot, load_leds
from glimpose.robots.placement import ray

logger = logging.getLogger(__name__)

MISSED = math.inf
"""Error of a robot that nothing was predicted for."""


@dataclass(frozen=True)
class Outcome:
    """What became of one robot that could be seen; errors are NaN where prediction or recording doesn't tell."""

    frame: int
    robot: str
    num_seen: int
    """Robots that could be seen in its frame."""
    uv_px: float
    psi_rad: float
    distance_share: float
    xyz_m: float
    is_near: bool | None
    """None where neither position nor bearing was predicted in metres."""


def evaluate(poses_csv: Path, recording: Path, robot: Path, out: Path) -> dict[str, Any]:
    """Compare predictions with a recording; write out/summary.json and out/robots.csv, and return the summary.

    Counted are robots whose joint is in the picture and that aren't hidden. A frame's predictions are given to them
    surest first, each to the nearest in the image; of a frame with n robots the n surest count. E_… are medians of
    errors, in which a robot without a prediction is infinitely wrong. gamma_1m_45deg is the share with a position
    within 1 m and a bearing within 45°; led_auc is over LEDs on the sides that face the camera, presence_auc over
    frames, by their surest robot. What can't be told is null: distances without a calibration, say.

    Predictions are what `predict` wrote, or poses of the robot's mesh in BOP's format, which only hold what was found.
    """
    kind = load_leds(robot)
    truth = open_recording(recording, led_names=kind.led_names, allow_constant_leds=True)
    poses, is_complete = _read(poses_csv, truth, kind)
    by_frame: dict[int, list[RobotPose]] = defaultdict(list)
    for pose in poses:
        if not pose.frame.isdecimal() or int(pose.frame) >= len(truth):
            raise ValueError(
                f"{poses_csv}: frame {pose.frame!r}, but {recording} has frames 0 to {len(truth) - 1}; "
                "was it predicted on this recording?"
            )
        by_frame[int(pose.frame)].append(pose)
    missing = len(truth) - len(by_frame)
    if missing and is_complete:
        raise ValueError(f"{poses_csv}: no predictions for {missing} of the {len(truth)} frames of {recording}")

    outcomes: list[Outcome] = []
    leds: list[tuple[float, bool]] = []
    presence: list[tuple[float, bool]] = []
    for index in range(len(truth)):
        states = truth.robots(index)
        seen = [state for state in states if is_seen(state)]
        rows = sorted(by_frame[index], key=lambda row: row.robot_index)
        if seen or not any(state.num_visible_px for state in states):  # a sliver of a robot is neither yes nor no
            presence.append((rows[0].values["presence"] if rows else 0.0, bool(seen)))
        for state, match in zip(seen, _matched(seen, rows), strict=True):
            outcomes.append(_judge(index, state, match, len(seen), truth))
            leds += _led_scores(state, match, kind)
    summary = {
        "poses": str(poses_csv),
        "recording": str(recording),
        **_scores(outcomes),
        "led_auc": _auc(leds),
        "presence_auc": _auc(presence),
        "n": len(outcomes),
        "num_frames": len(truth),
        "single": _scores([outcome for outcome in outcomes if outcome.num_seen == 1]),
        "several": _scores([outcome for outcome in outcomes if outcome.num_seen > 1]),
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in fields(Outcome)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(outcome) for outcome in outcomes)
    write_text(Path(out) / "robots.csv", table.getvalue())
    write_text(Path(out) / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def _read(poses_csv: Path, truth: Recording, kind: LedRobot) -> tuple[list[RobotPose], bool]:
    """Read predictions, and tell whether there has to be one for every frame."""
    if not poses_csv.is_file() or not is_bop(poses_csv):
        return read_robot_poses(poses_csv), True
    if truth.camera is None:
        raise ValueError(f"{truth.path}: doesn't tell its camera, without which poses in BOP's format can't be placed")
    return robot_poses_from_bop(poses_csv, truth.camera, kind.gimbal_m), False


def _matched(seen: Sequence[RobotState], predicted: Sequence[RobotPose]) -> list[RobotPose | None]:
    """Give each robot its prediction."""
    kept = predicted[: len(seen)]
    if not seen or not kept:
        return [None] * len(seen)
    gt = torch.tensor(np.array([state.uv_px for state in seen]))
    pred = torch.tensor([[row.values["u_px"], row.values["v_px"]] for row in kept], dtype=torch.float64)
    pairs = match_greedily(torch.cdist(pred, gt), torch.tensor(torch.inf, dtype=torch.float64))
    return [kept[int(column.int().argmax())] if column.any() else None for column in pairs.T]


def _judge(frame: int, state: RobotState, row: RobotPose | None, num_seen: int, truth: Recording) -> Outcome:
    if row is None:
        return Outcome(frame, state.name, num_seen, MISSED, MISSED, MISSED, MISSED, False)
    value = {key: torch.tensor(number, dtype=torch.float64) for key, number in row.values.items()}

    def true(number: float | None) -> torch.Tensor:
        return torch.tensor(math.nan if number is None else number, dtype=torch.float64)

    uv_px = pixel_error_px(torch.stack([value["u_px"], value["v_px"]]), torch.tensor(np.array(state.uv_px)))
    psi_rad = bearing_error_rad(value["bearing_deg"].deg2rad(), true(state.bearing_rad))
    distance = relative_distance_error(value["distance_m"], true(state.distance_m))
    joint = torch.full((3,), math.nan, dtype=torch.float64)
    if truth.camera is not None and state.uv_px is not None and state.z_m is not None:
        joint = torch.from_numpy(state.z_m * ray(state.uv_px, truth.camera))
    xyz = position_error_m(torch.stack([value[f"cam_{axis}_m"] for axis in "xyz"]), joint)
    near = None if xyz.isnan() or psi_rad.isnan() else bool(is_near(xyz, psi_rad))
    return Outcome(frame, state.name, num_seen, uv_px.item(), psi_rad.item(), distance.item(), xyz.item(), near)


def _led_scores(state: RobotState, row: RobotPose | None, kind: LedRobot) -> list[tuple[float, bool]]:
    """Predicted probability and truth of the LEDs on the sides that face the camera."""
    if row is None or state.bearing_rad is None:
        return []
    pairs = zip(kind.led_names, kind.faces(state.bearing_rad), state.led_on, strict=True)
    return [(row.led_prob.get(name, math.nan), bool(is_on)) for name, faces, is_on in pairs if faces]


def _scores(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Medians and shares; None where nothing was predicted or nothing is known."""

    def median(name: str, factor: float = 1.0) -> float | None:
        values = np.array([getattr(outcome, name) for outcome in outcomes], float)
        values = values[~np.isnan(values)]
        middle = float(np.median(values)) if len(values) else math.nan
        return factor * middle if math.isfinite(middle) else None

    near = [outcome.is_near for outcome in outcomes if outcome.is_near is not None]
    if not any(math.isfinite(outcome.xyz_m) for outcome in outcomes):
        near = []  # nothing was predicted in metres
    return {
        "E_uv_px": median("uv_px"),
        "E_psi_deg": median("psi_rad", math.degrees(1)),
        "E_d_percent": median("distance_share", 100),
        "E_xyz_m": median("xyz_m"),
        "gamma_1m_45deg": float(np.mean(near)) if near else None,
        "num_missed": sum(outcome.uv_px == MISSED for outcome in outcomes),
        "num": len(outcomes),
    }


def _auc(scored: Sequence[tuple[float, bool]]) -> float | None:
    kept = [(score, label) for score, label in scored if not math.isnan(score)]
    if not kept:
        return None
    score, label = (torch.tensor(column) for column in zip(*kept, strict=True))
    auc = roc_auc(score.double(), label)
    return None if math.isnan(auc) else auc
