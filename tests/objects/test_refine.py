"""The refiner: with perfect flow it finds the pose; its samples are true; one batch can be learned."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from parts import TINY, Parts
from torch import nn

from glimpose.geometry.camera import pixel_grid
from glimpose.geometry.symmetry import canonicalise
from glimpose.nets.flow_refiner import FlowRefiner, FlowRefinerConfig
from glimpose.nets.mtgoe import STRIDE
from glimpose.objects.crops import crop_matrix, frame_object
from glimpose.objects.refine import PoseRefiner, RefinerConfig, draw
from glimpose.objects.refine_task import (
    PerturbationConfig,
    RefinementMaker,
    RefinerBatchConfig,
    RefinerTask,
    RefinerTrainingConfig,
    perturb,
)
from glimpose.render.scene import make_renderer
from glimpose.training.checkpoint import save_tensors

NETWORK = FlowRefinerConfig(mtgoe=TINY)
K = np.array([[570.0, 0, 320], [0, 570, 240], [0, 0, 1]])


def pose(z_m: float = 0.6) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    cam_T_obj = np.eye(4)
    cam_T_obj[:3, :3] = Rotation.from_euler("xyz", [200, 25, 40], degrees=True).as_matrix()
    cam_T_obj[:3, 3] = [0.05, -0.03, z_m]
    return cam_T_obj


class Oracle(nn.Module):
    """Says what a perfect network would of objects whose true poses it's told, by drawing them as the refiner does."""

    def __init__(self, refiner_objects, truths, meshes) -> None:
        super().__init__()
        self.config = NETWORK
        self.unused = nn.Parameter(torch.zeros(1))
        self.truths = truths
        self.objects = refiner_objects
        self.meshes = meshes
        self.renderer = make_renderer()
        self.posed: list[np.ndarray] = []

    def forward(self, photograph: torch.Tensor, drawing: torch.Tensor) -> dict[str, torch.Tensor]:
        maps: dict[str, list[np.ndarray]] = {}
        for model, mesh, at, truth in zip(self.objects, self.meshes, self.posed, self.truths, strict=True):
            K_crop = crop_matrix(*frame_object(at, K, model.diameter_m, NETWORK.crop_pad), NETWORK.crop_px) @ K
            drawn = draw(self.renderer, mesh, at, K_crop, NETWORK.crop_px)
            uvw = (drawn.xyz_m @ truth[:3, :3].T + truth[:3, 3]) @ K_crop.T
            uv = uvw[..., :2] / uvw[..., 2:]
            flow = uv - pixel_grid(*drawn.covers.shape, STRIDE).numpy()
            ratio = np.full((1, *drawn.covers.shape), np.log(truth[2, 3] / at[2, 3]))
            sure = np.full((1, *drawn.covers.shape), 20.0)
            said = {
                "flow": flow.transpose(2, 0, 1),
                "flow_log_std": 0 * sure - 1,
                "log_depth_ratio": ratio,
                "seen_logits": sure,
                "visible_logits": np.where(drawn.covers, sure, -sure),
            }
            for name, value in said.items():
                maps.setdefault(name, []).append(value)
        return {name: torch.from_numpy(np.stack(values)) for name, values in maps.items()}


class Watched(PoseRefiner):
    """Tells the oracle where the drawings are."""

    def _step(self, image, K, objects):
        self.network.posed = [at for _, at in objects]
        return super()._step(image, K, objects)


def test_perfect_flow_leads_to_the_true_pose(parts: Parts):
    rng = np.random.default_rng(0)
    truths = [pose(), pose(0.9)]
    off = [
        perturb(truth, model, 1.4, PerturbationConfig(rotation_deg=15, log_depth=0.05), rng)
        for truth, model in zip(truths, parts.objects, strict=True)
    ]
    oracle = Oracle(parts.objects, truths, parts.meshes)
    meshes = {model.obj_id: mesh for model, mesh in zip(parts.objects, parts.meshes, strict=True)}
    refiner = Watched(oracle, meshes, RefinerConfig(iterations=4))
    refined = refiner(np.zeros((480, 640, 3), np.uint8), K, list(zip(parts.objects, off, strict=True)))
    for truth, before, after in zip(truths, off, refined, strict=True):
        assert np.abs(before - truth).max() > 1e-2
        np.testing.assert_allclose(after.cam_T_obj, truth, atol=1e-3)
        assert after.flow_px < 0.2
        assert after.overlap > 0.99


@pytest.fixture(scope="module")
def refinements(parts: Parts) -> RefinementMaker:
    return RefinementMaker(parts.objects, parts.meshes, NETWORK, PerturbationConfig(), parts.synthesis)


def test_flow_lands_on_the_object_where_it_says_seen(refinements: RefinementMaker):
    num_seen = 0
    for i in range(8):
        sample = refinements(np.random.default_rng([1, i]))
        rows, columns = sample["covers"].shape
        uv = pixel_grid(rows, columns, STRIDE).numpy() + sample["flow"].transpose(1, 2, 0)
        seen = sample["seen"] > 0
        assert (sample["covers"][seen] == 1).all()
        cells = np.floor((uv[seen] + 0.5) / STRIDE).astype(int).clip(0, rows - 1)
        assert (sample["visible"][cells[:, 1], cells[:, 0]] > 0).all()
        num_seen += seen.sum()
    assert num_seen > 100


def test_samples_are_functions_of_their_generator(refinements: RefinementMaker):
    first, second = (refinements(np.random.default_rng([2, 0])) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_symmetric_objects_flow_the_short_way(parts: Parts):
    bar = parts.objects[1]
    truth = pose()
    drawn_R = np.eye(4)
    drawn_R[:3, :3] = truth[:3, :3] @ np.diag([-1.0, -1.0, 1.0])  # looks the same
    off = torch.from_numpy(drawn_R.T @ truth)
    torch.testing.assert_close(canonicalise(off, bar.symmetries)[:3, :3], torch.eye(3, dtype=torch.float64))


def test_one_batch_can_be_learned(parts: Parts):
    torch.manual_seed(0)
    config = RefinerTrainingConfig(network=NETWORK, synthesis=parts.synthesis, batch=RefinerBatchConfig(crops=6))
    task = RefinerTask(config, parts.objects, parts.meshes)
    batch = task.batches[0]
    model = task.model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    history = []
    for _ in range(100):
        loss = sum(term for name, term in task.losses(model, batch).items() if name != "uncertainty")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert np.mean(history[-5:]) < 0.35 * history[0]


def test_it_starts_from_a_gaze_and_keeps_its_own_eyes_for_the_drawing(parts: Parts, checkpoint: Path):
    from glimpose.training.checkpoint import load_checkpoint

    config = RefinerTrainingConfig(network=NETWORK, synthesis=parts.synthesis, encoder_from=checkpoint)
    first = RefinerTask(config, parts.objects, parts.meshes).model.mtgoe.encoder.features[0][0].weight
    gaze = load_checkpoint(checkpoint).group("model")["gaze.encoder.features.0.0.weight"]
    assert torch.equal(first[:, :3], gaze)
    assert (first[:, 3:] != 0).any()


def test_a_checkpoint_of_something_else_is_refused(parts: Parts, checkpoint: Path):
    with pytest.raises(ValueError, match="'objects', expected one of 'refiner'"):
        PoseRefiner.from_checkpoint(checkpoint, {})


def test_a_refiner_survives_its_file(parts: Parts, tmp_path: Path):
    network = FlowRefiner(NETWORK).eval()
    weights = {f"model.{name}": value for name, value in network.state_dict().items()}
    save_tensors(tmp_path / "r.safetensors", weights, {"kind": "refiner", "network": asdict(NETWORK)})
    meshes = {model.obj_id: mesh for model, mesh in zip(parts.objects, parts.meshes, strict=True)}
    config = RefinerConfig(iterations=2)
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3)).astype(np.uint8)
    posed = [(parts.objects[0], pose())]
    direct = PoseRefiner(network, meshes, config)(image, K, posed)
    loaded = PoseRefiner.from_checkpoint(tmp_path / "r.safetensors", meshes, config)(image, K, posed)
    np.testing.assert_allclose(direct[0].cam_T_obj, loaded[0].cam_T_obj, atol=1e-6)
    assert PoseRefiner(network, meshes, replace(config, iterations=0))(image, K, posed)[0].cam_T_obj is posed[0][1]
    assert PoseRefiner(network, meshes, config)(image, K, []) == []
