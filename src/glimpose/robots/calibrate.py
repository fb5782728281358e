"""From robots at known distances to what turns ranges into metres; from many frames to evenly spread bearings."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import theilslopes
from tqdm import tqdm

from glimpose.data.files import read_image
from glimpose.data.led_h5 import RobotCamera, open_recording
from glimpose.data.robot_poses import read_robot_camera
from glimpose.robots.estimator import BearingCurve, RangeScale, RobotEstimator, base_axes, focal_px, in_photograph, ray
from glimpose.training.checkpoint import load_checkpoint, save_tensors

logger = logging.getLogger(__name__)

MIN_PRESENCE = 0.5
"""Less sure sightings are no ground to calibrate on."""
MIN_SPREAD = 1.5
"""Farthest over nearest distance from which on images also tell how ranges grow with distances."""
MOST_FRAMES = 1000
"""Of a recording that bearings are equalised over."""
LEAST_SIGHTINGS = 100
"""Fewer robots don't tell how often each side is seen."""


@dataclass(frozen=True)
class Known:
    """A sighting whose distance is known."""

    log_range: float
    log_depth_per_focal: float
    """What a range should say: logarithm of depth over the focal length in the network's input, metres per pixel."""
    height_m: float
    """Of the point that the network points at, above the floor; NaN where the camera's height isn't known."""


def calibrate(
    checkpoint: Path,
    images: Sequence[Path],
    distances_m: Sequence[float],
    camera: Path,
    min_presence: float = MIN_PRESENCE,
) -> RangeScale:
    """Store in the checkpoint what turns ranges into metres, from images of a robot that far away; returns it.

    Distances are from base to base in the ground plane, one for all images or one for each. One image is enough for a
    scale, the median of several is better, and images at distances that differ by `MIN_SPREAD` also tell by which power
    of the range distances grow. Where the camera's height is known, the same images tell how high the point is that the
    network points at, which nothing in its training ties to the joint. Everything else in the file stays as it is.

    :raises ValueError: where distances aren't positive or don't match, or an image shows no robot that surely.
    """
    if len(distances_m) not in (1, len(images)):
        raise ValueError(f"distance: got {len(distances_m)} for {len(images)} images; give one for all or one for each")
    if not min(distances_m) > 0:
        raise ValueError(f"distance: got {min(distances_m):g}, expected metres above 0")
    estimator, view = RobotEstimator.from_checkpoint(checkpoint), read_robot_camera(camera)
    each_m = list(distances_m) * (len(images) // len(distances_m))
    known = [_look(estimator, path, m, view, min_presence) for path, m in zip(images, each_m, strict=True)]
    height_m = float(np.median([one.height_m for one in known]))
    found = fit_scale(known, None if math.isnan(height_m) else height_m)
    logger.info(
        "depth per focal length: %.4g × range^%.3g, from %d image(s)", found.scale_m, found.exponent, len(known)
    )
    if found.height_m is not None:
        logger.info("points %.3f m above the floor", found.height_m)
    content = load_checkpoint(checkpoint)
    save_tensors(checkpoint, content.tensors, {**content.metadata, **vars(found)})
    return found


def equalize(checkpoint: Path, frames: Path) -> BearingCurve:
    """Store in the checkpoint what makes bearings equally frequent over a recording's frames; returns it.

    Nothing is known of the frames but that the robots drove about, and so were seen from all sides equally often.

    :raises ValueError: where the network finds a robot in too few of them, or tells no bearings.
    """
    estimator, recording = RobotEstimator.from_checkpoint(checkpoint), open_recording(frames, allow_constant_leds=True)
    rows = range(0, len(recording), -(-len(recording) // MOST_FRAMES))
    seen = [estimator.sight(recording.image(i))[0] for i in tqdm(rows, desc="equalize", unit="image", disable=None)]
    bearings_rad = np.array([one.bearing_rad for one in seen if one.presence >= MIN_PRESENCE])
    if np.isnan(bearings_rad).any():
        raise ValueError(f"{checkpoint}: tells no bearings that could be equalised")
    if len(bearings_rad) < LEAST_SIGHTINGS:
        raise ValueError(
            f"{frames}: a robot was found in {len(bearings_rad)} of {len(seen)} frames, expected {LEAST_SIGHTINGS}; "
            "give a longer recording"
        )
    curve = BearingCurve.fitted(bearings_rad, estimator.model.robot.is_symmetric)
    content = load_checkpoint(checkpoint)
    save_tensors(checkpoint, content.tensors, {**content.metadata, **vars(curve)})
    return curve


def fit_scale(known: Sequence[Known], height_m: float | None = None) -> RangeScale:
    """Fit log depth = log scale + exponent · log range, robustly; the exponent is 1 where distances hardly differ.

    Distances are known and ranges are measured, so it's ranges that are fitted to distances, and the line is turned
    round. The other way, what ranges are off by would flatten it, and everything would seem nearer to the middle.
    """
    log_range, log_depth = np.array([(one.log_range, one.log_depth_per_focal) for one in known]).T
    exponent = 1.0
    if np.ptp(log_depth) > math.log(MIN_SPREAD):
        slope = float(theilslopes(log_range, log_depth).slope)
        if not slope > 0:
            raise ValueError("the robot looks larger where it's farther away; check the order of images and distances")
        exponent = 1 / slope
    return RangeScale(math.exp(np.median(log_depth - exponent * log_range)), exponent, height_m)


def _look(estimator: RobotEstimator, path: Path, distance_m: float, camera: RobotCamera, min_presence: float) -> Known:
    image = read_image(path)
    height, width = image.shape[:2]
    if (width, height) != (camera.width, camera.height):
        raise ValueError(f"{path}: is {width}×{height} pixels, but its camera takes {camera.width}×{camera.height}")
    seen = estimator.sight(image)[0]
    if seen.presence < min_presence:
        raise ValueError(
            f"{path}: no robot found (presence {seen.presence:.2f}, expected at least {min_presence}); "
            "give an image that shows one"
        )
    input_scale = estimator.model.network.input_scale
    uv_px = in_photograph(seen.uv_px, width, height, input_scale)
    depth_m = depth_at_distance(uv_px, distance_m, camera)
    height_m = camera.base_T_cam[2, 3] + base_axes(uv_px, depth_m, camera)[2]
    return Known(seen.log_range, math.log(depth_m / (focal_px(camera) * input_scale)), float(height_m))


def depth_at_distance(uv_px: np.ndarray, distance_m: float, camera: RobotCamera) -> float:
    """Depth at which the ray through a pixel is that far, in the ground plane, from the camera robot's base."""
    along = (camera.base_T_cam[:3, :3] @ ray(uv_px, camera))[:2]
    mount_m = camera.base_T_cam[:2, 3]
    # |mount + z·along| = distance: the solution before the camera.
    a, b, c = along @ along, 2 * mount_m @ along, mount_m @ mount_m - distance_m**2
    if c > 0:
        raise ValueError(f"distance: {distance_m:g} m is nearer than the camera is to its robot's base")
    return float((-b + math.sqrt(b**2 - 4 * a * c)) / (2 * a))
