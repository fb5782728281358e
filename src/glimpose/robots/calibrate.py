"""From robots at known distances to the scale that turns ranges into metres."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from glimpose.data.files import read_image
from glimpose.data.led_h5 import RobotCamera
from glimpose.data.robot_poses import read_robot_camera
from glimpose.robots.estimator import RobotEstimator, Sighting, focal_px, in_photograph, ray
from glimpose.training.checkpoint import load_checkpoint, save_tensors

logger = logging.getLogger(__name__)

MIN_PRESENCE = 0.5
"""Less sure sightings are no ground to calibrate on."""


def calibrate(
    checkpoint: Path, images: Sequence[Path], distance_m: float, camera: Path, min_presence: float = MIN_PRESENCE
) -> float:
    """Store in the checkpoint the scale at which the robot in the images is that far away; returns it.

    The distance is from base to base in the ground plane. Of several images the median counts. Where the camera's
    height is known, the same images tell how high the point is that the network points at, which nothing in its
    training ties to the joint: that is stored, too, and predictions are corrected by it. Everything else in the file
    stays as it is. ValueError if an image shows no robot with at least that presence.
    """
    if not distance_m > 0:
        raise ValueError(f"distance: got {distance_m:g}, expected metres above 0")
    estimator = RobotEstimator.from_checkpoint(checkpoint)
    view = read_robot_camera(camera)
    scales, heights_m = [], []
    for path in images:
        image = read_image(path)
        height, width = image.shape[:2]
        if (width, height) != (view.width, view.height):
            raise ValueError(f"{path}: is {width}×{height} pixels, but its camera takes {view.width}×{view.height}")
        seen = estimator.sight(image)[0]
        if seen.presence < min_presence:
            raise ValueError(
                f"{path}: no robot found (presence {seen.presence:.2f}, expected at least {min_presence}); "
                "give an image that shows one"
            )
        heights_m.append(height_m(seen, distance_m, width, height, view, estimator.model.network.input_scale))
        scales.append(scale_m(seen, distance_m, width, height, view, estimator.model.network.input_scale))
    found = float(np.median(scales))
    logger.info("scale %.4g, from %d image(s): %.4g to %.4g", found, len(scales), min(scales), max(scales))
    middle_m = float(np.median(heights_m))
    if not np.isnan(middle_m):
        logger.info("points %.3f m above the floor: %.3f to %.3f", middle_m, min(heights_m), max(heights_m))
    content = load_checkpoint(checkpoint)
    told = {"scale_m": found, "height_m": None if np.isnan(middle_m) else middle_m}
    save_tensors(checkpoint, content.tensors, {**content.metadata, **told})
    return found


def height_m(
    seen: Sighting, distance_m: float, width: int, height: int, camera: RobotCamera, input_scale: float
) -> float:
    """Return how high a robot at this distance is pointed at; NaN where the camera's height isn't known."""
    uv_px = in_photograph(seen.uv_px, width, height, input_scale)
    depth_m = depth_at_distance(uv_px, distance_m, camera)
    return float(camera.base_T_cam[2, 3] + (camera.base_T_cam[:3, :3] @ ray(uv_px, camera))[2] * depth_m)


def scale_m(
    seen: Sighting, distance_m: float, width: int, height: int, camera: RobotCamera, input_scale: float
) -> float:
    """Return the scale at which a sighting is of a robot at this distance."""
    uv_px = in_photograph(seen.uv_px, width, height, input_scale)
    depth_m = depth_at_distance(uv_px, distance_m, camera)
    return depth_m / (focal_px(camera) * input_scale * math.exp(seen.log_range))


def depth_at_distance(uv_px: np.ndarray, distance_m: float, camera: RobotCamera) -> float:
    """Depth at which the ray through a pixel is that far, in the ground plane, from the camera robot's base."""
    along = (camera.base_T_cam[:3, :3] @ ray(uv_px, camera))[:2]
    mount_m = camera.base_T_cam[:2, 3]
    # |mount + z·along| = distance: the solution before the camera.
    a, b, c = along @ along, 2 * mount_m @ along, mount_m @ mount_m - distance_m**2
    if c > 0:
        raise ValueError(f"distance: {distance_m:g} m is nearer than the camera is to its robot's base")
    return float((-b + math.sqrt(b**2 - 4 * a * c)) / (2 * a))
