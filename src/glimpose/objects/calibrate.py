"""From agreement to probability: how many poses that agree so well are right, counted where the truth is known.

The photographs are synthesised, so nobody labels anything; what real ones add in difficulty isn't seen.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from glimpose.metrics.pose_errors import hull_vertices, mssd_m
from glimpose.metrics.scores import roc_auc
from glimpose.objects.agreement import UNCALIBRATED, Confidence, Judgement
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.dataset import LabelledPhotographs
from glimpose.objects.estimator import EstimatorConfig, PoseEstimator
from glimpose.objects.looks import PoseEstimate
from glimpose.objects.search import PoseSearch
from glimpose.objects.standing import Stand, Standing
from glimpose.objects.synthesis import SynthesisConfig
from glimpose.objects.train import ObjectsConfig, load_objects
from glimpose.render.mesh import Mesh
from glimpose.training.checkpoint import load_checkpoint, save_tensors

logger = logging.getLogger(__name__)

RIGHT_DIAMETERS = 0.2
"""A pose is right if no point of the surface is further off than this (MSSD): about ADD(-S) at 0.1 diameters."""
LEAST_UPRIGHT = 0.5
"""Share of objects that have to stand upright in synthesised scenes, to be expected to in photographs."""


def calibrate_objects(checkpoint: Path, config: ObjectsConfig, num: int = 60, seed: int = 1) -> Confidence:
    """Learn what scores mean on ``num`` photographs synthesised as the config says, and store it in the checkpoint.

    With it is stored how objects stand in those. Of a checkpoint that has learned from photographs how they stand
    (`adapt`), that stays.
    """
    content = load_checkpoint(checkpoint)
    objects, meshes = load_objects(config.data, config.network.num_keypoints)
    looking = EstimatorConfig(instances_per_object=1, stand_together=False)
    estimator = PoseEstimator.from_checkpoint(checkpoint, looking, confidence=UNCALIBRATED)
    by_id = {model.obj_id: mesh for model, mesh in zip(objects, meshes, strict=True)}
    missing = [model.obj_id for model in estimator.objects if model.obj_id not in by_id]
    if missing:
        raise ValueError(f"{checkpoint}: knows objects {missing}, which the config's data.models doesn't have")
    estimator.search = PoseSearch(estimator.objects, by_id, estimator.model.config)
    judgements = judge(estimator, synthesised(config, objects, meshes, seed), config.synthesis.K, by_id, num)
    confidence = Confidence.fit(judgements)
    scores = torch.tensor([confidence(j.agreement) for j in judgements])
    right = torch.tensor([j.is_right for j in judgements])
    logger.info("%d of %d poses right; ROC AUC of the scores %.3f", right.sum(), len(right), roc_auc(scores, right))
    metadata = {**content.metadata, "confidence": asdict(confidence)}
    if "adaptation_rounds" not in metadata:
        standings = upright(config.synthesis, [by_id[model.obj_id] for model in estimator.objects])
        metadata["standings"] = [asdict(standing) for standing in standings]
    save_tensors(checkpoint, content.tensors, metadata)
    return confidence


def upright(synthesis: SynthesisConfig, meshes: Sequence[Mesh]) -> list[Standing]:
    """How objects stand in synthesised scenes, where most of them do so upright: on what of them is lowest."""
    if 1 - synthesis.side_probability - synthesis.free_pose_probability < LEAST_UPRIGHT:
        return [Standing() for _ in meshes]
    return [Standing((Stand((0.0, 0.0, 1.0), -float(mesh.vertices[:, 2].min())),)) for mesh in meshes]


def synthesised(
    config: ObjectsConfig, objects: Sequence[ObjectModel], meshes: Sequence[Mesh], seed: int
) -> LabelledPhotographs:
    """Photographs with known poses, as hard as training's hardest."""
    return LabelledPhotographs(objects, meshes, config.synthesis, seed)


def judge(
    estimator: PoseEstimator,
    photographs: LabelledPhotographs,
    K: np.ndarray,
    meshes: Mapping[int, Mesh],
    num: int,
) -> list[Judgement]:
    """Estimate poses in the first ``num`` photographs and compare them with the truth."""
    hulls = hulls_of(meshes)
    judgements = []
    for i in tqdm(range(num), desc="calibrate", unit="image"):
        photograph = photographs[i]
        for pose in estimator(photograph.image, K):
            obj_id = pose.model.obj_id
            shown = zip(photograph.obj_ids, photograph.cam_T_objs, strict=True)
            judgements.append(judged(pose, [cam_T_obj for own, cam_T_obj in shown if own == obj_id], hulls[obj_id]))
    return judgements


def hulls_of(meshes: Mapping[int, Mesh]) -> dict[int, Tensor]:
    """What MSSD has to be measured on of each mesh."""
    return {
        obj_id: hull_vertices(torch.from_numpy(mesh.vertices.astype(np.float64))) for obj_id, mesh in meshes.items()
    }


def judged(pose: PoseEstimate, truths: Sequence[np.ndarray], hull: Tensor) -> Judgement:
    """Compare an estimate with where the photograph shows its object: cam_T_obj of each."""
    found, model = torch.from_numpy(pose.cam_T_obj), pose.model
    errors_m = [float(mssd_m(found, torch.from_numpy(truth), hull, model.symmetries)) for truth in truths]
    assert pose.agreement is not None
    return Judgement(pose.agreement, min(errors_m, default=np.inf) < RIGHT_DIAMETERS * model.diameter_m)
