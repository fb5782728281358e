import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from glimpose.training.checkpoint import load_checkpoint, save_tensors
from glimpose.training.loader import load_batches
from glimpose.training.loop import FINAL_LEARNING_RATE, TrainingConfig, TrainingInterrupted, fit, learning_rate

CONFIG = TrainingConfig(
    steps=12,
    learning_rate=0.01,
    warmup_steps=3,
    ema_decay=0.5,
    validate_every=4,
    checkpoint_every=4,
    log_every=2,
    accelerator="cpu",
    precision="32-true",
)

LONG = 10**6
"""Steps that a test won't wait for."""


class MeanTask:
    """Learns the mean over channels; dropout and batch norm make resuming harder."""

    batch_size = 4

    def __init__(self, norm: bool = True) -> None:
        generator_state = torch.get_rng_state()
        torch.manual_seed(0)
        between = [nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1)] if norm else [nn.ReLU()]
        self.model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *between, nn.Conv2d(8, 1, 1))
        torch.set_rng_state(generator_state)
        self.seen_steps: list[int] = []
        self.scores: list[float] = []

    def loader(self, start_step: int, num_steps: int, rank: int, world_size: int) -> Iterator[dict[str, Tensor]]:
        for step in range(start_step, start_step + num_steps):
            self.seen_steps.append(step)
            image = torch.rand(self.batch_size, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            image = image[rank::world_size]
            yield {"image": image, "mean": image.mean(dim=1, keepdim=True)}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        error = model(batch["image"]) - batch["mean"]
        return {"square": error.square().mean(), "absolute": 0.1 * error.abs().mean()}

    def validate(self, model: nn.Module) -> dict[str, float]:
        batch = next(MeanTask(norm=False).loader(1000, 1, 0, 1))
        error = (model(batch["image"]) - batch["mean"]).abs().mean().item()
        return {"score": self.scores.pop(0) if self.scores else -error, "error": error}

    def metadata(self) -> dict:
        return {"objects": ["mean"]}


def rows(run_dir: Path, stage: str) -> list[dict]:
    parsed = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in parsed if row["stage"] == stage]


def assert_same_tensors(a: Path, b: Path) -> None:
    ours, theirs = load_checkpoint(a).tensors, load_checkpoint(b).tensors
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_loss_decreases_and_the_run_leaves_its_files(tmp_path: Path) -> None:
    best = fit(MeanTask(), replace(CONFIG, steps=150, validate_every=50, checkpoint_every=50), tmp_path / "run")
    run_dir = tmp_path / "run"
    assert best == run_dir / "best.safetensors"
    losses = [row["loss"] for row in rows(run_dir, "train")]
    assert losses[-1] < 0.2 * losses[0]
    assert rows(run_dir, "train")[-1].keys() >= {"square", "absolute", "gradient_norm", "steps_per_s", "data_wait"}
    assert [row["step"] for row in rows(run_dir, "val")] == [50, 100, 150]
    assert json.loads((run_dir / "config.json").read_text())["training"]["steps"] == 150
    assert list((run_dir / "tb").glob("events.*"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    fit(MeanTask(), CONFIG, run_dir)
    return run_dir


def test_checkpoints_hold_averaged_weights_and_metadata(uninterrupted: Path) -> None:
    best, last = (load_checkpoint(uninterrupted / name) for name in ("best.safetensors", "last.safetensors"))
    for checkpoint in (best, last):
        model = MeanTask().model
        model.load_state_dict(checkpoint.group("model"))
        assert checkpoint.metadata["objects"] == ["mean"]
    assert {key.partition(".")[0] for key in best.tensors} == {"model"}
    assert not torch.equal(last.group("model")["0.weight"], last.group("trained")["0.weight"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_resuming_gives_identical_weights(
    uninterrupted: Path, tmp_path: Path, number: signal.Signals
) -> None:
    class SignalledTask(MeanTask):
        def loader(self, *args: int) -> Iterator[dict[str, Tensor]]:
            for i, batch in enumerate(super().loader(*args)):
                if i == 7:
                    signal.raise_signal(number)
                yield batch

    handler = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted, match=rf"{number.name} after step 7 of 12.*--resume"):
        fit(SignalledTask(), CONFIG, tmp_path)
    assert signal.getsignal(number) == handler
    assert load_checkpoint(tmp_path / "last.safetensors").metadata["step"] == 7

    task = MeanTask()
    fit(task, CONFIG, tmp_path, resume=True)
    assert task.seen_steps == [7, 8, 9, 10, 11]
    for name in ("last.safetensors", "best.safetensors"):
        assert_same_tensors(tmp_path / name, uninterrupted / name)


def test_resuming_after_a_crash_rewrites_the_later_entries(uninterrupted: Path, tmp_path: Path) -> None:
    class CrashingTask(MeanTask):
        def validate(self, model: nn.Module) -> dict[str, float]:
            if self.seen_steps[-1] > 5:
                raise OSError("disk on fire")
            return super().validate(model)

    with pytest.raises(OSError, match="disk on fire"):
        fit(CrashingTask(), CONFIG, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "sta')
    fit(MeanTask(), CONFIG, tmp_path, resume=True)
    assert [row["step"] for row in rows(tmp_path, "train")] == [2, 4, 6, 8, 10, 12]
    assert [row["loss"] for row in rows(tmp_path, "train")] == [row["loss"] for row in rows(uninterrupted, "train")]
    assert_same_tensors(tmp_path / "last.safetensors", uninterrupted / "last.safetensors")


def test_steps_may_change_on_resume(tmp_path: Path) -> None:
    fit(MeanTask(), CONFIG, tmp_path)
    fit(MeanTask(), replace(CONFIG, steps=16), tmp_path, resume=True)
    assert load_checkpoint(tmp_path / "last.safetensors").metadata["step"] == 16
    task = MeanTask()
    assert fit(task, replace(CONFIG, steps=8), tmp_path, resume=True).is_file()
    assert task.seen_steps == []


def test_best_is_chosen_by_validation(tmp_path: Path) -> None:
    task = MeanTask()
    task.scores = [math.nan, 0.7, 0.3]
    best = fit(task, CONFIG, tmp_path)
    metadata = load_checkpoint(best).metadata
    assert (metadata["step"], metadata["metrics"]["score"]) == (8, 0.7)
    assert load_checkpoint(tmp_path / "last.safetensors").metadata["best_score"] == 0.7
    assert [row["score"] for row in rows(tmp_path, "val")] == [None, 0.7, 0.3]


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_network_runs_channels_last_in_the_chosen_precision_on_float32_inputs(tmp_path: Path, precision: str) -> None:
    seen = []
    task = MeanTask()

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if module.training:
            layout = output.is_contiguous(memory_format=torch.channels_last)
            seen.append((inputs[0].dtype, output.dtype, layout))

    task.model[0].register_forward_hook(note)
    fit(task, replace(CONFIG, steps=1, precision=precision), tmp_path)
    assert seen == [(torch.float32, torch.bfloat16 if precision == "bf16-mixed" else torch.float32, True)]


@pytest.mark.parametrize(
    ("capabilities", "dtype"), [({"avx2": True}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16)]
)
def test_bf16_is_chosen_where_there_are_instructions_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    seen = []
    task = MeanTask()
    task.model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    fit(task, replace(CONFIG, steps=1, precision="auto", accelerator="cpu"), tmp_path)
    assert seen[0] == dtype


def test_loss_that_is_not_finite_stops_with_step_and_term(tmp_path: Path) -> None:
    class PoisonedTask(MeanTask):
        def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            terms = super().losses(model, batch)
            return {**terms, "absolute": terms["absolute"] * (math.nan if self.seen_steps[-1] == 5 else 1.0)}

    with pytest.raises(RuntimeError, match="step 5: loss is nan, absolute is nan, gradient_norm is nan"):
        fit(PoisonedTask(), CONFIG, tmp_path)
    checkpoint = load_checkpoint(tmp_path / "last.safetensors")
    assert checkpoint.metadata["step"] == 4
    assert all(tensor.isfinite().all() for tensor in checkpoint.tensors.values())


def test_gradient_is_clipped_to_its_norm(tmp_path: Path) -> None:
    class SteepTask(MeanTask):
        def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: 1000 * term for name, term in super().losses(model, batch).items()}

    task = SteepTask()
    norms = []
    task.model[0].weight.register_post_accumulate_grad_hook(lambda weight: norms.append(weight.grad.norm().item()))
    fit(task, replace(CONFIG, steps=1, gradient_clip=0.5), tmp_path)
    total = torch.cat([parameter.grad.flatten() for parameter in task.model.parameters()]).norm()
    assert norms[0] > 0.5
    assert total.item() == pytest.approx(0.5, rel=1e-4)
    assert rows(tmp_path, "train")[0]["gradient_norm"] > norms[0]


def test_only_weights_decay(tmp_path: Path) -> None:
    class StillTask(MeanTask):
        def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: 0 * term for name, term in super().losses(model, batch).items()}

    task, fresh = StillTask(norm=False), MeanTask(norm=False)
    fit(task, replace(CONFIG, steps=1, warmup_steps=0, weight_decay=0.1), tmp_path)
    for parameter, start in zip(task.model.parameters(), fresh.model.parameters(), strict=True):
        expected = start * (1 - CONFIG.learning_rate * 0.1) if start.ndim > 1 else start
        torch.testing.assert_close(parameter, expected)


def test_learning_rate_rises_linearly_then_falls_to_its_final_share() -> None:
    config = TrainingConfig(steps=100, warmup_steps=10, learning_rate=2.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert learning_rate(config, 100) == pytest.approx(2.0 * FINAL_LEARNING_RATE)
    assert learning_rate(config, 55) == pytest.approx(2.0 * (1 + FINAL_LEARNING_RATE) / 2)


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    fit(MeanTask(), replace(CONFIG, steps=2), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_folder_with_a_run_is_not_overwritten(uninterrupted: Path) -> None:
    with pytest.raises(ValueError, match="already holds a training run; resume it"):
        fit(MeanTask(), CONFIG, uninterrupted)


def test_resuming_nothing_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"last\.safetensors: no such checkpoint"):
        fit(MeanTask(), CONFIG, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_training_starts_from_an_earlier_checkpoint(uninterrupted: Path, tmp_path: Path) -> None:
    class WatchedTask(MeanTask):
        def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            self.first = {name: value.clone() for name, value in model.state_dict().items()}
            return super().losses(model, batch)

    task = WatchedTask()
    best = uninterrupted / "best.safetensors"
    fit(task, replace(CONFIG, steps=1, init_from=best), tmp_path)
    for name, value in load_checkpoint(best).group("model").items():
        assert torch.equal(task.first[name], value)


def test_checkpoint_of_another_network_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_tensors(other, {f"model.{name}": value for name, value in nn.Linear(3, 2).state_dict().items()}, {})
    with pytest.raises(ValueError, match=r"other\.safetensors: the weights don't fit this network"):
        fit(MeanTask(), replace(CONFIG, init_from=other), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_loader_that_ends_early_is_an_error(tmp_path: Path) -> None:
    class ShortTask(MeanTask):
        def loader(self, start_step: int, num_steps: int, rank: int, world_size: int) -> Iterator[dict[str, Tensor]]:
            return super().loader(start_step, num_steps - 1, rank, world_size)

    with pytest.raises(RuntimeError, match="loader ended at step 11, expected batches up to step 12"):
        fit(ShortTask(), CONFIG, tmp_path)


def test_progress_is_logged_when_no_terminal_shows_the_bar(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "glimpose"):
        fit(MeanTask(), replace(CONFIG, steps=4), tmp_path)
    assert any("step 4 of 4: loss " in message for message in caplog.messages)
    assert any("step 4: score " in message for message in caplog.messages)


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("log_every", 0), ("gradient_clip", 0.0)])
def test_config_refuses_what_cannot_train(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: got {value}, expected"):
        replace(CONFIG, **{name: value})


class TwoPassTask(MeanTask):
    """Runs the network twice per step, as glance and gaze do."""

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        halves = [{name: value[..., i::2] for name, value in batch.items()} for i in range(2)]
        return {f"half_{i}": super(TwoPassTask, self).losses(model, half)["square"] for i, half in enumerate(halves)}


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    for devices in (1, 2):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "error", __file__, str(tmp_path / str(devices)), str(devices)]
        subprocess.run(command, check=True, timeout=120, env=environment)
    one, two = (load_checkpoint(tmp_path / str(devices) / "last.safetensors").group("trained") for devices in (1, 2))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)


class Images(Dataset[dict[str, Tensor]]):
    """Batch i, drawn by whichever process."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return next(MeanTask(norm=False).loader(index, 1, 0, 1))


class WorkersTask(MeanTask):
    """Has its batches drawn by other processes, and says when it's under way."""

    def loader(self, start_step: int, num_steps: int, rank: int, world_size: int) -> Iterable[dict[str, Tensor]]:
        return load_batches(Images(), start_step, num_steps, rank, world_size, num_workers=2)

    def validate(self, model: nn.Module) -> dict[str, float]:
        print("under way", flush=True)
        return super().validate(model)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_whole_group_saves_though_workers_die_of_it(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, __file__, str(tmp_path), "workers"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "under way\n"
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
    assert "TrainingInterrupted: stopped by " + number.name in errors
    last = load_checkpoint(tmp_path / "last.safetensors")
    assert last.group("optimizer")
    assert 0 < last.metadata["step"] < LONG


if __name__ == "__main__":
    if sys.argv[2] == "workers":
        fit(WorkersTask(), replace(CONFIG, steps=LONG, validate_every=4, checkpoint_every=LONG), Path(sys.argv[1]))
    else:  # Fabric starts the second process by running this file again
        fit(TwoPassTask(norm=False), replace(CONFIG, devices=int(sys.argv[2])), Path(sys.argv[1]))
