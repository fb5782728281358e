"""Checkpoints: safetensors files whose header holds everything else as JSON. Nothing is ever unpickled."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

FORMAT = "glimpose"


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint file; tensors lie on the CPU."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]

    def group(self, name: str) -> dict[str, Tensor]:
        """Give the tensors called `name.…`, without that prefix; `model` holds the weights to predict with."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically: whatever interrupts it, `path` holds either the old file or the new one."""
    path = Path(path)
    header = {"format": FORMAT, "metadata": json.dumps(metadata, allow_nan=False)}
    # safetensors wants dense row-major tensors that share no memory; channels-last and tied weights are neither.
    dense = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(save(dense, metadata=header))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint; FileNotFoundError if there is none, ValueError if the file is damaged or something else."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or cut short ({error}); expected a checkpoint") from None
    if header.get("format") != FORMAT or "metadata" not in header:
        raise ValueError(
            f"{path}: not a glimpose checkpoint (its header says format={header.get('format')!r}, "
            f"expected {FORMAT!r}); expected a file that training wrote"
        )
    try:
        metadata = json.loads(header["metadata"])
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: malformed metadata in the checkpoint's header: {error}") from None
    return Checkpoint(path, tensors, metadata)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str | Path) -> None:
    """Copy weights into `model`; ValueError, with the model untouched, unless names and shapes match exactly."""
    own = model.state_dict()
    faults = {
        "missing": sorted(own.keys() - weights.keys()),
        "unknown": sorted(weights.keys() - own.keys()),
        "of another shape": [
            f"{name} (got {list(weights[name].shape)}, expected {list(own[name].shape)})"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ],
    }
    if any(faults.values()):
        told = "; ".join(f"{len(names)} {fault}: {_first(names)}" for fault, names in faults.items() if names)
        raise ValueError(f"{where}: the weights don't fit this network. {told}. Was it built from another config?")
    model.load_state_dict(dict(weights))


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
