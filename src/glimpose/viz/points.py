"""Point plots: a panel for each quantity, a line for each method, a dot for each replica, a bar for the interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PANEL_PX, LINE_PX, TOP_PX, MARGIN_PX = 220, 34, 46, 18
PAPER, INK, SOFT, MARK = (253, 253, 252), (29, 33, 36), (205, 209, 213), (0, 114, 178)


@dataclass(frozen=True)
class Panel:
    """One quantity: the values of each method's replicas, and their mean and half interval; None if there are none."""

    title: str
    values: Sequence[Sequence[float]]
    means: Sequence[tuple[float, float] | None]


def draw_points(names: Sequence[str], panels: Sequence[Panel]) -> np.ndarray:
    """Draw panels side by side, all starting at 0, H×W×3 uint8 RGB."""
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    left = MARGIN_PX + round(max((font.getlength(name) for name in names), default=0)) + MARGIN_PX
    size = left + len(panels) * PANEL_PX, TOP_PX + len(names) * LINE_PX + TOP_PX
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    for i, name in enumerate(names):
        draw.text((left - MARGIN_PX, _line(i)), name, INK, font, anchor="rm")
    for p, panel in enumerate(panels):
        start, width = left + p * PANEL_PX, PANEL_PX - 2 * MARGIN_PX
        highest = max([value for values in panel.values for value in values], default=1.0)
        highest = max([highest, *(mean[0] + _finite(mean[1]) for mean in panel.means if mean)]) or 1.0

        def place(value: float, start: int = start, width: int = width, highest: float = highest) -> float:
            return start + width * min(max(value / highest, 0.0), 1.0)

        draw.text((start, TOP_PX / 2), panel.title, INK, font, anchor="lm")
        for value, anchor in ((0.0, "lm"), (highest, "rm")):
            draw.line([(place(value), TOP_PX), (place(value), size[1] - TOP_PX)], SOFT)
            draw.text((place(value), size[1] - TOP_PX / 2), f"{value:.3g}", INK, small, anchor=anchor)
        for i, (values, mean) in enumerate(zip(panel.values, panel.means, strict=True)):
            y = _line(i)
            draw.line([(place(0), y), (place(highest), y)], SOFT)
            for value in values:
                _dot(draw, place(value), y, 3, SOFT, INK)
            if mean:
                half = _finite(mean[1])
                draw.line([(place(mean[0] - half), y), (place(mean[0] + half), y)], MARK, 3)
                _dot(draw, place(mean[0]), y, 5, MARK, MARK)
    return np.asarray(image)


def _line(i: int) -> float:
    return TOP_PX + (i + 0.5) * LINE_PX


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: int, fill: tuple, outline: tuple) -> None:
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill, outline)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
