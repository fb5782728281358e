import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from glimpose.training.checkpoint import load_checkpoint, load_weights, save_tensors


def test_tensors_and_metadata_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        "model.weight": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "model.num": torch.tensor(7),
        "trained.weight": torch.rand(3).bfloat16(),
    }
    metadata = {"objects": [{"id": 1, "name": "ape"}], "score": None, "step": 3}
    save_tensors(path, tensors, metadata)
    checkpoint = load_checkpoint(path)
    assert checkpoint.metadata == metadata
    assert checkpoint.tensors.keys() == tensors.keys()
    assert all(torch.equal(checkpoint.tensors[name], tensors[name]) for name in tensors)
    assert checkpoint.group("model").keys() == {"weight", "num"}


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    weight = torch.rand(4)
    save_tensors(tmp_path / "a.safetensors", {"a": weight, "b": weight, "part": weight[:2]}, {})
    assert torch.equal(load_checkpoint(tmp_path / "a.safetensors").tensors["part"], weight[:2])


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.zeros(3)}, {"step": 1})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, failing, interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_tensors(path, {"a": torch.ones(3)}, {"step": 2})
    assert load_checkpoint(path).metadata == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_metadata_that_json_cannot_hold_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(3)}, {"score": float("nan")})
    assert not list(tmp_path.iterdir())


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors: no such checkpoint"):
        load_checkpoint(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.zeros(300)}, {"step": 1})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.safetensors: not a safetensors file, or cut short"):
        load_checkpoint(path)


def test_file_of_another_program_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"not a glimpose checkpoint .*format='pt'"):
        load_checkpoint(tmp_path / "a.safetensors")


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploded",)


def test_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_checkpoint(Path("a.safetensors"))
    assert not Path("exploded").exists()


def test_weights_that_do_not_fit_are_told_apart_and_leave_the_model_alone() -> None:
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    weights = {"weight": torch.zeros(2, 4), "scale": torch.zeros(1)}
    with pytest.raises(ValueError, match="don't fit") as error:
        load_weights(model, weights, "a.safetensors")
    for part in ("a.safetensors: ", "1 missing: bias", "1 unknown: scale", "weight (got [2, 4], expected [2, 3])"):
        assert part in str(error.value)
    assert torch.equal(model.weight, before)
