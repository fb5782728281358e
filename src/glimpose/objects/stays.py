"""Objects that stay where they are: what one photograph hides, or shows doubtfully, those before and after it tell.

A hidden object is hard to see, so a teacher doesn't find it, and a student wouldn't learn to; one seen from a side that
the teacher takes for another is found elsewhere, or turned. But photographs are in the order of their names, objects
are seldom moved between two of them, and hardly ever back to where they were.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.crops import central_mean
from glimpose.objects.looks import PoseEstimate
from glimpose.objects.search import PoseSearch
from glimpose.objects.static_scene import StaticScene
from glimpose.objects.turning import is_one_place

MOVE_COST = 0.7
"""Of an object's being moved, in trust. So a place that nothing but one photograph shows has to be trusted by more than
this, and where the object was in another place before and after, nothing is enough."""
LEAST_SEEN = 0.1
"""Share of a hidden object that's seen all the same, for a photograph to teach anything of it. Of one that was taken
away, and put back later, nothing is seen."""


def likely_course(
    scene: StaticScene, trust: Mapping[tuple[int, int], float], objects: Sequence[ObjectModel]
) -> list[tuple[int, int]]:
    """Tell of each object in which of its places it was in each photograph: where most of them show it, seldom moved.

    ``trust`` is by photograph and number of the placement; so is what's given, where the photograph shows the object
    there at all. Found by Viterbi's algorithm (IEEE Transactions on Information Theory, 1967).
    """
    numbers, course = sorted(scene.cam_T_scene), []
    for index, model in enumerate(objects):
        own = [p for p, placement in enumerate(scene.placements) if placement.object_index == index]
        if not own:
            continue
        poses = [scene.placements[p].scene_T_obj for p in own]
        stays = np.array([[is_one_place(a, b, scene.unit_m, model) for b in poses] for a in poses])
        cost = np.where(stays, 0, MOVE_COST)
        shown = np.array([[trust.get((number, p), 0.0) for p in own] for number in numbers])
        best, came_from = shown[0], []
        for row in shown[1:]:
            through = best[:, None] - cost
            came_from.append(through.argmax(0))
            best = through.max(0) + row
        path = [int(best.argmax())]
        for origins in reversed(came_from):
            path.append(int(origins[path[-1]]))
        course += [(number, own[i]) for number, i in zip(numbers, reversed(path), strict=True)]
    return sorted(pair for pair in course if trust.get(pair, 0.0) > 0)


def find_stays(
    scene: StaticScene, trust: Mapping[tuple[int, int], float], objects: Sequence[ObjectModel]
) -> dict[tuple[int, int], float]:
    """Find photographs that don't show an object which those before and after show in the same place.

    ``trust`` is by photograph and number of the placement in which it shows an object, at most one each. Gives the same
    of those photographs, as far as both are trusted.
    """
    of_object = defaultdict(list)
    for number, p in sorted(trust):
        of_object[scene.placements[p].object_index].append((number, p))
    stays = {}
    for index, own in of_object.items():
        for before, after in pairwise(own):
            first, last = (scene.placements[p].scene_T_obj for _, p in (before, after))
            if is_one_place(first, last, scene.unit_m, objects[index]):
                for number in scene.cam_T_scene:
                    if before[0] < number < after[0]:
                        _, nearer = min(before, after, key=lambda pair: abs(pair[0] - number))
                        stays[number, nearer] = min(trust[before], trust[after])
    return stays


def seen_share(pose: PoseEstimate, search: PoseSearch) -> float:
    """How much of an object, drawn where it's said to be, is seen there."""
    evidence = pose.look.evidence()
    drawn = search.draw(pose.model, pose.cam_T_obj, evidence)
    is_drawn, _ = central_mean(drawn.depth[..., None], drawn.mask > 0)
    return float(evidence.visible @ is_drawn.ravel() / max(is_drawn.sum(), 1))
