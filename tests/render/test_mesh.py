import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glimpose.render.mesh import (
    DEFAULT_COLOR,
    MAX_TEXTURE_PX,
    Mesh,
    box_mesh,
    cylinder_mesh,
    diameter_m,
    is_closed,
    load_mesh,
    neighbours_together,
    simplify,
    sphere_mesh,
    vertex_colors,
)

SQUARE_MM = np.array([[0, 0, 0], [80, 0, 0], [80, 60, 0], [0, 60, 0]])
SQUARE_UV = SQUARE_MM[:, :2] / [80, 60]


def write_ply(path: Path, columns: dict[str, np.ndarray], faces: str = "3 0 1 2\n3 0 2 3\n", comment: str = "") -> Path:
    """Write an ASCII PLY of the square; columns of integers are colours."""
    columns = dict(zip("xyz", SQUARE_MM.T.astype(float), strict=True)) | columns
    kinds = {name: "uchar" if values.dtype == np.uint8 else "float" for name, values in columns.items()}
    properties = "".join(f"property {kind} {name}\n" for name, kind in kinds.items())
    rows = "".join(" ".join(str(value) for value in row) + "\n" for row in zip(*columns.values(), strict=True))
    path.write_text(
        f"ply\nformat ascii 1.0\n{comment}element vertex 4\n{properties}"
        f"element face 2\nproperty list uchar int vertex_indices\nend_header\n{rows}{faces}"
    )
    return path


def volume(mesh: Mesh) -> float:
    a, b, c = (mesh.vertices[mesh.faces[:, i]].astype(float) for i in range(3))
    return float((np.cross(a, b) * c).sum() / 6)


def joined(*meshes: Mesh) -> Mesh:
    offsets = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    return Mesh(
        vertices=np.concatenate([mesh.vertices for mesh in meshes]),
        faces=np.concatenate([mesh.faces + np.int32(offset) for mesh, offset in zip(meshes, offsets, strict=True)]),
        normals=np.concatenate([mesh.normals for mesh in meshes]),
        colors=np.concatenate([mesh.colors for mesh in meshes]),
    )


def moved(mesh: Mesh, by: tuple[float, float, float]) -> Mesh:
    return replace(mesh, vertices=mesh.vertices + np.array(by, np.float32))


def inside_out(mesh: Mesh) -> Mesh:
    return replace(mesh, faces=np.ascontiguousarray(mesh.faces[:, ::-1]), normals=-mesh.normals)


def test_ply_is_read_in_metres_with_its_colors_and_normals(tmp_path: Path) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (4, 3), np.uint8)
    normals = np.array([[0, 0.6, 0.8], [0.6, 0, 0.8], [0, 0, 1], [0, 0, 1]])
    columns = dict(zip(("nx", "ny", "nz", "red", "green", "blue"), [*normals.T, *colors.T], strict=True))
    mesh = load_mesh(write_ply(tmp_path / "square.ply", columns))
    np.testing.assert_allclose(mesh.vertices, SQUARE_MM / 1000, atol=1e-7)
    np.testing.assert_array_equal(mesh.colors, colors)
    np.testing.assert_allclose(mesh.normals, normals, atol=1e-6)
    assert (mesh.vertices.dtype, mesh.faces.dtype, mesh.normals.dtype) == (np.float32, np.int32, np.float32)


def test_faces_are_wound_to_the_side_their_normals_point_to(tmp_path: Path) -> None:
    columns = dict(zip(("nx", "ny", "nz"), np.tile([0.0, 0.0, -1.0], (4, 1)).T, strict=True))
    mesh = load_mesh(write_ply(tmp_path / "square.ply", columns))
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    assert (np.cross(b - a, c - a)[:, 2] < 0).all()


def test_missing_normals_are_computed_and_missing_colors_grey(tmp_path: Path) -> None:
    mesh = load_mesh(write_ply(tmp_path / "square.ply", {}))
    np.testing.assert_allclose(mesh.normals, np.tile([0, 0, 1], (4, 1)), atol=1e-6)
    assert (mesh.colors == DEFAULT_COLOR).all()


@pytest.mark.parametrize("suffix", ["ply", "obj", "glb"])
def test_textures_come_with_coordinates_from_the_lower_left(tmp_path: Path, suffix: str) -> None:
    texture = np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(texture).save(tmp_path / "paint.png")
    path = tmp_path / f"square.{suffix}"
    columns = dict(zip(("texture_u", "texture_v"), SQUARE_UV.T, strict=True))
    comment = "comment TextureFile paint.png\n"
    if suffix == "ply":
        write_ply(path, columns, comment=comment)
    elif suffix == "obj":
        (tmp_path / "square.mtl").write_text("newmtl paint\nmap_Kd paint.png\n")
        corners = "".join(f"v {x} {y} {z}\n" for x, y, z in SQUARE_MM) + "".join(f"vt {u} {v}\n" for u, v in SQUARE_UV)
        path.write_text(f"mtllib square.mtl\n{corners}usemtl paint\nf 1/1 2/2 3/3\nf 1/1 3/3 4/4\n")
    else:
        import trimesh

        trimesh.load(write_ply(tmp_path / "source.ply", columns, comment=comment), process=False).export(path)
    mesh = load_mesh(path)
    assert mesh.is_textured
    np.testing.assert_allclose(mesh.uv, mesh.vertices[:, :2] / [0.08, 0.06], atol=1e-5)
    np.testing.assert_array_equal(mesh.texture, texture)


def test_large_textures_are_reduced(tmp_path: Path) -> None:
    Image.new("RGB", (2 * MAX_TEXTURE_PX, 10), (1, 2, 3)).save(tmp_path / "paint.png")
    columns = dict(zip(("texture_u", "texture_v"), SQUARE_UV.T, strict=True))
    mesh = load_mesh(write_ply(tmp_path / "square.ply", columns, comment="comment TextureFile paint.png\n"))
    assert mesh.texture is not None
    assert mesh.texture.shape == (5, MAX_TEXTURE_PX, 3)


@pytest.mark.parametrize(("scale_to_m", "warns"), [(1e-3, False), (1.0, True), (1e-6, True)])
def test_implausible_units_warn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, scale_to_m: float, warns: bool
) -> None:
    load_mesh(write_ply(tmp_path / "square.ply", {}), scale_to_m)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * warns
    assert ("square.ply: diameter" in caplog.text) == warns


def test_what_is_not_a_mesh_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ply: no such"):
        load_mesh(tmp_path / "nowhere.ply")
    junk = tmp_path / "junk.ply"
    junk.write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"junk\.ply: not readable as a mesh"):
        load_mesh(junk)
    truncated = write_ply(tmp_path / "truncated.ply", {}, faces="3 0 1 2\n")
    with pytest.raises(ValueError, match=r"truncated\.ply: (has 1 of the 2 faces|not readable)"):
        load_mesh(truncated)
    points = tmp_path / "points.obj"
    points.write_text("v 0 0 0\nv 1 0 0\n")
    with pytest.raises(ValueError, match=r"points\.obj: has no faces"):
        load_mesh(points)
    with pytest.raises(ValueError, match=r"reference\.ply: "):
        load_mesh(write_ply(tmp_path / "reference.ply", {}, faces="3 0 1 2\n3 0 2 9\n"))
    with pytest.raises(FileNotFoundError, match=r"bare\.ply: names the texture paint\.png"):
        load_mesh(write_ply(tmp_path / "bare.ply", {}, comment="comment TextureFile paint.png\n"))


def test_diameter_is_the_largest_distance_between_vertices() -> None:
    box = box_mesh((0.03, 0.04, 0.12))
    assert diameter_m(box) == pytest.approx(0.13)
    cloud = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    for points in (cloud, cloud * np.array([1, 1, 0], np.float32), cloud[:3]):
        largest = np.linalg.norm(points[:, None].astype(float) - points, axis=2).max()
        faces, colors = np.zeros((1, 3), np.int32), np.zeros(points.shape, np.uint8)
        assert diameter_m(Mesh(points, faces, points, colors)) == pytest.approx(largest)


@pytest.mark.parametrize(
    ("mesh", "gt_volume", "gt_diameter"),
    [
        (box_mesh((0.1, 0.2, 0.3)), 0.006, np.sqrt(0.14)),
        (cylinder_mesh(radius=0.1, height=0.3, segments=64), np.pi * 0.003, np.sqrt(0.13)),
        (sphere_mesh(radius=0.1, subdivisions=4), np.pi * 0.004 / 3, 0.2),
    ],
    ids=["box", "cylinder", "sphere"],
)
def test_primitives_are_closed_outward_and_of_their_size(mesh: Mesh, gt_volume: float, gt_diameter: float) -> None:
    assert is_closed(mesh)
    assert volume(mesh) == pytest.approx(gt_volume, rel=5e-3)
    assert diameter_m(mesh) == pytest.approx(gt_diameter, rel=1e-6)
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-6)
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    geometric = np.cross(b - a, c - a)
    geometric /= np.linalg.norm(geometric, axis=1, keepdims=True)
    assert (geometric[:, None] * mesh.normals[mesh.faces]).sum(2).min() > 0.98


def test_closed_means_that_no_face_is_seen_from_behind() -> None:
    ball, crate = sphere_mesh(0.1, 2), box_mesh((0.1, 0.1, 0.1))
    far_crate = moved(crate, (1.0, 0.0, 0.0))
    assert is_closed(joined(ball, far_crate))
    assert is_closed(joined(ball, crate))
    assert not is_closed(replace(ball, faces=ball.faces[1:]))
    assert not is_closed(inside_out(ball))
    assert not is_closed(joined(sphere_mesh(0.2, 2), inside_out(far_crate)))
    turned = ball.faces.copy()
    turned[7] = turned[7, ::-1]
    assert not is_closed(replace(ball, faces=turned))


def test_simplification_keeps_shape_colors_and_closure() -> None:
    ball = sphere_mesh(0.1, 5)
    ball = replace(ball, colors=(127.5 * (1 + ball.vertices / 0.1)).astype(np.uint8))
    # As if each face had its own normals.
    split = replace(
        ball,
        vertices=ball.vertices[ball.faces].reshape(-1, 3),
        normals=ball.normals[ball.faces].reshape(-1, 3),
        colors=ball.colors[ball.faces].reshape(-1, 3),
        faces=np.arange(ball.faces.size, dtype=np.int32).reshape(-1, 3),
    )
    for mesh in (ball, split):
        small = simplify(mesh, 1000)
        assert 900 <= len(small.faces) <= 1000
        assert is_closed(small)
        np.testing.assert_allclose(np.linalg.norm(small.vertices, axis=1), 0.1, rtol=0.02)
        assert np.median((small.normals * small.vertices).sum(1)) > 0.0995
        np.testing.assert_allclose(small.colors, 127.5 * (1 + small.vertices / 0.1), atol=6)


def test_simplification_leaves_small_meshes_alone() -> None:
    crate = box_mesh((0.1, 0.1, 0.1))
    assert simplify(crate, 12) is crate
    with pytest.raises(ValueError, match="num_faces is 0"):
        simplify(crate, 0)


def test_simplification_turns_texture_into_colors() -> None:
    ball = sphere_mesh(0.1, 4)
    texture = np.zeros((2, 2, 3), np.uint8)
    texture[0] = 255  # the upper half
    painted = replace(ball, uv=(ball.vertices[:, :2] / 0.2 + 0.5).clip(0, 1), texture=texture)
    is_certain = abs(ball.vertices[:, 1]) > 1e-4
    np.testing.assert_array_equal((vertex_colors(painted)[:, 0] == 255)[is_certain], ball.vertices[is_certain, 1] > 0)
    small = simplify(painted, 500)
    assert not small.is_textured
    is_certain = abs(small.vertices[:, 1]) > 0.01
    np.testing.assert_array_equal(small.colors[is_certain, 0] == 255, small.vertices[is_certain, 1] > 0)


def test_neighbours_together_orders_all_faces_and_brings_neighbours_together() -> None:
    ball = sphere_mesh(0.1, 4)
    ball = replace(ball, faces=np.random.default_rng(0).permutation(ball.faces))
    order = neighbours_together(ball)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(ball.faces)))
    centres = ball.vertices[ball.faces].mean(1)
    steps = [np.linalg.norm(np.diff(points, axis=0), axis=1).mean() for points in (centres, centres[order])]
    assert steps[1] < 0.1 * steps[0]


@pytest.mark.parametrize(("name", "dtype"), [("faces", np.int64), ("vertices", np.float64)])
def test_arrays_of_other_types_are_refused(name: str, dtype: type):
    """Renderers would read their bytes as something else."""
    box = box_mesh((0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match=rf"Mesh\.{name}: is of type {np.dtype(dtype)}, expected"):
        replace(box, **{name: getattr(box, name).astype(dtype)})
