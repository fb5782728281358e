"""Poses of all objects in photographs, written as BOP wants them, with pictures to look at."""

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tqdm import tqdm

from glimpose.data.bop import model_path
from glimpose.data.bop_results import ResultRow, write_results_csv
from glimpose.data.files import write_image
from glimpose.objects.estimator import PoseEstimator
from glimpose.objects.looks import PoseEstimate
from glimpose.objects.photographs import PhotographFile, read_photograph
from glimpose.render.mesh import Mesh, load_mesh
from glimpose.render.scene import make_renderer
from glimpose.viz.overlay import PoseLabel, draw_poses

logger = logging.getLogger(__name__)

SHOWN_SCORE = 0.1
"""Pictures leave out less sure poses; the result file has them all."""


def predict(
    estimator: PoseEstimator,
    files: Iterable[PhotographFile],
    camera: Path,
    out: Path,
    overlay: Path | None = None,
    meshes: Mapping[int, Mesh] | None = None,
) -> list[ResultRow]:
    """Estimate poses in every photograph and write them as a BOP result file.

    The time written is what one photograph took from pixels in memory to poses.
    With ``overlay``, pictures of the poses go into that folder; with ``meshes`` (by object id) they show outlines
    instead of boxes.
    """
    rows: list[ResultRow] = []
    renderer = make_renderer() if overlay is not None and meshes else None
    for file in tqdm(list(files), desc="predict", unit="image"):
        photograph = read_photograph(file.path, file.im_id, camera)
        image, K = photograph.image, photograph.K
        start = time.perf_counter()
        poses = estimator(image, K)
        time_s = time.perf_counter() - start
        rows += [
            ResultRow(file.scene_id, file.im_id, pose.model.obj_id, pose.score, pose.cam_T_obj, time_s)
            for pose in poses
        ]
        if overlay is not None:
            overlay.mkdir(parents=True, exist_ok=True)
            shown = [_label(pose, meshes or {}) for pose in poses if pose.score >= SHOWN_SCORE]
            drawn = draw_poses(image, K, shown, renderer=renderer)
            write_image(overlay / f"{file.scene_id:06d}_{file.im_id:06d}.jpg", drawn)
    write_results_csv(out, rows)
    return rows


def load_meshes(estimator: PoseEstimator, models: Path) -> dict[int, Mesh]:
    """Read the CAD models of all objects an estimator knows, for pictures."""
    return {model.obj_id: load_mesh(model_path(models, model.obj_id)) for model in estimator.objects}


def _label(pose: PoseEstimate, meshes: Mapping[int, Mesh]) -> PoseLabel:
    model = pose.model
    return PoseLabel(model.name, pose.score, pose.cam_T_obj, model.bounds_m, meshes.get(model.obj_id))
