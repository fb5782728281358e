"""Supervised training of glance and gaze on scenes drawn on the fly."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from glimpose import losses
from glimpose.data.backgrounds import Backgrounds
from glimpose.geometry.camera import pixel_grid
from glimpose.nets.glance_gaze import GAZE_UNIT_PX, GLANCE_UNIT_PX, GlanceGaze, GlanceGazeConfig
from glimpose.nets.mtgoe import STRIDE
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.samples import Sample, SampleConfig, SampleMaker, collate
from glimpose.objects.synthesis import Photographer, SceneSampler, SynthesisConfig
from glimpose.render.mesh import Mesh
from glimpose.render.scene import make_renderer
from glimpose.training.loader import load_batches

Batch = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class LambdaConfig:
    """Weight of each task in the loss."""

    segmentation: float = 1.0
    """The glance's classes."""
    masks: float = 1.0
    """The gaze's visible and amodal masks."""
    depth: float = 2.0
    center: float = 1.0
    keypoints: float = 2.0
    coordinates: float = 2.0
    uncertainty: float = 0.2
    """Of every predicted standard deviation; errors are detached there, so it cannot buy low loss by large errors."""


@dataclass(frozen=True)
class BatchConfig:
    """How much of what goes into one step."""

    windows: int = 16
    """Windows of photographs for the glance; 0 trains only the gaze."""
    crops: int = 32
    """Crops for the gaze; 0 trains only the glance."""
    uses: int = 1
    """How often every sample is used: drawing takes as long as learning from it on a CPU (docs/lab-book.md)."""
    use_again_after: int = 240
    """Batches between two uses; divisible by the number of processes that draw, or they draw samples twice."""
    validation_windows: int = 128
    validation_crops: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.uses < 1 or self.use_again_after < 1:
            raise ValueError(f"uses = {self.uses}, use_again_after = {self.use_again_after}: expected 1 or more")
        if self.windows % self.uses or self.crops % self.uses:
            sizes = f"windows = {self.windows} and crops = {self.crops}"
            raise ValueError(f"uses = {self.uses}: expected a divisor of {sizes}")


@dataclass(frozen=True)
class CurriculumConfig:
    """Easy scenes first: a network that sees all difficulties at once is slow to see anything (docs/lab-book.md)."""

    steps: int = 4000
    """Until the hardest scenes are as hard as [synthesis] says; 0 for from the first step on."""
    start: float = 0.0
    """Difficulty of the first step's scenes."""

    def hardest(self, step: float) -> float:
        """Return the difficulty of the hardest scenes of a step; its samples are uniform between 0 and that.

        Negative steps are for validation, which is as hard as it gets from the beginning.
        """
        if step < 0:
            return 1.0
        return min(1.0, self.start + (1 - self.start) * step / self.steps) if self.steps else 1.0


def draw_samples(
    make: Callable[[np.random.Generator, float], Sample],
    num: int,
    hardest: float,
    seed: Sequence[int],
) -> dict[str, Tensor]:
    """Make ``num`` samples of any difficulty up to the hardest; each is a function of its number and the seed."""
    rngs = [np.random.default_rng([*seed, i]) for i in range(num)]
    return collate([make(rng, rng.uniform(0, hardest)) for rng in rngs])


class ValidatedBatches(Dataset[Batch], ABC):
    """Batches by their index, and one that is validated on."""

    batches_per_step: int = 1
    """As many as there are processes."""

    @abstractmethod
    def validation(self) -> Batch:
        """Draw what is validated on."""


class SynthesisBatches(ValidatedBatches):
    """Batch i is a function of (seed, i) alone, whichever process draws it and whenever.

    With ``uses`` > 1 it's made of portions i, i + gap, i + 2 gap…, so that each portion is in as many batches, and is
    drawn for the first of them; a process that starts in the middle draws a few more at first, and gets the same.
    """

    def __init__(
        self,
        objects: Sequence[ObjectModel],
        meshes: Sequence[Mesh],
        synthesis: SynthesisConfig,
        network: GlanceGazeConfig,
        samples: SampleConfig,
        batch: BatchConfig,
        curriculum: CurriculumConfig,
    ) -> None:
        self.parts = (objects, meshes, synthesis, network, samples)
        self.batch = batch
        self.curriculum = curriculum
        self._maker: SampleMaker | None = None
        self._portions: dict[int, Batch] = {}
        """Drawn, and to be used again."""

    @property
    def maker(self) -> SampleMaker:
        """The sample maker of this process: a renderer can't be sent to another."""
        if self._maker is None:
            objects, meshes, synthesis, network, samples = self.parts
            photographer = Photographer(make_renderer(), Backgrounds(synthesis.backgrounds))
            self._maker = SampleMaker(objects, SceneSampler(meshes, synthesis), photographer, network, samples)
        return self._maker

    def __getitem__(self, index: int) -> Batch:
        """Draw batch ``index``."""
        needed = [index + use * self.batch.use_again_after for use in range(self.batch.uses)]
        self._portions = {i: portion for i, portion in self._portions.items() if i >= index}
        for i in needed:
            if i not in self._portions:
                self._portions[i] = self.portion(i)
        portions = [self._portions[i] for i in needed]
        return {
            part: {key: torch.cat([portion[part][key] for portion in portions]) for key in maps}
            for part, maps in portions[0].items()
        }

    def portion(self, index: int) -> Batch:
        """Draw what is new in a batch."""
        return self.draw(index, self.batch.windows // self.batch.uses, self.batch.crops // self.batch.uses)

    def draw(self, index: int, windows: int, crops: int) -> Batch:
        """Draw a batch of any size; negative indices are kept for validation."""
        hardest = self.curriculum.hardest(index / self.batches_per_step)
        seed = [self.batch.seed, abs(index), int(index < 0)]
        batch: Batch = {}
        if windows:
            batch["glance"] = draw_samples(self.maker.glance, windows, hardest, [*seed, 0])
        if crops:
            batch["gaze"] = draw_samples(self.maker.gaze, crops, hardest, [*seed, 1])
        return batch

    def validation(self) -> Batch:
        """Draw what is validated on."""
        return self.draw(
            -1,
            self.batch.validation_windows if self.batch.windows else 0,
            self.batch.validation_crops if self.batch.crops else 0,
        )


class SynthesisTask(ABC):
    """What tasks on synthesised batches have in common: the loader, and validation by their losses."""

    def __init__(self, model: nn.Module, batches: ValidatedBatches, num_workers: int) -> None:
        self.model = model
        self.batches = batches
        self.num_workers = num_workers
        self._validation: Batch | None = None

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms whose sum is minimised."""

    def loader(self, start_step: int, num_steps: int, rank: int, world_size: int) -> Iterable[Batch]:
        """Batches of steps start_step.. for one of several processes."""
        self.batches.batches_per_step = world_size
        return load_batches(self.batches, start_step, num_steps, rank, world_size, self.num_workers)

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Errors on fresh synthesised samples, the same every time; ``score`` is minus the loss."""
        if self._validation is None:
            self._validation = self.batches.validation()
        device = next(model.parameters()).device
        measured: dict[str, list[float]] = {}
        for chunk in _chunks(self._validation, 32):
            moved = {part: {key: value.to(device) for key, value in maps.items()} for part, maps in chunk.items()}
            for name, term in self.losses(model, moved).items():
                measured.setdefault(name, []).append(float(term))
        # Parts may have different numbers of chunks, so their terms are averaged before they are added.
        means = {name: float(np.mean(values)) for name, values in measured.items()}
        loss = sum(means.values())
        return {**means, "loss": loss, "score": -loss}


class GlanceGazeTask(SynthesisTask):
    """The task `training.loop.fit` trains: model, batches, losses and validation."""

    model: GlanceGaze
    batches: SynthesisBatches

    def __init__(
        self,
        objects: Sequence[ObjectModel],
        meshes: Sequence[Mesh],
        network: GlanceGazeConfig,
        synthesis: SynthesisConfig,
        samples: SampleConfig,
        batch: BatchConfig,
        curriculum: CurriculumConfig,
        lambdas: LambdaConfig,
        num_workers: int = 1,
    ) -> None:
        batches = SynthesisBatches(objects, meshes, synthesis, network, samples, batch, curriculum)
        super().__init__(GlanceGaze(network, len(objects)), batches, num_workers)
        self.objects = list(objects)
        self.network = network
        self.lambdas = lambdas
        self.freeze_batch_norm = False
        """Keep the norms' statistics as they are."""

    def metadata(self) -> dict:
        """What a checkpoint needs besides weights to predict."""
        return {"kind": "objects", "network": asdict(self.network), "objects": [o.to_json() for o in self.objects]}

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms whose sum is minimised."""
        if self.freeze_batch_norm:
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        glance_batch, gaze_batch = batch.get("glance"), batch.get("gaze")
        glance, gaze = model(
            None if glance_batch is None else glance_batch["image"].float() / 255,
            None if gaze_batch is None else gaze_batch["image"].float() / 255,
            None if gaze_batch is None else gaze_batch["object_index"],
        )
        terms: dict[str, Tensor] = {}
        if glance_batch is not None:
            terms |= {
                f"glance/{name}": term for name, term in glance_losses(glance, glance_batch, self.lambdas).items()
            }
        if gaze_batch is not None:
            terms |= {f"gaze/{name}": term for name, term in gaze_losses(gaze, gaze_batch, self.lambdas).items()}
        return terms


def _chunks(batch: Batch, size: int) -> Iterator[Batch]:
    for part, maps in batch.items():
        count = len(next(iter(maps.values())))
        for start in range(0, count, size):
            yield {part: {key: value[start : start + size] for key, value in maps.items()}}


def cell_centers_px(maps: Tensor) -> Tensor:
    """Centres of the cells of b×c×h×w maps in pixels of the network's input, 2×h×w."""
    height, width = maps.shape[-2:]
    return pixel_grid(height, width, STRIDE, maps.device).to(maps).movedim(-1, 0)


def gaze_losses(maps: dict[str, Tensor], batch: dict[str, Tensor], lambdas: LambdaConfig) -> dict[str, Tensor]:
    """Terms of the gaze. Masks count everywhere, the rest where the object is seen."""
    weight = batch["weight"]  # of each sample, b
    seen = batch["valid"][:, None] * weight[:, None, None, None]  # b×1×h×w
    visible, amodal = maps["visible_logits"][:, 0], maps["amodal_logits"][:, 0]
    mask = losses.bce(visible, batch["visible"]).mean((1, 2)) + 0.5 * losses.dice(visible, batch["visible"])
    mask = losses.masked_mean(mask + 0.5 * losses.bce(amodal, batch["amodal"]).mean((1, 2)), weight)

    cells = cell_centers_px(maps["visible_logits"])
    to_points = batch["points_px"][..., None, None] - cells  # b×(1+k)×2×h×w
    offsets = torch.cat([maps["center_offset"], maps["keypoint_offset"]], dim=1).unflatten(1, (-1, 2))
    errors = losses.distance(offsets, to_points, dim=2)  # b×(1+k)×h×w, pixels
    log_std = torch.cat([maps["center_log_std"], maps["keypoint_log_std"]], dim=1)
    errors_units = losses.l1(offsets, to_points).mean(2) / GAZE_UNIT_PX
    point_weight = seen.expand_as(errors)

    coordinate_error = losses.distance(maps["xyz"], batch["xyz"], dim=1, keepdim=True)
    uncertainty = losses.masked_mean(losses.laplace_nll(errors.detach(), log_std), point_weight)
    uncertainty = uncertainty + losses.masked_mean(
        losses.laplace_nll(coordinate_error.detach(), maps["xyz_log_std"]), seen
    )
    depth = losses.masked_mean(losses.l1(maps["log_depth"], batch["log_depth"][:, None]), seen)
    true_center_depth = batch["center_log_depth"].view(-1, 1, 1, 1).expand_as(maps["center_log_depth"])
    center_depth = losses.l1(maps["center_log_depth"], true_center_depth)
    depth = depth + losses.masked_mean(center_depth, seen)
    return {
        "masks": lambdas.masks * mask,
        "depth": lambdas.depth * depth,
        "center": lambdas.center * losses.masked_mean(errors_units[:, :1], point_weight[:, :1]),
        "keypoints": lambdas.keypoints * losses.masked_mean(errors_units[:, 1:], point_weight[:, 1:]),
        "coordinates": lambdas.coordinates * losses.masked_mean(coordinate_error, seen),
        "uncertainty": lambdas.uncertainty * uncertainty,
    }


def glance_losses(maps: dict[str, Tensor], batch: dict[str, Tensor], lambdas: LambdaConfig) -> dict[str, Tensor]:
    """Terms of the glance. Classes count everywhere, the rest where an object is seen."""
    weight = batch["weight"][:, None]  # of each cell, b×1×h×w
    seen = batch["valid"][:, None] * weight
    log_prob = maps["class_logits"].log_softmax(1)
    nll = -log_prob.gather(1, batch["class_map"][:, None])
    # Most cells are easy background: the focal factor leaves the gradient to the others (Lin et al., ICCV 2017).
    focal = (1 - torch.exp(-nll)).square() * nll
    # Averaging background and objects separately keeps small objects from drowning.
    segmentation = losses.masked_mean(focal, seen) + losses.masked_mean(focal, weight - seen)

    cells = cell_centers_px(log_prob)
    to_center = batch["center_px"] - cells
    errors = losses.distance(maps["center_offset"], to_center, dim=1, keepdim=True)
    center = losses.masked_mean(errors / GLANCE_UNIT_PX, seen)
    depth = losses.masked_mean(losses.l1(maps["log_depth"], batch["log_depth"][:, None]), seen)
    depth = depth + losses.masked_mean(losses.l1(maps["center_log_depth"], batch["center_log_depth"][:, None]), seen)
    uncertainty = losses.masked_mean(losses.laplace_nll(errors.detach(), maps["center_log_std"]), seen)
    return {
        "segmentation": lambdas.segmentation * segmentation,
        "depth": lambdas.depth * depth,
        "center": lambdas.center * center,
        "uncertainty": lambdas.uncertainty * uncertainty,
    }
