"""Triangle meshes in metres: reading, primitives, size and simplification."""

import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import trimesh
from jaxtyping import Float, Int, UInt8
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull, QhullError, cKDTree
from scipy.spatial.distance import cdist

logger = logging.getLogger(__name__)

DEFAULT_COLOR = 180
"""Grey of a mesh that has neither colours nor texture."""
MAX_TEXTURE_PX = 1024
"""Larger textures are reduced when read: renderers sample them without mipmaps, and would draw noise from more."""
PLAUSIBLE_DIAMETER_M = (0.005, 5.0)


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh; two are the same only if they are one object, which lets renderers cache it."""

    vertices: Float[np.ndarray, "v 3"]
    """float32, metres."""
    faces: Int[np.ndarray, "f 3"]
    """int32; counter-clockwise from the side that the normals point to, which tells front from back."""
    normals: Float[np.ndarray, "v 3"]
    """float32, unit length."""
    colors: UInt8[np.ndarray, "v 3"]
    uv: Float[np.ndarray, "v 2"] | None = None
    """Texture coordinates: (0, 0) is the texture's lower left corner, (1, 1) its upper right one; it repeats beyond."""
    texture: UInt8[np.ndarray, "h w 3"] | None = None
    """Replaces the colours where both are given; sampled bilinearly."""

    def __post_init__(self) -> None:
        expected = {"vertices": "float32", "faces": "int32", "normals": "float32", "colors": "uint8", "uv": "float32"}
        for name, dtype in expected.items():  # a GPU reads bytes, whatever they mean
            array = getattr(self, name)
            if array is not None and array.dtype != dtype:
                raise ValueError(f"Mesh.{name}: is of type {array.dtype}, expected {dtype}")

    @property
    def is_textured(self) -> bool:
        """Whether it shows a texture rather than its colours."""
        return self.uv is not None and self.texture is not None


def load_mesh(path: Path, scale_to_m: float = 1e-3) -> Mesh:
    """Read a PLY, OBJ, STL or GLB file whose unit is ``scale_to_m`` metres (BOP's models: millimetres).

    Logs a warning when the object is then implausibly large or small. Raises FileNotFoundError, or ValueError for a
    file that isn't a triangle mesh.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such mesh file")
    source: Any
    num_faces = _check_ply_header(path) if path.suffix.lower() == ".ply" else 1
    try:
        source = trimesh.load(path, process=False)
        if isinstance(source, trimesh.Scene):
            # Only if needed, for the files' normals are lost on the way.
            source = source.to_mesh()
    except Exception as error:  # trimesh's readers raise whatever their parsing meets
        raise ValueError(f"{path}: not readable as a mesh ({type(error).__name__}: {error})") from error
    if len(getattr(source, "faces", ())) == 0:
        raise ValueError(f"{path}: has no faces, expected a triangle mesh")
    if len(source.faces) < num_faces:
        raise ValueError(f"{path}: has {len(source.faces)} of the {num_faces} faces its header announces; truncated?")
    if source.visual.kind == "face":
        source.unmerge_vertices()
    if not np.isfinite(source.vertices).all() or source.faces.min() < 0 or source.faces.max() >= len(source.vertices):
        raise ValueError(f"{path}: has vertices that aren't finite, or faces that refer to missing vertices")
    colors, uv, texture = _appearance(source, path)
    vertices, normals = np.asarray(source.vertices) * scale_to_m, np.asarray(source.vertex_normals)
    mesh = _mesh(vertices, _wind(vertices, np.asarray(source.faces), normals), normals, colors, uv, texture)
    size_m = diameter_m(mesh)
    if not PLAUSIBLE_DIAMETER_M[0] <= size_m <= PLAUSIBLE_DIAMETER_M[1]:
        logger.warning(
            "%s: diameter %.4g m when its unit is taken as %g m; is that the file's unit?", path, size_m, scale_to_m
        )
    return mesh


def box_mesh(size: tuple[float, float, float]) -> Mesh:
    """Box of these edge lengths around the origin, with flat faces."""
    box = trimesh.creation.box(size)
    box.unmerge_vertices()
    return _mesh(box.vertices, box.faces, np.repeat(box.face_normals, 3, axis=0))


def sphere_mesh(radius: float, subdivisions: int = 3) -> Mesh:
    """Icosphere around the origin: 20·4^subdivisions faces whose corners lie on the sphere."""
    ball = trimesh.creation.icosphere(subdivisions=subdivisions, radius=1.0)
    unit = np.asarray(ball.vertices) / np.linalg.norm(ball.vertices, axis=1, keepdims=True)
    return _mesh(radius * unit, ball.faces, unit)


def cylinder_mesh(radius: float, height: float, segments: int = 32) -> Mesh:
    """Cylinder around z, centred at the origin, with a smooth side and flat caps."""
    angle = np.arange(segments) * (2 * np.pi / segments)
    ring = np.stack([np.cos(angle), np.sin(angle), np.zeros(segments)], axis=1)
    up = np.array([0.0, 0.0, 1.0])
    low, high = radius * ring - height / 2 * up, radius * ring + height / 2 * up
    # Four rings (side low, side high, cap low, cap high), then the caps' middles.
    vertices = np.concatenate([low, high, low, high, [-height / 2 * up, height / 2 * up]])
    caps = np.broadcast_to(up, ring.shape)
    normals = np.concatenate([ring, ring, -caps, caps, [-up, up]])
    i = np.arange(segments)
    j = (i + 1) % segments
    faces = [
        np.stack([i, j, segments + j], axis=1),
        np.stack([i, segments + j, segments + i], axis=1),
        np.stack([np.full(segments, 4 * segments), 2 * segments + j, 2 * segments + i], axis=1),
        np.stack([np.full(segments, 4 * segments + 1), 3 * segments + i, 3 * segments + j], axis=1),
    ]
    return _mesh(vertices, np.concatenate(faces), normals)


def diameter_m(mesh: Mesh) -> float:
    """Return the largest distance between two vertices, exactly; both lie on the convex hull."""
    points = mesh.vertices.astype(np.float64)
    with suppress(QhullError):  # flat, or fewer than four vertices
        points = points[ConvexHull(points).vertices]
    return max(float(cdist(points[i : i + 1024], points).max()) for i in range(0, len(points), 1024))


def simplify(mesh: Mesh, num_faces: int) -> Mesh:
    """Reduce a mesh to about this many faces by quadric edge collapse; smaller meshes are returned as they are.

    Colours, or a texture's colours, are those of the nearest original vertex; normals are those of the new surface.
    """
    if num_faces < 4:
        raise ValueError(f"simplify: num_faces is {num_faces}, expected at least 4")
    if len(mesh.faces) <= num_faces:
        return mesh
    import fast_simplification

    vertices, faces = fast_simplification.simplify(*_weld(mesh), target_count=num_faces)
    nearest = cKDTree(mesh.vertices).query(vertices)[1]
    normals = trimesh.Trimesh(vertices, faces, process=False).vertex_normals
    return _mesh(vertices, faces, normals, vertex_colors(mesh)[nearest])


def is_closed(mesh: Mesh) -> bool:
    """Tell whether the mesh bounds solid bodies, so that from outside nobody ever sees a face from behind.

    That is so when every edge is walked as often one way as the other, and no connected part is inside out.
    """
    vertices, faces = _weld(mesh)
    starts, ends = faces.astype(np.int64), np.roll(faces, -1, axis=1).astype(np.int64)
    forth, back = (np.sort((a * len(vertices) + b)[starts != ends]) for a, b in ((starts, ends), (ends, starts)))
    if not np.array_equal(forth, back):
        return False
    edges = coo_array((np.ones(starts.size, bool), (starts.ravel(), ends.ravel())), shape=(len(vertices),) * 2)
    part = connected_components(edges, directed=False)[1][faces[:, 0]]
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    volumes = np.bincount(part, weights=(np.cross(a, b) * c).sum(1))
    return bool((volumes[np.unique(part)] > 0).all())


def neighbours_together(mesh: Mesh) -> Int[np.ndarray, " f"]:
    """Order faces along a space-filling (Morton) curve: rasterisers reuse the vertices that they saw last."""
    centre = mesh.vertices[mesh.faces].mean(1)
    centre = centre - centre.min(0)
    cell = (centre * (1023 / max(float(centre.max()), 1e-9))).astype(np.int64)
    code = np.zeros(len(cell), np.int64)
    for bit in range(10):
        for axis in range(3):
            code |= ((cell[:, axis] >> bit) & 1) << (3 * bit + axis)
    return np.argsort(code, kind="stable")


def vertex_colors(mesh: Mesh) -> UInt8[np.ndarray, "v 3"]:
    """Return the colours seen at the vertices: the texture's where there is one."""
    if mesh.texture is None or mesh.uv is None:
        return mesh.colors
    size = np.array(mesh.texture.shape[1::-1])
    # Both ends of 0..1 stay what they are; only beyond does the texture repeat.
    uv = np.where((mesh.uv < 0) | (mesh.uv > 1), mesh.uv % 1, mesh.uv)
    column, row = np.minimum(np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1) * size, size - 1).astype(int).T
    return mesh.texture[row, column]


def _weld(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces without the splits that normals and texture coordinates need."""
    vertices, index = np.unique(mesh.vertices, axis=0, return_inverse=True)
    return vertices, index.reshape(-1)[mesh.faces]


def _wind(vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Turn the faces that are clockwise as seen from where their normals point."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    is_clockwise = (np.cross(b - a, c - a) * normals[faces].sum(1)).sum(1) < 0
    return np.where(is_clockwise[:, None], faces[:, ::-1], faces)


def _mesh(
    vertices: np.ndarray,
    faces: np.ndarray,
    normals: np.ndarray,
    colors: np.ndarray | None = None,
    uv: np.ndarray | None = None,
    texture: np.ndarray | None = None,
) -> Mesh:
    """Bring arrays to the types of a mesh; zero normals (of vertices without area) become +z."""
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(length > 0, normals / np.maximum(length, 1e-12), [0.0, 0.0, 1.0])
    if colors is None:
        colors = np.full((len(vertices), 3), DEFAULT_COLOR)
    return Mesh(
        vertices=np.ascontiguousarray(vertices, dtype=np.float32),
        faces=np.ascontiguousarray(faces, dtype=np.int32),
        normals=np.ascontiguousarray(normals, dtype=np.float32),
        colors=np.ascontiguousarray(colors, dtype=np.uint8),
        uv=None if uv is None else np.ascontiguousarray(uv, dtype=np.float32),
        texture=texture,
    )


def _check_ply_header(path: Path) -> int:
    """Return the number of faces announced; raise FileNotFoundError when the texture named isn't there."""
    with path.open("rb") as file:
        header = file.read(1 << 16).partition(b"end_header")[0].decode(errors="replace")
    texture = re.search(r"^comment TextureFile\s+(.+?)\s*$", header, re.MULTILINE)
    if texture and not (path.parent / texture[1]).is_file():
        raise FileNotFoundError(f"{path}: names the texture {texture[1]}, which isn't beside it")
    faces = re.search(r"^element face (\d+)\s*$", header, re.MULTILINE)
    return int(faces[1]) if faces else 0


def _appearance(source: Any, path: Path) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Colours, texture coordinates and texture of a trimesh mesh, as far as it has them."""
    visual = source.visual
    if visual.kind in ("vertex", "face"):
        return np.asarray(visual.vertex_colors)[:, :3], None, None
    if visual.kind != "texture":
        return None, None, None
    material = visual.material
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if visual.uv is None or image is None:
        if visual.uv is not None:
            logger.warning("%s: has texture coordinates, but no texture that can be read; drawn in one colour", path)
        return np.tile(np.asarray(material.main_color)[:3], (len(source.vertices), 1)), None, None
    texture = np.asarray(image.convert("RGB"))
    reduction = MAX_TEXTURE_PX / max(texture.shape[:2])
    if reduction < 1:
        size = [max(1, round(side * reduction)) for side in texture.shape[1::-1]]
        texture = cv2.resize(texture, size, interpolation=cv2.INTER_AREA)
    return None, np.asarray(visual.uv)[:, :2], texture
