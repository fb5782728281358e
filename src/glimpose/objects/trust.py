"""How far to trust that an object was in its place when a photograph was taken: by the teacher, or by edges."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from glimpose.objects.looks import PoseEstimate
from glimpose.objects.search import PoseSearch
from glimpose.objects.static_scene import StaticScene
from glimpose.objects.turning import edge_margin

CLEAR_MARGIN = 0.05
"""Of edges, over many photographs or in one."""
LEAST_TRUST = 0.25
"""With less, an object is looked for elsewhere in a photograph."""


def trust_places(
    scene: StaticScene,
    looked: Mapping[tuple[int, int], PoseEstimate],
    search: PoseSearch,
    recognised: int | None = None,
) -> dict[tuple[int, int], float]:
    """How far to trust that objects are in their places, 0..1, by photograph and number of the placement.

    Less likely than the object's others, it was most often moved; half as likely is trusted by a quarter. But the
    teacher finds unlikely, too, what it has yet to learn: views in which it takes the object to be turned otherwise.
    Those the photograph's own edges tell from an object that was moved; where photographs don't agree with a placement,
    edges alone count. The first placements were ``recognised``, by default all; what is only glimpsed, the teacher
    believes little everywhere: that tells something only compared with the same place's other photographs.
    """
    placements = scene.placements
    recognised = len(placements) if recognised is None else recognised
    group = [placement.object_index if p < recognised else -1 - p for p, placement in enumerate(placements)]
    scores = defaultdict(list)
    for (number, p), pose in looked.items():
        if number in placements[p].photographs:
            scores[group[p]].append(pose.score)
    usual = {key: float(np.mean(own)) for key, own in scores.items()}
    trust = {}
    for (number, p), pose in looked.items():
        likely = min(1.0, pose.score / usual[group[p]]) ** 2 if number in placements[p].photographs else 0.0
        trust[number, p] = likely
        if likely < 1:
            margin = edge_margin(pose.model, pose.cam_T_obj, pose.look.evidence().edges, search)
            trust[number, p] = max(likely, min(margin / CLEAR_MARGIN, 1.0))
    return trust


def trusted(scene: StaticScene, trust: Mapping[tuple[int, int], float]) -> set[tuple[int, int]]:
    """Photographs, and indices of objects that are trusted to be where those show them."""
    return {(number, scene.placements[p].object_index) for (number, p), value in trust.items() if value >= LEAST_TRUST}
