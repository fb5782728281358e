"""Images moved by affine maps, and evened out in light."""

import cv2
import numpy as np

QUARTERS = (2, 2)
"""Columns and rows of tiles whose lightness is equalised; between their middles it blends from one to the next."""


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


def equalised(image: np.ndarray, clip_limit: float) -> np.ndarray:
    """Spread an image's lightness over all that there is, in each quarter; H×W×3 uint8 RGB, colours are kept.

    Contrast-limited adaptive histogram equalisation (Zuiderveld, Graphics Gems IV, 1994) of CIELAB's L. The limit is of
    a bin's count, relative to the mean, hence about that of the contrast's gain; 0 leaves the image as it is.
    """
    if clip_limit == 0:
        return image
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lightness = np.ascontiguousarray(lab[..., 0])
    lab[..., 0] = cv2.createCLAHE(clip_limit, QUARTERS).apply(lightness)
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
