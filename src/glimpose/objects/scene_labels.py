"""Pseudo-labels of a scene that stands still: what many photographs agree on.

photographs ── as if upright ── places (`scene_places`) ── looked at in all photographs ── trusted there ── labels
 labels of the round before ──┘              where objects stay though they are hidden ──┘
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from glimpose.objects.decoys import likeliest, tell_decoys
from glimpose.objects.equations import rolled
from glimpose.objects.estimator import PoseEstimator
from glimpose.objects.looks import PoseEstimate
from glimpose.objects.photographs import Photograph
from glimpose.objects.pseudo_labels import Found, Labels, PseudoLabel, find, make_label
from glimpose.objects.scene_places import Places, find_places, is_apart, look_at_places, verify_places
from glimpose.objects.static_scene import Sighting
from glimpose.objects.stays import LEAST_SEEN, find_stays, likely_course, seen_share
from glimpose.objects.surfaces import agreement_with_sensor
from glimpose.objects.trust import LEAST_TRUST, trust_places, trusted

logger = logging.getLogger(__name__)


def label_static_scene(
    teacher: PoseEstimator,
    photographs: Sequence[Photograph],
    cam_T_scene: Mapping[int, np.ndarray],
    before: Sequence[PseudoLabel] = (),
) -> Labels:
    """Let the teacher look at photographs of a scene that stands still, and believe what many of them agree on.

    ``cam_T_scene`` is by photograph, in any unit (`structure_from_motion.find_cameras`). Where photographs agree that
    an object stands, it is labelled in those that show it there, if need be by looking again; and in those that hide
    it, but for a little, between such ones (`stays`). In others it may be hidden, or have been moved. Which way round
    it is, and where exactly, the photographs' edges tell. Where it's known how objects stand, one photograph is enough,
    and what is only glimpsed is labelled where edges tell how it stands. Labels weigh as much as they are trusted
    (`trust_places`). Other poses weigh nothing; those of an object that is labelled elsewhere in the photograph are
    mistaken.

    Labels of the round ``before`` are sightings like what the teacher finds now: what all photographs told once isn't
    lost because single ones are mistaken in another way.
    """
    found = find(teacher, photographs)
    # Upright objects are known best, so all that follows is as if cameras had been rolled until they are.
    level = [teacher.level(poses) for poses in found.poses]
    upright = [replace(p, K=p.K @ R) for p, R in zip(photographs, level, strict=True)]
    poses = [[pose.rolled(R.T) for pose in own] for own, R in zip(found.poses, level, strict=True)]
    cameras = {number: rolled(pose, level[number].T) for number, pose in cam_T_scene.items()}
    remembered = [
        Sighting(own.photograph, own.object_index, rolled(own.cam_T_obj, level[own.photograph].T), own.weight)
        for own in before
        if own.weight >= LEAST_TRUST
    ]
    labels = _labelled(teacher, upright, cameras, replace(found, poses=poses), remembered)

    def as_taken(label: PseudoLabel) -> PseudoLabel:
        return replace(label, cam_T_obj=rolled(label.cam_T_obj, level[label.photograph]))

    return replace(
        labels,
        labels=[as_taken(label) for label in labels.labels],
        mistaken=[as_taken(label) for label in labels.mistaken],
    )


def _labelled(
    teacher: PoseEstimator,
    photographs: Sequence[Photograph],
    cam_T_scene: Mapping[int, np.ndarray],
    found: Found,
    remembered: Sequence[Sighting],
) -> Labels:
    """Label photographs in which objects are upright, by what the teacher found in them."""
    places = find_places(teacher, photographs, cam_T_scene, found, remembered)
    seen, trust = _shown(places, teacher, photographs)
    for p, placement in enumerate(places.scene.placements):
        logger.info(
            "%s: stands where %d photographs agree, by a margin of %.2f in edges; seen in %d",
            teacher.objects[placement.object_index].name,
            len(placement.photographs),
            placement.margin,
            sum(q == p for _, q in seen),
        )
    assert teacher.search is not None
    labels = []
    for (number, p), pose in seen.items():
        weight = trust[number, p] * agreement_with_sensor(pose, photographs[number], teacher.search)
        labels.append(make_label(number, pose, photographs[number].K, pose.score, weight))
    known = {(label.photograph, label.object_index): label for label in labels}
    mistaken = []
    background = found.classes[:, 0].copy()
    for number, poses in enumerate(found.poses):
        K = photographs[number].K
        for pose in poses:
            standing = known.get((number, pose.look.detection.object_index))
            if standing is None:
                labels.append(make_label(number, pose, K, pose.score, 0.0))
            elif is_apart(pose.cam_T_obj, standing.cam_T_obj, K, pose.model.diameter_m):
                mistaken.append(make_label(number, pose, K, pose.score, standing.weight))
    for (number, index), standing in known.items():
        # It stands where it's labelled, so what else looks like it isn't it.
        background[number] += standing.weight * found.classes[number, 1 + index]
    return Labels(labels, background, mistaken, places.standings)


def _shown(
    places: Places, teacher: PoseEstimator, photographs: Sequence[Photograph]
) -> tuple[dict[tuple[int, int], PoseEstimate], dict[tuple[int, int], float]]:
    """What photographs show of objects where those most likely were, and how far they are trusted to have been there.

    Both by photograph and number of the placement.
    """
    scene, search = places.scene, teacher.search
    looked = look_at_places(scene, teacher, photographs)
    assert search is not None
    genuine, _ = tell_decoys(scene, {pair: pose.score for pair, pose in looked.items()}, teacher.objects)
    looked = {pair: pose for pair, pose in looked.items() if pair[1] in genuine}
    agreeing = {(n, p): pose for (n, p), pose in looked.items() if n in scene.placements[p].photographs}
    trust = trust_places(scene, agreeing, search, places.recognised)
    known = trusted(scene, trust)
    # Where an object isn't trusted to be in places that agree, it may be in one of the others.
    others = {
        pair: pose
        for pair, pose in looked.items()
        if pair not in agreeing and (pair[0], scene.placements[pair[1]].object_index) not in known
    }
    trust |= trust_places(scene, others, search, places.recognised)
    trust = {pair: trust[pair] for pair in likely_course(scene, trust, teacher.objects)}
    sure = {pair: value for pair, value in trust.items() if value >= LEAST_TRUST}
    stays = find_stays(scene, sure, teacher.objects)
    again = dict(verify_places(scene, stays, teacher, photographs))
    hidden = {pair: pose for pair, pose in again.items() if seen_share(pose, search) >= LEAST_SEEN}
    logger.info("%d times an object isn't seen where it stays; of %d a little shows", len(again), len(hidden))
    # Trusted more than whatever else those photographs show of it: otherwise they weren't gaps.
    looked |= hidden
    trust |= {pair: stays[pair] for pair in hidden}
    return {pair: looked[pair] for pair in likeliest(scene, trust)}, trust
