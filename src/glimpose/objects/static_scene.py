"""A scene that stands still while the camera moves: what one photograph can't tell, all of them together can.

Structure from motion tells where photographs were taken from, in a unit of its own. Poses found in single photographs
are often wrong, but right ones put an object in the same place in all of them. So places come from consensus (Fischler
and Bolles, CACM 1981), and then all photographs together pull at them.

sightings, cameras ── how far cameras moved, by pairs of sightings ── metres per unit
sightings in the scene's frame ── the poses that most photographs agree on ── placements
placements, what is seen there ── objects moved until all drawings fit ── exact placements
placements, what single photographs make of them ── parted where an object was moved by little ── one place each

Poses are compared by where an object's keypoints are seen, in apparent diameters: distances are what single photographs
tell worst. Symmetric objects are sighted in each of their equivalent poses.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy.spatial.transform import Rotation

from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.crops import focal_px
from glimpose.objects.equations import NormalEquations, stepped

logger = logging.getLogger(__name__)

Seen = TypeVar("Seen")

TOLERANCE = 0.18
"""Mean distance of keypoints, in apparent diameters, at which two poses no longer agree. An object may be moved by
little in between, and two of its places taken for one are wrong in all photographs."""
MOST_VARIANTS = 24
"""Of one sighting of an object that looks the same from everywhere around."""
NEAREST = 0.18
"""Of the sum of two objects' diameters: nearer to each other than this, one of them is taken for the other."""
NEAREST_AGAIN = 0.05
"""The same of one object's places: nearer, it is one, seen wrong in part of the photographs."""
LEAST_PHOTOGRAPHS = 3
"""That have to agree on where an object stands."""
SAME_TURN_RAD = np.deg2rad(12)
"""By which two sightings may disagree on how the camera turned, to have a say in how far it moved."""
LEAST_TURN_RAD = np.deg2rad(10)
"""By which it has to have turned: how far a camera moved that hardly did is mostly noise."""
NEAR = 0.045
"""Mean distance of keypoints, in apparent diameters, by which one photograph may disagree with all that show an object
in the same place. Right poses are off by 0.01 to 0.03; an object that was moved stands where it stood for nobody."""
NEAR_MEDIANS = 2.0
"""The same in medians of a place's photographs, for teachers that see less exactly."""
PARTED_TOLERANCE = 0.12
"""As `TOLERANCE`, for sightings that started from a place nearby."""
NUM_PARTINGS = 4
PARTED_TRUSTS_PX = (6.0,) * 2 + (4.0,) * 2 + (3.0,) * 2
TRUSTS_PX = (6.0,) * 4 + (4.0,) * 4 + (3.0,) * 4 + (2.0,) * 4
"""One step of fitting to what is seen each: an edge found that far from the contour counts half."""
STEP_RAD = 0.1
STEP_RADII = 0.3
STEP_LOG_UNIT = 0.03
"""Standard deviations of such a step."""
UNIT_STAYS = 1e-9
"""The last of them, where the unit is to stay as it is."""


@dataclass(frozen=True)
class Sighting:
    """A pose found in one photograph, right or wrong."""

    photograph: int
    object_index: int
    cam_T_obj: np.ndarray
    score: float


@dataclass(frozen=True)
class Placement:
    """Where an object stands, at least while some photographs were taken."""

    object_index: int
    scene_T_obj: np.ndarray
    """Translation in the scene's unit."""
    photographs: frozenset[int]
    """In which a sighting agrees."""
    margin: float = 0.0
    """By how much edges prefer the pose to all others that clearly differ; 0 where they don't clearly (`turning`)."""


@dataclass(frozen=True)
class StaticScene:
    """Where photographs were taken from, and where objects stood."""

    cam_T_scene: Mapping[int, np.ndarray]
    """By photograph; translation in the scene's unit."""
    unit_m: float
    """The scene's unit in metres."""
    placements: Sequence[Placement]
    decoys: Sequence[Placement] = ()
    """Where something else stands that is taken for an object."""

    def cam_T_obj(self, photograph: int, placement: Placement) -> np.ndarray:
        """Pose of a placed object as seen from a photograph's camera, metres."""
        pose = self.cam_T_scene[photograph] @ placement.scene_T_obj
        pose[:3, 3] *= self.unit_m
        return pose

    def shown(self, seen: Mapping[tuple[int, int], Seen]) -> dict[tuple[int, int], Seen]:
        """What is seen of each placement in the photographs that agree with it, by photograph and its number.

        ``seen`` is given by photograph and object.
        """
        return {
            (number, p): seen[number, placement.object_index]
            for p, placement in enumerate(self.placements)
            for number in sorted(placement.photographs)
        }


def place_objects(
    sightings: Sequence[Sighting],
    cam_T_scene: Mapping[int, np.ndarray],
    K: Sequence[np.ndarray],
    objects: Sequence[ObjectModel],
) -> StaticScene:
    """Find where objects stand from what is sighted of them; ``K`` has one camera matrix for each photograph."""
    unit_m = find_unit_m(sightings, cam_T_scene, objects)
    return StaticScene(cam_T_scene, unit_m, find_placements(sightings, cam_T_scene, unit_m, K, objects))


def find_unit_m(
    sightings: Sequence[Sighting], cam_T_scene: Mapping[int, np.ndarray], objects: Sequence[ObjectModel]
) -> float:
    """How many metres the scene's unit has, by how far the camera moved between two sightings of an object.

    Two right poses of one object agree with the cameras on how the camera turned; wrong ones seldom do. Of those that
    do, the median counts. Raises ValueError where none do.
    """
    logs = []
    for index, model in enumerate(objects):
        own = [s for s in sightings if s.object_index == index and s.photograph in cam_T_scene]
        if len(own) < 2:
            continue
        cameras = np.stack([cam_T_scene[s.photograph] for s in own])
        poses = np.stack([s.cam_T_obj for s in own])
        for i in range(len(own) - 1):
            moved = cameras[i] @ np.linalg.inv(cameras[i + 1 :])
            for symmetry in _some_symmetries(model):
                by_object = poses[i] @ symmetry @ np.linalg.inv(poses[i + 1 :])
                off = Rotation.from_matrix(moved[:, :3, :3].mT @ by_object[:, :3, :3]).magnitude()
                turn = Rotation.from_matrix(moved[:, :3, :3]).magnitude()
                agree = (off < SAME_TURN_RAD) & (turn > LEAST_TURN_RAD)
                lengths = [np.linalg.norm(T[agree, :3, 3], axis=1) for T in (by_object, moved)]
                logs.append(np.log(lengths[0]) - np.log(lengths[1]))
    log = np.concatenate(logs) if logs else np.zeros(0)
    if not len(log):
        raise ValueError("no object is seen alike in two photographs, so nothing tells how large the scene is")
    return float(np.exp(np.median(log)))


def find_placements(
    sightings: Sequence[Sighting],
    cam_T_scene: Mapping[int, np.ndarray],
    unit_m: float,
    K: Sequence[np.ndarray],
    objects: Sequence[ObjectModel],
    tolerance: float = TOLERANCE,
    least: int = LEAST_PHOTOGRAPHS,
) -> list[Placement]:
    """Find where objects stand, the surest first: poses that sightings in many photographs agree on.

    An object may have several places, for it may be moved in between. No two stand in one place while the same
    photographs were taken, and one object isn't in one place in two poses: that is one, seen wrong in part of them.
    """
    found = []
    for index, model in enumerate(objects):
        own = [s for s in sightings if s.object_index == index and s.photograph in cam_T_scene]
        found += _placements_of(index, model, own, cam_T_scene, unit_m, K, tolerance, least)
    found.sort(key=lambda entry: -entry[0])
    placements: list[Placement] = []
    for _, placement in found:
        for other in placements:
            if not go_together(placement, other, unit_m, objects):
                # A few sightings that are wrong alike don't cost a place what all others say of it.
                placement = replace(placement, photographs=placement.photographs - other.photographs)
        is_place = len(placement.photographs) >= least
        if is_place and all(go_together(placement, other, unit_m, objects) for other in placements):
            placements.append(placement)
    return placements


def _placements_of(
    index: int,
    model: ObjectModel,
    own: Sequence[Sighting],
    cam_T_scene: Mapping[int, np.ndarray],
    unit_m: float,
    K: Sequence[np.ndarray],
    tolerance: float,
    least: int,
) -> list[tuple[float, Placement]]:
    """One object's, with how much of the sightings they explain; one after the other, from what is left."""
    left = list(own)
    found = []
    while left:
        scene_T_cam = [np.linalg.inv(_in_metres(cam_T_scene[s.photograph], unit_m)) for s in left]
        proposals = np.stack([T @ s.cam_T_obj for T, s in zip(scene_T_cam, left, strict=True)])
        worth = np.zeros((len(proposals), len(left)))
        for v, sighting in enumerate(left):
            there = _in_metres(cam_T_scene[sighting.photograph], unit_m) @ proposals
            gap = _gaps(there, sighting, model, K[sighting.photograph])
            worth[:, v] = sighting.score * np.maximum(0, 1 - gap / tolerance)
        photograph = np.array([s.photograph for s in left])
        explained = sum(worth[:, photograph == i].max(1) for i in np.unique(photograph))
        best = int(np.argmax(explained))
        agreeing = frozenset(photograph[worth[best] > 0].tolist())
        if len(agreeing) < least:
            break
        pose = proposals[best].copy()
        pose[:3, 3] /= unit_m
        found.append((float(explained[best]), Placement(index, pose, agreeing)))
        left = [s for s, w in zip(left, worth[best], strict=True) if w == 0]
    return found


def distance_m(a: Placement, b: Placement, unit_m: float) -> float:
    """Between two places' origins."""
    return unit_m * float(np.linalg.norm(a.scene_T_obj[:3, 3] - b.scene_T_obj[:3, 3]))


def go_together(a: Placement, b: Placement, unit_m: float, objects: Sequence[ObjectModel]) -> bool:
    """Whether two objects may stand there, or one may have stood in both places."""
    apart_m = distance_m(a, b, unit_m)
    diameters_m = objects[a.object_index].diameter_m + objects[b.object_index].diameter_m
    if a.object_index == b.object_index:
        return apart_m > NEAREST_AGAIN * diameters_m
    return bool(apart_m > NEAREST * diameters_m or not a.photographs & b.photographs)


def part_placements(
    scene: StaticScene,
    sightings: Sequence[Sighting],
    seen: Mapping[tuple[int, int], Seen],
    K: Sequence[np.ndarray],
    objects: Sequence[ObjectModel],
    pull: Callable[[ObjectModel, np.ndarray, Seen, float], NormalEquations],
) -> StaticScene:
    """Part places that are several: where an object was moved by little, all photographs together are wrong in all.

    ``sightings`` are what each photograph by itself makes of an object, starting from the nearest place; ``seen`` is
    given by photograph and object. Places keep the photographs that are near; what is near to none makes places of its
    own where enough photographs agree, and is left out where not. The unit stays.
    """
    for _ in range(NUM_PARTINGS):
        scene, left = _with_near(scene, sightings, K, objects)
        found = find_placements(left, scene.cam_T_scene, scene.unit_m, K, objects, PARTED_TOLERANCE)
        scene = replace(scene, placements=[*scene.placements, *found])
        scene = fit_scene(scene, scene.shown(seen), objects, pull, PARTED_TRUSTS_PX, step_log_unit=UNIT_STAYS)
    return _with_near(scene, sightings, K, objects)[0]


def _with_near(
    scene: StaticScene, sightings: Sequence[Sighting], K: Sequence[np.ndarray], objects: Sequence[ObjectModel]
) -> tuple[StaticScene, list[Sighting]]:
    """Give each place the photographs whose sightings are near to it and to no other more, and what is left over.

    Places that too few are near to are gone.
    """
    nearest: dict[int, list[tuple[float, Sighting]]] = {p: [] for p in range(len(scene.placements))}
    left = []
    for sighting in sightings:
        model = objects[sighting.object_index]
        own = [p for p, placement in enumerate(scene.placements) if placement.object_index == sighting.object_index]
        if own:
            there = np.stack([scene.cam_T_obj(sighting.photograph, scene.placements[p]) for p in own])
            gaps = _gaps(there, sighting, model, K[sighting.photograph])
            nearest[own[int(np.argmin(gaps))]].append((float(gaps.min()), sighting))
        else:
            left.append(sighting)
    placements = []
    for p, entries in nearest.items():
        limit = max(NEAR, NEAR_MEDIANS * float(np.median([gap for gap, _ in entries]))) if entries else NEAR
        near = frozenset(sighting.photograph for gap, sighting in entries if gap < limit)
        is_place = len(near) >= LEAST_PHOTOGRAPHS
        if is_place:
            placements.append(replace(scene.placements[p], photographs=near))
        left += [sighting for _, sighting in entries if not (is_place and sighting.photograph in near)]
    return replace(scene, placements=placements), left


def fit_scene(
    scene: StaticScene,
    seen: Mapping[tuple[int, int], Seen],
    objects: Sequence[ObjectModel],
    pull: Callable[[ObjectModel, np.ndarray, Seen, float], NormalEquations],
    trusts_px: Sequence[float] = TRUSTS_PX,
    step_log_unit: float = STEP_LOG_UNIT,
    hold: Callable[[Placement], NormalEquations] | None = None,
) -> StaticScene:
    """Move objects, and change the unit, until every drawn object fits what is seen of it, all at once.

    ``seen`` is given by photograph and number of the placement; ``pull`` tells where that pulls a pose, as
    `PoseSearch.pull` does. Where an object stands is told by parallax, how large the unit is by all objects' apparent
    sizes. ``hold`` tells, in the scene's frame, where else placements are pulled.
    """
    placements = list(scene.placements)
    radius_m = np.array([objects[placement.object_index].diameter_m / 2 for placement in placements])
    num = 6 * len(placements) + 1
    steps = np.concatenate([np.tile(np.repeat([STEP_RAD, STEP_RADII], 3), len(placements)), [step_log_unit]])
    for trust_px in trusts_px:
        hessian, gradient = np.diag(steps**-2), np.zeros(num)
        for (photograph, p), entry in seen.items():
            cam_T_obj = scene.cam_T_obj(photograph, placements[p])
            H, g = pull(objects[placements[p].object_index], cam_T_obj, entry, trust_px)
            # The object turns and moves with the scene, and all that is seen comes nearer as the unit shrinks.
            carrying = np.zeros((6, 7))
            carrying[:3, :3] = carrying[3:, 3:6] = scene.cam_T_scene[photograph][:3, :3]
            carrying[3:, 6] = cam_T_obj[:3, 3] / radius_m[p]
            columns = np.append(6 * p + np.arange(6), num - 1)
            hessian[np.ix_(columns, columns)] += carrying.T @ H @ carrying
            gradient[columns] += carrying.T @ g
        if hold is not None:
            for p, placement in enumerate(placements):
                own = slice(6 * p, 6 * p + 6)
                H, g = hold(placement)
                hessian[own, own] += H
                gradient[own] += g
        step = np.linalg.solve(hessian, gradient)
        for p, own_step in enumerate(step[:-1].reshape(-1, 6)):
            moved = stepped(placements[p].scene_T_obj, own_step, radius_m[p] / scene.unit_m)
            placements[p] = replace(placements[p], scene_T_obj=moved)
        scene = replace(scene, placements=tuple(placements), unit_m=scene.unit_m * float(np.exp(step[-1])))
    return scene


def _gaps(cam_T_obj: np.ndarray, sighting: Sighting, model: ObjectModel, K: np.ndarray) -> np.ndarray:
    """Mean distance of keypoints in the photograph, in apparent diameters: n of poses n×4×4 from a sighting."""
    points_m = np.concatenate([np.zeros((1, 3)), model.keypoints_m])
    sighted_px = _project(K, sighting.cam_T_obj @ _some_symmetries(model), points_m)
    gap_px = np.linalg.norm(_project(K, cam_T_obj, points_m)[:, None] - sighted_px, axis=-1).mean(-1).min(1)
    return gap_px / (focal_px(K) * model.diameter_m / sighting.cam_T_obj[2, 3])


def _some_symmetries(model: ObjectModel) -> np.ndarray:
    symmetries = model.symmetries.numpy()
    return symmetries[:: -(-len(symmetries) // MOST_VARIANTS)]


def _in_metres(cam_T_scene: np.ndarray, unit_m: float) -> np.ndarray:
    scaled = cam_T_scene.copy()
    scaled[:3, 3] *= unit_m
    return scaled


def _project(K: np.ndarray, cam_T_obj: np.ndarray, points_m: np.ndarray) -> np.ndarray:
    """…×m×2 pixels; what is behind the camera comes out far outside."""
    xyz = points_m @ cam_T_obj[..., :3, :3].mT + cam_T_obj[..., None, :3, 3]
    uvw = xyz @ K.T
    return uvw[..., :2] / np.maximum(uvw[..., 2:], 1e-3)
