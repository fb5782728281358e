"""Where a photograph's time goes: each stage's milliseconds, FLOPs, and share of what the machine can do.

    python benchmarks/predict.py CHECKPOINT PHOTOGRAPH [CAMERA.json] [--models MODELS] [--objects 8] [--threads 2]

Prints a Markdown table. The limit is measured in the same run: a large float32 matrix product on as many threads.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from glimpose import EstimatorConfig, PoseEstimator, read_camera, read_image
from glimpose.objects.crops import glance_matrix
from glimpose.objects.looks import Detection
from glimpose.objects.predict import load_meshes
from glimpose.objects.search import PoseSearch, SearchConfig
from glimpose.robots.estimator import RobotEstimator
from glimpose.training.checkpoint import load_checkpoint


def median_ms(run: Callable[[], object], repeats: int = 15) -> float:
    """Median wall time after a warm-up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def gflop(run: Callable[[], object]) -> float:
    """Floating-point operations of the networks' convolutions and matrix products: 2 × multiply-adds."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


Stages = dict[str, tuple[Callable[[], object], bool]]
"""What to run, and whether it is a network alone."""


def object_stages(args: argparse.Namespace) -> Stages:
    """Glance and gaze, each with and without what prepares and decodes."""
    estimator = PoseEstimator.from_checkpoint(args.checkpoint, EstimatorConfig(looks=1))
    model = estimator.model
    image, K = read_image(args.photograph), read_camera(args.camera).K
    height, width = image.shape[:2]
    _, rows, columns = glance_matrix(height, width, model.config.glance_scale)
    photograph = torch.rand(1, 3, rows, columns).contiguous(memory_format=torch.channels_last)
    crops = torch.rand(args.objects, 3, model.config.crop_px, model.config.crop_px)
    crops = crops.contiguous(memory_format=torch.channels_last)
    index = torch.arange(args.objects) % len(estimator.objects)
    # Where the objects are doesn't matter for the time; that there are so many does.
    places = np.random.default_rng(0).uniform([80, 80], [width - 80, height - 80], (args.objects, 2))
    detections = [Detection(int(i), place, 0.9, 1.0) for i, place in zip(index, places, strict=True)]
    stages: Stages = {
        "glance, network": (lambda: model.glance_maps(photograph), True),
        "glance, all": (lambda: estimator.sight.glance(image, K), False),
        f"gaze, network, {args.objects} crops": (lambda: model.gaze_maps(crops, index), True),
        f"gaze, all, {args.objects} crops": (lambda: estimator.sight.gaze(image, K, detections), False),
    }
    ways: list[tuple[str, SearchConfig | None]] = [("PnP", None)]
    if args.models:
        meshes = load_meshes(estimator, args.models)
        ways += [("--refine", SearchConfig(num_views=0)), ("--search", SearchConfig())]
    for name, drawn in ways:
        whole = PoseEstimator.from_checkpoint(args.checkpoint, EstimatorConfig(instances_per_object=1))
        if drawn is not None:
            whole.search = PoseSearch(estimator.objects, meshes, model.config, drawn)
        stages[f"photograph, {name}"] = (partial(whole, image, K), False)
    return stages


def robot_stages(args: argparse.Namespace) -> Stages:
    """The network, and all from a photograph to the robots' poses."""
    estimator = RobotEstimator.from_checkpoint(args.checkpoint)
    estimator.network.requires_grad_(False)  # or counting FLOPs looks for gradients where there are none
    image = read_image(args.photograph)
    scale = estimator.model.network.input_scale
    rows, columns = round(image.shape[0] * scale), round(image.shape[1] * scale)
    small = torch.rand(1, 3, rows, columns).contiguous(memory_format=torch.channels_last)
    return {
        "network": (lambda: estimator.network(small), True),
        "all": (lambda: estimator(image, None), False),
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="of objects or of robots")
    parser.add_argument("photograph", type=Path)
    parser.add_argument("camera", type=Path, nargs="?", help="objects: BOP's camera.json")
    parser.add_argument("--models", type=Path, help="objects: folder of CAD models, to draw")
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    is_robot = load_checkpoint(args.checkpoint).metadata.get("kind") == "robots"
    if not is_robot and args.camera is None:
        parser.error("objects need CAMERA")

    matrix = torch.rand(2048, 2048)
    with torch.inference_mode():
        limit = 2 * 2048**3 / 1e6 / median_ms(lambda: matrix @ matrix)
        stages = robot_stages(args) if is_robot else object_stages(args)
        print(f"machine's limit: {limit:.0f} GFLOP/s in float32 on {args.threads} threads\n")
        print("| stage | ms | GFLOP | share of the limit |\n|---|---|---|---|")
        for name, (run, is_network) in stages.items():
            ms = median_ms(run)
            work = gflop(run) if is_network else None
            share = "" if work is None else f"{100 * work / (limit * ms / 1e3):.0f} %"
            print(f"| {name} | {ms:.1f} | {'' if work is None else format(work, '.2f')} | {share} |")


if __name__ == "__main__":
    main()
