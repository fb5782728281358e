"""What is taken for an object: it looks like it also while the object is known to be elsewhere."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.static_scene import LEAST_PHOTOGRAPHS, Placement, StaticScene, distance_m

logger = logging.getLogger(__name__)

ELSEWHERE_DIAMETERS = 0.5
"""From one place of an object to another: nearer, it may be one place, seen less exactly."""
AS_LIKELY = 0.5
"""Share of the probability that a place's poses usually have, by which it looks like the object."""


def likeliest(scene: StaticScene, scores: Mapping[tuple[int, int], float]) -> list[tuple[int, int]]:
    """Of each object's places in a photograph the one that is believed most, as photograph and number of the placement.

    ``scores`` are given by the same.
    """
    best: dict[tuple[int, int], int] = {}  # by photograph and object
    for number, p in sorted(scores, key=lambda pair: scores[pair]):
        best[number, scene.placements[p].object_index] = p
    return sorted((number, p) for (number, _), p in best.items())


def tell_decoys(
    scene: StaticScene, scores: Mapping[tuple[int, int], float], objects: Sequence[ObjectModel]
) -> tuple[set[int], list[Placement]]:
    """Tell the numbers of placements that are their objects' from those of something else.

    ``scores`` are those of all poses that look like their object, by photograph and number of the placement. The surest
    of an object's places is its own; others are held against surer ones far from there, one after the other. Supposes
    that there is one of each object.
    """
    seen = likeliest(scene, scores)
    own_scores = defaultdict(list)
    for number, p in seen:
        own_scores[p].append(scores[number, p])
    usual = {p: float(np.mean(own)) for p, own in own_scores.items()}
    genuine: set[int] = set()
    decoys = []
    for p in sorted(usual, key=lambda p: -usual[p]):
        placement = scene.placements[p]
        model = objects[placement.object_index]
        surer = {
            q
            for q in genuine
            if scene.placements[q].object_index == placement.object_index
            and distance_m(scene.placements[q], placement, scene.unit_m) > ELSEWHERE_DIAMETERS * model.diameter_m
        }
        elsewhere = [number for number, q in seen if q in surer]
        both = sum(scores.get((number, p), 0.0) > AS_LIKELY * usual[p] for number in elsewhere)
        if both < LEAST_PHOTOGRAPHS:
            genuine.add(p)
        else:
            logger.info("%s: something is taken for it, in %d photographs that show it elsewhere", model.name, both)
            decoys.append(placement)
    return genuine, decoys
