"""Colours of objects as photographs show them: scans are often off, by their own camera and light.

labels ── what is seen of each vertex in each photograph ── as bright as in the others ── the median is its colour

Light that comes from above everywhere stays in them, as it does in photographs.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from glimpose.objects.crops import warp_cells
from glimpose.objects.photographs import Photograph
from glimpose.objects.pseudo_labels import PseudoLabel
from glimpose.render.mesh import Mesh
from glimpose.render.scene import Instance, Renderer

logger = logging.getLogger(__name__)

SURELY_SEEN = 0.7
"""Probability of a cell's showing the object, and…"""
MARGIN_PX = 1
"""…distance from where it doesn't: colours mix at edges."""
LEAST_FACING = 0.3
"""Cosine of the angle at which a surface is seen."""
DEPTH_TOLERANCE = 0.02
"""In object diameters, by which a vertex may lie behind what is drawn at its pixel."""
LEAST_PHOTOGRAPHS = 3
"""That have to show a vertex."""
LEAST_VERTICES = 50
NUM_EXPOSURES = 3
"""Times that photographs are made equally bright, each followed by a better median."""


def photographed_colors(
    mesh: Mesh, labels: Sequence[PseudoLabel], photographs: Sequence[Photograph], renderer: Renderer
) -> Mesh:
    """Give a mesh the colours that labelled photographs show; what they don't show changes as the rest does.

    Textured meshes, and those of which too little is seen, stay as they are.
    """
    if mesh.is_textured or len(labels) < LEAST_PHOTOGRAPHS:
        return mesh
    seen = np.stack([_seen_colors(mesh, label, photographs[label.photograph], renderer) for label in labels])
    is_shown = np.isfinite(seen[..., 0]).sum(0) >= LEAST_PHOTOGRAPHS
    if is_shown.sum() < LEAST_VERTICES:
        return mesh
    shown = seen[:, is_shown]
    with warnings.catch_warnings():  # photographs that show none of these vertices
        warnings.simplefilter("ignore", RuntimeWarning)
        median = np.nanmedian(shown, 0)
        for _ in range(NUM_EXPOSURES):
            exposure = np.nanmedian(shown.mean(-1) / np.maximum(median.mean(-1), 1.0), 1)
            median = np.nanmedian(shown / exposure[:, None, None], 0)
    colors = mesh.colors.astype(np.float64)
    scanned = colors[is_shown]
    for channel in range(3):
        # A line through too few different colours is steep by chance.
        spread = scanned[:, channel].std() + 1.0
        slope = np.clip(np.cov(scanned[:, channel], median[:, channel])[0, 1] / spread**2, 0.0, 1.5)
        colors[:, channel] = median[:, channel].mean() + slope * (colors[:, channel] - scanned[:, channel].mean())
    colors[is_shown] = median
    return replace(mesh, colors=np.clip(colors, 0, 255).round().astype(np.uint8))


def _seen_colors(mesh: Mesh, label: PseudoLabel, photograph: Photograph, renderer: Renderer) -> np.ndarray:
    """What a photograph shows of each vertex, v×3; NaN where it doesn't."""
    rows, columns = photograph.image.shape[:2]
    R, t = label.cam_T_obj[:3, :3], label.cam_T_obj[:3, 3]
    drawn = renderer.render([Instance(mesh, label.cam_T_obj)], photograph.K, rows, columns, with_xyz=False)
    surely = (drawn.mask > 0) & (warp_cells(label.visible, label.cells_A_img, np.eye(3), rows, columns) > SURELY_SEEN)
    surely = cv2.erode(surely.astype(np.uint8), np.ones((2 * MARGIN_PX + 1,) * 2, np.uint8)) > 0
    points_m, normals = mesh.vertices @ R.T + t, mesh.normals @ R.T
    projected = points_m @ photograph.K.T
    uv_px = (projected[:, :2] / np.maximum(projected[:, 2:], 1e-3)).astype(np.float32)
    u, v = np.clip(uv_px.round().astype(int), 0, [columns - 1, rows - 1]).T
    is_seen = surely[v, u] & (np.abs(uv_px - np.stack([u, v], 1)).max(1) <= 0.5)
    is_seen &= -(normals * points_m).sum(1) > LEAST_FACING * np.linalg.norm(points_m, axis=1)
    size_m = float(np.linalg.norm(np.ptp(mesh.vertices, axis=0)))
    is_seen &= points_m[:, 2] < drawn.depth[v, u] + DEPTH_TOLERANCE * size_m
    colors = cv2.remap(photograph.image.astype(np.float32), uv_px[:, None, 0], uv_px[:, None, 1], cv2.INTER_LINEAR)
    return np.where(is_seen[:, None], colors[:, 0], np.nan)
