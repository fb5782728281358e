"""Poses drawn over photographs."""

from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass

import cv2
import numpy as np

from glimpose.render.mesh import Mesh
from glimpose.render.scene import Instance, Renderer, make_renderer

Color = tuple[int, int, int]

PALETTE: tuple[Color, ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
    (245, 245, 245),
)
"""Okabe's and Ito's colours, which colour-blind people tell apart too, with white for their black."""
AXIS_COLORS: tuple[Color, ...] = ((235, 60, 50), (40, 190, 60), (60, 110, 255))
INK = (20, 20, 20)

NEAR_M = 0.01
"""Nothing is drawn that is nearer to the camera's plane than this."""
WIDTH_PX = 1280
"""Smaller photographs are enlarged to about this, by a whole factor, so that lines are fine and letters legible."""
MAX_ZOOM = 4
FONT = cv2.FONT_HERSHEY_DUPLEX
SUBPIXEL_BITS = 4

# Corner i of a box takes its upper bound in x, y, z where bit 0, 1, 2 of i is set. A face is an axis and a side.
_CORNERS = np.array([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)])
_EDGES = [(i, i | 1 << axis) for axis in range(3) for i in range(8) if not i & 1 << axis]


@dataclass(frozen=True)
class PoseLabel:
    """A pose to draw, and what to write beside it."""

    name: str
    score: float | None
    cam_T_obj: np.ndarray
    """4×4."""
    bounds_m: np.ndarray
    """2×3: lowest and highest corner of the object's box."""
    mesh: Mesh | None = None
    """Where there is one, its outline is drawn instead of the box."""
    color_index: int | None = None
    """Which colour of the palette; by default the names in a picture share it out among them in alphabetical order."""


def draw_poses(
    image: np.ndarray,
    K: np.ndarray,
    poses: Sequence[PoseLabel],
    renderer: Renderer | None = None,
    zoom: int | None = None,
    emphasis: float = 1.0,
) -> np.ndarray:
    """Draw each object's outline or box, its axes (x red, y green, z blue), name and score.

    ``image`` is H×W×3 uint8 RGB and stays as it is; the result is ``zoom`` times as large, by default as large as it
    takes to be legible. ``emphasis`` thickens lines and enlarges letters, for pictures that will be shown small.
    Outlines need a renderer: where none is given, one is opened and closed again.
    """
    zoom = zoom or int(np.clip(round(WIDTH_PX / max(image.shape[:2])), 1, MAX_ZOOM))
    height, width = zoom * image.shape[0], zoom * image.shape[1]
    enlarged = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC) if zoom > 1 else image.copy()
    canvas = _Canvas(enlarged, emphasis)
    shift = (zoom - 1) / 2
    K = np.array([[zoom, 0, shift], [0, zoom, shift], [0, 0, 1]]) @ K

    names = sorted({pose.name for pose in poses})
    tags = []
    needs_renderer = renderer is None and any(pose.mesh is not None for pose in poses)
    with closing(make_renderer()) if needs_renderer else nullcontext(renderer) as drawer:
        for pose in sorted(poses, key=lambda pose: -pose.cam_T_obj[2, 3]):  # the nearest is drawn last
            index = names.index(pose.name) if pose.color_index is None else pose.color_index
            color = PALETTE[index % len(PALETTE)]
            if pose.mesh is not None and drawer is not None:
                mask = drawer.render([Instance(pose.mesh, pose.cam_T_obj)], K, height, width, near_m=NEAR_M).mask
                top = canvas.outline(mask, color)
            else:
                top = canvas.box(pose, K, color)
            canvas.axes(pose, K)
            if top is not None:
                tags.append((top, pose.name if pose.score is None else f"{pose.name} {pose.score:.2f}", color))
    canvas.write(tags)
    return canvas.image


class _Canvas:
    """An image, and strokes that end where its border or the camera's plane cuts them."""

    def __init__(self, image: np.ndarray, emphasis: float) -> None:
        self.image = np.ascontiguousarray(image)
        self.height, self.width = image.shape[:2]
        self.unit = emphasis * max(self.height, self.width) / WIDTH_PX
        """Size of what is one pixel in a picture of WIDTH_PX."""

    def stroke(self, points_px: np.ndarray, color: Color, thickness: float, closed: bool = False) -> None:
        """Draw a polyline, n×2, with a thin dark rim that sets it off from any background."""
        fixed = np.rint(points_px * (1 << SUBPIXEL_BITS)).astype(np.int32)
        for ink, extra in ((INK, 2), (color, 0)):
            width = max(1, round(thickness * self.unit)) + extra
            cv2.polylines(self.image, [fixed], closed, ink, width, cv2.LINE_AA, SUBPIXEL_BITS)

    def outline(self, mask: np.ndarray, color: Color) -> np.ndarray | None:
        """Draw the border of a mask, and return the middle of its upper end; None where the mask is empty."""
        contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        for contour in contours:
            self.stroke(_smooth(contour[:, 0].astype(np.float64)), color, 2.5, closed=True)
        if not contours:
            return None
        left, top, width, _ = cv2.boundingRect(mask)
        return np.array([left + width / 2, top])

    def box(self, pose: PoseLabel, K: np.ndarray, color: Color) -> np.ndarray | None:
        """Draw a box's edges, those behind it thinner, and return the middle of its upper end; None where unseen."""
        low, high = pose.bounds_m
        corners = (low + _CORNERS * (high - low)) @ pose.cam_T_obj[:3, :3].T + pose.cam_T_obj[:3, 3]
        # Face (axis, side) is seen if the camera, in the object's frame, lies beyond it.
        camera = -pose.cam_T_obj[:3, :3].T @ pose.cam_T_obj[:3, 3]
        is_seen = np.stack([camera < low, camera > high])
        edges = []
        for start, end in _EDGES:
            across = [axis for axis in range(3) if not (start ^ end) >> axis & 1]
            is_front = any(is_seen[start >> axis & 1, axis] for axis in across)
            edges.append((is_front, start, end))
        ends_px = []
        for is_front, start, end in sorted(edges):
            segment = self.clip(corners[[start, end]], K)
            if segment is not None:
                self.stroke(segment, color, 2.5 if is_front else 1)
                ends_px.append(segment)
        if not ends_px:
            return None
        size = np.array([self.width, self.height])
        least, most = np.min(ends_px, axis=(0, 1)), np.max(ends_px, axis=(0, 1))
        if (most < 0).any() or (least >= size).any():
            return None
        least, most = np.maximum(least, 0), np.minimum(most, size - 1)
        return np.array([(least[0] + most[0]) / 2, least[1]])

    def axes(self, pose: PoseLabel, K: np.ndarray) -> None:
        """Draw the object's axes from its origin, the one that points away most first."""
        rotation, origin = pose.cam_T_obj[:3, :3], pose.cam_T_obj[:3, 3]
        length_m = 0.4 * np.ptp(pose.bounds_m, axis=0).max()
        for axis in np.argsort(-rotation[2]):
            tip = origin + length_m * rotation[:, axis]
            segment = self.clip(np.stack([origin, tip]), K)
            if segment is None:
                continue
            self.stroke(segment, AXIS_COLORS[axis], 3)
            direction = segment[1] - segment[0]
            length_px = float(np.linalg.norm(direction))
            if length_px > 1 and self.is_inside(tip, K):
                along = direction / length_px * min(12 * self.unit, 0.4 * length_px)
                across = 0.55 * along[::-1] * (1, -1)
                head = np.stack([segment[1] - along + across, segment[1], segment[1] - along - across])
                self.stroke(head, AXIS_COLORS[axis], 3)

    def write(self, tags: Sequence[tuple[np.ndarray, str, Color]]) -> None:
        """Write each text on a plate of its colour above a point, and beside the plates already there."""
        scale, margin = 0.62 * max(self.unit, 0.55), round(6 * self.unit) + 1
        taken: list[tuple[float, float, float, float]] = []
        for point, text, color in sorted(tags, key=lambda tag: tag[0][1]):
            (text_width, text_height), baseline = cv2.getTextSize(text, FONT, scale, 1)
            plate_width, plate_height = text_width + 2 * margin, text_height + baseline + margin
            left = float(np.clip(point[0] - plate_width / 2, 0, max(0, self.width - plate_width)))
            wanted = float(np.clip(point[1] - plate_height - margin, 0, max(0, self.height - plate_height)))
            for top in _outwards(wanted, plate_height + 2, self.height - plate_height):
                plate = (left, top, left + plate_width, top + plate_height)
                if not any(_overlap(plate, other) for other in taken):
                    break
            taken.append(plate)
            x0, y0, x1, y1 = (round(value) for value in plate)
            cv2.rectangle(self.image, (x0, y0), (x1, y1), color, cv2.FILLED)
            cv2.rectangle(self.image, (x0, y0), (x1, y1), INK, 1)
            ink = INK if np.dot(color, (0.299, 0.587, 0.114)) > 110 else (255, 255, 255)
            at = (x0 + margin, y0 + margin // 2 + text_height)
            cv2.putText(self.image, text, at, FONT, scale, ink, 1, cv2.LINE_AA)

    def clip(self, xyz_cam: np.ndarray, K: np.ndarray) -> np.ndarray | None:
        """Project the part of a segment, 2×3, that lies before the camera and not far outside the picture."""
        uvw = xyz_cam @ K.T
        margin_px = 50.0
        # Each row of a plane is non-negative on the side to keep, in homogeneous pixels.
        planes = np.array(
            [
                [0, 0, 1],
                [1, 0, margin_px],
                [0, 1, margin_px],
                [-1, 0, self.width + margin_px],
                [0, -1, self.height + margin_px],
            ]
        )
        limits = np.array([NEAR_M, 0, 0, 0, 0])
        start, end = 0.0, 1.0
        for a, b in (uvw @ planes.T - limits).T:
            if a < 0 and b < 0:
                return None
            if a < 0:
                start = max(start, a / (a - b))
            elif b < 0:
                end = min(end, a / (a - b))
        if start >= end:
            return None
        kept = uvw[0] + np.array([[start], [end]]) * (uvw[1] - uvw[0])
        return kept[:, :2] / kept[:, 2:]

    def is_inside(self, xyz_cam: np.ndarray, K: np.ndarray) -> bool:
        """Tell whether the camera sees a point."""
        u, v, w = K @ xyz_cam
        return bool(w > NEAR_M and 0 <= u < self.width * w and 0 <= v < self.height * w)


def _smooth(contour: np.ndarray) -> np.ndarray:
    """Average a closed contour of pixels over its neighbours, which takes the steps out of slanted edges."""
    return np.mean([np.roll(contour, k, axis=0) for k in range(-2, 3)], axis=0)


def _outwards(start: float, step: float, limit: float) -> Iterator[float]:
    """Give start, then places further and further from it between 0 and limit; start again when there are no more."""
    for i in range(1, 20):
        place = start + (i // 2) * step * (1 if i % 2 else -1)
        if 0 <= place <= limit:
            yield place
    yield start


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
