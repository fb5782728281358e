import numpy as np
import pytest

from glimpose.data.backgrounds import procedural_texture
from glimpose.data.images import equalised


@pytest.fixture
def picture() -> np.ndarray:
    return procedural_texture(np.random.default_rng(3), 120, 160)


def test_dim_and_bright_light_look_more_alike(picture):
    def difference(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a.astype(float) - b).mean())

    bright = (picture * 0.9).astype(np.uint8)
    dim = (picture * 0.4).astype(np.uint8)
    assert difference(equalised(bright, 2.0), equalised(dim, 2.0)) < 0.8 * difference(bright, dim)


def test_the_mirror_image_is_equalised_to_the_mirror_image(picture):
    mirrored = np.ascontiguousarray(picture[:, ::-1])
    assert np.abs(equalised(mirrored, 2.0)[:, ::-1].astype(int) - equalised(picture, 2.0)).max() <= 2


def test_grey_stays_grey_and_order_of_lightness_stays_within_a_flat_histogram():
    ramp = np.repeat(np.tile(np.arange(0, 240, 2, dtype=np.uint8), (60, 1))[..., None], 3, -1)
    out = equalised(ramp, 2.0)
    assert np.ptp(out, axis=-1).max() <= 3  # CIELAB in eight bits
    assert (np.diff(out[:, :40, 0].astype(int), axis=1) >= 0).all()


def test_no_limit_leaves_a_picture_as_it_is(picture):
    assert equalised(picture, 0.0) is picture
