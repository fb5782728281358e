"""The whole way on one page: record robots in a simulated room, learn from their LEDs, find them, keep the score."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glimpose.data.files import write_image
from glimpose.data.led_h5 import Recording, open_recording
from glimpose.nets.led_fcn import LedFcnConfig
from glimpose.robots.augment import AugmentConfig
from glimpose.robots.calibrate import calibrate
from glimpose.robots.drive import DriveConfig
from glimpose.robots.estimator import RobotEstimator
from glimpose.robots.evaluate import evaluate
from glimpose.robots.labels import lone_robot
from glimpose.robots.leds import load_leds
from glimpose.robots.place import PlaceConfig
from glimpose.robots.predict import Views, draw, predict
from glimpose.robots.simulate import SimulationConfig, simulate
from glimpose.robots.task import BatchConfig
from glimpose.robots.train import RobotDataConfig, RobotsConfig, train
from glimpose.training.loop import TrainingConfig
from glimpose.viz.report import Page

STEPS_PER_MINUTE = 150
"""What two cores manage. Slower ones take longer, and learn as much."""
NUM_SHOWN = 8
CALIBRATION_M = 1.0
"""Calibrated is on the frame whose robot is nearest to this distance."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo leaves behind."""

    page: Path
    checkpoint: Path
    summary: dict[str, Any]
    """The scores, as `evaluate` gives them."""


def run_demo(
    out: Path, robot_file: Path, minutes: float = 5.0, seed: int = 0, num_frames: int = 2000, num_test: int = 200
) -> DemoResult:
    """Simulate, train for about so many minutes on two cores, calibrate, evaluate, and write out/index.html."""
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty; remove it, or write the demo to another folder")
    robot = load_leds(robot_file)

    # Record: the room stays the same, and what stands and drives in it changes.
    recorded, test = out / "recording.h5", out / "test.h5"
    simulate(simple_room(), robot, recorded, num_frames, seed=seed, num_workers=2)
    simulate(simple_room(), robot, test, num_test, seed=seed + 1, num_workers=2)

    # Learn from which LEDs are on, then tell the scale with one picture.
    config = demo_config(recorded, steps=max(1, round(minutes * STEPS_PER_MINUTE)), seed=seed)
    checkpoint = train(config, robot, out / "run")
    picture, distance_m = calibration_picture(
        open_recording(recorded, led_names=robot.led_names), out / "calibration.png"
    )
    calibrate(checkpoint, [picture], [distance_m], recorded, min_presence=0.0)

    # Find the robots of a recording that training never saw, and compare with the truth.
    estimator = RobotEstimator.from_checkpoint(checkpoint)
    views = Views([test], None)
    predict(estimator, views, out / "poses.csv")
    summary = evaluate(out / "poses.csv", test, robot_file, out / "evaluation")
    return DemoResult(write_page(out, config, estimator, views, summary), checkpoint, summary)


def simple_room() -> SimulationConfig:
    """A small room with little in it, and robots that stay near and switch often: much to learn from few frames."""
    return SimulationConfig(
        place=PlaceConfig(
            seed=3,
            room_m=(4.4, 4.2, 2.6),
            arena_m=(2.6, 2.4),
            num_furniture=6,
            clutter=(0, 3),
            obstacles=(0, 0),
            distractors=(0, 1),
            exposure=(0.5, 0.7),
        ),
        drive=DriveConfig(frames_per_drive=20, gaze_deg=18.0, look_away_probability=0.1, led_dwell_s=(0.2, 0.5)),
        supersampling=1.0,
    )


def demo_config(recording: Path, steps: int, seed: int) -> RobotsConfig:
    """A quarter of the resolution, and a short schedule."""
    return RobotsConfig(
        data=RobotDataConfig(recording=recording),
        training=TrainingConfig(
            steps=steps,
            seed=seed,
            learning_rate=5e-3,
            warmup_steps=min(20, steps),
            ema_decay=0.98,
            validate_every=max(1, steps // 5),
            checkpoint_every=steps,
            log_every=10,
            accelerator="cpu",
            precision="32-true",  # few processors are fast in bf16
            num_workers=1,
        ),
        batch=BatchConfig(frames=32, views=8, start_steps=steps // 3),
        # One room under one light: neither is there anything to even out, nor another floor to expect.
        network=LedFcnConfig(input_scale=0.25, num_scales=3, clip_limit=0.0),
        augmentation=AugmentConfig(tone_prob=0.0),
    )


def calibration_picture(recording: Recording, path: Path) -> tuple[Path, float]:
    """Write the frame whose robot is nearest to `CALIBRATION_M` and in its middle, and return the true distance."""

    def unsuitable(index: int) -> float:
        robot = lone_robot(recording.robots(index))
        if robot is None or robot.distance_m is None or robot.uv_px is None:
            return np.inf
        off_middle = abs(robot.uv_px[0] / recording.width - 0.5)
        return abs(robot.distance_m - CALIBRATION_M) + off_middle

    best = min(range(len(recording)), key=unsuitable)
    write_image(path, recording.image(best))
    chosen = lone_robot(recording.robots(best))
    assert chosen is not None
    assert chosen.distance_m is not None
    return path, chosen.distance_m


def write_page(
    out: Path, config: RobotsConfig, estimator: RobotEstimator, views: Views, summary: dict[str, Any]
) -> Path:
    """Tell what was done and found."""
    page = Page("glimpose: poses of robots, learned from their LEDs")
    page.text(
        "Two robots drove about in a simulated room, switching their LEDs at random and telling each other which were "
        f"on. From that alone a network of {sum(p.numel() for p in estimator.network.parameters()):,} parameters "
        f"learned, in {config.training.steps:,} steps, where the other robot is and from which side it's seen. One "
        "picture with the robot at a known distance told the scale.",
        f"In {summary['num_frames']} pictures of new drives, {summary['n']} robots could be seen.",
    )
    names = {
        "E_uv_px": "in the image, px",
        "E_psi_deg": "bearing, °",
        "E_d_percent": "distance, %",
        "E_xyz_m": "position, m",
        "gamma_1m_45deg": "within 1 m and 45°",
        "led_auc": "LED AUC",
        "presence_auc": "presence AUC",
    }
    page.table([{name: summary[key] for key, name in names.items()}], "Medians of errors; shares from 0 to 1.")
    page.heading("Predictions")
    chosen = np.linspace(0, len(views) - 1, min(NUM_SHOWN, len(views))).astype(int)
    shown = [views[int(index)] for index in chosen]
    pictures = [draw(view, estimator(view.image, view.camera), estimator) for view in shown]
    caption = "Box and axes of what was found: x red, forward; y green, left; z blue, up."
    page.gallery(pictures, columns=2, caption=caption)
    page.heading("Training")
    rows = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    series = {
        name: (
            [row["step"] for row in rows if row["stage"] == stage],
            [row["led"] for row in rows if row["stage"] == stage],
        )
        for name, stage in (("training", "train"), ("held out", "val"))
    }
    chance = len(estimator.model.robot.leds) * np.log(2)
    page.curve(series, "step", "nats", f"Surprise about the LEDs; who knows nothing has {chance:.2f}.")
    return page.write(out / "index.html")
