"""Frames changed at random for training, with labels that change along."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from glimpose.data.backgrounds import Texture, procedural_texture
from glimpose.data.images import warp
from glimpose.data.sensor import Range, SensorConfig, occlude, simulate_sensor
from glimpose.robots.labels import Labels


def _other_places() -> SensorConfig:
    """What cameras and light vary by between places; noise and compression are in recordings already."""
    return SensorConfig(
        native_scale=(1.0, 1.0),
        exposure_gain=(0.6, 1.4),
        saturation=(0.5, 1.5),
        hue_rad=(-0.3, 0.3),
        shading=(0.0, 0.7),
        defocus_prob=0.2,
        motion_prob=0.0,
        bayer_prob=0.0,
        noise_prob=0.5,
        sharpening_prob=0.0,
        jpeg_prob=0.0,
    )


TONE_KNOTS = 5
"""Of a random curve of lightness, evenly spaced from black to white."""
VIVID = (25.0, 45.0)
"""From which chroma on (CIELAB) lightness changes less, and from which not at all: LEDs stay lights."""
CORE_PX = 5
"""What is so near to vivid colours counts as one of them: a bright LED's middle is white."""
LIT_PX = 11
"""Across what an LED may light up: what is around tells what it would look like switched off."""


@dataclass(frozen=True)
class AugmentConfig:
    """How much frames are changed; probabilities are those of a change occurring at all."""

    flip_prob: float = 0.5
    """Mirrored left to right; needs a robot whose LEDs are symmetric."""
    rotation_deg: float = 9.0
    shift: float = 0.1
    """Of the image's sides."""
    zoom: Range = (0.8, 1.25)
    view_zoom: float = 1.6
    """Second views of a frame, from which ranges are learned, are at most so much larger or smaller."""
    blackout_prob: float = 0.1
    """A dark patch at the lower edge, as the camera robot's own gun makes."""
    clutter: tuple[int, int] = (0, 2)
    """So many patches of random texture are laid over a frame: places differ in what stands about."""
    clutter_size: Range = (0.05, 0.3)
    """Relative to the image's shorter side."""
    photographs: Path | None = None
    """Folder of photographs of anything, for clutter; procedural textures when not given."""
    tone_prob: float = 0.2
    """A random curve changes the lightness of all but vivid colours: a robot on a dark floor is what one on a bright
    floor is in a negative."""
    sensor_prob: float = 0.8
    sensor: SensorConfig = field(default_factory=_other_places)

    def __post_init__(self) -> None:
        for name in ("zoom", "clutter", "clutter_size"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} = {(low, high)}: expected the lower bound first")

    def eased(self, difficulty: float) -> "AugmentConfig":
        """Shrink what is laid over frames and what makes LEDs hard to tell, towards none: 1 is this config."""
        if difficulty == 1:
            return self
        clutter = round(self.clutter[0] * difficulty), round(self.clutter[1] * difficulty)
        tone_prob = self.tone_prob * difficulty
        return replace(self, clutter=clutter, tone_prob=tone_prob, sensor=self.sensor.eased(difficulty))


@dataclass(frozen=True)
class Motion:
    """How a picture is mirrored, turned, enlarged about its middle, and shifted by a share of its sides."""

    is_flipped: bool = False
    angle_rad: float = 0.0
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)

    def matrix(self, height: int, width: int, scale: float) -> np.ndarray:
        """Return out_A_img for an image of that size, which is resized by a factor besides."""
        out_height, out_width = round(height * scale), round(width * scale)
        a, b = self.zoom * math.cos(self.angle_rad), self.zoom * math.sin(self.angle_rad)
        mirror = -1 if self.is_flipped else 1
        linear = np.array([[a, -b], [b, a]]) @ np.diag([mirror * out_width / width, out_height / height])
        middle, out_middle = np.array([width - 1, height - 1]) / 2, np.array([out_width - 1, out_height - 1]) / 2
        out_A_img = np.eye(3)
        out_A_img[:2, :2] = linear
        out_A_img[:2, 2] = out_middle + np.array(self.shift) * (out_width, out_height) - linear @ middle
        return out_A_img


def draw_motion(config: AugmentConfig, rng: np.random.Generator) -> Motion:
    """Draw how a frame is moved."""
    return Motion(
        is_flipped=bool(rng.random() < config.flip_prob),
        angle_rad=math.radians(rng.uniform(-config.rotation_deg, config.rotation_deg)),
        zoom=math.exp(rng.uniform(*np.log(config.zoom))),
        shift=(rng.uniform(-config.shift, config.shift), rng.uniform(-config.shift, config.shift)),
    )


def zoomed(motion: Motion, config: AugmentConfig, rng: np.random.Generator) -> Motion:
    """Draw a second view of a frame: enlarged or reduced further, and shifted otherwise."""
    factor = math.exp(rng.choice([-1, 1]) * rng.uniform(0.5, 1) * math.log(config.view_zoom))
    return replace(draw_motion(config, rng), is_flipped=motion.is_flipped, zoom=motion.zoom * factor)


def move(
    image: np.ndarray, labels: Labels, mirrored: Sequence[int], motion: Motion, scale: float
) -> tuple[np.ndarray, Labels]:
    """Move and resize a frame in one go, with its labels.

    In a mirror left LEDs are right ones, and a robot seen from its left is one seen from its right. Turning and
    shifting show no other side of a robot; enlarging brings it nearer. Pictures are as sharp at any zoom as the
    photograph allows: a network could read the zoom off the blur.
    """
    height, width = image.shape[:2]
    out_A_img = motion.matrix(height, width, scale)
    size = round(width * scale), round(height * scale)
    zoom = math.sqrt(abs(np.linalg.det(out_A_img[:2, :2])))
    moved = warp(image, out_A_img, size[1], size[0])
    uv_px = labels.uv_px @ out_A_img[:2, :2].T + out_A_img[:2, 2]
    is_inside = ((uv_px > 0) & (uv_px < size)).all(1)
    out = replace(
        labels,
        uv_px=uv_px,
        log_range=labels.log_range - math.log(zoom),
        is_visible=np.where(labels.is_visible == 1, is_inside, labels.is_visible),
    )
    if motion.is_flipped:
        out = replace(out, led_on=out.led_on[:, list(mirrored)], bearing_rad=-out.bearing_rad)
    return moved, out


def recolor(
    image: np.ndarray, config: AugmentConfig, rng: np.random.Generator, texture: Texture = procedural_texture
) -> np.ndarray:
    """Change what isn't the robot, light and camera at random, and hide a little; `texture` as `occlude` takes it."""
    if rng.random() < config.blackout_prob:
        image = _black_out(image, rng)
    rgb, _ = occlude(image.astype(np.float32) / 255, rng, texture, config.clutter, config.clutter_size)
    if rng.random() < config.tone_prob:
        rgb = _toned(rgb, rng)
    if rng.random() < config.sensor_prob:
        return simulate_sensor(rgb, rng, config.sensor, native_scale=1.0)
    return np.rint(rgb * 255).astype(np.uint8)


@dataclass(frozen=True)
class Change:
    """How one frame is changed: moved, then its light and camera."""

    motion: Motion
    config: AugmentConfig
    seed: tuple[int, ...]
    """Of what is random about light and camera; frames of one seed are changed alike."""
    texture: Texture = procedural_texture
    """Of what is laid over it."""
    is_dark: bool = False
    """Whether LEDs are painted over."""

    def __call__(
        self, image: np.ndarray, labels: Labels, mirrored: Sequence[int], scale: float
    ) -> tuple[np.ndarray, Labels]:
        """Change a frame and its labels."""
        image, labels = move(image, labels, mirrored, self.motion, scale)
        if self.is_dark:
            image = darkened(image)
        return recolor(image, self.config, np.random.default_rng(self.seed), self.texture), labels


def darkened(image: np.ndarray) -> np.ndarray:
    """Paint over what is vivid, such as LEDs that are on, with grey as dark as what is around it; H×W×3 uint8.

    Of what shines in dark surroundings an opening leaves the surroundings' lightness; large things keep theirs.
    """
    lightness, a, b = cv2.split(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2Lab))
    vivid = _vividness(a, b)
    around = cv2.morphologyEx(lightness, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (LIT_PX, LIT_PX)))
    painted = cv2.merge([lightness + vivid * (cv2.blur(around, (3, 3)) - lightness), a * (1 - vivid), b * (1 - vivid)])
    return np.rint(np.clip(cv2.cvtColor(painted, cv2.COLOR_Lab2RGB), 0, 1) * 255).astype(np.uint8)


def _black_out(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    left, top = rng.uniform(0.3, 0.6) * width, rng.uniform(0.75, 0.95) * height
    right = left + rng.uniform(0.05, 0.2) * width
    patch = image.copy()
    patch[int(top) :, int(left) : int(right)] = rng.integers(0, 40, 3)
    return patch


def _toned(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give each lightness a random other one, which may turn dark into bright, but keep colours and what is vivid."""
    lightness, a, b = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab))
    knots = rng.uniform(0, 100, TONE_KNOTS)
    curved = np.interp(lightness, np.linspace(0, 100, TONE_KNOTS), knots).astype(np.float32)
    toned = cv2.merge([curved + _vividness(a, b) * (lightness - curved), a, b])
    return np.clip(cv2.cvtColor(toned, cv2.COLOR_Lab2RGB), 0, 1)


def _vividness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Tell how vivid the surroundings of each pixel are, 0 to 1, from CIELAB's colours."""
    vivid = np.clip((np.hypot(a, b) - VIVID[0]) / (VIVID[1] - VIVID[0]), 0, 1)
    return cv2.blur(cv2.dilate(vivid, np.ones((CORE_PX, CORE_PX), np.uint8)), (3, 3))
