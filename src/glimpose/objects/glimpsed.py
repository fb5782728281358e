"""Objects that a teacher glimpses: it sees that one is there, but takes it to be turned otherwise each time.

What isn't seen right in any photograph makes no place (`static_scene`), and the teacher doesn't learn to see it right.
But where it's known how an object stands, all that is missing is where on the support, which is about known, and which
way round: few enough ways to try them all, and a few photographs' edges together tell which one it is (`turning`).

sightings ── where on the support ── near each other, in photographs in a row ── all ways to stand there ── by edges
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.equations import make_pose
from glimpose.objects.evidence import Evidence
from glimpose.objects.search import PoseSearch
from glimpose.objects.standing import Stand
from glimpose.objects.standing_scene import StandingScene
from glimpose.objects.static_scene import LEAST_PHOTOGRAPHS, Placement, Sighting, StaticScene
from glimpose.objects.turning import LEAST_MARGIN, Turning, is_one_place

LEAST_GLIMPSED = 0.03
"""Probability of a pose that may tell where its object is; of being right it tells nothing."""
OFF_RANGE = 0.15
"""By which its distance may differ from the support's, as a logarithm."""
NEAR_DIAMETERS = 0.3
"""Within which they are glimpses of one place."""
IN_A_ROW = 6
"""Photographs that are looked at together; an object may have been moved after them. The next begin in their middle."""
TURNS = 24
SHIFTS_DIAMETERS = (0.0, -0.1, 0.1, -0.2, 0.2)
"""Both ways, of places to try; first the one where it's glimpsed, which pictures are cut out around."""


@dataclass(frozen=True)
class Glimpse:
    """About where an object stands while some photographs were taken."""

    object_index: int
    foot_m: np.ndarray
    """Of its origin, on the support; the scene's frame, metres."""
    photographs: tuple[int, ...]


def find_glimpses(
    sightings: Sequence[Sighting], cam_T_scene: Mapping[int, np.ndarray], standing: StandingScene
) -> list[Glimpse]:
    """Gather sightings by where on the support they are."""
    glimpses = []
    for index, known in enumerate(standing.standings):
        if not known.stands:
            continue
        own = [s for s in sightings if s.object_index == index and s.score >= LEAST_GLIMPSED]
        own.sort(key=lambda s: s.score)
        feet = [(s, _foot_m(s, cam_T_scene[s.photograph], known.stands[0], standing)) for s in own]
        left = [(s, foot_m) for s, foot_m in feet if foot_m is not None]
        near_m = NEAR_DIAMETERS * standing.objects[index].diameter_m
        while left:
            feet_m, scores = np.array([foot_m for _, foot_m in left]), np.array([s.score for s, _ in left])
            apart_m = np.linalg.norm(feet_m[:, None] - feet_m, axis=2)
            off_m = apart_m[int(np.argmax(np.maximum(0, 1 - apart_m / near_m) @ scores))]
            there = {s.photograph: foot_m for (s, foot_m), off in zip(left, off_m, strict=True) if off < near_m}
            left = [entry for entry, off in zip(left, off_m, strict=True) if off >= near_m]
            for row in _rows(sorted(there)):
                glimpses.append(Glimpse(index, np.mean([there[number] for number in row], 0), row))
    return glimpses


def place_glimpsed(
    glimpse: Glimpse,
    evidence: Callable[[int, int, np.ndarray], Evidence],
    scene: StaticScene,
    standing: StandingScene,
    search: PoseSearch,
) -> Placement | None:
    """Where and which way round the glimpsed object stands, if edges tell it clearly; with how clearly.

    ``evidence`` tells what is seen in a photograph about where an object, by its index, has a pose, metres.
    """
    ways = [make_pose(pose[:3, :3], pose[:3, 3] / scene.unit_m) for pose in _ways_to_stand(glimpse, standing)]
    placement = Placement(glimpse.object_index, ways[0], frozenset(glimpse.photographs))
    seen = {
        number: evidence(number, glimpse.object_index, scene.cam_T_obj(number, placement))
        for number in glimpse.photographs
    }
    found = Turning(scene, placement, seen, standing.objects, search, standing.pull).chosen(ways)
    return found if found.margin > LEAST_MARGIN else None


def surest_first(placements: Sequence[Placement], unit_m: float, objects: Sequence[ObjectModel]) -> list[Placement]:
    """Leave each of one object's photographs to the place that edges tell most clearly; those that are the same, join.

    Where too few are left, there is no place.
    """
    kept: list[Placement] = []
    for placement in sorted(placements, key=lambda placement: -placement.margin):
        model = objects[placement.object_index]
        own = [k for k, other in enumerate(kept) if other.object_index == placement.object_index]
        left = placement.photographs.difference(*(kept[k].photographs for k in own))
        same = [k for k in own if is_one_place(placement.scene_T_obj, kept[k].scene_T_obj, unit_m, model)]
        if same:
            kept[same[0]] = replace(kept[same[0]], photographs=kept[same[0]].photographs | left)
        elif len(left) >= LEAST_PHOTOGRAPHS:
            kept.append(replace(placement, photographs=left))
    return kept


def _foot_m(sighting: Sighting, cam_T_scene: np.ndarray, stand: Stand, standing: StandingScene) -> np.ndarray | None:
    """Where the line of sight reaches the height of a standing object's origin, put on the support."""
    scene_R_cam, up = cam_T_scene[:3, :3].T, standing.support.up
    camera_m = -standing.unit_m * scene_R_cam @ cam_T_scene[:3, 3]
    range_m = float(np.linalg.norm(sighting.cam_T_obj[:3, 3]))
    ray = scene_R_cam @ sighting.cam_T_obj[:3, 3] / range_m
    downwards = float(up @ ray)
    if downwards > -0.05:
        return None
    reached_m = (standing.support.offset_m + stand.height_m - up @ camera_m) / downwards
    if not np.exp(-OFF_RANGE) < reached_m / range_m < np.exp(OFF_RANGE):
        return None
    return camera_m + reached_m * ray - stand.height_m * up


def _rows(numbers: Sequence[int]) -> list[tuple[int, ...]]:
    """Overlapping rows of photographs, if there are enough for one."""
    last = max(len(numbers) - IN_A_ROW // 2, 1)
    rows = [tuple(numbers[i : i + IN_A_ROW]) for i in range(0, last, IN_A_ROW // 2)]
    return [row for row in rows if len(row) >= LEAST_PHOTOGRAPHS]


def _ways_to_stand(glimpse: Glimpse, standing: StandingScene) -> list[np.ndarray]:
    """Poses in the scene's frame, metres: each stand, turned about what is up and moved on the support.

    The first one stands where it's glimpsed.
    """
    up, diameter_m = standing.support.up, standing.objects[glimpse.object_index].diameter_m
    across = np.linalg.svd(up[None])[2][1:]
    poses = []
    for stand in standing.standings[glimpse.object_index].stands:
        upright, _ = Rotation.align_vectors([up], [stand.up])
        for turn in np.arange(TURNS) * 2 * np.pi / TURNS:
            rotation = (Rotation.from_rotvec(turn * up) * upright).as_matrix()
            for shift in np.stack(np.meshgrid(SHIFTS_DIAMETERS, SHIFTS_DIAMETERS), -1).reshape(-1, 2):
                foot_m = glimpse.foot_m + diameter_m * shift @ across
                poses.append(make_pose(rotation, foot_m + stand.height_m * up))
    return poses
