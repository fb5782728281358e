"""How far poses are believed: right ones agree with the photograph in everything, wrong ones in less."""

from dataclasses import asdict, astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from parts import Parts, moved, true_evidence
from scipy.spatial.transform import Rotation

from glimpose.cli import main
from glimpose.data.bop import ModelInfo
from glimpose.data.bop_writer import write_models
from glimpose.objects.agreement import UNCALIBRATED, Agreement, Confidence, agree
from glimpose.objects.estimator import PoseEstimator
from glimpose.objects.search import PoseSearch, SearchConfig
from glimpose.objects.standing import Stand, Standing
from glimpose.objects.surfaces import chamfer_m, surface_agreement
from glimpose.render.scene import Instance
from glimpose.training.checkpoint import load_checkpoint, save_tensors


@pytest.fixture(scope="module")
def search(parts: Parts) -> PoseSearch:
    meshes = {model.obj_id: mesh for model, mesh in zip(parts.objects, parts.meshes, strict=True)}
    return PoseSearch(parts.objects, meshes, parts.network, SearchConfig(num_views=2))


def test_the_true_pose_agrees_and_others_less(parts: Parts, search: PoseSearch):
    truth = np.eye(4)
    truth[:3, :3] = Rotation.from_euler("xyz", [-130, 20, 35], degrees=True).as_matrix()
    truth[:3, 3] = [0.03, -0.02, 0.6]
    model, evidence = parts.objects[0], true_evidence(parts, 0, truth)

    def of(pose: np.ndarray) -> Agreement:
        return agree(model, pose, evidence, search.draw(model, pose, evidence))

    right = of(truth)
    assert min(value for name, value in vars(right).items() if name != "exactness") > 0.8
    turned, far = of(moved(truth, turn_deg=60)), of(moved(truth, zoom=1.2))
    assert turned.coordinates < right.coordinates - 0.3
    assert turned.pattern < right.pattern - 0.2
    assert far.overlap < right.overlap - 0.15
    assert far.depth < right.depth - 0.5
    assert far.center < 0.5
    assert 0 < far.exactness < right.exactness < 1
    assert UNCALIBRATED(right) > UNCALIBRATED(turned)
    assert UNCALIBRATED(right) > UNCALIBRATED(far)


def test_light_changes_neither_pattern_nor_color(parts: Parts, search: PoseSearch):
    truth = np.eye(4)
    truth[:3, :3] = Rotation.from_euler("xyz", [-130, 20, 35], degrees=True).as_matrix()
    truth[2, 3] = 0.6
    model, evidence = parts.objects[0], true_evidence(parts, 0, truth)
    drawn = search.draw(model, truth, evidence)
    bright = agree(model, truth, evidence, drawn)
    dark = agree(model, truth, replace(evidence, crop=(0.4 * evidence.crop).astype(np.uint8)), drawn)
    assert dark.pattern == pytest.approx(bright.pattern, abs=0.02)
    assert dark.color == pytest.approx(bright.color, abs=0.05)
    red = evidence.crop.copy()
    red[..., 1:] //= 4
    assert agree(model, truth, replace(evidence, crop=red), drawn).color < 0.3


@pytest.mark.parametrize("num_hidden", [0, 8])
def test_a_depth_sensor_tells_where_a_surface_is(parts: Parts, search: PoseSearch, num_hidden: int):
    """By the Chamfer distance, of what the gaze sees of the object: something in front of it doesn't count."""
    truth, K = np.eye(4), parts.synthesis.K
    truth[:3, :3] = Rotation.from_euler("xyz", [-130, 20, 35], degrees=True).as_matrix()
    truth[:3, 3] = [0.03, -0.02, 0.6]
    model, evidence = parts.objects[0], true_evidence(parts, 0, truth, num_hidden)
    mesh = search.meshes[model.obj_id]
    measured_m = search.renderer.render([Instance(mesh, truth)], K, 480, 640).depth
    hidden = np.linalg.inv(evidence.K @ np.linalg.inv(K)) @ [0, 4 * (evidence.cells - num_hidden) + 2, 1]
    measured_m[round(hidden[1]) :] = 0.4 if num_hidden else 0

    def of(pose: np.ndarray, sensor_m: np.ndarray = measured_m) -> float:
        return surface_agreement(search.draw(model, pose, evidence).depth, evidence, sensor_m, K, model.diameter_m)

    assert of(truth) > 0.95
    nearer = truth.copy()
    nearer[:3, 3] *= 1 - 0.1 * model.diameter_m / 0.6
    assert np.exp(-1) <= of(nearer) < np.exp(-0.6)  # the nearest points of a slanted surface are nearer
    assert of(moved(truth, zoom=1.2)) < 0.2
    assert of(moved(truth, turn_deg=60)) < 0.9 * of(truth)
    assert of(moved(truth, zoom=1.2), np.zeros_like(measured_m)) == 1  # nothing was measured


def test_chamfer_distance_is_the_mean_of_both_ways():
    a, b = np.array([[0.0, 0, 0], [1, 0, 0]]), np.array([[0.0, 0, 1], [0, 0, 3]])
    assert chamfer_m(a, b) == pytest.approx((1 + np.sqrt(2) + 1 + 3) / 4)
    assert chamfer_m(b, a) == chamfer_m(a, b)
    assert chamfer_m(a, a) == 0


def test_nothing_seen_agrees_with_nothing(parts: Parts, search: PoseSearch):
    truth = np.eye(4)
    truth[2, 3] = 0.6
    evidence = true_evidence(parts, 0, truth)
    nothing = replace(evidence, visible=np.zeros_like(evidence.visible), amodal=np.zeros_like(evidence.amodal))
    measured = agree(parts.objects[0], truth, nothing, search.draw(parts.objects[0], truth, evidence))
    assert astuple(measured)[:4] == (0, 0, 0, 0)
    assert np.isfinite(astuple(measured)).all()


def test_calibrating_stores_what_scores_mean(
    checkpoint: Path, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    meshes = {model.obj_id: mesh for model, mesh in zip(parts.objects, parts.meshes, strict=True)}
    write_models(tmp_path / "models", meshes, {model.obj_id: ModelInfo(model.diameter_m) for model in parts.objects})
    (tmp_path / "c.toml").write_text("[synthesis]\nnum_objects = [1, 2]\n")
    arguments = [
        "calibrate",
        str(checkpoint),
        "--config",
        str(tmp_path / "c.toml"),
        f"data.models={tmp_path / 'models'}",
    ]
    assert main(["calibrate", str(checkpoint)]) == 2
    assert "--config: missing" in capsys.readouterr().err
    before = load_checkpoint(checkpoint)
    assert main([*arguments, "--num", "1"]) == 2  # an untrained model is never right
    assert "confidence can be learned only from right and wrong ones" in capsys.readouterr().err
    monkeypatch.setattr("glimpose.objects.calibrate.RIGHT_DIAMETERS", torch.inf)
    fixed = Confidence({"overlap": 1.0}, -2.0)
    monkeypatch.setattr(Confidence, "fit", classmethod(lambda cls, *_: fixed))
    assert main([*arguments, "--num", "1"]) == 0
    calibrated = PoseEstimator.from_checkpoint(checkpoint)
    assert calibrated.confidence == fixed
    for standing, mesh in zip(calibrated.standings, parts.meshes, strict=True):
        (stand,) = standing.stands
        assert stand.up == (0, 0, 1)
        assert stand.height_m == pytest.approx(-mesh.vertices[:, 2].min(), rel=1e-3)
    bin_picking = ["synthesis.free_pose_probability=1.0", "--num", "1"]
    assert main([*arguments, *bin_picking]) == 0
    assert not any(standing.stands for standing in PoseEstimator.from_checkpoint(checkpoint).standings)
    content = load_checkpoint(checkpoint)
    learned = [Standing((Stand((0.0, 1.0, 0.0), 0.1),))] * 2
    adapted = {**content.metadata, "adaptation_rounds": 1, "standings": [asdict(standing) for standing in learned]}
    old = {"weights": {"overlap": 4.0, "sharpness": 1.0}, "bias": 0.0}  # a measure that there is no more
    save_tensors(checkpoint, content.tensors, {**adapted, "confidence": old})
    assert main([*arguments, "--num", "1"]) == 0
    assert PoseEstimator.from_checkpoint(checkpoint).standings == learned
    after = load_checkpoint(checkpoint).group("model")
    assert all(torch.equal(value, after[name]) for name, value in before.group("model").items())


def test_a_wrong_confidence_in_a_checkpoint_is_named(checkpoint: Path):
    content = load_checkpoint(checkpoint)
    save_tensors(
        checkpoint, content.tensors, {**content.metadata, "confidence": {"weights": {"sharpness": 1.0}, "bias": 0.0}}
    )
    with pytest.raises(ValueError, match=r"confidence: weights: unknown measures \['sharpness'\].*glimpose calibrate"):
        PoseEstimator.from_checkpoint(checkpoint)
