import csv
import json
import math

import numpy as np
import pytest

from glimpose.data.bop_results import ResultRow, write_results_csv
from glimpose.data.led_h5 import open_recording
from glimpose.data.robot_poses import NUMBERS, RobotPose, read_robot_camera, read_robot_poses, write_robot_poses
from glimpose.robots.evaluate import evaluate


def true_poses(path, robot, *, metres=True) -> list[RobotPose]:
    """Write down the truth as a perfect method would predict it."""
    recording = open_recording(path, allow_constant_leds=True)
    poses = []
    for i in range(len(recording)):
        states = sorted(recording.robots(i), key=lambda state: -state.is_visible)
        for index, state in enumerate(states):
            K = recording.camera.K
            u, v = state.uv_px
            ray = np.array([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], 1])
            joint = state.z_m * ray
            values = dict.fromkeys(NUMBERS, math.nan) | {
                "u_px": u,
                "v_px": v,
                "bearing_deg": math.degrees(state.bearing_rad),
                "presence": 0.9 if state.is_visible else 0.1,
            }
            if metres:
                values |= {
                    "distance_m": state.distance_m,
                    "cam_x_m": joint[0],
                    "cam_y_m": joint[1],
                    "cam_z_m": joint[2],
                }
            leds = dict(zip(robot.led_names, 0.1 + 0.8 * state.led_on, strict=True))
            poses.append(RobotPose(str(i), index, values, leds))
    return poses


def changed(poses, **changes) -> list[RobotPose]:
    return [
        RobotPose(p.frame, p.robot_index, {**p.values, **{k: f(p.values) for k, f in changes.items()}}, p.led_prob)
        for p in poses
    ]


def score(room, tmp_path, poses, recording=None, metres=True):
    write_robot_poses(tmp_path / "poses.csv", poses, room.robot.led_names, metres)
    return evaluate(tmp_path / "poses.csv", recording or room.recording, room.robot_file, tmp_path / "scores")


def test_the_truth_has_no_errors(room, tmp_path):
    summary = score(room, tmp_path, true_poses(room.recording, room.robot))
    assert summary["E_uv_px"] < 1e-2
    assert summary["E_psi_deg"] < 1e-3
    assert summary["E_d_percent"] < 1e-3
    assert summary["E_xyz_m"] < 1e-4
    assert summary["gamma_1m_45deg"] == 1
    assert summary["led_auc"] == 1
    assert summary["presence_auc"] == 1
    assert summary["n"] == summary["single"]["num"]
    assert json.loads((tmp_path / "scores" / "summary.json").read_text()) == summary
    with (tmp_path / "scores" / "robots.csv").open() as file:
        assert len(list(csv.DictReader(file))) == summary["n"]


def test_errors_are_counted_as_the_table_does(room, tmp_path):
    poses = changed(
        true_poses(room.recording, room.robot),
        u_px=lambda v: v["u_px"] + 3,
        v_px=lambda v: v["v_px"] - 4,
        bearing_deg=lambda v: v["bearing_deg"] + 350,
        distance_m=lambda v: 1.2 * v["distance_m"],
        cam_z_m=lambda v: v["cam_z_m"] + 1.5,
    )
    summary = score(room, tmp_path, poses)
    assert summary["E_uv_px"] == pytest.approx(5, abs=0.01)
    assert summary["E_psi_deg"] == pytest.approx(10, abs=1e-3)
    assert summary["E_d_percent"] == pytest.approx(20, abs=1e-2)
    assert summary["E_xyz_m"] == pytest.approx(1.5, abs=1e-4)
    assert summary["gamma_1m_45deg"] == 0


def test_several_robots_are_matched_by_place_and_the_order_does_not_matter(room, crowd, tmp_path):
    poses = true_poses(crowd, room.robot)
    swapped = [RobotPose(p.frame, 1 - p.robot_index, p.values, p.led_prob) for p in poses]
    for given in (poses, swapped):
        summary = score(room, tmp_path, given, crowd)
        assert summary["several"]["num"] > 10
        assert summary["several"]["E_uv_px"] < 1e-2
        assert summary["several"]["gamma_1m_45deg"] == 1


def test_a_robot_that_is_not_found_counts_as_missed(room, crowd, tmp_path):
    poses = [pose for pose in true_poses(crowd, room.robot) if pose.robot_index == 0]
    summary = score(room, tmp_path, poses, crowd)
    several = summary["several"]
    assert several["num_missed"] == several["num"] / 2
    assert several["gamma_1m_45deg"] == 0.5
    assert summary["single"]["num_missed"] == 0


def test_without_metres_what_needs_them_is_null(room, tmp_path):
    summary = score(room, tmp_path, true_poses(room.recording, room.robot, metres=False), metres=False)
    assert "uncalibrated" in (tmp_path / "poses.csv").read_text()
    assert summary["E_d_percent"] is summary["E_xyz_m"] is summary["gamma_1m_45deg"] is None
    assert summary["E_uv_px"] < 1e-2


def test_predictions_of_another_recording_are_refused(room, crowd, tmp_path):
    with pytest.raises(ValueError, match="no predictions for 80"):
        score(room, tmp_path, true_poses(crowd, room.robot))
    with pytest.raises(ValueError, match="frame '40'"):
        score(room, tmp_path, true_poses(room.recording, room.robot), crowd)
    with pytest.raises(ValueError, match=r"frame 'photo\.png'"):
        score(
            room,
            tmp_path,
            [RobotPose("photo.png", 0, dict.fromkeys(NUMBERS, 0.0), dict.fromkeys(room.robot.led_names, 0.5))],
        )


def test_predictions_survive_writing_and_reading(room, tmp_path):
    poses = true_poses(room.recording, room.robot)[:5]
    write_robot_poses(tmp_path / "poses.csv", poses, room.robot.led_names, True)
    for pose, again in zip(poses, read_robot_poses(tmp_path / "poses.csv"), strict=True):
        assert (pose.frame, pose.robot_index) == (again.frame, again.robot_index)
        np.testing.assert_allclose([*again.values.values()], [*pose.values.values()], rtol=1e-5)
        assert again.led_prob == pytest.approx(pose.led_prob)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda text: text.replace("bearing_deg", "bearing"), "bearing_deg"),
        (lambda text: text.rstrip("\n").rpartition(",")[0], "line 6"),
        (lambda text: text.replace("0.9", "much", 1), "line 2"),
    ],
)
def test_a_damaged_file_of_predictions_is_named_with_its_line(room, tmp_path, damage, named):
    path = tmp_path / "poses.csv"
    write_robot_poses(path, true_poses(room.recording, room.robot)[:5], room.robot.led_names, True)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=named):
        read_robot_poses(path)


def test_cameras_come_from_json_or_from_recordings(room, tmp_path):
    found = read_robot_camera(room.recording)
    np.testing.assert_array_equal(found.base_T_cam, room.camera.base_T_cam)
    content = {"fx": 80.0, "fy": 80.0, "cx": 79.5, "cy": 35.5, "width": 160, "height": 72}
    (tmp_path / "camera.json").write_text(json.dumps(content))
    bare = read_robot_camera(tmp_path / "camera.json")
    np.testing.assert_array_equal(bare.K, room.camera.K)
    assert np.isnan(bare.base_T_cam[2, 3])
    content |= {"distortion": [0.1, 0, 0, 0, 0], "base_T_cam": room.camera.base_T_cam.ravel().tolist()}
    (tmp_path / "camera.json").write_text(json.dumps(content))
    full = read_robot_camera(tmp_path / "camera.json")
    np.testing.assert_array_equal(full.base_T_cam, room.camera.base_T_cam)
    assert full.distortion[0] == 0.1
    content["distortion"] = [0.1]
    (tmp_path / "camera.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="distortion"):
        read_robot_camera(tmp_path / "camera.json")


def test_poses_of_the_robots_mesh_are_scored_alike(room, tmp_path):
    recording = open_recording(room.recording, allow_constant_leds=True)
    rows = []
    for i in range(len(recording)):
        (state,) = recording.robots(i)
        if state.is_visible:
            x, y, theta = state.base_T_target
            cos, sin = math.cos(theta), math.sin(theta)
            base_T_obj = np.array([[cos, -sin, 0, x], [sin, cos, 0, y], [0, 0, 1, 0], [0, 0, 0, 1]])
            rows.append(ResultRow(0, i, 1, 0.8, np.linalg.inv(room.camera.base_T_cam) @ base_T_obj, 0.1))
    write_results_csv(tmp_path / "bop.csv", rows)
    summary = evaluate(tmp_path / "bop.csv", room.recording, room.robot_file, tmp_path / "scores")
    assert summary["E_uv_px"] < 1e-3
    assert summary["E_psi_deg"] < 1e-3
    assert summary["E_d_percent"] < 1e-3
    assert summary["E_xyz_m"] < 1e-5
    assert summary["presence_auc"] == 1
    assert summary["led_auc"] is None
    write_results_csv(tmp_path / "bop.csv", rows[: len(rows) // 4])
    summary = evaluate(tmp_path / "bop.csv", room.recording, room.robot_file, tmp_path / "scores")
    assert summary["num_missed"] == len(rows) - len(rows) // 4
    assert summary["E_uv_px"] is None  # most are missed: the median is infinite
