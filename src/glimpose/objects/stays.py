"""Objects that stay where they are: what one photograph hides, those before and after it tell.

A hidden object is hard to see, so a teacher doesn't find it, and a student wouldn't learn to. But photographs are in
the order of their names, objects are seldom moved between two of them, and hardly ever back to where they were.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.crops import central_mean
from glimpose.objects.looks import PoseEstimate
from glimpose.objects.search import PoseSearch
from glimpose.objects.static_scene import StaticScene
from glimpose.objects.turning import is_one_place

LEAST_SEEN = 0.1
"""Share of a hidden object that's seen all the same, for a photograph to teach anything of it. Of one that was taken
away, and put back later, nothing is seen."""


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
