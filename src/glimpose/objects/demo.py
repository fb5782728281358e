"""The whole way on one page: make two parts, learn them from random pictures, find them in others, keep the score."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from glimpose.data.bop import ModelInfo
from glimpose.data.bop_results import ResultRow
from glimpose.data.bop_writer import write_models
from glimpose.data.files import read_image
from glimpose.data.sensor import SensorConfig
from glimpose.nets.glance_gaze import GlanceGazeConfig
from glimpose.nets.mtgoe import MtgoeConfig
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.dataset import write_dataset
from glimpose.objects.estimator import PoseEstimator
from glimpose.objects.evaluate import evaluate
from glimpose.objects.photographs import find_photographs
from glimpose.objects.predict import predict
from glimpose.objects.samples import SampleConfig
from glimpose.objects.search import PoseSearch
from glimpose.objects.synthesis import SynthesisConfig
from glimpose.objects.task import Batch, BatchConfig, LambdaConfig
from glimpose.objects.train import DataConfig, ObjectsConfig, build_task, load_objects
from glimpose.render.mesh import Mesh, box_mesh, cylinder_mesh, diameter_m, sphere_mesh
from glimpose.render.scene import make_renderer
from glimpose.training.loop import TrainingConfig, fit
from glimpose.viz.overlay import PoseLabel, draw_poses
from glimpose.viz.report import Page

STEPS_PER_MINUTE = 250
"""What two cores manage. Slower ones take longer, and learn as much."""
NUM_SHOWN = 6
"""Test photographs on the page."""

Color = tuple[int, int, int]
Part = tuple[Mesh, Color, np.ndarray]
"""A mesh, its colour, and whole_T_part."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo leaves behind."""

    page: Path
    checkpoint: Path
    poses: Path
    """Of the test photographs, as BOP wants them."""
    summary: dict[str, Any]
    """The scores, as `evaluate` gives them."""


def run_demo(out: Path, minutes: float = 4.0, seed: int = 0, num_photographs: int = 24) -> DemoResult:
    """Train on two made-up parts and write a page about it, out/index.html.

    Besides the page, ``out`` gets the training run (run/) and a dataset in BOP's layout: the parts (models/), labelled
    photographs that training never saw (test/), the poses predicted for them and their scores (evaluation/).
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty; remove it, or write the demo to another folder")

    # Learn. Nothing is needed but CAD models: here two parts made of boxes, cylinders and balls.
    write_parts(out / "models")
    config = demo_config(out / "models", steps=max(1, round(minutes * STEPS_PER_MINUTE)), seed=seed)
    objects, meshes = load_objects(config.data, config.network.num_keypoints)
    task = build_task(config, objects, meshes)
    with _threads(torch.get_num_threads() - config.training.num_workers):
        checkpoint = fit(task, config.training, out / "run")

    # Photograph fresh scenes, find the parts in them, and compare with the truth.
    renderer = make_renderer()
    write_dataset(out, "test", objects, meshes, config.data.models, config.synthesis, num_photographs, seed=seed)
    estimator = PoseEstimator.from_checkpoint(checkpoint)
    by_id = {model.obj_id: mesh for model, mesh in zip(objects, meshes, strict=True)}
    estimator.search = PoseSearch(objects, by_id, estimator.model.config)
    photographs = find_photographs([out / "test" / "000000" / "rgb"])
    rows = predict(estimator, photographs, out / "camera.json", out / "poses.csv")
    summary = evaluate(out / "poses.csv", out, "test", out / "test_targets_bop19.json", out / "evaluation")

    # Tell.
    page = Page("glimpose: 6D poses learned from CAD models alone")
    page.text(
        f"Two parts were made up, and two small networks trained for {config.training.steps:,} steps on pictures drawn "
        "at random. The glance sees a whole photograph and finds the parts; the gaze sees a close-up of each and "
        "predicts its mask, depth and, for every pixel, which point of the part it shows. Of many drawn views the one "
        "that explains this best, moved until it fits, gives position and rotation.",
        f"In {summary['num_images']} photographs of new scenes, {100 * summary['ADD_S_0.1d']:.0f} % of "
        f"{summary['num_targets']} parts were found with a mean error below a tenth of their diameter (ADD-S).",
    )
    page.table([_table_row(entry, objects) for entry in [*summary["objects"], {**summary, "obj_id": None}]])
    page.heading("Predictions")
    pictures = []
    for photograph in photographs[:NUM_SHOWN]:
        image = read_image(photograph.path)
        labels = [_label(row, objects, meshes) for row in rows if row.im_id == photograph.im_id]
        pictures += [image, draw_poses(image, config.synthesis.K, labels, renderer, emphasis=1.7)]
    page.gallery(
        pictures,
        columns=2,
        caption="Photographs that training never saw, and what was found in them: outlines, axes (x red, y green, "
        "z blue), and how sure the networks are. The wing nut looks the same after half a turn, so its axes may point "
        "either way.",
    )
    page.heading("What the gaze sees")
    views = task.batches.draw(-1, windows=0, crops=6)
    page.gallery(
        gaze_pictures(estimator, views),
        columns=6,
        lossless=True,
        caption="Close-ups, the predicted masks, and the predicted object coordinates x, y, z as red, green and blue.",
    )
    page.heading("Training")
    drawn = task.batches.draw(0, windows=4, crops=12)
    for part, columns in (("glance", 4), ("gaze", 6)):
        images = list(drawn[part]["image"].permute(0, 2, 3, 1).numpy())
        page.gallery(images, columns=columns, lossless=True, caption=f"Pictures the {part} was trained on.")
    page.curve(_loss_curves(out / "run" / "metrics.jsonl"), "step", "loss", "Some of the losses.", log_y=True)
    renderer.close()
    return DemoResult(page.write(out / "index.html"), checkpoint, out / "poses.csv", summary)


def demo_config(models: Path, steps: int, seed: int) -> ObjectsConfig:
    """Small networks, and simple scenes: parts upright on a table, seen from above, none much further than others."""
    return ObjectsConfig(
        data=DataConfig(models=models, object_ids=(1, 2), names=("bracket", "wing nut")),
        training=TrainingConfig(
            steps=steps,
            seed=seed,
            learning_rate=3e-3,
            warmup_steps=min(50, steps),
            ema_decay=0.99,
            validate_every=steps,
            checkpoint_every=steps,
            log_every=10,
            accelerator="cpu",
            precision="32-true",  # few processors are fast in bf16
            num_workers=1,
        ),
        batch=BatchConfig(windows=12, crops=24, validation_windows=32, validation_crops=32),
        lambdas=LambdaConfig(coordinates=4.0),
        network=GlanceGazeConfig(
            glance=MtgoeConfig(0.35, 48, 32, depth_channels=16, segmentation_channels=16, field_channels=16),
            gaze=MtgoeConfig(0.5, 64, 48, depth_channels=16, segmentation_channels=16, field_channels=48),
            glance_scale=0.25,
            crop_px=64,
        ),
        synthesis=SynthesisConfig(
            fx=480.0,
            fy=480.0,
            cx=319.5,
            cy=239.5,
            distance_m=(0.38, 0.52),
            elevation_deg=(30.0, 70.0),
            roll_deg=5.0,
            tilt_deg=2.0,
            side_probability=0.0,
            free_pose_probability=0.0,
            num_objects=(2, 3),
            num_distractors=(0, 1),
            crowding=(1.0, 1.4),
            patch_probability=0.0,
            sensor=SensorConfig(
                exposure_gain=(0.8, 1.2),
                channel_gain=(0.95, 1.05),
                gamma=(0.9, 1.1),
                contrast=(0.9, 1.1),
                black_level=(-0.01, 0.03),
                saturation=(0.85, 1.15),
                hue_rad=(-0.03, 0.03),
                gray_prob=0.0,
                shading_prob=0.2,
                motion_prob=0.0,
                shot_noise=(0.0, 2.0),
            ),
        ),
        samples=SampleConfig(center=0.05, log_scale=0.08),
    )


@contextmanager
def _threads(num: int) -> Iterator[None]:
    """Compute with this many threads: those that share a core with another process hold up all the others."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, num))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_parts(folder: Path) -> None:
    """Write the two parts as BOP has CAD models: meshes in millimetres and models_info.json."""
    half_turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    meshes = {1: bracket(), 2: wing_nut()}
    infos = {1: ModelInfo(diameter_m(meshes[1])), 2: ModelInfo(diameter_m(meshes[2]), discrete=(half_turn,))}
    write_models(folder, meshes, infos)


def bracket() -> Mesh:
    """Make a part that looks different from everywhere: a plate with a wall at one end, a peg and a block."""
    return assemble(
        [
            (box_mesh((0.13, 0.08, 0.014)), (70, 110, 190), _at(0, 0, 0)),
            (box_mesh((0.014, 0.08, 0.07)), (225, 130, 40), _at(-0.058, 0, 0.042)),
            (cylinder_mesh(0.016, 0.04, 24), (235, 225, 90), _at(0.035, 0.018, 0.027)),
            (box_mesh((0.035, 0.025, 0.02)), (200, 50, 50), _at(0, -0.022, 0.017)),
        ]
    )


def wing_nut() -> Mesh:
    """Make a part that looks the same after half a turn about z: a hub with two wings."""
    parts = [
        (cylinder_mesh(0.032, 0.034, 32), (40, 150, 130), _at(0, 0, 0)),
        (cylinder_mesh(0.014, 0.04, 24), (235, 235, 230), _at(0, 0, 0.008)),
    ]
    for turn_deg in (0, 180):
        side = _at(0, 0, 0, "z", turn_deg)
        parts += [
            (box_mesh((0.055, 0.012, 0.04)), (190, 70, 150), side @ _at(0.046, 0, 0.022, "y", -35)),
            (sphere_mesh(0.014, 2), (240, 190, 60), side @ _at(0.066, 0, 0.038)),
        ]
    return assemble(parts)


def assemble(parts: Sequence[Part]) -> Mesh:
    """Join meshes into one whose box is centred at the origin."""
    placed, num_vertices = [], 0
    for mesh, color, whole_T_part in parts:
        R, t = whole_T_part[:3, :3].astype(np.float32), whole_T_part[:3, 3].astype(np.float32)
        colors = np.tile(np.array(color, np.uint8), (len(mesh.vertices), 1))
        faces = mesh.faces + np.int32(num_vertices)
        placed.append(
            replace(mesh, vertices=mesh.vertices @ R.T + t, faces=faces, normals=mesh.normals @ R.T, colors=colors)
        )
        num_vertices += len(mesh.vertices)
    whole = Mesh(
        *(
            np.concatenate([getattr(mesh, field) for mesh in placed])
            for field in ("vertices", "faces", "normals", "colors")
        )
    )
    middle = (whole.vertices.min(0) + whole.vertices.max(0)) / 2
    return replace(whole, vertices=whole.vertices - middle)


def _at(x: float, y: float, z: float, axis: str = "z", angle_deg: float = 0.0) -> np.ndarray:
    whole_T_part = np.eye(4)
    whole_T_part[:3, :3] = Rotation.from_euler(axis, angle_deg, degrees=True).as_matrix()
    whole_T_part[:3, 3] = x, y, z
    return whole_T_part


@torch.inference_mode()
def gaze_pictures(estimator: PoseEstimator, batch: Batch) -> list[np.ndarray]:
    """Show crops, then their predicted visible masks, then their predicted object coordinates as colours."""
    crops, object_index = batch["gaze"]["image"], batch["gaze"]["object_index"]
    maps = estimator.model.gaze_maps(crops / 255, object_index)
    visible = maps["visible_logits"].sigmoid()
    colors = (0.5 + 0.5 * maps["xyz"]).clamp(0, 1) * visible + 0.93 * (1 - visible)
    pictures = [crops.float() / 255]
    pictures += [
        torch.nn.functional.interpolate(m.expand(-1, 3, -1, -1), size=crops.shape[-2:]) for m in (visible, colors)
    ]
    return list((torch.cat(pictures) * 255).byte().permute(0, 2, 3, 1).numpy())


def _label(row: ResultRow, objects: Sequence[ObjectModel], meshes: Sequence[Mesh]) -> PoseLabel:
    index = [model.obj_id for model in objects].index(row.obj_id)
    model = objects[index]
    return PoseLabel(model.name, row.score, row.cam_T_obj, model.bounds_m, meshes[index], color_index=index)


def _table_row(entry: dict[str, Any], objects: Sequence[ObjectModel]) -> dict[str, str | int | float | None]:
    names = {model.obj_id: model.name for model in objects}
    return {
        "part": names.get(entry["obj_id"], "all"),
        "shown": entry["num_targets"],
        "missed": entry["num_missing"],
        "ADD(-S), %": _times(100, entry["ADD_S_0.1d"]),
        "AR MSSD, %": _times(100, entry["AR_MSSD"]),
        "AR MSPD, %": _times(100, entry["AR_MSPD"]),
        "AR VSD, %": _times(100, entry["AR_VSD"]),
        "median rotation error, °": entry["median_rotation_deg"],
        "median translation error, mm": _times(1000, entry["median_translation_m"]),
    }


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _loss_curves(metrics: Path) -> dict[str, tuple[list[float], list[float]]]:
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows = [row for row in rows if row["stage"] == "train"]
    names = {
        "glance/segmentation": "glance: classes",
        "glance/center": "glance: centres",
        "gaze/masks": "gaze: masks",
        "gaze/coordinates": "gaze: coordinates",
    }
    return {name: ([row["step"] for row in rows], [row[key] for row in rows]) for key, name in names.items()}
