"""Photographs to estimate poses in: which files they are, and what a camera's file says of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glimpose.data.bop import read_camera
from glimpose.data.files import find_images, read_image


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


def read_photograph(path: Path, im_id: int | None, camera: Path) -> Photograph:
    """Read an image and its camera; their sizes must agree.

    The camera's file is BOP's camera.json, or a scene_camera.json, in which im_id finds it.
    """
    view = read_camera(camera, im_id)
    image = read_image(path)
    view.check_size(image, path)
    return Photograph(image, view.K)
