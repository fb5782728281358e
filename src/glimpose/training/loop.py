"""The training loop: a task says what is learned, `fit` does the rest, on one device or several (Lightning Fabric)."""

import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from torch import Tensor, nn
from tqdm import tqdm

from glimpose.config import to_dict
from glimpose.training.checkpoint import Checkpoint, load_checkpoint, load_weights, save_tensors
from glimpose.training.ema import Ema
from glimpose.training.journal import Journal, Meter, finite, told
from glimpose.training.memory import keep_freed_memory
from glimpose.training.optimizer import MuonAdamW

logger = logging.getLogger(__name__)

FINAL_LEARNING_RATE = 0.01
"""Learning rate at the last step, as a share of the highest."""


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how fast and on what to train; counts are optimizer steps."""

    steps: int = 20_000
    seed: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    """Spares biases, norms and other parameters with fewer than two axes."""
    warmup_steps: int = 500
    gradient_clip: float | None = 5.0
    """Largest norm of the gradient; none clips nothing."""
    ema_decay: float = 0.999
    validate_every: int = 1000
    checkpoint_every: int = 500
    log_every: int = 20
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    precision: Literal["auto", "bf16-mixed", "32-true"] = "auto"
    """Automatically bf16 where the device has instructions for it; a CPU without is fifteen times slower in it."""
    channels_last: bool = True
    num_workers: int = 0
    """Processes that make batches; read by whoever builds the task's loader."""
    init_from: Path | None = None
    """Checkpoint whose weights training starts from."""
    use_self_supervised: bool = False
    """Go on with photographs that nobody labelled ([self_supervision]); read by whoever builds the task."""

    def __post_init__(self) -> None:
        for name in ("steps", "validate_every", "checkpoint_every", "log_every", "devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            raise ValueError(f"gradient_clip: got {self.gradient_clip}, expected a positive norm, or none")


class Task(Protocol):
    """What `fit` needs to know about the thing that is learned."""

    @property
    def model(self) -> nn.Module:
        """Give what is trained."""

    def loader(self, start_step: int, num_steps: int, rank: int, world_size: int) -> Iterable[Any]:
        """Yield the batches of these steps; batch i depends on (seed, i) alone, so that a resumed run sees the same."""

    def losses(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Give weighted scalar terms whose sum is minimised; `model` is `self.model` as prepared for the devices."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure averaged float32 weights, in eval mode; "score", higher is better, decides which are kept as best."""

    def metadata(self) -> dict[str, Any]:
        """Give all that predicting needs besides the weights, as JSON can hold it; checkpoints carry it."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped at a signal's request, after its state was saved; the message says how to go on."""


def fit(task: Task, config: TrainingConfig, run_dir: Path, resume: bool = False) -> Path:
    """Train, and return the path of the best checkpoint by validation.

    Writes to `run_dir`: last.safetensors (everything that resuming needs), best.safetensors (averaged weights and
    metadata), config.json, metrics.jsonl and TensorBoard events (tb/). Both checkpoints can be predicted with.
    SIGINT and SIGTERM end the step at hand, save and raise TrainingInterrupted. A loss or gradient that isn't finite
    raises RuntimeError. With several devices Fabric runs the calling command once more for each of them.
    """
    fabric = _make_fabric(config)
    fabric.launch()
    keep_freed_memory()
    run_dir = Path(run_dir)
    last, best = run_dir / "last.safetensors", run_dir / "best.safetensors"
    if not resume and last.exists():
        raise ValueError(f"{run_dir}: already holds a training run; resume it, or choose another folder")
    if not resume and config.init_from is not None:
        load_weights(task.model, load_checkpoint(config.init_from).group("model"), config.init_from)
    state = _State(task.model.to(fabric.device), config)
    if resume:
        state.restore(load_checkpoint(last))
    fabric.barrier()
    if fabric.is_global_zero:
        run_dir.mkdir(parents=True, exist_ok=True)
        described = {"training": to_dict(config), **task.metadata()}
        (run_dir / "config.json").write_text(json.dumps(described, indent=2) + "\n")

    steps = range(state.step, config.steps)
    with (
        torch.random.fork_rng([fabric.device] if fabric.device.type == "cuda" else []),
        _StopRequest() as stop,
        Journal(run_dir, state.step, enabled=fabric.is_global_zero) as journal,
        tqdm(total=config.steps, initial=state.step, unit="step", disable=None if journal.enabled else True) as bar,
    ):
        trainer = _Trainer(fabric, task, config, state, journal)
        batches = iter(task.loader(state.step, len(steps), fabric.global_rank, fabric.world_size))
        stop.outlive_children()
        meter = Meter()
        if not steps and not best.exists():
            trainer.validate(best)
        for step in steps:
            start_s = time.perf_counter()
            batch = _next(batches, step, config.steps, stop)
            wait_s = time.perf_counter() - start_s
            if _any_rank(fabric, stop.requested):
                trainer.save(last, full=True)
                raise TrainingInterrupted(
                    f"stopped by {stop.name or 'a signal'} after step {step} of {config.steps}; "
                    f"{last} holds everything: repeat the command with --resume to go on"
                )
            measured = trainer.update(batch)
            meter.add(measured, wait_s, time.perf_counter() - start_s)
            bar.set_postfix_str(told(measured), refresh=False)
            bar.update()

            final = state.step == config.steps
            if state.step % config.log_every == 0 or final:
                row = {**meter.means(), "learning_rate": learning_rate(config, step)}
                meter = Meter()
                journal.write(state.step, "train", row)
                if journal.enabled and bar.disable:
                    logger.info("step %d of %d: %s", state.step, config.steps, told(row))
            if state.step % config.validate_every == 0 or final:
                trainer.validate(best)
            if state.step % config.checkpoint_every == 0 or final:
                trainer.save(last, full=True)
    fabric.barrier()
    return best


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Rise linearly over the warm-up, then fall along a cosine to `FINAL_LEARNING_RATE` of the top at `steps`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine)


class _Autocast(MixedPrecision):
    """bf16 autocast that leaves inputs alone: as bfloat16, pixel coordinates would be off by pixels."""

    def convert_input(self, data: Any) -> Any:
        return data


def _make_fabric(config: TrainingConfig) -> Fabric:
    accelerator = config.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    is_bf16 = _has_bf16(accelerator) if config.precision == "auto" else config.precision == "bf16-mixed"
    logger.info("training on %s in %s", accelerator, "bf16" if is_bf16 else "float32")
    if accelerator == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what isn't autocast
    precision = _Autocast("bf16-mixed", accelerator) if is_bf16 else Precision()
    strategy = "auto" if config.devices == 1 else "ddp"
    return Fabric(accelerator=accelerator, devices=config.devices, strategy=strategy, plugins=[precision])


def _has_bf16(accelerator: str) -> bool:
    if accelerator == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch can't tell
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


class _State:
    """All that changes while training: weights, their average, the optimizer, the step and the best score."""

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = MuonAdamW(model, config.learning_rate, config.weight_decay)
        self.model = model
        self.ema = Ema(model, config.ema_decay)
        self.step = 0
        self.best_score: float | None = None

    def tensors(self, full: bool) -> dict[str, Tensor]:
        """Give the averaged weights as `model.…`; in full also the trained ones and the optimizer's moments."""
        groups = {"model": self.ema.state_dict()}
        if full:
            groups["trained"] = self.model.state_dict()
            groups["optimizer"] = self.optimizer.moments()
        return {f"{group}.{name}": value for group, tensors in groups.items() for name, value in tensors.items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        trained = checkpoint.group("trained")
        if not trained:
            raise ValueError(f"{checkpoint.path}: holds weights but no training state; start from it with init_from")
        load_weights(self.model, trained, checkpoint.path)
        load_weights(self.ema.model, checkpoint.group("model"), checkpoint.path)
        self.step = checkpoint.metadata["step"]
        self.ema.num_updates = self.step
        self.best_score = checkpoint.metadata["best_score"]
        try:
            self.optimizer.load_moments(checkpoint.group("optimizer"))
        except KeyError as error:
            raise ValueError(
                f"{checkpoint.path}: optimizer state doesn't fit at {error}: written by another version or of another "
                "network; start from it with init_from"
            ) from None


class _StopRequest:
    """Notes SIGINT and SIGTERM instead of dying; a second one takes its usual course."""

    def __init__(self) -> None:
        self.name = ""
        self.pid = os.getpid()
        self.previous: dict[int, Callable | int | None] = {}

    @property
    def requested(self) -> bool:
        return bool(self.name)

    def __enter__(self) -> "_StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *_: object) -> None:
        if not self.requested:  # else dying workers mustn't disturb how that is told, either
            for number, handler in self.previous.items():
                signal.signal(number, handler)

    def outlive_children(self) -> None:
        """Go on when a loader's process dies, until it's asked for a batch: there torch notices, too.

        Whoever signals a whole group ends those processes as well, maybe first, and torch would raise wherever we are.
        """
        if self.previous and hasattr(signal, "SIGCHLD"):
            self.previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def note(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() == self.pid:
            self.name = signal.Signals(number).name
            for stopping in (signal.SIGINT, signal.SIGTERM):
                signal.signal(stopping, self.previous[stopping])
        elif number == signal.SIGTERM:  # a forked loader process, told by its parent; Ctrl-C is for the parent alone
            os._exit(0)


class _Trainer:
    """One optimizer step, one validation, one checkpoint."""

    def __init__(self, fabric: Fabric, task: Task, config: TrainingConfig, state: _State, journal: Journal) -> None:
        self.fabric = fabric
        self.task = task
        self.config = config
        self.state = state
        self.journal = journal
        self.model, self.optimizer = fabric.setup(state.model, state.optimizer)

    def update(self, batch: Any) -> dict[str, float]:
        """Take one step on this batch and give its losses and the gradient's norm."""
        step = self.state.step
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * learning_rate(self.config, step)
        # Dropout and the like draw from the global generator; seeded per step, a resumed run draws the same.
        seed = np.random.SeedSequence((self.config.seed, step, self.fabric.global_rank))
        torch.manual_seed(int(seed.generate_state(1)[0]))
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.task.losses(self.model.train(), self.fabric.to_device(batch))
        loss = torch.stack(list(terms.values())).sum()
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=self.config.gradient_clip or math.inf, error_if_nonfinite=False
        )
        assert norm is not None
        measured = _to_floats({"loss": loss, **terms, "gradient_norm": norm})
        wrong = [f"{name} is {value}" for name, value in measured.items() if not math.isfinite(value)]
        if wrong:
            raise RuntimeError(
                f"step {step}: {', '.join(wrong)}; stopped before this update, the last checkpoint stands"
            )
        self.optimizer.step()
        self.state.ema.update(self.state.model)
        self.state.step += 1
        return measured

    def validate(self, best: Path) -> None:
        """Measure the averaged weights, and keep them at `best` if none were better."""
        measured: dict[str, float] = {}
        if self.fabric.is_global_zero:
            with torch.no_grad():
                measured = self.task.validate(self.state.ema.model)
            if "score" not in measured:
                raise ValueError(
                    f"{type(self.task).__name__}.validate: got {sorted(measured)}, expected 'score' among them"
                )
            self.journal.write(self.state.step, "val", measured)
            with tqdm.external_write_mode():  # a line of its own, above the bar
                logger.info("step %d: %s", self.state.step, told(measured))
        measured = self.fabric.broadcast(measured)
        score = measured["score"]
        if self.state.best_score is None or score > self.state.best_score:
            self.state.best_score = score if math.isfinite(score) else None
            self.save(best, full=False, metrics=finite(measured))

    def save(self, path: Path, full: bool, **more: Any) -> None:
        """Write a checkpoint; in full, one that training can resume from."""
        if self.fabric.is_global_zero:
            progress = {"step": self.state.step, "best_score": self.state.best_score, "training": to_dict(self.config)}
            save_tensors(path, self.state.tensors(full), {**self.task.metadata(), **progress, **more})


def _next(batches: Iterator[Any], step: int, steps: int, stop: _StopRequest) -> Any:
    try:
        return next(batches)
    except StopIteration:
        raise RuntimeError(f"the task's loader ended at step {step}, expected batches up to step {steps}") from None
    except (RuntimeError, OSError, EOFError):
        if stop.requested:  # the signal reached the loader's processes as well, and what they had drawn went with them
            return None
        raise


def _any_rank(fabric: Fabric, flag: bool) -> bool:
    if fabric.world_size == 1:
        return flag
    return bool(fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="max"))


def _to_floats(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Fetch scalars from the device in one transfer."""
    fetched = torch.stack([value.detach().float() for value in values.values()]).tolist()
    return dict(zip(values, fetched, strict=True))
