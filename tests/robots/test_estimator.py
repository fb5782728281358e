import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glimpose.data.led_h5 import ROBOMASTER_CAMERA
from glimpose.nets.led_fcn import LedFcnConfig, bin_bearings_rad, pyramid_grid
from glimpose.robots import estimator as estimator_module
from glimpose.robots.estimator import (
    BearingCurve,
    DecodeConfig,
    RobotEstimator,
    RobotModel,
    Sighting,
    find_robots,
    in_photograph,
)
from glimpose.robots.leds import Led, LedRobot
from glimpose.robots.placement import Calibration
from glimpose.robots.pretexts import LatentPose

CONFIG = LedFcnConfig(num_scales=3)
GRID = pyramid_grid(180, 320, CONFIG)
BINS = 16


def maps_with(*robots: dict, no_robot: float = -5.0) -> dict[str, torch.Tensor]:
    """Make maps that believe in robots: a normal distribution of mass around each place, on one level."""
    logits = torch.full((len(GRID.uv),), -30.0)
    bearing = torch.zeros(len(GRID.uv), BINS)
    log_range = torch.zeros(len(GRID.uv))
    led = torch.zeros(len(GRID.uv), 2)
    for robot in robots:
        offset = (GRID.uv - torch.tensor(robot["uv"])) / GRID.cell_px[:, None]
        bump = robot.get("logit", 0.0) - offset.square().sum(1) / (2 * 0.4**2)
        is_it = (GRID.level == robot.get("level", 0)) & (bump > -8)
        logits = torch.where(is_it, bump, logits)
        bearing[is_it] = 8 * torch.cos(bin_bearings_rad(BINS) - robot.get("psi", 0.0))
        log_range[is_it] = robot.get("log_range", 0.0)
        led[is_it] = torch.tensor(robot.get("led", [0.0, 0.0]))
    return {
        "position": logits,
        "bearing": bearing,
        "led": led,
        "log_range": log_range,
        "no_robot": torch.tensor([no_robot]),
        **vars(GRID),
    }


@pytest.mark.parametrize("level", [0, 1, 2])
def test_places_are_found_to_a_fraction_of_a_cell(level):
    for uv in [(100.0, 80.0), (103.0, 83.0), (97.5, 90.0)]:
        (found,) = find_robots(maps_with({"uv": uv, "level": level}), True, DecodeConfig())
        np.testing.assert_allclose(found.uv_px, uv, atol=0.1 * 8 / CONFIG.ratio**level)


def test_a_plateau_counts_as_a_whole_whichever_of_its_cells_is_likeliest():
    """For place and range; bearings and LEDs stay with the likeliest cells."""
    maps = maps_with({"uv": (100.0, 80.0), "psi": 2.0})
    center = GRID.uv[int(maps["position"].argmax())]
    is_plateau = (GRID.level == 0) & ((GRID.uv - center).abs().amax(1) <= 8)
    assert is_plateau.sum() == 9
    corner = int(torch.where(is_plateau)[0][0])
    maps["position"] = torch.where(is_plateau, 0.0, -30.0)
    maps["position"][corner] = 4.0
    maps["log_range"] = (GRID.uv[:, 0] - center[0]) / 8
    maps["bearing"][corner] = 8 * torch.cos(bin_bearings_rad(BINS) + 1.0)
    sharp, mean = (find_robots(maps, True, DecodeConfig(sharpness=x))[0] for x in (1.0, 0.25))
    assert np.linalg.norm(sharp.uv_px - GRID.uv[corner].numpy()) < 2
    assert np.linalg.norm(mean.uv_px - center.numpy()) < 0.6 * np.linalg.norm(sharp.uv_px - center.numpy())
    assert abs(mean.log_range) < 0.6 * abs(sharp.log_range)
    for found in (sharp, mean):
        assert math.cos(found.bearing_rad + 1.0) > math.cos(0.3)


def test_bearing_range_and_leds_are_those_at_the_peak():
    for psi in (0.0, 3.0, -1.3):
        robot = {"uv": (100.0, 80.0), "psi": psi, "log_range": -4.0, "led": [3.0, -3.0]}
        (found,) = find_robots(maps_with(robot), True, DecodeConfig())
        assert math.cos(found.bearing_rad - psi) > math.cos(0.01)
        assert 0.2 < found.bearing_spread_rad < 0.6  # von Mises of concentration 8
        assert found.log_range == pytest.approx(-4.0, abs=0.01)
        np.testing.assert_allclose(found.led_prob, torch.tensor([3.0, -3.0]).sigmoid(), atol=0.01)


def test_several_robots_are_found_surest_first():
    robots = [
        {"uv": (60.0, 90.0), "logit": -0.5},
        {"uv": (200.0, 80.0)},
        {"uv": (280.0, 100.0), "level": 2, "logit": -1.0},
    ]
    found = find_robots(maps_with(*robots), True, DecodeConfig(max_robots=5))
    assert len(found) == 3
    assert found[0].presence > 0.9
    places = sorted(sighting.uv_px[0] for sighting in found)
    np.testing.assert_allclose(places, [60, 200, 280], atol=3)


def test_one_robot_is_not_found_twice():
    both_levels = [{"uv": (100.0, 80.0), "level": 0}, {"uv": (104.0, 78.0), "level": 2}]
    assert len(find_robots(maps_with(*both_levels), True, DecodeConfig())) == 1


def test_presence_is_one_minus_nothing_and_even_an_empty_frame_gives_the_likeliest_place():
    robot = {"uv": (100.0, 80.0)}
    mass = float(maps_with(robot)["position"].logsumexp(0))
    found = find_robots(maps_with(robot, no_robot=mass), True, DecodeConfig())
    assert found[0].presence == pytest.approx(0.5, abs=0.02)
    found = find_robots(maps_with(robot, no_robot=mass + 5), True, DecodeConfig())
    assert len(found) == 1
    assert found[0].presence < 0.02


def test_without_a_slot_for_nothing_presence_is_how_sure_the_leds_are():
    sure = find_robots(maps_with({"uv": (100.0, 80.0), "led": [9.0, -9.0]}), False, DecodeConfig())[0]
    unsure = find_robots(maps_with({"uv": (100.0, 80.0), "led": [0.1, -0.1]}), False, DecodeConfig())[0]
    assert sure.presence > 0.9 > 0.1 > unsure.presence


def test_bearing_vectors_need_no_length():
    maps = maps_with({"uv": (100.0, 80.0)})
    maps["bearing"] = torch.tensor([-3.0, 3.0]).expand(len(GRID.uv), 2)
    found = find_robots(maps, False, DecodeConfig())[0]
    assert found.bearing_rad == pytest.approx(0.75 * math.pi)
    assert found.bearing_spread_rad == pytest.approx(0.0, abs=1e-3)


def test_what_a_network_does_not_say_is_nan():
    maps = maps_with({"uv": (100.0, 80.0)})
    del maps["bearing"], maps["led"]
    found = find_robots(maps, False, DecodeConfig())[0]
    assert math.isnan(found.bearing_rad)
    assert len(found.led_prob) == 0
    assert 0 <= found.presence <= 1


def sighting(u: float = 40.0, v: float = 30.0, bearing_deg: float = 20.0, spread_deg: float = 15.0) -> Sighting:
    led_prob = np.array([0.9, 0.2, 0.6, 0.1])
    return Sighting(np.array([u, v]), 0.8, math.radians(bearing_deg), math.radians(spread_deg), 0.3, led_prob)


SWAPPED = (0, 1, 3, 2)


def test_a_mirror_image_shows_the_other_side():
    seen = sighting()
    there = seen.mirrored(100, SWAPPED)
    np.testing.assert_allclose(there.uv_px, [59, 30])
    assert there.bearing_rad == -seen.bearing_rad
    np.testing.assert_allclose(there.led_prob, [0.9, 0.2, 0.1, 0.6])
    back = there.mirrored(100, SWAPPED)
    np.testing.assert_allclose(back.uv_px, seen.uv_px)
    np.testing.assert_allclose(back.led_prob, seen.led_prob)


def test_averages_are_of_the_same_robot_only():
    seen = sighting()
    assert seen.averaged([sighting(u=80.0), sighting(v=60.0)]) is seen
    same = seen.averaged([sighting(u=80.0), sighting()])
    assert same.bearing_rad == pytest.approx(seen.bearing_rad)
    assert same.bearing_spread_rad == pytest.approx(seen.bearing_spread_rad)
    other = seen.averaged([sighting(u=44.0, v=28.0, bearing_deg=40.0)])
    np.testing.assert_allclose(other.uv_px, [42, 29])
    assert math.degrees(other.bearing_rad) == pytest.approx(30)
    assert other.bearing_spread_rad > seen.bearing_spread_rad
    surer = seen.averaged([sighting(bearing_deg=-40.0, spread_deg=90.0)])
    assert -10 < math.degrees(surer.bearing_rad) < 20
    behind = sighting(bearing_deg=175.0).averaged([sighting(bearing_deg=-175.0)])
    assert abs(math.degrees(behind.bearing_rad)) == pytest.approx(180)


def test_what_is_averaged_may_be_missing():
    blank = replace(sighting(bearing_deg=math.nan, spread_deg=math.nan), led_prob=np.zeros(0))
    found = blank.mirrored(100, ()).mirrored(100, ()).averaged([blank])
    assert math.isnan(found.bearing_rad)
    assert found.log_range == pytest.approx(0.3)


@pytest.mark.parametrize("seed", range(3))
def test_a_picture_and_its_mirror_image_show_the_same(seed, monkeypatch):
    monkeypatch.setattr(estimator_module, "SAME_ROBOT_PX", math.inf)  # an untrained network sees it anywhere
    torch.manual_seed(seed)
    leds = tuple(Led(name, azimuth_deg) for name, azimuth_deg in (("f", 0), ("b", 180), ("l", 90), ("r", -90)))
    robot = LedRobot("four", leds, (0.0, 0.0, 0.1))
    # Not equalised, whose tiles blend half a pixel off: to a grey level or two.
    config = LedFcnConfig(input_scale=1.0, num_scales=2, channels=(8,) * 7, clip_limit=0.0)
    model = RobotModel(robot, config, LatentPose())
    estimator = RobotEstimator(model.build(), model, None, DecodeConfig(max_robots=1))
    image = np.random.default_rng(seed).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    (seen,), (there,) = estimator.sight(image), estimator.sight(np.ascontiguousarray(image[:, ::-1]))
    back = there.mirrored(96, robot.mirrored)
    np.testing.assert_allclose(back.uv_px, seen.uv_px, atol=1e-3)
    assert math.remainder(back.bearing_rad - seen.bearing_rad, 2 * math.pi) == pytest.approx(0, abs=1e-4)
    np.testing.assert_allclose(back.led_prob, seen.led_prob, atol=1e-5)
    alone = RobotEstimator(estimator.network, model, None, DecodeConfig(max_robots=1, mirror=False)).sight(image)[0]
    assert np.linalg.norm(alone.uv_px - seen.uv_px) > 0


def test_two_robots_do_not_stand_in_one_place():
    leds = (Led("f", 0.0), Led("b", 180.0))
    model = RobotModel(LedRobot("two", leds, (0.0, 0.0, 0.118)), LedFcnConfig(channels=(4,) * 7), LatentPose())
    estimator = RobotEstimator(model.build(), model, Calibration(0.01, height_m=0.2))
    far, near = sighting(u=150.0, v=85.0), replace(sighting(u=200.0, v=85.0), log_range=-0.5)
    twice = replace(far, uv_px=far.uv_px + 3, presence=0.6)
    estimator.sight = lambda image: [far, twice, near]
    image = np.zeros((360, 640, 3), np.uint8)
    assert [robot.presence for robot in estimator(image, ROBOMASTER_CAMERA)] == [far.presence, near.presence]
    assert len(estimator(image, None)) == 3  # nobody knows where they stand


def crowded(bearing_rad: np.ndarray) -> np.ndarray:
    """What a network says that keeps away from the front and the rear; steady, and the same on both sides."""
    return bearing_rad + 0.35 * np.sin(2 * bearing_rad)


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_bearings_are_spread_evenly_over_what_was_seen_from_everywhere(is_symmetric):
    true_rad = np.random.default_rng(0).uniform(-math.pi, math.pi, 2000)
    curve = BearingCurve.fitted(crowded(true_rad), is_symmetric)
    for bearing_rad in np.linspace(-3.1, 3.1, 40):
        found = curve(crowded(bearing_rad))
        assert -math.pi <= found <= math.pi
        assert abs(math.remainder(found - bearing_rad, 2 * math.pi)) < 0.12
    assert np.isnan(curve(math.nan))


def test_bearings_that_are_spread_evenly_stay_nearly_as_they_are():
    true_rad = np.random.default_rng(1).uniform(-math.pi, math.pi, 2000)
    curve = BearingCurve.fitted(true_rad, is_symmetric=False)
    assert max(abs(math.remainder(curve(x) - x, 2 * math.pi)) for x in np.linspace(-math.pi, math.pi, 50)) < 0.12


@given(st.lists(st.integers(-180, 179), min_size=8, max_size=40, unique=True), st.booleans())
def test_any_bearing_curve_is_steady_and_goes_round_once(bearings_deg, is_symmetric):
    curve = BearingCurve.fitted(np.radians(bearings_deg), is_symmetric)
    turned = np.unwrap([curve(x) for x in np.linspace(-math.pi, math.pi, 721)])
    assert (np.diff(turned) > -1e-9).all()
    assert turned[-1] - turned[0] == pytest.approx(2 * math.pi, abs=1e-6)


def test_pixels_go_to_the_input_and_back():
    np.testing.assert_allclose(in_photograph(np.array([-0.5, 179.5]), 640, 360, 0.5), [-0.5, 359.5])
