"""From a rendered image to what a consumer camera delivers: compositing, occluders, optics, sensor, JPEG."""

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import cv2
import numpy as np

from glimpose.data.backgrounds import Texture, procedural_texture, random_piece

Range = tuple[float, float]


@dataclass(frozen=True)
class SensorConfig:
    """How far images vary; the defaults suit a webcam indoors.

    Ranges are drawn from uniformly, gains, gammas and scales log-uniformly; a probability is that of the effect
    occurring at all. Lengths are in pixels of the camera, not of the crop made from it; noise is in grey levels.
    The default `native_scale` is for crops around objects; a whole photograph has (1, 1).
    """

    native_scale: Range = (0.5, 1.6)  # camera pixels per pixel of the image; below 1 the image is an enlarged crop
    exposure_gain: Range = (0.55, 1.4)
    channel_gain: Range = (0.86, 1.14)
    gamma: Range = (0.75, 1.4)
    contrast: Range = (0.8, 1.3)
    black_level: Range = (-0.02, 0.08)
    saturation: Range = (0.6, 1.5)
    hue_rad: Range = (-0.12, 0.12)
    gray_prob: float = 0.02
    shading: Range = (0.0, 0.35)  # relative size of the uneven light across the image
    shading_prob: float = 0.5
    defocus_sigma_px: Range = (0.3, 1.0)
    defocus_prob: float = 0.8
    motion_px: Range = (1.5, 5.0)
    motion_prob: float = 0.1
    bayer_prob: float = 0.5
    read_noise: Range = (0.5, 4.0)
    shot_noise: Range = (0.0, 5.0)  # at full brightness; grows with the square root of the brightness
    noise_prob: float = 0.9
    sharpening: Range = (0.0, 1.2)
    sharpening_prob: float = 0.6
    jpeg_quality: Range = (55.0, 97.0)
    jpeg_prob: float = 0.7

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{name} = {value}: expected the lower bound first")
            if name in ("native_scale", "exposure_gain", "channel_gain", "gamma") and value[0] <= 0:
                raise ValueError(f"{name} = {value}: expected bounds above 0")
            if name.endswith("_prob") and not 0 <= value <= 1:
                raise ValueError(f"{name} = {value}: expected a probability between 0 and 1")
        if not 0 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 100:
            raise ValueError(f"jpeg_quality = {self.jpeg_quality}: expected bounds between 0 and 100")

    def eased(self, difficulty: float) -> "SensorConfig":
        """Shrink what makes objects hard to recognise, colour and blur, towards none: 1 is this config, 0 a fair day.

        Noise, sharpening and JPEG stay: they don't hide an object.
        """

        def shrunk(name: str) -> Any:
            value = getattr(self, name)
            if name in ("exposure_gain", "channel_gain", "gamma", "contrast", "saturation"):
                return (value[0] ** difficulty, value[1] ** difficulty)
            return (value[0] * difficulty, value[1] * difficulty) if isinstance(value, tuple) else value * difficulty

        colour = ("exposure_gain", "channel_gain", "gamma", "contrast", "saturation", "black_level", "hue_rad")
        chances = ("gray_prob", "shading_prob", "defocus_prob", "motion_prob")
        return replace(self, **{name: shrunk(name) for name in (*colour, *chances)})


def composite(
    foreground: np.ndarray,
    mask: np.ndarray,
    background: np.ndarray,
    rng: np.random.Generator,
    edge_sigma_px: Range = (0.3, 0.7),
) -> np.ndarray:
    """Put the rendered foreground before a background, with an edge about as soft as pixel coverage would make it.

    foreground: [h w 3] float32 in 0..1, read only where `mask` [h w] is non-zero; background: [h w 3] uint8.
    Returns a new [h w 3] float32 image in 0..1.
    """
    image: np.ndarray = background.astype(np.float32) * np.float32(1 / 255)
    inside = (mask != 0).view(np.uint8)
    left, top, width, height = cv2.boundingRect(inside)
    if width == 0:
        return image
    rows = slice(max(top - 2, 0), top + height + 2)
    columns = slice(max(left - 2, 0), left + width + 2)
    inside = inside[rows, columns]
    sigma_px = rng.uniform(*edge_sigma_px)
    # Colours are blurred premultiplied by alpha, so none bleeds in from where the foreground is undefined.
    solid = cv2.copyTo(np.ascontiguousarray(foreground[rows, columns]), inside)
    alpha = cv2.GaussianBlur(inside.astype(np.float32), (3, 3), sigma_px)
    over = cv2.GaussianBlur(solid, (3, 3), sigma_px)
    alpha = cv2.cvtColor(alpha, cv2.COLOR_GRAY2RGB)
    cv2.copyTo(cv2.multiply(solid, alpha), inside, over)
    under = image[rows, columns]
    image[rows, columns] = cv2.add(cv2.subtract(under, cv2.multiply(under, alpha)), over)
    return image


def occlude(
    rgb: np.ndarray,
    rng: np.random.Generator,
    texture: Texture = procedural_texture,
    num_occluders: tuple[int, int] = (1, 3),
    size: Range = (0.1, 0.5),
) -> tuple[np.ndarray, np.ndarray]:
    """Lay random patches over an image: returns the changed copy and the bool map [h w] of covered pixels.

    rgb: [h w 3] float32 in 0..1. `size` is relative to the shorter side; `texture` may be `Backgrounds.texture`.
    """
    height, width = rgb.shape[:2]
    rgb = rgb.copy()
    covered = np.zeros((height, width), bool)
    for _ in range(int(rng.integers(num_occluders[0], num_occluders[1] + 1))):
        piece = random_piece(rng, height, width, rng.uniform(*size) * min(height, width), texture)
        under = rgb[piece.rows, piece.columns]
        under += (piece.rgb * np.float32(1 / 255) - under) * (piece.alpha[..., None] * np.float32(1 / 255))
        covered[piece.rows, piece.columns] |= piece.alpha > 127
    return rgb, covered


def cut_off(image: np.ndarray, rng: np.random.Generator, share: Range = (0.05, 0.55)) -> tuple[np.ndarray, np.ndarray]:
    """End a picture early on one side, as at a photograph's border: returns the copy, and the bool map of what's gone.

    image: [h w 3] uint8. What lies beyond repeats the last line, as `images.warp` has it; `share` is of the picture.
    """
    turns = int(rng.integers(4))
    image = np.rot90(image, turns).copy()
    gone = np.zeros(image.shape[:2], bool)
    first = round(len(image) * (1 - rng.uniform(*share)))
    image[first:], gone[first:] = image[first - 1], True
    return np.ascontiguousarray(np.rot90(image, -turns)), np.ascontiguousarray(np.rot90(gone, -turns))


def simulate_sensor(
    rgb: np.ndarray,
    rng: np.random.Generator,
    config: SensorConfig | None = None,
    native_scale: float | None = None,
) -> np.ndarray:
    """Photograph an image: [h w 3] float32 RGB in 0..1 becomes [h w 3] uint8 RGB.

    `native_scale`, when the caller knows it, is the number of camera pixels per pixel of the image; otherwise drawn.
    """
    config = config or SensorConfig()
    height, width = rgb.shape[:2]
    if native_scale is None:
        native_scale = _log_uniform(rng, config.native_scale).item()
    # A crop that was enlarged is made at its native size. One that was reduced is made as it is, which is cheaper,
    # with blur, noise and compression reduced as averaging pixels would have done.
    reduction = max(native_scale, 1.0)
    native = (max(round(width * native_scale / reduction), 8), max(round(height * native_scale / reduction), 8))
    image = rgb
    if native != (width, height):
        image = cv2.resize(image, native, interpolation=cv2.INTER_AREA)

    # From here to the end the channels are BGR, as OpenCV's demosaicing and JPEG want them.
    image = cv2.transform(image, _colour_matrix(rng, config)[::-1])
    if rng.random() < config.shading_prob:
        image = cv2.multiply(image, _shading(rng, config, native))
    image = cv2.addWeighted(image, 255.0, image, 0.0, 0.0, dtype=cv2.CV_8U)  # rounds and saturates
    image = _blur(image, rng, config, reduction)
    image = cv2.LUT(image, _tone_curves(rng, config))
    image = _noise(image, rng, config, reduction)
    if rng.random() < config.sharpening_prob:
        amount = rng.uniform(*config.sharpening)
        soft = cv2.GaussianBlur(image, (5, 5), rng.uniform(0.7, 1.3))
        image = cv2.addWeighted(image, 1 + amount, soft, -amount, 0)
    if rng.random() < config.jpeg_prob:
        quality = round(100 - (100 - rng.uniform(*config.jpeg_quality)) / reduction)
        _, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))
        image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    if native != (width, height):
        interpolation = cv2.INTER_LINEAR if rng.random() < 0.7 else cv2.INTER_CUBIC
        image = cv2.resize(image, (width, height), interpolation=interpolation)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _log_uniform(rng: np.random.Generator, bounds: Range, size: int = 1) -> np.ndarray:
    return np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]), size))


def _colour_matrix(rng: np.random.Generator, config: SensorConfig) -> np.ndarray:
    """Saturation and a turn of the hue about the grey axis, as one RGB matrix."""
    luma = np.array([0.299, 0.587, 0.114])
    saturation = 0.0 if rng.random() < config.gray_prob else rng.uniform(*config.saturation)
    axis = np.full(3, 3**-0.5)
    turn, _ = cv2.Rodrigues(axis * rng.uniform(*config.hue_rad))
    return saturation * turn + (1 - saturation) * luma


def _shading(rng: np.random.Generator, config: SensorConfig, size: tuple[int, int]) -> np.ndarray:
    """Uneven light, slightly coloured: a random grid enlarged to (width, height)."""
    strength = rng.uniform(*config.shading)
    cells = tuple(int(n) for n in rng.integers(2, 5, 2))
    grid = rng.uniform(-1.0, 1.0, (*cells, 1)) + rng.uniform(-0.25, 0.25, (*cells, 3))
    return cv2.resize(np.exp(strength * grid).astype(np.float32), size, interpolation=cv2.INTER_LINEAR)


def _blur(image: np.ndarray, rng: np.random.Generator, config: SensorConfig, reduction: float) -> np.ndarray:
    if rng.random() < config.defocus_prob:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(*config.defocus_sigma_px) / reduction)
    if rng.random() < config.motion_prob:
        length_px, angle_rad = rng.uniform(*config.motion_px) / reduction, rng.uniform(0.0, np.pi)
        radius = int(np.ceil(length_px / 2))
        kernel = np.zeros((2 * radius + 1, 2 * radius + 1), np.uint8)
        reach = 0.5 * length_px * np.array([np.cos(angle_rad), np.sin(angle_rad)])
        start, end = (np.rint(16 * (radius + side * reach)).astype(int).tolist() for side in (-1, 1))
        cv2.line(kernel, start, end, 255, 1, cv2.LINE_AA, 4)
        image = cv2.filter2D(image, -1, kernel / kernel.sum(dtype=np.float32))
    return image


def _tone_curves(rng: np.random.Generator, config: SensorConfig) -> np.ndarray:
    """Exposure, white balance, gamma, contrast and black level as [256 1 3] uint8 curves, blue first."""
    gains = _log_uniform(rng, config.exposure_gain) * _log_uniform(rng, config.channel_gain, 3)
    curves = np.clip(np.linspace(0, 1, 256)[:, None] * gains, 0, None) ** _log_uniform(rng, config.gamma)
    curves = 0.5 + rng.uniform(*config.contrast) * (curves - 0.5) + rng.uniform(*config.black_level)
    return np.rint(np.clip(curves, 0, 1) * 255).astype(np.uint8)[:, None]


# A byte's Gaussian quantile: uniform bytes through this table are normal noise, ten times faster than drawing it.
_NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return cv2.LUT(np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8).reshape(shape), _NORMAL)


def _noise(image: np.ndarray, rng: np.random.Generator, config: SensorConfig, reduction: float) -> np.ndarray:
    """Read and shot noise, on a Bayer mosaic or directly on the image as luma and coarser chroma noise."""
    height, width = image.shape[:2]
    is_mosaic = rng.random() < config.bayer_prob
    has_noise = rng.random() < config.noise_prob
    read, shot = rng.uniform(*config.read_noise), rng.uniform(*config.shot_noise)
    deviation = np.sqrt(read**2 + shot**2 * np.linspace(0, 1, 256, dtype=np.float32)) / np.float32(reduction)
    if is_mosaic:
        mosaic: np.ndarray = np.empty((height, width), np.uint8)
        mosaic[0::2, 0::2] = image[0::2, 0::2, 2]
        mosaic[0::2, 1::2] = image[0::2, 1::2, 1]
        mosaic[1::2, 0::2] = image[1::2, 0::2, 1]
        mosaic[1::2, 1::2] = image[1::2, 1::2, 0]
        if has_noise:
            noise = cv2.multiply(_normal(rng, height, width), cv2.LUT(mosaic, deviation))
            mosaic = cv2.add(mosaic, noise, dtype=cv2.CV_8U)
        return cv2.demosaicing(mosaic, cv2.COLOR_BayerRGGB2BGR_EA)
    if has_noise:
        chroma_share = rng.uniform(0.0, 0.8)
        noise = cv2.resize(_normal(rng, (height + 1) // 2, (width + 1) // 2, 3), (width, height))
        luma = cv2.cvtColor(_normal(rng, height, width), cv2.COLOR_GRAY2RGB)
        noise = cv2.addWeighted(noise, chroma_share, luma, 1 - chroma_share, 0)
        image = cv2.add(image, cv2.multiply(noise, cv2.LUT(image, deviation)), dtype=cv2.CV_8U)
    return image
