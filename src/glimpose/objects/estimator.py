"""From a photograph and a camera to the poses of all objects in it: glance, gaze, vote, solve."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from glimpose.config import from_dict
from glimpose.decode.hough import aggregate_votes, find_centers, translation_from_center
from glimpose.geometry.camera import pixel_grid
from glimpose.geometry.pnp import PnPResult, fuse_translation, solve_pnp
from glimpose.nets.glance_gaze import GlanceGaze, GlanceGazeConfig
from glimpose.nets.mtgoe import STRIDE
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.crops import (
    crop_matrix,
    focal_px,
    gaze_reference_depth_m,
    glance_matrix,
    glance_reference_depth_m,
    warp,
)
from glimpose.objects.search import Evidence, PoseSearch
from glimpose.training.checkpoint import load_checkpoint, load_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EstimatorConfig:
    """How maps become poses."""

    correspondences: Literal["keypoints", "coordinates"] = "coordinates"
    """What the pose is solved from: voted keypoints, or every cell's object coordinate."""
    looks: int = 2
    """How often each object is gazed at; every look after the first is aimed by the centre and depth voted before."""
    depth_std: float = 0.03
    """Of the voted distance, relative. It's voted for by all cells; the distance from PnP is the scale of a blurred
    field of points, which comes out too large, and is three times as far off (docs/lab-book.md)."""
    center_std: float = 0.02
    """Of the voted centre, in diameters."""
    max_instances: int = 16
    min_score: float = 0.05
    """Detections below this are not looked at."""
    instances_per_object: int | None = None
    """Keep only this many of the best per object; all when not given."""


@dataclass(frozen=True)
class Detection:
    """Where the glance saw an object."""

    object_index: int
    center_px: np.ndarray
    depth_m: float
    score: float


@dataclass(frozen=True)
class PoseEstimate:
    """One object found in a photograph."""

    model: ObjectModel
    cam_T_obj: np.ndarray
    score: float
    """0..1; higher is surer."""
    detection: Detection
    disagreement: float
    """Distance between the solved translation and the one from voted centre and depth, in diameters."""


class PoseEstimator:
    """A trained pair of networks and the geometry that turns its maps into poses."""

    def __init__(
        self,
        model: GlanceGaze,
        objects: Sequence[ObjectModel],
        config: EstimatorConfig | None = None,
        search: PoseSearch | None = None,
    ) -> None:
        self.model = model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objects = list(objects)
        self.config = config or EstimatorConfig()
        self.search = search
        """Solves instead of PnP where there is one."""

    @classmethod
    def from_checkpoint(cls, path: Path, config: EstimatorConfig | None = None, device: str = "cpu") -> "PoseEstimator":
        """Load what `glimpose train` wrote; nothing is unpickled."""
        checkpoint = load_checkpoint(path)
        if checkpoint.metadata.get("kind") != "objects":
            raise ValueError(f"{path}: a checkpoint of {checkpoint.metadata.get('kind')!r}, expected one of 'objects'")
        network = from_dict(GlanceGazeConfig, checkpoint.metadata["network"], where=f"{path}, network")
        objects = [ObjectModel.from_json(entry) for entry in checkpoint.metadata["objects"]]
        model = GlanceGaze(network, len(objects))
        load_weights(model, checkpoint.group("model"), path)
        return cls(model.to(device), objects, config)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, K: np.ndarray) -> list[PoseEstimate]:
        """Estimate poses from an RGB photograph, H×W×3 uint8, best first."""
        return self.estimate(image, K, self.glance(image, K))

    @torch.inference_mode()
    def estimate(self, image: np.ndarray, K: np.ndarray, detections: Sequence[Detection]) -> list[PoseEstimate]:
        """Estimate the poses of objects already detected, best first; those without a pose are left out."""
        if not detections:
            return []
        for _ in range(1, self.config.looks):
            views, cameras = self.gaze(image, K, detections)
            detections = [
                replace(detection, center_px=(K @ t_m)[:2] / t_m[2], depth_m=float(t_m[2]))
                for i, detection in enumerate(detections)
                for t_m in [self._voted_translation(views, i, detection, cameras[i]).numpy()]
            ]
        views, cameras = self.gaze(image, K, detections)
        poses = [self._solve(views, i, detection, cameras[i]) for i, detection in enumerate(detections)]
        kept: list[PoseEstimate] = []
        for pose in sorted((pose for pose in poses if pose is not None), key=lambda pose: -pose.score):
            num_before = sum(other.model.obj_id == pose.model.obj_id for other in kept)
            if self.config.instances_per_object is None or num_before < self.config.instances_per_object:
                kept.append(pose)
        return kept

    def glance(self, image: np.ndarray, K: np.ndarray) -> list[Detection]:
        """Find objects in the whole photograph."""
        rows, columns = image.shape[:2]
        out_A_img, height, width = glance_matrix(rows, columns, self.model.config.glance_scale)
        maps = self.model.glance_maps(self._batch([warp(image, out_A_img, height, width)]))
        prob = maps["class_logits"].softmax(1)[:, 1:]
        centers = find_centers(
            maps["center_offset"],
            maps["center_log_depth"][:, 0],
            maps["center_log_std"][:, 0].exp(),
            prob,
            STRIDE,
            max_instances=self.config.max_instances,
        )
        reference_m = glance_reference_depth_m(out_A_img @ K)
        img_A_out = np.linalg.inv(out_A_img)
        detections = []
        for slot in torch.nonzero(centers.valid[0]).flatten().tolist():
            center = img_A_out @ np.array([*centers.center_px[0, slot].tolist(), 1.0])
            detections.append(
                Detection(
                    object_index=int(centers.class_index[0, slot]),
                    center_px=center[:2],
                    depth_m=reference_m * float(centers.log_depth[0, slot].exp()),
                    score=float(centers.score[0, slot]),
                )
            )
        return [detection for detection in detections if detection.score >= self.config.min_score]

    def gaze(
        self, image: np.ndarray, K: np.ndarray, detections: Sequence[Detection]
    ) -> tuple["GazeViews", list[np.ndarray]]:
        """Look at each of some detections close up; returns what was seen, and the crops' cameras."""
        crop_px = self.model.config.crop_px
        crops, cameras = [], []
        for detection in detections:
            model = self.objects[detection.object_index]
            side_px = model.diameter_m * self.model.config.crop_pad * focal_px(K) / detection.depth_m
            out_A_img = crop_matrix(detection.center_px, side_px, crop_px)
            crops.append(warp(image, out_A_img, crop_px, crop_px))
            cameras.append(out_A_img @ K)
        object_index = torch.tensor([d.object_index for d in detections], device=self.device)
        maps = self.model.gaze_maps(self._batch(crops), object_index)
        return decode_gaze(maps), cameras

    def _voted_translation(self, views: "GazeViews", i: int, detection: Detection, K_crop: np.ndarray) -> Tensor:
        """Where crop i's votes for centre and depth put the object, metres."""
        diameter_m = self.objects[detection.object_index].diameter_m
        reference_m = gaze_reference_depth_m(K_crop, diameter_m, self.model.config)
        depth_m = reference_m * views.center_log_depth[i].exp()
        return translation_from_center(views.center_px[i], depth_m, torch.from_numpy(K_crop))

    def _solve(self, views: "GazeViews", i: int, detection: Detection, K_crop: np.ndarray) -> PoseEstimate | None:
        """Solve one crop's pose, in the crop's camera, which is the photograph's with another K."""
        model = self.objects[detection.object_index]
        K = torch.from_numpy(K_crop)
        voted_t = self._voted_translation(views, i, detection, K_crop)
        if self.config.correspondences == "keypoints":
            solved = solve_from_keypoints(views, i, model, K)
        else:
            solved = solve_from_coordinates(views, i, model, K, float(voted_t[2]))
        fused = None
        if solved.cam_T_obj is not None:
            assert solved.covariance is not None
            covariance_t = self._voted_covariance(voted_t, model.diameter_m)
            fused = fuse_translation(solved.cam_T_obj, solved.covariance, voted_t, covariance_t).numpy()
        if self.search is not None:
            cam_T_obj, explained = self.search(model, views.evidence(i, K_crop, voted_t), fused)
            disagreement = float(np.linalg.norm(cam_T_obj[:3, 3] - voted_t.numpy())) / model.diameter_m
            agreement = math.exp(explained / 4)
        elif solved.cam_T_obj is not None and fused is not None:
            cam_T_obj = fused
            disagreement = float((solved.cam_T_obj[:3, 3] - voted_t).norm()) / model.diameter_m
            agreement = float(solved.inliers.double().mean()) * math.exp(-3 * disagreement)
        else:
            logger.debug("object %d: no pose: %s", model.obj_id, solved.reason)
            return None
        # Without the glance's score: what looks right close up is right more often than what the glance finds first.
        score = float(views.certainty[i]) * agreement
        return PoseEstimate(model, cam_T_obj, score, detection, disagreement)

    def _voted_covariance(self, voted_t: Tensor, diameter_m: float) -> Tensor:
        """How sure the translation from voted centre and depth is: an ellipsoid along the ray."""
        ray = voted_t / voted_t.norm()
        along = torch.outer(ray, ray)
        across = torch.eye(3).to(along) - along
        return (self.config.depth_std * voted_t.norm()) ** 2 * along + (
            self.config.center_std * diameter_m
        ) ** 2 * across

    def _batch(self, images: Sequence[np.ndarray]) -> Tensor:
        stacked = torch.from_numpy(np.stack(images)).to(self.device)
        return (stacked.permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)


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

    def evidence(self, i: int, K: np.ndarray, t_m: Tensor) -> Evidence:
        """Crop i's maps, as a search takes them."""
        return Evidence(
            visible=self.visible[i].numpy(),
            amodal=torch.maximum(self.amodal[i], self.visible[i]).numpy(),
            xyz=self.xyz[i].numpy(),
            xyz_std=self.xyz_std[i].numpy(),
            K=K,
            t_m=t_m.numpy(),
        )


def decode_gaze(maps: dict[str, Tensor]) -> GazeViews:
    """Turn maps into points by voting."""
    maps = {name: value.double() for name, value in maps.items()}
    visible = torch.sigmoid(maps["visible_logits"][:, 0])
    height, width = visible.shape[-2:]
    cells = pixel_grid(height, width, STRIDE).to(visible).flatten(0, 1)
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
        certainty=(weight.square().sum(1) / weight.sum(1).clamp(min=1e-9)).cpu(),
    )


def solve_from_keypoints(views: GazeViews, i: int, model: ObjectModel, K: Tensor) -> PnPResult:
    """Solve crop i's pose from its voted keypoints, each as sure as its votes agree."""
    keypoints = torch.from_numpy(model.keypoints_m)
    covariance = views.keypoints_covariance[i]
    return solve_pnp(views.keypoints_px[i], keypoints, K, covariance_uv=covariance, threshold_px=6.0)


def solve_from_coordinates(views: GazeViews, i: int, model: ObjectModel, K: Tensor, depth_m: float) -> PnPResult:
    """Solve crop i's pose from the object coordinate of every cell that shows the object."""
    shows = views.visible[i] > 0.5
    radius_m = model.diameter_m / 2
    # An error of a coordinate is an error in the image of this many pixels per radius, at the object's distance.
    px_per_radius = focal_px(K.numpy()) * radius_m / depth_m
    variance_px = (views.xyz_std[i, shows] * px_per_radius).square() + 0.25
    covariance = variance_px[:, None, None] * torch.eye(2, dtype=torch.float64)
    return solve_pnp(
        views.cells_px[shows], views.xyz[i, shows] * radius_m, K, covariance_uv=covariance, threshold_px=4.0
    )
