"""Where an object may be that the glance has missed: all over what objects stand on, place by place.

What is mostly hidden, or cut off by the picture's border, has no centre that the glance votes for; the gaze knows it
still, if it looks there. And where objects stand, the support tells how far away and how large one would be.
"""

import numpy as np

from glimpose.objects.crops import focal_px
from glimpose.objects.standing import Standing, Support

SAFETY = 1.3
"""By which an object may be nearer than the nearest of the others, or farther than the farthest."""
EMPTY_PX = 16
"""Rows are this far apart where none of the support is in reach."""


def sweep(
    support: Support,
    standing: Standing,
    K: np.ndarray,
    size_px: tuple[int, int],
    side_m: float,
    within_m: tuple[float, float],
    step: float,
) -> list[tuple[np.ndarray, float]]:
    """Places on a support where an object that stands so would be seen: pixel and depth of its origin, row by row.

    ``size_px`` is the photograph's height and width, ``side_m`` what a crop of the object shows, ``within_m`` the
    nearest and the farthest of the known objects' depths, and ``step`` the places' distance in crop sides. None where
    it isn't known how the object stands.
    """
    if not standing.stands:
        return []
    height_px, width_px = size_px
    nearest_m, farthest_m = within_m[0] / SAFETY, within_m[1] * SAFETY
    # Depth is above / (up · ray): where the ray through a pixel is as high above the support as the object's origin.
    up_px, above_m = support.up @ np.linalg.inv(K), support.offset_m + standing.stands[0].height_m
    places: list[tuple[np.ndarray, float]] = []
    v = 0.0
    while v < height_px:
        middle_m = above_m / float(up_px @ [width_px / 2, v, 1.0])
        step_px = step * side_m * focal_px(K) / float(np.clip(middle_m, nearest_m, farthest_m))
        u = step_px * np.arange(0.5, width_px / step_px)
        with np.errstate(divide="ignore"):
            depth_m = above_m / (u * up_px[0] + v * up_px[1] + up_px[2])
        is_near = (depth_m > nearest_m) & (depth_m < farthest_m)
        places += [(np.array([x, v]), z) for x, z in zip(u[is_near].tolist(), depth_m[is_near].tolist(), strict=True)]
        v += step_px if is_near.any() else EMPTY_PX
    return places
