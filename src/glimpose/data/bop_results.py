"""What is to be found and what was, in BOP's formats: targets and results."""

import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glimpose.data.bop import M_PER_MM, BopDataset, pose_in_metres
from glimpose.data.fields import integer, json_lines, mapping, number, some
from glimpose.data.files import read_json, write_text

RESULT_FIELDS = ("scene_id", "im_id", "obj_id", "score", "R", "t", "time")


@dataclass(frozen=True)
class Target:
    """How many instances of an object are to be found in an image."""

    scene_id: int
    im_id: int
    obj_id: int
    inst_count: int


def read_targets(path: Path) -> list[Target]:
    """Read a targets file such as test_targets_bop19.json."""
    path = Path(path)
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: got {some(entries)}, expected a list of scene_id, im_id, obj_id and inst_count")
    fields = ("scene_id", "im_id", "obj_id", "inst_count")
    targets = []
    for i, entry in enumerate(entries):
        where = f"{path}, entry {i}"
        targets.append(Target(*(integer(mapping(entry, where).get(field), where, field) for field in fields)))
    repeated = [key for key, num in Counter((t.scene_id, t.im_id, t.obj_id) for t in targets).items() if num > 1]
    if repeated:
        raise ValueError(
            f"{path}: scene {repeated[0][0]}, image {repeated[0][1]} asks twice for object {repeated[0][2]}"
        )
    return targets


def targets_of(dataset: BopDataset, min_visible_fraction: float = 0.1) -> list[Target]:
    """List what there is to be found in a labelled split: all objects that show enough of themselves."""
    targets = []
    for frame in dataset:
        counts = Counter(
            annotation.obj_id
            for annotation in frame.annotations or ()
            if annotation.visible_fraction is None or annotation.visible_fraction >= min_visible_fraction
        )
        targets += [Target(frame.scene_id, frame.im_id, obj_id, counts[obj_id]) for obj_id in sorted(counts)]
    return targets


def write_targets(path: Path, targets: Iterable[Target]) -> None:
    """Write a targets file."""
    write_text(Path(path), json_lines([vars(target) for target in targets]))


@dataclass(frozen=True)
class ResultRow:
    """One estimated pose: a line of a result file."""

    scene_id: int
    im_id: int
    obj_id: int
    score: float
    cam_T_obj: np.ndarray
    """4×4, metres."""
    time_s: float = -1.0
    """What its whole image took, the same for all of the image's rows; -1 where it's unknown."""


def read_results_csv(path: Path) -> list[ResultRow]:
    """Read poses in BOP's CSV format."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of poses")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    header = tuple(name.strip() for name in lines[0].split(",")) if lines else ()
    if header != RESULT_FIELDS:
        raise ValueError(f"{path}, line 1: got {some(header)}, expected the header {','.join(RESULT_FIELDS)}")
    rows = []
    for line, values in enumerate(csv.reader(lines[1:]), start=2):
        where = f"{path}, line {line}"
        if not values:
            continue
        if len(values) != len(RESULT_FIELDS):
            raise ValueError(f"{where}: has {len(values)} columns, expected {len(RESULT_FIELDS)}")
        fields = dict(zip(RESULT_FIELDS, values, strict=True))
        rows.append(
            ResultRow(
                scene_id=integer(fields["scene_id"], where, "scene_id"),
                im_id=integer(fields["im_id"], where, "im_id"),
                obj_id=integer(fields["obj_id"], where, "obj_id"),
                score=number(fields, "score", where),
                cam_T_obj=pose_in_metres(fields["R"].split(), fields["t"].split(), where, ("R", "t")),
                time_s=number(fields, "time", where),
            )
        )
    return rows


def write_results_csv(path: Path, rows: Iterable[ResultRow]) -> None:
    """Write poses in BOP's CSV format."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(RESULT_FIELDS)
    for row in rows:
        R = " ".join(repr(float(value)) for value in row.cam_T_obj[:3, :3].flat)
        t = " ".join(repr(float(value)) for value in row.cam_T_obj[:3, 3] / M_PER_MM)
        writer.writerow([row.scene_id, row.im_id, row.obj_id, float(row.score), R, t, float(row.time_s)])
    write_text(Path(path), text.getvalue())
