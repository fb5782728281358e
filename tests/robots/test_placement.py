import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from glimpose.data.led_h5 import ROBOMASTER_CAMERA, RobotCamera
from glimpose.data.led_h5_writer import ml_row
from glimpose.robots.leds import Led, LedRobot
from glimpose.robots.placement import (
    FARTHEST_M,
    Calibration,
    direction,
    focal_px,
    place,
    project,
    ray,
    run_and_slope,
)

ROBOT = LedRobot("one", (Led("front", 0.0),), (-0.002, 0.01, 0.118))
CAMERA = replace(ROBOMASTER_CAMERA, distortion=np.zeros(5))
HEIGHT_M = float(CAMERA.base_T_cam[2, 3])
TURRET = LedRobot(
    "turret",
    (
        Led("front", 0.0, 80.0, (0.17, 0.0, 0.07)),
        Led("left", 90.0, 90.0, (0.0, 0.07, 0.2)),
        Led("right", -90.0, 90.0, (0.0, -0.07, 0.2)),
    ),
    ROBOT.gimbal_m,
)
POSES = [(1.0, 0.0, 0.0), (2.5, 0.8, 2.0), (1.2, -0.9, -3.0)]


def true_view(x: float, y: float, theta: float, camera: RobotCamera = CAMERA):
    """What the recording says of a robot at (x, y, θ): pixel and depth of its joint, and its bearing."""
    poses = {1: np.zeros(3), 2: np.array([x, y, theta])}
    row = ml_row(np.zeros((1, 1, 3)), 0.0, 1, poses, {1: {}, 2: {}}, {}, camera, ROBOT.gimbal_m)
    u, v, z = row["RM1_proj_uvz_RM2"]
    seen_from = row["RM2_pose_rel_RM1"]
    return np.array([u, v]), z, math.atan2(seen_from[1], seen_from[0])


def unknown_height(camera: RobotCamera) -> RobotCamera:
    base_T_cam = camera.base_T_cam.copy()
    base_T_cam[2, 3] = np.nan
    return replace(camera, base_T_cam=base_T_cam)


@pytest.mark.parametrize("pose", POSES)
def test_a_true_joint_gives_the_true_pose(pose):
    uv, depth_m, bearing = true_view(*pose)
    found, cam_T_robot = place(depth_m * direction(uv, CAMERA), bearing, CAMERA, ROBOT)
    np.testing.assert_allclose(found, pose, atol=1e-5)
    cos, sin = math.cos(pose[2]), math.sin(pose[2])
    base_T_target = np.array([[cos, -sin, 0, pose[0]], [sin, cos, 0, pose[1]], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(cam_T_robot, np.linalg.inv(CAMERA.base_T_cam) @ base_T_target, atol=1e-5)


def test_an_unknown_camera_height_leaves_the_height_to_the_ray():
    uv, depth_m, bearing = true_view(1.5, 0.3, 1.0)
    unknown = unknown_height(CAMERA)
    _, known = place(depth_m * direction(uv, CAMERA), bearing, CAMERA, ROBOT)
    _, found = place(depth_m * direction(uv, unknown), bearing, unknown, ROBOT)
    np.testing.assert_allclose(found, known, atol=1e-6)  # an exact ray tells the height
    _, raised = place(depth_m * direction(uv - [0, 10], unknown), bearing, unknown, ROBOT)
    assert raised[1, 3] < found[1, 3] - 0.02
    _, kept = place(depth_m * direction(uv - [0, 10], CAMERA), bearing, CAMERA, ROBOT)
    joint = CAMERA.base_T_cam @ kept
    assert joint[2, 3] == pytest.approx(0.0, abs=1e-9)


def test_distortion_is_undone():
    xyz = np.array([[0.4, 0.1, 1.0]])
    uv, _ = cv2.projectPoints(xyz, np.zeros(3), np.zeros(3), ROBOMASTER_CAMERA.K, ROBOMASTER_CAMERA.distortion)
    np.testing.assert_allclose(ray(uv[0, 0], ROBOMASTER_CAMERA), xyz[0], atol=1e-4)
    assert np.abs(ray(uv[0, 0], CAMERA) - xyz[0]).max() > 1e-3


@given(st.floats(0, 639), st.floats(0, 359), st.floats(0.3, 9))
def test_what_is_seen_at_a_pixel_is_projected_to_it(u, v, depth_m):
    uv = np.array([u, v])
    np.testing.assert_allclose(project(depth_m * direction(uv, CAMERA), CAMERA), uv, atol=1e-3)


@pytest.mark.parametrize("pose", POSES)
def test_a_network_that_points_at_the_joint_needs_a_scale_alone(pose):
    uv, depth_m, bearing = true_view(*pose)
    focal = focal_px(CAMERA) / 2
    log_range = math.log(depth_m / focal)  # the input is half as large
    to_joint_m = Calibration(1.0).to_joint_m(uv, log_range, bearing, focal, CAMERA, ROBOT)
    np.testing.assert_allclose(project(to_joint_m, CAMERA), uv, atol=1e-3)
    np.testing.assert_allclose(place(to_joint_m, bearing, CAMERA, ROBOT)[0], pose, atol=1e-4)


def sight(pose: tuple[float, float, float], told: Calibration) -> tuple[np.ndarray, float, float]:
    """What a network with that calibration sees of a robot whose turret light it points at: pixel, range, bearing.

    Calibrations know of one distance, the joint's: the light is moved along the line of sight to it.
    """
    uv, depth_m, bearing = true_view(*pose)
    left, right = TURRET.leds[1:]
    light = left if 0 < bearing < math.pi else right
    joint_m = depth_m * direction(uv, CAMERA)
    distance_m = np.hypot(*joint_m[:2])
    away_m = Rotation.from_euler("z", pose[2]).apply(np.array(light.position_m) - TURRET.gimbal_m)
    ahead = np.array([*joint_m[:2], 0]) / distance_m
    light_m = joint_m + away_m - away_m @ ahead * ahead
    seen_uv = project(light_m, CAMERA)
    assert np.linalg.norm(seen_uv - uv) > 10
    run = np.hypot(*direction(seen_uv, CAMERA)[:2])
    size = told.glare + told.scale_m * focal_px(CAMERA) * run / distance_m
    return seen_uv, -math.log(size), bearing


@pytest.mark.parametrize("theta", [-2.5, -1.2, 0.4, 1.4, 2.6])
@pytest.mark.parametrize("glare", [0.0, 0.5])
def test_a_light_that_is_pointed_at_leads_to_the_joint(theta, glare):
    """A network that points at whichever turret light it sees; calibration told how high that is."""
    pose = (1.5, 0.4, theta)
    told = Calibration(0.01, glare, height_m=0.2, horizon=0.0)
    seen_uv, log_range, bearing = sight(pose, told)
    to_joint_m = told.to_joint_m(seen_uv, log_range, bearing, focal_px(CAMERA), CAMERA, TURRET)
    found, _ = place(to_joint_m, bearing, CAMERA, TURRET)
    np.testing.assert_allclose(found[:2], pose[:2], atol=0.01)
    np.testing.assert_allclose(project(to_joint_m, CAMERA), true_view(*pose)[0], atol=1.5)


def test_where_slopes_agree_on_no_height_the_point_is_straight_above_or_below_the_joint():
    told = Calibration(0.01, 0.0, height_m=0.2)
    seen_uv, log_range, bearing = sight((1.5, 0.4, 0.4), told)
    to_joint_m = told.to_joint_m(seen_uv, log_range, bearing, focal_px(CAMERA), CAMERA, TURRET)
    ahead = direction(seen_uv, CAMERA)
    assert math.atan2(to_joint_m[1], to_joint_m[0]) == pytest.approx(math.atan2(ahead[1], ahead[0]))
    assert to_joint_m[2] == pytest.approx(TURRET.gimbal_m[2] - HEIGHT_M)


def test_a_camera_at_an_unknown_height_goes_by_size_and_ray():
    uv, depth_m, bearing = true_view(1.5, 0.3, 1.0)
    told = Calibration(1.0, 0.0, height_m=0.2, horizon=0.01)
    camera = unknown_height(CAMERA)
    to_joint_m = told.to_joint_m(uv, math.log(depth_m / 300), bearing, 300, camera, ROBOT)
    np.testing.assert_allclose(to_joint_m, depth_m * direction(uv, camera))


@pytest.mark.parametrize("horizon", [0.0, 0.02])
def test_size_and_slope_share_the_distance(horizon):
    """Where one says more and the other less by the same factor, both together are right."""
    told = Calibration(0.01, 0.1, HEIGHT_M - 0.034, horizon)
    for factor in (1.0, 1.3):
        log_range = -math.log(0.1 + 0.01 * 300 / (factor * 2.0))
        slope = horizon - 0.034 / (2.0 / factor)
        assert told.distance_m(log_range, slope, 300, HEIGHT_M) == pytest.approx(2.0)
        by_size = replace(told, horizon=None)
        assert by_size.distance_m(log_range, slope, 300, HEIGHT_M) == pytest.approx(factor * 2.0)


def test_a_robot_is_as_far_away_as_size_and_slope_say_and_stands_on_the_floor():
    told = Calibration(0.01, 0.1, 0.2, 0.01)
    uv = np.array([250.0, 185.0])
    run, slope = run_and_slope(direction(uv, CAMERA))
    for robot in (ROBOT, TURRET):
        xyz_m = told.to_joint_m(uv, -0.2, 1.0, 150, CAMERA, robot)
        assert np.hypot(*xyz_m[:2]) == pytest.approx(told.distance_m(-0.2, slope, 150 * run, HEIGHT_M))
        assert xyz_m[2] == pytest.approx(robot.gimbal_m[2] - HEIGHT_M)


def test_what_looks_smaller_or_higher_than_anything_far_away_is_far_away():
    told = Calibration(0.01, 0.5, 0.2, 0.01)
    assert told.distance_m(-math.log(0.4), 0.02, 300, HEIGHT_M) == pytest.approx(FARTHEST_M)


def test_lights_without_a_position_or_a_bearing_only_have_their_height():
    uv, depth_m, _ = true_view(1.5, 0.4, 0.3)
    for robot, bearing in ((ROBOT, 0.3), (TURRET, math.nan)):
        np.testing.assert_array_equal(robot.shining_m(bearing, 0.2), [0, 0, 0.2])
        told = Calibration(1.0, height_m=ROBOT.gimbal_m[2] + 0.05)
        to_joint_m = told.to_joint_m(uv, math.log(depth_m / 300), bearing, 300, CAMERA, robot)
        found_uv = project(to_joint_m, CAMERA)
        assert found_uv[0] == pytest.approx(uv[0], abs=3)


def test_lights_at_another_height_do_not_count():
    np.testing.assert_allclose(TURRET.shining_m(math.radians(30), 0.2), [0, 0.07, 0.2], atol=0.001)
    np.testing.assert_allclose(TURRET.shining_m(math.radians(30), 0.07), [0.17, 0, 0.07], atol=0.001)
    np.testing.assert_allclose(TURRET.shining_m(math.pi, 0.2), [0, 0, 0.2], atol=0.001)
