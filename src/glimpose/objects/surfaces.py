"""Whether a depth sensor measured an object's surface where a pose has it."""

import numpy as np
from scipy.spatial import cKDTree

from glimpose.geometry.camera import pixel_grid
from glimpose.nets.mtgoe import STRIDE
from glimpose.objects.agreement import DISTANCE_SCALE
from glimpose.objects.evidence import Evidence
from glimpose.objects.looks import PoseEstimate
from glimpose.objects.photographs import Photograph
from glimpose.objects.search import PoseSearch

LEAST_MEASURED = 12
"""Cells that have to show the object and be measured, for a sensor to have a say."""


def chamfer_m(a: np.ndarray, b: np.ndarray) -> float:
    """Chamfer distance of two sets of points, n×3 and m×3: the mean distance to the other's nearest, of both ways."""
    return float((cKDTree(b).query(a)[0].mean() + cKDTree(a).query(b)[0].mean()) / 2)


def agreement_with_sensor(pose: PoseEstimate, photograph: Photograph, search: PoseSearch) -> float:
    """As `surface_agreement` tells; 1 where the photograph has no depth."""
    if photograph.depth_m is None:
        return 1.0
    evidence = pose.look.evidence()
    drawn = search.draw(pose.model, pose.cam_T_obj, evidence)
    return surface_agreement(drawn.depth, evidence, photograph.depth_m, photograph.K, pose.model.diameter_m)


def surface_agreement(
    drawn_m: np.ndarray, evidence: Evidence, measured_m: np.ndarray, K: np.ndarray, diameter_m: float
) -> float:
    """1 where the measured surface is the drawn one, 1/e where their Chamfer distance is a tenth of a diameter.

    ``drawn_m`` is the object's depth in the crop that the evidence is of, ``measured_m`` the photograph's, whose camera
    matrix is K. Surfaces are compared where the gaze sees the object, so what stands in front doesn't count. 1, too,
    where nothing was measured: black and shiny objects return no light.
    """
    cells = evidence.cells
    cells_px = pixel_grid(cells, cells, STRIDE).reshape(-1, 2).numpy()[evidence.visible > 0.5]
    img_A_crop = K @ np.linalg.inv(evidence.K)
    depths_m = [_look_up(drawn_m, cells_px), _look_up(measured_m, cells_px @ img_A_crop[:2, :2].T + img_A_crop[:2, 2])]
    rays = np.column_stack([cells_px, np.ones(len(cells_px))]) @ np.linalg.inv(evidence.K).T
    drawn, measured = (depth_m[depth_m > 0, None] * rays[depth_m > 0] for depth_m in depths_m)
    if min(len(drawn), len(measured)) < LEAST_MEASURED:
        return 1.0
    return float(np.exp(-chamfer_m(drawn, measured) / (DISTANCE_SCALE * diameter_m)))


def _look_up(depth_m: np.ndarray, at_px: np.ndarray) -> np.ndarray:
    """The nearest pixels' values, 0 beyond the border."""
    column, row = np.rint(at_px).astype(int).T
    height, width = depth_m.shape
    is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return np.where(is_inside, depth_m[row.clip(0, height - 1), column.clip(0, width - 1)], 0)
