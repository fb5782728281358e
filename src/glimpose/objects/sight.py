"""What two networks see of photographs: objects in the whole of one, and each of them close up."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from glimpose.data.images import warp
from glimpose.decode.hough import find_centers, translation_from_center
from glimpose.nets.glance_gaze import GlanceGaze
from glimpose.nets.mtgoe import STRIDE
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.crops import (
    camera_roll_rad,
    crop_matrix,
    focal_px,
    gaze_reference_depth_m,
    glance_matrix,
    glance_reference_depth_m,
)
from glimpose.objects.evidence import decode_gaze
from glimpose.objects.looks import Detection, Look

MOST_AT_ONCE = 32
"""Crops that the gaze sees at once: more take more memory, and no less time each."""


class Sight:
    """Networks, and what it takes to show them photographs."""

    def __init__(
        self, model: GlanceGaze, objects: Sequence[ObjectModel], max_detections: int = 48, min_votes: float = 0.3
    ) -> None:
        """As `EstimatorConfig` has it: how many detections the glance may give, and what votes each needs."""
        self.model = model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objects = list(objects)
        self.max_detections, self.min_votes = max_detections, min_votes

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def glance(self, image: np.ndarray, K: np.ndarray) -> list[Detection]:
        """Find objects in the whole photograph, which is shown upright where ``K`` rolls the camera."""
        maps, out_A_img = self._glance_maps(image, camera_roll_rad(K))
        prob = maps["class_logits"].softmax(1)[:, 1:]
        centers = find_centers(
            maps["center_offset"],
            maps["center_log_depth"][:, 0],
            maps["center_log_std"][:, 0].exp(),
            prob,
            STRIDE,
            max_instances=self.max_detections,
            min_votes=self.min_votes,
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
        return detections

    @torch.inference_mode()
    def class_probabilities(self, image: np.ndarray) -> np.ndarray:
        """Of each cell of the glance, that it shows no known object, and that it shows each: (1+n)×rows×columns."""
        maps, _ = self._glance_maps(image)
        return maps["class_logits"].softmax(1)[0].cpu().numpy()

    @torch.inference_mode()
    def promising(
        self, image: np.ndarray, K: np.ndarray, detections: Sequence[Detection], min_probability: float
    ) -> list[Detection]:
        """Those of some detections in whose middle half the glance gives a cell or more that probability to show them.

        It knows more of classes than of centres: an object that is hardly seen may be likely without being detected.
        """
        maps, out_A_img = self._glance_maps(image, camera_roll_rad(K))
        prob = maps["class_logits"].softmax(1)[0, 1:].cpu().numpy()
        kept = []
        for detection in detections:
            center = (out_A_img @ np.array([*detection.center_px, 1.0]))[:2] / STRIDE
            reach = self._side_px(detection, out_A_img @ K) / 4 / STRIDE
            left, top = np.maximum(center - reach, 0).astype(int)
            right, bottom = np.maximum(center + reach + 1, 0).astype(int)
            if prob[detection.object_index, top:bottom, left:right].max(initial=0.0) >= min_probability:
                kept.append(detection)
        return kept

    def _side_px(self, detection: Detection, K: np.ndarray) -> float:
        """Side of what the gaze sees of a detection, in pixels of the picture that a camera with that ``K`` takes."""
        side_m = self.objects[detection.object_index].diameter_m * self.model.config.crop_pad
        return side_m * focal_px(K) / detection.depth_m

    def _glance_maps(self, image: np.ndarray, roll_rad: float = 0.0) -> tuple[dict[str, Tensor], np.ndarray]:
        """Maps of the whole photograph, turned back by a roll, and out_A_img of the picture that the network sees."""
        rows, columns = image.shape[:2]
        out_A_img, height, width = glance_matrix(rows, columns, self.model.config.glance_scale, roll_rad)
        return self.model.glance_maps(self._batch([warp(image, out_A_img, height, width)])), out_A_img

    @torch.inference_mode()
    def gaze(self, image: np.ndarray, K: np.ndarray, detections: Sequence[Detection]) -> list[Look]:
        """Look at each of some detections close up, upright where ``K`` rolls the camera."""
        if len(detections) > MOST_AT_ONCE:
            parts = range(0, len(detections), MOST_AT_ONCE)
            return [look for i in parts for look in self.gaze(image, K, detections[i : i + MOST_AT_ONCE])]
        if not detections:
            return []
        config = self.model.config
        models = [self.objects[detection.object_index] for detection in detections]
        crops, cameras = [], []
        for detection in detections:
            turn_rad = detection.turn_rad - camera_roll_rad(K)
            out_A_img = crop_matrix(detection.center_px, self._side_px(detection, K), config.crop_px, turn_rad)
            crops.append(warp(image, out_A_img, config.crop_px, config.crop_px))
            cameras.append(out_A_img @ K)
        object_index = torch.tensor([d.object_index for d in detections], device=self.device)
        views = decode_gaze(self.model.gaze_maps(self._batch(crops), object_index))
        looks = []
        for i, (detection, model, crop, K_crop) in enumerate(zip(detections, models, crops, cameras, strict=True)):
            reference_m = gaze_reference_depth_m(K_crop, model.diameter_m, config)
            K_out = torch.from_numpy(K_crop)
            t_m = translation_from_center(views.center_px[i], reference_m * views.center_log_depth[i].exp(), K_out)
            looks.append(Look(detection, model, crop, K_out, views, i, reference_m, t_m))
        return looks

    def _batch(self, images: Sequence[np.ndarray]) -> Tensor:
        stacked = torch.from_numpy(np.stack(images)).to(self.device)
        return (stacked.permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)
