"""What the gaze says of crops: maps turned into points by voting, and what searching and judging poses needs."""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from torch import Tensor

from glimpose.decode.hough import aggregate_votes
from glimpose.geometry.camera import pixel_grid
from glimpose.nets.mtgoe import STRIDE
from glimpose.objects.edges import SHARP_PX, EdgeMap


@dataclass(frozen=True)
class Evidence:
    """What the gaze says of one crop, as arrays over its n = rows × columns cells."""

    visible: np.ndarray
    """Probability that the cell shows the object."""
    amodal: np.ndarray
    """Probability that it would, if nothing stood in front."""
    xyz: np.ndarray
    """n×3, object radii, canonical frame."""
    xyz_std: np.ndarray
    depth_m: np.ndarray
    """n."""
    crop: np.ndarray
    """The picture itself, h×w×3 uint8 RGB."""
    K: np.ndarray
    """Of the crop."""
    t_m: np.ndarray
    """Voted translation."""

    @property
    def cells(self) -> int:
        """Rows, and columns."""
        return round(len(self.visible) ** 0.5)

    @property
    def log_odds(self) -> np.ndarray:
        """Of the amodal mask, n."""
        return np.log((self.amodal + 0.02) / (1.02 - self.amodal))

    @cached_property
    def masks_px(self) -> tuple[np.ndarray, np.ndarray]:
        """Log odds of the amodal mask, and the visible mask, enlarged to the crop's pixels."""
        cells, size = self.cells, self.cells * STRIDE
        log_odds, visible = (
            cv2.resize(mask.reshape(cells, cells).astype(np.float32), (size, size))
            for mask in (self.log_odds, self.visible)
        )
        return log_odds, visible

    @cached_property
    def edges(self) -> EdgeMap:
        """The picture's own."""
        return EdgeMap.of(self.crop, self.K, SHARP_PX)


@dataclass(frozen=True)
class GazeViews:
    """What the gaze's maps say about b crops, in pixels of the crops; double precision, on the CPU."""

    visible: Tensor
    """b×n probability that each cell shows the object."""
    amodal: Tensor
    """b×n probability that it would, if nothing stood in front."""
    cells_px: Tensor
    """n×2 centres of the cells."""
    xyz: Tensor
    """b×n×3 object coordinates in object radii."""
    xyz_std: Tensor
    """b×n, object radii."""
    center_px: Tensor
    """b×2."""
    center_log_depth: Tensor
    """b, relative to the crop's reference depth."""
    keypoints_px: Tensor
    """b×k×2."""
    keypoints_covariance: Tensor
    """b×k×2×2."""
    certainty: Tensor
    """b: mean probability of the cells that show the object, each counted by that probability."""

    log_depth: Tensor
    """b×n, of the surface, relative to the crop's reference depth."""

    def evidence(self, i: int, crop: np.ndarray, K: np.ndarray, t_m: Tensor, reference_m: float) -> Evidence:
        """Crop i's maps, as searching and judging poses takes them."""
        return Evidence(
            visible=self.visible[i].numpy(),
            amodal=torch.maximum(self.amodal[i], self.visible[i]).numpy(),
            xyz=self.xyz[i].numpy(),
            xyz_std=self.xyz_std[i].numpy(),
            depth_m=reference_m * self.log_depth[i].exp().numpy(),
            crop=crop,
            K=K,
            t_m=t_m.numpy(),
        )


def decode_gaze(maps: dict[str, Tensor]) -> GazeViews:
    """Turn maps into points by voting."""
    maps = {name: value.double() for name, value in maps.items()}
    visible = torch.sigmoid(maps["visible_logits"][:, 0])
    height, width = visible.shape[-2:]
    cells = pixel_grid(height, width, STRIDE, visible.device).to(visible).flatten(0, 1)
    weight = visible.flatten(1)
    offsets = torch.cat([maps["center_offset"], maps["keypoint_offset"]], 1).unflatten(1, (-1, 2))
    votes = cells[:, None] + offsets.flatten(3).permute(0, 3, 1, 2)  # b×n×(1+k)×2
    std = torch.cat([maps["center_log_std"], maps["keypoint_log_std"]], 1).exp().flatten(2).mT
    points = aggregate_votes(votes, std, weight)
    center_weight = weight / std[..., 0].square()
    log_depth = (maps["center_log_depth"].flatten(1) * center_weight).sum(1) / center_weight.sum(1).clamp(min=1e-9)
    return GazeViews(
        visible=weight.cpu(),
        amodal=torch.sigmoid(maps["amodal_logits"][:, 0]).flatten(1).cpu(),
        cells_px=cells.cpu(),
        xyz=maps["xyz"].flatten(2).mT.cpu(),
        xyz_std=maps["xyz_log_std"][:, 0].exp().flatten(1).cpu(),
        center_px=points.mean[:, 0].cpu(),
        center_log_depth=log_depth.cpu(),
        keypoints_px=points.mean[:, 1:].cpu(),
        keypoints_covariance=points.covariance[:, 1:].cpu(),
        log_depth=maps["log_depth"].flatten(1).cpu(),
        certainty=(weight.square().sum(1) / weight.sum(1).clamp(min=1e-9)).cpu(),
    )
