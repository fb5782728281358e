from dataclasses import replace

import numpy as np
import pytest

from glimpose.render.scene import Buffers
from glimpose.render.shading import Light, Lighting, Material, shade

K = np.array([[20.0, 0.0, 15.5], [0.0, 20.0, 11.5], [0.0, 0.0, 1.0]])
DARK = Lighting(sky=np.zeros(3), ground=np.zeros(3), lights=())


def wall(normal: tuple[float, float, float] = (0, 0, -1), height: int = 24, width: int = 32) -> Buffers:
    """A wall one metre away that fills the image but for its left column; the right half is instance 1."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, 1:] = 1
    mask[:, width // 2 :] = 2
    is_seen = (mask > 0)[..., None]
    return Buffers(
        albedo=np.where(is_seen, [200, 100, 50], 0).astype(np.uint8),
        normal=np.where(is_seen, np.array(normal) / np.linalg.norm(normal), 0).astype(np.float32),
        depth=is_seen[..., 0].astype(np.float32),
        mask=mask,
        xyz=np.zeros((height, width, 3), np.float32),
    )


def lamp(*direction: float, strength: float = 1.0) -> Lighting:
    return replace(DARK, lights=(Light(np.array(direction), np.full(3, strength)),))


def test_background_stays_black_and_nothing_seen_is_all_black() -> None:
    seen = wall()
    assert (shade(seen, Lighting(), K=K)[:, 0] == 0).all()
    nothing = Buffers(**{name: np.zeros_like(values) for name, values in vars(seen).items()})
    assert (shade(nothing, Lighting()) == 0).all()


@pytest.mark.parametrize(("normal", "share"), [((0, -1, 0), 1.0), ((0, 1, 0), 0.0), ((1, 0, 0), 0.5)])
def test_surfaces_that_look_up_are_lit_by_the_sky(normal: tuple[float, float, float], share: float) -> None:
    sky, ground = np.array([0.9, 0.8, 0.7]), np.array([0.1, 0.3, 0.2])
    rgb = shade(wall(normal), Lighting(sky=sky, ground=ground, up=np.array([0.0, -2.0, 0.0]), lights=()))
    expected = np.array([200, 100, 50]) / 255 * (share * sky + (1 - share) * ground)
    np.testing.assert_allclose(rgb[5, 5], expected, rtol=1e-5)


@pytest.mark.parametrize("angle_rad", [0.0, 0.5, 1.2, 1.6, 3.0])
def test_lamps_follow_the_cosine_and_never_take_light_away(angle_rad: float) -> None:
    rgb = shade(wall(), lamp(3 * np.sin(angle_rad), 0.0, -3 * np.cos(angle_rad)))
    np.testing.assert_allclose(rgb[5, 5, 0], 200 / 255 * max(np.cos(angle_rad), 0), atol=1e-6)


def test_light_adds_up() -> None:
    seen = wall((0.2, -0.3, -1))
    lights = (Light(np.array([0.5, -1.0, -1.0]), np.full(3, 0.2)), Light(np.array([-1.0, 0.0, -1.0]), np.full(3, 0.3)))
    materials = [Material(specular=0.3)] * 2
    together = shade(seen, replace(DARK, lights=lights), materials)
    apart = sum(shade(seen, replace(DARK, lights=(light,)), materials) for light in lights)
    np.testing.assert_allclose(together, apart, atol=1e-6)


def test_materials_belong_to_their_instances() -> None:
    lighting = lamp(0.0, 0.0, -1.0, strength=0.5)
    plain = shade(wall(), lighting)
    rgb = shade(wall(), lighting, [Material(), Material(gain=np.array([0.5, 1.0, 2.0]))])
    np.testing.assert_allclose(rgb[:, :16], plain[:, :16])
    np.testing.assert_allclose(rgb[:, 16:], plain[:, 16:] * [0.5, 1.0, 2.0], rtol=1e-6)
    with pytest.raises(ValueError, match="1 materials, but the mask holds instance 2"):
        shade(wall(), lighting, [Material()])


@pytest.mark.parametrize(
    ("saturation", "expected"), [(0.0, (350 / 3,) * 3), (0.5, (158.3, 108.3, 83.3)), (3.0, (255, 66.7, 0))]
)
def test_saturation_is_the_distance_from_grey(saturation: float, expected: tuple[float, float, float]) -> None:
    white = Lighting(sky=np.ones(3), ground=np.ones(3), lights=())
    rgb = shade(wall(), white, [Material(saturation=saturation), Material()])
    np.testing.assert_allclose(255 * rgb[5, 5], expected, atol=0.1)
    np.testing.assert_allclose(255 * rgb[5, -1], (200, 100, 50), atol=1e-3)


@pytest.mark.parametrize("camera", [None, K])
def test_highlights_are_where_the_lamp_is_mirrored(camera: np.ndarray | None) -> None:
    """A wall that mirrors the lamp into the camera at pixel (u, v) is brightest there, or everywhere without K."""
    u, v = 22, 7
    ray = np.linalg.inv(K) @ [u, v, 1]
    lighting = lamp(*(ray * [1, 1, -1]), strength=0.2)
    glossy, matt = (
        shade(wall(), lighting, [Material(specular=specular, shininess=80.0)] * 2, camera) for specular in (0.5, 0.0)
    )
    highlight = (glossy - matt)[..., 0]
    assert (highlight >= 0).all()
    if camera is None:
        np.testing.assert_allclose(highlight[:, 1:], highlight[0, 1])
    else:
        assert np.unravel_index(highlight.argmax(), highlight.shape) == (v, u)
        assert highlight.max() == pytest.approx(0.1, rel=1e-3)


def test_near_lamps_light_what_is_near_them() -> None:
    near = Light(np.zeros(3), np.full(3, 0.6), position=np.array([0.2, 0.0, 0.5]))
    lighting = replace(DARK, lights=(near,))
    red = shade(wall(), lighting, K=K)[..., 0]
    v, u = np.unravel_index(red.argmax(), red.shape)
    np.testing.assert_allclose((u, v), (15.5 + 20 * 0.2, 11.5), atol=0.51)
    # From afar it's a lamp in that direction.
    position = np.array([300.0, -200.0, -1000.0])
    far = replace(DARK, lights=(Light(np.zeros(3), np.full(3, 0.6), position=position),))
    np.testing.assert_allclose(shade(wall(), far, K=K), shade(wall(), lamp(*position, strength=0.6)), atol=2e-3)
    with pytest.raises(ValueError, match="pass K"):
        shade(wall(), lighting)


def test_shading_a_crop_is_cropping_the_shaded() -> None:
    rng = np.random.default_rng(0)
    seen = wall()
    normal = rng.normal(size=seen.normal.shape).astype(np.float32)
    normal *= (seen.mask > 0)[..., None] / np.linalg.norm(normal, axis=-1, keepdims=True)
    seen = replace(seen, normal=normal)
    crop = Buffers(**{name: np.ascontiguousarray(values[3:20, 9:30]) for name, values in vars(seen).items()})
    crop_T_img = np.array([[1.0, 0.0, -9.0], [0.0, 1.0, -3.0], [0.0, 0.0, 1.0]])
    materials = [Material(specular=0.4), Material(shininess=5.0)]
    whole = shade(seen, Lighting(), materials, K)
    np.testing.assert_allclose(shade(crop, Lighting(), materials, crop_T_img @ K), whole[3:20, 9:30], atol=1e-5)


def test_colors_stay_between_0_and_1() -> None:
    rgb = shade(wall(), lamp(0.0, 0.0, -1.0, strength=9.0), [Material(specular=2.0)] * 2)
    assert rgb.dtype == np.float32
    assert 0 <= rgb.min() < rgb.max() <= 1
