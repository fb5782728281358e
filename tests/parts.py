"""Fixtures: two small parts, one with a half-turn symmetry, and all that is needed to make samples of them."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from glimpose.data.backgrounds import Backgrounds
from glimpose.nets.glance_gaze import GlanceGaze, GlanceGazeConfig
from glimpose.nets.mtgoe import STRIDE, MtgoeConfig
from glimpose.objects.catalogue import ObjectModel, object_model
from glimpose.objects.crops import central_mean, crop_matrix, frame_object
from glimpose.objects.evidence import Evidence
from glimpose.objects.samples import SampleConfig, SampleMaker
from glimpose.objects.synthesis import Photographer, SceneSampler, SynthesisConfig
from glimpose.render.mesh import Mesh, box_mesh
from glimpose.render.scene import Instance, make_renderer
from glimpose.training.checkpoint import save_tensors

TINY = MtgoeConfig(
    width=0.35, neck_channels=32, branch_channels=24, depth_channels=16, segmentation_channels=16, field_channels=24
)


@dataclass(frozen=True)
class Parts:
    objects: list[ObjectModel]
    meshes: list[Mesh]
    network: GlanceGazeConfig
    synthesis: SynthesisConfig


@pytest.fixture(scope="session")
def parts() -> Parts:
    rng = np.random.default_rng(3)
    box = box_mesh((0.1, 0.06, 0.04))
    corners = len(box.vertices) // 6
    box = replace(box, colors=np.repeat(rng.integers(0, 255, (6, 3)), corners, axis=0).astype(np.uint8))
    half_turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    bar = box_mesh((0.12, 0.05, 0.03))
    meshes = [box, bar]
    objects = [object_model(3, "box", box, 8), object_model(7, "bar", bar, 8, [half_turn])]
    network = GlanceGazeConfig(glance=TINY, gaze=TINY)
    synthesis = SynthesisConfig(num_objects=(2, 3), num_distractors=(0, 2), distance_m=(0.4, 0.7), mesh_faces=0)
    return Parts(objects, meshes, network, synthesis)


@pytest.fixture(scope="session")
def maker(parts: Parts) -> SampleMaker:
    sampler = SceneSampler(parts.meshes, parts.synthesis)
    photographer = Photographer(make_renderer(), Backgrounds())
    return SampleMaker(parts.objects, sampler, photographer, parts.network, SampleConfig(decoy_probability=0))


@pytest.fixture
def checkpoint(tmp_path: Path, parts: Parts) -> Path:
    """An untrained checkpoint of the two parts."""
    path = tmp_path / "model.safetensors"
    weights = {f"model.{name}": value for name, value in GlanceGaze(parts.network, 2).state_dict().items()}
    objects = [model.to_json() for model in parts.objects]
    save_tensors(path, weights, {"kind": "objects", "network": asdict(parts.network), "objects": objects})
    return path


def moved(cam_T_obj: np.ndarray, turn_deg: float = 0.0, zoom: float = 1.0) -> np.ndarray:
    """Turn a pose about the camera's vertical axis, and put it farther away."""
    pose = cam_T_obj.copy()
    pose[:3, :3] = Rotation.from_rotvec([0, np.deg2rad(turn_deg), 0]).as_matrix() @ pose[:3, :3]
    pose[:3, 3] *= zoom
    return pose


def true_evidence(
    parts: Parts,
    index: int,
    cam_T_obj: np.ndarray,
    num_hidden: int = 0,
    aimed: np.ndarray | None = None,
    turn_rad: float = 0.0,
) -> Evidence:
    """What a perfect gaze would say, with the lower rows hidden by something, of a crop aimed there or elsewhere."""
    K = parts.synthesis.K
    model, size = parts.objects[index], parts.network.crop_px
    center_px, side_px = frame_object(
        cam_T_obj if aimed is None else aimed, K, model.diameter_m, parts.network.crop_pad
    )
    K_crop = crop_matrix(center_px, side_px, size, turn_rad) @ K
    buffers = make_renderer().render([Instance(parts.meshes[index], cam_T_obj)], K_crop, size, size)
    covers, points = central_mean(buffers.xyz, buffers.mask > 0)
    symmetry = np.linalg.solve(model.canonical(torch.from_numpy(cam_T_obj)).numpy(), cam_T_obj)
    xyz = (points @ symmetry[:3, :3].T + symmetry[:3, 3]) / (model.diameter_m / 2)
    amodal = buffers.mask.reshape(size // STRIDE, STRIDE, -1, STRIDE).mean((1, 3)).astype(np.float64)
    visible = covers.astype(np.float64)
    visible[size // STRIDE - num_hidden :] = 0
    return Evidence(
        visible=visible.ravel(),
        amodal=amodal.ravel(),
        xyz=xyz.reshape(-1, 3),
        xyz_std=np.full(visible.size, 0.03),
        depth_m=central_mean(buffers.depth[..., None], buffers.mask > 0)[1].ravel(),
        crop=buffers.albedo,
        K=K_crop,
        t_m=cam_T_obj[:3, 3],
    )
