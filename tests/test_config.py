import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from glimpose import config


@dataclass(frozen=True)
class Sphere:
    kind: Literal["sphere"] = "sphere"
    radius_m: float = 0.1


@dataclass(frozen=True)
class Box:
    kind: Literal["box"] = "box"
    size_m: tuple[float, float, float] = (0.1, 0.2, 0.3)

    def __post_init__(self) -> None:
        if min(self.size_m) <= 0:
            raise ValueError(f"size_m: got {self.size_m}, expected positive lengths")


@dataclass(frozen=True)
class Schedule:
    steps: int = 100
    learning_rate: float = 1e-3
    clip: float | None = 1.0
    init_from: Path | None = None


@dataclass(frozen=True)
class Experiment:
    name: str
    shuffle: bool = True
    precision: Literal["bf16", "fp32"] = "bf16"
    widths: tuple[int, ...] = (8, 16)
    lambdas: dict[str, float] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=700))
    shape: Sphere | Box = field(default_factory=Box)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "duck.toml"
    path.write_text(
        'name = "duck"\nwidths = [4, 8, 12]\n[lambdas]\ndepth = 2\n[schedule]\nclip = 3\n[shape]\nkind = "sphere"\n'
    )
    return path


def test_file_fills_in_only_what_differs_from_the_defaults(toml: Path) -> None:
    read = config.load(Experiment, toml)
    assert read == Experiment(
        name="duck",
        widths=(4, 8, 12),
        lambdas={"depth": 2.0},
        schedule=Schedule(steps=700, clip=3.0),
        shape=Sphere(),
    )
    assert isinstance(read.schedule.clip, float)


def test_overrides_win_over_the_file(toml: Path) -> None:
    overrides = ["name=cat", "schedule.steps=5", "widths=[1]", "shuffle=false", "schedule.init_from=a/b.safetensors"]
    read = config.load(Experiment, toml, overrides)
    assert (read.name, read.schedule.steps, read.widths, read.shuffle) == ("cat", 5, (1,), False)
    assert read.schedule.init_from == Path("a/b.safetensors")
    assert read.schedule.clip == 3.0


def test_override_none_empties_an_optional_field(toml: Path) -> None:
    assert config.load(Experiment, toml, ["schedule.clip=none"]).schedule.clip is None


def test_kind_tells_the_members_of_a_union_apart() -> None:
    assert config.load(Experiment, None, ["name=a", "shape.kind=sphere", "shape.radius_m=1"]).shape == Sphere(
        radius_m=1.0
    )
    assert config.load(Experiment, None, ["name=a", "shape.size_m=[1, 1, 1]"]).shape == Box(size_m=(1.0, 1.0, 1.0))


def test_round_trip_through_json_is_exact(toml: Path) -> None:
    read = config.load(Experiment, toml, ["schedule.init_from=a.safetensors"])
    plain = json.loads(json.dumps(config.to_dict(read)))
    assert config.from_dict(Experiment, plain, "header") == read


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["widhts=[1]"], r"override 'widhts=\[1\]': unknown key 'widhts'; did you mean 'widths'\?"),
        (["schedule.step=3"], r"override 'schedule.step=3': unknown key 'step'; did you mean 'schedule.steps'\?"),
        (["shedule.steps=3"], r"override 'shedule.steps=3': unknown key 'shedule'; did you mean 'schedule'\?"),
        (["learning_rate=3"], r"unknown key 'learning_rate'; did you mean 'schedule.learning_rate'\?"),
        (["zzz=3"], "unknown key 'zzz'; expected name, shuffle, .* or shape"),
        (["shape.radius=3"], r"unknown key 'radius'; did you mean 'shape.radius_m'\?"),
        (["schedule.steps=many"], "override 'schedule.steps=many': got 'many', expected an integer"),
        (["schedule.steps=2.5"], "got 2.5, expected an integer"),
        (["schedule.steps=true"], "got True, expected an integer"),
        (["shuffle=1"], "got 1, expected true or false"),
        (["name=3"], "got 3, expected a string"),
        (["widths=[1, 2.5]"], "override 'widths=.*': got 2.5, expected an integer"),
        (["precision=fp16"], "got 'fp16', expected 'bf16' or 'fp32'"),
        (["schedule=3"], "override 'schedule=3': got 3, expected a table of Schedule"),
        (["schedule=3", "schedule.steps=2"], "'schedule' is a value, not a table"),
        (["shape.kind=cone"], "got 'cone', expected 'sphere' or 'box'"),
        (["shape.kind=box", "shape.size_m=[1, 2]"], "got 2 values, expected 3"),
        (["shape={kind='box', size_m=[1, 2, -3]}"], "size_m: got .* expected positive lengths"),
        (["steps"], "override 'steps': expected KEY=VALUE"),
        (["=3"], "expected KEY=VALUE"),
    ],
)
def test_wrong_override_is_named_with_what_was_expected(toml: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.load(Experiment, toml, overrides)


def test_misspelt_key_in_a_file_names_the_file_and_the_nearest_key(toml: Path) -> None:
    toml.write_text('name = "duck"\n[schedule]\nlearning_rat = 3.0\n')
    with pytest.raises(ValueError, match=r"duck\.toml: schedule\.learning_rat: .*'schedule\.learning_rate'\?"):
        config.load(Experiment, toml, ["schedule.steps=3"])


def test_missing_key_is_named() -> None:
    with pytest.raises(ValueError, match="defaults: name: missing, expected a string"):
        config.load(Experiment, None)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.toml: no such configuration file"):
        config.load(Experiment, tmp_path / "absent.toml")


def test_malformed_toml_names_file_and_line(toml: Path) -> None:
    toml.write_text('name = "duck"\nwidths = [1,, 2]\n')
    with pytest.raises(ValueError, match=r"duck\.toml: not valid TOML: .*line 2"):
        config.load(Experiment, toml)
