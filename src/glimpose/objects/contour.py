"""Outlines of drawn objects, and where along them the edge of a mask is.

Region-based, as trackers do it (RBOT, Tjaden et al., PAMI 2018; SRT3D, Stoiber et al., IJCV 2021): on short lines
across the drawn contour every pixel votes for inside or outside, which gives the edge's place on each line and how sure
it is.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from glimpose.objects.crops import resize_matrix
from glimpose.render.mesh import Mesh
from glimpose.render.scene import Buffers, Instance, Renderer

NUM_LINES = 120
LEAST_POINTS = 8
REACH_PX = 12
"""How far from the contour its edge is looked for."""
INNER_PX = 8
"""How far inside it an object is looked for, two cells: it may be drawn too large."""


@dataclass(frozen=True)
class Contour:
    """The outline of an object as drawn."""

    uv_px: np.ndarray
    """n×2."""
    normal: np.ndarray
    """n×2, unit length, outwards."""
    xyz_cam: np.ndarray
    """n×3: the surface points behind it."""

    @classmethod
    def beyond(
        cls, buffers: Buffers, line: np.ndarray, normal: np.ndarray, by_px: float | np.ndarray, cam_T_obj: np.ndarray
    ) -> "Contour":
        """From the last pixels inside, n×2 (u, v), of a drawing of twice the size; the edge is ``by_px`` further."""
        columns, rows = line.astype(int).T
        xyz = buffers.xyz[rows, columns].astype(np.float64)
        uv_fine = line + by_px * normal
        return cls((uv_fine - 0.5) / 2, normal, xyz @ cam_T_obj[:3, :3].T + cam_T_obj[:3, 3])

    def seen_in(self, other_A_crop: np.ndarray, size_px: int) -> "Contour | None":
        """The part that another crop of the same photograph shows, in its pixels; None where next to nothing is."""
        linear, shift = other_A_crop[:2, :2], other_A_crop[:2, 2]
        uv, normal = self.uv_px @ linear.T + shift, self.normal @ linear.T
        normal = normal / np.linalg.norm(normal, axis=1, keepdims=True)
        return Contour(uv, normal, self.xyz_cam).part(((uv > 0) & (uv < size_px - 1)).all(1))

    def part(self, chosen: np.ndarray) -> "Contour | None":
        """Some of the points, n bool; None where next to none is left."""
        if chosen.sum() < LEAST_POINTS:
            return None
        return Contour(self.uv_px[chosen], self.normal[chosen], self.xyz_cam[chosen])


def draw_contour(renderer: Renderer, mesh: Mesh, cam_T_obj: np.ndarray, K: np.ndarray, size_px: int) -> Contour | None:
    """Points on the outline of an object drawn at a pose; None where next to nothing of it is in the picture."""
    # Drawn at twice the size: a mask tells the edge to a pixel, and a pixel of the crop is a percent of the distance.
    fine_K = resize_matrix(2, 2) @ K
    buffers = renderer.render([Instance(mesh, cam_T_obj)], fine_K, 2 * size_px, 2 * size_px)
    mask = buffers.mask.astype(np.uint8)
    found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = []
    normals = []
    for chain in found:
        line = chain[:, 0].astype(np.float64)
        if len(line) < 16:
            continue
        # Smoothed, for the tangent of a staircase has eight directions only.
        smooth = sum(np.roll(line, shift, 0) for shift in range(-3, 4)) / 7
        tangent = np.roll(smooth, -2, 0) - np.roll(smooth, 2, 0)
        normal = np.stack([tangent[:, 1], -tangent[:, 0]], 1)
        normals.append(normal)
        points.append(line)
    if not points:
        return None
    line, normal = np.concatenate(points), np.concatenate(normals)
    length = np.linalg.norm(normal, axis=1)
    # The crop's border is no edge of the object.
    inside = (line > 1).all(1) & (line < 2 * size_px - 2).all(1) & (length > 1e-6)
    line, normal = line[inside], normal[inside] / length[inside, None]
    if len(line) < LEAST_POINTS:
        return None
    # findContours goes around the outside counter-clockwise in a frame whose v points down; checked, not assumed.
    ahead = np.rint(line + 2 * normal).astype(int)
    if mask[ahead[:, 1], ahead[:, 0]].mean() > 0.5:
        normal = -normal
    chosen = np.unique(np.linspace(0, len(line) - 1, min(NUM_LINES, len(line))).round().astype(int))
    line, normal = line[chosen], normal[chosen]
    return Contour.beyond(buffers, line, normal, 0.5, cam_T_obj)


def edge_offsets(log_odds: np.ndarray, contour: Contour) -> tuple[np.ndarray, np.ndarray]:
    """How far outwards the edge is on each line across the contour, in pixels: means and variances, n each.

    ``log_odds`` H×W: of the inside, at each pixel.
    """
    offsets = np.arange(-REACH_PX, REACH_PX + 1.0)
    votes = across(log_odds, contour, offsets)
    # An edge at offset d explains votes for the inside up to d, and for the outside beyond.
    inside = np.cumsum(votes, 1) - 0.5 * votes
    mean, variance = mean_and_variance(inside - 0.5 * votes.sum(1, keepdims=True), offsets)
    return mean, variance + 0.3**2


def mean_and_variance(log_likelihood: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of where the edge is on each line, n each, by how likely each offset is, n×offsets."""
    prob = np.exp(log_likelihood - log_likelihood.max(1, keepdims=True))
    prob /= prob.sum(1, keepdims=True)
    mean = prob @ offsets
    return mean, (prob * (offsets - mean[:, None]) ** 2).sum(1)


def inner_maximum(values: np.ndarray, contour: Contour) -> np.ndarray:
    """Largest of an image's values, H×W, just inside each point of a contour, n."""
    return across(values, contour, np.arange(-INNER_PX, 1.0, 2.0)).max(1)


def across(values: np.ndarray, contour: Contour, offsets: np.ndarray, beyond: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """Values on each line across the contour, at offsets in pixels outwards: n×offsets, by channel if there are any.

    ``beyond`` tells OpenCV what is outside of the picture.
    """
    uv = (contour.uv_px[:, None] + offsets[:, None] * contour.normal[:, None]).astype(np.float32)
    return cv2.remap(values, uv[..., 0], uv[..., 1], cv2.INTER_LINEAR, borderMode=beyond)
