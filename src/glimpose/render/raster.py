"""Reference rasteriser in NumPy: needs no system library, and is the oracle for the GL backend.

Triangles are scan-converted in homogeneous coordinates (Olano and Greer, "Triangle Scan Conversion using 2D Homogeneous
Coordinates", 1997). With a triangle's corners in the columns of M = K [X0 X1 X2], the point seen by pixel u = (u, v, 1)
has barycentric coordinates proportional to M⁻¹ u. They are edge functions and perspective-correct weights at once, and
they hold for triangles that reach behind the camera too: the near plane clips exactly, per pixel, without cutting a
triangle into pieces whose attributes would have to be interpolated twice.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from glimpose.render.scene import FAR_M, NEAR_M, Buffers, Instance, check_scene

CHUNK_CANDIDATES = 1 << 18
"""Pixels tested at a time, or those of one triangle where it has more: bounds the memory."""
ROUNDING_PX = 1e-6
"""Slack of the bounding boxes, so that only the edge functions decide what is inside."""


class Fragments(NamedTuple):
    """Where triangles cover pixel centres, in the order of the triangles."""

    pixel: Int[np.ndarray, " n"]
    """Flat index, row · width + column."""
    face: Int[np.ndarray, " n"]
    weights: Float[np.ndarray, "n 3"]
    """Barycentric coordinates in 3D: perspective-correct weights of the corners' attributes."""
    depth: Float[np.ndarray, " n"]


class RasterRenderer:
    """Renders on the CPU with nothing but NumPy."""

    name = "raster"

    def render(
        self,
        instances: Sequence[Instance],
        K: Float[np.ndarray, "3 3"],
        height: int,
        width: int,
        near_m: float = NEAR_M,
        far_m: float = FAR_M,
        with_xyz: bool = True,
    ) -> Buffers:
        """Draw the instances with mutual occlusion; of equally deep surfaces the one given first is seen."""
        check_scene(instances, K, near_m, far_m)
        num_pixels = height * width
        depth = np.full(num_pixels, np.inf)
        mask = np.zeros(num_pixels, np.uint8)
        face = np.zeros(num_pixels, np.int64)
        weights = np.zeros((num_pixels, 3))
        for label, instance in enumerate(instances, start=1):
            corners = _affine(K @ instance.cam_T_obj[:3], instance.mesh.vertices)[instance.mesh.faces]
            for fragments in rasterise(corners, height, width, near_m, far_m):
                seen = _test_depth(fragments, depth)
                pixel = fragments.pixel[seen]
                mask[pixel] = label
                face[pixel] = fragments.face[seen]
                weights[pixel] = fragments.weights[seen]

        albedo = np.zeros((num_pixels, 3), np.uint8)
        normal, xyz = np.zeros((2, num_pixels, 3), np.float32)
        for label, instance in enumerate(instances, start=1):
            pixel = np.flatnonzero(mask == label)
            albedo[pixel], normal[pixel], xyz[pixel] = _surface(instance, face[pixel], weights[pixel])
        return Buffers(
            albedo=albedo.reshape(height, width, 3),
            normal=normal.reshape(height, width, 3),
            depth=np.where(mask, depth, 0).astype(np.float32).reshape(height, width),
            mask=mask.reshape(height, width),
            xyz=xyz.reshape(height, width, 3) if with_xyz else np.zeros((height, width, 3), np.float32),
        )

    def silhouettes(
        self, instances: Sequence[Instance], K: Float[np.ndarray, "3 3"], height: int, width: int
    ) -> list[Bool[np.ndarray, "h w"]]:
        """Draw each instance alone."""
        drawn = (self.render([one], K, height, width, with_xyz=False) for one in instances)
        return [buffers.mask > 0 for buffers in drawn]

    def close(self) -> None:
        """Do nothing: there is no context to release."""


def rasterise(
    corners: Float[np.ndarray, "t 3 3"], height: int, width: int, near_m: float, far_m: float
) -> Iterator[Fragments]:
    """Yield the pixel centres that triangles cover between the near and the far plane, in chunks of bounded size.

    Corners are homogeneous pixels K·X, so that their third coordinate is depth. Neither orientation is culled. A pixel
    centre on the edge between two triangles belongs to exactly one of them.
    """
    edges = np.cross(corners[:, [1, 2, 0]], corners[:, [2, 0, 1]])
    volume = (edges[:, 0] * corners[:, 0]).sum(1)
    orientation = np.sign(volume)
    # Row i is the plane through the camera and the edge opposite to corner i, its normal towards the triangle. Points
    # on an edge belong to the triangle on its right, or below it where it is horizontal: the top-left rule.
    edges *= orientation[:, None, None]
    owns_edge = (edges[..., 0] > 0) | ((edges[..., 0] == 0) & (edges[..., 1] > 0))

    first, extent = _bounding_boxes(corners, height, width, near_m)
    extent[volume == 0] = 0
    num_candidates = extent.prod(1)
    ends = np.cumsum(num_candidates)
    start = 0
    while start < len(corners):
        done = ends[start] - num_candidates[start]
        stop = max(start + 1, int(np.searchsorted(ends, done + CHUNK_CANDIDATES, side="right")))
        counts = num_candidates[start:stop]
        face = np.repeat(np.arange(start, stop), counts)
        row, column = np.divmod(np.arange(len(face)) - np.repeat(np.cumsum(counts) - counts, counts), extent[face, 0])
        u, v = first[face, 0] + column, first[face, 1] + row
        x, y, z = corners[face].T
        side = orientation[face] * _cross_pairs(x - u * z, y - v * z)
        covered = ((side > 0) | ((side == 0) & owns_edge[face].T)).all(0)
        face, side, pixel = face[covered], side[:, covered].T, (v * width + u)[covered]
        weights = side / side.sum(1, keepdims=True)
        depth = (weights * corners[face, :, 2]).sum(1)
        kept = (near_m <= depth) & (depth <= far_m)
        yield Fragments(pixel[kept], face[kept], weights[kept], depth[kept])
        start = stop


def _cross_pairs(x: Float[np.ndarray, "3 n"], y: Float[np.ndarray, "3 n"]) -> Float[np.ndarray, "3 n"]:
    """Twice the signed areas between the origin and the edge opposite to each corner.

    With the origin at the pixel, where an exact zero stays zero and errors are relative, the triangles around a vertex
    agree on which of them has the pixel, however close it is. Along an edge they do, for ufuncs don't fuse operations:
    a·b − c·d is exactly antisymmetric.
    """
    x_next, x_last, y_next, y_last = (np.roll(values, shift, axis=0) for values in (x, y) for shift in (-1, -2))
    return x_next * y_last - y_next * x_last


def _affine(transform: Float[np.ndarray, "3 4"], points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    # Not a matrix product: coinciding vertices of different rows must give the same bits, or seams would open.
    x, y, z = points.astype(np.float64).T[..., None]
    return x * transform[:, 0] + y * transform[:, 1] + z * transform[:, 2] + transform[:, 3]


def _bounding_boxes(
    corners: Float[np.ndarray, "t 3 3"], height: int, width: int, near_m: float
) -> tuple[Int[np.ndarray, "t 2"], Int[np.ndarray, "t 2"]]:
    """First pixel (u, v) and size (width, height) of each triangle's box in the image, after the near plane cut it."""
    in_front = corners[..., 2] >= near_m
    others = np.roll(corners, -1, axis=1)
    is_cut = in_front != np.roll(in_front, -1, axis=1)
    rise = np.where(is_cut, others[..., 2] - corners[..., 2], 1)
    cuts = corners + ((near_m - corners[..., 2]) / rise)[..., None] * (others - corners)

    outline = np.concatenate([corners, cuts], axis=1)
    is_outline = np.concatenate([in_front, is_cut], axis=1)[..., None]
    uv = outline[..., :2] / np.where(is_outline, outline[..., 2:], 1)
    size = np.array([width, height])
    low = np.where(is_outline, uv, np.inf).min(1) - ROUNDING_PX
    high = np.where(is_outline, uv, -np.inf).max(1) + ROUNDING_PX
    first = np.ceil(np.clip(low, 0, size)).astype(np.int64)
    last = np.floor(np.clip(high, -1, size - 1)).astype(np.int64)
    return first, np.maximum(last - first + 1, 0)


def _test_depth(fragments: Fragments, depth: Float[np.ndarray, " p"]) -> Int[np.ndarray, " n"]:
    """Lower ``depth`` to the fragments', in place, and return the fragments now seen.

    They come last face first: of equally deep ones, assignment by pixel then keeps the first face, as GL does.
    """
    closer = fragments.depth < depth[fragments.pixel]
    np.minimum.at(depth, fragments.pixel, fragments.depth)
    return np.flatnonzero(closer & (fragments.depth == depth[fragments.pixel]))[::-1]


def _surface(
    instance: Instance, face: Int[np.ndarray, " n"], weights: Float[np.ndarray, "n 3"]
) -> tuple[UInt8[np.ndarray, "n 3"], Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    """Albedo, normal in the camera frame and towards the camera, and object coordinates, of points on an instance."""
    mesh, corners = instance.mesh, instance.mesh.faces[face]

    def interpolate(values: np.ndarray) -> np.ndarray:
        return np.einsum("nc,nck->nk", weights, values[corners])

    xyz = interpolate(mesh.vertices)
    if mesh.texture is None or mesh.uv is None:
        albedo = interpolate(mesh.colors)
    else:
        albedo = _sample(mesh.texture, interpolate(mesh.uv))
    R, t = instance.cam_T_obj[:3, :3], instance.cam_T_obj[:3, 3]
    normal = interpolate(mesh.normals) @ R.T
    # Where opposite normals cancel, zero remains.
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    # The face decides, not its normals: smooth ones lean away from the camera just before a silhouette.
    a, b, c = mesh.vertices[corners].astype(np.float64).transpose(1, 0, 2)
    obj_t_cam = -R.T @ t
    normal[(np.cross(b - a, c - a) * (obj_t_cam - a)).sum(1) < 0] *= -1
    return np.rint(albedo).astype(np.uint8), normal, xyz


def _sample(texture: UInt8[np.ndarray, "h w 3"], uv: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
    """Interpolate a repeating texture bilinearly, without mipmaps."""
    size = np.array(texture.shape[1::-1])
    texel = np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1) * size - 0.5
    low = np.floor(texel)
    fraction = texel - low
    (left, top), (right, bottom) = (low.astype(np.int64) % size).T, ((low + 1).astype(np.int64) % size).T
    along_u, along_v = fraction.T[..., None]
    upper = (1 - along_u) * texture[top, left] + along_u * texture[top, right]
    lower = (1 - along_u) * texture[bottom, left] + along_u * texture[bottom, right]
    return (1 - along_v) * upper + along_v * lower
