"""Where objects stand in a scene that stands still: what many photographs agree on, and then what single ones show.

sightings ── places, exact ones, parted ones ── how objects stand ── places that one photograph shows
                                                                  └─ places where objects are glimpsed
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

import numpy as np
from tqdm import tqdm

from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.crops import focal_px, is_in_view
from glimpose.objects.decoys import likeliest, tell_decoys
from glimpose.objects.estimator import PoseEstimator
from glimpose.objects.evidence import Evidence
from glimpose.objects.glimpsed import find_glimpses, place_glimpsed, surest_first
from glimpose.objects.looks import PoseEstimate
from glimpose.objects.photographs import Photograph
from glimpose.objects.pseudo_labels import Found
from glimpose.objects.standing import Standing
from glimpose.objects.standing_scene import StandingScene, find_standing, with_errors
from glimpose.objects.static_scene import (
    LEAST_PHOTOGRAPHS,
    PARTED_TRUSTS_PX,
    UNIT_STAYS,
    Placement,
    Sighting,
    StaticScene,
    find_placements,
    fit_scene,
    go_together,
    part_placements,
    place_objects,
)
from glimpose.objects.trust import CLEAR_MARGIN, trust_places, trusted
from glimpose.objects.turning import fit_to_edges, turn_objects

logger = logging.getLogger(__name__)

LEAST_OVERLAP = 0.5
"""Intersection over union of the object drawn where the scene has it and the teacher's amodal mask."""
LEAST_BELIEF = 0.2
"""In an object's being in a place: the mean probability of its poses there, over the photographs that show it, times
one plus the margin of their edges in units of `CLEAR_MARGIN`. What stands still and looks a little like the object is
taken for it in many photographs alike, but agrees less; what the teacher never saw right, edges tell."""
LEAST_SIGHTED = 0.3
"""Probability of a pose, for one photograph to be enough to place an object that stands."""
STOOD_TOLERANCE = 0.06
"""As `static_scene.TOLERANCE`, for poses that were moved to stand."""
SAME_SIGHTING = 0.3
"""Diameters across the line of sight by which a sighting may be off to be one of a placement."""


@dataclass(frozen=True)
class Places:
    """Where objects stand, and how."""

    scene: StaticScene
    recognised: int
    """So many of the placements, the first ones, the teacher knows; the others are only glimpsed."""
    standings: tuple[Standing, ...] = ()
    """By object; none where the scene doesn't tell."""


def find_places(
    teacher: PoseEstimator,
    photographs: Sequence[Photograph],
    cam_T_scene: Mapping[int, np.ndarray],
    found: Found,
    remembered: Sequence[Sighting] = (),
) -> Places:
    """Find where objects stand, by what the teacher found in each photograph, and by looking there again.

    ``remembered`` are sightings from elsewhere, that count as well.
    """
    sightings = [
        Sighting(number, pose.look.detection.object_index, pose.cam_T_obj, pose.score)
        for number, poses in enumerate(found.poses)
        for pose in poses
    ]
    sightings += remembered
    scene = place_objects(sightings, cam_T_scene, [photograph.K for photograph in photographs], teacher.objects)
    scene, seen = _settled(scene, teacher, photographs)
    learned = _standing(scene, seen, found, teacher)
    if learned is None:
        return Places(scene, len(scene.placements))
    scene, seen = _stood(scene, seen, learned, found, teacher, photographs)
    learned = _standing(scene, seen, found, teacher) or learned
    glimpsed = _glimpsed(scene, seen, learned, sightings, teacher, photographs)
    return Places(glimpsed, len(scene.placements), learned.standings)


def _settled(
    scene: StaticScene, teacher: PoseEstimator, photographs: Sequence[Photograph]
) -> tuple[StaticScene, dict[tuple[int, int], PoseEstimate]]:
    """Make places exact, and keep those that are believed; with what the teacher sees of them."""
    search, objects = teacher.search, teacher.objects
    assert search is not None
    evidence = _evidence(_likeliest(scene, look_at_places(scene, teacher, photographs)))
    scene = fit_scene(scene, evidence, objects, search.pull)
    scene = turn_objects(scene, evidence, objects, search)
    scene = fit_to_edges(scene, evidence, objects, search)
    looked = look_at_places(scene, teacher, photographs)
    genuine, decoys = tell_decoys(scene, {pair: pose.score for pair, pose in looked.items()}, objects)
    # Places of which nothing is seen are gone once they are parted.
    seen = _likeliest(scene, {pair: pose for pair, pose in looked.items() if pair[1] in genuine})
    scene = _parted(replace(scene, decoys=decoys), seen, teacher, photographs)
    scene, seen = _believed(scene, _seen(scene, teacher, photographs))
    # What isn't an object isn't of its size: once more, without.
    scene = fit_to_edges(scene, _evidence(seen), objects, search)
    return _believed(scene, _seen(scene, teacher, photographs))


def _parted(
    scene: StaticScene,
    seen: Mapping[tuple[int, int], PoseEstimate],
    teacher: PoseEstimator,
    photographs: Sequence[Photograph],
) -> StaticScene:
    """Part places of objects that were moved by little, and make exact what comes of it."""
    search = teacher.search
    assert search is not None
    evidence = {(number, pose.look.detection.object_index): pose.look.evidence() for (number, _), pose in seen.items()}
    sightings = []
    for (number, p), pose in seen.items():
        index = pose.look.detection.object_index
        cam_T_obj = search.move(pose.model, scene.cam_T_obj(number, scene.placements[p]), [evidence[number, index]])
        sightings.append(Sighting(number, index, cam_T_obj, pose.score))
    K = [photograph.K for photograph in photographs]
    scene = part_placements(scene, sightings, evidence, K, teacher.objects, search.pull)
    return fit_to_edges(scene, scene.shown(evidence), teacher.objects, search)


def _seen(
    scene: StaticScene, teacher: PoseEstimator, photographs: Sequence[Photograph]
) -> dict[tuple[int, int], PoseEstimate]:
    """What the teacher sees in the photographs that agree with a placement, as `_likeliest` tells."""
    return _likeliest(scene, look_at_places(scene, teacher, photographs, among_agreeing=True))


def look_at_places(
    scene: StaticScene, teacher: PoseEstimator, photographs: Sequence[Photograph], among_agreeing: bool = False
) -> dict[tuple[int, int], PoseEstimate]:
    """By photograph and number of the placement, what the teacher sees there, if it's anything of the kind.

    In all photographs, or in those that agree with a placement.
    """
    pairs = [
        (number, p)
        for number in scene.cam_T_scene
        for p, placement in enumerate(scene.placements)
        if number in placement.photographs or not among_agreeing
    ]
    seen = {}
    for pair, pose in verify_places(scene, pairs, teacher, photographs):
        assert pose.agreement is not None
        if pose.agreement.overlap >= LEAST_OVERLAP:
            seen[pair] = pose
    return seen


def verify_places(
    scene: StaticScene,
    pairs: Iterable[tuple[int, int]],
    teacher: PoseEstimator,
    photographs: Sequence[Photograph],
) -> Iterator[tuple[tuple[int, int], PoseEstimate]]:
    """What the teacher makes of placements, given with photographs' numbers, where they are in the picture.

    One photograph after the other, for there are too many to keep what isn't needed.
    """
    for number, own in groupby(sorted(pairs), key=itemgetter(0)):
        image, K = photographs[number].image, photographs[number].K
        poses = {pair: scene.cam_T_obj(number, scene.placements[pair[1]]) for pair in own}
        poses = {pair: pose for pair, pose in poses.items() if is_in_view(pose, K, *image.shape[:2])}
        where = [(scene.placements[p].object_index, pose) for (_, p), pose in poses.items()]
        yield from zip(poses, teacher.verify(image, K, where), strict=True)


def _likeliest(
    scene: StaticScene, looked: Mapping[tuple[int, int], PoseEstimate]
) -> dict[tuple[int, int], PoseEstimate]:
    """Of each object's places in a photograph the one that is believed most."""
    best = likeliest(scene, {pair: pose.score for pair, pose in looked.items()})
    return {pair: looked[pair] for pair in best}


def _evidence(seen: Mapping[tuple[int, int], PoseEstimate]) -> dict[tuple[int, int], Evidence]:
    return {pair: pose.look.evidence() for pair, pose in seen.items()}


def _standing(
    scene: StaticScene,
    seen: Mapping[tuple[int, int], PoseEstimate],
    found: Found,
    teacher: PoseEstimator,
) -> StandingScene | None:
    """Learn how objects stand, and how far off the teacher's poses are in single photographs."""
    assert teacher.search is not None
    vertices_m = {obj_id: mesh.vertices for obj_id, mesh in teacher.search.meshes.items()}
    standing = find_standing(scene, teacher.objects, vertices_m)
    if standing is None:
        return None
    exact = [
        (number, scene.placements[p].object_index, scene.cam_T_obj(number, scene.placements[p])) for number, p in seen
    ]
    standings = learn_errors(standing.standings, teacher.objects, found.poses, exact)
    return replace(standing, standings=standings)


def learn_errors(
    standings: Sequence[Standing],
    objects: Sequence[ObjectModel],
    poses: Sequence[Sequence[PoseEstimate]],
    exact: Sequence[tuple[int, int, np.ndarray]],
) -> tuple[Standing, ...]:
    """Learn how far off poses are that were found in each photograph, from exact ones by photograph and object."""
    pairs = []
    for number, index, cam_T_obj in exact:
        own = [pose.cam_T_obj for pose in poses[number] if pose.look.detection.object_index == index]
        z_m = cam_T_obj[2, 3]
        off_m = [np.linalg.norm(z_m * pose[:3, 3] / pose[2, 3] - cam_T_obj[:3, 3]) for pose in own]
        if own and min(off_m) < SAME_SIGHTING * objects[index].diameter_m:
            pairs.append((index, own[int(np.argmin(off_m))], cam_T_obj))
    learned = with_errors(standings, objects, pairs)
    for model, entry in zip(objects, learned, strict=True):
        heights = " or ".join(f"{1000 * stand.height_m:.0f} mm" for stand in entry.stands) or "no known height"
        logger.info(
            "%s: stands at %s; distances in single photographs are off by %+.1f ± %.1f %%",
            model.name,
            heights,
            100 * entry.range_bias,
            100 * entry.range_std,
        )
    return learned


def _stood(
    scene: StaticScene,
    seen: Mapping[tuple[int, int], PoseEstimate],
    standing: StandingScene,
    found: Found,
    teacher: PoseEstimator,
    photographs: Sequence[Photograph],
) -> tuple[StaticScene, dict[tuple[int, int], PoseEstimate]]:
    """Hold objects to how they stand, and place those, too, that too few photographs show in one place.

    One photograph is enough for what stands where it's seen: the support tells how far away that is.
    """
    search, objects = teacher.search, teacher.objects
    assert search is not None
    placed = trusted(scene, trust_places(scene, seen, search))
    evidence: dict[tuple[int, int], Evidence] = {}
    sightings = []
    for number, poses in enumerate(found.poses):
        for pose in poses if number in scene.cam_T_scene else ():
            pair = (number, pose.look.detection.object_index)
            if pair in placed or pair in evidence or pose.score < LEAST_SIGHTED:
                continue
            if _is_decoy(scene, *pair, pose.cam_T_obj, photographs, objects):
                continue
            cam_T_obj, trust = standing.settle(scene.cam_T_scene[number], pair[1], pose.cam_T_obj)
            if trust > 0.5:
                sightings.append(Sighting(*pair, cam_T_obj, pose.score))
                evidence[pair] = pose.look.evidence()
    K = [photograph.K for photograph in photographs]
    more = find_placements(sightings, scene.cam_T_scene, scene.unit_m, K, objects, STOOD_TOLERANCE, least=1)
    added = replace(scene, placements=[placement for placement in more if _has_room(placement, scene, objects)])
    added = fit_scene(
        added,
        added.shown(evidence),
        objects,
        search.pull,
        PARTED_TRUSTS_PX,
        step_log_unit=UNIT_STAYS,
        hold=standing.pull,
    )
    scene = replace(scene, placements=[*scene.placements, *added.placements])
    scene = fit_to_edges(scene, _evidence(seen), objects, search, standing.pull)
    return _believed(scene, _seen(scene, teacher, photographs), least=1)


def _glimpsed(
    scene: StaticScene,
    seen: Mapping[tuple[int, int], PoseEstimate],
    standing: StandingScene,
    sightings: Sequence[Sighting],
    teacher: PoseEstimator,
    photographs: Sequence[Photograph],
) -> StaticScene:
    """Place what the teacher sees the wrong way round wherever it sees it, by how objects stand and by edges."""
    search, objects = teacher.search, teacher.objects
    assert search is not None
    placed = trusted(scene, trust_places(scene, seen, search))
    left = [
        s
        for s in sightings
        if (s.photograph, s.object_index) not in placed
        and s.photograph in scene.cam_T_scene
        and not _is_decoy(scene, s.photograph, s.object_index, s.cam_T_obj, photographs, objects)
    ]

    def evidence(number: int, index: int, cam_T_obj: np.ndarray) -> Evidence:
        photograph = photographs[number]
        return teacher.verify(photograph.image, photograph.K, [(index, cam_T_obj)])[0].look.evidence()

    glimpses = find_glimpses(left, scene.cam_T_scene, standing)
    shown = tqdm(glimpses, desc="place what is glimpsed", unit="place", leave=False)
    found = [place_glimpsed(glimpse, evidence, scene, standing, search) for glimpse in shown]
    placements = [placement for placement in found if placement and _has_room(placement, scene, objects)]
    return replace(scene, placements=[*scene.placements, *surest_first(placements, scene.unit_m, objects)])


def _believed(
    scene: StaticScene, seen: dict[tuple[int, int], PoseEstimate], least: int = LEAST_PHOTOGRAPHS
) -> tuple[StaticScene, dict[tuple[int, int], PoseEstimate]]:
    """Leave out places where, over all photographs that show them, the object isn't likely enough to be."""
    scores = defaultdict(list)
    for (_, p), pose in seen.items():
        scores[p].append(pose.score)
    belief = {p: np.mean(own) * (1 + scene.placements[p].margin / CLEAR_MARGIN) for p, own in scores.items()}
    kept = [p for p in sorted(scores) if len(scores[p]) >= least and belief[p] >= LEAST_BELIEF]
    scene = replace(scene, placements=[scene.placements[p] for p in kept])
    return scene, {(number, kept.index(p)): pose for (number, p), pose in seen.items() if p in kept}


def _has_room(placement: Placement, scene: StaticScene, objects: Sequence[ObjectModel]) -> bool:
    """Whether no other object stands there while the same photographs were taken."""
    others = [other for other in scene.placements if other.object_index != placement.object_index]
    return all(go_together(placement, other, scene.unit_m, objects) for other in others)


def _is_decoy(
    scene: StaticScene,
    number: int,
    index: int,
    cam_T_obj: np.ndarray,
    photographs: Sequence[Photograph],
    objects: Sequence[ObjectModel],
) -> bool:
    """Whether a pose is where something else is taken for the object."""
    return any(
        not is_apart(cam_T_obj, scene.cam_T_obj(number, decoy), photographs[number].K, objects[index].diameter_m)
        for decoy in scene.decoys
        if decoy.object_index == index
    )


def is_apart(a: np.ndarray, b: np.ndarray, K: np.ndarray, diameter_m: float) -> bool:
    """Whether two poses of an object are seen more than half its apparent diameter apart."""
    (a_px, b_px), apparent_px = ((K @ T[:3, 3])[:2] / T[2, 3] for T in (a, b)), focal_px(K) * diameter_m / b[2, 3]
    return bool(np.linalg.norm(a_px - b_px) > 0.5 * apparent_px)
