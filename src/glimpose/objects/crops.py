"""What the two networks look at: the resized photograph, and crops in which objects have a fixed apparent size."""

import math

import numpy as np
import torch

from glimpose.geometry.camera import crop_affine, resize_affine
from glimpose.nets.glance_gaze import GlanceGazeConfig
from glimpose.nets.mtgoe import STRIDE


def glance_matrix(height: int, width: int, scale: float, roll_rad: float = 0.0) -> tuple[np.ndarray, int, int]:
    """Return out_A_img of the resized photograph, turned back by a roll, and its height and width."""
    if roll_rad:
        # A square as wide as the diagonal shows all of it, however it's turned.
        diagonal_px, center_px = math.hypot(height, width), np.array([width - 1, height - 1]) / 2
        side_px = round(scale * diagonal_px)
        return crop_matrix(center_px, diagonal_px, side_px, -roll_rad), side_px, side_px
    out_height, out_width = round(height * scale), round(width * scale)
    return resize_matrix(out_width / width, out_height / height), out_height, out_width


def resize_matrix(scale_u: float, scale_v: float) -> np.ndarray:
    """Return out_A_img of an image resized by a factor for each axis."""
    return resize_affine(torch.tensor(scale_u, dtype=torch.float64), torch.tensor(scale_v, dtype=torch.float64)).numpy()


def crop_matrix(center_px: np.ndarray, side_px: float, crop_px: int, angle_rad: float = 0.0) -> np.ndarray:
    """Return out_A_img of the square of that side around a point, resized to crop_px and turned: see `crop_affine`."""
    center = torch.as_tensor(np.asarray(center_px, np.float64))
    return crop_affine(center, torch.tensor(side_px, dtype=torch.float64), crop_px, angle_rad).numpy()


def frame_object(cam_T_obj: np.ndarray, K: np.ndarray, diameter_m: float, pad: float) -> tuple[np.ndarray, float]:
    """Centre and side, in pixels of the photograph, of the crop that shows an object at a pose with that padding."""
    u, v, z = K @ cam_T_obj[:3, 3]
    return np.array([u, v]) / z, diameter_m * pad * focal_px(K) / z


def is_in_view(cam_T_obj: np.ndarray, K: np.ndarray, height: int, width: int) -> bool:
    """Whether an object's origin is in front of the camera and in its picture."""
    u, v, z = K @ cam_T_obj[:3, 3]
    return bool(z > 0 and 0 < u / z < width and 0 < v / z < height)


def camera_roll_rad(K: np.ndarray) -> float:
    """Angle by which a camera's pictures are turned, from the u axis towards v; 0 where ``K`` is as usual."""
    return math.atan2(K[1, 0], K[0, 0])


def focal_px(K: np.ndarray) -> float:
    """Focal length of a camera that may be skewed or rotated: the geometric mean over directions."""
    return float(np.sqrt(abs(np.linalg.det(K[:2, :2]))))


def gaze_reference_depth_m(K_crop: np.ndarray, diameter_m: float, config: GlanceGazeConfig) -> float:
    """Distance at which an object of that diameter has the nominal size in the crop."""
    return focal_px(K_crop) * diameter_m * config.crop_pad / config.crop_px


def glance_reference_depth_m(K_glance: np.ndarray) -> float:
    """Reference depth of the glance: apparent size is all it can see, so depths go with the focal length."""
    return focal_px(K_glance) / 300.0


def central_mean(values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value at each cell's centre: the mean over its four central pixels, where all four are in the mask.

    A cell's centre lies between pixels; taking any one of them would shift every correspondence by half a pixel.
    """
    first = STRIDE // 2 - 1
    corners = [(first + dy, first + dx) for dy in (0, 1) for dx in (0, 1)]
    is_inside = np.logical_and.reduce([mask[dy::STRIDE, dx::STRIDE] for dy, dx in corners])
    mean = np.mean([values[dy::STRIDE, dx::STRIDE] for dy, dx in corners], axis=0)
    return is_inside, mean
