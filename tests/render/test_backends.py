"""Both renderers against geometry that is known in closed form, and the GL one against the reference rasteriser."""

import ctypes
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.spatial.transform import Rotation

from glimpose.render.gl import GlRenderer
from glimpose.render.mesh import Mesh, box_mesh, cylinder_mesh, sphere_mesh
from glimpose.render.raster import RasterRenderer
from glimpose.render.scene import Buffers, Instance, Renderer

HEIGHT, WIDTH = 96, 128
K = np.array([[180.0, 0.0, 61.2], [0.0, 170.0, 50.7], [0.0, 0.0, 1.0]])


def num_egl_devices() -> int:
    """Ask the system's EGL itself, so that a GlRenderer that cannot find a device fails instead of being skipped."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return 0
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if address is None:
        return 0
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)(address)
    num_devices = ctypes.c_int32(0)
    return num_devices.value if query(0, None, ctypes.addressof(num_devices)) else 0


@pytest.fixture(scope="module")
def gl() -> Iterator[GlRenderer]:
    if num_egl_devices() == 0:
        pytest.skip("this system has no EGL library, or EGL finds no device, not even a software one")
    renderer = GlRenderer()
    yield renderer
    renderer.close()


@pytest.fixture(params=["raster", "gl"])
def renderer(request: pytest.FixtureRequest) -> Renderer:
    return request.getfixturevalue("gl") if request.param == "gl" else RasterRenderer()


def transform(rotation: Rotation, translation: np.ndarray | tuple[float, float, float]) -> np.ndarray:
    cam_T_obj = np.eye(4)
    cam_T_obj[:3, :3], cam_T_obj[:3, 3] = rotation.as_matrix(), translation
    return cam_T_obj


def rotated(angle_deg: float, stretch: float) -> np.ndarray:
    """Camera of a crop that was turned in the image plane and stretched: no entry of its first two rows is zero."""
    out_A_img = np.eye(3)
    out_A_img[:2, :2] = Rotation.from_euler("z", angle_deg, degrees=True).as_matrix()[:2, :2] @ np.diag([stretch, 1.0])
    middle = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    out_A_img[:2, 2] = middle - out_A_img[:2, :2] @ middle
    return out_A_img @ K


def rays(camera: np.ndarray) -> np.ndarray:
    """Points at depth 1 that the pixels see."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(camera).T


def colored(mesh: Mesh) -> Mesh:
    """Colours that vary slowly over the mesh."""
    extent = np.ptp(mesh.vertices, axis=0)
    return replace(mesh, colors=(255 * (mesh.vertices / extent + 0.5)).clip(0, 255).astype(np.uint8))


def sheet(half_m: float, texture: np.ndarray | None = None, repeats: float = 1.0) -> Mesh:
    """Square in the plane z = 0, whose texture is upright in an image when the pose has no rotation."""
    vertices = half_m * np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
    return Mesh(
        vertices=vertices,
        faces=np.array([[0, 2, 1], [0, 3, 2]], np.int32),
        normals=np.tile(np.array([0, 0, -1], np.float32), (4, 1)),
        colors=np.full((4, 3), 128, np.uint8),
        uv=repeats * np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32),
        texture=texture,
    )


def textured_ball(radius_m: float, seed: int) -> Mesh:
    ball = sphere_mesh(radius_m, 3)
    texture = np.random.default_rng(seed).integers(0, 256, (12, 20, 3), np.uint8)
    return replace(ball, uv=1.7 * ball.vertices[:, :2] / radius_m, texture=texture)


def spread(values: np.ndarray) -> np.ndarray:
    """Largest minus smallest value in each pixel's 3×3 neighbourhood."""
    size = (3, 3, 1)[: values.ndim]
    return maximum_filter(values, size) - minimum_filter(values, size)


def assert_agree(pred: Buffers, oracle: Buffers) -> None:
    """Compare two renderings of a scene whose facets are larger than pixels.

    Masks are equal except next to an edge of the oracle's, and in 99 % of the pixels there. Inside, and away from the
    creases and contours where a pixel may belong to either face, values agree to 10 µm in depth and object coordinates,
    0.001 in the normal and 2 levels of colour, plus a hundredth of what they vary by around the pixel, for GL snaps
    vertices to fractions of a pixel.
    """
    is_inside = spread(oracle.mask.astype(int)) == 0
    is_different = pred.mask != oracle.mask
    assert not is_different[is_inside].any()
    assert is_different[~is_inside].mean() < 0.01
    is_smooth = is_inside & (oracle.mask > 0) & (spread(oracle.normal).max(-1) < 0.5) & (spread(oracle.depth) < 0.02)
    assert is_smooth.mean() > 0.2
    assert is_smooth.sum() > 0.6 * np.count_nonzero(oracle.mask)
    for name, tolerance in {"depth": 1e-5, "xyz": 1e-5, "normal": 1e-3, "albedo": 2.0}.items():
        values = getattr(oracle, name).astype(np.float64)
        excess = abs(getattr(pred, name) - values) - spread(values) / 100
        assert excess[is_smooth].max() < tolerance, name


@pytest.mark.parametrize("centre", [(0.0, 0.0, 0.7), (0.03, -0.02, 0.65), (-0.06, 0.05, 0.9)])
def test_sphere_has_its_analytic_depth(renderer: Renderer, centre: tuple[float, float, float]) -> None:
    """Within 0.2 mm up to the silhouette (and exactly its mask, but for rays that touch it), 0.02 mm inside."""
    camera, radius_m = np.array([[600.0, 0.0, 63.3], [0.0, 600.0, 47.2], [0.0, 0.0, 1.0]]), 0.05
    ball = Instance(sphere_mesh(radius_m, 6), transform(Rotation.random(rng=0), centre))
    seen = renderer.render([ball], camera, HEIGHT, WIDTH)
    ray = rays(camera)
    squared, along = (ray**2).sum(-1), ray @ centre
    distance_m = np.sqrt(np.dot(centre, centre) - along**2 / squared)
    within_px = (radius_m - distance_m) * 600 / centre[2]
    np.testing.assert_array_equal(seen.mask[abs(within_px) > 0.05], (within_px > 0)[abs(within_px) > 0.05])
    gt_depth = (along - np.sqrt(np.maximum(squared * (radius_m**2 - distance_m**2), 0))) / squared
    error_m = abs(seen.depth - gt_depth)
    assert error_m[within_px > 0.05].max() < 2e-4
    assert error_m[within_px > 1.5].max() < 2e-5


@pytest.mark.parametrize("angle_deg", [0.0, 25.0])
def test_plane_that_runs_past_the_camera_has_its_analytic_depth_between_near_and_far(
    renderer: Renderer, angle_deg: float
) -> None:
    camera, near_m, far_m = rotated(angle_deg, 1.3), 0.35, 2.5
    floor = Instance(sheet(8.0), transform(Rotation.from_euler("xy", [97, 5], degrees=True), (0.0, 0.06, 0.4)))
    seen = renderer.render([floor], camera, HEIGHT, WIDTH, near_m, far_m)
    normal = floor.cam_T_obj[:3, 2]
    gt_depth = (normal @ floor.cam_T_obj[:3, 3]) / (rays(camera) @ normal)
    gt_mask = (near_m < gt_depth) & (gt_depth < far_m)
    assert gt_mask.mean() > 0.2
    assert (gt_depth > far_m).any()
    assert ((gt_depth > 0) & (gt_depth < near_m)).any()
    is_certain = np.minimum(abs(gt_depth / near_m - 1), abs(gt_depth / far_m - 1)) > 1e-3
    np.testing.assert_array_equal(seen.mask[is_certain], gt_mask[is_certain])
    np.testing.assert_allclose(seen.depth[gt_mask & is_certain], gt_depth[gt_mask & is_certain], rtol=1e-4)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_the_nearest_of_crossing_planes_is_seen_in_any_order(renderer: Renderer, order: list[int]) -> None:
    rotations = Rotation.from_euler("xy", [[0, 50], [35, 0], [-30, -35]], degrees=True)
    poses = [transform(rotations[i], (0.0, 0.0, 0.6)) for i in order]
    seen = renderer.render([Instance(sheet(3.0), pose) for pose in poses], K, HEIGHT, WIDTH)
    depths = np.array([(pose[:3, 2] @ pose[:3, 3]) / (rays(K) @ pose[:3, 2]) for pose in poses])
    depths[depths < 0] = np.inf
    nearest, second = np.sort(depths, axis=0)[:2]
    is_certain = second - nearest > 1e-4
    assert is_certain.mean() > 0.95
    np.testing.assert_array_equal(seen.mask[is_certain], depths.argmin(0)[is_certain] + 1)


@pytest.mark.parametrize("camera", [K, rotated(40.0, 0.7), K * [[-1], [1], [1]] + [[0, 0, WIDTH], [0] * 3, [0] * 3]])
def test_object_coordinates_lie_on_the_surface_and_project_to_their_pixel(
    renderer: Renderer, camera: np.ndarray
) -> None:
    half = np.array([0.1, 0.06, 0.08])
    crate = Instance(box_mesh(tuple(2 * half)), transform(Rotation.random(rng=4), (0.02, 0.01, 0.5)))
    seen = renderer.render([crate], camera, HEIGHT, WIDTH)
    row, column = np.nonzero(seen.mask)
    xyz = seen.xyz[row, column]
    assert len(xyz) > 1000
    np.testing.assert_allclose((abs(xyz) / half).max(1), 1, atol=1e-3)
    xyz_cam = xyz @ crate.cam_T_obj[:3, :3].T + crate.cam_T_obj[:3, 3]
    np.testing.assert_allclose(xyz_cam[:, 2], seen.depth[row, column], rtol=1e-5)
    homogeneous = xyz_cam @ camera.T
    np.testing.assert_allclose(homogeneous[:, :2] / homogeneous[:, 2:], np.stack([column, row], 1), atol=0.01)


def test_normals_are_those_of_the_surface_and_turn_towards_the_camera_inside_it(renderer: Renderer) -> None:
    centre = np.array([0.03, 0.02, 0.4])
    for pose, is_inside in [(transform(Rotation.identity(), centre), False), (np.eye(4), True)]:
        ball = Instance(sphere_mesh(0.12, 4), pose)
        seen = renderer.render([ball], rotated(70.0, 1.2), HEIGHT, WIDTH)
        xyz, normal = seen.xyz[seen.mask > 0], seen.normal[seen.mask > 0]
        assert len(xyz) > 1000
        np.testing.assert_allclose(normal, (-1 if is_inside else 1) * xyz / 0.12, atol=0.02)
        np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, atol=1e-3)


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_texture_whose_texels_are_pixels_is_reproduced(renderer: Renderer, repeats: int) -> None:
    texture = np.random.default_rng(0).integers(0, 256, (64 // repeats, 64 // repeats, 3), np.uint8)
    camera = np.array([[100.0, 0.0, 31.5], [0.0, 100.0, 31.5], [0.0, 0.0, 1.0]])
    picture = Instance(sheet(0.32, texture, repeats), transform(Rotation.identity(), (0.0, 0.0, 1.0)))
    seen = renderer.render([picture], camera, 64, 64)
    np.testing.assert_allclose(seen.albedo.astype(int), np.tile(texture, (repeats, repeats, 1)), atol=2)


def test_what_is_behind_the_camera_or_beyond_the_far_plane_leaves_zeros(renderer: Renderer) -> None:
    ball = sphere_mesh(0.1, 2)
    poses = [transform(Rotation.identity(), (0.0, 0.0, z)) for z in (-0.5, 3.2)]
    for instances in ([], [Instance(ball, pose) for pose in poses]):
        seen = renderer.render(instances, K, HEIGHT, WIDTH, 0.01, 3.0)
        assert all((values == 0).all() for values in vars(seen).values())


@pytest.mark.parametrize("near_m", [0.01, 0.5])
@pytest.mark.parametrize("camera", [K, rotated(33.0, 1.4), rotated(-110.0, 0.8)])
@pytest.mark.parametrize("seed", [0, 1])
def test_backends_agree(gl: GlRenderer, seed: int, camera: np.ndarray, near_m: float) -> None:
    rng = np.random.default_rng(seed)
    texture = np.kron(rng.integers(0, 256, (6, 6, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
    meshes = [
        colored(box_mesh((0.1, 0.16, 0.2))),
        colored(cylinder_mesh(0.05, 0.2)),
        colored(sphere_mesh(0.09, 2)),
        textured_ball(0.08, seed),
        sheet(0.12, texture, 1.5),
        sphere_mesh(0.07, 4),
    ]
    low, high = [-0.17, -0.13, 0.4], [0.17, 0.13, 0.7]
    poses = [transform(Rotation.random(rng=rng), rng.uniform(low, high)) for _ in meshes]
    instances = [Instance(mesh, pose) for mesh, pose in zip(meshes, poses, strict=True)]
    assert_agree(
        gl.render(instances, camera, HEIGHT, WIDTH, near_m),
        RasterRenderer().render(instances, camera, HEIGHT, WIDTH, near_m),
    )


@pytest.mark.parametrize(
    "camera", [K, rotated(30, 1.4), np.diag([-1.0, 1, 1]) @ K + [[0, 0, 127], [0, 0, 0], [0, 0, 0]]]
)
def test_silhouettes_are_the_masks_of_each_alone(renderer: Renderer, camera: np.ndarray) -> None:
    """Wherever they are: aside, cut by the picture's border or by the near plane, behind the camera."""
    rng = np.random.default_rng(5)
    meshes = [box_mesh((0.1, 0.06, 0.2)), cylinder_mesh(0.05, 0.15, 24), sheet(0.08), sphere_mesh(0.07, 2)]
    instances = [
        Instance(meshes[i % 4], transform(Rotation.random(random_state=rng), rng.normal([0, 0, 0.4], [0.2, 0.15, 0.3])))
        for i in range(40)
    ]
    silhouettes = renderer.silhouettes(instances, camera, HEIGHT, WIDTH)
    shares = []
    for instance, silhouette in zip(instances, silhouettes, strict=True):
        alone = renderer.render([instance], camera, HEIGHT, WIDTH).mask > 0
        np.testing.assert_array_equal(silhouette, alone)
        shares.append(alone.mean())
    assert min(shares) == 0
    assert sum(share > 0.01 for share in shares) > 15
