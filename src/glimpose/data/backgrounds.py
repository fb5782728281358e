"""What lies behind and beside the objects of a synthetic image: photographs or procedural texture, and clutter.

The last layer of every background is clutter with sharp edges (boards with black-and-white markers, printed pages,
stripes, coloured blobs), because an outline against such edges is the hard case of real desks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SHIFT = 4  # fractional bits of OpenCV's polygon corners
Texture = Callable[[np.random.Generator, int, int], np.ndarray]
"""Draws a picture of that height and width, such as `procedural_texture` or `Backgrounds.texture`."""


@dataclass(frozen=True)
class Piece:
    """A patch of clutter, clipped to the image it was made for."""

    rows: slice
    columns: slice
    rgb: np.ndarray  # [h w 3] uint8
    alpha: np.ndarray  # [h w] uint8, 255 is opaque


class Backgrounds:
    """An endless supply of backgrounds from a folder of photographs, or procedural ones when there is no folder.

    Photographs are searched in subfolders too, loaded once and kept as uint8 with half- and quarter-size copies, so
    that a small background doesn't pay for a large photograph: about 3 MB each at the default `max_side_px`.
    """

    def __init__(self, folder: Path | str | None = None, *, clutter_prob: float = 0.7, max_side_px: int = 1024):
        self.clutter_prob = clutter_prob
        self.photographs = [] if folder is None else [_pyramid(p, max_side_px) for p in _image_files(Path(folder))]

    def __len__(self) -> int:
        """Count the photographs; 0 means procedural."""
        return len(self.photographs)

    def sample(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        """Draw one background, [height width 3] uint8 RGB."""
        image = self.texture(rng, height, width)
        if rng.random() < 0.3:
            _compose(image, self.texture(rng, height, width), rng)
        if rng.random() < self.clutter_prob:
            longest_px = max(height, width)
            for size_px in longest_px * np.exp(rng.uniform(np.log(0.12), np.log(1.4), int(rng.integers(1, 7)))):
                paste(image, random_piece(rng, height, width, float(size_px), self.texture))
        return image

    def texture(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        """Draw a background without clutter: part of one photograph, or procedural texture."""
        if not self.photographs:
            return procedural_texture(rng, height, width)
        pyramid = self.photographs[int(rng.integers(len(self.photographs)))]
        turns = int(rng.integers(4)) if rng.random() < 0.5 else 0
        out_h, out_w = (width, height) if turns % 2 else (height, width)
        photo_h, photo_w = pyramid[0].shape[:2]
        fit = min(photo_h / out_h, photo_w / out_w)  # photograph pixels per output pixel of the largest crop
        step = fit * np.exp(rng.uniform(np.log(0.2), 0.0))
        step = min(max(step, 0.25), fit)  # not blown up more than four times, unless the photograph is that small
        photo = pyramid[min(round(np.log2(max(step, 1.0))), len(pyramid) - 1)]
        step *= photo.shape[0] / photo_h
        crop_h = min(max(round(out_h * step), 1), photo.shape[0])
        crop_w = min(max(round(out_w * step), 1), photo.shape[1])
        top = int(rng.integers(photo.shape[0] - crop_h + 1))
        left = int(rng.integers(photo.shape[1] - crop_w + 1))
        interpolation = cv2.INTER_AREA if step > 1.5 else cv2.INTER_LINEAR
        crop = photo[top : top + crop_h, left : left + crop_w]
        image = cv2.resize(crop, (out_w, out_h), interpolation=interpolation)
        if turns:
            image = cv2.rotate(
                image, (cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_COUNTERCLOCKWISE)[turns - 1]
            )
        if rng.random() < 0.5:
            image = cv2.flip(image, 1)
        return _recolour(image, rng) if rng.random() < 0.3 else image


def procedural_texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw multi-octave noise in random colours, or a plain gradient, [height width 3] uint8 RGB."""
    base = np.stack([random_colour(rng), random_colour(rng)]).astype(np.float32)
    rows, columns = 2, 2
    image: np.ndarray = base[rng.integers(2, size=(rows, columns))]
    amplitude = rng.uniform(5.0, 60.0)
    roughness = rng.uniform(0.4, 0.9)
    colourfulness = rng.uniform(0.0, 1.0)
    num_octaves = int(rng.integers(0, 5))
    for _ in range(num_octaves):
        rows, columns = min(rows * 3, max(height // 2, 2)), min(columns * 3, max(width // 2, 2))
        image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
        luma = rng.standard_normal((rows, columns, 1), dtype=np.float32)
        chroma = rng.standard_normal((rows, columns, 3), dtype=np.float32)
        image = image + amplitude * ((1 - colourfulness) * luma + colourfulness * chroma)
        amplitude *= roughness
    small = np.clip(image, 0, 255).astype(np.uint8)
    interpolation = cv2.INTER_CUBIC if rng.random() < 0.8 else cv2.INTER_NEAREST
    return cv2.resize(small, (width, height), interpolation=interpolation)


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """Draw a colour (3 uint8) as things on desks have them: often grey, white or black, often saturated."""
    kind = rng.random()
    if kind < 0.2:
        value = rng.uniform(200, 255) if rng.random() < 0.5 else rng.uniform(0, 50)
        return np.clip(value + rng.uniform(-8, 8, 3), 0, 255).astype(np.uint8)
    saturation = rng.uniform(0.0, 0.3) if kind < 0.45 else rng.uniform(0.3, 1.0)
    hue = rng.uniform(0.0, 6.0)
    value = rng.uniform(30, 255)
    ramp = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6.0 - 3.0) - 1.0, 0.0, 1.0)
    return (value * (1.0 - saturation * (1.0 - ramp))).astype(np.uint8)


def random_piece(
    rng: np.random.Generator,
    height: int,
    width: int,
    size_px: float,
    texture: Texture = procedural_texture,
    center_uv: tuple[float, float] | None = None,
) -> Piece:
    """Draw a patch of about `size_px` pixels seen in perspective, for an image of the given size.

    `texture(rng, height, width)` fills what isn't drawn here; the patch lies around `center_uv`, or anywhere.
    """
    side_px = int(np.clip(size_px, 12, 256))
    drawn = rng.random()
    outline = _OUTLINES[int(rng.integers(len(_OUTLINES)))]
    if drawn < 0.22:
        face = texture(rng, side_px, side_px)
    elif drawn < 0.45:
        face, outline = _markers(rng, side_px), _square
    else:
        face = _FACES[int(rng.integers(len(_FACES)))](rng, side_px)

    center = np.array(center_uv) if center_uv is not None else rng.uniform((0.0, 0.0), (width, height))
    angle_rad = rng.uniform(0.0, 2.0 * np.pi)
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    extent = 0.5 * size_px * np.array([1.0, rng.uniform(0.3, 1.0)])
    corners = (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) + rng.uniform(-0.25, 0.25, (4, 2))) * extent
    corners = corners @ np.array([[cos, sin], [-sin, cos]]) + center

    contours = [_through(_homography(corners), contour) for contour in outline(rng)]
    points = np.concatenate(contours)
    left, top = np.clip(np.floor(points.min(0)) - 1, 0, (width - 1, height - 1)).astype(int)
    right, bottom = np.clip(np.ceil(points.max(0)) + 2, (left + 1, top + 1), (width, height)).astype(int)
    offset = np.array([left, top])
    rgb_from_face = _homography(corners - offset) @ np.diag([1 / (side_px - 1), 1 / (side_px - 1), 1.0])
    box = (int(right - left), int(bottom - top))
    rgb = cv2.warpPerspective(face, rgb_from_face, box, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    alpha = np.zeros(box[::-1], np.uint8)
    fixed = [np.rint((contour - offset) * (1 << SHIFT)).astype(np.int32) for contour in contours]
    cv2.fillPoly(alpha, fixed, 255, lineType=cv2.LINE_AA, shift=SHIFT)
    return Piece(slice(int(top), int(bottom)), slice(int(left), int(right)), rgb, alpha)


def paste(image: np.ndarray, piece: Piece) -> None:
    """Blend a piece into a uint8 image, in place."""
    under = image[piece.rows, piece.columns]
    alpha = cv2.cvtColor(piece.alpha, cv2.COLOR_GRAY2RGB)
    over = cv2.multiply(piece.rgb, alpha, scale=1 / 255)
    cv2.add(cv2.multiply(under, 255 - alpha, scale=1 / 255), over, dst=over)
    image[piece.rows, piece.columns] = over


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of background photographs")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise ValueError(
            f"{folder}: no background photographs, expected files ending in {', '.join(SUFFIXES)}; "
            "leave the folder out of the config to use procedural backgrounds"
        )
    return files


def _pyramid(path: Path, max_side_px: int) -> list[np.ndarray]:
    """Load a photograph as RGB at full, half and quarter size."""
    data = np.fromfile(path, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise ValueError(f"{path}: not a readable image; remove it from the folder of backgrounds or replace it")
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    scale = max_side_px / max(image.shape[:2])
    levels = [cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image]
    while len(levels) < 3 and min(levels[-1].shape[:2]) >= 64:
        levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    return levels


def _recolour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness and colour: a random mixing matrix near the identity, near grey, or with channels swapped."""
    mix = np.eye(3)[rng.permutation(3)] if rng.random() < 0.3 else np.eye(3)
    grey = rng.uniform(0.0, 1.0) ** 2
    mix = (1 - grey) * mix + grey / 3
    return cv2.transform(image, mix * rng.uniform(0.6, 1.4) * rng.uniform(0.8, 1.2, (3, 1)))


def _compose(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> None:
    """Cover one side of a random line by another background, as a desk covers a room."""
    height, width = image.shape[:2]
    center = rng.uniform((0.2 * width, 0.2 * height), (0.8 * width, 0.8 * height))
    angle_rad = rng.uniform(0.0, 2.0 * np.pi)
    along = np.array([np.cos(angle_rad), np.sin(angle_rad)]) * (height + width)
    aside = np.array([-along[1], along[0]])
    corners = np.rint(np.stack([center - along, center + along, center + along + aside, center - along + aside]))
    mask = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(mask, corners.astype(np.int32), 255)
    cv2.copyTo(other, mask, image)


def _homography(corners: np.ndarray) -> np.ndarray:
    """Return the homography that takes the unit square to four corners."""
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    return cv2.getPerspectiveTransform(unit, corners.astype(np.float32))


def _through(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    return cv2.perspectiveTransform(points[None].astype(np.float64), homography)[0]


# Outlines: closed contours in the unit square; a second contour is a hole.


def _square(rng: np.random.Generator) -> list[np.ndarray]:
    return [np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])]


def _circle(rng: np.random.Generator) -> list[np.ndarray]:
    return [_star(np.full(32, 0.5))]


def _ring(rng: np.random.Generator) -> list[np.ndarray]:
    return [_star(np.full(32, 0.5)), _star(np.full(24, rng.uniform(0.3, 0.44)))]


def _polygon(rng: np.random.Generator) -> list[np.ndarray]:
    return [_star(rng.uniform(0.15, 0.5, int(rng.integers(3, 10))))]


def _blob(rng: np.random.Generator) -> list[np.ndarray]:
    radii = cv2.resize(np.tile(rng.uniform(0.25, 0.5, 6), 3)[None], (96, 1), interpolation=cv2.INTER_CUBIC)[0]
    return [_star(radii[32:64])]


def _star(radii: np.ndarray) -> np.ndarray:
    angles_rad = np.linspace(0.0, 2.0 * np.pi, len(radii), endpoint=False)
    return 0.5 + radii[:, None] * np.stack([np.cos(angles_rad), np.sin(angles_rad)], axis=1)


_OUTLINES = (_square, _square, _circle, _ring, _polygon, _blob)

# Faces: square textures of a given side.


def _shaded(rng: np.random.Generator, side_px: int) -> np.ndarray:
    """One colour under uneven light."""
    light = rng.uniform(0.35, 1.15, (3, 3, 1)).astype(np.float32)
    if rng.random() < 0.3:
        light[:] = light[1, 1]
    small = np.clip(random_colour(rng) * light, 0, 255).astype(np.uint8)
    return cv2.resize(small, (side_px, side_px), interpolation=cv2.INTER_CUBIC)


def _checkerboard(rng: np.random.Generator, side_px: int) -> np.ndarray:
    palette = np.stack([random_colour(rng), random_colour(rng)])
    rows, columns = rng.integers(2, 9, 2)
    return _cells(palette[np.add.outer(np.arange(rows), np.arange(columns)) % 2], side_px)


def _stripes(rng: np.random.Generator, side_px: int) -> np.ndarray:
    palette = np.stack([random_colour(rng) for _ in range(3)])
    num_stripes = int(rng.integers(3, 24))
    ids = np.arange(num_stripes) % 2 if rng.random() < 0.5 else rng.integers(3, size=num_stripes)
    return _cells(palette[ids][None], side_px)


def _cells(cells: np.ndarray, side_px: int) -> np.ndarray:
    return cv2.resize(cells, (side_px, side_px), interpolation=cv2.INTER_NEAREST)


def _markers(rng: np.random.Generator, side_px: int) -> np.ndarray:
    """A white board with black squares, a white pattern in each: single, in a row, in a grid, or around a rim."""
    rows, columns = (int(n) for n in rng.choice((1, 1, 2, 2, 3, 4, 5), 2))
    cells = np.ones((8 * rows, 8 * columns), bool)
    for row in range(rows):
        for column in range(columns):
            marker = cells[8 * row + 1 : 8 * row + 7, 8 * column + 1 : 8 * column + 7]
            marker[:] = False
            marker[1:5, 1:5] = rng.random((4, 4)) < rng.uniform(0.2, 0.7)
    if rows > 2 and columns > 2 and rng.random() < 0.5:
        cells[8:-8, 8:-8] = True
    paper, ink = rng.uniform(170, 255), rng.uniform(5, 60)
    tint = rng.uniform(0.92, 1.0, 3)
    return _cells((np.where(cells, paper, ink)[..., None] * tint).astype(np.uint8), side_px)


def _page(rng: np.random.Generator, side_px: int) -> np.ndarray:
    """Lines of letters and digits in random sizes on coloured paper."""
    face = _shaded(rng, side_px)
    letters = "ABCDEFGHKLMNPRSTUVXYZaegikmnorstu0123456789-:/"
    line_px = side_px * rng.uniform(0.08, 0.45)
    ink = random_colour(rng).tolist()
    thickness = max(1, round(line_px * rng.uniform(0.05, 0.2)))
    y = line_px
    while y < side_px + line_px:
        text = "".join(letters[i] for i in rng.integers(len(letters), size=min(int(2 * side_px / line_px) + 1, 24)))
        origin = (int(rng.uniform(-0.2, 0.1) * side_px), int(y))
        cv2.putText(face, text, origin, cv2.FONT_HERSHEY_SIMPLEX, line_px / 28, ink, thickness, cv2.LINE_AA)
        y += line_px * rng.uniform(1.2, 2.0)
    return face


_FACES = (_shaded, _shaded, _shaded, _checkerboard, _stripes, _page)
