"""Objects that stand: all of them on one support, each one way up, and its origin at one height above it.

How far away an object is, its picture tells worst. But where several objects stand on one table, and it's known how
each of them stands, the table is where they all would have it, and each is where the table has it.

static scene ── the direction about which objects were turned ── up ── how each object stands
poses in a photograph, how objects stand ── the support that most agree on ── poses moved to stand on it

How objects stand is learned from a static scene (`static_scene`), whose parallax tells distances; nobody has to label
or measure anything. What stands otherwise agrees with no support, and stays where it was found.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.spatial.transform import Rotation

from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.search import NormalEquations
from glimpose.objects.static_scene import Placement, StaticScene

logger = logging.getLogger(__name__)

LEAST_SEEN = 5
"""Photographs in which an object has to stand so, for a stand to be known."""
SAME_STAND_RAD = np.deg2rad(10)
SAME_STAND_DIAMETERS = 0.06
"""By which two places of an object may differ in which way is up, and in height, to be one stand."""
TURNED_RAD = 0.5
"""By which an object has to have been turned between two places, to tell about which axis."""
LEAST_AGREEING = 0.3
"""Share of those turns that have to agree about the axis."""
UNEVEN_RAD = np.deg2rad(1.5)
UNEVEN_DIAMETERS = 0.025
"""How exactly objects stand, standard deviations."""
ACROSS_M = 0.002
"""Of a pose found in one photograph, across the line of sight, standard deviation."""
DOUBT = 20.0
"""Squared deviation, in standard deviations, at which an object counts a quarter as one that stands."""
LEAST_STANDING = 3
"""Objects that have to agree on a support."""
LEAST_COMPARED = 8
"""Poses that have to be compared with true ones to tell how far off they are."""
UNSEEN = 1.5
"""By which poses in other photographs are further off than in those that were learned from."""
MOST_CANDIDATES = 12
"""Poses, the likeliest, that may propose a support."""


@dataclass(frozen=True)
class Stand:
    """One way in which an object stands."""

    up: tuple[float, float, float]
    """Which way is up, in the object's frame; unit length."""
    height_m: float
    """Of the object's origin above the support."""


@dataclass(frozen=True)
class Standing:
    """How an object stands, and how far off poses from single photographs are."""

    stands: tuple[Stand, ...] = ()
    """Most often seen first."""
    range_bias: float = 0.0
    """Of distances found in single photographs, as a logarithm: median."""
    range_std: float = 0.02
    """The same, standard deviation."""
    tilt_std_rad: float = 0.08
    """Of which way is up."""


@dataclass(frozen=True)
class Support:
    """A plane on which objects stand, in some frame."""

    up: np.ndarray
    """Unit length, away from what is beneath."""
    offset_m: float
    """A point x is ``up @ x - offset_m`` above it."""

    def seen_from(self, cam_T_frame: np.ndarray) -> "Support":
        """The same plane in a camera's frame; translation in metres."""
        up = cam_T_frame[:3, :3] @ self.up
        return Support(up, self.offset_m + float(up @ cam_T_frame[:3, 3]))


@dataclass(frozen=True)
class _Stood:
    """Poses, each in each of its stands, as arrays over e of them."""

    owner: np.ndarray
    """Number of the pose."""
    up: np.ndarray
    """e×3, where the pose has it."""
    t: np.ndarray
    """e×3, the pose's translation."""
    height: np.ndarray
    """e, of the stand."""
    range_std: np.ndarray
    tilt_std: np.ndarray
    uneven_m: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, poses: Sequence["StandingPose"]) -> "_Stood":
        rows = [
            (i, pose.cam_T_obj[:3, :3] @ up, pose.cam_T_obj[:3, 3], height_m, pose.standing, pose)
            for i, pose in enumerate(poses)
            for up, height_m in equivalents(pose.model, pose.standing)
        ]
        return cls(
            owner=np.array([row[0] for row in rows], dtype=int),
            up=np.array([row[1] for row in rows]).reshape(-1, 3),
            t=np.array([row[2] for row in rows]).reshape(-1, 3),
            height=np.array([row[3] for row in rows]),
            range_std=np.array([row[4].range_std for row in rows]),
            tilt_std=np.array([row[4].tilt_std_rad for row in rows]),
            uneven_m=np.array([UNEVEN_DIAMETERS * row[5].model.diameter_m for row in rows]),
            score=np.array([row[5].score for row in rows]),
        )

    def off(self, support: Support) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Squared deviations from standing on a support, in standard deviations; missing heights, and theirs: e each."""
        tilt = np.arctan2(np.linalg.norm(np.cross(self.up, support.up), axis=1), self.up @ support.up)
        missing = self.height - (self.t @ support.up - support.offset_m)
        # How far away something is changes its height as much as one looks down at it.
        std = np.sqrt((self.range_std * (self.t @ support.up)) ** 2 + self.uneven_m**2 + ACROSS_M**2)
        return tilt**2 / (self.tilt_std**2 + UNEVEN_RAD**2) + (missing / std) ** 2, missing, std


@dataclass(frozen=True)
class StandingPose:
    """A pose found in one photograph, and what is known of how its object stands."""

    model: ObjectModel
    standing: Standing
    cam_T_obj: np.ndarray
    score: float = 1.0
    """How likely it's right."""


def equivalents(model: ObjectModel, standing: Standing) -> list[tuple[np.ndarray, float]]:
    """Up and height of an object's stands, in each of the poses that look the same."""
    found: list[tuple[np.ndarray, float]] = []
    for stand in standing.stands:
        for symmetry in model.symmetries.numpy():
            up = symmetry[:3, :3].T @ np.array(stand.up)
            height_m = stand.height_m + float(up @ symmetry[:3, :3].T @ symmetry[:3, 3])
            is_new = all(up @ other < np.cos(0.02) or abs(height_m - h) > 1e-3 * model.diameter_m for other, h in found)
            if is_new:
                found.append((up, height_m))
    return found


def stand_together(poses: Sequence[StandingPose]) -> list[np.ndarray] | None:
    """Move poses of one photograph so that what stands does so on one support; None where no support is agreed on."""
    poses = [unbiased(pose) for pose in poses]
    support = find_support(poses)
    return None if support is None else [settle(pose, support)[0] for pose in poses]


def unbiased(pose: StandingPose) -> StandingPose:
    """Undo what single photographs have wrong on average."""
    cam_T_obj = pose.cam_T_obj.copy()
    cam_T_obj[:3, 3] *= np.exp(-pose.standing.range_bias)
    return StandingPose(pose.model, pose.standing, cam_T_obj, pose.score)


def find_support(poses: Sequence[StandingPose]) -> Support | None:
    """Find what most poses would stand on: pairs propose it, all decide, and all together place it exactly."""
    stood = _Stood.of(poses)
    likely = np.argsort(-np.array([pose.score for pose in poses]))[:MOST_CANDIDATES]
    proposing = np.flatnonzero(np.isin(stood.owner, likely))
    best, best_worth = None, 0.0
    for a in proposing:
        for b in proposing[proposing > a]:
            if stood.owner[a] == stood.owner[b] or stood.up[a] @ stood.up[b] < 0.9:
                continue
            up = _unit(stood.score[a] * stood.up[a] + stood.score[b] * stood.up[b])
            support = Support(up, float(np.mean(stood.t[[a, b]] @ up - stood.height[[a, b]])))
            worth = np.zeros(len(poses))
            np.maximum.at(worth, stood.owner, stood.score * _trust(stood.off(support)[0]))
            if worth.sum() > best_worth:
                best, best_worth = support, float(worth.sum())
    if best is None:
        return None
    for _ in range(10):
        best, num_agreeing = _placed(best, stood)
    return best if num_agreeing >= LEAST_STANDING else None


def _placed(support: Support, stood: _Stood) -> tuple[Support, int]:
    """One step towards where all poses together have the support, and how many agree with it."""
    squared, missing, std = stood.off(support)
    # Of a pose's stands the nearest counts.
    order = np.lexsort((squared, stood.owner))
    nearest = order[np.unique(stood.owner[order], return_index=True)[1]]
    squared, missing, std, up, t = (value[nearest] for value in (squared, missing, std, stood.up, stood.t))
    weight = np.sqrt(stood.score[nearest]) * _trust(squared)
    across = _across(support.up)
    by_tilt = weight / (stood.tilt_std[nearest] ** 2 + UNEVEN_RAD**2)
    hessian = 1e-6 * np.eye(3)
    hessian[:2, :2] += by_tilt.sum() * np.eye(2)
    gradient = np.append(across @ (by_tilt @ (up - support.up)), 0.0)
    rows = np.concatenate([t @ across.T, -np.ones((len(t), 1))], 1)  # heights by tilt and offset
    hessian += (rows * (weight / std**2)[:, None]).T @ rows
    gradient += rows.T @ (weight / std**2 * missing)
    step = np.linalg.solve(hessian, gradient)
    moved = Support(_unit(support.up + step[:2] @ across), support.offset_m + float(step[2]))
    return moved, int((squared < DOUBT).sum())


def settle(pose: StandingPose, support: Support) -> tuple[np.ndarray, float]:
    """Move a pose to where it is likeliest, given how exact it is and how it would stand; and how far that is believed.

    Along the line of sight it may be moved far, across it hardly.
    """
    stood = _Stood.of([pose])
    if not len(stood.owner):
        return pose.cam_T_obj, 0.0
    squared, missing, _ = stood.off(support)
    i = int(np.argmin(squared))
    trust = float(_trust(squared[i]))
    t, standing = pose.cam_T_obj[:3, 3], pose.standing
    axis = np.cross(stood.up[i], support.up)
    sine = np.linalg.norm(axis)
    tilt_rad = np.arctan2(sine, stood.up[i] @ support.up)
    share = trust * standing.tilt_std_rad**2 / (standing.tilt_std_rad**2 + UNEVEN_RAD**2)
    ray = t / np.linalg.norm(t)
    covariance = ACROSS_M**2 * (np.eye(3) - np.outer(ray, ray)) + standing.range_std**2 * np.outer(t, t)
    gain = covariance @ support.up / (support.up @ covariance @ support.up + stood.uneven_m[i] ** 2)
    settled = pose.cam_T_obj.copy()
    settled[:3, :3] = Rotation.from_rotvec(share * tilt_rad * axis / max(sine, 1e-9)).as_matrix() @ settled[:3, :3]
    settled[:3, 3] += trust * missing[i] * gain
    return settled, trust


@dataclass(frozen=True)
class StandingScene:
    """How objects stand in a static scene."""

    support: Support
    """In the scene's frame, metres."""
    unit_m: float
    standings: tuple[Standing, ...]
    """By object."""
    objects: Sequence[ObjectModel] = field(repr=False)

    def pull(self, placement: Placement) -> NormalEquations:
        """Where standing pulls a placement, as `fit_scene` takes it."""
        model, cam_T_obj = self.objects[placement.object_index], placement.scene_T_obj.copy()
        cam_T_obj[:3, 3] *= self.unit_m
        stood = _Stood.of([StandingPose(model, self.standings[placement.object_index], cam_T_obj)])
        hessian, gradient = np.zeros((6, 6)), np.zeros(6)
        if not len(stood.owner):
            return hessian, gradient
        squared, missing, _ = stood.off(self.support)
        i = int(np.argmin(squared))
        trust, up = _trust(squared[i]), self.support.up
        hessian[:3, :3] = trust / UNEVEN_RAD**2 * (np.eye(3) - np.outer(up, up))
        gradient[:3] = trust / UNEVEN_RAD**2 * np.cross(stood.up[i], up)
        row = up * model.diameter_m / 2
        hessian[3:, 3:] = trust / stood.uneven_m[i] ** 2 * np.outer(row, row)
        gradient[3:] = trust / stood.uneven_m[i] ** 2 * row * missing[i]
        return hessian, gradient

    def settle(self, cam_T_scene: np.ndarray, index: int, cam_T_obj: np.ndarray) -> tuple[np.ndarray, float]:
        """Move a pose found in one photograph to where it stands, and tell how far that is believed."""
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
            tilts += [np.arccos(np.clip(found[:3, :3] @ s.up @ exact[:3, :3] @ s.up, -1, 1)) for s in standing.stands]
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
    places = []
    for placement in scene.placements:
        model, pose = objects[placement.object_index], placement.scene_T_obj
        up_obj = pose[:3, :3].T @ up
        height_m = float(scene.unit_m * up @ pose[:3, 3])
        lowest_m = height_m + float((vertices_m[model.obj_id] @ up_obj).min())
        places.append((placement.object_index, up_obj, height_m, lowest_m, len(placement.photographs)))
    seen = np.array([place[4] for place in places])
    lowest = np.array([place[3] for place in places])
    order = np.argsort(lowest)
    # What most objects stand on has height 0: it's where half of all that is lowest is.
    floor_m = float(lowest[order][np.searchsorted(np.cumsum(seen[order]), seen.sum() / 2)])
    standings = []
    for index, model in enumerate(objects):
        own = sorted((place for place in places if place[0] == index), key=lambda place: -place[4])
        groups: list[list[tuple]] = []
        for place in own:
            for group in groups:
                is_up = any(
                    place[1] @ symmetry[:3, :3].T @ group[0][1] > np.cos(SAME_STAND_RAD)
                    for symmetry in model.symmetries.numpy()
                )
                if is_up and abs(place[2] - group[0][2]) < SAME_STAND_DIAMETERS * model.diameter_m:
                    group.append(place)
                    break
            else:
                groups.append([place])
        groups = [group for group in groups if sum(place[4] for place in group) >= LEAST_SEEN]
        groups.sort(key=lambda group: -sum(place[4] for place in group))
        standings.append(Standing(tuple(_stand(group, floor_m, model) for group in groups)))
    return StandingScene(Support(up, floor_m), scene.unit_m, tuple(standings), objects)


def _stand(group: Sequence[tuple], floor_m: float, model: ObjectModel) -> Stand:
    """Mean of an object's places, by how many photographs show them, as the first of its equivalent poses."""
    weights = np.array([place[4] for place in group], dtype=float)
    ups = []
    for place in group:
        turned = [symmetry[:3, :3] @ place[1] for symmetry in model.symmetries.numpy()]
        ups.append(max(turned, key=lambda up: float(up @ group[0][1])))
    up = _unit(weights @ np.array(ups))
    height_m = float(np.average([place[2] for place in group], weights=weights)) - floor_m
    return Stand((float(up[0]), float(up[1]), float(up[2])), height_m)


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
    axes_, weights_ = np.array(axes), np.array(weights, dtype=float)
    agreement = np.exp(-(1 - np.abs(axes_ @ axes_.T)) / (1 - np.cos(0.1)))
    share = agreement @ weights_ / weights_.sum()
    up = axes_[int(np.argmax(share))]
    if share.max() < LEAST_AGREEING:
        logger.info("objects were turned about no common axis: which way is up isn't known")
        return None
    for _ in range(5):
        near = weights_ * np.exp(-(1 - np.abs(axes_ @ up)) / (1 - np.cos(0.1)))
        up = np.linalg.eigh((axes_ * near[:, None]).T @ axes_)[1][:, -1]
    cameras = np.mean([-T[:3, :3].T @ T[:3, 3] for T in scene.cam_T_scene.values()], 0)
    beneath = np.mean([placement.scene_T_obj[:3, 3] for placement in scene.placements], 0)
    return up if up @ (cameras - beneath) > 0 else -up


def _trust(squared: np.ndarray) -> np.ndarray:
    """By which what deviates so far counts."""
    return 1 / (1 + squared / DOUBT) ** 2


def _across(up: np.ndarray) -> np.ndarray:
    """2×3, orthonormal, at right angles to a direction."""
    first = _unit(np.cross(up, np.eye(3)[int(np.argmin(np.abs(up)))]))
    return np.stack([first, np.cross(up, first)])


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
