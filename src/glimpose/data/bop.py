"""Datasets, models and cameras in the formats of the BOP benchmark (https://bop.felk.cvut.cz).

Millimetres end here: everything that leaves this module is in metres, and everything written is converted back.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from glimpose.data.fields import integer, json_lines, mapping, number, numbers, some
from glimpose.data.files import read_gray, read_image, read_json, write_text

M_PER_MM = 1e-3
MAX_ORTHONORMALITY_ERROR = 0.01
"""Largest entry of R Rᵀ − I up to which R counts as a rotation; annotations are often rounded."""


# --- Cameras ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Camera:
    """Intrinsics, and the image size they belong to where the file tells it."""

    K: np.ndarray
    """3×3."""
    width: int | None = None
    height: int | None = None
    depth_scale: float | None = None
    """What a depth image's values have to be multiplied by to give millimetres."""

    def check_size(self, image: np.ndarray, where: object) -> None:
        """Raise ValueError if `image`, which came from `where`, is not of the size this camera takes."""
        height, width = image.shape[:2]
        if self.width is not None and (self.width, self.height) != (width, height):
            raise ValueError(
                f"{where}: is {width}×{height} pixels, but its camera takes {self.width}×{self.height}; "
                "give the camera of these images, or scale fx, fy, cx and cy with them"
            )


def read_camera(path: Path | str, im_id: int | None = None) -> Camera:
    """Read BOP's camera.json, or one image's entry of a scene_camera.json.

    Without an im_id a scene_camera.json will do if all its images have the same K.
    """
    content = mapping(read_json(Path(path)), path)
    if "fx" in content:
        fx, fy, cx, cy = (number(content, key, path) for key in ("fx", "fy", "cx", "cy"))
        width, height = (int(number(content, key, path)) if key in content else None for key in ("width", "height"))
        K = _checked_intrinsics(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), str(path))
        return Camera(K, width, height, _depth_scale(content, path))
    if not content or not all(key.isdecimal() for key in content):
        raise ValueError(
            f"{path}: neither a camera.json (no field fx) nor a scene_camera.json (keys {some(content)}, expected "
            "image ids); give a file with fx, fy, cx and cy"
        )
    if im_id is not None:
        if str(im_id) not in content:
            raise ValueError(f"{path}: no entry for image {im_id}; it has images {some(content)}")
        entry, where = content[str(im_id)], f"{path}, image {im_id}"
        return Camera(_read_intrinsics(entry, where), depth_scale=_depth_scale(entry, where))
    cameras = [_read_intrinsics(entry, f"{path}, image {key}") for key, entry in content.items()]
    if not all(np.array_equal(K, cameras[0]) for K in cameras):
        raise ValueError(
            f"{path}: holds different cameras for its {len(cameras)} images; say which image it is for, "
            "by naming image files by their ids (000017.png), or give a camera.json"
        )
    return Camera(cameras[0])


def write_camera(path: Path, camera: Camera, depth_scale: float = 1.0) -> None:
    """Write a camera.json; `depth_scale` times a depth image's values gives millimetres."""
    K = camera.K
    if K[0, 1] or K[1, 0]:
        raise ValueError(f"{path}: a camera.json can't hold a skewed or rotated K: {K.tolist()}")
    fields = {"cx": K[0, 2], "cy": K[1, 2], "depth_scale": depth_scale, "fx": K[0, 0], "fy": K[1, 1]}
    sizes = {"width": camera.width, "height": camera.height}
    values = {key: float(value) for key, value in fields.items()} | {k: v for k, v in sizes.items() if v is not None}
    write_text(path, json_lines(values))


# --- Models -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelInfo:
    """One object's entry of models_info.json."""

    diameter_m: float
    discrete: tuple[np.ndarray, ...] = ()
    """Symmetries as 4×4 transforms in metres, without the identity."""
    continuous: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    """Symmetries as pairs of an axis and a point on it, in metres."""

    @property
    def is_symmetric(self) -> bool:
        """Whether any other pose looks the same."""
        return bool(self.discrete or self.continuous)


def read_models_info(folder: Path) -> dict[int, ModelInfo]:
    """Read models_info.json in a folder of models."""
    path = Path(folder) / "models_info.json"
    infos = {}
    for key, entry in mapping(read_json(path), path).items():
        where = f"{path}, object {key}"
        diameter_m = number(entry, "diameter", where) * M_PER_MM
        if diameter_m <= 0:
            raise ValueError(f"{where}: diameter is {entry['diameter']}, expected millimetres above 0")
        discrete = []
        for values in entry.get("symmetries_discrete", []):
            transform = numbers(values, 16, where, "symmetries_discrete").reshape(4, 4)
            transform[:3, 3] *= M_PER_MM
            discrete.append(transform)
        continuous = tuple(
            (numbers(s.get("axis"), 3, where, "axis"), numbers(s.get("offset"), 3, where, "offset") * M_PER_MM)
            for s in entry.get("symmetries_continuous", [])
        )
        infos[integer(key, where, "object id")] = ModelInfo(diameter_m, tuple(discrete), continuous)
    return infos


def model_path(folder: Path, obj_id: int) -> Path:
    """Find an object's mesh in a folder of models; FileNotFoundError if there is none."""
    path = Path(folder) / f"obj_{obj_id:06d}.ply"
    if not path.is_file():
        there = sorted(p.name for p in Path(folder).glob("obj_*.ply"))
        raise FileNotFoundError(f"{folder}: object {obj_id} has no mesh, expected {path.name}; there is {some(there)}")
    return path


# --- Datasets ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Annotation:
    """One object in one image, as annotated."""

    obj_id: int
    cam_T_obj: np.ndarray
    """4×4, metres."""
    visible_fraction: float | None
    """Share of its silhouette that is seen; None where there is no scene_gt_info.json."""


@dataclass(frozen=True)
class Frame:
    """One image of a scene; its pixels are read when asked for."""

    scene_dir: Path
    scene_id: int
    im_id: int
    K: np.ndarray
    """3×3."""
    depth_scale: float | None
    """What a depth image's values have to be multiplied by to give millimetres."""
    annotations: tuple[Annotation, ...] | None
    """None where the scene has no labels."""

    @property
    def image_path(self) -> Path:
        """The colour image, or the grey one of a scene without colour; FileNotFoundError if there is neither."""
        return self._find("rgb", "gray")

    @property
    def has_depth(self) -> bool:
        """Whether its scene has depth images."""
        return (self.scene_dir / "depth").is_dir()

    def read_image(self) -> np.ndarray:
        """H×W×3 uint8 RGB."""
        return read_image(self.image_path)

    def read_depth(self) -> np.ndarray:
        """H×W float32 in metres, 0 where nothing was measured."""
        path = self._find("depth")
        if self.depth_scale is None:
            raise ValueError(
                f"{self.scene_dir / 'scene_camera.json'}, image {self.im_id}: no depth_scale, but there is {path}; "
                "add the number of millimetres per unit of the depth image"
            )
        return (read_gray(path) * (self.depth_scale * M_PER_MM)).astype(np.float32)

    def read_mask(self, index: int) -> np.ndarray:
        """H×W bool: where annotation `index` would be seen without occluders."""
        return read_gray(self._find("mask", index=index)) > 0

    def read_visible_mask(self, index: int) -> np.ndarray:
        """H×W bool: where annotation `index` is seen."""
        return read_gray(self._find("mask_visib", index=index)) > 0

    def _find(self, *folders: str, index: int | None = None) -> Path:
        stem = f"{self.im_id:06d}" if index is None else f"{self.im_id:06d}_{index:06d}"
        for folder in folders:
            for suffix in (".png", ".jpg", ".tif", ".jpeg", ".tiff"):
                path = self.scene_dir / folder / (stem + suffix)
                if path.is_file():
                    return path
        raise FileNotFoundError(
            f"{self.scene_dir}: image {self.im_id} is missing, expected {' or '.join(folders)}/{stem}.png, .jpg or .tif"
        )


class BopDataset:
    """One split of a dataset in BOP's layout: a sequence of frames, scene by scene.

    A scene's JSON files are read, and checked, when its first frame is asked for.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root = Path(root)
        self.split = split
        folder = self.root / split
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: no such dataset folder")
        if not folder.is_dir():
            splits = sorted({path.parent.parent.name for path in self.root.glob("*/*/scene_camera.json")})
            raise FileNotFoundError(f"{self.root}: no split '{split}'; there is {some(splits)}")
        self._scene_dirs = {int(p.name): p for p in sorted(folder.iterdir()) if p.is_dir() and p.name.isdecimal()}
        if not self._scene_dirs:
            raise ValueError(f"{folder}: the split is empty, expected scene folders such as 000001/")
        self._scenes: dict[int, dict[int, Frame]] = {}

    @property
    def scene_ids(self) -> list[int]:
        """Ids of the scenes, ascending."""
        return list(self._scene_dirs)

    def scene(self, scene_id: int) -> Mapping[int, Frame]:
        """Give the frames of one scene by their image ids, in the order of scene_camera.json."""
        if scene_id not in self._scenes:
            if scene_id not in self._scene_dirs:
                raise ValueError(f"{self.root / self.split}: no scene {scene_id}; there is {some(self._scene_dirs)}")
            self._scenes[scene_id] = _read_scene(scene_id, self._scene_dirs[scene_id])
        return self._scenes[scene_id]

    def frame(self, scene_id: int, im_id: int) -> Frame:
        """Give one image's frame; ValueError if there is none."""
        frames = self.scene(scene_id)
        if im_id not in frames:
            path = self._scene_dirs[scene_id] / "scene_camera.json"
            raise ValueError(f"{path}: no entry for image {im_id}; it has images {some(frames)}")
        return frames[im_id]

    @cached_property
    def keys(self) -> list[tuple[int, int]]:
        """Scene and image id of every frame."""
        return [(scene_id, im_id) for scene_id in self.scene_ids for im_id in self.scene(scene_id)]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Frame:
        return self.frame(*self.keys[index])

    def __iter__(self) -> Iterator[Frame]:
        for scene_id in self.scene_ids:
            yield from self.scene(scene_id).values()

    @property
    def models_eval_dir(self) -> Path:
        """Folder of the CAD models that errors are measured on; BOP simplifies them for that."""
        for folder in (self.root / "models_eval", self.root / "models"):
            if (folder / "models_info.json").is_file():
                return folder
        raise FileNotFoundError(f"{self.root}: no CAD models, expected models_eval/models_info.json")


def _read_scene(scene_id: int, folder: Path) -> dict[int, Frame]:
    camera_path, gt_path, info_path = (folder / f"scene_{name}.json" for name in ("camera", "gt", "gt_info"))
    cameras = mapping(read_json(camera_path), camera_path)
    if not cameras:
        raise ValueError(f"{camera_path}: the scene has no images")
    labels = mapping(read_json(gt_path), gt_path) if gt_path.is_file() else None
    infos = mapping(read_json(info_path), info_path) if info_path.is_file() else None
    frames = {}
    for key, entry in cameras.items():
        im_id = integer(key, camera_path, "image id")
        where = f"{camera_path}, image {key}"
        annotations = None
        if labels is not None:
            fractions = _visible_fractions(infos, info_path, key, len(labels.get(key, ())))
            annotations = tuple(
                _annotation(label, fraction, f"{gt_path}, image {key}, entry {i}")
                for i, (label, fraction) in enumerate(zip(labels.get(key, ()), fractions, strict=True))
            )
        K = _read_intrinsics(entry, where)
        frames[im_id] = Frame(folder, scene_id, im_id, K, _depth_scale(entry, where), annotations)
    return frames


def _visible_fractions(infos: Mapping | None, path: Path, key: str, num: int) -> Sequence[float | None]:
    if infos is None:
        return [None] * num
    entries = infos.get(key, ())
    if len(entries) != num:
        raise ValueError(f"{path}, image {key}: has {len(entries)} entries, expected {num} as in scene_gt.json")
    return [number(entry, "visib_fract", f"{path}, image {key}, entry {i}") for i, entry in enumerate(entries)]


def _annotation(label: Any, fraction: float | None, where: str) -> Annotation:
    fields = mapping(label, where)
    cam_T_obj = pose_in_metres(fields.get("cam_R_m2c"), fields.get("cam_t_m2c"), where, ("cam_R_m2c", "cam_t_m2c"))
    return Annotation(integer(fields.get("obj_id"), where, "obj_id"), cam_T_obj, fraction)


def _read_intrinsics(entry: Any, where: str) -> np.ndarray:
    return _checked_intrinsics(numbers(mapping(entry, where).get("cam_K"), 9, where, "cam_K").reshape(3, 3), where)


def _depth_scale(entry: Mapping[str, Any], where: object) -> float | None:
    return number(entry, "depth_scale", where) if "depth_scale" in entry else None


def _checked_intrinsics(K: np.ndarray, where: str) -> np.ndarray:
    if not np.array_equal(K[2], [0, 0, 1]) or K[0, 0] <= 0 or K[1, 1] <= 0:
        raise ValueError(f"{where}: got K = {K.tolist()}, expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]], row by row")
    return K


def pose_in_metres(R: Any, t_mm: Any, where: str, fields: tuple[str, str]) -> np.ndarray:
    """Check and convert a rotation, row by row, and a translation in millimetres, from two ``fields`` of ``where``."""
    cam_T_obj = np.eye(4)
    rotation = cam_T_obj[:3, :3] = numbers(R, 9, where, fields[0]).reshape(3, 3)
    cam_T_obj[:3, 3] = numbers(t_mm, 3, where, fields[1]) * M_PER_MM
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > MAX_ORTHONORMALITY_ERROR or np.linalg.det(rotation) < 0:
        raise ValueError(
            f"{where}: {fields[0]} is no rotation: {rotation.round(4).tolist()}; expected 3 orthonormal rows, one "
            "after the other, with determinant 1"
        )
    return cam_T_obj
