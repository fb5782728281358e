"""The robots' verbs, end to end on a tiny recording, and what mistakes get: exit code 2 and the culprit's name."""

import json
import shutil

import cv2
import h5py
import numpy as np
import pytest

from glimpose.cli import main
from glimpose.data.files import read_image
from glimpose.data.led_h5 import open_recording
from glimpose.data.robot_poses import read_robot_poses
from glimpose.robots.calibrate import calibrate
from glimpose.robots.estimator import RobotEstimator
from glimpose.training.checkpoint import load_checkpoint, save_tensors

CONFIG = """
track = "robots"
[data]
robot = "box.toml"
[training]
steps = 2
warmup_steps = 1
validate_every = 2
precision = "32-true"
[batch]
frames = 8
views = 2
validation_frames = 8
[network]
input_scale = 1.0
num_scales = 2
channels = [8, 8, 8, 8, 8, 8, 8]
"""


@pytest.fixture(scope="module")
def trained(room, tmp_path_factory):
    """Train for two steps through the command line."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(room.robot_file, folder / "box.toml")
    (folder / "config.toml").write_text(CONFIG)
    argv = ["train", str(folder / "config.toml"), "--out", str(folder / "run"), f"data.recording={room.recording}"]
    assert main(argv) == 0
    recording = open_recording(room.recording)
    (folder / "images").mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / "images" / f"{i}.png"), recording.image(i)[..., ::-1])
    return folder


@pytest.fixture
def folder(trained, room, tmp_path):
    """Copy what was trained, to be changed; no presence is too low to calibrate on in these tests."""
    shutil.copytree(trained, tmp_path / "copy")
    shutil.copy(tmp_path / "copy" / "run" / "best.safetensors", tmp_path / "copy" / "model.safetensors")
    return tmp_path / "copy"


def refused(capsys, argv: list) -> str:
    assert main([str(arg) for arg in argv]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message.strip().splitlines()[-1]


def make_sure(path, there: bool) -> None:
    """Make a network sure that there is a robot, or that there is none."""
    checkpoint = load_checkpoint(path)
    shift = -50 if there else 50
    tensors = {**checkpoint.tensors, "model.no_robot": checkpoint.tensors["model.no_robot"] + shift}
    save_tensors(path, tensors, checkpoint.metadata)


def test_from_a_recording_to_scores(folder, room):
    make_sure(folder / "model.safetensors", there=True)
    argv = ["calibrate", folder / "model.safetensors", folder / "images" / "0.png", folder / "images" / "1.png"]
    assert main([*map(str, argv), "--distance", "1.5", "--camera", str(room.recording)]) == 0
    poses = str(folder / "poses.csv")
    argv = ["predict", folder / "model.safetensors", room.recording, "--out", poses, "--overlay", folder / "pictures"]
    assert main(list(map(str, argv))) == 0
    assert len(list((folder / "pictures").iterdir())) == 120
    argv = ["evaluate", poses, "--recording", room.recording, "--robot", room.robot_file, "--out", folder / "scores"]
    assert main(list(map(str, argv))) == 0
    summary = json.loads((folder / "scores" / "summary.json").read_text())
    for key in ("E_uv_px", "E_psi_deg", "E_d_percent", "E_xyz_m", "gamma_1m_45deg", "led_auc", "presence_auc"):
        assert summary[key] is not None, key


def test_uncalibrated_distances_say_so(folder, room):
    argv = ["predict", folder / "model.safetensors", room.recording, "--out", folder / "poses.csv"]
    assert main(list(map(str, argv))) == 0
    first = (folder / "poses.csv").read_text().splitlines()[1]
    assert ",uncalibrated," in first
    pose = read_robot_poses(folder / "poses.csv")[0]
    assert np.isnan(pose.values["x_m"])
    assert np.isfinite(pose.values["bearing_deg"])


def test_calibration_puts_the_robot_at_the_distance_and_changes_nothing_else(folder, room):
    path = folder / "model.safetensors"
    make_sure(path, there=True)
    before = load_checkpoint(path)
    calibrate(path, [folder / "images" / "0.png"], [1.7], room.recording)
    after = load_checkpoint(path)
    assert before.tensors.keys() == after.tensors.keys()
    assert all((before.tensors[name] == value).all() for name, value in after.tensors.items())
    told = {"scale_m": None, "glare": 0.0, "height_m": None, "horizon": None, "farthest_m": None}
    assert {**before.metadata, **told} == {**after.metadata, **told}
    assert after.metadata["scale_m"] > 0
    assert after.metadata["glare"] == 0
    assert np.isfinite(after.metadata["height_m"])
    argv = ["predict", path, folder / "images" / "0.png", "--camera", room.recording, "--out", folder / "poses.csv"]
    assert main(list(map(str, argv))) == 0
    assert read_robot_poses(folder / "poses.csv")[0].values["distance_m"] == pytest.approx(1.7, rel=1e-4)
    assert read_robot_poses(folder / "poses.csv")[0].frame == "0.png"


def test_an_image_that_shows_no_robot_is_left_out_and_named(folder, room, caplog):
    path = folder / "model.safetensors"
    images = [folder / "images" / f"{i}.png" for i in range(3)]
    estimator = RobotEstimator.from_checkpoint(path)
    presences = [estimator.sight(read_image(image))[0].presence for image in images]
    least, second = np.argsort(presences)[:2]
    threshold = (presences[least] + presences[second]) / 2
    found = calibrate(path, images, [1.2, 1.4, 1.6], room.recording, min_presence=threshold)
    assert f"{images[least]}: no robot found" in caplog.text
    rest = [i for i in range(3) if i != least]
    rest_m = [(1.2, 1.4, 1.6)[i] for i in rest]
    without = calibrate(path, [images[i] for i in rest], rest_m, room.recording, min_presence=threshold)
    assert found == without


def test_bearings_are_equalised_over_a_recording(folder, room):
    path = folder / "model.safetensors"
    make_sure(path, there=True)
    argv = ["calibrate", path, folder / "images" / "0.png", "--distance", "1.5", "--camera", room.recording]
    assert main([*map(str, argv), "--frames", str(room.recording)]) == 0
    before, after = (folder / "run" / "best.safetensors", path)
    for which in (before, after):
        out = folder / f"{which.stem}.csv"
        assert main(["predict", str(which), str(room.recording), "--out", str(out)]) == 0
    bearings = [read_robot_poses(folder / f"{name}.csv") for name in ("best", "model")]
    plain, equal = (
        np.radians([pose.values["bearing_deg"] for pose in poses if pose.robot_index == 0]) for poses in bearings
    )

    def crowding(bearing_rad: np.ndarray) -> float:
        counts, _ = np.histogram(np.abs(bearing_rad), np.linspace(0, np.pi, 7))
        return counts.std() / counts.mean()

    assert crowding(equal) < 0.5 * crowding(plain)


def test_too_few_robots_to_equalise_over_are_refused_and_nothing_is_stored(folder, room):
    path = folder / "model.safetensors"
    make_sure(path, there=False)
    with pytest.raises(ValueError, match="found in 0 of 120 frames"):
        calibrate(path, [folder / "images" / "0.png"], [1.0], room.recording, frames=room.recording, min_presence=0.0)
    assert "bearing_knots_rad" not in load_checkpoint(path).metadata
    assert load_checkpoint(path).metadata["scale_m"] is None


def test_calibrating_on_an_image_without_a_robot_is_refused(folder, room, capsys):
    path = folder / "model.safetensors"
    make_sure(path, there=False)
    argv = ["calibrate", path, folder / "images" / "0.png", "--distance", "1", "--camera", room.recording]
    assert "0.png: no robot found" in refused(capsys, argv)
    assert load_checkpoint(path).metadata["scale_m"] is None
    assert "distance" in refused(capsys, [*argv[:3], "--distance", "-1", "--camera", room.recording])
    assert "2 for 1 images" in refused(capsys, [*argv[:3], "--distance", "1", "2", "--camera", room.recording])


def test_images_of_another_size_than_the_cameras_are_named(folder, room, capsys):
    cv2.imwrite(str(folder / "small.png"), np.zeros((50, 60, 3), np.uint8))
    argv = ["predict", folder / "model.safetensors", folder / "small.png", "--camera", room.recording]
    message = refused(capsys, [*argv, "--out", folder / "poses.csv"])
    assert "small.png" in message
    assert "60×50" in message
    assert not (folder / "poses.csv").exists()


def test_images_without_a_camera_get_places_but_no_metres(folder):
    argv = ["predict", folder / "model.safetensors", folder / "images", "--out", folder / "poses.csv"]
    assert main(list(map(str, argv))) == 0
    assert len({pose.frame for pose in read_robot_poses(folder / "poses.csv")}) == 3


def test_a_damaged_recording_stops_the_training_and_is_named(folder, room, tmp_path, capsys):
    argv = ["train", folder / "config.toml", "--out", tmp_path / "new"]
    whole = room.recording.read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    assert "cut.h5" in refused(capsys, [*argv, f"data.recording={tmp_path / 'cut.h5'}"])
    for key, value, named in (("RM2_led_left", 0, "left"), ("RM2_led_front", 2, "front")):
        shutil.copy(room.recording, tmp_path / "odd.h5")
        with h5py.File(tmp_path / "odd.h5", "a") as file:
            file[key][...] = value
        assert named in refused(capsys, [*argv, f"data.recording={tmp_path / 'odd.h5'}"])
    with h5py.File(tmp_path / "odd.h5", "a") as file:
        del file["image"]
    assert "image" in refused(capsys, [*argv, f"data.recording={tmp_path / 'odd.h5'}"])
    assert not (tmp_path / "new").exists()


def test_a_misspelt_key_of_a_robots_config_is_named(folder, room, tmp_path, capsys):
    argv = ["train", folder / "config.toml", "--out", tmp_path / "new", f"data.recording={room.recording}"]
    assert "num_scales" in refused(capsys, [*argv, "network.num_scale=3"])
    assert "latent_pose" in refused(capsys, [*argv, "pretext.kind=latent"])


def test_verbs_ask_for_what_their_track_needs(folder, room, capsys):
    assert "--dataset" in refused(capsys, ["evaluate", folder / "poses.csv", "--out", folder / "scores"])
    two = ["predict", folder / "model.safetensors", room.recording, room.recording, "--out", folder / "poses.csv"]
    assert "one recording" in refused(capsys, two)


def test_an_interrupted_training_goes_on(folder, room):
    argv = ["train", str(folder / "config.toml"), "--out", str(folder / "run"), f"data.recording={room.recording}"]
    assert main([*argv, "training.steps=3", "--resume"]) == 0
    assert load_checkpoint(folder / "run" / "last.safetensors").metadata["step"] == 3
