import json
import math
from pathlib import Path

import pytest

from glimpose.training.journal import Journal, Meter, finite, told


def test_entries_after_the_step_resumed_from_and_torn_ones_are_dropped(tmp_path: Path) -> None:
    with Journal(tmp_path, step=0, enabled=True) as journal:
        for step in range(1, 6):
            journal.write(step, "train", {"loss": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "sta')
    with Journal(tmp_path, step=3, enabled=True) as journal:
        journal.write(4, "val", {"score": math.nan})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1] == {"step": 4, "stage": "val", "score": None}


def test_journal_of_another_process_writes_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path, step=0, enabled=False) as journal:
        journal.write(1, "train", {"loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_meter_gives_means_rate_and_share_of_waiting() -> None:
    meter = Meter()
    meter.add({"loss": 1.0}, wait_s=0.1, total_s=0.5)
    meter.add({"loss": 3.0}, wait_s=0.3, total_s=0.5)
    assert meter.means() == pytest.approx({"loss": 2.0, "steps_per_s": 2.0, "data_wait": 0.4})


def test_numbers_json_cannot_hold_become_none() -> None:
    assert finite({"a": math.inf, "b": 1, "c": "x", "d": math.nan, "e": 0.5}) == {
        "a": None,
        "b": 1,
        "c": "x",
        "d": None,
        "e": 0.5,
    }


def test_measurements_are_told_in_one_line() -> None:
    assert told({"loss": 0.123456, "score": 1.0}) == "loss 0.123 score 1"
