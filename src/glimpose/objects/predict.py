"""Poses of all objects in photographs, written as BOP wants them, with pictures to look at."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from glimpose.data.bop import ResultRow, model_path, read_camera, write_results_csv
from glimpose.data.files import IMAGE_SUFFIXES, read_image, write_image
from glimpose.objects.estimator import PoseEstimate, PoseEstimator
from glimpose.objects.refine import PoseRefiner
from glimpose.render.mesh import Mesh, load_mesh
from glimpose.render.scene import make_renderer
from glimpose.viz.overlay import PoseLabel, draw_poses

logger = logging.getLogger(__name__)

SHOWN_SCORE = 0.1
"""Pictures leave out less sure poses; the result file has them all."""


@dataclass(frozen=True)
class Photograph:
    """An image file and what BOP would call it."""

    path: Path
    scene_id: int
    im_id: int


def find_photographs(inputs: Sequence[Path]) -> list[Photograph]:
    """Collect images from files and folders.

    Files of a BOP split keep their ids (…/000002/rgb/000027.png is image 27 of scene 2); other files are numbered in
    the order of their names.
    """
    paths: list[Path] = []
    for entry in inputs:
        if entry.is_dir():
            found = sorted(path for path in entry.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise FileNotFoundError(f"{entry}: no images in this folder; expected {', '.join(IMAGE_SUFFIXES)}")
            in_bop_layout = [path for path in found if path.parent.name in ("rgb", "gray")]
            paths += in_bop_layout or found  # a scene's masks and depth are images too
        elif entry.is_file():
            paths.append(entry)
        else:
            raise FileNotFoundError(f"{entry}: no such image or folder")
    photographs = []
    for number, path in enumerate(paths):
        scene = path.parent.parent.name if path.parent.name in ("rgb", "gray") else ""
        is_bop = scene.isdecimal() and path.stem.isdecimal()
        photographs.append(Photograph(path, int(scene) if is_bop else 0, int(path.stem) if is_bop else number))
    names = [(photo.scene_id, photo.im_id) for photo in photographs]
    if len(set(names)) < len(names):
        raise ValueError("several images have the same scene and image id; predict one dataset at a time")
    return photographs


def predict(
    estimator: PoseEstimator,
    photographs: Iterable[Photograph],
    camera: Path,
    out: Path,
    overlay: Path | None = None,
    meshes: Mapping[int, Mesh] | None = None,
    refiner: PoseRefiner | None = None,
) -> list[ResultRow]:
    """Estimate poses in every photograph and write them as a BOP result file.

    The time written is what one photograph took from pixels in memory to poses, refined by ``refiner`` if one is given.
    With ``overlay``, pictures of the poses go into that folder; with ``meshes`` (by object id) they show outlines
    instead of boxes.
    """
    rows: list[ResultRow] = []
    renderer = make_renderer() if overlay is not None and meshes else None
    for photograph in tqdm(list(photographs), desc="predict", unit="image"):
        view = read_camera(camera, photograph.im_id)
        image = read_image(photograph.path)
        view.check_size(image, photograph.path)
        start = time.perf_counter()
        poses = estimator(image, view.K)
        if refiner is not None:
            poses = refined(refiner, image, view.K, poses)
        time_s = time.perf_counter() - start
        rows += [
            ResultRow(photograph.scene_id, photograph.im_id, pose.model.obj_id, pose.score, pose.cam_T_obj, time_s)
            for pose in poses
        ]
        if overlay is not None:
            overlay.mkdir(parents=True, exist_ok=True)
            shown = [_label(pose, meshes or {}) for pose in poses if pose.score >= SHOWN_SCORE]
            drawn = draw_poses(image, view.K, shown, renderer=renderer)
            name = f"{photograph.scene_id:06d}_{photograph.im_id:06d}.jpg"
            write_image(overlay / name, drawn)
    write_results_csv(out, rows)
    return rows


def refined(
    refiner: PoseRefiner, image: np.ndarray, K: np.ndarray, poses: Sequence[PoseEstimate]
) -> list[PoseEstimate]:
    """Refine estimates; each counts as much as the photograph agrees with it in the end. Best first."""
    better = refiner(image, K, [(pose.model, pose.cam_T_obj) for pose in poses])
    updated = [
        replace(pose, cam_T_obj=refinement.cam_T_obj, score=pose.score * refinement.overlap)
        for pose, refinement in zip(poses, better, strict=True)
    ]
    return sorted(updated, key=lambda pose: -pose.score)


def load_meshes(estimator: PoseEstimator, models: Path) -> dict[int, Mesh]:
    """Read the CAD models of all objects an estimator knows, for pictures."""
    return {model.obj_id: load_mesh(model_path(models, model.obj_id)) for model in estimator.objects}


def _label(pose: PoseEstimate, meshes: Mapping[int, Mesh]) -> PoseLabel:
    model = pose.model
    return PoseLabel(model.name, pose.score, pose.cam_T_obj, model.bounds_m, meshes.get(model.obj_id))
