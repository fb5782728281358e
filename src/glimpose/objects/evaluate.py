"""Scores a file of poses against a labelled split, as the BOP benchmark does."""

import csv
import io
import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from glimpose.data.bop import Annotation, BopDataset, Frame, ModelInfo, model_path, read_camera, read_models_info
from glimpose.data.bop_results import ResultRow, Target, read_results_csv, read_targets
from glimpose.data.files import write_text
from glimpose.geometry.symmetry import symmetry_transforms
from glimpose.metrics.pose_errors import (
    add_m,
    add_s_m,
    hull_vertices,
    mspd_px,
    mssd_m,
    rotation_error_rad,
    translation_error_m,
    vsd,
)
from glimpose.metrics.recall import (
    ADD_THRESHOLD_DIAMETERS,
    MSPD_THRESHOLDS_PX,
    MSPD_WIDTH_PX,
    MSSD_THRESHOLDS_DIAMETERS,
    VSD_THRESHOLDS,
    VSD_TOLERANCES_DIAMETERS,
    match_greedily,
)
from glimpose.metrics.scores import reliability, roc_auc
from glimpose.render.mesh import Mesh, load_mesh
from glimpose.render.scene import Instance, Renderer, make_renderer
from glimpose.viz.report import Page

logger = logging.getLogger(__name__)

MAX_TIME_DIFFERENCE_S = 1e-3
"""Rows of one image may differ by this much in their time: they were rounded."""


@dataclass(frozen=True)
class Outcome:
    """What became of one instance that was asked for; the errors are None where there is no estimate for it."""

    scene_id: int
    im_id: int
    obj_id: int
    visible_fraction: float | None
    recall_mssd: float
    """Share of the thresholds at which it counts as found."""
    recall_mspd: float
    recall_vsd: float | None
    add_correct: bool
    score: float | None = None
    mssd_m: float | None = None
    mspd_px: float | None = None
    add_m: float | None = None
    """ADD-S for objects with symmetries."""
    rotation_deg: float | None = None
    translation_m: float | None = None


def evaluate(poses_csv: Path, dataset: Path, split: str, targets: Path, out: Path) -> dict[str, Any]:
    """Compare poses with the labels of a split; write summary.json, targets.csv and scores.html, return the summary.

    A target asks for inst_count instances of an object in an image: the most visible ones. Only as many estimates are
    looked at, those of the highest scores; a missing one counts as wrong. Recalls are shares of the instances asked
    for. AR_MSSD, AR_MSPD and AR_VSD average the recall over the thresholds of BOP, AR is the mean of those three that
    there are (AR_VSD is null unless the split has depth images), and ADD_S_0.1d is the recall of ADD at a tenth of the
    diameter, of ADD-S for objects with symmetries. Medians are over the instances for which there is an estimate,
    rotations up to symmetry. score_auc is the probability that a right pose (by ADD(-S)) outscores a wrong one, and
    reliability compares mean scores with shares of right poses, in five bins; scores.html plots that. Time is the mean
    over the images of the file, null unless it's given for each.
    """
    rows = read_results_csv(poses_csv)
    mean_time_s = _mean_time_s(rows, poses_csv)
    data = BopDataset(dataset, split)
    asked = read_targets(targets)
    models = _load_models(data.models_eval_dir, sorted({target.obj_id for target in asked}))
    estimates = _best_estimates(rows, asked)
    num_used = sum(map(len, estimates.values()))
    if rows and not num_used:
        logger.warning("%s: none of its %d poses is of an object that %s asks for", poses_csv, len(rows), targets)

    by_frame: dict[tuple[int, int], list[Target]] = defaultdict(list)
    for target in asked:
        by_frame[target.scene_id, target.im_id].append(target)
    has_depth = all(data.frame(*key).has_depth for key in by_frame)
    widths_px = {frame[0]: _image_width(data, *frame) for frame in reversed(by_frame)}
    outcomes: list[Outcome] = []
    with _one_thread(), closing(make_renderer()) if has_depth else nullcontext() as renderer:
        for key, frame_targets in tqdm(by_frame.items(), desc="evaluate", unit="image", disable=None):
            frame = data.frame(*key)
            surface = Surface(frame, renderer) if renderer else None
            for target in frame_targets:
                true = _true_instances(frame, target, targets)
                pred = estimates[target]
                outcomes += _judge(frame, models[target.obj_id], true, pred, MSPD_WIDTH_PX / widths_px[key[0]], surface)

    summary = {
        "poses": str(poses_csv),
        "dataset": str(dataset),
        "split": split,
        "targets": str(targets),
        **_scores(outcomes),
        "num_images": len(by_frame),
        "num_ignored": len(rows) - num_used,
        "mean_time_s": mean_time_s,
        **_score_quality(outcomes),
        "objects": [
            {
                "obj_id": obj_id,
                "diameter_m": model.info.diameter_m,
                "is_symmetric": model.info.is_symmetric,
                **_scores([outcome for outcome in outcomes if outcome.obj_id == obj_id]),
            }
            for obj_id, model in models.items()
        ],
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in fields(Outcome)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(outcome) for outcome in outcomes)
    write_text(Path(out) / "targets.csv", table.getvalue())
    write_text(Path(out) / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    write_scores_page(Path(out) / "scores.html", summary)
    return summary


def write_scores_page(path: Path, summary: Mapping[str, Any]) -> None:
    """Plot what scores are worth."""
    auc = "an unknown probability" if summary["score_auc"] is None else f"probability {summary['score_auc']:.2f}"
    page = Page("What scores are worth")
    page.text(
        f"Of {summary['num_targets'] - summary['num_missing']} poses; a right one outscores a wrong one with {auc}. "
        "Where scores are probabilities, the curve is near the line."
    )
    x, y = ([entry[key] for entry in summary["reliability"]] for key in ("score", "share_right"))
    page.curve({"": (x, y)}, "mean score", "share of right poses", diagonal=True).write(path)


class ObjectGeometry:
    """What errors of one object's poses are measured on."""

    def __init__(self, folder: Path, obj_id: int, info: ModelInfo) -> None:
        self.info = info
        self.mesh = load_mesh(model_path(folder, obj_id))
        self.vertices = torch.from_numpy(self.mesh.vertices).double()
        self.hull = hull_vertices(self.vertices)
        try:
            self.symmetries = symmetry_transforms(info.discrete, info.continuous)
        except ValueError as error:
            raise ValueError(f"{folder / 'models_info.json'}, object {obj_id}: {error}") from None


class Surface:
    """The surface a depth camera measured in one image, to compare drawn objects with."""

    def __init__(self, frame: Frame, renderer: Renderer) -> None:
        self.depth = torch.from_numpy(frame.read_depth()).double()
        self.K = frame.K
        self.renderer = renderer

    def draw(self, mesh: Mesh, cam_T_obj: np.ndarray) -> Tensor:
        """Depth of an object alone."""
        height, width = self.depth.shape
        depth = self.renderer.render([Instance(mesh, cam_T_obj)], self.K, height, width).depth
        return torch.from_numpy(np.ascontiguousarray(depth)).double()

    def errors(self, model: ObjectGeometry, pred: Tensor, true: Tensor) -> Tensor:
        """VSD of every pair of an estimate and a true pose: tolerances × estimates × instances."""
        tolerances_m = model.info.diameter_m * torch.tensor(VSD_TOLERANCES_DIAMETERS, dtype=torch.float64)
        K = torch.from_numpy(self.K)
        true_depths = [self.draw(model.mesh, pose.numpy()) for pose in true]
        rows = []
        for pose in pred:
            depth = self.draw(model.mesh, pose.numpy())
            rows.append(torch.stack([vsd(depth, other, self.depth, K, tolerances_m) for other in true_depths], dim=-1))
        return torch.stack(rows, dim=-2)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch from sharing out thousands of small tasks: on a busy machine its threads wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _load_models(folder: Path, obj_ids: Sequence[int]) -> dict[int, ObjectGeometry]:
    infos = read_models_info(folder)
    for obj_id in obj_ids:
        if obj_id not in infos:
            raise ValueError(f"{folder / 'models_info.json'}: no entry for object {obj_id}; it has {sorted(infos)}")
    return {obj_id: ObjectGeometry(folder, obj_id, infos[obj_id]) for obj_id in obj_ids}


def _image_width(dataset: BopDataset, scene_id: int, im_id: int) -> int:
    """Width in pixels of a scene's images, from camera.json or else from one of them."""
    path = dataset.root / "camera.json"
    width = read_camera(path).width if path.is_file() else None
    return width or dataset.frame(scene_id, im_id).read_image().shape[1]


def _best_estimates(rows: Sequence[ResultRow], targets: Sequence[Target]) -> dict[Target, list[ResultRow]]:
    """Give each target its inst_count estimates of highest score, best first."""
    by_object = defaultdict(list)
    for row in sorted(rows, key=lambda row: -row.score):
        by_object[row.scene_id, row.im_id, row.obj_id].append(row)
    return {target: by_object[target.scene_id, target.im_id, target.obj_id][: target.inst_count] for target in targets}


def _true_instances(frame: Frame, target: Target, where: Path) -> list[Annotation]:
    """Pick the most visible instances of a target's object."""
    if frame.annotations is None:
        raise FileNotFoundError(f"{frame.scene_dir}: no scene_gt.json to compare with; evaluate needs a labelled split")
    there = [annotation for annotation in frame.annotations if annotation.obj_id == target.obj_id]
    if len(there) < target.inst_count:
        raise ValueError(
            f"{frame.scene_dir / 'scene_gt.json'}, image {frame.im_id}: has {len(there)} instances of object "
            f"{target.obj_id}, but {where} asks for {target.inst_count}; is it the targets file of this split?"
        )
    return sorted(there, key=lambda annotation: -(annotation.visible_fraction or 0.0))[: target.inst_count]


def _judge(
    frame: Frame,
    model: ObjectGeometry,
    true: Sequence[Annotation],
    estimates: Sequence[ResultRow],
    mspd_scale: float,
    surface: Surface | None,
) -> list[Outcome]:
    """Compare the estimates of one object in one image, best first, with its true instances."""
    if not estimates:
        missed_vsd = None if surface is None else 0.0
        return [
            Outcome(frame.scene_id, frame.im_id, a.obj_id, a.visible_fraction, 0.0, 0.0, missed_vsd, False)
            for a in true
        ]
    gt = torch.from_numpy(np.stack([annotation.cam_T_obj for annotation in true]))
    pred = torch.from_numpy(np.stack([row.cam_T_obj for row in estimates]))
    pairs = pred[:, None].expand(-1, len(gt), 4, 4), gt.expand(len(pred), -1, 4, 4)
    K = torch.from_numpy(frame.K).expand(*pairs[0].shape[:2], 3, 3)
    mssd = mssd_m(*pairs, model.hull, model.symmetries)
    mspd = mspd_px(*pairs, model.vertices, model.symmetries, K)
    add = (add_s_m if model.info.is_symmetric else add_m)(*pairs, model.vertices)
    rotation_rad = rotation_error_rad(*pairs, model.symmetries)
    translation = translation_error_m(*pairs)

    diameter_m = model.info.diameter_m
    recall_mssd = _found(mssd / diameter_m, MSSD_THRESHOLDS_DIAMETERS)
    recall_mspd = _found(mspd * mspd_scale, MSPD_THRESHOLDS_PX)
    add_correct = _found(add / diameter_m, [ADD_THRESHOLD_DIAMETERS])
    recall_vsd = None if surface is None else _found(surface.errors(model, pred, gt), VSD_THRESHOLDS)
    pairing = match_greedily(mssd, torch.tensor(torch.inf, dtype=mssd.dtype))
    outcomes = []
    for i, annotation in enumerate(true):
        errors: dict[str, float] = {}
        if pairing[:, i].any():
            e = int(pairing[:, i].int().argmax())
            errors = {
                "score": estimates[e].score,
                "mssd_m": mssd[e, i].item(),
                "mspd_px": mspd[e, i].item(),
                "add_m": add[e, i].item(),
                "rotation_deg": rotation_rad[e, i].rad2deg().item(),
                "translation_m": translation[e, i].item(),
            }
        outcomes.append(
            Outcome(
                frame.scene_id,
                frame.im_id,
                annotation.obj_id,
                annotation.visible_fraction,
                recall_mssd[i].item(),
                recall_mspd[i].item(),
                None if recall_vsd is None else recall_vsd[i].item(),
                bool(add_correct[i]),
                **errors,
            )
        )
    return outcomes


def _found(errors: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Share of thresholds (and of tolerances, where errors has a third dimension) at which each instance is found."""
    num_estimates, num_instances = errors.shape[-2:]
    errors = errors.reshape(-1, 1, num_estimates, num_instances).expand(-1, len(thresholds), -1, -1)
    limits = torch.tensor(thresholds, dtype=errors.dtype).expand(len(errors), -1)
    return match_greedily(errors, limits).any(-2).double().mean((0, 1))


def _scores(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Average over instances; None where there is nothing to average."""
    recalls = {
        "AR_MSSD": _mean(outcome.recall_mssd for outcome in outcomes),
        "AR_MSPD": _mean(outcome.recall_mspd for outcome in outcomes),
        "AR_VSD": _mean(outcome.recall_vsd for outcome in outcomes),
    }
    return {
        "AR": _mean(recalls.values()),
        **recalls,
        "ADD_S_0.1d": _mean(outcome.add_correct for outcome in outcomes),
        "num_targets": len(outcomes),
        "num_missing": sum(outcome.score is None for outcome in outcomes),
        "median_rotation_deg": _median(outcome.rotation_deg for outcome in outcomes),
        "median_translation_m": _median(outcome.translation_m for outcome in outcomes),
    }


def _score_quality(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How well scores tell right poses from wrong ones, and whether they are probabilities."""
    judged = [(outcome.score, outcome.add_correct) for outcome in outcomes if outcome.score is not None]
    score = torch.tensor([value for value, _ in judged], dtype=torch.float64)
    is_right = torch.tensor([right for _, right in judged], dtype=torch.bool)
    auc = roc_auc(score, is_right)
    bins = reliability(score, is_right)
    return {
        "score_auc": None if math.isnan(auc) else auc,
        "reliability": [{"score": s, "share_right": right, "num": num} for s, right, num in bins],
    }


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def _median(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.median(there)) if there else None


def _mean_time_s(rows: Sequence[ResultRow], where: Path) -> float | None:
    """Mean over images of what one took; None if any row doesn't say."""
    times_s: dict[tuple[int, int], float] = {}
    for row in rows:
        first = times_s.setdefault((row.scene_id, row.im_id), row.time_s)
        if abs(first - row.time_s) > MAX_TIME_DIFFERENCE_S:
            raise ValueError(
                f"{where}: scene {row.scene_id}, image {row.im_id} has rows with times {first} and {row.time_s}; "
                "expected the time of the whole image in each of its rows"
            )
    return None if any(time_s < 0 for time_s in times_s.values()) else _mean(times_s.values())
