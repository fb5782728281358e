"""Writes datasets in BOP's layout: scenes frame by frame, models, and what belongs to them."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from glimpose.data.bop import M_PER_MM, ModelInfo
from glimpose.data.fields import json_lines
from glimpose.data.files import write_image, write_text
from glimpose.render.mesh import Mesh


class SceneWriter:
    """Writes one scene of a split; use it as a context manager.

    The scene's folder appears under its name, complete, when the block is left without an error; until then there is
    only a hidden one, and after an error nothing.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        scene_id: int,
        *,
        image_suffix: str = ".jpg",
        jpeg_quality: int = 95,
        depth_scale: float = 0.1,
    ) -> None:
        """Prepare scene `scene_id`; `depth_scale` is the number of millimetres per unit of the depth images."""
        self.folder = Path(root) / split / f"{scene_id:06d}"
        if self.folder.exists():
            raise ValueError(f"{self.folder}: exists already; remove it or write to another folder")
        self.image_suffix = image_suffix
        self.jpeg_quality = jpeg_quality
        self.depth_scale = depth_scale
        self._partial = self.folder.with_name(f".{self.folder.name}.partial")
        self._tables: dict[str, dict[int, Any]] = {"camera": {}, "gt": {}, "gt_info": {}}

    def __enter__(self) -> "SceneWriter":
        shutil.rmtree(self._partial, ignore_errors=True)
        for name in ("rgb", "depth", "mask", "mask_visib"):
            (self._partial / name).mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            for name, table in self._tables.items():
                write_text(self._partial / f"scene_{name}.json", json_lines(table))
            for name in ("depth", "mask", "mask_visib"):
                if not any((self._partial / name).iterdir()):
                    (self._partial / name).rmdir()
            self._partial.rename(self.folder)
        else:
            shutil.rmtree(self._partial)

    def add(
        self,
        image: np.ndarray,
        K: np.ndarray,
        obj_ids: Sequence[int],
        cam_T_objs: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        visible_masks: Sequence[np.ndarray],
        depth_m: np.ndarray | None = None,
        silhouettes_px: Sequence[int] | None = None,
    ) -> int:
        """Write one image (H×W×3 uint8 RGB) with its labels, and return its im_id.

        There is a pose and two H×W bool masks, amodal and visible, for each of obj_ids. `silhouettes_px` counts each
        object's pixels beyond the image's border too, for the visible fraction; by default those of the amodal mask.
        """
        im_id = len(self._tables["camera"])
        stem = f"{im_id:06d}"
        write_image(self._partial / "rgb" / (stem + self.image_suffix), image, self.jpeg_quality)
        camera: dict[str, Any] = {"cam_K": K.astype(float).ravel().tolist()}
        if depth_m is not None:
            units = np.rint(depth_m / (self.depth_scale * M_PER_MM))
            if units.max() > np.iinfo(np.uint16).max:
                raise ValueError(
                    f"depth of {depth_m.max():.3f} m doesn't fit into 16 bits at depth_scale {self.depth_scale}; "
                    "give a larger depth_scale"
                )
            write_image(self._partial / "depth" / f"{stem}.png", units.astype(np.uint16))
            camera["depth_scale"] = self.depth_scale
        labels, infos = [], []
        totals = silhouettes_px or [int(np.count_nonzero(mask)) for mask in masks]
        for i, (obj_id, cam_T_obj, mask, visible, total) in enumerate(
            zip(obj_ids, cam_T_objs, masks, visible_masks, totals, strict=True)
        ):
            for folder, shape in (("mask", mask), ("mask_visib", visible)):
                write_image(self._partial / folder / f"{stem}_{i:06d}.png", np.uint8(255) * shape)
            labels.append(
                {
                    "cam_R_m2c": cam_T_obj[:3, :3].astype(float).ravel().tolist(),
                    "cam_t_m2c": (cam_T_obj[:3, 3].astype(float) / M_PER_MM).tolist(),
                    "obj_id": int(obj_id),
                }
            )
            num_visible = int(np.count_nonzero(visible))
            infos.append(
                {
                    "bbox_obj": _bbox(mask),
                    "bbox_visib": _bbox(visible),
                    "px_count_all": int(total),
                    "px_count_valid": int(np.count_nonzero(mask if depth_m is None else depth_m[mask])),
                    "px_count_visib": num_visible,
                    "visib_fract": num_visible / total if total else 0.0,
                }
            )
        for name, entry in (("camera", camera), ("gt", labels), ("gt_info", infos)):
            self._tables[name][im_id] = entry
        return im_id


def write_models(folder: Path, meshes: Mapping[int, Mesh], infos: Mapping[int, ModelInfo]) -> None:
    """Write a folder of models: a PLY in millimetres for each object id, and models_info.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries = {}
    for obj_id, mesh in sorted(meshes.items()):
        _write_ply(folder / f"obj_{obj_id:06d}.ply", mesh)
        info = infos[obj_id]
        low, high = mesh.vertices.min(0) / M_PER_MM, mesh.vertices.max(0) / M_PER_MM
        entry: dict[str, Any] = {"diameter": info.diameter_m / M_PER_MM}
        entry |= {f"min_{axis}": float(value) for axis, value in zip("xyz", low, strict=True)}
        entry |= {f"size_{axis}": float(value) for axis, value in zip("xyz", high - low, strict=True)}
        if info.discrete:
            to_mm = np.array([[1, 1, 1, 1 / M_PER_MM]] * 3 + [[1, 1, 1, 1]])
            entry["symmetries_discrete"] = [(transform * to_mm).ravel().tolist() for transform in info.discrete]
        if info.continuous:
            entry["symmetries_continuous"] = [
                {"axis": axis.tolist(), "offset": (offset / M_PER_MM).tolist()} for axis, offset in info.continuous
            ]
        entries[obj_id] = entry
    write_text(folder / "models_info.json", json_lines(entries))


def _write_ply(path: Path, mesh: Mesh) -> None:
    """Binary PLY with normals and either vertex colours or, as BOP has it, a texture beside it."""
    columns = [(name, "<f4", mesh.vertices[:, i] / M_PER_MM) for i, name in enumerate(("x", "y", "z"))]
    columns += [(name, "<f4", mesh.normals[:, i]) for i, name in enumerate(("nx", "ny", "nz"))]
    columns += [(name, "u1", mesh.colors[:, i]) for i, name in enumerate(("red", "green", "blue"))]
    header = ["ply", "format binary_little_endian 1.0"]
    if mesh.texture is not None and mesh.uv is not None:
        write_image(path.with_suffix(".png"), mesh.texture)
        header.append(f"comment TextureFile {path.stem}.png")
        columns += [(name, "<f4", mesh.uv[:, i]) for i, name in enumerate(("texture_u", "texture_v"))]
    vertices = np.empty(len(mesh.vertices), dtype=[(name, kind) for name, kind, _ in columns])
    for name, _, values in columns:
        vertices[name] = values
    faces = np.empty(len(mesh.faces), dtype=[("num", "u1"), ("corners", "<i4", 3)])
    faces["num"], faces["corners"] = 3, mesh.faces
    header.append(f"element vertex {len(vertices)}")
    header += [f"property {'uchar' if kind == 'u1' else 'float'} {name}" for name, kind, _ in columns]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    path.write_bytes("\n".join(header).encode() + vertices.tobytes() + faces.tobytes())


def _bbox(mask: np.ndarray) -> list[int]:
    """Bounding box as BOP has it: left, top, and the distances to the last column and row; -1 of nothing."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    return [left, top, width - 1, height - 1] if width else [-1, -1, -1, -1]
