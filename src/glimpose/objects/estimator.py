"""From a photograph and a camera to the poses of all objects in it: glance, gaze, vote, solve."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from glimpose.config import from_dict
from glimpose.geometry.pnp import fuse_translation
from glimpose.nets.glance_gaze import GlanceGaze, GlanceGazeConfig
from glimpose.objects.agreement import UNCALIBRATED, Confidence, agree
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.crops import (
    camera_roll_rad,
    frame_object,
)
from glimpose.objects.equations import NormalEquations, rolled
from glimpose.objects.evidence import Evidence
from glimpose.objects.looks import Detection, Look, PoseEstimate, solve_from_coordinates, solve_from_keypoints
from glimpose.objects.search import PoseSearch
from glimpose.objects.sight import Sight
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
from glimpose.objects.sweep import sweep
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

    doubt: float = 0.3
    """Score below which poses are doubted: given how many there are of each object, those that are missing are looked
    for all over the support, and twice as many are looked at around (docs/lab-book.md, 83). With 0 nothing is."""
    sweep_step: float = 0.35
    """From one such place to the next, in crop sides."""
    glimpsed: float = 0.03
    """What the glance finds less likely to show an object isn't looked at for it; with 0 every place is."""

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
        self.config = config or EstimatorConfig()
        self.objects = list(objects)
        self.sight = Sight(model, objects, self.config.max_detections, self.config.min_votes)
        self.model = self.sight.model
        self.search = search
        """Solves instead of PnP where there is one."""
        self.confidence = confidence
        """In what the search finds."""
        self.standings = list(standings)
        """How each object stands; none where nothing is known of it."""

    @classmethod
    def from_checkpoint(
        cls,
        path: Path | str,
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

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, K: np.ndarray) -> list[PoseEstimate]:
        """Estimate poses from an RGB photograph, H×W×3 uint8, best first."""
        return self.estimate(image, K, self.sight.glance(image, K))

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
            poses = self._found(image, K, [*detections, *self.sight.glance(image, K)])
            support = self._support(poses)
        if not self.config.stand_together:
            support = None  # it has told which way is up
        poses = self._doubted(poses, support)
        poses += self._doubted(self._missed(image, K, poses, support), support)
        poses = [self._moved(image, K, pose, by_edges=support is not None) for pose in self._contenders(poses)]
        poses = self._stood(self._distinct(self._doubted(poses, support), self.config.instances_per_object))
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
        moved = [self._moved(image, K, pose, by_edges) for pose in given]
        return [pose.rolled(cam_R_level) for pose in self._stood(moved)]

    def _found(self, image: np.ndarray, K: np.ndarray, detections: Sequence[Detection]) -> list[PoseEstimate]:
        """Look as often as configured, and solve for poses."""
        looks = self.sight.gaze(image, K, detections)
        for _ in range(1, self.config.looks):
            looks = self.sight.gaze(image, K, [look.aimed(K) for look in self._candidates(looks)])
        return [pose for look in self._candidates(looks) if (pose := self._solve(look)) is not None]

    @torch.inference_mode()
    def verify(self, image: np.ndarray, K: np.ndarray, poses: Sequence[tuple[int, np.ndarray]]) -> list[PoseEstimate]:
        """Look at objects where they are said to be, by index and pose, and tell how well each pose agrees.

        Needs ``search``, which draws them; raises ValueError without.
        """
        if self.search is None:
            raise ValueError("search: missing; poses that are given can't be drawn without a PoseSearch")
        looks = self.sight.gaze(image, K, [Detection.at(index, cam_T_obj, K) for index, cam_T_obj in poses])
        return [self._judged(look, look.evidence(), pose) for look, (_, pose) in zip(looks, poses, strict=True)]

    def _missed(
        self, image: np.ndarray, K: np.ndarray, poses: Sequence[PoseEstimate], support: Support | None
    ) -> list[PoseEstimate]:
        """Look all over the support for objects of which too few are believed to be found."""
        config = self.config
        depths_m = [float(pose.place_m[2]) for pose in poses if pose.score >= config.doubt]
        if support is None or config.instances_per_object is None or not config.doubt or not depths_m:
            return []
        believed = self._num_believed(poses)
        found: list[PoseEstimate] = []
        for index, model in enumerate(self.objects):
            if believed[index] < config.instances_per_object:
                side_m = model.diameter_m * self.model.config.crop_pad
                within_m, step = (min(depths_m), max(depths_m)), config.sweep_step
                height_px, width_px = image.shape[:2]
                there = sweep(support, self.standings[index], K, (height_px, width_px), side_m, within_m, step)
                detections = [Detection(index, center_px, depth_m, 0.0) for center_px, depth_m in there]
                found += self._found(image, K, self.sight.promising(image, K, detections, config.glimpsed))
        return found

    def _num_believed(self, poses: Sequence[PoseEstimate]) -> Counter[int]:
        """How many poses aren't doubted, by the index of their object."""
        surest = self._distinct(poses, self.config.instances_per_object)
        return Counter(pose.look.detection.object_index for pose in surest if pose.score >= self.config.doubt)

    def _contenders(self, poses: Sequence[PoseEstimate]) -> list[PoseEstimate]:
        """The best of each object, and as many again where too few are believed: closer looks tell which they are."""
        most = self.config.instances_per_object
        if most is None:
            return self._distinct(poses, None)
        believed, kept = self._num_believed(poses), Counter[int]()
        contenders = []
        for pose in self._distinct(poses, 2 * most):
            index = pose.look.detection.object_index
            kept[index] += 1
            if kept[index] <= most or believed[index] < most:
                contenders.append(pose)
        return contenders

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

    def _moved(self, image: np.ndarray, K: np.ndarray, pose: PoseEstimate, by_edges: bool) -> PoseEstimate:
        """Look at an object several times, aimed a little beside, and move it to where all looks together see it."""
        if not self.config.looks_around:
            return pose
        assert self.search is not None
        at = Detection.at(pose.look.detection.object_index, pose.cam_T_obj, K)
        _, side_px = frame_object(pose.cam_T_obj, K, pose.model.diameter_m, self.model.config.crop_pad)
        beside = at.beside(side_px, self.config.looks_around)
        own, around = pose.look.evidence(), tuple(look.evidence() for look in self.sight.gaze(image, K, beside))
        # Edges tell exactly where, but how far away less well than maps do; then a support has to tell.
        cam_T_obj = self.search.move(pose.model, pose.cam_T_obj, [own, *around], by_edges)
        return replace(self._judged(pose.look, own, cam_T_obj), around=around)

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

    def _stood(self, poses: Sequence[PoseEstimate]) -> list[PoseEstimate]:
        """Move all objects to where they stand together and all looks see them, and judge them there."""
        support = self._support(poses) if self.config.stand_together else None
        if support is None:
            return list(poses)
        evidence = [[pose.look.evidence(), *pose.around] for pose in poses]
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


def _believed(pose: PoseEstimate, belief: float) -> PoseEstimate:
    return replace(pose, score=pose.score * (STANDS_ANEW + (1 - STANDS_ANEW) * belief))
