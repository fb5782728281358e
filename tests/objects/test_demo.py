import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from glimpose.data.bop import BopDataset
from glimpose.data.bop_results import read_results_csv, read_targets
from glimpose.objects import demo
from glimpose.objects.demo import bracket, demo_config, run_demo, wing_nut
from glimpose.objects.estimator import PoseEstimator
from glimpose.objects.task import BatchConfig
from glimpose.objects.train import ObjectsConfig, load_objects
from glimpose.render.mesh import Mesh, diameter_m, is_closed


def points(mesh: Mesh, turn: np.ndarray) -> set[tuple]:
    """Vertices with their colours, to a tenth of a millimetre."""
    turned = np.rint(mesh.vertices @ turn.T * 1e4).astype(int) + 0
    return {(*xyz, *rgb) for xyz, rgb in zip(turned.tolist(), mesh.colors.tolist(), strict=True)}


@pytest.mark.parametrize("part", [bracket, wing_nut])
def test_parts_are_solid_and_centred(part: object) -> None:
    mesh = part()  # type: ignore[operator]
    assert is_closed(mesh)
    np.testing.assert_allclose(mesh.vertices.min(0), -mesh.vertices.max(0), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-5)


def test_only_the_wing_nut_looks_the_same_after_half_a_turn() -> None:
    turns = [np.diag(signs) for signs in ([1, -1, -1], [-1, 1, -1], [-1, -1, 1])]
    assert [points(wing_nut(), turn) == points(wing_nut(), np.eye(3)) for turn in turns] == [False, False, True]
    assert not any(points(bracket(), turn) == points(bracket(), np.eye(3)) for turn in turns)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty"):
        run_demo(tmp_path, minutes=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_short_demo_leaves_everything_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(models: Path, steps: int, seed: int) -> ObjectsConfig:
        config = demo_config(models, steps, seed)
        return replace(
            config,
            training=replace(config.training, num_workers=0),
            batch=BatchConfig(windows=1, crops=2, validation_windows=1, validation_crops=2),
        )

    monkeypatch.setattr(demo, "demo_config", small)
    result = run_demo(tmp_path / "demo", minutes=2 / demo.STEPS_PER_MINUTE, num_photographs=2)
    assert result.page == tmp_path / "demo" / "index.html"
    page = result.page.read_text()
    assert page.count("<img") == 2 * 2 + 18 + 16
    # In a megabyte of base64 any four letters come by chance.
    assert "http" not in re.sub("base64,[A-Za-z0-9+/=]+", "", page)
    assert "<svg" in page

    names = [model.name for model in PoseEstimator.from_checkpoint(result.checkpoint).objects]
    assert names == ["bracket", "wing nut"]
    assert {row.im_id for row in read_results_csv(result.poses)} <= {0, 1}
    dataset = BopDataset(tmp_path / "demo", "test")
    assert len(dataset) == result.summary["num_images"] == 2
    targets = read_targets(tmp_path / "demo" / "test_targets_bop19.json")
    assert result.summary["num_targets"] == sum(target.inst_count for target in targets)
    assert 0 <= result.summary["ADD_S_0.1d"] <= 1


def test_models_written_are_the_parts(tmp_path: Path) -> None:
    demo.write_parts(tmp_path)
    objects, meshes = load_objects(demo_config(tmp_path, 1, 0).data, num_keypoints=8)
    for model, mesh, part in zip(objects, meshes, (bracket(), wing_nut()), strict=True):
        assert model.diameter_m == pytest.approx(diameter_m(part))
        np.testing.assert_allclose(mesh.vertices, part.vertices, atol=1e-6)
        np.testing.assert_array_equal(mesh.colors, part.colors)
    assert [len(model.symmetries) for model in objects] == [1, 2]


@pytest.mark.slow
def test_the_demo_finds_most_parts(tmp_path: Path) -> None:
    summary = run_demo(tmp_path, seed=1).summary
    assert summary["ADD_S_0.1d"] > 0.6
    assert summary["num_missing"] <= 0.1 * summary["num_targets"]
    assert summary["median_rotation_deg"] < 8
