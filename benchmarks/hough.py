"""Time of Hough voting on maps of the size that the glance and the gaze give: `python benchmarks/hough.py`."""

import time
from collections.abc import Callable

import torch

from glimpose.decode.hough import aggregate_votes, find_centers


def median_ms(call: Callable[[], object], device: torch.device, repeats: int = 30) -> float:
    """Median wall time of a call, after three that don't count."""
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * sorted(times[3:])[repeats // 2]


@torch.inference_mode()
def main() -> None:
    """Write a table of milliseconds, one row per device."""
    generator = torch.Generator().manual_seed(0)
    keypoints = (
        20 * torch.randn(8, 32 * 32, 9, 2, generator=generator),
        1 + torch.rand(8, 32 * 32, 9, generator=generator),
        torch.rand(8, 32 * 32, generator=generator),
    )
    glance = (
        30 * torch.randn(1, 2, 60, 80, generator=generator),
        torch.randn(1, 60, 80, generator=generator),
        1 + torch.rand(1, 60, 80, generator=generator),
        (3 * torch.randn(1, 8, 60, 80, generator=generator)).softmax(1),
    )
    print("| device | keypoints: 8 crops, 32×32 cells, 9 points | centres: 60×80 cells, 8 classes |")
    print("|---|---|---|")
    for device in [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available():
        name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        votes, maps = [tensor.to(device) for tensor in keypoints], [tensor.to(device) for tensor in glance]
        times = [
            median_ms(lambda v=votes: aggregate_votes(*v), device),
            median_ms(lambda m=maps: find_centers(*m, stride=4), device),
        ]
        print(f"| {name} | {times[0]:.1f} ms | {times[1]:.1f} ms |")


if __name__ == "__main__":
    main()
