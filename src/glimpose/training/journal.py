"""What a training run writes down: metrics.jsonl and TensorBoard events."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """metrics.jsonl and TensorBoard, on the first process only; entries after the step resumed from are dropped."""

    def __init__(self, run_dir: Path, step: int, enabled: bool) -> None:
        self.enabled = enabled
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = run_dir / "metrics.jsonl"
        kept = _rows_until(path, step) if path.exists() else []
        path.write_text("".join(f"{row}\n" for row in kept))
        self.file = path.open("a")
        self.writer = SummaryWriter(str(run_dir / "tb"), purge_step=step + 1)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        if self.enabled:
            self.file.close()
            self.writer.close()

    def write(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Append one entry; `stage` says what was measured, "train" or "val"."""
        if self.enabled:
            self.file.write(json.dumps({"step": step, "stage": stage, **finite(values)}) + "\n")
            self.file.flush()
            for name, value in values.items():
                self.writer.add_scalar(f"{stage}/{name}", value, step)


def _rows_until(path: Path, step: int) -> list[str]:
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # cut short by a crash
            continue
        if row["step"] <= step:
            kept.append(line)
    return kept


class Meter:
    """Means of what the last steps measured, and where the time went."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.num = 0
        self.wait_s = 0.0
        self.total_s = 0.0

    def add(self, values: Mapping[str, float], wait_s: float, total_s: float) -> None:
        """Count one step that took total_s, of which it waited wait_s for its batch."""
        for name, value in values.items():
            self.sums[name] += value
        self.num += 1
        self.wait_s += wait_s
        self.total_s += total_s

    def means(self) -> dict[str, float]:
        """Give the means, the steps per second and the share of time spent waiting for data."""
        means = {name: total / self.num for name, total in self.sums.items()}
        return {**means, "steps_per_s": self.num / self.total_s, "data_wait": self.wait_s / self.total_s}


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace numbers that JSON can't hold by None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def told(values: Mapping[str, float]) -> str:
    """Say measurements in one line."""
    return " ".join(f"{name} {value:.3g}" for name, value in values.items())
