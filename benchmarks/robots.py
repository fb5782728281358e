"""The published table of the robots track at one budget: every row, over replicas, in the same place and in others.

    glimpose simulate configs/robots/place-a.toml --out a.h5      --num 6000 --seed 11
    glimpose simulate configs/robots/place-a.toml --out a-test.h5 --num 600  --seed 12
    glimpose simulate configs/robots/place-b.toml --out b-test.h5 --num 600  --seed 13
    python benchmarks/robots.py a.h5 --test same=a-test.h5 --test other=b-test.h5 --out robots --steps 6000

Trains each row's config with as many steps, calibrates what tells no metres by itself on frames of the recording whose
distances are taken as known, predicts, evaluates, and writes OUT/tables/TEST. When started again, goes on where it
stopped. Replicas differ in training.seed. The row of CLIP needs --clip FOLDER.
"""

import argparse
import math
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from commands import run

from glimpose.data.files import write_image
from glimpose.data.led_h5 import open_recording
from glimpose.robots.labels import lone_robot

CONFIGS = Path("configs/robots")
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mean": ("mean", ()),
    "latent-pose": ("latent-pose", ()),
    "weighted-bce": ("weighted-bce", ()),
    "led-p-10": ("led-p", ("pretext.labelled_share=0.1",)),
    "led-p-100": ("led-p", ("pretext.labelled_share=1.0",)),
    "ae-p": ("ae-p", ()),
    "ednn": ("ednn", ()),
    "upper-bound": ("upper-bound", ()),
    "clip-head": ("clip-head", ()),
}
"""Config and overrides of each."""
CALIBRATED = ("latent-pose", "weighted-bce")
"""What tells ranges, but no metres."""


def main() -> None:
    """Train all replicas of all rows, and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--test", action="append", required=True, metavar="NAME=RECORDING", help="once or more")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000, help="of each training (default: %(default)s)")
    parser.add_argument("--seed", type=int, action="append", help="of a replica; once or more (default: 0, 1 and 2)")
    parser.add_argument("--pictures", type=int, default=24, help="to calibrate on (default: %(default)s)")
    parser.add_argument("--row", action="append", choices=ROWS, help="once or more; all where left out")
    parser.add_argument("--clip", type=Path, help="folder of the encoder")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_intermixed_args()
    tests = {name: Path(path) for name, _, path in (entry.partition("=") for entry in args.test)}
    rows = args.row or [row for row in ROWS if args.clip or row != "clip-head"]

    pictures, distances_m = calibration_pictures(args.recording, args.out / "calibration", args.pictures)
    for seed in args.seed or (0, 1, 2):
        for row in rows:
            folder = args.out / "runs" / row / str(seed)
            scores = {name: args.out / "scores" / name / row / str(seed) for name in tests}
            if all((score / "summary.json").exists() for score in scores.values()):
                continue
            checkpoint = train(args, row, seed, folder)
            if row in CALIBRATED:
                told = [f"{distance_m:.3f}" for distance_m in distances_m]
                seen_by = ("--camera", args.recording, "--frames", args.recording)
                run("calibrate", checkpoint, *pictures, "--distance", *told, *seen_by)
            for name, recording in tests.items():
                poses = scores[name].with_suffix(".csv")
                run("predict", checkpoint, recording, "--out", poses)
                run("evaluate", poses, "--recording", recording, "--out", scores[name])
    for name in tests:
        run("table", args.out / "scores" / name, "--out", args.out / "tables" / name)


def train(args: argparse.Namespace, row: str, seed: int, folder: Path) -> Path:
    """Train one replica, an autoencoder before what starts from it; returns its best checkpoint."""
    name, overrides = ROWS[row]
    config = CONFIGS / f"{name}.toml"
    chosen = [*overrides, f"data.recording={args.recording}", f"training.seed={seed}", *schedule(config, args.steps)]
    if row == "clip-head":
        chosen.append(f"pretext.folder={args.clip}")
    if row == "ae-p":
        first = folder / "reconstruct"
        fit(config, first, *chosen, *args.overrides)
        chosen += ["pretext.mode=place", f"training.init_from={first / 'best.safetensors'}"]
        folder = folder / "place"
    fit(config, folder, *chosen, *args.overrides)
    return folder / "best.safetensors"


def fit(config: Path, folder: Path, *overrides: str) -> None:
    """Train, or go on with it."""
    resume = ["--resume"] if (folder / "last.safetensors").exists() else []
    run("train", config, "--out", folder, *resume, *overrides)


def schedule(config: Path, steps: int) -> list[str]:
    """Overrides that stretch a config's schedule to so many steps, if it trains at all."""
    told = tomllib.loads(config.read_text(encoding="utf-8"))
    planned, start = told["training"]["steps"], told["batch"].get("start_steps", 0)
    if planned == 1:
        return []
    return [f"training.steps={steps}", f"batch.start_steps={math.ceil(start * steps / planned)}"]


def calibration_pictures(recording: Path, folder: Path, num: int) -> tuple[Sequence[Path], Sequence[float]]:
    """Write frames that show one robot, from the nearest to the farthest in equal ratios; with their distances."""
    opened = open_recording(recording)
    known: dict[int, float] = {}
    for i in range(len(opened)):
        robot = lone_robot(opened.robots(i))
        if robot is not None and robot.distance_m is not None:
            known[i] = robot.distance_m
    frames, distances_m = np.array(list(known)), np.array(list(known.values()))
    wanted_m = np.geomspace(*np.percentile(distances_m, (2, 98)), num)
    chosen = np.unique(np.abs(distances_m - wanted_m[:, None]).argmin(1))
    paths = [folder / f"{frames[k]:06d}.png" for k in chosen]
    folder.mkdir(parents=True, exist_ok=True)
    for path, k in zip(paths, chosen, strict=True):
        write_image(path, opened.image(int(frames[k])))
    return paths, [float(distances_m[k]) for k in chosen]


if __name__ == "__main__":
    main()
