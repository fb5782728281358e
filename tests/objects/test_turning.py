"""Edges: what a teacher sees the wrong way round in all photographs is turned, and what is off is moved, by them."""

from dataclasses import replace

import numpy as np
import pytest
from parts import Parts, true_evidence
from scipy.spatial.transform import Rotation

from glimpose.objects.catalogue import object_model
from glimpose.objects.edges import EdgeMap, draw_edges, edge_support, pull_to_edges
from glimpose.objects.evidence import Evidence
from glimpose.objects.search import PoseSearch, SearchConfig
from glimpose.objects.static_scene import Placement, StaticScene
from glimpose.objects.turning import fit_to_edges, turn_objects
from glimpose.render.mesh import Mesh, box_mesh

UNIT_M = 0.4
HALF_TURN = Rotation.from_euler("z", 180, degrees=True).as_matrix()


@pytest.fixture(scope="module")
def jug(parts: Parts) -> Parts:
    """A body with a spout at one side, and none at the other."""
    body, spout = box_mesh((0.06, 0.06, 0.1)), box_mesh((0.06, 0.014, 0.014))
    shifted = spout.vertices + np.float32([0.05, 0.004, 0.03])
    mesh = Mesh(
        np.concatenate([body.vertices, shifted]),
        np.concatenate([body.faces, spout.faces + len(body.vertices)]),
        np.concatenate([body.normals, spout.normals]),
        np.full((len(body.vertices) + len(shifted), 3), 225, np.uint8),
    )
    return replace(parts, meshes=[mesh], objects=[object_model(1, "jug", mesh, 8)])


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
