"""Pseudo-labels: what a teacher says of photographs that nobody labelled, and how far to believe it."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from glimpose.config import from_dict
from glimpose.nets.mtgoe import STRIDE
from glimpose.objects.agreement import GEOMETRIC, VISUAL, Agreement, Confidence, Judgement
from glimpose.objects.crops import resize_matrix
from glimpose.objects.estimator import PoseEstimator
from glimpose.objects.looks import PoseEstimate
from glimpose.objects.photographs import Photograph
from glimpose.objects.standing import Standing
from glimpose.objects.surfaces import agreement_with_sensor
from glimpose.training.checkpoint import load_checkpoint, save_tensors

logger = logging.getLogger(__name__)

MEASURES = [field.name for field in fields(Agreement)]
CELLS_A_PX = resize_matrix(1 / STRIDE, 1 / STRIDE)
"""From pixels of a network's input to cells of its maps."""


@dataclass(frozen=True)
class FilterConfig:
    """How far pseudo-labels are believed."""

    measures: Literal["both", "visual", "geometric", "none"] = "both"
    """What agreement is judged by; "none" believes everything."""
    kind: Literal["soft", "hard"] = "soft"
    """Weigh by the probability of being right, or take all above the threshold alike."""
    threshold: float = 0.5
    """Of "hard", and of what counts as accepted in reports."""
    min_weight: float = 0.05
    """Labels that weigh less are not worth a crop."""

    def confidence(self, judgements: Sequence[Judgement]) -> Confidence | None:
        """Learn from poses whose truth is known how to judge others; None believes everything."""
        if self.measures == "none":
            return None
        measures = {"both": (*VISUAL, *GEOMETRIC), "visual": VISUAL, "geometric": GEOMETRIC}[self.measures]
        return Confidence.fit(judgements, measures)

    def weight(self, probability: float) -> float:
        """Weight of a label that is right with that probability."""
        if self.kind == "hard":
            return float(probability >= self.threshold)
        return probability if probability >= self.min_weight else 0.0


@dataclass(frozen=True)
class PseudoLabel:
    """A pose in a photograph, as the teacher has it."""

    photograph: int
    object_index: int
    cam_T_obj: np.ndarray
    probability: float
    """Of being right, as far as agreement tells."""
    weight: float
    agreement: Agreement
    visible: np.ndarray
    """rows×columns float32: probability that a cell of the teacher's crop shows the object."""
    cells_A_img: np.ndarray
    """From the photograph's pixels to those cells."""


@dataclass(frozen=True)
class Labels:
    """All pseudo-labels of a round, and where the teacher saw nothing it knows."""

    labels: list[PseudoLabel]
    background: np.ndarray
    """n×rows×columns float32, for each photograph the probability that a cell of the glance shows no known object."""
    mistaken: Sequence[PseudoLabel] = ()
    """What was taken for an object that is known to stand elsewhere in the same photograph."""
    standings: Sequence[Standing] = ()
    """How objects stand, by their indices; none where the scene doesn't tell."""

    def save(self, path: Path) -> None:
        """Write them, whole or not at all."""
        keys, labels = ("cam_T_obj", "visible", "cells_A_img"), [*self.labels, *self.mistaken]
        tensors = {key: torch.from_numpy(np.array([getattr(label, key) for label in labels])) for key in keys}
        rows = [
            [label.photograph, label.object_index, label.probability, label.weight, *astuple(label.agreement)]
            for label in labels
        ]
        tensors["background"] = torch.from_numpy(self.background)
        metadata = {
            "labels": rows,
            "measures": MEASURES,
            "num_mistaken": len(self.mistaken),
            "standings": [asdict(standing) for standing in self.standings],
        }
        save_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path) -> "Labels":
        """Read what `save` wrote."""
        content = load_checkpoint(path)
        if content.metadata.get("measures") != MEASURES:
            raise ValueError(
                f"{path}: written by another version of glimpose, which measured agreement otherwise; remove it, and "
                "the photographs are labelled anew"
            )
        arrays = {key: value.numpy() for key, value in content.tensors.items()}
        labels = [
            PseudoLabel(
                photograph=int(row[0]),
                object_index=int(row[1]),
                cam_T_obj=arrays["cam_T_obj"][i],
                probability=row[2],
                weight=row[3],
                agreement=Agreement(*row[4:]),
                visible=arrays["visible"][i],
                cells_A_img=arrays["cells_A_img"][i],
            )
            for i, row in enumerate(content.metadata["labels"])
        ]
        num = len(labels) - content.metadata["num_mistaken"]
        standings = [from_dict(Standing, entry, where=f"{path}, standings") for entry in content.metadata["standings"]]
        return cls(labels[:num], arrays["background"], labels[num:], standings)


def label(
    teacher: PoseEstimator, photographs: Sequence[Photograph], confidence: Confidence | None, config: FilterConfig
) -> Labels:
    """Let the teacher look at clean photographs, and weigh what it says; a depth sensor, where there is one, too."""
    found = find(teacher, photographs)
    labels = []
    for number, poses in enumerate(found.poses):
        for pose in poses:
            assert pose.agreement is not None
            assert teacher.search is not None
            probability = 1.0 if confidence is None else confidence(pose.agreement)
            if config.measures in ("both", "geometric"):
                probability *= agreement_with_sensor(pose, photographs[number], teacher.search)
            labels.append(make_label(number, pose, photographs[number].K, probability, config.weight(probability)))
    return Labels(labels, found.classes[:, 0])


@dataclass(frozen=True)
class Found:
    """What a teacher sees in photographs."""

    poses: list[list[PoseEstimate]]
    classes: np.ndarray
    """n×(1+objects)×rows×columns float32: probabilities of the glance's cells."""


def find(teacher: PoseEstimator, photographs: Sequence[Photograph]) -> Found:
    """Let a teacher look at clean photographs."""
    shown = tqdm(photographs, desc="label photographs", unit="image", leave=False)
    seen = [(teacher(p.image, p.K), teacher.sight.class_probabilities(p.image)) for p in shown]
    return Found([poses for poses, _ in seen], np.stack([classes for _, classes in seen]).astype(np.float32))


def make_label(number: int, pose: PoseEstimate, K: np.ndarray, probability: float, weight: float) -> PseudoLabel:
    """What an estimate says of a photograph, by the photograph's number and K."""
    look = pose.look
    visible = look.views.visible[look.index].numpy()
    cells = round(len(visible) ** 0.5)
    assert pose.agreement is not None
    return PseudoLabel(
        photograph=number,
        object_index=look.detection.object_index,
        cam_T_obj=pose.cam_T_obj,
        probability=probability,
        weight=weight,
        agreement=pose.agreement,
        visible=visible.reshape(cells, cells).astype(np.float32),
        cells_A_img=CELLS_A_PX @ look.K.numpy() @ np.linalg.inv(K),
    )
