"""Search: perfect maps lead to the pose, whichever way the object is turned and whatever stands in front."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parts import Parts, moved, true_evidence
from scipy.spatial.transform import Rotation

from glimpose.nets.glance_gaze import GlanceGaze
from glimpose.objects.contour import LEAST_POINTS, Contour, draw_contour, edge_offsets
from glimpose.objects.crops import camera_roll_rad, glance_matrix
from glimpose.objects.estimator import PoseEstimator
from glimpose.objects.evidence import Evidence
from glimpose.objects.looks import Detection, PoseEstimate
from glimpose.objects.search import PoseSearch, SearchConfig
from glimpose.render.mesh import sphere_mesh
from glimpose.render.scene import make_renderer

K = np.array([[570.0, 0, 320], [0, 570, 240], [0, 0, 1]])


def pose(seed: int, z_m: float = 0.6) -> np.ndarray:
    cam_T_obj = np.eye(4)
    cam_T_obj[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    cam_T_obj[:3, 3] = [0.05, -0.03, z_m]
    return cam_T_obj


@pytest.fixture(scope="module")
def search(parts: Parts) -> PoseSearch:
    meshes = {model.obj_id: mesh for model, mesh in zip(parts.objects, parts.meshes, strict=True)}
    return PoseSearch(parts.objects, meshes, parts.network, SearchConfig(num_views=400))


def turned_deg(parts: Parts, index: int, found: np.ndarray, truth: np.ndarray) -> float:
    turns = [found[:3, :3].T @ truth[:3, :3] @ s[:3, :3].numpy() for s in parts.objects[index].symmetries]
    return min(float(np.rad2deg(Rotation.from_matrix(turn).magnitude())) for turn in turns)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("num_hidden", [0, 14])
def test_perfect_maps_lead_to_the_pose(parts: Parts, search: PoseSearch, index: int, num_hidden: int):
    for seed in range(3):
        truth = pose(seed)
        evidence = true_evidence(parts, index, truth, num_hidden)
        found = search(parts.objects[index], evidence)
        assert turned_deg(parts, index, found, truth) < 3
        assert np.linalg.norm(found[:3, 3] - truth[:3, 3]) < 4e-3
        assert search.explained(parts.objects[index], found, evidence) > -2


def test_a_distance_that_is_off_is_corrected_by_the_outline(parts: Parts, search: PoseSearch):
    truth = pose(5)
    evidence = true_evidence(parts, 0, truth)
    found = search(parts.objects[0], replace(evidence, t_m=1.05 * evidence.t_m))
    assert abs(found[2, 3] / truth[2, 3] - 1) < 0.02


def test_without_drawn_views_the_pose_at_hand_is_moved(parts: Parts, search: PoseSearch):
    search = PoseSearch(parts.objects, search.meshes, parts.network, SearchConfig(num_views=0))
    truth = pose(3)
    evidence = true_evidence(parts, 0, truth)
    found = search(parts.objects[0], evidence, moved(truth, 12, 1.04))
    assert found is not None
    assert turned_deg(parts, 0, found, truth) < 3
    assert np.linalg.norm(found[:3, 3] - truth[:3, 3]) < 4e-3
    assert search(parts.objects[0], evidence) is None


def test_poses_that_are_given_are_refined(parts: Parts, search: PoseSearch, monkeypatch: pytest.MonkeyPatch):
    """Wherever it's aimed, a perfect gaze sees objects where they are."""
    truths = [pose(1), pose(2, 0.7)]
    estimator = PoseEstimator(GlanceGaze(parts.network, 2), parts.objects, search=search)

    def look(detection: Detection) -> SimpleNamespace:
        index, aimed = detection.object_index, np.eye(4)
        aimed[:3, 3] = detection.depth_m * np.linalg.solve(parts.synthesis.K, [*detection.center_px, 1])
        evidence = true_evidence(parts, index, truths[index], aimed=aimed, turn_rad=detection.turn_rad)
        return SimpleNamespace(
            detection=detection, model=parts.objects[index], evidence=lambda: evidence, place_m=evidence.t_m
        )

    monkeypatch.setattr(
        estimator.sight, "gaze", lambda _, __, detections: [look(detection) for detection in detections]
    )
    monkeypatch.setattr(PoseEstimate, "rolled", lambda own, _: own)
    given = [(index, moved(truths[index], 12, 1.04)) for index in (1, 0)]
    refined = estimator.refine(np.zeros((480, 640, 3), np.uint8), parts.synthesis.K, given)
    assert [pose.model.obj_id for pose in refined] == [parts.objects[index].obj_id for index, _ in given]
    for (index, off), found in zip(given, refined, strict=True):
        assert turned_deg(parts, index, off, truths[index]) > 10
        assert turned_deg(parts, index, found.cam_T_obj, truths[index]) < 2
        assert np.linalg.norm(found.cam_T_obj[:3, 3] - truths[index][:3, 3]) < 3e-3
    assert estimator.refine(np.zeros((480, 640, 3), np.uint8), parts.synthesis.K, []) == []
    estimator.search = None
    with pytest.raises(ValueError, match="PoseSearch"):
        estimator.refine(np.zeros((480, 640, 3), np.uint8), parts.synthesis.K, given)


def off_by_a_cell(evidence: Evidence, columns: int) -> Evidence:
    """See everything some cells further to the right."""

    def shifted(cells: np.ndarray) -> np.ndarray:
        return np.roll(cells.reshape(evidence.cells, evidence.cells, -1), columns, 1).reshape(cells.shape)

    return replace(
        evidence,
        visible=shifted(evidence.visible),
        amodal=shifted(evidence.amodal),
        xyz=shifted(evidence.xyz),
    )


@pytest.mark.parametrize("index", [0, 1])
def test_looks_that_are_wrong_in_opposite_ways_are_right_together(parts: Parts, search: PoseSearch, index: int):
    model, truth = parts.objects[index], pose(2)
    further = truth.copy()
    further[:3, 3] *= 1.1
    straight, turned = true_evidence(parts, index, truth), true_evidence(parts, index, truth, 0, further, 0.5)
    assert not np.allclose(straight.K, turned.K)
    half_turned = true_evidence(parts, index, truth, turn_rad=np.pi)
    right, left = off_by_a_cell(straight, 1), off_by_a_cell(straight, -1)

    def error_m(*evidence: Evidence) -> float:
        return float(np.linalg.norm(search.move(model, truth, evidence)[:2, 3] - truth[:2, 3]))

    assert error_m(straight) < 1e-3
    assert error_m(turned) < 1e-3
    assert min(error_m(right), error_m(left), error_m(off_by_a_cell(turned, 1))) > 3e-3
    assert error_m(right, left) < 1e-3
    assert error_m(right, off_by_a_cell(half_turned, 1)) < 1e-3
    beside = truth.copy()
    beside[0, 3] += 3 * model.diameter_m
    assert error_m(straight, true_evidence(parts, index, truth, aimed=beside)) < 1e-3  # a look past it says nothing


@pytest.mark.parametrize("index", [0, 1])
def test_edges_correct_what_maps_see_a_little_beside(parts: Parts, search: PoseSearch, index: int):
    model, truth = parts.objects[index], pose(2)
    beside = off_by_a_cell(true_evidence(parts, index, truth), 1)

    def error_m(evidence: Evidence, by_edges: bool) -> float:
        moved = search.move(model, truth, [evidence], by_edges)
        return float(np.linalg.norm(moved[:2, 3] - truth[:2, 3]))

    by_maps = error_m(beside, by_edges=False)
    assert error_m(beside, by_edges=True) < 0.8 * by_maps
    # A picture without edges pulls nowhere, nor do those of what stands in front.
    plain = replace(beside, crop=np.full_like(beside.crop, 128))
    assert error_m(plain, by_edges=True) > 0.9 * by_maps
    hidden = replace(beside, visible=0.4 * beside.visible)
    assert error_m(hidden, by_edges=True) == error_m(hidden, by_edges=False)


def test_wrong_maps_are_explained_worse(parts: Parts, search: PoseSearch):
    evidence = true_evidence(parts, 0, pose(1))
    right = search.explained(parts.objects[0], search(parts.objects[0], evidence), evidence)
    shuffled = np.random.default_rng(0).permutation(evidence.xyz)
    evidence = replace(evidence, xyz=shuffled)
    wrong = search.explained(parts.objects[0], search(parts.objects[0], evidence), evidence)
    assert wrong < right - 1


def test_outline_of_a_ball_is_its_circle():
    renderer, radius_m, z_m, size = make_renderer(), 0.05, 0.5, 96
    K_crop = np.array([[400.0, 0, 47.5], [0, 400, 47.5], [0, 0, 1]])
    cam_T_obj = np.eye(4)
    cam_T_obj[2, 3] = z_m
    contour = draw_contour(renderer, sphere_mesh(radius_m, subdivisions=5), cam_T_obj, K_crop, size)
    assert contour is not None
    radius_px = 400 * radius_m / np.sqrt(z_m**2 - radius_m**2)
    from_center = contour.uv_px - 47.5
    np.testing.assert_allclose(np.linalg.norm(from_center, axis=1), radius_px, atol=0.5)
    assert abs(np.linalg.norm(from_center, axis=1).mean() - radius_px) < 0.1
    assert (np.einsum("nc,nc->n", contour.normal, from_center) > 0.9 * radius_px).all()
    v, u = np.mgrid[:size, :size]
    for grown_px in (-3.0, 0.0, 4.0):
        disc = np.clip(2 * (radius_px + grown_px - np.hypot(u - 47.5, v - 47.5)), -3, 3).astype(np.float32)
        offset_px, variance_px2 = edge_offsets(disc, contour)
        np.testing.assert_allclose(offset_px, grown_px, atol=0.7)
        assert abs(offset_px.mean() - grown_px) < 0.15
        assert (variance_px2 < 1).all()


def test_an_object_outside_the_picture_has_no_outline():
    cam_T_obj = np.eye(4)
    cam_T_obj[:3, 3] = [3.0, 0, 0.5]
    assert draw_contour(make_renderer(), sphere_mesh(0.05, subdivisions=2), cam_T_obj, K, 96) is None


@given(angle_rad=st.floats(-3, 3), zoom=st.floats(0.5, 2), shift_px=st.tuples(st.floats(-40, 40), st.floats(-40, 40)))
def test_an_outline_in_another_crop_is_the_same_outline(angle_rad: float, zoom: float, shift_px: tuple[float, float]):
    size = 96
    drawn_px = np.linspace(0, 2 * np.pi, 50)
    normal = np.stack([np.cos(drawn_px), np.sin(drawn_px)], 1)
    contour = Contour(47.5 + 30 * normal, normal, np.concatenate([normal, np.ones((50, 1))], 1))
    linear = zoom * Rotation.from_rotvec([0, 0, angle_rad]).as_matrix()[:2, :2]
    other_A_crop = np.eye(3)
    other_A_crop[:2] = np.column_stack([linear, linear @ [-47.5, -47.5] + 47.5 + shift_px])
    seen = contour.seen_in(other_A_crop, size)
    all_px = other_A_crop[:2] @ [47.5, 47.5, 1] + 30 * normal @ linear.T
    num_inside = ((all_px > 0) & (all_px < size - 1)).all(1).sum()
    if seen is None:
        assert num_inside < LEAST_POINTS
        return
    assert len(seen.uv_px) == num_inside
    center_px = other_A_crop[:2] @ [47.5, 47.5, 1]
    np.testing.assert_allclose(seen.uv_px, center_px + 30 * zoom * seen.normal)
    np.testing.assert_allclose(seen.normal, seen.xyz_cam[:, :2] @ (linear / zoom).T, atol=1e-12)


@torch.inference_mode()
def test_a_rolled_camera_sees_upright_pictures(parts: Parts):
    """Of a photograph that was turned, networks are shown what they were shown before, and see it where it was."""
    image = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8).repeat(20, 0).repeat(20, 1)
    height, width = image.shape[:2]
    own_K = np.array([[300.0, 0, (width - 1) / 2], [0, 300, (height - 1) / 2], [0, 0, 1]])
    turned_A_img = np.array([[0.0, -1, height - 1], [1, 0, 0], [0, 0, 1]])
    turned, turned_K = np.rot90(image, -1).copy(), turned_A_img @ own_K
    assert np.isclose(camera_roll_rad(turned_K), np.pi / 2)
    estimator = PoseEstimator(GlanceGaze(parts.network, 2), parts.objects)
    detection = Detection(0, np.array([140.0, 100.0]), 0.5, 1.0, turn_rad=0.2)
    center_px = (turned_A_img @ [*detection.center_px, 1])[:2]
    (own,), (same,) = (
        estimator.sight.gaze(image, own_K, [detection]),
        estimator.sight.gaze(turned, turned_K, [replace(detection, center_px=center_px)]),
    )
    assert np.abs(own.crop.astype(int) - same.crop).mean() < 1
    assert np.allclose(own.K, same.K)
    assert np.allclose(own.t_m, same.t_m, atol=0.02)
    # Back in the turned photograph's own camera, the crop is turned.
    R = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    back = same.rolled(R)
    assert np.allclose(back.K @ back.t_m, same.K @ same.t_m)
    assert np.allclose(R.T @ back.place_m, same.place_m)


@given(st.integers(20, 500), st.integers(20, 500), st.floats(-3, 3).filter(lambda a: abs(a) > 1e-3))
def test_the_glance_is_shown_all_of_a_photograph_that_is_turned(height: int, width: int, roll_rad: float):
    out_A_img, rows, columns = glance_matrix(height, width, 0.5, roll_rad)
    corners = np.array([[u, v, 1] for u in (-0.5, width - 0.5) for v in (-0.5, height - 0.5)])
    uv = (corners @ out_A_img.T)[:, :2]
    assert (uv > -1.5).all()
    assert (uv < np.array([columns, rows]) + 0.5).all()
    assert np.isclose(camera_roll_rad(out_A_img), -roll_rad)
    assert abs(np.sqrt(np.linalg.det(out_A_img[:2, :2])) / 0.5 - 1) < 0.05
