import math
from dataclasses import replace

import numpy as np
import pytest

from glimpose.data.led_h5 import ROBOMASTER_CAMERA
from glimpose.robots.calibrate import BELIEVED_BEYOND, Known, depth_at_distance, fit
from glimpose.robots.placement import Calibration, direction, project

CAMERA = replace(ROBOMASTER_CAMERA, distortion=np.zeros(5))
CAMERA_HEIGHT_M = 0.234
DISTANCES_M = (0.8, 1.0, 1.2, 1.7, 2.4, 3.3)
TRUE = Calibration(scale_m=0.3, glare=0.2, height_m=0.17, horizon=0.015, farthest_m=BELIEVED_BEYOND * 3.3)


def known(distance_m: float, true: Calibration = TRUE) -> Known:
    """What a network with that calibration shows at a distance; the reach is 1."""
    assert true.height_m is not None
    slope = (true.horizon or 0.0) + (true.height_m - CAMERA_HEIGHT_M) / distance_m
    return Known(-math.log(true.glare + true.scale_m / distance_m), slope, 1.0, distance_m)


def test_depths_follow_from_distances_in_the_ground_plane():
    for x, y in [(1.0, 0.0), (0.8, 0.6), (2.0, -1.5)]:
        from_camera_m = np.array([x, y, 0.118]) - CAMERA.base_T_cam[:3, 3]
        depth_m = float((CAMERA.base_T_cam[:3, :3].T @ from_camera_m)[2])
        toward = direction(project(from_camera_m, CAMERA), CAMERA)
        assert depth_at_distance(toward, math.hypot(x, y), CAMERA) == pytest.approx(depth_m, rel=1e-4)


def test_a_distance_nearer_than_the_camera_is_refused():
    with pytest.raises(ValueError, match="nearer"):
        depth_at_distance(direction(np.array([320.0, 180.0]), CAMERA), 0.05, CAMERA)


def test_images_at_one_distance_give_a_scale_and_a_height_alone():
    found = fit([known(distance_m) for distance_m in (1.9, 1.95, 2.0, 2.05, 2.1)], CAMERA_HEIGHT_M)
    assert found.glare == 0
    assert found.horizon is None
    assert found.distance_m(known(2.0).log_range, 0.0, 1.0, CAMERA_HEIGHT_M) == pytest.approx(2.0, rel=1e-3)
    assert found.height_m == pytest.approx(CAMERA_HEIGHT_M + 2.0 * known(2.0).slope)


@pytest.mark.parametrize("mistakes", [[], [replace(known(2.0), log_range=2.0, slope=-0.3)]])
def test_images_at_several_distances_tell_everything_and_one_mistake_does_not_matter(mistakes):
    found = fit([known(distance_m) for distance_m in DISTANCES_M] + mistakes, CAMERA_HEIGHT_M)
    np.testing.assert_allclose(list(vars(found).values()), list(vars(TRUE).values()), rtol=0.1)
    if not mistakes:
        np.testing.assert_allclose(list(vars(found).values()), list(vars(TRUE).values()), rtol=1e-9)


def test_no_robot_is_believed_to_be_much_farther_than_any_that_was_calibrated_on():
    found = fit([known(distance_m) for distance_m in DISTANCES_M], CAMERA_HEIGHT_M)
    for distance_m, told_m in ((3.5, 3.5), (9.0, BELIEVED_BEYOND * 3.3)):
        seen = known(distance_m)
        assert found.distance_m(seen.log_range, seen.slope, 1.0, CAMERA_HEIGHT_M) == pytest.approx(told_m)
    one = fit([known(1.0, replace(TRUE, glare=0.0))], CAMERA_HEIGHT_M)
    assert one.distance_m(-math.log(TRUE.scale_m / 9.0), 0.0, 1.0, CAMERA_HEIGHT_M) == pytest.approx(9.0)


def test_uncertain_sizes_do_not_flatten_how_they_grow():
    rng = np.random.default_rng(0)
    many = [known(distance_m) for distance_m in 1 / rng.uniform(0.25, 2, 400)]
    noisy = [replace(one, log_range=one.log_range + rng.normal(0, 0.15)) for one in many]
    found = fit(noisy, CAMERA_HEIGHT_M)
    assert found.scale_m == pytest.approx(TRUE.scale_m, rel=0.05)
    assert found.glare == pytest.approx(TRUE.glare, rel=0.15)


def test_a_camera_at_an_unknown_height_tells_no_height_and_no_slope():
    found = fit([known(distance_m) for distance_m in DISTANCES_M])
    assert found.height_m is None
    assert found.horizon is None
    assert found.glare == pytest.approx(TRUE.glare)


def test_slopes_that_tell_no_distance_are_left_alone(caplog):
    rng = np.random.default_rng(0)
    level = replace(TRUE, height_m=CAMERA_HEIGHT_M)
    sightings = [
        replace(known(distance_m, level), slope=float(rng.normal(0, 0.02))) for distance_m in np.linspace(0.8, 3.3, 20)
    ]
    found = fit(sightings, CAMERA_HEIGHT_M)
    assert found.horizon is None
    assert "sizes alone" in caplog.text


def test_a_robot_that_looks_larger_farther_away_is_refused():
    wrong = [replace(known(distance_m), log_range=known(4 - distance_m).log_range) for distance_m in (0.8, 1.5, 2, 3)]
    with pytest.raises(ValueError, match="order"):
        fit(wrong, CAMERA_HEIGHT_M)
