"""Frames changed at random for training, with labels that change along."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from glimpose.data.sensor import Range, SensorConfig, simulate_sensor
from glimpose.robots.labels import Labels


def _mild() -> SensorConfig:
    """What cameras and light vary by; noise and compression are in recordings already."""
    return SensorConfig(
        native_scale=(1.0, 1.0),
        exposure_gain=(0.6, 1.4),
        saturation=(0.6, 1.4),
        hue_rad=(-0.3, 0.3),
        shading=(0.0, 0.5),
        defocus_prob=0.2,
        motion_prob=0.0,
        bayer_prob=0.0,
        noise_prob=0.5,
        sharpening_prob=0.0,
        jpeg_prob=0.0,
    )


@dataclass(frozen=True)
class AugmentConfig:
    """How much frames are changed; probabilities are those of a change occurring at all."""

    flip_prob: float = 0.5
    """Mirrored left to right; needs a robot whose LEDs are symmetric."""
    rotation_deg: float = 9.0
    shift: float = 0.1
    """Of the image's sides."""
    zoom: Range = (0.8, 1.25)
    blackout_prob: float = 0.1
    """A dark patch at the lower edge, as the camera robot's own gun makes."""
    sensor_prob: float = 0.8
    sensor: SensorConfig = field(default_factory=_mild)


def augment(
    image: np.ndarray, labels: Labels, mirrored: Sequence[int], config: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, Labels]:
    """Change a frame at random; ``mirrored`` gives for each LED the one that takes its place in a mirror."""
    is_flipped = rng.random() < config.flip_prob
    angle_rad = math.radians(rng.uniform(-config.rotation_deg, config.rotation_deg))
    zoom = math.exp(rng.uniform(*np.log(config.zoom)))
    shift = rng.uniform(-config.shift, config.shift, 2)
    image, labels = move(image, labels, mirrored, is_flipped, angle_rad, zoom, shift)
    if rng.random() < config.blackout_prob:
        image = _black_out(image, rng)
    if rng.random() < config.sensor_prob:
        image = simulate_sensor(image.astype(np.float32) / 255, rng, config.sensor, native_scale=1.0)
    return image, labels


def move(
    image: np.ndarray,
    labels: Labels,
    mirrored: Sequence[int],
    is_flipped: bool,
    angle_rad: float,
    zoom: float,
    shift: np.ndarray,
) -> tuple[np.ndarray, Labels]:
    """Mirror a picture, turn and enlarge it about its middle, and shift it by a share of its sides.

    In a mirror left LEDs are right ones, and a robot seen from its left is one seen from its right. Turning and
    shifting show no other side of a robot; enlarging brings it nearer.
    """
    height, width = image.shape[:2]
    middle = np.array([width - 1, height - 1]) / 2
    a, b = zoom * math.cos(angle_rad), zoom * math.sin(angle_rad)
    linear = np.array([[a, -b], [b, a]]) @ np.diag([-1.0 if is_flipped else 1.0, 1.0])
    offset = middle + shift * (width, height) - linear @ middle
    moved = cv2.warpAffine(
        image,
        np.column_stack([linear, offset]),
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    uv_px = labels.uv_px @ linear.T + offset
    is_inside = ((uv_px > 0) & (uv_px < (width, height))).all(1)
    out = replace(
        labels,
        uv_px=uv_px,
        log_range=labels.log_range - math.log(zoom),
        is_visible=np.where(labels.is_visible == 1, is_inside, labels.is_visible),
    )
    if is_flipped:
        out = replace(out, led_on=out.led_on[:, list(mirrored)], bearing_rad=-out.bearing_rad)
    return moved, out


def _black_out(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    left, top = rng.uniform(0.3, 0.6) * width, rng.uniform(0.75, 0.95) * height
    right = left + rng.uniform(0.05, 0.2) * width
    patch = image.copy()
    patch[int(top) :, int(left) : int(right)] = rng.integers(0, 40, 3)
    return patch
