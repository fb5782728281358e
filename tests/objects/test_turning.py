"""Edges: what is seen the wrong way round is turned, what is glimpsed is placed, and what is off is moved by them."""

from dataclasses import replace

import numpy as np
import pytest
from parts import Parts, true_evidence
from scipy.spatial.transform import Rotation

from glimpose.objects.catalogue import object_model
from glimpose.objects.edges import EdgeMap, draw_edges, edge_support, pull_to_edges
from glimpose.objects.evidence import Evidence
from glimpose.objects.glimpsed import IN_A_ROW, Glimpse, find_glimpses, place_glimpsed, surest_first
from glimpose.objects.search import PoseSearch, SearchConfig
from glimpose.objects.standing import Stand, Standing, Support
from glimpose.objects.standing_scene import StandingScene
from glimpose.objects.static_scene import Placement, Sighting, StaticScene
from glimpose.objects.turning import edge_margin, fit_to_edges, turn_objects
from glimpose.render.mesh import Mesh, box_mesh

UNIT_M = 0.4
HEIGHT_M = 0.05
"""Of the middle of its body above what it stands on."""
HALF_TURN = Rotation.from_euler("z", 180, degrees=True).as_matrix()


def of_boxes(parts: Parts, *boxes: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Parts:
    """One object that consists of boxes, given by sizes and centres."""
    meshes = [box_mesh(size) for size, _ in boxes]
    first = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)]).tolist()
    mesh = Mesh(
        np.concatenate([mesh.vertices + np.float32(at) for mesh, (_, at) in zip(meshes, boxes, strict=True)]),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, first[:-1], strict=True)]),
        np.concatenate([mesh.normals for mesh in meshes]),
        np.full((first[-1], 3), 225, np.uint8),
    )
    return replace(parts, meshes=[mesh], objects=[object_model(1, "jug", mesh, 8)])


@pytest.fixture(scope="module")
def jug(parts: Parts) -> Parts:
    """A body with a spout at one side, and none at the other."""
    return of_boxes(parts, ((0.06, 0.06, 0.1), (0, 0, 0)), ((0.06, 0.014, 0.014), (0.05, 0.004, 0.03)))


@pytest.fixture(scope="module")
def search(jug: Parts) -> PoseSearch:
    return PoseSearch(jug.objects, {1: jug.meshes[0]}, jug.network, SearchConfig(num_views=500))


def photographed(jug: Parts, cam_T_obj: np.ndarray, seen_as: np.ndarray, seed: int) -> Evidence:
    """A picture of the jug before clutter, and the maps of a gaze that takes it for standing in another pose."""
    evidence = true_evidence(jug, 0, cam_T_obj)
    drawn = evidence.crop.any(2)
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 200, (8, 8, 3)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    crop = np.where(drawn[..., None], evidence.crop, patches[: len(drawn), : len(drawn)])
    return replace(true_evidence(jug, 0, seen_as), crop=crop, t_m=cam_T_obj[:3, 3])


def scene_of(num: int, scene_T_obj: np.ndarray) -> StaticScene:
    """Cameras half a metre away, all around; the object stands in the middle."""
    cameras = {}
    for i in range(num):
        turn = Rotation.from_euler("zx", [360 * i / num, -115], degrees=True).as_matrix()
        cameras[i] = np.eye(4)
        cameras[i][:3, :3], cameras[i][2, 3] = turn, 0.5 / UNIT_M
    return StaticScene(cameras, UNIT_M, [Placement(0, scene_T_obj, frozenset(range(num)))])


def turned(rotation: np.ndarray) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = rotation
    return pose


def test_what_all_photographs_see_the_wrong_way_round_is_turned(jug: Parts, search: PoseSearch):
    wrong = scene_of(8, turned(HALF_TURN))
    truth = scene_of(8, np.eye(4))
    evidence = {}
    for i in range(8):
        seen_as = wrong.cam_T_obj(i, wrong.placements[0])
        evidence[i, 0] = photographed(jug, truth.cam_T_obj(i, truth.placements[0]), seen_as, i)
    found = turn_objects(wrong, evidence, jug.objects, search).placements[0]
    assert np.rad2deg(Rotation.from_matrix(found.scene_T_obj[:3, :3]).magnitude()) < 4
    assert np.linalg.norm(UNIT_M * found.scene_T_obj[:3, 3]) < 0.004
    assert found.margin > 0.05


def test_without_edges_nothing_is_turned(jug: Parts, search: PoseSearch):
    """Blank pictures support no pose more than the one at hand."""
    scene = scene_of(4, turned(HALF_TURN))
    evidence = {}
    for i in range(4):
        pose = scene.cam_T_obj(i, scene.placements[0])
        seen = true_evidence(jug, 0, pose)
        evidence[i, 0] = replace(seen, crop=np.full_like(seen.crop, 128))
    found = turn_objects(scene, evidence, jug.objects, search).placements[0]
    assert found.margin == 0
    np.testing.assert_array_equal(found.scene_T_obj, scene.placements[0].scene_T_obj)


def test_objects_and_the_unit_come_to_where_edges_are(jug: Parts, search: PoseSearch):
    truth = scene_of(6, np.eye(4))
    poses = [truth.cam_T_obj(i, truth.placements[0]) for i in range(6)]
    evidence = {(i, 0): photographed(jug, pose, pose, i) for i, pose in enumerate(poses)}
    off = turned(Rotation.from_rotvec([0.03, -0.04, 0.05]).as_matrix())
    off[:3, 3] = [0.005, -0.004, 0.003]
    scene = replace(scene_of(6, off), unit_m=1.02 * UNIT_M)
    fitted = fit_to_edges(scene, evidence, jug.objects, search)
    assert fitted.unit_m == pytest.approx(UNIT_M, rel=0.0025)
    assert np.rad2deg(Rotation.from_matrix(fitted.placements[0].scene_T_obj[:3, :3]).magnitude()) < 1
    assert np.linalg.norm(fitted.placements[0].scene_T_obj[:3, 3]) < 0.003


def test_edges_are_supported_where_they_are(jug: Parts, search: PoseSearch):
    """At its pose nearly all of an object's edges are in the picture, and they pull it nowhere; elsewhere few are."""
    scene = scene_of(1, np.eye(4))
    pose = scene.cam_T_obj(0, scene.placements[0])
    evidence = photographed(jug, pose, pose, 0)
    edges, model = EdgeMap.of(evidence.crop, evidence.K, 1.0), jug.objects[0]
    contour = draw_edges(search.renderer, jug.meshes[0], pose, edges, model.diameter_m)
    assert contour is not None
    assert edge_support(edges, contour, 1) > 0.85
    hessian, gradient = pull_to_edges(edges, contour, pose, model.diameter_m / 2, 2.0)
    step = np.linalg.solve(hessian + np.eye(6), gradient)
    assert np.abs(step).max() < 0.02
    moved = pose.copy()
    moved[0, 3] += 0.02
    contour = draw_edges(search.renderer, jug.meshes[0], moved, edges, model.diameter_m)
    assert edge_support(edges, contour, 1) < 0.75
    away = pose.copy()
    away[0, 3] += 2
    assert draw_edges(search.renderer, jug.meshes[0], away, edges, model.diameter_m) is None
    assert edge_support(edges, None, 1) == 0


@pytest.mark.parametrize("view", range(6))
def test_one_photograph_tells_the_pose_from_those_aside(parts: Parts, view: int):
    """Edges support the true pose most, not one that is turned or beside it; blank pictures support none."""
    tripod = of_boxes(
        parts,
        ((0.1, 0.02, 0.02), (0.05, 0, 0)),
        ((0.02, 0.07, 0.03), (0.02, 0.035, 0)),
        ((0.03, 0.02, 0.12), (0, 0, 0.06)),
    )
    search = PoseSearch(tripod.objects, {1: tripod.meshes[0]}, tripod.network, SearchConfig(num_views=1))
    scene, model = scene_of(6, np.eye(4)), tripod.objects[0]
    turn, beside = turned(Rotation.from_euler("z", 90, degrees=True).as_matrix()), np.eye(4)
    beside[0, 3] = 0.016 / UNIT_M
    pose, *wrong = (scene.cam_T_obj(view, Placement(0, T, frozenset())) for T in (np.eye(4), turn, beside))
    evidence = true_evidence(tripod, 0, pose)
    edges, blank = (EdgeMap.of(crop, evidence.K, 1.0) for crop in (evidence.crop, np.full_like(evidence.crop, 128)))
    assert edge_margin(model, pose, edges, search) > 0.05
    assert all(edge_margin(model, other, edges, search) < -0.05 for other in wrong)
    assert edge_margin(model, pose, blank, search) == 0


@pytest.fixture
def standing(jug: Parts) -> StandingScene:
    """The jug stands upright, half its body's height above a support."""
    stands = Standing((Stand((0.0, 0.0, 1.0), HEIGHT_M),))
    return StandingScene(Support(np.array([0.0, 0.0, 1.0]), -HEIGHT_M), UNIT_M, (stands,), jug.objects)


def sighted(
    number: int, at_m: np.ndarray, rng: np.random.Generator, score: float = 0.1, nearer: float = 1.0
) -> Sighting:
    """Turned anyhow, about where it is."""
    place = turned(Rotation.random(random_state=rng).as_matrix())
    place[:3, 3] = at_m / UNIT_M
    scene = scene_of(12, place)
    pose = scene.cam_T_obj(number, scene.placements[0])
    pose[:3, 3] *= nearer
    return Sighting(number, 0, pose, score)


def test_glimpses_are_gathered_by_where_they_are(standing: StandingScene):
    """However far away they seem to be; what is much too near, unlikely, or too seldom isn't one."""
    rng = np.random.default_rng(0)
    here, there = np.array([0.02, -0.01, 0.0]), np.array([-0.2, 0.1, 0.0])
    sightings = [sighted(number, here, rng, nearer=rng.uniform(0.93, 1.07)) for number in range(8)]
    sightings += [sighted(number, there, rng) for number in (9, 10, 11)]
    sightings += [
        sighted(8, here, rng, nearer=0.7),
        sighted(9, here, rng, score=0.01),
        sighted(10, np.array([0.2, 0.2, 0.0]), rng),
    ]
    cameras = scene_of(12, np.eye(4)).cam_T_scene
    glimpses = find_glimpses(sightings, cameras, standing)
    assert [glimpse.photographs for glimpse in glimpses] == [(0, 1, 2, 3, 4, 5), (3, 4, 5, 6, 7), (9, 10, 11)]
    assert len(glimpses[0].photographs) == IN_A_ROW
    for glimpse, place in zip(glimpses, (here, here, there), strict=True):
        np.testing.assert_allclose(glimpse.foot_m, place - [0, 0, HEIGHT_M], atol=1e-9)
    unknown = replace(standing, standings=(Standing(),))
    assert not find_glimpses(sightings, cameras, unknown)


@pytest.mark.parametrize("is_blank", [False, True])
def test_edges_tell_which_way_round_it_stands(jug: Parts, search: PoseSearch, standing: StandingScene, is_blank: bool):
    """From a place that is off by a sixth of the jug; blank pictures tell nothing."""
    pose = turned(Rotation.from_euler("z", 130, degrees=True).as_matrix())
    truth = scene_of(5, pose)

    def evidence(number: int, _index: int, _pose: np.ndarray) -> Evidence:
        there = truth.cam_T_obj(number, truth.placements[0])
        seen = photographed(jug, there, there, number)
        return replace(seen, crop=np.full_like(seen.crop, 128)) if is_blank else seen

    glimpse = Glimpse(0, np.array([0.015, -0.01, -HEIGHT_M]), tuple(range(5)))
    found = place_glimpsed(glimpse, evidence, truth, standing, search)
    if is_blank:
        assert found is None
        return
    assert found is not None
    assert np.rad2deg(Rotation.from_matrix(found.scene_T_obj[:3, :3].T @ pose[:3, :3]).magnitude()) < 4
    assert UNIT_M * np.linalg.norm(found.scene_T_obj[:3, 3]) < 0.004
    assert found.photographs == frozenset(range(5))


def test_a_photograph_is_left_to_the_clearest_place(jug: Parts):
    here, nearly = np.eye(4), turned(Rotation.from_euler("z", 3, degrees=True).as_matrix())
    there = turned(Rotation.from_euler("z", 40, degrees=True).as_matrix())
    placements = [
        Placement(0, here, frozenset({0, 1, 2, 3}), 0.04),
        Placement(0, there, frozenset({2, 3, 4, 5, 6}), 0.08),
        Placement(0, here, frozenset({5, 6, 7, 8, 9}), 0.06),
        Placement(0, nearly, frozenset({8, 9, 10}), 0.05),
        Placement(1, here, frozenset({0, 1, 2}), 0.05),
    ]
    kept = surest_first(placements, UNIT_M, [jug.objects[0], jug.objects[0]])
    assert [(entry.object_index, sorted(entry.photographs)) for entry in kept] == [
        (0, [2, 3, 4, 5, 6]),
        (0, [0, 1, 7, 8, 9, 10]),
        (1, [0, 1, 2]),
    ]
