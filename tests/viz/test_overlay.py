from collections.abc import Sequence

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from glimpose.render.mesh import box_mesh, sphere_mesh
from glimpose.render.raster import RasterRenderer
from glimpose.viz.overlay import AXIS_COLORS, PALETTE, PoseLabel, draw_poses

K = np.array([[300.0, 0, 159.5], [0, 300.0, 119.5], [0, 0, 1]])
SIZE = (240, 320)
BOUNDS = np.array([[-0.06, -0.04, -0.05], [0.06, 0.04, 0.05]])


def gray(level: int = 128) -> np.ndarray:
    return np.full((*SIZE, 3), level, np.uint8)


def pose(x: float = 0.0, y: float = 0.0, z: float = 0.5, euler_deg: Sequence[float] = (0, 0, 0)) -> np.ndarray:
    cam_T_obj = np.eye(4)
    cam_T_obj[:3, :3] = Rotation.from_euler("xyz", euler_deg, degrees=True).as_matrix()
    cam_T_obj[:3, 3] = x, y, z
    return cam_T_obj


def label(cam_T_obj: np.ndarray, name: str = "box", **more: object) -> PoseLabel:
    return PoseLabel(name, 0.87, cam_T_obj, BOUNDS, **more)  # type: ignore[arg-type]


def where(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Pixels (u, v) of about this colour: thin lines blend with what is around them."""
    return np.argwhere((np.abs(image.astype(int) - color) < 45).all(2))[:, ::-1]


def project(points: np.ndarray, K: np.ndarray, cam_T_obj: np.ndarray) -> np.ndarray:
    uvw = (points @ cam_T_obj[:3, :3].T + cam_T_obj[:3, 3]) @ K.T
    return uvw[:, :2] / uvw[:, 2:]


def nearest_px(points: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - pixels, axis=2).min(1)


def test_result_is_zoomed_and_the_photograph_stays_as_it_is() -> None:
    image = gray()
    drawn = draw_poses(image, K, [label(pose())], zoom=3)
    assert drawn.shape == (720, 960, 3)
    assert drawn.dtype == np.uint8
    assert (image == 128).all()
    assert draw_poses(image, K, [], zoom=1) is not image
    assert draw_poses(image, K, []).shape == (960, 1280, 3)
    assert draw_poses(np.zeros((1500, 2000, 3), np.uint8), K, []).shape == (1500, 2000, 3)


@pytest.mark.parametrize("zoom", [2, 4])
def test_outline_lies_on_the_silhouette(zoom: int) -> None:
    radius_m, z = 0.05, 0.5
    ball = PoseLabel("ball", None, pose(z=z), BOUNDS, sphere_mesh(radius_m, 4), color_index=3)
    drawn = draw_poses(gray(), K, [ball], RasterRenderer(), zoom=zoom)
    pixels = where(drawn, PALETTE[3])
    pixels = pixels[pixels[:, 1] > zoom * 110]  # not the label's plate
    radius_px = zoom * 300 * radius_m / np.sqrt(z**2 - radius_m**2)
    center_px = zoom * (np.array([159.5, 119.5]) + 0.5) - 0.5
    off = np.abs(np.linalg.norm(pixels - center_px, axis=1) - radius_px)
    assert len(pixels) > 2 * radius_px
    assert off.max() < 2.5


def test_box_without_a_mesh_joins_the_projected_corners() -> None:
    cam_T_obj = pose(0.02, 0.01, 0.5, (25, 40, 10))
    drawn = draw_poses(gray(), K, [label(cam_T_obj, color_index=0)], zoom=2)
    corners = np.array([[BOUNDS[i, 0], BOUNDS[j, 1], BOUNDS[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    at_px = 2 * (project(corners, K, cam_T_obj) + 0.5) - 0.5
    # The corner behind all others is drawn thin, and may be crossed by an axis.
    assert np.sort(nearest_px(at_px, where(drawn, PALETTE[0])))[:7].max() < 3


def test_axes_start_at_the_origin_in_their_colours() -> None:
    cam_T_obj = pose(euler_deg=(20, 30, 40))
    drawn = draw_poses(gray(), K, [label(cam_T_obj)], zoom=2)
    origin_px = 2 * (project(np.zeros((1, 3)), K, cam_T_obj) + 0.5) - 0.5
    tips_px = 2 * (project(0.4 * 0.12 * np.eye(3), K, cam_T_obj) + 0.5) - 0.5
    for axis in range(3):
        pixels = where(drawn, AXIS_COLORS[axis])
        assert nearest_px(origin_px, pixels)[0] < 6
        assert nearest_px(tips_px[axis : axis + 1], pixels)[0] < 4


@pytest.mark.parametrize("mesh", [None, box_mesh((0.12, 0.08, 0.1))])
@pytest.mark.parametrize("z", [-0.5, 0.0, 0.01, 0.04, 0.06])
def test_objects_at_and_behind_the_camera_are_cut_off(z: float, mesh: object) -> None:
    item = label(pose(z=z, euler_deg=(10, 20, 30)), mesh=mesh)
    drawn = draw_poses(gray(), K, [item], RasterRenderer(), zoom=1)
    is_untouched = bool((drawn == 128).all())
    assert is_untouched == (z < 0)


def test_objects_outside_the_picture_leave_it_alone() -> None:
    items = [label(pose(x=2.0)), label(pose(y=-2.0)), label(pose(z=-1.0))]
    assert (draw_poses(gray(), K, items, zoom=1) == 128).all()


def test_every_name_can_be_read_where_objects_crowd() -> None:
    names = ["ape", "can", "cat", "duck"]
    items = [label(pose(0.002 * i, 0, 0.5), name, color_index=i) for i, name in enumerate(names)]
    alone = [len(where(draw_poses(gray(), K, [item], zoom=4), PALETTE[i])) for i, item in enumerate(items)]
    together = draw_poses(gray(), K, items, zoom=4)
    plate_px = 100 * 18
    assert min(alone) > plate_px
    for i in range(len(names)):
        assert len(where(together, PALETTE[i])) > plate_px


def test_labels_stay_inside_the_picture() -> None:
    corner = label(pose(-0.26, -0.19, 0.5), "an object with a long name", color_index=4)
    drawn = draw_poses(gray(), K, [corner], zoom=4)
    pixels = where(drawn, PALETTE[4])
    assert len(pixels) > 3000
    assert pixels.min() <= 12


def test_each_name_keeps_its_colour_within_a_picture() -> None:
    items = [label(pose(-0.1), "duck"), label(pose(0.1), "ape"), label(pose(0, 0.1), "duck")]
    drawn = draw_poses(gray(), K, items)
    assert len(where(drawn, PALETTE[0]))
    assert len(where(drawn, PALETTE[1]))
    assert not len(where(drawn, PALETTE[2]))


def test_a_turned_camera_turns_the_drawing() -> None:
    turn = np.array([[0.0, 1, 0], [-1, 0, SIZE[1] - 1], [0, 0, 1]])  # a quarter turn of the picture
    item = PoseLabel("", None, pose(0.03, 0.02, 0.5, (20, 30, 40)), BOUNDS)
    upright = draw_poses(gray(), K, [item], zoom=4)
    turned = draw_poses(np.rot90(gray()).copy(), turn @ K, [item], zoom=4)
    back = np.rot90(turned, -1)
    for color in AXIS_COLORS:
        assert nearest_px(where(upright, color), where(back, color)).max() < 2.5


def test_a_given_renderer_stays_open() -> None:
    class Counting(RasterRenderer):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    renderer = Counting()
    draw_poses(gray(), K, [label(pose(), mesh=box_mesh((0.1, 0.1, 0.1)))], renderer, zoom=1)
    assert renderer.closed == 0
