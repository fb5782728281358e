"""How objects stand, learned from a static scene: nobody has to label or measure anything.

placements ── the direction about which objects were turned ── up ── how each object stands, and on what
poses found in single photographs, exact ones ── how far off single photographs are
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.equations import NormalEquations
from glimpose.objects.standing import (
    UNEVEN_RAD,
    NearestStand,
    Stand,
    Standing,
    StandingPose,
    Support,
    settle,
    unbiased,
    unit_vector,
)
from glimpose.objects.static_scene import Placement, StaticScene

logger = logging.getLogger(__name__)

LEAST_SEEN = 5
"""Photographs in which an object has to stand so, for a stand to be known."""
SAME_STAND_RAD = np.deg2rad(10)
SAME_STAND_DIAMETERS = 0.06
"""By which two places of an object may differ in which way is up, and in height, to be one stand."""
TURNED_RAD = 0.5
"""By which an object has to have been turned between two places, to tell about which axis."""
SAME_AXIS_RAD = 0.1
"""About which axes of turns are known."""
LEAST_AGREEING = 0.3
"""Share of those turns that have to agree about the axis."""
LEAST_COMPARED = 8
"""Poses that have to be compared with true ones to tell how far off they are."""
UNSEEN = 1.5
"""By which poses in other photographs are further off than in those that were learned from."""


@dataclass(frozen=True)
class StandingScene:
    """How objects stand in a static scene."""

    support: Support
    """In the scene's frame, metres."""
    unit_m: float
    standings: tuple[Standing, ...]
    """By object."""
    objects: Sequence[ObjectModel]

    def pull(self, placement: Placement) -> NormalEquations:
        """Where standing pulls a placement, as `fit_scene` takes it."""
        model, cam_T_obj = self.objects[placement.object_index], placement.scene_T_obj.copy()
        cam_T_obj[:3, 3] *= self.unit_m
        pose = StandingPose(model, self.standings[placement.object_index], cam_T_obj)
        stand = NearestStand.of(pose, self.support)
        hessian, gradient = np.zeros((6, 6)), np.zeros(6)
        if stand is None:
            return hessian, gradient
        up, row = self.support.up, self.support.up * model.diameter_m / 2
        hessian[:3, :3] = stand.belief / UNEVEN_RAD**2 * (np.eye(3) - np.outer(up, up))
        gradient[:3] = stand.belief / UNEVEN_RAD**2 * np.cross(stand.up, up)
        hessian[3:, 3:] = stand.belief / stand.uneven_m**2 * np.outer(row, row)
        gradient[3:] = stand.belief / stand.uneven_m**2 * row * stand.missing_m
        return hessian, gradient

    def settle(self, cam_T_scene: np.ndarray, index: int, cam_T_obj: np.ndarray) -> tuple[np.ndarray, float]:
        """Move a pose found in one photograph to where it stands, and tell how far that is believed."""
        if not self.standings[index].stands:
            return cam_T_obj, 0.0
        metric = cam_T_scene.copy()
        metric[:3, 3] *= self.unit_m
        pose = unbiased(StandingPose(self.objects[index], self.standings[index], cam_T_obj))
        return settle(pose, self.support.seen_from(metric))


def with_errors(
    standings: Sequence[Standing], objects: Sequence[ObjectModel], pairs: Sequence[tuple[int, np.ndarray, np.ndarray]]
) -> tuple[Standing, ...]:
    """Learn how far off poses from single photographs are, from pairs of such and exact ones, by object's index."""
    learned = []
    for index, (standing, model) in enumerate(zip(standings, objects, strict=True)):
        logs, tilts = [], []
        for found, exact in ((found, exact) for i, found, exact in pairs if i == index):
            equivalents_ = found @ model.symmetries.numpy()
            turns = Rotation.from_matrix(equivalents_[:, :3, :3].mT @ exact[:3, :3]).magnitude()
            found = equivalents_[int(np.argmin(turns))]
            logs.append(np.log(np.linalg.norm(found[:3, 3]) / np.linalg.norm(exact[:3, 3])))
            for stand in standing.stands:
                cosine = np.dot(found[:3, :3] @ stand.up, exact[:3, :3] @ stand.up)
                tilts.append(np.arccos(np.clip(cosine, -1, 1)))
        if len(logs) >= LEAST_COMPARED and tilts:
            bias = float(np.median(logs))
            range_std = max(1.48 * UNSEEN * float(np.median(np.abs(np.array(logs) - bias))), 0.002)
            tilt_std_rad = max(UNSEEN * float(np.median(tilts)), 0.01)
            standing = replace(standing, range_bias=bias, range_std=range_std, tilt_std_rad=tilt_std_rad)
        learned.append(standing)
    return tuple(learned)


def find_standing(
    scene: StaticScene, objects: Sequence[ObjectModel], vertices_m: Mapping[int, np.ndarray]
) -> StandingScene | None:
    """Learn how objects stand from where they were placed; None where places don't tell which way is up.

    ``vertices_m`` has each mesh's by object id. Between two places an object is turned about the direction that is up,
    if it stands both times.
    """
    up = _find_up(scene)
    if up is None:
        return None
    places = [_Place.of(placement, up, scene.unit_m, objects, vertices_m) for placement in scene.placements]
    # What most objects stand on has height 0: it's where half of all that is lowest is.
    places.sort(key=lambda place: place.lowest_m)
    shown = np.cumsum([place.num_photographs for place in places])
    floor_m = places[int(np.searchsorted(shown, shown[-1] / 2))].lowest_m
    standings = []
    for index, model in enumerate(objects):
        own = [place for place in places if place.object_index == index]
        standings.append(Standing(tuple(_stands(own, floor_m, model))))
    return StandingScene(Support(up, floor_m), scene.unit_m, tuple(standings), objects)


@dataclass(frozen=True)
class _Place:
    """How an object stands in one place."""

    object_index: int
    up: np.ndarray
    """In the object's frame."""
    height_m: float
    """Of its origin, along the direction that is up."""
    lowest_m: float
    """The same of its lowest vertex."""
    num_photographs: int

    @classmethod
    def of(
        cls,
        placement: Placement,
        up: np.ndarray,
        unit_m: float,
        objects: Sequence[ObjectModel],
        vertices_m: Mapping[int, np.ndarray],
    ) -> "_Place":
        pose = placement.scene_T_obj
        up_obj = pose[:3, :3].T @ up
        height_m = float(unit_m * up @ pose[:3, 3])
        lowest_m = height_m + float((vertices_m[objects[placement.object_index].obj_id] @ up_obj).min())
        return cls(placement.object_index, up_obj, height_m, lowest_m, len(placement.photographs))

    def up_as(self, other: np.ndarray, model: ObjectModel) -> np.ndarray:
        """Its up in the one of equivalent poses that is most like another up."""
        equivalents = model.symmetries.numpy()[:, :3, :3] @ self.up
        return equivalents[int(np.argmax(equivalents @ other))]


def _stands(places: Sequence[_Place], floor_m: float, model: ObjectModel) -> list[Stand]:
    """Group one object's places by how it stands there; most often seen first, and what is seldom seen not at all."""
    groups: list[list[_Place]] = []
    for place in sorted(places, key=lambda place: -place.num_photographs):
        for group in groups:
            first = group[0]
            is_up = place.up_as(first.up, model) @ first.up > np.cos(SAME_STAND_RAD)
            if is_up and abs(place.height_m - first.height_m) < SAME_STAND_DIAMETERS * model.diameter_m:
                group.append(place)
                break
        else:
            groups.append([place])
    seen = []
    for group in groups:
        weights = np.array([place.num_photographs for place in group], dtype=float)
        if weights.sum() >= LEAST_SEEN:
            up = unit_vector(weights @ np.array([place.up_as(group[0].up, model) for place in group]))
            height_m = float(np.average([place.height_m for place in group], weights=weights)) - floor_m
            seen.append((weights.sum(), Stand((float(up[0]), float(up[1]), float(up[2])), height_m)))
    return [stand for _, stand in sorted(seen, key=lambda entry: -entry[0])]


def _find_up(scene: StaticScene) -> np.ndarray | None:
    """Direction about which objects were turned from place to place, in the scene's frame; towards the cameras."""
    axes, weights = [], []
    for a, first in enumerate(scene.placements):
        for second in scene.placements[:a]:
            if first.object_index != second.object_index:
                continue
            turn = Rotation.from_matrix(first.scene_T_obj[:3, :3] @ second.scene_T_obj[:3, :3].T).as_rotvec()
            angle = np.linalg.norm(turn)
            if TURNED_RAD < angle < np.pi - 0.05:  # of half a turn, which way it went isn't known
                axes.append(turn / angle)
                weights.append(min(len(first.photographs), len(second.photographs)))
    if not axes:
        logger.info("no object was turned between two places: which way is up isn't known")
        return None
    directions, shown = np.array(axes), np.array(weights, dtype=float)
    share = _alike(directions @ directions.T) @ shown / shown.sum()
    up = directions[int(np.argmax(share))]
    if share.max() < LEAST_AGREEING:
        logger.info("objects were turned about no common axis: which way is up isn't known")
        return None
    for _ in range(5):
        near = shown * _alike(directions @ up)
        up = np.linalg.eigh((directions * near[:, None]).T @ directions)[1][:, -1]
    cameras = np.mean([-T[:3, :3].T @ T[:3, 3] for T in scene.cam_T_scene.values()], 0)
    beneath = np.mean([placement.scene_T_obj[:3, 3] for placement in scene.placements], 0)
    return up if up @ (cameras - beneath) > 0 else -up


def _alike(cosines: np.ndarray) -> np.ndarray:
    """How far axes are the same, whichever way they point."""
    return np.exp(-(1 - np.abs(cosines)) / (1 - np.cos(SAME_AXIS_RAD)))
