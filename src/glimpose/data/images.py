"""Images moved by affine maps."""

import cv2
import numpy as np


def warp(image: np.ndarray, out_A_img: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resample an image, H×W×3 uint8; what lies outside repeats the border.

    Shrinking averages over what each pixel covers instead of skipping it.
    """
    zoom = float(np.sqrt(abs(np.linalg.det(out_A_img[:2, :2]))))
    if zoom < 0.75:
        sigma = 0.4 * (1 / zoom - 0.5)
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    return cv2.warpAffine(
        image, out_A_img[:2], (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
