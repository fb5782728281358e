"""Image, JSON and text files: read whole or refused with a reason, written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")

# The last thing a complete file of that kind has, and what it comes after. Decoders fill the rest of a cut JPEG with
# grey, and some say nothing about it.
_ENDINGS = {b"\x89PNG": (b"IEND", b"IHDR"), b"\xff\xd8": (b"\xff\xd9", b"\xff\xda")}


def read_image(path: Path | str) -> np.ndarray:
    """Read an image as H×W×3 uint8 RGB; grey ones get three equal channels.

    Pixels are as stored: a rotation in the file's EXIF data is ignored, for a camera's K doesn't know of it.
    """
    return cv2.cvtColor(_decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION), cv2.COLOR_BGR2RGB)


def read_gray(path: Path) -> np.ndarray:
    """Read an image of one channel, of 8 or 16 bits, as H×W."""
    image = _decode(path, cv2.IMREAD_UNCHANGED)
    if image.ndim != 2:
        raise ValueError(f"{path}: has {image.shape[2]} channels, expected 1")
    return image


def find_images(entry: Path, pattern: str = "*") -> list[Path]:
    """Give an image file, or all images in a folder, by name; FileNotFoundError where there is none.

    With the pattern "**/*" those in folders below, too.
    """
    if entry.is_file():
        return [entry]
    if not entry.is_dir():
        raise FileNotFoundError(f"{entry}: no such image or folder")
    found = sorted(path for path in entry.glob(pattern) if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise FileNotFoundError(f"{entry}: no images in this folder; expected {', '.join(IMAGE_SUFFIXES)}")
    return found


def write_image(path: Path, image: np.ndarray, jpeg_quality: int = 95) -> None:
    """Write H×W×3 RGB or H×W grey, of 8 or (PNG) 16 bits, in the format that the name's ending tells."""
    parameters = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality] if path.suffix in (".jpg", ".jpeg") else []
    _, data = cv2.imencode(
        path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image, parameters
    )
    path.write_bytes(data.tobytes())


def read_json(path: Path) -> Any:
    """Read a JSON file; FileNotFoundError if there is none, ValueError with line and column if it's malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}, column {error.colno}: malformed JSON ({error.msg}); was the file cut short?"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error.reason} at byte {error.start}), expected JSON") from None


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: whatever interrupts it, `path` holds either the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _decode(path: Path | str, flags: int) -> np.ndarray:
    try:
        data = Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"{path}: no such image") from None
    if not data:
        raise ValueError(f"{path}: the image file is empty")
    for signature, (ending, after) in _ENDINGS.items():
        if data.startswith(signature) and data.rfind(ending) <= data.rfind(after):
            raise ValueError(f"{path}: the image is cut short after {len(data)} bytes; copy or write it again")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise ValueError(f"{path}: not an image, or damaged; expected one of {', '.join(IMAGE_SUFFIXES)}")
    return image
