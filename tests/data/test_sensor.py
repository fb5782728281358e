from dataclasses import fields, replace

import cv2
import numpy as np
import pytest

from glimpose import config
from glimpose.data.sensor import SensorConfig, composite, cut_off, occlude, simulate_sensor

IDEAL = SensorConfig(
    native_scale=(1.0, 1.0),
    exposure_gain=(1.0, 1.0),
    channel_gain=(1.0, 1.0),
    gamma=(1.0, 1.0),
    contrast=(1.0, 1.0),
    black_level=(0.0, 0.0),
    saturation=(1.0, 1.0),
    hue_rad=(0.0, 0.0),
    gray_prob=0.0,
    shading_prob=0.0,
    defocus_prob=0.0,
    motion_prob=0.0,
    bayer_prob=0.0,
    noise_prob=0.0,
    sharpening_prob=0.0,
    jpeg_prob=0.0,
)


@pytest.fixture
def rgb():
    """A smooth colourful image."""
    grid = np.random.default_rng(0).uniform(0.2, 0.8, (4, 5, 3)).astype(np.float32)
    return cv2.resize(grid, (160, 120), interpolation=cv2.INTER_LINEAR)


def levels_off(image, rgb):
    return np.abs(image.astype(float) - 255 * rgb.astype(float))


def test_ideal_camera_only_rounds(rgb):
    assert levels_off(simulate_sensor(rgb, np.random.default_rng(0), IDEAL), rgb).max() <= 0.51


@pytest.mark.parametrize(
    ("change", "mean_levels"),
    [
        ({"bayer_prob": 1.0}, 1.0),
        ({"jpeg_prob": 1.0, "jpeg_quality": (95.0, 95.0)}, 1.5),
        ({"native_scale": (0.5, 0.5)}, 1.0),
        ({"native_scale": (2.0, 2.0)}, 0.5),
        ({"defocus_prob": 1.0}, 1.0),
        ({"motion_prob": 1.0}, 1.0),
        ({"sharpening_prob": 1.0}, 1.0),
        ({"noise_prob": 1.0, "read_noise": (2.0, 2.0), "shot_noise": (0.0, 0.0)}, 2.0),
    ],
)
def test_each_effect_keeps_a_smooth_image_its_place_and_colours(rgb, change, mean_levels):
    for seed in range(5):
        image = simulate_sensor(rgb, np.random.default_rng(seed), replace(IDEAL, **change))
        assert image.shape == rgb.shape
        assert image.dtype == np.uint8
        assert levels_off(image, rgb)[8:-8, 8:-8].mean() < mean_levels


@pytest.mark.parametrize(
    "change",
    [
        {"native_scale": (0.5, 0.5)},
        {"defocus_prob": 1.0, "defocus_sigma_px": (1.0, 1.0)},
        {"motion_prob": 1.0},
        {"bayer_prob": 1.0},
    ],
)
def test_optics_do_not_move_the_image(change):
    v, u = np.mgrid[:96, :128]
    spot = np.exp(-((u - 70.3) ** 2 + (v - 40.6) ** 2) / (2 * 5.0**2)).astype(np.float32)
    rgb = np.repeat(spot[..., None], 3, axis=2)
    for seed in range(5):
        weight = simulate_sensor(rgb, np.random.default_rng(seed), replace(IDEAL, **change)).mean(2)
        assert abs((weight * u).sum() / weight.sum() - 70.3) < 0.15
        assert abs((weight * v).sum() / weight.sum() - 40.6) < 0.15


def test_over_exposure_clips_to_white_and_darkness_to_black():
    rgb = np.full((32, 32, 3), 0.8, np.float32)
    bright = simulate_sensor(rgb, np.random.default_rng(0), replace(IDEAL, exposure_gain=(2.0, 2.0)))
    assert (bright == 255).all()
    dark = simulate_sensor(0 * rgb, np.random.default_rng(0), replace(IDEAL, black_level=(-0.1, -0.1)))
    assert (dark == 0).all()
    assert (simulate_sensor(rgb + 3, np.random.default_rng(0), IDEAL) == 255).all()


def test_gray_images_have_no_colour(rgb):
    image = simulate_sensor(rgb, np.random.default_rng(0), replace(IDEAL, gray_prob=1.0)).astype(int)
    assert (image.max(2) - image.min(2)).max() <= 1


def test_grey_stays_grey_under_saturation_and_hue():
    rgb = np.full((16, 16, 3), 0.5, np.float32)
    changed = replace(IDEAL, saturation=(0.0, 2.0), hue_rad=(-1.0, 1.0))
    for seed in range(10):
        assert levels_off(simulate_sensor(rgb, np.random.default_rng(seed), changed), rgb).max() <= 1


@pytest.mark.parametrize("bayer_prob", [0.0, 1.0])
def test_noise_has_the_deviation_asked_for(bayer_prob):
    noisy = replace(IDEAL, bayer_prob=bayer_prob, noise_prob=1.0, read_noise=(3.0, 3.0), shot_noise=(6.0, 6.0))
    deviations = []
    for brightness in (0.1, 0.8):
        rgb = np.full((200, 200, 3), brightness, np.float32)
        image = simulate_sensor(rgb, np.random.default_rng(0), noisy).astype(float)
        assert abs(image.mean() - 255 * brightness) < 1.0
        deviations.append(image.std())
    assert 1.0 < deviations[0] < 4.5
    assert deviations[1] > 1.3 * deviations[0]


def test_reduced_crops_are_less_noisy():
    noisy = replace(IDEAL, noise_prob=1.0, read_noise=(4.0, 4.0), shot_noise=(0.0, 0.0))
    rgb = np.full((64, 64, 3), 0.5, np.float32)
    full, half = (simulate_sensor(rgb, np.random.default_rng(0), noisy, native_scale=s).std() for s in (1.0, 2.0))
    assert 1.6 < full / half < 2.4


def test_known_native_scale_replaces_the_drawn_one():
    rgb = np.zeros((64, 64, 3), np.float32)
    rgb[:, ::2] = 1.0
    ideal = replace(IDEAL, native_scale=(0.5, 0.5))
    assert simulate_sensor(rgb, np.random.default_rng(0), ideal).std() < 2
    assert simulate_sensor(rgb, np.random.default_rng(0), ideal, native_scale=1.0).std() > 100


@pytest.mark.parametrize("size", [(128, 128), (480, 640), (33, 47), (8, 8)])
def test_sensor_is_a_function_of_the_generator_and_leaves_its_input(size):
    rgb = np.random.default_rng(0).random((*size, 3), dtype=np.float32)
    before = rgb.copy()
    for seed in range(6):
        first, again = (simulate_sensor(rgb, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(first, again)
        assert first.shape == rgb.shape
        assert first.flags.c_contiguous
    assert np.array_equal(rgb, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": (1.2, 0.8)}, r"gamma = \(1\.2, 0\.8\): expected the lower bound first"),
        ({"exposure_gain": (0.0, 1.0)}, "exposure_gain.*above 0"),
        ({"jpeg_prob": 1.5}, "jpeg_prob = 1.5.*probability"),
        ({"jpeg_quality": (50.0, 120.0)}, "jpeg_quality.*between 0 and 100"),
    ],
)
def test_impossible_config_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        SensorConfig(**change)


def test_config_survives_the_round_trip_through_plain_values():
    changed = replace(SensorConfig(), gamma=(0.9, 1.1), jpeg_prob=0.25)
    assert config.from_dict(SensorConfig, config.to_dict(changed), "test") == changed
    assert len(fields(SensorConfig)) == len(config.to_dict(changed))


def test_composite_keeps_foreground_inside_and_background_outside():
    foreground = np.full((60, 80, 3), (0.9, 0.1, 0.2), np.float32)
    background = np.full((60, 80, 3), (10, 200, 90), np.uint8)
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 30:60] = 7
    image = composite(foreground, mask, background, np.random.default_rng(0))
    assert image.dtype == np.float32
    assert np.allclose(image[21:39, 31:59], foreground[21:39, 31:59], atol=1e-5)
    outside = cv2.dilate(mask, np.ones((3, 3), np.uint8)) == 0
    assert np.allclose(image[outside], background[outside] / 255, atol=1e-5)


def test_composite_edges_mix_only_the_two_colours():
    """Undefined colours outside the mask must not bleed in as a halo."""
    rng = np.random.default_rng(0)
    background = np.full((50, 50, 3), 255, np.uint8)
    mask = cv2.circle(np.zeros((50, 50), np.uint8), (25, 25), 15, 1, -1)
    foreground = np.where(mask[..., None] > 0, 1.0, rng.choice([0.0, np.nan], (50, 50, 1))).astype(np.float32)
    foreground = np.repeat(foreground[..., :1], 3, axis=2)
    image = composite(foreground, mask, background, rng)
    assert np.allclose(image, 1.0, atol=1e-5)
    soft = composite(np.zeros_like(foreground), mask, background, rng)
    assert ((soft > 0.05) & (soft < 0.95)).any()
    assert soft.min() >= 0
    assert soft.max() <= 1 + 1e-6


@pytest.mark.parametrize("corner", [(0, 0), (49, 49), (0, 49)])
def test_composite_works_at_the_border_and_with_nothing(corner):
    foreground = np.full((50, 50, 3), 0.5, np.float32)
    background = np.zeros((50, 50, 3), np.uint8)
    mask = np.zeros((50, 50), bool)
    assert not composite(foreground, mask, background, np.random.default_rng(0)).any()
    mask[corner] = True
    image = composite(foreground, mask, background, np.random.default_rng(0))
    assert image.max() == image[(*corner, 0)] > 0.1


def test_occluders_change_exactly_what_they_cover():
    rgb = np.full((100, 120, 3), 0.4321, np.float32)
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(50):
        changed, covered = occlude(rgb, rng)
        assert covered.dtype == bool
        touched = (changed != rgb).any(2)
        soft = cv2.dilate(covered.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert (touched & ~soft).mean() < 0.005  # slivers thinner than a pixel
        assert touched[covered].all()
        assert changed.min() >= 0
        assert changed.max() <= 1
        shares.append(covered.mean())
    assert 0.01 < np.mean(shares) < 0.4
    assert (rgb == np.float32(0.4321)).all()


def test_occluders_use_the_texture_given():
    rgb = np.zeros((64, 64, 3), np.float32)
    calls = []

    def texture(rng, height, width):
        calls.append((height, width))
        return np.full((height, width, 3), 255, np.uint8)

    for seed in range(20):
        occlude(rgb, np.random.default_rng(seed), texture)
    assert calls


def test_what_is_cut_off_repeats_the_last_line():
    rgb = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    before, sides = rgb.copy(), set()
    for seed in range(40):
        image, gone = cut_off(rgb, np.random.default_rng(seed))
        assert image.shape == rgb.shape
        assert (image[~gone] == rgb[~gone]).all()
        rows, columns = np.flatnonzero(~gone.all(1)), np.flatnonzero(~gone.all(0))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        kept = rgb[top:bottom, left:right]
        beyond = ((top, 40 - bottom), (left, 60 - right), (0, 0))
        assert np.array_equal(image, np.pad(kept, beyond, mode="edge"))
        assert gone.sum() == 40 * 60 - kept.shape[0] * kept.shape[1]
        assert 0.04 < gone.mean() < 0.56
        sides |= {name for name, cut in zip("tblr", (top, 40 - bottom, left, 60 - right), strict=True) if cut}
    assert sides == set("tblr")
    assert np.array_equal(rgb, before)
