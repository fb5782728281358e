import math

import numpy as np
import pytest

from glimpose.data.led_h5 import RobotState
from glimpose.robots.augment import AugmentConfig, Motion, darkened, draw_motion, move, recolor, zoomed
from glimpose.robots.labels import MIN_VISIBLE_PX, Labels, input_image, is_seen, labels_of, resize

MIRRORED = (0, 1, 3, 2)
WIDTH, HEIGHT = 160, 90


def frame(uv=(50.0, 40.0)) -> tuple[np.ndarray, Labels]:
    """Paint a bright spot at uv on grey, with labels of a robot there."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    spot = 150 * np.exp(-((u - uv[0]) ** 2 + (v - uv[1]) ** 2) / (2 * 3.0**2))
    image = np.repeat((40 + spot)[..., None], 3, axis=-1).astype(np.uint8)
    labels = Labels(
        led_on=np.array([[True, False, True, False]]),
        uv_px=np.array([uv]),
        log_range=np.array([-2.0]),
        bearing_rad=np.array([0.7]),
        is_visible=np.array([1.0]),
    )
    return image, labels


def spot_px(image: np.ndarray) -> np.ndarray:
    weight = np.maximum(image[..., 0].astype(float) - 60, 0)
    v, u = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(weight * u).sum(), (weight * v).sum()]) / weight.sum()


@pytest.mark.parametrize("is_flipped", [False, True])
@pytest.mark.parametrize(("angle_deg", "zoom", "shift"), [(0, 1, (0, 0)), (9, 1, (0, 0)), (-6, 1.2, (0.08, -0.1))])
def test_the_label_moves_with_the_picture(is_flipped, angle_deg, zoom, shift):
    image, labels = frame()
    moved, out = move(image, labels, MIRRORED, Motion(is_flipped, math.radians(angle_deg), zoom, shift), 1.0)
    np.testing.assert_allclose(spot_px(moved), out.uv_px[0], atol=0.3)


def test_a_flip_swaps_left_and_right_and_negates_the_bearing():
    image, labels = frame()
    moved, out = move(image, labels, MIRRORED, Motion(is_flipped=True), 1.0)
    np.testing.assert_array_equal(moved, image[:, ::-1])
    assert out.led_on.tolist() == [[True, False, False, True]]
    assert out.bearing_rad[0] == -labels.bearing_rad[0]
    assert out.log_range[0] == labels.log_range[0]


def test_flipping_twice_changes_nothing():
    image, labels = frame()
    for _ in range(2):
        image_out, labels = move(image, labels, MIRRORED, Motion(is_flipped=True), 1.0)
        image = image_out
    first_image, first = frame()
    np.testing.assert_array_equal(image, first_image)
    for name, value in vars(first).items():
        np.testing.assert_allclose(getattr(labels, name), value)


def test_turning_and_shifting_show_no_other_side_and_no_other_distance():
    image, labels = frame()
    _, out = move(image, labels, MIRRORED, Motion(angle_rad=0.15, shift=(0.1, 0.1)), 1.0)
    assert out.bearing_rad[0] == labels.bearing_rad[0]
    assert out.log_range[0] == labels.log_range[0]
    assert (out.led_on == labels.led_on).all()


def test_enlarging_brings_nearer_and_reducing_the_picture_takes_away():
    image, labels = frame()
    _, out = move(image, labels, MIRRORED, Motion(zoom=1.25), 1.0)
    assert math.exp(out.log_range[0]) == pytest.approx(math.exp(labels.log_range[0]) / 1.25)
    # Half as many pixels, half the focal length: the same depth is twice as many metres per pixel.
    small, half = resize(image, labels, 0.5)
    assert math.exp(half.log_range[0]) == pytest.approx(2 * math.exp(labels.log_range[0]))
    np.testing.assert_allclose(spot_px(small), half.uv_px[0], atol=0.2)


def test_a_robot_that_leaves_the_picture_is_no_longer_visible():
    image, labels = frame((2.0, 40.0))
    _, out = move(image, labels, MIRRORED, Motion(shift=(-0.1, 0.0)), 1.0)
    assert out.is_visible[0] == 0
    hidden = Labels(**{**vars(labels), "is_visible": np.array([0.0])})
    _, out = move(image, hidden, MIRRORED, Motion(), 1.0)
    assert out.is_visible[0] == 0


def test_unknown_labels_stay_unknown():
    image, _ = frame()
    labels = labels_of((RobotState("RM2", np.array([True, False, True, False])),), 4, focal_px=300.0)
    _, out = move(image, labels, MIRRORED, draw_motion(AugmentConfig(), np.random.default_rng(0)), 0.5)
    for name in ("uv_px", "log_range", "bearing_rad", "is_visible"):
        assert np.isnan(getattr(out, name)).all()
    assert out.led_on.sum() == 2


def test_augmentation_is_a_function_of_its_generator():
    image, _ = frame()
    config = AugmentConfig(sensor_prob=1.0)
    first, second, other = (recolor(image, config, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    assert first.shape == image.shape
    assert first.dtype == np.uint8
    assert draw_motion(config, np.random.default_rng(3)) == draw_motion(config, np.random.default_rng(3))


def test_clutter_hides_little():
    image = np.full((90, 160, 3), 100, np.uint8)
    config = AugmentConfig(clutter=(4, 4), blackout_prob=0.0, tone_prob=0.0, sensor_prob=0.0)
    changed = [(recolor(image, config, np.random.default_rng(seed)) != 100).any(2).mean() for seed in range(20)]
    assert min(changed) > 0.002
    assert max(changed) < 0.3


STILL = {"clutter": (0, 0), "blackout_prob": 0.0, "tone_prob": 0.0, "sensor_prob": 0.0}


def test_tones_turn_dark_into_bright_but_leave_lights_and_colours():
    image = np.full((60, 160, 3), 180, np.uint8)
    image[10:50, 20:60] = 50  # a robot on a bright floor
    image[20:40, 100:120] = (40, 60, 250)  # a light
    image[29:31, 109:111] = 255  # whose middle is overexposed
    config = AugmentConfig(**{**STILL, "tone_prob": 1.0})
    changed = [recolor(image, config, np.random.default_rng(seed)).astype(int) for seed in range(60)]
    contrast = np.array([one[30, 40].sum() - one[5, 5].sum() for one in changed])
    assert (contrast > 60).mean() > 0.2
    assert (contrast < -60).mean() > 0.2
    for one in changed:
        assert np.abs(one[25:35, 105:115] - image[25:35, 105:115]).max() <= 2
        assert np.ptp(one[5, 5]) <= 2  # what has no colour gets none
        assert (one[15:45, 25:55] == one[30, 40]).all()  # a curve: equal stays equal


def test_lights_are_painted_over_with_what_is_around_them():
    image = np.full((60, 160, 3), 180, np.uint8)
    image[10:50, 20:60] = 50  # a robot on a bright floor
    image[25:31, 36:42] = (40, 60, 250)  # its light
    image[27:29, 38:40] = 255  # whose middle is overexposed
    dark = darkened(image).astype(int)
    assert np.abs(dark[15:45, 25:55] - 50).max() <= 2
    assert np.abs(dark[:, 70:] - 180).max() <= 2
    assert np.abs(dark[12:48, 22:58] - 50).max() <= 2  # nor is anything else changed


@pytest.mark.parametrize("name", ["zoom", "clutter", "clutter_size"])
def test_bounds_the_wrong_way_round_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} = \(3, 1\): expected the lower bound first"):
        AugmentConfig(**{name: (3, 1)})


def test_moving_and_resizing_at_once_is_moving_and_then_resizing():
    image, labels = frame()
    motion = Motion(True, 0.1, 1.3, (0.05, -0.05))
    small, out = move(image, labels, MIRRORED, motion, 0.5)
    twice, expected = resize(*move(image, labels, MIRRORED, motion, 1.0), 0.5)
    assert small.shape == twice.shape
    np.testing.assert_allclose(out.uv_px, expected.uv_px, atol=1e-9)
    np.testing.assert_allclose(out.log_range, expected.log_range)
    np.testing.assert_allclose(spot_px(small), out.uv_px[0], atol=0.3)


def test_a_second_view_shows_the_same_side_at_another_size():
    config, rng = AugmentConfig(), np.random.default_rng(0)
    for _ in range(50):
        motion = draw_motion(config, rng)
        view = zoomed(motion, config, rng)
        factor = view.zoom / motion.zoom
        assert view.is_flipped == motion.is_flipped
        assert config.view_zoom**0.5 <= max(factor, 1 / factor) <= config.view_zoom


def test_labels_are_metres_per_pixel_and_robots_behind_have_none():
    robots = (
        RobotState("RM2", np.zeros(4, bool), np.array([1.0, 2.0]), z_m=3.0, bearing_rad=0.5, is_visible=True),
        RobotState("RM3", np.ones(4, bool), np.array([1.0, 2.0]), z_m=-3.0, is_visible=False),
    )
    labels = labels_of(robots, 4, focal_px=300.0)
    assert math.exp(labels.log_range[0]) == pytest.approx(0.01)
    assert np.isnan(labels.log_range[1])
    assert labels.is_visible.tolist() == [1.0, 0.0]
    assert labels_of((), 4, 300.0).led_on.shape == (0, 4)


def test_hidden_robots_do_not_count_as_seen():
    def state(is_visible, num_visible_px):
        return RobotState("RM2", np.zeros(4, bool), is_visible=is_visible, num_visible_px=num_visible_px)

    assert is_seen(state(True, None)) is True
    assert is_seen(state(True, MIN_VISIBLE_PX)) is True
    assert is_seen(state(True, MIN_VISIBLE_PX - 1)) is False
    assert is_seen(state(False, 1000)) is False
    assert is_seen(state(None, None)) is None


def test_full_size_input_is_the_photograph_itself():
    image, _ = frame()
    assert input_image(image, 1.0) is image
