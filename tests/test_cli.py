"""What a user's mistakes get: a sentence that names the culprit, exit code 2, no traceback, nothing half-written."""

import json

import cv2
import numpy as np
import pytest
import torch

from glimpose.cli import main
from glimpose.data.bop import ModelInfo
from glimpose.data.bop_writer import write_models
from glimpose.training.checkpoint import save_tensors

CAMERA = {"fx": 570.0, "fy": 570.0, "cx": 320.0, "cy": 240.0, "width": 640, "height": 480, "depth_scale": 1.0}


@pytest.fixture
def folder(tmp_path, parts, checkpoint):
    """CAD models, a camera, a photograph, a config and an untrained checkpoint."""
    write_models(
        tmp_path / "models",
        {model.obj_id: mesh for model, mesh in zip(parts.objects, parts.meshes, strict=True)},
        {model.obj_id: ModelInfo(model.diameter_m) for model in parts.objects},
    )
    (tmp_path / "camera.json").write_text(json.dumps(CAMERA))
    cv2.imwrite(str(tmp_path / "photo.png"), np.full((480, 640, 3), 90, np.uint8))
    (tmp_path / "config.toml").write_text(f'[data]\nmodels = "{tmp_path / "models"}"\n')
    return tmp_path


def predict(folder, *changes: tuple[str, str]) -> list[str]:
    args = {
        "checkpoint": str(folder / "model.safetensors"),
        "image": str(folder / "photo.png"),
        "camera": str(folder / "camera.json"),
        **dict(changes),
    }
    return [
        "predict",
        args["checkpoint"],
        args["image"],
        "--camera",
        args["camera"],
        "--out",
        str(folder / "poses.csv"),
    ]


def refused(capsys, argv: list[str]) -> str:
    """Run, and return the message of a refusal."""
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message.strip().splitlines()[-1]


def test_predict_writes_a_result_file_and_pictures(folder):
    assert main([*predict(folder), "--overlay", str(folder / "pictures")]) == 0
    assert (folder / "poses.csv").read_text().startswith("scene_id,im_id,obj_id,score,R,t,time")
    assert len(list((folder / "pictures").iterdir())) == 1


def test_missing_image_is_named(folder, capsys):
    assert "nowhere.png" in refused(capsys, predict(folder, ("image", str(folder / "nowhere.png"))))
    assert not (folder / "poses.csv").exists()


def test_truncated_image_is_named_and_nothing_is_written(folder, capsys):
    whole = (folder / "photo.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert "cut.png" in refused(capsys, predict(folder, ("image", str(folder / "cut.png"))))
    assert not (folder / "poses.csv").exists()


def test_malformed_camera_is_named_with_its_line(folder, capsys):
    (folder / "bad.json").write_text('{"fx": 570.0,\n "fy": }')
    assert "bad.json, line 2" in refused(capsys, predict(folder, ("camera", str(folder / "bad.json"))))


def test_camera_matrix_of_the_wrong_size_is_named_with_its_image(folder, capsys):
    scene = folder / "000001" / "rgb"
    scene.mkdir(parents=True)
    (scene / "000005.png").write_bytes((folder / "photo.png").read_bytes())
    (folder / "scene_camera.json").write_text(json.dumps({"5": {"cam_K": [1.0] * 8}}))
    message = refused(capsys, predict(folder, ("image", str(scene)), ("camera", str(folder / "scene_camera.json"))))
    assert "scene_camera.json, image 5" in message
    assert "cam_K" in message


def test_image_of_another_size_than_the_cameras_is_refused(folder, capsys):
    cv2.imwrite(str(folder / "small.png"), np.zeros((100, 200, 3), np.uint8))
    message = refused(capsys, predict(folder, ("image", str(folder / "small.png"))))
    assert "200×100" in message
    assert "640×480" in message


def test_a_checkpoint_of_something_else_is_refused(folder, capsys):
    torch.save({"weight": torch.zeros(3)}, folder / "pickle.pth")
    assert "pickle.pth" in refused(capsys, predict(folder, ("checkpoint", str(folder / "pickle.pth"))))
    save_tensors(folder / "robots.safetensors", {"model.a": torch.zeros(1)}, {"kind": "robots"})
    assert "'robots'" in refused(capsys, predict(folder, ("checkpoint", str(folder / "robots.safetensors"))))


def test_folder_without_images_is_refused(folder, capsys):
    (folder / "empty").mkdir()
    assert "empty" in refused(capsys, predict(folder, ("image", str(folder / "empty"))))


def test_what_draws_needs_cad_models(folder, capsys):
    for asked in ("--search", "--refine"):
        assert f"{asked}: needs --models" in refused(capsys, [*predict(folder), asked])
    assert main([*predict(folder), "--refine", "--models", str(folder / "models")]) == 0
    assert (folder / "poses.csv").exists()


def test_misspelt_key_stops_the_run_and_names_the_nearest(folder, capsys):
    argv = ["train", str(folder / "config.toml"), "--out", str(folder / "run"), "training.step=3"]
    message = refused(capsys, argv)
    assert "training.step" in message
    assert "training.steps" in message
    assert not (folder / "run").exists()


def test_object_without_a_mesh_is_named(folder, capsys):
    argv = ["synth", str(folder / "config.toml"), "--out", str(folder / "new"), "--num", "1", "data.object_ids=[3, 9]"]
    assert "object 9" in refused(capsys, argv)
    assert not (folder / "new").exists()


def test_implausible_unit_warns_with_the_diameter(folder, caplog):
    argv = [
        "synth",
        str(folder / "config.toml"),
        "--out",
        str(folder / "new"),
        "--num",
        "1",
        "data.mesh_scale_to_m=1.0",
    ]
    with caplog.at_level("WARNING"):
        main(argv)
    assert "diameter" in caplog.text


def test_synth_writes_a_dataset_that_evaluates(folder):
    out = folder / "new"
    argv = ["synth", str(folder / "config.toml"), "--out", str(out), "--num", "2", "--split", "test", "--workers", "1"]
    assert main([*argv, "synthesis.distance_m=[0.4, 0.6]"]) == 0
    assert main(predict(folder, ("image", str(out / "test")), ("camera", str(out / "camera.json")))) == 0
    targets = str(out / "test_targets_bop19.json")
    scores = folder / "scores"
    argv = ["evaluate", str(folder / "poses.csv"), "--dataset", str(out), "--split", "test"]
    assert main([*argv, "--targets", targets, "--out", str(scores)]) == 0
    summary = json.loads((scores / "summary.json").read_text())
    assert summary["AR_VSD"] is not None


def test_exported_checkpoint_predicts_and_is_nearly_half_the_size(folder):
    small = folder / "small.safetensors"
    assert main(["export", str(folder / "model.safetensors"), str(small)]) == 0
    assert small.stat().st_size < 0.6 * (folder / "model.safetensors").stat().st_size
    assert main(predict(folder, ("checkpoint", str(small)))) == 0
