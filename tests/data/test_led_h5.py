"""Recordings: what is written is read, in both public layouts, and what is wrong is named."""

import pickle

import h5py
import numpy as np
import pytest

from glimpose.data.led_h5 import ROBOMASTER_CAMERA, RobotCamera, open_recording
from glimpose.data.led_h5_writer import join_recordings, ml_row, relative_pose, write_recording

CAMERA = RobotCamera(
    K=np.array([[30.0, 0, 31.5], [0, 30.0, 17.5], [0, 0, 1]]),
    width=64,
    height=36,
    distortion=np.zeros(5),
    base_T_cam=ROBOMASTER_CAMERA.base_T_cam,
)
GIMBAL_M = (0.0, 0.0, 0.118)
NAMES = ("bf", "bb", "bl", "br")
NUM = 12


def rows(seed: int = 0, num_robots: int = 2):
    """Frames of robots anywhere that blink at random."""
    rng = np.random.default_rng(seed)
    for i in range(NUM):
        poses = {r: np.append(rng.uniform(-2, 2, 2), rng.uniform(-3, 3)) for r in range(1, num_robots + 1)}
        leds = {r: {name: bool(rng.integers(2)) for name in NAMES} for r in poses}
        image = rng.integers(0, 256, (36, 64, 3)).astype(np.uint8)
        yield ml_row(image, i / 3, 1 + i % num_robots, poses, leds, {2: 7 * i}, CAMERA, GIMBAL_M)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "recording.h5"
    write_recording(path, rows(), NUM, [1, 2], NAMES, CAMERA, "here")
    return path


def state(pose_1, pose_2, tmp_path):
    """What a recording says of robot 2, seen from robot 1."""
    leds = {r: dict.fromkeys(NAMES, False) for r in (1, 2)}
    poses = {1: np.array(pose_1, float), 2: np.array(pose_2, float)}
    row = ml_row(np.zeros((36, 64, 3), np.uint8), 0.0, 1, poses, leds, {}, CAMERA, GIMBAL_M)
    write_recording(tmp_path / "one.h5", [row], 1, [1, 2], NAMES, CAMERA, "")
    (seen,) = open_recording(tmp_path / "one.h5", allow_constant_leds=True)[0].robots
    return seen


def test_what_is_written_is_read(path):
    recording = open_recording(path)
    assert len(recording) == NUM
    assert recording.led_names == NAMES
    assert np.array_equal(recording.camera.K, CAMERA.K)
    assert np.array_equal(recording.camera.base_T_cam, CAMERA.base_T_cam)
    for i, row in enumerate(rows()):
        frame, target = recording[i], 3 - row["robot_id"]
        assert np.array_equal(frame.image, row["image"])
        assert frame.timestamp_s == row["timestamp"]
        (robot,) = frame.robots
        assert robot.name == f"RM{target}"
        assert robot.led_on.tolist() == [row[f"RM{target}_led_{name}"] for name in NAMES]
        assert recording.led_states(i).tolist() == [robot.led_on.tolist()]
        assert np.array_equal(robot.uv_px, row[f"RM{3 - target}_proj_uvz_RM{target}"][:2])
        assert robot.num_visible_px == row[f"RM{target}_visible_px"]


def test_every_key_of_the_public_layout_is_there(path):
    with h5py.File(path) as file:
        assert list(file.attrs["RIDs"]) == ["RM1", "RM2"]
        keys = {"image", "robot_id", "timestamp", *(f"RM{r}_led_{name}" for r in (1, 2) for name in NAMES)}
        for a, b in ((1, 2), (2, 1)):
            keys |= {f"RM{a}_proj_uvz_RM{b}", f"RM{a}_pose_rel_RM{b}", f"RM{a}_pose", f"RM{a}_camera_pose"}
        assert keys <= set(file)
        assert file["image"].chunks == (1, 36, 64, 3)
        x, y, z, w = file["RM1_camera_pose"][0, 3:]
        assert np.isclose(x * x + y * y + z * z + w * w, 1)


@pytest.mark.parametrize(("theta_deg", "bearing_deg"), [(180, 0), (90, 90), (0, 180), (-90, -90)])
def test_bearing_is_where_the_target_sees_the_camera_robot(tmp_path, theta_deg, bearing_deg):
    seen = state((0, 0, 0), (2, 0, np.deg2rad(theta_deg)), tmp_path)
    difference = (np.rad2deg(seen.bearing_rad) - bearing_deg + 180) % 360 - 180
    assert abs(difference) < 1e-9
    assert seen.distance_m == pytest.approx(2)


def test_joint_ahead_is_projected_by_hand(tmp_path):
    pitch = np.deg2rad(1.6)
    seen = state((1, 1, np.pi / 2), (1, 3, 0.4), tmp_path)
    x, drop = 2 - 0.0749, 0.2340 - GIMBAL_M[2]
    z = x * np.cos(pitch) + drop * np.sin(pitch)
    v = 17.5 + 30 * (drop * np.cos(pitch) - x * np.sin(pitch)) / z
    assert seen.z_m == pytest.approx(z)
    assert seen.uv_px == pytest.approx([31.5 + 30 * 0.0001 / z, v])
    assert seen.is_visible
    assert seen.base_T_target == pytest.approx([2, 0, 0.4 - np.pi / 2])


def test_a_robot_behind_is_not_visible(tmp_path):
    seen = state((0, 0, 0), (-2, 0, 0), tmp_path)
    assert seen.z_m < 0
    assert not seen.is_visible


def test_relative_poses_of_two_robots_are_inverse():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.uniform(-3, 3, (2, 3))
        there, back = relative_pose(a, b), relative_pose(b, a)
        turned = np.array([[np.cos(back[2]), -np.sin(back[2])], [np.sin(back[2]), np.cos(back[2])]]) @ there[:2]
        assert turned + back[:2] == pytest.approx([0, 0])
        assert np.isclose(np.cos(there[2] + back[2]), 1)


def test_three_robots_give_two_targets(tmp_path):
    write_recording(tmp_path / "three.h5", rows(num_robots=3), NUM, [1, 2, 3], NAMES, CAMERA, "")
    recording = open_recording(tmp_path / "three.h5")
    assert [robot.name for robot in recording[1].robots] == ["RM1", "RM3"]
    assert recording.led_states(1).shape == (2, len(NAMES))


def test_leds_can_be_chosen_and_ordered(path):
    states = open_recording(path).led_states(5)
    assert np.array_equal(open_recording(path, led_names=["br", "bf"]).led_states(5), states[:, [3, 0]])
    with pytest.raises(ValueError, match="LED tl; recorded are bb, bf, bl, br"):
        open_recording(path, led_names=["bf", "tl"])


def test_recordings_survive_pickling_and_forking(path, monkeypatch):
    recording = open_recording(path)
    image = recording[3].image
    assert np.array_equal(pickle.loads(pickle.dumps(recording))[3].image, image)
    file = recording._open()
    assert recording._open() is file
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert recording._open() is not file


def test_indices_count_from_the_end_and_end(path):
    recording = open_recording(path)
    assert np.array_equal(recording[-1].image, recording[NUM - 1].image)
    assert sum(1 for _ in recording) == NUM
    with pytest.raises(IndexError):
        recording[NUM]


def test_joined_recordings_follow_each_other(path, tmp_path):
    write_recording(tmp_path / "more.h5", rows(1), NUM, [1, 2], NAMES, CAMERA, "there")
    join_recordings([path, tmp_path / "more.h5"], tmp_path / "joined.h5")
    joined = open_recording(tmp_path / "joined.h5")
    assert len(joined) == 2 * NUM
    assert np.array_equal(joined[NUM + 2].image, open_recording(tmp_path / "more.h5")[2].image)
    assert np.array_equal(joined.led_states(2), open_recording(path).led_states(2))


def test_recordings_of_other_robots_are_not_joined(path, tmp_path):
    write_recording(tmp_path / "three.h5", rows(num_robots=3), NUM, [1, 2, 3], NAMES, CAMERA, "")
    with pytest.raises(ValueError, match=r"three\.h5: other keys"):
        join_recordings([path, tmp_path / "three.h5"], tmp_path / "joined.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recording.h5", "three.h5"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def broken():
        yield next(rows())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_recording(tmp_path / "half.h5", broken(), NUM, [1, 2], NAMES, CAMERA, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["image", "robot_id", "RM2_led_bl"])
def test_missing_keys_are_named(path, key):
    with h5py.File(path, "r+") as file:
        del file[key]
    with pytest.raises(ValueError, match=rf"recording\.h5: .*'{key}'"):
        open_recording(path)


def test_missing_robot_names_are_named(path):
    with h5py.File(path, "r+") as file:
        del file.attrs["RIDs"]
    with pytest.raises(ValueError, match="RIDs"):
        open_recording(path)


def test_missing_ground_truth_is_none(path):
    with h5py.File(path, "r+") as file:
        for key in [key for key in file if "pose" in key or "proj" in key or key in ("timestamp",)]:
            del file[key]
    frame = open_recording(path)[0]
    (robot,) = frame.robots
    assert np.isnan(frame.timestamp_s)
    assert [robot.uv_px, robot.z_m, robot.distance_m, robot.bearing_rad, robot.base_T_target] == [None] * 5
    assert robot.is_visible is None


def test_states_other_than_zero_and_one_are_named_with_their_frame(path):
    with h5py.File(path, "r+") as file:
        file["RM1_led_br"][3] = 2
    with pytest.raises(ValueError, match=r"RM1_led_br is 2 in frame 3, expected 0 or 1"):
        open_recording(path)


def test_a_constant_led_is_named_unless_it_is_allowed(path):
    with h5py.File(path, "r+") as file:
        for robot in (1, 2):
            file[f"RM{robot}_led_bb"][:] = 0
    with pytest.raises(ValueError, match="LED bb is always 0"):
        open_recording(path)
    assert not open_recording(path, allow_constant_leds=True)[0].robots[0].led_on[1]
    assert open_recording(path, led_names=["bf", "bl"]).led_names == ("bf", "bl")


def test_columns_of_another_length_are_named(path):
    with h5py.File(path, "r+") as file:
        short = file["RM1_led_bf"][:5]
        del file["RM1_led_bf"]
        file["RM1_led_bf"] = short
    with pytest.raises(ValueError, match=r"RM1_led_bf has 5 rows, but there are 12 images"):
        open_recording(path)


def test_a_truncated_file_is_named(path):
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"recording\.h5: not a readable HDF5 file"):
        open_recording(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_recording(path.with_name("nowhere.h5"))


def test_public_recordings_have_the_public_camera(path):
    with h5py.File(path, "r+") as file:
        for key in ("K", "distortion", "base_T_cam", "led_names"):
            del file.attrs[key]
    with pytest.raises(ValueError, match=r"images are 64×36, .* of 640×360"):
        open_recording(path)
    with h5py.File(path, "r+") as file:
        del file["image"]
        file.create_dataset("image", (NUM, 360, 640, 3), np.uint8)
    recording = open_recording(path)
    assert recording.camera is ROBOMASTER_CAMERA
    assert recording.led_names == ("bb", "bl", "br", "bf")


@pytest.fixture
def single(tmp_path):
    path = tmp_path / "single.h5"
    with h5py.File(path, "w") as file:
        file["image"] = np.random.default_rng(0).integers(0, 256, (6, 1, 32, 32)).astype(np.uint8)
        file["led_status"] = np.array([0, 1, 0, 1, 0, 0])[:, None]
        file["subset"] = np.array([0, 0, 1, 1, 4, 4])
        file["pose_rel"] = np.arange(24.0).reshape(6, 4)
        file["proj_u"], file["proj_v"] = np.arange(6.0)[:, None] + 3, np.arange(6.0)[:, None] - 1
    return path


def test_single_led_recordings_are_read(single):
    recording = open_recording(single)
    assert (len(recording), recording.led_names, recording.camera) == (6, ("led",), None)
    frame = recording[3]
    assert frame.image.shape == (32, 32, 3)
    with h5py.File(single) as file:
        assert np.array_equal(frame.image[..., 1], file["image"][3, 0])
    (robot,) = frame.robots
    assert robot.led_on.tolist() == [True]
    assert (robot.distance_m, robot.bearing_rad, robot.is_visible) == (12.0, None, True)
    assert robot.uv_px.tolist() == [6.0, 2.0]


def test_frames_of_nothing_have_no_targets(single):
    recording = open_recording(single)
    assert recording[4].robots == ()
    assert recording.led_states(4).shape == (0, 1)


def test_subsets_choose_frames(single, path):
    recording = open_recording(single, subsets=["TE1"])
    assert len(recording) == 2
    assert recording[0].robots[0].distance_m == 8.0
    with pytest.raises(ValueError, match="no such subset TRAIN; expected TR1"):
        open_recording(single, subsets=["TRAIN"])
    with pytest.raises(ValueError, match="only LP recordings have subsets"):
        open_recording(path, subsets=["TR1"])
