"""From robots at known distances to what turns sightings into metres; from many frames to evenly spread bearings."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import theilslopes
from tqdm import tqdm

from glimpose.data.files import read_image
from glimpose.data.led_h5 import RobotCamera, open_recording
from glimpose.data.robot_poses import read_robot_camera
from glimpose.robots.estimator import BearingCurve, RobotEstimator, in_photograph
from glimpose.robots.placement import FARTHEST_M, Calibration, direction, focal_px, run_and_slope
from glimpose.training.checkpoint import load_checkpoint, save_tensors

logger = logging.getLogger(__name__)

MIN_PRESENCE = 0.5
"""Less sure sightings are no ground to calibrate on."""
LEAST_IMAGES = 4
MIN_SPREAD = 1.5
"""So many images, whose farthest distance is so much larger than the nearest, also tell what is left of a robot's size
far away, and how distances show in slopes."""
BELIEVED_BEYOND = 1.2
"""Robots are believed to be at most so many times as far as in the farthest of these images: size and slope hardly
change any more out there, so what is seen a little too small would be at the far end of the next hall."""
MOST_FRAMES = 1000
"""Of a recording that bearings are equalised over."""
LEAST_SIGHTINGS = 100
"""Fewer robots don't tell how often each side is seen."""


@dataclass(frozen=True)
class Known:
    """A sighting whose distance is known."""

    log_range: float
    slope: float
    reach_px: float
    """As `Calibration.distance_m` takes them."""
    distance_m: float
    """From the camera, in the ground plane."""


def calibrate(
    checkpoint: Path,
    images: Sequence[Path],
    distances_m: Sequence[float],
    camera: Path,
    frames: Path | None = None,
    min_presence: float = MIN_PRESENCE,
) -> Calibration:
    """Store in the checkpoint what turns sightings into metres, from images of a robot that far away; returns it.

    With ``frames``, a recording, also what spreads bearings evenly: see `equalize`.

    Distances are from base to base in the ground plane, one for all images or one for each. One image is enough for a
    scale, the median of several is better; `LEAST_IMAGES` at distances that differ by `MIN_SPREAD` also tell what size
    is left far away, and, where the camera's height is known, at which slope; no robot is believed to be farther than
    `BELIEVED_BEYOND` times the farthest of them. Images that show no robot that surely are left out, and said to be.
    Everything else in the file stays as it is.

    :raises ValueError: where distances aren't positive or don't match, or no image shows a robot that surely.
    """
    if len(distances_m) not in (1, len(images)):
        raise ValueError(f"distance: got {len(distances_m)} for {len(images)} images; give one for all or one for each")
    if not min(distances_m) > 0:
        raise ValueError(f"distance: got {min(distances_m):g}, expected metres above 0")
    estimator, view = RobotEstimator.from_checkpoint(checkpoint), read_robot_camera(camera)
    each_m = list(distances_m) * (len(images) // len(distances_m))
    looks = [_look(estimator, path, m, view, min_presence) for path, m in zip(images, each_m, strict=True)]
    known = [look for look in looks if look is not None]
    if not known:
        raise ValueError(f"{images[0]}: no robot found in this or any other image; give images that show one")
    found = fit(known, float(view.base_T_cam[2, 3]))
    logger.info(
        "depth per focal length: %.4g / (size - %.3g), from %d image(s)", found.scale_m, found.glare, len(known)
    )
    if found.height_m is not None:
        logger.info("points %.3f m above the floor", found.height_m)
    if found.farthest_m != FARTHEST_M:
        logger.info("no robot will be told to be farther than %.1f m", found.farthest_m)
    if found.horizon is not None:
        logger.info(
            "robots far away would be seen at a slope of %.3f; distances are told by slopes, too", found.horizon
        )
    curve = {} if frames is None else vars(equalize(estimator, frames))
    content = load_checkpoint(checkpoint)
    save_tensors(checkpoint, content.tensors, {**content.metadata, **vars(found), **curve})
    return found


def equalize(estimator: RobotEstimator, frames: Path) -> BearingCurve:
    """Find what makes bearings equally frequent over a recording's frames.

    Nothing is known of the frames but that the robots drove about, and so were seen from all sides equally often.

    :raises ValueError: where the network finds a robot in too few of them, or tells no bearings.
    """
    recording = open_recording(frames, allow_constant_leds=True)
    rows = range(0, len(recording), -(-len(recording) // MOST_FRAMES))
    seen = [estimator.sight(recording.image(i))[0] for i in tqdm(rows, desc="equalize", unit="image", disable=None)]
    bearings_rad = np.array([one.bearing_rad for one in seen if one.presence >= MIN_PRESENCE])
    if np.isnan(bearings_rad).any():
        raise ValueError(f"{frames}: given, but the network tells no bearings that could be equalised")
    if len(bearings_rad) < LEAST_SIGHTINGS:
        raise ValueError(
            f"{frames}: a robot was found in {len(bearings_rad)} of {len(seen)} frames, expected {LEAST_SIGHTINGS}; "
            "give a longer recording"
        )
    return BearingCurve.fitted(bearings_rad, estimator.model.robot.is_symmetric)


def fit(known: Sequence[Known], camera_height_m: float = math.nan) -> Calibration:
    """Fit size = glare + scale / depth and slope = horizon + rise / distance, robustly.

    Both are multiplied by depth or distance first, for what is seen of near robots varies more, in proportion. Where
    distances hardly differ, or there are few, there is no glare, and slopes tell a height but no distance; nor do
    they where distances of the images themselves come out worse with them than without.
    """
    sizes = np.exp([-one.log_range for one in known])
    slopes, reaches_px, distances_m = np.array([(one.slope, one.reach_px, one.distance_m) for one in known]).T
    depths = distances_m / reaches_px
    has_height = not math.isnan(camera_height_m)
    height_m = camera_height_m + float(np.median(slopes * distances_m)) if has_height else None
    if len(known) < LEAST_IMAGES or max(distances_m) < MIN_SPREAD * min(distances_m):
        return Calibration(float(np.median(depths * sizes)), height_m=height_m)
    scale_m, glare = _line(depths, sizes * depths)
    if not scale_m > 0:
        raise ValueError("the robot looks larger where it's farther away; check the order of images and distances")
    by_size = Calibration(scale_m, glare, height_m, farthest_m=BELIEVED_BEYOND * float(max(distances_m)))
    if not has_height:
        return by_size
    rise_m, horizon = _line(distances_m, slopes * distances_m)
    by_both = replace(by_size, height_m=camera_height_m + rise_m, horizon=horizon)

    def error(calibration: Calibration) -> float:
        unlimited = replace(calibration, farthest_m=FARTHEST_M)  # a limit would hide how wrong either is
        found_m = [unlimited.distance_m(k.log_range, k.slope, k.reach_px, camera_height_m) for k in known]
        return float(np.abs(np.log(found_m / distances_m)).mean())

    if rise_m and error(by_both) < error(by_size):
        return by_both
    logger.warning("slopes of the rays to robots don't tell their distances: left to sizes alone")
    return by_size


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of y over x after Theil and Sen, which a few mistakes among them don't spoil."""
    steepness = float(theilslopes(y, x).slope)
    return float(np.median(y - steepness * x)), steepness


def _look(
    estimator: RobotEstimator, path: Path, distance_m: float, camera: RobotCamera, min_presence: float
) -> Known | None:
    image = read_image(path)
    height, width = image.shape[:2]
    if (width, height) != (camera.width, camera.height):
        raise ValueError(f"{path}: is {width}×{height} pixels, but its camera takes {camera.width}×{camera.height}")
    seen = estimator.sight(image)[0]
    if seen.presence < min_presence:
        logger.warning("%s: no robot found (presence %.2f, expected %.2f), left out", path, seen.presence, min_presence)
        return None
    input_scale = estimator.model.network.input_scale
    toward = direction(in_photograph(seen.uv_px, width, height, input_scale), camera)
    run, slope = run_and_slope(toward)
    from_camera_m = depth_at_distance(toward, distance_m, camera) * run
    return Known(seen.log_range, slope, focal_px(camera) * input_scale * run, from_camera_m)


def depth_at_distance(toward: np.ndarray, distance_m: float, camera: RobotCamera) -> float:
    """Depth at which a direction of depth 1 is that far, in the ground plane, from the camera robot's base."""
    along, mount_m = toward[:2], camera.base_T_cam[:2, 3]
    # |mount + z·along| = distance: the solution before the camera.
    a, b, c = along @ along, 2 * mount_m @ along, mount_m @ mount_m - distance_m**2
    if c > 0:
        raise ValueError(f"distance: {distance_m:g} m is nearer than the camera is to its robot's base")
    return float((-b + math.sqrt(b**2 - 4 * a * c)) / (2 * a))
