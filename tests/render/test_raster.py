import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from glimpose.render import raster
from glimpose.render.mesh import Mesh, box_mesh, cylinder_mesh, sphere_mesh
from glimpose.render.raster import RasterRenderer, rasterise
from glimpose.render.scene import Instance

HEIGHT, WIDTH, NEAR_M, FAR_M = 40, 56, 0.01, 20.0
K = np.array([[70.0, 4.0, 27.3], [-3.0, 66.0, 18.9], [0.0, 0.0, 1.0]])


def transform(rotation: Rotation, translation: tuple[float, float, float]) -> np.ndarray:
    cam_T_obj = np.eye(4)
    cam_T_obj[:3, :3], cam_T_obj[:3, 3] = rotation.as_matrix(), translation
    return cam_T_obj


def grid_faces(rows: int, columns: int) -> np.ndarray:
    """Two triangles per cell of a grid of vertices, with alternating diagonals and orientations."""
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = (corner.ravel() for corner in (index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]))
    faces = np.stack([np.stack([a, b, c, a, c, d], 1), np.stack([a, b, d, b, d, c], 1)])
    return np.concatenate([faces[0, ::2], faces[1, 1::2]]).reshape(-1, 3)


def coverage(corners: np.ndarray) -> np.ndarray:
    """How many triangles cover each pixel centre."""
    count = np.zeros(HEIGHT * WIDTH, int)
    for fragments in rasterise(corners, HEIGHT, WIDTH, NEAR_M, FAR_M):
        np.add.at(count, fragments.pixel, 1)
    return count.reshape(HEIGHT, WIDTH)


def ray_cast(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth and face at each pixel's centre, by intersecting its ray with the plane of every triangle."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack([u, v, np.ones_like(u)], axis=-1)[..., None]
    depth, face = np.full((HEIGHT, WIDTH), np.inf), np.full((HEIGHT, WIDTH), -1)
    for i, triangle in enumerate(corners):
        scaled = (np.linalg.inv(triangle.T) @ rays)[..., 0]  # barycentric coordinates over depth
        z = 1 / scaled.sum(-1)
        hit = (scaled * z[..., None] >= 0).all(-1) & (z >= NEAR_M) & (z <= FAR_M) & (z < depth)
        depth[hit], face[hit] = z[hit], i
    return depth, face


def test_triangles_in_front_of_through_and_behind_the_near_plane_match_ray_casting() -> None:
    rng = np.random.default_rng(0)
    middles = rng.uniform([-0.3, -0.3, -0.2], [0.3, 0.3, 1.0], (60, 1, 3))
    corners = (middles + rng.uniform(-0.3, 0.3, (60, 3, 3))) @ K.T
    num_in_front = (corners[..., 2] > NEAR_M).sum(1)
    assert set(num_in_front) == {0, 1, 2, 3}
    gt_depth, gt_face = ray_cast(corners)
    depth, face = np.full(HEIGHT * WIDTH, np.inf), np.full(HEIGHT * WIDTH, -1)
    for fragments in rasterise(corners, HEIGHT, WIDTH, NEAR_M, FAR_M):
        np.testing.assert_allclose(
            (fragments.weights[..., None] * corners[fragments.face]).sum(1)[:, 2], fragments.depth
        )
        order = np.argsort(-fragments.depth, kind="stable")
        depth[fragments.pixel[order]], face[fragments.pixel[order]] = fragments.depth[order], fragments.face[order]
    np.testing.assert_array_equal(face.reshape(HEIGHT, WIDTH), gt_face)
    np.testing.assert_allclose(depth.reshape(HEIGHT, WIDTH), gt_depth, rtol=1e-9)


@pytest.mark.parametrize("jitter_px", [0.0, 0.3])
def test_a_sheet_of_triangles_covers_every_pixel_once_even_through_its_vertices(jitter_px: float) -> None:
    rng = np.random.default_rng(1)
    rows, columns = HEIGHT // 2 + 3, WIDTH // 2 + 3
    v, u = 2.0 * np.mgrid[-1 : rows - 1, -1 : columns - 1]
    uv = np.stack([u, v], axis=-1) + jitter_px * rng.uniform(-1, 1, (rows, columns, 2))
    depth = rng.uniform(0.5, 2.0, (rows, columns, 1))
    corners = (np.concatenate([uv, np.ones_like(depth)], axis=-1) * depth).reshape(-1, 3)[grid_faces(rows, columns)]
    assert (coverage(corners) == 1).all()


def test_a_floor_that_runs_past_the_camera_covers_every_pixel_below_its_horizon_once() -> None:
    z, x = np.mgrid[-2.0:19.0:12j, -40.0:40.0:12j]
    floor = np.stack([x, np.full_like(x, 0.5), z], axis=-1).reshape(-1, 3)
    camera = np.array([[30.0, 0.0, 27.3], [0.0, 30.0, 3.4], [0.0, 0.0, 1.0]])
    count = coverage((floor @ camera.T)[grid_faces(12, 12)])
    horizon = 3.4 + 30 * 0.5 / 19
    assert (count == (np.arange(HEIGHT) > horizon)[:, None]).all()


@pytest.mark.parametrize("mesh", [box_mesh((0.2, 0.3, 0.1)), sphere_mesh(0.15, 3), cylinder_mesh(0.1, 0.3)])
def test_a_watertight_convex_mesh_is_hit_twice_or_not_at_all(mesh: Mesh) -> None:
    for seed in range(8):
        cam_T_obj = transform(Rotation.random(rng=seed), (0.05, -0.03, 0.6))
        vertices = (mesh.vertices @ cam_T_obj[:3, :3].T + cam_T_obj[:3, 3]) @ K.T
        corners = vertices[mesh.faces]
        count, is_front = coverage(corners), np.linalg.det(corners) < 0
        np.testing.assert_array_equal(coverage(corners[is_front]), coverage(corners[~is_front]))
        assert set(np.unique(count)) == {0, 2}


def test_the_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    ball, crate = sphere_mesh(0.1, 2), box_mesh((0.3, 0.3, 0.3))
    instances = [
        Instance(crate, transform(Rotation.random(rng=3), (0.1, 0.0, 0.7))),
        Instance(ball, transform(Rotation.identity(), (0.0, 0.05, 0.5))),
    ]
    whole = RasterRenderer().render(instances, K, HEIGHT, WIDTH)
    monkeypatch.setattr(raster, "CHUNK_CANDIDATES", 17)
    parts = RasterRenderer().render(instances, K, HEIGHT, WIDTH)
    for name, values in vars(whole).items():
        np.testing.assert_array_equal(getattr(parts, name), values, err_msg=name)


def test_of_equally_deep_faces_and_instances_the_first_is_seen() -> None:
    corner = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
    vertices, faces = np.tile(corner, (2, 1)), np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]], np.int32)
    normals = np.tile(np.array([0, 0, 1], np.float32), (8, 1))
    colors = np.repeat(np.array([[200, 10, 10], [10, 200, 10]], np.uint8), 4, axis=0)
    sheets = Mesh(vertices, faces, normals, colors)
    pose = transform(Rotation.identity(), (0.0, 0.0, 0.5))
    seen = RasterRenderer().render([Instance(sheets, pose), Instance(sheets, pose)], K, HEIGHT, WIDTH)
    assert (seen.mask == 1).all()
    assert (seen.albedo == [200, 10, 10]).all()


def test_faces_seen_edge_on_and_faces_without_area_are_not_drawn() -> None:
    vertices = np.array([[0, 0, 0.5], [0, 0, 1.0], [0, 0, 2.0], [0.1, 0, 1.0]], np.float32)
    faces = np.array([[0, 1, 2], [0, 3, 0], [0, 1, 3]], np.int32)
    mesh = Mesh(vertices, faces, np.tile(np.array([0, 1, 0], np.float32), (4, 1)), np.full((4, 3), 99, np.uint8))
    camera = np.array([[50.0, 0, 20], [0, 50.0, 20], [0, 0, 1]])
    assert not RasterRenderer().render([Instance(mesh, np.eye(4))], camera, HEIGHT, WIDTH).mask.any()
