"""Training the refiner: fresh close-ups, and drawings at poses that are a little off."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from glimpose import losses
from glimpose.data.backgrounds import Backgrounds
from glimpose.geometry.camera import pixel_grid
from glimpose.geometry.symmetry import canonicalise
from glimpose.nets.flow_refiner import FLOW_UNIT_PX, FlowRefiner, FlowRefinerConfig
from glimpose.nets.glance_gaze import GlanceGazeConfig
from glimpose.nets.mtgoe import STRIDE
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.refine import draw
from glimpose.objects.samples import Closeup, Sample, SampleConfig, SampleMaker, cell_mean
from glimpose.objects.synthesis import Photographer, SceneSampler, SynthesisConfig
from glimpose.objects.task import Batch, CurriculumConfig, SynthesisTask, ValidatedBatches, draw_samples
from glimpose.objects.train import DataConfig, load_objects
from glimpose.render.mesh import Mesh, simplify
from glimpose.render.scene import make_renderer
from glimpose.training.checkpoint import load_checkpoint
from glimpose.training.loop import TrainingConfig, fit


@dataclass(frozen=True)
class PerturbationConfig:
    """How far drawings are off, as the estimates that will be refined: standard deviations."""

    rotation_deg: float = 12.0
    wild_rotation_deg: float = 30.0
    """Of one in five."""
    lateral: float = 0.05
    """In crop sides, in each direction."""
    log_depth: float = 0.06


@dataclass(frozen=True)
class RefinerLambdas:
    """Weight of each task in the loss."""

    masks: float = 0.5
    flow: float = 2.0
    depth: float = 4.0
    uncertainty: float = 0.2


@dataclass(frozen=True)
class RefinerBatchConfig:
    """How much goes into one step."""

    crops: int = 32
    validation_crops: int = 256
    seed: int = 0


@dataclass(frozen=True)
class RefinerTrainingConfig:
    """One experiment with the refiner."""

    track: Literal["refiner"] = "refiner"
    """Says in a file what it is a config of."""
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    lambdas: RefinerLambdas = field(default_factory=RefinerLambdas)
    batch: RefinerBatchConfig = field(default_factory=RefinerBatchConfig)
    network: FlowRefinerConfig = field(default_factory=FlowRefinerConfig)
    perturbation: PerturbationConfig = field(default_factory=PerturbationConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    encoder_from: Path | None = None
    """Checkpoint of the objects track whose gaze lends its encoder to start from."""


def perturb(
    cam_T_obj: np.ndarray, model: ObjectModel, crop_pad: float, config: PerturbationConfig, rng: np.random.Generator
) -> np.ndarray:
    """Put a pose off, as estimates are."""
    std_deg = config.wild_rotation_deg if rng.random() < 0.2 else config.rotation_deg
    axis = rng.normal(size=3)
    turn = Rotation.from_rotvec(np.deg2rad(rng.normal(0, std_deg)) * axis / np.linalg.norm(axis))
    off = cam_T_obj.copy()
    off[:3, :3] = turn.as_matrix() @ cam_T_obj[:3, :3]
    off[:3, 3] *= np.exp(rng.normal(0, config.log_depth))
    off[:2, 3] += rng.normal(0, config.lateral, 2) * model.diameter_m * crop_pad
    return off


class RefinementMaker:
    """Makes the refiner's samples; holds the renderer, so it lives in one process."""

    def __init__(
        self,
        objects: Sequence[ObjectModel],
        meshes: Sequence[Mesh],
        network: FlowRefinerConfig,
        perturbation: PerturbationConfig,
        synthesis: SynthesisConfig,
    ) -> None:
        self.meshes = list(meshes)
        self.network = network
        self.perturbation = perturbation
        photographer = Photographer(make_renderer(), Backgrounds(synthesis.backgrounds))
        looks = GlanceGazeConfig(crop_px=network.crop_px, crop_pad=network.crop_pad)
        self.samples = SampleMaker(objects, SceneSampler(meshes, synthesis), photographer, looks, SampleConfig())

    def __call__(self, rng: np.random.Generator, difficulty: float = 1.0) -> Sample:
        """Draw one sample; scenes are drawn until one shows an object well enough."""
        while True:
            closeup = self.samples.closeup(
                rng, difficulty, lambda model, pose: perturb(pose, model, self.network.crop_pad, self.perturbation, rng)
            )
            if closeup is not None:
                return self._sample(closeup)

    def _sample(self, closeup: Closeup) -> Sample:
        renderer, model, K = self.samples.photographer.renderer, closeup.model, closeup.K
        drawing = draw(renderer, self.meshes[closeup.object_index], closeup.aimed, K, self.network.crop_px)
        # Of all poses that look the same, the one with the least to move.
        aimed_R = np.eye(4)
        aimed_R[:3, :3] = closeup.aimed[:3, :3]
        off = torch.from_numpy(aimed_R.T @ closeup.cam_T_obj)
        cam_T_obj = aimed_R @ canonicalise(off, model.symmetries).numpy()
        xyz_cam = drawing.xyz_m @ cam_T_obj[:3, :3].T + cam_T_obj[:3, 3]
        uvw = xyz_cam @ K.T
        rows, columns = drawing.covers.shape
        uv = np.where(drawing.covers[..., None], uvw[..., :2] / np.maximum(uvw[..., 2:], 1e-6), 0)
        flow = uv - pixel_grid(rows, columns, STRIDE).numpy()
        return {
            "image": np.ascontiguousarray(closeup.image.transpose(2, 0, 1)),
            "drawing": drawing.channels,
            "covers": drawing.covers.astype(np.float32),
            "flow": flow.transpose(2, 0, 1).astype(np.float32),
            "seen": (drawing.covers & _shows(closeup, uv, xyz_cam[..., 2])).astype(np.float32),
            "visible": cell_mean(closeup.visible, rows, columns),
            "log_depth_ratio": np.float32(np.log(cam_T_obj[2, 3] / closeup.aimed[2, 3])),
        }


def _shows(closeup: Closeup, uv: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
    """Whether surface points show in the photograph: in the picture, on the object, and not on its far side."""
    height, width = closeup.visible.shape
    u, v = np.rint(uv).astype(int).transpose(2, 0, 1)
    is_inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    u, v = u.clip(0, width - 1), v.clip(0, height - 1)
    is_front = depth_m < closeup.buffers.depth[v, u] + 0.05 * closeup.model.diameter_m
    return is_inside & closeup.visible[v, u] & is_front


class RefinementBatches(ValidatedBatches):
    """Batch i is a function of (seed, i) alone."""

    def __init__(self, config: RefinerTrainingConfig, objects: Sequence[ObjectModel], meshes: Sequence[Mesh]) -> None:
        self.config = config
        self.parts = (objects, meshes, config.network, config.perturbation, config.synthesis)
        self._maker: RefinementMaker | None = None

    def __getitem__(self, index: int) -> Batch:
        """Draw batch ``index``."""
        return self._draw(index, self.config.batch.crops)

    def validation(self) -> Batch:
        """Draw what is validated on."""
        return self._draw(-1, self.config.batch.validation_crops)

    def _draw(self, index: int, num: int) -> Batch:
        if self._maker is None:  # a renderer can't be sent to another process
            self._maker = RefinementMaker(*self.parts)
        seed = [self.config.training.seed, abs(index), int(index < 0), 2]
        hardest = self.config.curriculum.hardest(index / self.batches_per_step)
        return {"refiner": draw_samples(self._maker, num, hardest, seed)}


class RefinerTask(SynthesisTask):
    """The task `training.loop.fit` trains."""

    def __init__(self, config: RefinerTrainingConfig, objects: Sequence[ObjectModel], meshes: Sequence[Mesh]) -> None:
        network = FlowRefiner(config.network)
        super().__init__(network, RefinementBatches(config, objects, meshes), config.training.num_workers)
        self.config = config
        if config.encoder_from is not None:
            weights = load_checkpoint(config.encoder_from).group("model")
            prefix = "gaze.encoder."
            network.start_from(
                {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
            )

    def metadata(self) -> dict:
        """What a checkpoint needs besides weights to refine."""
        return {"kind": "refiner", "network": asdict(self.config.network)}

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms whose sum is minimised."""
        sample, lambdas = batch["refiner"], self.config.lambdas
        maps = model(sample["image"].float() / 255, sample["drawing"])
        covers, seen = sample["covers"][:, None], sample["seen"][:, None]
        mask = losses.bce(maps["visible_logits"][:, 0], sample["visible"]).mean()
        mask = mask + losses.masked_mean(losses.bce(maps["seen_logits"], seen), covers)
        # Where hidden points are is known as well, and worth less: nobody will believe those.
        weight = covers * (0.2 + 0.8 * seen)
        error_px = losses.distance(maps["flow"], sample["flow"], dim=1, keepdim=True)
        true_ratio = sample["log_depth_ratio"].view(-1, 1, 1, 1).expand_as(covers)
        return {
            "masks": lambdas.masks * mask,
            "flow": lambdas.flow * losses.masked_mean(error_px / FLOW_UNIT_PX, weight),
            "depth": lambdas.depth * losses.masked_mean(losses.l1(maps["log_depth_ratio"], true_ratio), weight),
            "uncertainty": lambdas.uncertainty
            * losses.masked_mean(losses.laplace_nll(error_px.detach(), maps["flow_log_std"]), weight),
        }


def train_refiner(config: RefinerTrainingConfig, run_dir: Path, resume: bool = False) -> Path:
    """Train a refiner; returns the best checkpoint."""
    objects, meshes = load_objects(config.data, num_keypoints=1)
    faces = config.synthesis.mesh_faces
    drawn = [simplify(mesh, faces) if faces else mesh for mesh in meshes]
    return fit(RefinerTask(config, objects, drawn), config.training, run_dir, resume=resume)
