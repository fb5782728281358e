"""Where objects were, photograph after photograph: most likely where they were before and after."""

import itertools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from glimpose.objects.catalogue import ObjectModel, object_model
from glimpose.objects.static_scene import Placement, StaticScene
from glimpose.objects.stays import MOVE_COST, find_stays, likely_course
from glimpose.objects.turning import is_one_place
from glimpose.render.mesh import box_mesh

UNIT_M = 0.5
HALF_TURN = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def objects() -> list[ObjectModel]:
    """Two boxes, the second of which looks the same after half a turn."""
    return [
        object_model(1, "box", box_mesh((0.1, 0.06, 0.04)), 8),
        object_model(2, "brick", box_mesh((0.12, 0.05, 0.03)), 8, [HALF_TURN]),
    ]


def place(index: int, x_m: float, turn_deg: float = 0.0) -> Placement:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("z", turn_deg, degrees=True).as_matrix()
    pose[0, 3] = x_m / UNIT_M
    return Placement(index, pose, frozenset())


def scene_of(num: int, placements: list[Placement]) -> StaticScene:
    return StaticScene({number: np.eye(4) for number in range(num)}, UNIT_M, placements)


def test_an_object_turned_for_one_photograph_was_seen_wrong(objects: list[ObjectModel]):
    """Unless that's trusted by more than being moved twice costs; half a turn that can't be seen isn't one."""
    scene = scene_of(5, [place(0, 0), place(0, 0, 180), place(1, 0.3), place(1, 0.3, 180)])
    shown = {0: 0.9, 1: 0.8, 3: 0.7, 4: 1.0}
    trust = {(number, 0): value for number, value in shown.items()} | {(2, 1): 1.9 * MOVE_COST}
    trust |= {(number, 2): value for number, value in shown.items()} | {(2, 3): 0.1}
    course = likely_course(scene, trust, objects)
    assert course == sorted([(number, p) for number in shown for p in (0, 2)] + [(2, 3)])
    stays = find_stays(scene, {pair: trust[pair] for pair in course}, objects)
    assert stays == {(2, 0): 0.7}
    trust[2, 1] = 2.1 * MOVE_COST
    assert (2, 1) in likely_course(scene, trust, objects)


def test_what_was_moved_for_good_is_followed(objects: list[ObjectModel]):
    """A place in between, too, of which a single photograph tells, if that's sure."""
    scene = scene_of(6, [place(0, 0), place(0, 0.2), place(0, 0.4)])
    trust = {(0, 0): 0.6, (1, 0): 0.6, (2, 1): 1.1 * MOVE_COST, (4, 2): 0.4, (5, 2): 0.4}
    assert likely_course(scene, trust, objects) == sorted(trust)
    doubted = trust | {(2, 1): 0.9 * MOVE_COST}
    assert likely_course(scene, doubted, objects) == [(0, 0), (1, 0), (4, 2), (5, 2)]
    assert likely_course(scene, {}, objects) == []


@pytest.mark.parametrize("seed", range(5))
def test_no_other_course_is_likelier(objects: list[ObjectModel], seed: int):
    rng = np.random.default_rng(seed)
    scene = scene_of(6, [place(0, x_m) for x_m in (0, 0.003, 0.2)])
    trust = {(n, p): float(rng.uniform()) for n in range(6) for p in range(3) if rng.uniform() < 0.6}

    def worth(path: tuple[int, ...]) -> float:
        poses = [scene.placements[p].scene_T_obj for p in path]
        moves = sum(not is_one_place(a, b, UNIT_M, objects[0]) for a, b in itertools.pairwise(poses))
        return sum(trust.get(pair, 0.0) for pair in enumerate(path)) - MOVE_COST * moves

    course = likely_course(scene, trust, objects)
    best = max(itertools.product(range(3), repeat=6), key=worth)
    assert sum(trust[pair] for pair in course) == pytest.approx(sum(trust.get(pair, 0.0) for pair in enumerate(best)))
