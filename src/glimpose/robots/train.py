"""From a recording of robots to a trained checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from glimpose.config import load
from glimpose.data.led_h5 import open_recording
from glimpose.nets.led_fcn import LedFcnConfig
from glimpose.robots.augment import AugmentConfig
from glimpose.robots.baselines import AnyPretext, MeanPredictor
from glimpose.robots.estimator import RobotModel
from glimpose.robots.leds import LedRobot, load_leds
from glimpose.robots.pretexts import LatentPose
from glimpose.robots.task import BatchConfig, RobotsTask
from glimpose.training.loop import TrainingConfig, fit


@dataclass(frozen=True)
class RobotDataConfig:
    """What is learned from."""

    recording: Path = Path("recording.h5")
    """In one of the layouts of `data.led_h5`."""
    validation: Path | None = None
    """Another recording to measure on; the end of the first when not given."""
    robot: Path = Path("robomaster")
    """A robot that comes with glimpose, or a file of its LEDs beside the experiment's own."""
    subsets: tuple[str, ...] | None = None
    """Of an LP recording."""


@dataclass(frozen=True)
class RobotsConfig:
    """One experiment of the robots track."""

    track: Literal["robots"] = "robots"
    """Says in a file which track it belongs to."""
    data: RobotDataConfig = field(default_factory=RobotDataConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(learning_rate=2e-3, warmup_steps=100))
    batch: BatchConfig = field(default_factory=BatchConfig)
    network: LedFcnConfig = field(default_factory=LedFcnConfig)
    pretext: AnyPretext = field(default_factory=LatentPose)
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> tuple[RobotsConfig, LedRobot]:
    """Read an experiment's TOML file, and that of the robot which it names."""
    config = load(RobotsConfig, path, overrides)
    return config, load_leds(config.data.robot, beside=path.parent)


def build_task(config: RobotsConfig, robot: LedRobot) -> RobotsTask:
    """Assemble the task."""
    data = config.data
    recording, validation = (
        open_recording(path, led_names=robot.led_names, subsets=data.subsets) if path else None
        for path in (data.recording, data.validation)
    )
    assert recording is not None
    task = RobotsTask(
        RobotModel(robot, config.network, config.pretext),
        recording,
        validation,
        config.augmentation,
        config.batch,
        config.training.seed,
        config.training.num_workers,
    )
    if isinstance(config.pretext, MeanPredictor):
        scale = config.network.input_scale
        height, width = round(recording.height * scale), round(recording.width * scale)
        config.pretext.set_means(task.model, task.batches.labels(), height, width)
    return task


def train(config: RobotsConfig, robot: LedRobot, run_dir: Path, resume: bool = False) -> Path:
    """Train on a recording; returns the best checkpoint."""
    return fit(build_task(config, robot), config.training, run_dir, resume=resume)
