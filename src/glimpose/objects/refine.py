"""Refinement: draw the object at its pose, compare with the photograph, move the pose, and again.

pose ── draw ──┐
               ├─ flow refiner ── where each drawn point is ── PnP from the pose at hand ── better pose ─┐
photograph ────┘                                                                                        └─ again

The comparison is of two pictures, not of a picture with what was learned of an object, so one network serves all
objects. Flow from the drawing and PnP are after PFA (Hu et al., ECCV 2022), the loop is after DeepIM (Li et al., ECCV
2018).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from glimpose.config import from_dict
from glimpose.data.images import warp
from glimpose.geometry.camera import pixel_grid
from glimpose.geometry.pnp import fuse_translation, refine_pose
from glimpose.nets.flow_refiner import FlowRefiner, FlowRefinerConfig
from glimpose.nets.mtgoe import STRIDE
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.crops import central_mean, crop_matrix, frame_object
from glimpose.render.mesh import Mesh, simplify
from glimpose.render.scene import Instance, Renderer, make_renderer
from glimpose.training.checkpoint import load_checkpoint, load_weights

DRAWN_FACES = 2000
"""Of meshes, which are simplified to it: crops don't show more."""


@dataclass(frozen=True)
class RefinerConfig:
    """How often, and how much what is believed."""

    iterations: int = 4
    effective_cells: float = 20.0
    """How many independent measurements a crop's flow is worth: whole objects are shifted or turned too far."""
    depth_std: float = 0.02
    """Of the predicted distance, relative."""


@dataclass(frozen=True)
class Drawing:
    """An object drawn at a pose, as the refiner's network wants it."""

    channels: np.ndarray
    """6×h×w float32: albedo in 0..1 and normals; zero where there is nothing."""
    covers: np.ndarray
    """Cells whose centre shows the object."""
    xyz_m: np.ndarray
    """rows×columns×3: the surface points at the cells' centres, object frame."""


def draw(renderer: Renderer, mesh: Mesh, cam_T_obj: np.ndarray, K: np.ndarray, size_px: int) -> Drawing:
    """Draw one object in a square crop."""
    buffers = renderer.render([Instance(mesh, cam_T_obj)], K, size_px, size_px)
    covers, xyz_m = central_mean(buffers.xyz, buffers.mask > 0)
    channels = np.concatenate([buffers.albedo.astype(np.float32) / 255, buffers.normal.astype(np.float32)], 2)
    return Drawing(np.ascontiguousarray(channels.transpose(2, 0, 1)), covers, xyz_m)


@dataclass(frozen=True)
class Refinement:
    """A refined pose, and how well the photograph agrees with it."""

    cam_T_obj: np.ndarray
    flow_px: float
    """Mean length of the last comparison's flow where the object shows: 0 for a perfect pose."""
    overlap: float
    """Intersection over union of the photograph's mask and what should show of the drawing, 0..1."""


class PoseRefiner:
    """A trained refiner and the CAD models it draws."""

    def __init__(
        self,
        network: FlowRefiner,
        meshes: Mapping[int, Mesh],
        config: RefinerConfig | None = None,
        renderer: Renderer | None = None,
    ) -> None:
        self.network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.meshes = {obj_id: simplify(mesh, DRAWN_FACES) for obj_id, mesh in meshes.items()}
        self.config = config or RefinerConfig()
        self.renderer = renderer or make_renderer()

    @classmethod
    def from_checkpoint(
        cls, path: Path, meshes: Mapping[int, Mesh], config: RefinerConfig | None = None, device: str = "cpu"
    ) -> "PoseRefiner":
        """Load what training a refiner wrote; ``meshes`` by object id."""
        checkpoint = load_checkpoint(path)
        if checkpoint.metadata.get("kind") != "refiner":
            raise ValueError(f"{path}: a checkpoint of {checkpoint.metadata.get('kind')!r}, expected one of 'refiner'")
        network = FlowRefiner(from_dict(FlowRefinerConfig, checkpoint.metadata["network"], where=f"{path}, network"))
        load_weights(network, checkpoint.group("model"), path)
        return cls(network.to(device), meshes, config)

    @torch.inference_mode()
    def __call__(
        self, image: np.ndarray, K: np.ndarray, objects: Sequence[tuple[ObjectModel, np.ndarray]]
    ) -> list[Refinement]:
        """Refine the poses, cam_T_obj, of objects in an RGB photograph, H×W×3 uint8."""
        refined = [Refinement(pose, np.nan, np.nan) for _, pose in objects]
        for _ in range(self.config.iterations):
            if refined:
                refined = self._step(
                    image, K, [(model, r.cam_T_obj) for (model, _), r in zip(objects, refined, strict=True)]
                )
        return refined

    def _step(
        self, image: np.ndarray, K: np.ndarray, objects: Sequence[tuple[ObjectModel, np.ndarray]]
    ) -> list[Refinement]:
        config, device = self.network.config, next(self.network.parameters()).device
        size = config.crop_px
        crops, cameras, drawings = [], [], []
        for model, pose in objects:
            out_A_img = crop_matrix(*frame_object(pose, K, model.diameter_m, config.crop_pad), size)
            crops.append(warp(image, out_A_img, size, size))
            cameras.append(out_A_img @ K)
            drawings.append(draw(self.renderer, self.meshes[model.obj_id], pose, cameras[-1], size))
        photographs = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).to(device).float() / 255
        maps = self.network(photographs, torch.from_numpy(np.stack([d.channels for d in drawings])).to(device))
        maps = {name: value.double().cpu() for name, value in maps.items()}
        return [
            self._move(objects[i], {name: value[i] for name, value in maps.items()}, drawings[i], cameras[i])
            for i in range(len(objects))
        ]

    def _move(
        self, posed: tuple[ObjectModel, np.ndarray], maps: dict[str, Tensor], drawing: Drawing, K: np.ndarray
    ) -> Refinement:
        """Solve for the pose that the flow asks for."""
        model, cam_T_obj = posed
        covers = torch.from_numpy(drawing.covers)
        seen = torch.sigmoid(maps["seen_logits"][0]) * covers
        visible = torch.sigmoid(maps["visible_logits"][0])
        total = seen.sum()
        if total < 4:  # nothing to compare
            return Refinement(cam_T_obj, np.nan, 0.0)
        flow = maps["flow"].movedim(0, -1)
        rows, columns = drawing.covers.shape
        uv = pixel_grid(rows, columns, STRIDE).double() + flow
        information = seen / maps["flow_log_std"][0].exp().square()
        information = information * min(1.0, self.config.effective_cells / float(total))
        pose, covariance = refine_pose(
            torch.from_numpy(cam_T_obj),
            uv[covers],
            torch.from_numpy(drawing.xyz_m).double()[covers],
            torch.from_numpy(K),
            information[covers][:, None, None] * torch.eye(2, dtype=torch.float64),
        )
        ratio = float(((maps["log_depth_ratio"][0] * seen).sum() / total).exp())
        if covariance.isfinite().all():
            # Flow tells direction and size; how far along the ray is also predicted by itself.
            expected = pose[:3, 3] / pose[2, 3] * cam_T_obj[2, 3] * ratio
            ray = expected / expected.norm()
            along, across = self.config.depth_std * expected.norm(), model.diameter_m
            covariance_t = across**2 * torch.eye(3, dtype=torch.float64) + (along**2 - across**2) * torch.outer(
                ray, ray
            )
            pose = fuse_translation(pose, covariance, expected, covariance_t)
        overlap = torch.minimum(seen, visible).sum() / torch.maximum(seen, visible).sum().clamp(min=1e-9)
        return Refinement(pose.numpy(), float((flow.norm(dim=-1) * seen).sum() / total), float(overlap))
