"""Photographs to estimate poses in: which files they are, and what a camera's file says of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glimpose.data.bop import M_PER_MM, read_camera
from glimpose.data.files import find_images, read_gray, read_image


@dataclass(frozen=True)
class PhotographFile:
    """An image file and what BOP would call it."""

    path: Path
    scene_id: int
    im_id: int


@dataclass(frozen=True)
class Photograph:
    """An image, H×W×3 uint8 RGB, and its camera matrix."""

    image: np.ndarray
    K: np.ndarray
    depth_m: np.ndarray | None = None
    """What a sensor measured from there, H×W float32, 0 where it didn't."""


def find_photographs(inputs: Sequence[Path]) -> list[PhotographFile]:
    """Collect images from files and folders.

    Files of a BOP split keep their ids (…/000002/rgb/000027.png is image 27 of scene 2); other files are numbered in
    the order of their names.
    """
    paths: list[Path] = []
    for entry in inputs:
        found = find_images(entry, "**/*")
        in_bop_layout = [path for path in found if path.parent.name in ("rgb", "gray")]
        paths += in_bop_layout or found  # a scene's masks and depth are images too
    files = []
    for number, path in enumerate(paths):
        scene = path.parent.parent.name if path.parent.name in ("rgb", "gray") else ""
        is_bop = scene.isdecimal() and path.stem.isdecimal()
        files.append(PhotographFile(path, int(scene) if is_bop else 0, int(path.stem) if is_bop else number))
    if len({(file.scene_id, file.im_id) for file in files}) < len(files):
        raise ValueError("several images have the same scene and image id; predict one dataset at a time")
    return files


def read_photograph(path: Path, im_id: int | None, camera: Path, with_depth: bool = False) -> Photograph:
    """Read an image and its camera, with depth what a sensor measured, too, if there is anything; sizes must agree.

    The camera's file is BOP's camera.json, or a scene_camera.json, in which im_id finds it. Depth is where BOP has it,
    in a folder depth/ beside rgb/ or gray/, in units that the camera's depth_scale tells.
    """
    view = read_camera(camera, im_id)
    image = read_image(path)
    view.check_size(image, path)
    depth_path = path.parent.parent / "depth" / f"{path.stem}.png"
    if not (with_depth and path.parent.name in ("rgb", "gray") and depth_path.is_file()):
        return Photograph(image, view.K)
    if view.depth_scale is None:
        raise ValueError(
            f"{camera}: no depth_scale, but there is {depth_path}; add the number of millimetres per unit of the depth "
            "image"
        )
    depth = read_gray(depth_path)
    if depth.shape != image.shape[:2]:
        raise ValueError(f"{depth_path}: is {depth.shape[1]}×{depth.shape[0]} pixels, its photograph isn't; align them")
    return Photograph(image, view.K, (depth * (view.depth_scale * M_PER_MM)).astype(np.float32))
