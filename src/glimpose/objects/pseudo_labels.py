"""Pseudo-labels: what a teacher says of photographs that nobody labelled, and how far to believe it."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from glimpose.nets.mtgoe import STRIDE
from glimpose.objects.agreement import GEOMETRIC, VISUAL, Agreement, Confidence, Judgement
from glimpose.objects.crops import is_in_view, resize_matrix
from glimpose.objects.estimator import PoseEstimate, PoseEstimator
from glimpose.objects.photographs import Photograph
from glimpose.objects.static_scene import Layout, Sighting, find_layouts, fit_layout
from glimpose.training.checkpoint import load_checkpoint, save_tensors

logger = logging.getLogger(__name__)

CELLS_A_PX = resize_matrix(1 / STRIDE, 1 / STRIDE)
"""From pixels of a network's input to cells of its maps."""
LEAST_OVERLAP = 0.5
"""Intersection over union of the object drawn where a layout has it and the teacher's amodal mask."""
LEAST_COORDINATES = 0.2
"""Mean agreement of object coordinates over a layout's photographs: an object that its own surface denies is left out.
It may be seen from the wrong side in all photographs alike."""


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
    sightings: Sequence[Sighting] = ()
    """What layouts were found from, where they were."""

    def save(self, path: Path) -> None:
        """Write them, whole or not at all."""
        keys = ("cam_T_obj", "visible", "cells_A_img")
        tensors = {key: torch.from_numpy(np.array([getattr(label, key) for label in self.labels])) for key in keys}
        rows = [
            [label.photograph, label.object_index, label.probability, label.weight, *astuple(label.agreement)]
            for label in self.labels
        ]
        tensors["background"] = torch.from_numpy(self.background)
        tensors["sighted"] = torch.from_numpy(np.array([s.cam_T_obj for s in self.sightings]).reshape(-1, 4, 4))
        sightings = [[s.photograph, s.object_index, s.score] for s in self.sightings]
        save_tensors(path, tensors, {"labels": rows, "sightings": sightings})

    @classmethod
    def load(cls, path: Path) -> "Labels":
        """Read what `save` wrote."""
        content = load_checkpoint(path)
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
        sightings = [
            Sighting(int(row[0]), int(row[1]), pose, row[2])
            for row, pose in zip(content.metadata["sightings"], arrays["sighted"], strict=True)
        ]
        return cls(labels, arrays["background"], sightings)


def label(
    teacher: PoseEstimator, photographs: Sequence[Photograph], confidence: Confidence | None, config: FilterConfig
) -> Labels:
    """Let the teacher look at clean photographs, and weigh what it says."""
    found = _find(teacher, photographs)
    labels = []
    for number, poses in enumerate(found.poses):
        for pose in poses:
            assert pose.agreement is not None
            probability = 1.0 if confidence is None else confidence(pose.agreement)
            labels.append(_label(number, pose, photographs[number].K, probability, config.weight(probability)))
    return Labels(labels, found.background)


def label_static_scene(
    teacher: PoseEstimator, photographs: Sequence[Photograph], earlier: Sequence[Sighting] = ()
) -> Labels:
    """Let the teacher look at photographs of a scene that stands still, and believe what many of them agree on.

    Sightings of an ``earlier`` teacher, which hadn't learned from labels yet, have a say in where objects stand.

    Where photographs agree on a layout, all its objects are labelled, found there or not, unless the teacher looks
    there and sees nothing of the kind: it may be hidden, or have been moved. Other poses weigh nothing.
    """
    found = _find(teacher, photographs)
    sightings = [
        Sighting(number, pose.look.detection.object_index, pose.cam_T_obj, pose.score)
        for number, poses in enumerate(found.poses)
        for pose in poses
    ]
    layouts = find_layouts([*earlier, *sightings], [photograph.K for photograph in photographs], teacher.objects)
    layouts = [_fitted(layout, teacher, photographs) for layout in layouts]
    trusted: dict[tuple[int, int], tuple[float, int, PoseEstimate]] = {}  # by photograph and object
    for i, layout in enumerate(layouts):
        for (number, index), (trust, pose) in _trusted(layout, teacher, photographs).items():
            if trust > trusted.get((number, index), (0.0,))[0]:
                trusted[number, index] = (trust, i, pose)
    coordinates = defaultdict(list)
    for (_, index), (_, i, pose) in trusted.items():
        assert pose.agreement is not None
        coordinates[i, index].append(pose.agreement.coordinates)
    labels = []
    for (number, index), (_, i, pose) in trusted.items():
        weight = float(np.mean(coordinates[i, index]) >= LEAST_COORDINATES)
        labels.append(_label(number, pose, photographs[number].K, pose.score, weight))
    for number, poses in enumerate(found.poses):
        others = [pose for pose in poses if (number, pose.look.detection.object_index) not in trusted]
        labels += [_label(number, pose, photographs[number].K, pose.score, 0.0) for pose in others]
    for layout in layouts:
        told = ", ".join(f"{teacher.objects[k].name} {count}" for k, count in sorted(layout.support.items()))
        logger.info("a layout that %d photographs agree on, by object: %s", len(layout.cam_T_scene), told)
    return Labels(labels, found.background, sightings)


def _fitted(layout: Layout, teacher: PoseEstimator, photographs: Sequence[Photograph]) -> Layout:
    """Move cameras and objects to where all drawn objects fit what the teacher sees of them."""
    assert teacher.search is not None
    seen = _trusted(layout, teacher, photographs)
    evidence = {pair: pose.look.evidence() for pair, (_, pose) in seen.items()}
    return fit_layout(layout, evidence, teacher.objects, teacher.search)


def _trusted(
    layout: Layout, teacher: PoseEstimator, photographs: Sequence[Photograph]
) -> dict[tuple[int, int], tuple[float, PoseEstimate]]:
    """By photograph and object, what the teacher sees where a layout has it, and how far that is to be trusted."""
    trusted = {}
    for number in layout.cam_T_scene:
        image, K = photographs[number].image, photographs[number].K
        poses = [
            (index, pose) for index, pose in layout.cam_T_obj(number).items() if is_in_view(pose, K, *image.shape[:2])
        ]
        for (index, _), pose in zip(poses, teacher.verify(image, K, poses), strict=True):
            assert pose.agreement is not None
            trust = pose.agreement.overlap + ((number, index) in layout.agreeing)
            if trust >= LEAST_OVERLAP:
                trusted[number, index] = (trust, pose)
    return trusted


@dataclass(frozen=True)
class _Found:
    """What a teacher sees in photographs."""

    poses: list[list[PoseEstimate]]
    background: np.ndarray


def _find(teacher: PoseEstimator, photographs: Sequence[Photograph]) -> _Found:
    shown = tqdm(photographs, desc="label photographs", unit="image", leave=False)
    seen = [(teacher(p.image, p.K), teacher.background_probability(p.image)) for p in shown]
    return _Found([poses for poses, _ in seen], np.stack([background for _, background in seen]).astype(np.float32))


def _label(number: int, pose: PoseEstimate, K: np.ndarray, probability: float, weight: float) -> PseudoLabel:
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
