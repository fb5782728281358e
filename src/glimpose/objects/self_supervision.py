"""What adapting to photographs is told, and what it finds out on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from glimpose.objects.agreement import Confidence
from glimpose.objects.estimator import PoseEstimator
from glimpose.objects.photographs import Photograph
from glimpose.objects.pseudo_labels import FilterConfig
from glimpose.objects.real_samples import DistortionConfig
from glimpose.objects.search import SearchConfig
from glimpose.training.loop import TrainingConfig


@dataclass(frozen=True)
class SelfSupervisionConfig:
    """How a model adapts to photographs; what is synthesised beside them is as in training."""

    photographs: Path = Path("photographs")
    """An image, a folder of them, or a BOP split, whose depth images, where it has any, have a say in what is right."""
    camera: Path = Path("camera.json")
    """BOP's camera.json, or a scene_camera.json."""
    rounds: int = 3
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            steps=400, learning_rate=5e-4, warmup_steps=50, ema_decay=0.99, validate_every=200, checkpoint_every=100
        )
    )
    """Of each round."""
    crops: int = 16
    """Of photographs, beside the synthesised ones of [batch]."""
    windows: int = 8
    search: SearchConfig = field(default_factory=SearchConfig)
    """By which the teacher finds poses."""
    filter: FilterConfig = field(default_factory=FilterConfig)
    distortion: DistortionConfig = field(default_factory=DistortionConfig)
    freeze_batch_norm: bool = True
    """Keep the norms' statistics as they are."""
    instances_per_object: int | None = 1
    """Most instances of one object in a photograph."""
    static_scene: bool = False
    """Objects keep their places while the camera moves, for some photographs in a row at least: then those poses are
    believed that photographs agree on, whatever ``filter`` says; far more than looking at each alone would give."""
    sightings_per_object: int = 4
    """Poses of one object in a photograph among which that agreement is looked for."""
    held_out_share: float = 0.1
    """Of the photographs, not learned from: their poses' agreement tells whether a round helped."""
    calibration_photographs: int = 60
    """Synthesised ones, on which agreement is weighed against the truth."""
    min_labels: float = 10.0
    """Expected number of right poses below which there is nothing to learn from."""
    tolerated_loss: float = 0.02
    """How much lower than before mean agreement may be without a round being undone."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.crops + self.windows < 1:
            raise ValueError("expected at least one round, and crops or windows of photographs to learn from")
        if not 0 < self.held_out_share <= 0.5:
            raise ValueError(f"held_out_share: got {self.held_out_share}, expected above 0 and at most 0.5")


@dataclass(frozen=True)
class Assessment:
    """How well a model's poses agree with photographs, which takes no labels."""

    agreement: float
    """Mean probability of being right: of each object's best pose in each photograph, 0 where there is none."""
    per_object: dict[int, float]
    """The same by object id."""

    @classmethod
    def of(cls, estimator: PoseEstimator, photographs: Sequence[Photograph], confidence: Confidence) -> "Assessment":
        """Estimate poses and see how well they agree."""
        best = np.zeros((len(photographs), len(estimator.objects)))
        for row, photograph in zip(best, photographs, strict=True):
            for pose in estimator(photograph.image, photograph.K):
                assert pose.agreement is not None
                i = pose.look.detection.object_index
                row[i] = max(row[i], confidence(pose.agreement))
        means = best.mean(0)
        return cls(
            float(best.mean()),
            {model.obj_id: float(mean) for model, mean in zip(estimator.objects, means, strict=True)},
        )


@dataclass(frozen=True)
class Round:
    """What one round did."""

    number: int
    accepted: dict[int, float]
    """By object id: share of photographs with a label of at least the filter's threshold."""
    probability: dict[int, float]
    """By object id: mean probability of its labels' being right."""
    before: Assessment
    after: Assessment
    is_kept: bool
