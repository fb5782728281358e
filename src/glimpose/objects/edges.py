"""Edges in photographs, and whether a drawn object's lie on them.

A network may take one side of an object for another, and then it does so in many photographs alike. Edges are the
photograph's own. In one photograph those of the surroundings do as well as the object's; in many, only the object's are
where it is drawn each time.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from glimpose.objects.contour import NUM_LINES, Contour, across, mean_and_variance
from glimpose.objects.crops import resize_matrix
from glimpose.objects.equations import NormalEquations, contour_equations
from glimpose.render.mesh import Mesh
from glimpose.render.scene import Instance, Renderer

SHARP_PX = 1.0
"""Gaussian, of pictures whose edges tell exactly where something is."""
AROUND_PX = 8.0
"""How far around a pixel its edge is compared with others."""
FAINT = 2.0
"""Change of colour per pixel, of 255, that is noise."""
JUMP = 0.12
"""Of depth, in diameters, that makes an edge; a ball's falls off by less next to its outline."""
REACH_PX = 10
"""How far from where they are drawn edges are looked for."""
SHARPNESS = 6.0
"""Log likelihood of an edge's being there, per unit of its strength."""


@dataclass(frozen=True)
class EdgeMap:
    """How colours change in a picture, relative to how they do around there."""

    by_u: np.ndarray
    """h×w×3 float32."""
    by_v: np.ndarray
    K: np.ndarray

    @classmethod
    def of(cls, picture: np.ndarray, K: np.ndarray, blur_px: float) -> "EdgeMap":
        """From RGB, h×w×3 uint8; differences of CIELAB are about as large as they look."""
        lab = cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).astype(np.float32), (0, 0), blur_px)
        by_u, by_v = (cv2.Sobel(lab, cv2.CV_32F, *order, ksize=3) / 8 for order in ((1, 0), (0, 1)))
        around = cv2.GaussianBlur((by_u**2 + by_v**2).sum(2), (0, 0), AROUND_PX)
        scale = (1 / (np.sqrt(around) + FAINT))[..., None]
        return cls(by_u * scale, by_v * scale, K)

    @property
    def size_px(self) -> int:
        """Rows, and columns."""
        return len(self.by_u)

    def strengths(self, contour: Contour, offsets_px: np.ndarray) -> np.ndarray:
        """How strong an edge along the contour there is on each line across it: n×offsets."""
        by_u, by_v = (across(by, contour, offsets_px, cv2.BORDER_CONSTANT) for by in (self.by_u, self.by_v))
        change = by_u * contour.normal[:, None, :1] + by_v * contour.normal[:, None, 1:]
        return np.linalg.norm(change, axis=2)


def draw_edges(
    renderer: Renderer, mesh: Mesh, cam_T_obj: np.ndarray, edges: EdgeMap, diameter_m: float
) -> Contour | None:
    """Points where depth jumps, on the side that is nearer: the outline, and what stands out before the rest of it.

    None where next to nothing of the object is in the picture.
    """
    size = 2 * edges.size_px  # drawn at twice the size, as contours are
    buffers = renderer.render([Instance(mesh, cam_T_obj)], resize_matrix(2, 2) @ edges.K, size, size)
    covered = buffers.mask > 0
    depth = np.where(covered, buffers.depth, cam_T_obj[2, 3] + 2 * diameter_m).astype(np.float32)
    jump = JUMP * diameter_m
    rows, columns = np.nonzero(covered & (cv2.dilate(depth, np.ones((3, 3))) - depth > jump))
    inside = (np.minimum(rows, columns) > 2) & (np.maximum(rows, columns) < size - 3)
    rows, columns = rows[inside], columns[inside]
    if len(rows) < 16:
        return None
    chosen = np.linspace(0, len(rows) - 1, min(NUM_LINES, len(rows))).round().astype(int)
    rows, columns = rows[chosen], columns[chosen]
    # Outwards is where depth grows, whatever the height of the jump.
    step = np.minimum(depth, cv2.erode(depth, np.ones((9, 9))) + 2 * jump)
    step = cv2.GaussianBlur(step, (0, 0), 2.0)
    normal = np.stack([cv2.Sobel(step, cv2.CV_32F, *order)[rows, columns] for order in ((1, 0), (0, 1))], 1)
    normal = (normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)).astype(np.float64)
    # From a pixel's centre it is no further to the edge than to the corner of its neighbours; on average half of that.
    by_px = 0.5 * np.abs(normal).sum(1, keepdims=True)
    return Contour.beyond(buffers, np.stack([columns, rows], 1), normal, by_px, cam_T_obj)


def edge_support(edges: EdgeMap, contour: Contour | None, tolerance_px: int) -> float:
    """Share of a drawn object's edges that the picture has too, 0..1, each by its strength."""
    if contour is None:
        return 0.0
    strengths = edges.strengths(contour, np.arange(-tolerance_px, tolerance_px + 1.0))
    return float(np.minimum(strengths.max(1), 1).mean())


def pull_to_edges(
    edges: EdgeMap, contour: Contour | None, cam_T_obj: np.ndarray, radius_m: float, trust_px: float
) -> NormalEquations:
    """Where a picture's edges pull a pose, as `PoseSearch.pull` does: about ``trust_px`` from the contour or nearer."""
    if contour is None:
        return np.zeros((6, 6)), np.zeros(6)
    offsets_px = np.arange(-REACH_PX, REACH_PX + 1.0)
    log_likelihood = SHARPNESS * np.minimum(edges.strengths(contour, offsets_px), 1.5)
    log_likelihood -= 0.5 * (offsets_px / trust_px) ** 2
    mean, variance = mean_and_variance(log_likelihood, offsets_px)
    return contour_equations(contour, mean, 1 / (variance + 0.5**2), trust_px, cam_T_obj, edges.K, radius_m)
