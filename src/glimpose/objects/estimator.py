"""From a photograph and a camera to the poses of all objects in it: glance, gaze, vote, solve."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from glimpose.config import from_dict
from glimpose.data.images import warp
from glimpose.decode.hough import find_centers, translation_from_center
from glimpose.geometry.pnp import fuse_translation
from glimpose.nets.glance_gaze import GlanceGaze, GlanceGazeConfig
from glimpose.nets.mtgoe import STRIDE
from glimpose.objects.agreement import UNCALIBRATED, Confidence, agree
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.crops import (
    camera_roll_rad,
    crop_matrix,
    focal_px,
    frame_object,
    gaze_reference_depth_m,
    glance_matrix,
    glance_reference_depth_m,
)
from glimpose.objects.equations import NormalEquations, rolled
from glimpose.objects.evidence import Evidence, decode_gaze
from glimpose.objects.looks import Detection, Look, PoseEstimate, solve_from_coordinates, solve_from_keypoints
from glimpose.objects.search import PoseSearch
from glimpose.objects.standing import (
    ASKEW_RAD,
    STANDS_ANEW,
    Standing,
    StandingPose,
    Support,
    find_support,
    level,
    move_together,
    settle,
    unbiased,
)
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
    max_detections: int = 48
    """The glance may be wrong as often as it likes: the gaze sorts its detections out."""
    min_votes: float = 0.3
    """That the glance needs for a detection."""
    min_certainty: float = 0.3
    """Of the gaze, for a pose to be solved at all."""
    instances_per_object: int | None = None
    """Keep only this many of the best per object; all when not given."""
    candidates_per_instance: int = 4
    """So many times as many are looked at again and solved, when that is given."""
    same_instance: float = 0.25
    """Of two estimates of one object nearer to each other than this, in diameters, the surer stays."""
    looks_around: int = 8
    """At each pose that the search finds, by which it's moved once more: what a crop's place and size do to edges
    averages out (docs/lab-book.md, 54). In pairs, so even; 0 for none."""
    level_rad: float = ASKEW_RAD
    """Where the support says that the camera was rolled by more, the search begins anew, with an upright picture."""
    stand_together: bool = True
    """Move poses that the search finds so that objects stand on one support, where it's known how they stand."""

    def __post_init__(self) -> None:
        if self.looks_around < 0 or self.looks_around % 2:
            raise ValueError(f"looks_around: got {self.looks_around}, expected an even number, or 0")


Entry = TypeVar("Entry", Look, PoseEstimate)


class PoseEstimator:
    """A trained pair of networks and the geometry that turns its maps into poses."""

    def __init__(
        self,
        model: GlanceGaze,
        objects: Sequence[ObjectModel],
        config: EstimatorConfig | None = None,
        search: PoseSearch | None = None,
        confidence: Confidence = UNCALIBRATED,
        standings: Sequence[Standing] = (),
    ) -> None:
        self.model = model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objects = list(objects)
        self.config = config or EstimatorConfig()
        self.search = search
        """Solves instead of PnP where there is one."""
        self.confidence = confidence
        """In what the search finds."""
        self.standings = list(standings)
        """How each object stands; none where nothing is known of it."""

    @classmethod
    def from_checkpoint(
        cls,
        path: Path,
        config: EstimatorConfig | None = None,
        device: str = "cpu",
        confidence: Confidence | None = None,
    ) -> "PoseEstimator":
        """Load what `glimpose train` wrote, with its own confidence where none is given; nothing is unpickled."""
        checkpoint = load_checkpoint(path)
        if checkpoint.metadata.get("kind") != "objects":
            raise ValueError(f"{path}: a checkpoint of {checkpoint.metadata.get('kind')!r}, expected one of 'objects'")
        network = from_dict(GlanceGazeConfig, checkpoint.metadata["network"], where=f"{path}, network")
        objects = [ObjectModel.from_json(entry) for entry in checkpoint.metadata["objects"]]
        if confidence is None and "confidence" in checkpoint.metadata:
            confidence = from_dict(Confidence, checkpoint.metadata["confidence"], where=f"{path}, confidence")
        standings = [
            from_dict(Standing, entry, where=f"{path}, standings") for entry in checkpoint.metadata.get("standings", ())
        ]
        model = GlanceGaze(network, len(objects))
        load_weights(model, checkpoint.group("model"), path)
        return cls(model.to(device), objects, config, confidence=confidence or UNCALIBRATED, standings=standings)

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
        """Estimate the poses of objects already detected, best first; those without a pose are left out.

        Where the search finds that the camera is rolled, what an upright glance detects counts, too.
        """
        poses = self._found(image, K, detections)
        if self.search is None:
            return self._distinct(poses, self.config.instances_per_object)
        support = self._support(poses)
        cam_R_level = level(support, self.config.level_rad)
        if camera_roll_rad(cam_R_level):
            # Upright objects are known best: again, for a camera rolled until they are.
            K = K @ cam_R_level
            poses = self._found(image, K, [*detections, *self.glance(image, K)])
            support = self._support(poses)
        if not self.config.stand_together:
            support = None  # it has told which way is up
        poses = self._distinct(self._doubted(poses, support), self.config.instances_per_object)
        poses = self._refined(image, K, poses, by_edges=support is not None)
        return sorted((pose.rolled(cam_R_level) for pose in poses), key=lambda pose: -pose.score)

    @torch.inference_mode()
    def refine(self, image: np.ndarray, K: np.ndarray, poses: Sequence[tuple[int, np.ndarray]]) -> list[PoseEstimate]:
        """Move objects from about where they are, by index and pose, to where this photograph shows them; in order.

        Needs ``search``, which draws them; raises ValueError without.
        """
        given = self.verify(image, K, poses)
        support = self._support(given)
        cam_R_level = level(support, self.config.level_rad)
        if camera_roll_rad(cam_R_level):
            K = K @ cam_R_level
            given = self.verify(image, K, [(index, rolled(pose, cam_R_level.T)) for index, pose in poses])
            support = self._support(given)
        by_edges = self.config.stand_together and support is not None
        return [pose.rolled(cam_R_level) for pose in self._refined(image, K, given, by_edges)]

    def _refined(
        self, image: np.ndarray, K: np.ndarray, poses: Sequence[PoseEstimate], by_edges: bool
    ) -> list[PoseEstimate]:
        """Move poses to where all looks around see the objects, and then to where they stand together."""
        evidence = [[pose.look.evidence(), *self._looks_around(image, K, pose)] for pose in poses]
        moved = list(poses)
        if self.config.looks_around:
            # Edges tell exactly where, but how far away less well than maps do; then a support has to tell.
            moved = [self._moved(pose, own, by_edges) for pose, own in zip(moved, evidence, strict=True)]
        if self.config.stand_together:
            moved = self._stood(moved, self._support(moved), evidence)
        return moved

    def _found(self, image: np.ndarray, K: np.ndarray, detections: Sequence[Detection]) -> list[PoseEstimate]:
        """Look as often as configured, and solve for poses."""
        looks = self.gaze(image, K, detections)
        for _ in range(1, self.config.looks):
            looks = self.gaze(image, K, [look.aimed(K) for look in self._candidates(looks)])
        return [pose for look in self._candidates(looks) if (pose := self._solve(look)) is not None]

    @torch.inference_mode()
    def verify(self, image: np.ndarray, K: np.ndarray, poses: Sequence[tuple[int, np.ndarray]]) -> list[PoseEstimate]:
        """Look at objects where they are said to be, by index and pose, and tell how well each pose agrees.

        Needs ``search``, which draws them; raises ValueError without.
        """
        if self.search is None:
            raise ValueError("search: missing; poses that are given can't be drawn without a PoseSearch")
        looks = self.gaze(image, K, [Detection.at(index, cam_T_obj, K) for index, cam_T_obj in poses])
        return [self._judged(look, look.evidence(), pose) for look, (_, pose) in zip(looks, poses, strict=True)]

    def _candidates(self, looks: Sequence[Look]) -> list[Look]:
        """Choose what to look at again, and to solve: of each object what is most surely there."""
        most = self.config.instances_per_object
        most = None if most is None else most * self.config.candidates_per_instance
        return self._distinct([look for look in looks if look.certainty >= self.config.min_certainty], most)

    def _distinct(self, entries: Sequence[Entry], most: int | None) -> list[Entry]:
        """Give the best first, without seconds of the same object at the same place, and at most so many of each."""
        kept: list[Entry] = []
        for entry in sorted(entries, key=lambda entry: -entry.score):
            model = entry.model
            others = [other.place_m for other in kept if other.model.obj_id == model.obj_id]
            reach_m = self.config.same_instance * model.diameter_m
            is_new = all(np.linalg.norm(entry.place_m - other) > reach_m for other in others)
            if is_new and (most is None or len(others) < most):
                kept.append(entry)
        return kept

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
            max_instances=self.config.max_detections,
            min_votes=self.config.min_votes,
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

    def _glance_maps(self, image: np.ndarray, roll_rad: float = 0.0) -> tuple[dict[str, Tensor], np.ndarray]:
        """Maps of the whole photograph, turned back by a roll, and out_A_img of the picture that the network sees."""
        rows, columns = image.shape[:2]
        out_A_img, height, width = glance_matrix(rows, columns, self.model.config.glance_scale, roll_rad)
        return self.model.glance_maps(self._batch([warp(image, out_A_img, height, width)])), out_A_img

    def gaze(self, image: np.ndarray, K: np.ndarray, detections: Sequence[Detection]) -> list[Look]:
        """Look at each of some detections close up, upright where ``K`` rolls the camera."""
        if not detections:
            return []
        config = self.model.config
        models = [self.objects[detection.object_index] for detection in detections]
        crops, cameras = [], []
        for model, detection in zip(models, detections, strict=True):
            side_px = model.diameter_m * config.crop_pad * focal_px(K) / detection.depth_m
            out_A_img = crop_matrix(
                detection.center_px, side_px, config.crop_px, detection.turn_rad - camera_roll_rad(K)
            )
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

    def _solve(self, look: Look) -> PoseEstimate | None:
        """Solve for one object's pose."""
        model, views, i = look.model, look.views, look.index
        if self.config.correspondences == "keypoints":
            solved = solve_from_keypoints(views, i, model, look.K)
        else:
            solved = solve_from_coordinates(views, i, model, look.K, float(look.t_m[2]))
        fused = None
        if solved.cam_T_obj is not None:
            assert solved.covariance is not None
            covariance_t = self._voted_covariance(look.t_m, model.diameter_m)
            fused = fuse_translation(solved.cam_T_obj, solved.covariance, look.t_m, covariance_t).numpy()
        if self.search is not None:
            evidence = look.evidence()
            found = self.search(model, evidence, fused)
            return None if found is None else self._judged(look, evidence, found)
        if solved.cam_T_obj is None or fused is None:
            logger.debug("object %d: no pose: %s", model.obj_id, solved.reason)
            return None
        disagreement = float((solved.cam_T_obj[:3, 3] - look.t_m).norm()) / model.diameter_m
        # Without the glance's score: what looks right close up is right more often than what the glance finds first.
        score = look.certainty * float(solved.inliers.double().mean()) * math.exp(-3 * disagreement)
        return PoseEstimate(model, fused, score, look, disagreement)

    def _looks_around(self, image: np.ndarray, K: np.ndarray, pose: PoseEstimate) -> list[Evidence]:
        """Look at an object several times, aimed a little beside."""
        at = Detection.at(pose.look.detection.object_index, pose.cam_T_obj, K)
        _, side_px = frame_object(pose.cam_T_obj, K, pose.model.diameter_m, self.model.config.crop_pad)
        beside = at.beside(side_px, self.config.looks_around)
        return [look.evidence() for look in self.gaze(image, K, beside)]

    def _moved(self, pose: PoseEstimate, evidence: Sequence[Evidence], by_edges: bool) -> PoseEstimate:
        """Move an object to where all looks together see it."""
        assert self.search is not None
        moved = self.search.move(pose.model, pose.cam_T_obj, evidence, by_edges)
        return self._judged(pose.look, evidence[0], moved)

    def level(self, poses: Sequence[PoseEstimate]) -> np.ndarray:
        """cam_R_level, 3×3, from a camera rolled until objects stand upright in its picture, to the one at hand.

        The identity where that's hardly rolled, or where too few of one photograph's poses agree on a support.
        """
        return level(self._support(poses), self.config.level_rad)

    def _support(self, poses: Sequence[PoseEstimate]) -> Support | None:
        """Find what most of them stand on, the surest of each object; None where too few agree."""
        surest = self._distinct(poses, self.config.instances_per_object)
        return find_support([self._standing(pose) for pose in surest])

    def _doubted(self, poses: Sequence[PoseEstimate], support: Support | None) -> list[PoseEstimate]:
        """Believe less what doesn't stand where the others do."""
        if support is None:
            return list(poses)
        return [_believed(pose, settle(self._standing(pose), support)[1]) for pose in poses]

    def _stood(
        self, poses: Sequence[PoseEstimate], support: Support | None, evidence: Sequence[Sequence[Evidence]]
    ) -> list[PoseEstimate]:
        """Move all objects to where they stand together and all looks see them, and judge them there."""
        if support is None:
            return list(poses)
        free = [self._standing(pose) for pose in poses]
        search = self.search
        assert search is not None

        def pull(i: int, cam_T_obj: np.ndarray, trust_px: float) -> NormalEquations:
            return search.pull_all(poses[i].model, cam_T_obj, evidence[i], trust_px, by_edges=True)

        return [
            _believed(self._judged(pose.look, own[0], cam_T_obj), belief)
            for pose, own, (cam_T_obj, belief) in zip(poses, evidence, move_together(free, support, pull), strict=True)
        ]

    def _standing(self, pose: PoseEstimate) -> StandingPose:
        standing = self.standings[pose.look.detection.object_index] if self.standings else Standing()
        return unbiased(StandingPose(pose.model, standing, pose.cam_T_obj, pose.score))

    def _judged(self, look: Look, evidence: Evidence, cam_T_obj: np.ndarray) -> PoseEstimate:
        """Draw the object at a pose and compare."""
        assert self.search is not None
        agreement = agree(look.model, cam_T_obj, evidence, self.search.draw(look.model, cam_T_obj, evidence))
        disagreement = float(np.linalg.norm(cam_T_obj[:3, 3] - look.place_m)) / look.model.diameter_m
        return PoseEstimate(look.model, cam_T_obj, self.confidence(agreement), look, disagreement, agreement)

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


def _believed(pose: PoseEstimate, belief: float) -> PoseEstimate:
    return replace(pose, score=pose.score * (STANDS_ANEW + (1 - STANDS_ANEW) * belief))
