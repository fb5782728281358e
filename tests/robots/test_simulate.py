"""Simulated robots look, shine and move as they should, and recordings of them are reproducible."""

from dataclasses import replace
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from glimpose.cli import main
from glimpose.data.led_h5 import open_recording
from glimpose.data.led_h5_writer import ml_row
from glimpose.render.scene import Instance, make_renderer
from glimpose.robots import simulate as simulation
from glimpose.robots.body import led_plate, robot_body
from glimpose.robots.drive import DriveConfig, draw_drive
from glimpose.robots.leds import load_leds
from glimpose.robots.photograph import CAMERA, Moment
from glimpose.robots.place import Place, PlaceConfig
from glimpose.robots.simulate import SimulationConfig, Simulator, load_simulation, simulate

CONFIGS = Path(__file__).parents[2] / "configs/robots"
ROBOT = load_leds(Path("robomaster"))
SMALL = SimulationConfig(drive=DriveConfig(frames_per_drive=4), supersampling=1.0)


@pytest.fixture(scope="module")
def renderer():
    renderer = make_renderer()
    yield renderer
    renderer.close()


@pytest.fixture(scope="module")
def simulator(renderer):
    return Simulator(SMALL, ROBOT, 0, renderer)


@pytest.fixture(scope="module")
def look(renderer):
    """Draw the robot alone, 1.5 m before the camera, as seen at bearing ψ: buffers, body first, then LEDs."""
    meshes = [robot_body(ROBOT), *(led_plate(led) for led in ROBOT.leds)]

    def look(psi_deg: float, distance_m: float = 1.5):
        theta = np.pi - np.deg2rad(psi_deg)
        base_T_target = np.eye(4)
        base_T_target[:2, :2] = [[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]]
        base_T_target[0, 3] = distance_m
        cam_T_target = np.linalg.inv(CAMERA.base_T_cam) @ base_T_target
        return renderer.render([Instance(mesh, cam_T_target) for mesh in meshes], CAMERA.K, CAMERA.height, CAMERA.width)

    return look


@pytest.fixture(scope="module")
def shoot(simulator):
    """Photograph the same scene, the robot seen at bearing ψ with these LEDs on."""
    take = simulator.take(0)
    sensor = replace(SMALL.sensor, noise_prob=0.0, motion_prob=0.0, defocus_prob=0.0, jpeg_prob=0.0)
    simulator.photographer.sensor = sensor

    def shoot(psi_deg: float, *names: str) -> np.ndarray:
        poses = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, np.pi - np.deg2rad(psi_deg)]])
        on = np.array([[0] * 6, [name in names for name in ROBOT.led_names]])[..., None]
        moment = Moment(0, poses, on * take.led_radiance, take.moment(0).lamp_radiance * 0, 1.0)
        empty = replace(take.arrangement, meshes=take.arrangement.meshes[:6])  # the room alone
        return simulator.photographer.photograph(empty, moment, np.random.default_rng(0))[0].astype(int)

    return shoot


def test_leds_are_seen_from_their_arcs_and_from_nowhere_else(look):
    """Half of a plate is seen where its arc ends; well inside all of it is, and well outside nothing."""
    for psi in range(-175, 181, 5):
        seen_px = np.bincount(look(psi).mask.ravel(), minlength=8)[2:]
        inside = ROBOT.faces(np.deg2rad(psi + np.array([-14, 0, 14]))).all(0)
        outside = ~ROBOT.faces(np.deg2rad(psi + np.array([-14, 0, 14]))).any(0)
        assert (seen_px[inside] > 0).all(), (psi, seen_px)
        assert (seen_px[outside] == 0).all(), (psi, seen_px)


def test_robot_has_the_right_size_in_the_image(look):
    """It is 0.27 m high and 0.32 m long."""
    for distance_m in (1.0, 2.5):
        _, _, width, height = cv2.boundingRect(look(90, distance_m).mask)
        assert height == pytest.approx(0.265 * 314 / (distance_m - 0.0749 - 0.1), rel=0.1)
        assert width == pytest.approx(0.335 * 314 / (distance_m - 0.0749 - 0.1), rel=0.1)


def test_wheels_stand_on_the_floor(look):
    xyz = look(90).xyz[look(90).mask == 1]
    assert 0 <= xyz[:, 2].min() < 0.01


def test_front_and_rear_differ_without_leds(look):
    front, rear = look(0), look(180)
    both = (front.mask == 1) & (rear.mask == 1)
    assert np.abs(front.albedo[both].astype(int) - rear.albedo[both]).mean() > 30


@pytest.mark.parametrize("psi_deg", [0, 60, 180, -120])
def test_the_joints_projection_lies_on_the_turret(look, psi_deg):
    poses = {1: np.zeros(3), 2: np.array([1.5, 0.0, np.pi - np.deg2rad(psi_deg)])}
    leds = {r: dict.fromkeys(ROBOT.led_names, False) for r in poses}
    row = ml_row(np.zeros((1, 1, 3), np.uint8), 0, 1, poses, leds, {}, CAMERA, ROBOT.gimbal_m)
    u, v, z = row["RM1_proj_uvz_RM2"]
    buffers = look(psi_deg)
    assert buffers.mask[round(v), round(u)] == 1
    assert buffers.depth[round(v), round(u)] == pytest.approx(z, abs=0.16)
    assert abs(buffers.xyz[round(v), round(u), 2] - ROBOT.gimbal_m[2]) < 0.06


@pytest.mark.parametrize(("psi_deg", "near", "far"), [(90, "bl", "br"), (-90, "tr", "tl"), (0, "bf", "bb")])
def test_a_switch_shows_where_the_led_is_seen_and_only_there(shoot, look, psi_deg, near, far):
    """At ψ = +90° the camera is on the robot's left, and sees its left LEDs."""
    robot = look(psi_deg, 1.0).mask
    off, on, hidden = shoot(psi_deg), shoot(psi_deg, near), shoot(psi_deg, far)
    plate = robot == 2 + ROBOT.led_names.index(near)
    assert (on - off)[plate].max(-1).mean() > 80
    assert on[plate][:, 2].mean() > 240  # saturated blue
    # Around it light blooms; what shines on the far side changes nothing on the robot.
    ring = cv2.dilate(plate.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool) & ~plate
    assert (on - off)[ring][:, 2].mean() > 10
    assert np.abs(hidden - off)[robot > 0].max() < 12


def test_frames_are_a_function_of_their_number_alone(simulator, renderer):
    again = Simulator(SMALL, ROBOT, 0, renderer)
    again.photographer.sensor = simulator.photographer.sensor
    for index in (5, 1):
        first, second = simulator.row(index), again.row(index)
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[key], second[key]) for key in first)
    other = Simulator(SMALL, ROBOT, 1, renderer).row(1)
    assert not np.array_equal(first["image"], other["image"])


def test_an_interrupted_simulation_resumes_to_the_same_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(simulation, "FRAMES_PER_PART", 3)
    simulate(SMALL, ROBOT, tmp_path / "whole.h5", 8, seed=4)

    write, calls = simulation._write_part, []

    def interrupted(task):
        calls.append(task)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(task)

    out = tmp_path / "new.h5"
    monkeypatch.setattr(simulation, "_write_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulate(SMALL, ROBOT, out, 8, seed=4)
    assert not out.exists()
    monkeypatch.setattr(simulation, "_write_part", write)
    with pytest.raises(ValueError, match="--resume"):
        simulate(SMALL, ROBOT, out, 8, seed=4)
    with pytest.raises(ValueError, match="another config or seed"):
        simulate(SMALL, ROBOT, out, 8, seed=5, resume=True)
    simulate(SMALL, ROBOT, out, 8, seed=4, resume=True)
    with h5py.File(tmp_path / "whole.h5") as whole, h5py.File(out) as resumed:
        assert set(whole) == set(resumed)
        assert all(np.array_equal(whole[key], resumed[key]) for key in whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.h5", "whole.h5"]


def test_other_processes_draw_the_same(tmp_path):
    simulate(SMALL, ROBOT, tmp_path / "here.h5", 2, seed=4)
    simulate(SMALL, ROBOT, tmp_path / "there.h5", 2, seed=4, num_workers=1)
    with h5py.File(tmp_path / "here.h5") as here, h5py.File(tmp_path / "there.h5") as there:
        assert all(np.array_equal(here[key], there[key]) for key in here)


def test_command_line_writes_a_recording_of_three_robots(tmp_path, capsys):
    out = tmp_path / "three.h5"
    argv = ["simulate", str(CONFIGS / "place-a.toml"), "--out", str(out), "--num", "4", "--seed", "3"]
    assert main([*argv, "drive.num_robots=3", "drive.frames_per_drive=2", "supersampling=1.0"]) == 0
    recording = open_recording(out, allow_constant_leds=True)
    assert recording[0].image.shape == (360, 640, 3)
    assert recording[0].image.std() > 10
    assert np.array_equal(recording.camera.distortion, np.zeros(5))
    assert [[robot.name for robot in recording[i].robots] for i in (0, 2)] == [["RM2", "RM3"], ["RM1", "RM3"]]
    assert recording[1].timestamp_s - recording[0].timestamp_s == pytest.approx(1 / 3)
    assert main(argv) == 2
    assert "three.h5: exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("drive.num_robots=1", "at least 2"),
        ("place.flor=1", "place.floor"),
        ("place.arena_m=[9.0, 9.0]", "around the arena"),
        ("place.clutter=[5, 2]", "clutter"),
        ("drive.led_dwell_s=[0, 1]", "led_dwell_s"),
        ("drive.frame_rate_hz=0.0", "frame_rate_hz"),
        ("supersampling=0.0", "supersampling"),
        ("place.photographs=/nowhere", "/nowhere"),
        ("robot=nobody.toml", "nobody.toml"),
    ],
)
def test_mistakes_in_a_config_are_named_and_nothing_is_written(tmp_path, capsys, override, message):
    argv = ["simulate", str(CONFIGS / "place-a.toml"), "--out", str(tmp_path / "new.h5"), "--num", "2", override]
    assert main(argv) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_places_differ_more_than_drives_do(renderer):
    means = {}
    for name in ("place-a", "place-b"):
        config, robot = load_simulation(CONFIGS / f"{name}.toml")
        fast = replace(config, supersampling=1.0, drive=DriveConfig(frames_per_drive=1))
        means[name] = np.array([Simulator(fast, robot, 0, renderer).row(i)["image"].mean((0, 1)) for i in range(6)])
    within = max(np.linalg.norm(mean.std(0)) for mean in means.values())
    assert np.linalg.norm(means["place-a"].mean(0) - means["place-b"].mean(0)) > 1.5 * within


def test_photographs_hang_on_the_walls(tmp_path):
    cv2.imwrite(str(tmp_path / "magenta.png"), np.full((64, 64, 3), (255, 0, 255), np.uint8))
    walls = [mesh.texture for mesh in Place(PlaceConfig(photographs=tmp_path)).room[2:]]
    assert any(((wall[..., 0] > 200) & (wall[..., 1] < 60) & (wall[..., 2] > 200)).mean() > 0.005 for wall in walls)


def drives(num: int, **changes):
    config = DriveConfig(**changes)
    for i in range(num):
        yield draw_drive(np.random.default_rng(i), config, 0, 3, (5.0, 4.0), [(0.0, 0.0, 0.2)])


def test_leds_switch_independently_of_the_pose_and_of_each_other():
    leds, bearings = [], []
    for drive in drives(60):
        to_camera = drive.poses[:, 0, :2] - drive.poses[:, 1, :2]
        bearings.append(np.arctan2(to_camera[:, 1], to_camera[:, 0]) - drive.poses[:, 1, 2])
        leds.append(drive.led_on[:, 1])
    on, psi = np.concatenate(leds).astype(float), np.concatenate(bearings)
    assert np.abs(on.mean(0) - 0.5).max() < 0.06
    values = np.column_stack([on, np.cos(psi), np.sin(psi)])
    correlation = np.corrcoef(values.T)
    assert np.abs(correlation[:3] - np.eye(5)[:3]).max() < 0.12
    assert len(np.unique(on, axis=0)) == 8


def test_robots_stay_in_the_arena_and_apart_and_move_smoothly():
    for drive in drives(8, num_robots=3):
        x, y, theta = np.moveaxis(drive.poses, 2, 0)
        assert np.abs(x).max() < 2.5
        assert np.abs(y).max() < 2.0
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert np.hypot(x[:, a] - x[:, b], y[:, a] - y[:, b]).min() > 0.3
        assert np.hypot(np.diff(x, axis=0), np.diff(y, axis=0)).max() * 3 < 1.6
        turns = np.diff(theta, axis=0)
        assert np.rad2deg(np.abs(np.arctan2(np.sin(turns), np.cos(turns)))).max() <= 90 / 3 + 1


def test_the_other_robot_is_in_view_mostly_but_not_always():
    ahead = []
    for drive in drives(40):
        to_other = drive.poses[:, 1, :2] - drive.poses[:, 0, :2]
        off = np.arctan2(to_other[:, 1], to_other[:, 0]) - drive.poses[:, 0, 2]
        ahead.append(np.abs(np.arctan2(np.sin(off), np.cos(off))) < np.deg2rad(44))
    assert 0.65 < np.mean(ahead) < 0.95


def test_configs_of_all_places_are_complete():
    for name in ("place-a", "place-b", "place-c", "small-a", "small-b"):
        _, robot = load_simulation(CONFIGS / f"{name}.toml")
        assert robot == ROBOT
