"""What only the GL backend could get wrong; what it draws is compared with the oracle in test_backends."""

import gc
import logging
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import moderngl
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from glimpose.render import gl
from glimpose.render.gl import MAX_FRAMEBUFFERS, GlRenderer, GlUnavailableError
from glimpose.render.mesh import Mesh, box_mesh, cylinder_mesh, sphere_mesh
from glimpose.render.scene import Instance, make_renderer

K = np.array([[150.0, 0.0, 31.5], [0.0, 150.0, 31.5], [0.0, 0.0, 1.0]])


@pytest.fixture(scope="module")
def renderer() -> Iterator[GlRenderer]:
    try:
        renderer = GlRenderer()
    except GlUnavailableError as error:
        pytest.skip(str(error))
    yield renderer
    renderer.close()


def at(x: float, y: float, z: float, rotation: Rotation | None = None) -> np.ndarray:
    cam_T_obj = np.eye(4)
    cam_T_obj[:3, :3] = np.eye(3) if rotation is None else rotation.as_matrix()
    cam_T_obj[:3, 3] = x, y, z
    return cam_T_obj


def rectangle(low: tuple[float, float], high: tuple[float, float]) -> Mesh:
    """Rectangle at z = 0 that faces a camera looking along +z."""
    corners = [(low[0], low[1]), (low[0], high[1]), (high[0], high[1]), (high[0], low[1])]
    return Mesh(
        vertices=np.array([(*corner, 0) for corner in corners], np.float32),
        faces=np.array([[0, 1, 2], [0, 2, 3]], np.int32),
        normals=np.tile(np.array([0, 0, -1], np.float32), (4, 1)),
        colors=np.full((4, 3), 200, np.uint8),
    )


@pytest.mark.parametrize("inset_px", [-0.02, 0.02])
def test_pixels_are_covered_when_their_centres_are(renderer: GlRenderer, inset_px: float) -> None:
    """A rectangle from pixel (10, 20) to pixel (29, 24), a little larger or smaller than between their centres."""
    low, high = np.array([10.0, 20.0]) + inset_px, np.array([29.0, 24.0]) - inset_px
    mesh = rectangle(tuple((low - 31.5) / 150), tuple((high - 31.5) / 150))
    mask = renderer.render([Instance(mesh, at(0, 0, 1))], K, 64, 64).mask
    expected = np.zeros((64, 64), np.uint8)
    expected[20:25, 10:30] = 1
    if inset_px > 0:
        expected[[20, 24]] = 0
        expected[:, [10, 29]] = 0
    np.testing.assert_array_equal(mask, expected)


def test_images_need_not_be_square_nor_even(renderer: GlRenderer) -> None:
    mesh = rectangle((-9, -9), (9, 9))
    for height, width in [(1, 1), (33, 7), (5, 61)]:
        seen = renderer.render([Instance(mesh, at(0, 0, 1))], K, height, width)
        assert seen.albedo.shape == seen.normal.shape == seen.xyz.shape == (height, width, 3)
        assert seen.mask.shape == seen.depth.shape == (height, width)
        assert seen.mask.all()


def test_every_array_is_contiguous_and_owned_by_the_caller(renderer: GlRenderer) -> None:
    instance = Instance(sphere_mesh(0.1), at(0, 0, 0.6))
    seen = renderer.render([instance], K, 64, 64)
    copies = {name: values.copy() for name, values in vars(seen).items()}
    renderer.render([replace(instance, cam_T_obj=at(0.05, 0, 0.5))], K, 64, 64)
    for name, values in vars(seen).items():
        assert values.flags.c_contiguous
        np.testing.assert_array_equal(values, copies[name])


def test_instances_keep_their_number_whatever_their_distance(renderer: GlRenderer) -> None:
    ball = sphere_mesh(0.02, 1)
    poses = [at(0.05 * (i % 16 - 7.5), 0.05 * (i // 16 - 7.5), 1.2 + 0.01 * np.sin(i)) for i in range(255)]
    camera = np.array([[280.0, 0.0, 127.5], [0.0, 280.0, 127.5], [0.0, 0.0, 1.0]])
    mask = renderer.render([Instance(ball, pose) for pose in poses], camera, 256, 256).mask
    for i, pose in enumerate(poses):
        u, v, z = camera @ pose[:3, 3]
        assert mask[round(v / z), round(u / z)] == i + 1


def test_more_instances_than_labels_are_refused(renderer: GlRenderer) -> None:
    with pytest.raises(ValueError, match="256 instances"):
        renderer.render([Instance(sphere_mesh(0.1, 1), at(0, 0, 1))] * 256, K, 8, 8)


def test_cameras_that_are_none_are_refused(renderer: GlRenderer) -> None:
    with pytest.raises(ValueError, match="last row of K"):
        renderer.render([], K * 2, 8, 8)
    with pytest.raises(ValueError, match="0 < near_m < far_m"):
        renderer.render([], K, 8, 8, near_m=0.0)


def test_solids_lose_nothing_when_their_backs_are_not_drawn(
    renderer: GlRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    meshes = [box_mesh((0.1, 0.1, 0.2)), cylinder_mesh(0.05, 0.2), sphere_mesh(0.08, 3)]
    poses = [at(0.08 * (i - 1), 0.05 * (i - 1), 0.6, Rotation.random(rng=i)) for i in range(3)]
    mirror = np.diag([-1.0, 1.0, 1.0])
    mirror[0, 2] = 63
    cameras = [(K, 0.01), (mirror @ K, 0.01), (K, 0.55)]
    culled = [
        renderer.render([Instance(*pair) for pair in zip(meshes, poses, strict=True)], camera, 64, 64, near_m)
        for camera, near_m in cameras
    ]
    monkeypatch.setattr(gl, "is_closed", lambda mesh: False)
    copies = [replace(mesh) for mesh in meshes]
    for seen, (camera, near_m) in zip(culled, cameras, strict=True):
        instances = [Instance(*pair) for pair in zip(copies, poses, strict=True)]
        whole = renderer.render(instances, camera, 64, 64, near_m)
        assert seen.mask.any()
        for name in vars(seen):
            np.testing.assert_array_equal(getattr(seen, name), getattr(whole, name))


def test_inside_of_an_open_box_is_seen_with_normals_towards_the_camera(renderer: GlRenderer) -> None:
    box = box_mesh((0.2, 0.2, 0.2))
    lidless = replace(box, faces=box.faces[box.normals[box.faces[:, 0], 2] > -0.5])
    seen = renderer.render([Instance(lidless, at(0, 0, 0.8))], K, 64, 64)
    middle = np.s_[28:36, 28:36]
    np.testing.assert_allclose(seen.depth[middle], 0.9, atol=1e-5)
    np.testing.assert_allclose(seen.normal[middle], np.broadcast_to([0, 0, -1], (8, 8, 3)), atol=1e-6)


def test_normals_of_smooth_silhouettes_are_not_turned_around(renderer: GlRenderer) -> None:
    """Interpolated normals may look away from the camera a little where the surface itself doesn't."""
    seen = renderer.render([Instance(sphere_mesh(0.1, 1), at(0, 0, 0.5))], K, 64, 64)
    is_seen = seen.mask > 0
    smooth = seen.xyz[is_seen] / np.linalg.norm(seen.xyz[is_seen], axis=1, keepdims=True)
    assert (seen.normal[is_seen] * smooth).sum(1).min() > 0.95


def test_color_is_interpolated_in_space_not_in_the_image(renderer: GlRenderer) -> None:
    board = rectangle((-0.2, -0.2), (0.2, 0.2))
    board = replace(
        board, colors=np.where(board.vertices[:, :1] > 0, [[255, 0, 128]], [[0, 255, 128]]).astype(np.uint8)
    )
    pose = at(0, 0, 0.5, Rotation.from_euler("y", 60, degrees=True))
    seen = renderer.render([Instance(board, pose)], K, 64, 64)
    is_seen = seen.mask > 0
    assert is_seen.sum() > 500
    red = 255 * (seen.xyz[is_seen][:, 0] / 0.4 + 0.5)
    np.testing.assert_allclose(seen.albedo[is_seen], np.stack([red, 255 - red, np.full_like(red, 128)], 1), atol=2)


def test_meshes_are_not_kept_alive(renderer: GlRenderer) -> None:
    mesh = sphere_mesh(0.1)
    renderer.render([Instance(mesh, at(0, 0, 1))], K, 8, 8)
    reference = weakref.ref(mesh)
    del mesh
    gc.collect()
    assert reference() is None


def test_renderers_and_image_sizes_may_alternate(renderer: GlRenderer) -> None:
    instances = [Instance(sphere_mesh(0.1), at(0, 0, 0.6))]
    other = GlRenderer()
    sizes = [(40 + i, 64) for i in range(MAX_FRAMEBUFFERS + 2)] * 2
    for height, width in sizes:
        first, second = (each.render(instances, K, height, width) for each in (renderer, other))
        np.testing.assert_array_equal(first.depth, second.depth)
    other.close()
    assert renderer.render(instances, K, 64, 64).mask.any()


WORKERS = """
import multiprocessing
import numpy as np
from glimpose.render.mesh import sphere_mesh
from glimpose.render.scene import Instance, make_renderer

def draw():
    cam_T_obj = np.eye(4)
    cam_T_obj[2, 3] = 1.0
    K = np.array([[100.0, 0, 32], [0, 100, 32], [0, 0, 1]])
    assert make_renderer("gl").render([Instance(sphere_mesh(0.1), cam_T_obj)], K, 64, 64).mask.any()

workers = [multiprocessing.get_context("fork").Process(target=draw) for _ in range(2)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join(60)
draw()
assert [worker.exitcode for worker in workers] == [0, 0]
"""


def test_worker_processes_open_their_own(renderer: GlRenderer) -> None:
    subprocess.run([sys.executable, "-c", WORKERS], check=True, timeout=120)


def test_use_after_a_fork_is_refused_instead_of_hanging(renderer: GlRenderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl.os, "getpid", lambda: -1)
    for use in (lambda: renderer.render([], K, 8, 8), GlRenderer, make_renderer):
        with pytest.raises(RuntimeError, match="spawn"):
            use()


def test_without_egl_the_remedy_is_named_and_the_reference_takes_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: Any) -> None:
        raise Exception("libEGL.so not loaded")

    monkeypatch.setattr(moderngl, "create_context", fail)
    with pytest.raises(GlUnavailableError, match=r"libEGL.so not loaded.*apt-get install libegl1 libgl1-mesa-dri"):
        make_renderer("gl")
    with caplog.at_level(logging.INFO):
        assert make_renderer().name == "raster"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "libEGL.so not loaded" in caplog.text


def test_the_choice_is_logged_in_one_line(renderer: GlRenderer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="glimpose"):
        for kind in ("auto", "gl", "raster"):
            make_renderer(kind).close()
    assert [record.message.split(",")[0].split(" (")[0] for record in caplog.records] == [
        "renderer: gl",
        "renderer: gl",
        "renderer: raster",
    ]
