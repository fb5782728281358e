"""Reports: one HTML file each, with its pictures and plots inside, in light and dark."""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from glimpose.data.files import write_text

Cell = str | int | float | bool | None

NUM_COLORS = 4
"""Curves of one plot beyond these repeat the colours, dashed."""

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1d2124; --soft: #667078; --line: #dcdfe2; --band: #f3f4f5;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b2568c; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181b; --ink: #e4e7e9; --soft: #98a2aa; --line: #333a40;
  --band: #1d2226; --c0: #56b4e9; --c1: #f08a3c; --c2: #2fc49a; --c3: #dd8fbd; } }
body { margin: 2.5rem auto; max-width: 62rem; padding: 0 1.25rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p { max-width: 44rem; margin: .6rem 0; }
figure { margin: 1.2rem 0; }
figure img, figure svg { display: block; width: 100%; height: auto; border-radius: 6px; }
figcaption, caption { color: var(--soft); font-size: .87rem; margin-top: .4rem; text-align: left; }
caption { caption-side: bottom; }
.gallery { display: grid; gap: .9rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--cell)), 1fr)); }
.gallery figure { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1.2rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.4rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; }
th { font-weight: 600; vertical-align: bottom; }
td { white-space: nowrap; }
td.number, th.number { text-align: right; }
figure svg { max-width: 46rem; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg .grid { stroke: var(--line); }
svg .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg .guide { stroke: var(--soft); stroke-dasharray: 4 4; }
"""


class Page:
    """A page under construction; every method but `write` adds to its end and returns the page."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> "Page":
        """Begin a section."""
        return self._add(f"<h2>{escape(text)}</h2>")

    def text(self, *paragraphs: str) -> "Page":
        """Add paragraphs of plain text."""
        return self._add(*(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs))

    def table(self, rows: Sequence[Mapping[str, Cell]], caption: str = "") -> "Page":
        """Add a table whose columns are the keys of its rows; what a row lacks, and None, is shown as a dash."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        is_number = {c: not any(isinstance(row.get(c), str | bool) for row in rows) for c in columns}

        def cells(tag: str, texts: Mapping[str, str]) -> str:
            kinds = {c: ' class="number"' if is_number[c] else "" for c in columns}
            return "<tr>" + "".join(f"<{tag}{kinds[c]}>{escape(texts[c])}</{tag}>" for c in columns) + "</tr>"

        head = cells("th", {c: c for c in columns})
        body = [cells("td", {c: _told(row.get(c)) for c in columns}) for row in rows]
        note = f"<caption>{escape(caption)}</caption>" if caption else ""
        return self._add(
            '<div class="scroll"><table>', note, f"<thead>{head}</thead>", "<tbody>", *body, "</tbody></table></div>"
        )

    def figure(self, image: np.ndarray, caption: str = "", lossless: bool = False) -> "Page":
        """Add a picture, H×W×3 uint8 RGB, as wide as the page."""
        return self._add(_figure(image, caption, lossless))

    def gallery(
        self,
        images: Sequence[np.ndarray],
        captions: Sequence[str] = (),
        caption: str = "",
        columns: int = 3,
        lossless: bool = False,
    ) -> "Page":
        """Add pictures side by side, in this many columns where there is room."""
        if captions and len(captions) != len(images):
            raise ValueError(f"gallery: got {len(captions)} captions for {len(images)} images; give one each or none")
        figures = [
            _figure(image, captions[i] if captions else "", lossless, narrow=True) for i, image in enumerate(images)
        ]
        note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        cell_rem = 58 / columns - 1
        return self._add(
            f'<figure><div class="gallery" style="--cell: {cell_rem:.1f}rem">', *figures, "</div>", note, "</figure>"
        )

    def curve(
        self,
        series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
        x_label: str = "",
        y_label: str = "",
        caption: str = "",
        log_y: bool = False,
        diagonal: bool = False,
    ) -> "Page":
        """Plot named curves, each given by its x and y; numbers that can't be drawn leave gaps.

        ``diagonal`` adds the line y = x, as reliability plots have it.
        """
        note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        return self._add(f"<figure>{_plot(series, x_label, y_label, log_y, diagonal)}{note}</figure>")

    def html(self) -> str:
        """Give the page's text."""
        return "\n".join(
            [
                '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
                f"<h1>{escape(self.title)}</h1>",
                *self._parts,
                "</body>\n</html>\n",
            ]
        )

    def write(self, path: Path) -> Path:
        """Write the page, whole or not at all."""
        write_text(Path(path), self.html())
        return Path(path)

    def _add(self, *parts: str) -> "Page":
        self._parts += parts
        return self


def _figure(image: np.ndarray, caption: str, lossless: bool, narrow: bool = False) -> str:
    kind, suffix, options = ("png", ".png", []) if lossless else ("jpeg", ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 88])
    _, data = cv2.imencode(suffix, image[..., ::-1], options)
    source = f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"
    height, width = image.shape[:2]
    # Small pictures are not blown up beyond twice their size, unless a column holds them.
    style = "" if narrow else f' style="max-width: {2 * width}px"'
    picture = f'<img src="{source}" alt="{escape(caption)}" width="{width}" height="{height}"{style}>'
    return f"<figure>{picture}" + (f"<figcaption>{escape(caption)}</figcaption>" if caption else "") + "</figure>"


def _told(value: Cell) -> str:
    """Say a value as a table should: numbers with three significant digits, integers whole."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


# --- Plots ------------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 30, 46


def _plot(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    log_y: bool,
    diagonal: bool,
) -> str:
    curves = {name: _points(*xy, where=name, log_y=log_y) for name, xy in series.items()}
    drawn = np.concatenate([points[np.isfinite(points).all(1)] for points in curves.values()] or [np.empty((0, 2))])
    if not len(drawn):
        drawn = np.array([[0.0, 0.0], [1.0, 1.0]])
    if diagonal:
        drawn = np.concatenate([drawn, np.array([[0.0, 0.0], [1.0, 1.0]])])
    x_low, x_high = _widened(drawn[:, 0], 0.0)
    y_low, y_high = _widened(drawn[:, 1], 0.04)

    def place(points: np.ndarray) -> np.ndarray:
        x = LEFT + (points[:, 0] - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (points[:, 1] - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return np.stack([x, y], axis=1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{y_label} over {x_label}")}">']
    for value in _ticks(x_low, x_high):
        x = place(np.array([[value, y_low]]))[0, 0]
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:,.10g}</text>')
    for value, text in _log_ticks(y_low, y_high) if log_y else [(v, f"{v:,.10g}") for v in _ticks(y_low, y_high)]:
        y = place(np.array([[x_low, value]]))[0, 1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(f'<text x="{LEFT}" y="16">{escape(y_label)}</text>')
    if diagonal:
        (x0, y0), (x1, y1) = place(np.array([[0.0, 0.0], [1.0, 1.0]]))
        parts.append(f'<line class="guide" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>')
    for index, points in enumerate(curves.values()):
        dash = ' stroke-dasharray="6 4"' if index >= NUM_COLORS else ""
        color = f"var(--c{index % NUM_COLORS})"
        for run in _runs(points):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in place(run))
            parts.append(f'<polyline class="curve" style="stroke: {color}"{dash} points="{path}"/>')
    parts += _legend(list(curves))
    return "".join([*parts, "</svg>"])


def _legend(names: Sequence[str]) -> Iterator[str]:
    """Names of the curves in their colours, from the right end of the line above the plot."""
    x = WIDTH - RIGHT
    for index, name in reversed(list(enumerate(names))):
        if name:
            color = f"var(--c{index % NUM_COLORS})"
            yield f'<text x="{x}" y="16" text-anchor="end" style="fill: {color}">{escape(name)}</text>'
            x -= 7 * len(name) + 18


def _points(x: Sequence[float], y: Sequence[float], where: str, log_y: bool) -> np.ndarray:
    if len(x) != len(y):
        raise ValueError(f"curve '{where}': {len(x)} values of x and {len(y)} of y; expected as many of each")
    points = np.stack([np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)], axis=1)
    if log_y:
        with np.errstate(divide="ignore", invalid="ignore"):
            points[:, 1] = np.log10(points[:, 1])
    return points


def _runs(points: np.ndarray) -> Iterator[np.ndarray]:
    """Split a curve where numbers are missing; a point alone is drawn as a dot."""
    is_gap = ~np.isfinite(points).all(1)
    for part in np.split(np.arange(len(points)), np.flatnonzero(is_gap)):
        kept = part[~is_gap[part]]
        if len(kept):
            yield points[kept if len(kept) > 1 else kept.repeat(2)]


def _widened(values: np.ndarray, share: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = share * (high - low) if high > low else max(abs(low), 1.0) / 2
    return low - margin, high + margin


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from low to high: steps of 1, 2 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= most)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Places on a logarithmic axis and what to write there: powers of ten, with 2 and 5 between where they are few."""
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    values = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in factors]
    return [(math.log10(v), f"{v:,.6g}") for v in values if low - 1e-9 <= math.log10(v) <= high + 1e-9]
