"""Standing: a support that objects agree on tells how far away each of them is."""

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import Parts
from scipy.spatial.transform import Rotation

from glimpose.config import from_dict
from glimpose.nets.glance_gaze import GlanceGaze
from glimpose.objects.catalogue import ObjectModel, object_model
from glimpose.objects.crops import camera_roll_rad
from glimpose.objects.estimator import EstimatorConfig, PoseEstimator
from glimpose.objects.looks import Detection, Look, PoseEstimate
from glimpose.objects.scene_places import learn_errors
from glimpose.objects.standing import (
    Stand,
    Standing,
    StandingPose,
    Support,
    find_support,
    move_together,
    settle,
    unbiased,
    unit_vector,
)
from glimpose.objects.standing_scene import find_standing, with_errors
from glimpose.objects.static_scene import Placement, StaticScene
from glimpose.objects.sweep import sweep
from glimpose.render.mesh import box_mesh
from glimpose.training.checkpoint import save_tensors

SIZES = [(0.1, 0.06, 0.04), (0.12, 0.05, 0.03), (0.08, 0.08, 0.1), (0.05, 0.07, 0.14), (0.09, 0.05, 0.05)]
HALF_TURN = np.diag([1.0, -1.0, -1.0, 1.0])
"""Head over heels."""
UNIT_M = 0.4


@pytest.fixture(scope="module")
def objects() -> list[ObjectModel]:
    """Five boxes, the second of which looks the same upside down."""
    return [
        object_model(i + 1, f"box {i}", box_mesh(size), 8, [HALF_TURN] if i == 1 else [])
        for i, size in enumerate(SIZES)
    ]


def standing_on(height_m: float) -> Standing:
    return Standing((Stand((0.0, 0.0, 1.0), height_m),), range_std=0.02, tilt_std_rad=0.07)


STANDINGS = [standing_on(size[2] / 2) for size in SIZES]


def on_table(rng: np.random.Generator, index: int) -> np.ndarray:
    """world_T_obj of an object that stands on a table whose height is 0."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("z", rng.uniform(0, 2 * np.pi)).as_matrix()
    pose[:3, 3] = *rng.uniform(-0.2, 0.2, 2), SIZES[index][2] / 2
    return pose


def camera(rng: np.random.Generator) -> np.ndarray:
    """cam_T_world, about a metre away and looking down at 25 to 60 degrees."""
    turn = Rotation.from_euler("zx", [rng.uniform(0, 360), 90 + rng.uniform(25, 60)], degrees=True).as_matrix()
    cam_T_world = np.eye(4)
    cam_T_world[:3, :3], cam_T_world[2, 3] = turn, rng.uniform(0.8, 1.1)
    return cam_T_world


def seen(rng: np.random.Generator, cam_T_obj: np.ndarray, range_std: float = 0.015) -> np.ndarray:
    """A pose as inexact as one from a single photograph."""
    found = cam_T_obj.copy()
    found[:3, :3] = Rotation.from_rotvec(rng.normal(0, 0.04, 3)).as_matrix() @ found[:3, :3]
    found[:3, 3] *= np.exp(rng.normal(0, range_std))
    return found


def stand_together(poses: list[StandingPose]) -> list[np.ndarray] | None:
    poses = [unbiased(pose) for pose in poses]
    support = find_support(poses)
    return None if support is None else [settle(pose, support)[0] for pose in poses]


def ranges_off(poses: list[np.ndarray], truth: list[np.ndarray]) -> np.ndarray:
    return np.abs([np.log(a[2, 3] / b[2, 3]) for a, b in zip(poses, truth, strict=True)])


def test_together_objects_are_where_they_stand(objects: list[ObjectModel]):
    """Distances and tilts get better; one that lies in the air stays where it was found."""
    rng = np.random.default_rng(0)
    before, after, tilts = [], [], []
    for _ in range(20):
        cam_T_world = camera(rng)
        truth = [cam_T_world @ on_table(rng, i) for i in range(5)]
        found = [seen(rng, pose) for pose in truth]
        flying = found[4].copy()
        flying[:3, :3] = flying[:3, :3] @ Rotation.from_euler("x", 70, degrees=True).as_matrix()
        poses = [StandingPose(objects[i], STANDINGS[i], pose, 0.6) for i, pose in enumerate([*found[:4], flying])]
        poses[1] = replace(poses[1], cam_T_obj=poses[1].cam_T_obj @ HALF_TURN)
        moved = stand_together(poses)
        assert moved is not None
        before.append(ranges_off(found[:4], truth[:4]))
        after.append(ranges_off(moved[:4], truth[:4]))
        up = cam_T_world[:3, 2]
        tilts.append([np.arccos(np.clip(moved[i][:3, 2] @ up * (-1 if i == 1 else 1), -1, 1)) for i in range(4)])
        assert np.linalg.norm(moved[4][:3, 3] - flying[:3, 3]) < 0.003
    assert np.median(after) < 0.75 * np.median(before)
    assert np.rad2deg(np.median(tilts)) < 2


@given(seed=st.integers(0, 2**32 - 1))
def test_what_stands_stays(objects: list[ObjectModel], seed: int):
    """True poses agree about the support, and aren't moved."""
    rng = np.random.default_rng(seed)
    cam_T_world = camera(rng)
    truth = [cam_T_world @ on_table(rng, i) for i in range(4)]
    poses = [StandingPose(objects[i], STANDINGS[i], pose, rng.uniform(0.1, 1)) for i, pose in enumerate(truth)]
    support = find_support(poses)
    assert support is not None
    expected = Support(np.array([0.0, 0, 1]), 0.0).seen_from(cam_T_world)
    np.testing.assert_allclose(support.up, expected.up, atol=1e-6)
    assert support.offset_m == pytest.approx(expected.offset_m, abs=1e-6)
    for pose in poses:
        moved, belief = settle(pose, support)
        np.testing.assert_allclose(moved, pose.cam_T_obj, atol=1e-6)
        assert belief == pytest.approx(1, abs=1e-3)


def test_what_is_seen_well_places_the_support_for_the_rest(objects: list[ObjectModel]):
    """Three objects are seen exactly but found a little off; the fourth is hardly seen, and found far too near."""
    rng = np.random.default_rng(7)
    cam_T_world = camera(rng)
    truth = [cam_T_world @ on_table(rng, i) for i in range(4)]
    poses = []
    for i, pose in enumerate(truth):
        found = seen(rng, pose, 0.005)
        found[:3, 3] *= 0.98 if i == 3 else 1
        poses.append(StandingPose(objects[i], STANDINGS[i], found, 0.6))
    support = find_support(poses)
    assert support is not None

    def pull(i: int, cam_T_obj: np.ndarray, trust_px: float) -> tuple[np.ndarray, np.ndarray]:
        turn = Rotation.from_matrix(truth[i][:3, :3] @ cam_T_obj[:3, :3].T).as_rotvec()
        move = (truth[i][:3, 3] - cam_T_obj[:3, 3]) / (objects[i].diameter_m / 2)
        weight = 0.0 if i == 3 else 1e6
        return weight * np.eye(6), weight * np.concatenate([turn, move])

    moved = move_together(poses, support, pull)
    alone = [settle(pose, support)[0] for pose in poses]
    for i in range(3):
        np.testing.assert_allclose(moved[i][0], truth[i], atol=2e-3)
    off_m = [np.linalg.norm(pose[:3, 3] - truth[3][:3, 3]) for pose in (moved[3][0], alone[3])]
    assert off_m[0] < 0.7 * off_m[1]
    assert all(0.5 < belief <= 1 for _, belief in moved)


def test_too_few_agree_on_nothing(objects: list[ObjectModel]):
    rng = np.random.default_rng(1)
    cam_T_world = camera(rng)
    poses = [StandingPose(objects[i], STANDINGS[i], cam_T_world @ on_table(rng, i)) for i in range(2)]
    unknown = StandingPose(objects[2], Standing(), cam_T_world @ on_table(rng, 2))
    assert stand_together([]) is None
    assert stand_together(poses[:1]) is None
    assert stand_together([*poses, unknown]) is None
    for pose in (*poses, unknown):
        assert unbiased(pose).cam_T_obj is not pose.cam_T_obj
    moved, belief = settle(unknown, Support(np.array([0.0, 0, 1]), 0.0))
    assert belief == 1
    np.testing.assert_array_equal(moved, unknown.cam_T_obj)


def scene_of(rng: np.random.Generator, num_places: int = 3) -> StaticScene:
    """Objects of five kinds, each turned from place to place, with the world turned over and in units of its own."""
    scene_T_world = np.eye(4)
    scene_T_world[:3, :3] = Rotation.random(random_state=rng).as_matrix()
    scene_T_world[:3, 3] = rng.normal(size=3)
    placements = []
    for index in range(5):
        for _ in range(num_places):
            pose = scene_T_world @ on_table(rng, index)
            tilt = Rotation.from_rotvec(rng.normal(0, 0.01, 3)).as_matrix()
            pose[:3, :3] = tilt @ pose[:3, :3]
            pose[:3, 3] /= UNIT_M
            placements.append(Placement(index, pose, frozenset(range(4))))
    cameras = {}
    for i in range(4):
        cam_T_scene = camera(rng) @ np.linalg.inv(scene_T_world)
        cam_T_scene[:3, 3] /= UNIT_M
        cameras[i] = cam_T_scene
    return StaticScene(cameras, UNIT_M, placements)


def test_a_scene_tells_how_objects_stand(objects: list[ObjectModel]):
    """Up is what objects were turned about; the support is beneath them; one seen too seldom stands in no known way."""
    rng = np.random.default_rng(2)
    scene = scene_of(rng)
    placements = list(scene.placements)
    rare = [i for i, p in enumerate(placements) if p.object_index == 3][1:]
    scene = replace(scene, placements=[p for i, p in enumerate(placements) if i not in rare])
    vertices_m = {model.obj_id: box_mesh(size).vertices for model, size in zip(objects, SIZES, strict=True)}
    learned = find_standing(scene, objects, vertices_m)
    assert learned is not None
    for index, standing in enumerate(learned.standings):
        if index == 3:
            assert standing.stands == ()
            continue
        (stand,) = standing.stands
        assert abs(stand.up[2]) > 0.999 if index == 1 else stand.up[2] > 0.999
        assert stand.height_m == pytest.approx(SIZES[index][2] / 2, abs=0.003)
    for placement in scene.placements:
        hessian, gradient = learned.pull(placement)
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        assert np.abs(step).max() < 0.1  # it stands already
        lifted = placement.scene_T_obj.copy()
        lifted[:3, 3] += 0.01 / UNIT_M * learned.support.up
        hessian, gradient = learned.pull(replace(placement, scene_T_obj=lifted))
        if placement.object_index != 3:
            move_m = (
                np.linalg.lstsq(hessian, gradient, rcond=None)[0][3:] * objects[placement.object_index].diameter_m / 2
            )
            assert move_m @ learned.support.up == pytest.approx(-0.01, abs=0.004)


def test_without_turns_up_is_unknown(objects: list[ObjectModel]):
    vertices_m = {model.obj_id: box_mesh(size).vertices for model, size in zip(objects, SIZES, strict=True)}
    rng = np.random.default_rng(3)
    assert find_standing(scene_of(rng, 1), objects, vertices_m) is None
    scene = scene_of(rng, 4)
    for placement in scene.placements:
        placement.scene_T_obj[:3, :3] = Rotation.random(random_state=rng).as_matrix()
    assert find_standing(scene, objects, vertices_m) is None


def test_errors_of_single_photographs_are_learned(objects: list[ObjectModel]):
    """Of objects compared often enough; then on average nothing is wrong any more."""
    rng = np.random.default_rng(4)
    pairs = []
    for _ in range(200):
        exact = camera(rng) @ on_table(rng, 1)
        found = seen(rng, exact)
        found[:3, 3] *= 1.02
        pairs.append((1, found @ HALF_TURN if rng.random() < 0.5 else found, exact))
    pairs += [(2, exact, exact) for _, _, exact in pairs[:3]]
    learned = with_errors(STANDINGS, objects, pairs)
    assert learned[2] == STANDINGS[2]
    assert learned[1].range_bias == pytest.approx(np.log(1.02), abs=0.004)
    assert learned[1].range_std == pytest.approx(1.5 * 0.015, rel=0.3)
    assert 0.02 < learned[1].tilt_std_rad < 0.12
    moved = [unbiased(StandingPose(objects[1], learned[1], found)).cam_T_obj for _, found, _ in pairs[:200]]
    logs = [np.log(a[2, 3] / exact[2, 3]) for a, (_, _, exact) in zip(moved, pairs, strict=False)]
    assert abs(np.median(logs)) < 1e-6


def test_estimates_stand_and_are_doubted_where_they_do_not(objects: list[ObjectModel], parts: Parts):
    """Of what an estimator finds, too: moved where the others stand, less likely where it can't, free if asked for."""
    rng = np.random.default_rng(5)
    cam_T_world = camera(rng)
    truth = [cam_T_world @ on_table(rng, i) for i in range(5)]
    found = [seen(rng, pose) for pose in truth]
    found[4] = found[4] @ HALF_TURN @ in_air()
    estimator = Judged(GlanceGaze(parts.network, 5), objects, standings=STANDINGS)
    poses = [estimate(objects, i, pose) for i, pose in enumerate(found)]
    support = estimator._support(poses)
    assert support is not None
    doubted = estimator._doubted(poses, support)
    assert [pose.cam_T_obj is before for pose, before in zip(doubted, found, strict=True)] == [True] * 5
    assert min(pose.score for pose in doubted[:4]) > 2 * doubted[4].score > 0.19
    estimator.search = SimpleNamespace(  # type: ignore[assignment]
        pull_all=lambda *_, by_edges: (np.zeros((6, 6)), np.zeros(6)),
        move=lambda _, cam_T_obj, __, by_edges: cam_T_obj @ HALF_TURN if by_edges else cam_T_obj,
    )
    stood = estimator._stood(poses)
    assert [pose.model.obj_id for pose in stood] == [1, 2, 3, 4, 5]
    assert stood[4].score == min(pose.score for pose in stood)
    moved = [StandingPose(pose.model, STANDINGS[pose.model.obj_id - 1], pose.cam_T_obj) for pose in stood[:4]]
    support = find_support(moved)
    assert support is not None
    assert min(settle(pose, support)[1] for pose in moved) > 0.99
    assert estimator._stood(poses[:2]) == poses[:2]
    assert estimator._doubted(poses, None) == poses


@pytest.mark.parametrize(("num_standing", "together"), [(4, True), (1, True), (4, False)])
def test_edges_move_only_what_a_support_holds(
    objects: list[ObjectModel], parts: Parts, num_standing: int, together: bool, monkeypatch: pytest.MonkeyPatch
):
    """They would spoil distances that nothing else tells."""
    rng = np.random.default_rng(5)
    cam_T_world = camera(rng)
    config = EstimatorConfig(looks=1, stand_together=together)
    estimator = Judged(GlanceGaze(parts.network, 5), objects, config, standings=STANDINGS)
    poses = [estimate(objects, i, seen(rng, cam_T_world @ on_table(rng, i))) for i in range(num_standing)]
    by_edges: list[bool] = []
    estimator.search = SimpleNamespace(  # type: ignore[assignment]
        pull_all=lambda *_, by_edges: (np.zeros((6, 6)), np.zeros(6)),
        move=lambda _, cam_T_obj, __, by: by_edges.append(by) or cam_T_obj,
    )
    monkeypatch.setattr(estimator.sight, "gaze", lambda *_: [])
    monkeypatch.setattr(estimator, "_candidates", lambda _: poses)
    monkeypatch.setattr(estimator, "_solve", lambda pose: pose)
    found = estimator.estimate(np.zeros((8, 8, 3), np.uint8), np.eye(3), [])
    assert len(found) == num_standing
    held = together and num_standing == 4
    assert by_edges == [held] * num_standing
    stayed = [any(np.array_equal(pose.cam_T_obj, before.cam_T_obj) for before in poses) for pose in found]
    assert stayed == [not held] * num_standing


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("roll_deg", [-130.0, -30.0, 6.0, 30.0])
def test_a_rolled_camera_looks_again_upright(
    objects: list[ObjectModel], parts: Parts, roll_deg: float, together: bool, monkeypatch: pytest.MonkeyPatch
):
    """What is found the second time is told in the photograph's own camera."""
    rng = np.random.default_rng(6)
    cam_T_world, K = np.eye(4), np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    cam_T_world[:3, :3] = Rotation.from_euler("z", roll_deg, degrees=True).as_matrix()
    cam_T_world = cam_T_world @ camera(rng)
    true = [cam_T_world @ on_table(rng, i) for i in range(5)]
    config = EstimatorConfig(looks=1, looks_around=0, stand_together=together)
    estimator = Judged(GlanceGaze(parts.network, 5), objects, config, standings=STANDINGS)
    estimator.search = SimpleNamespace(  # type: ignore[assignment]
        pull_all=lambda *_, by_edges: (np.zeros((6, 6)), np.zeros(6))
    )
    cameras = []

    def gaze(_: np.ndarray, K_seen: np.ndarray, detections: list[Detection]) -> list[PoseEstimate]:
        """Everything where it is; at first only four of the five."""
        cameras.append(K_seen)
        seen_T_cam = np.eye(4)
        seen_T_cam[:3, :3] = np.linalg.inv(K_seen) @ K
        return [estimate(objects, d.object_index, seen_T_cam @ true[d.object_index]) for d in detections]

    detections = [Detection(i, np.zeros(2), 1.0, 1.0) for i in range(5)]
    for owner, name, stub in (
        (estimator.sight, "gaze", gaze),
        (estimator.sight, "glance", lambda *_: detections[4:]),
        (estimator, "_candidates", lambda poses: poses),
        (estimator, "_solve", lambda pose: pose),
    ):
        monkeypatch.setattr(owner, name, stub)
    found = estimator.estimate(np.zeros((8, 8, 3), np.uint8), K, detections[:4])
    is_rolled = abs(roll_deg) > 10
    assert len(cameras) == 1 + is_rolled
    if is_rolled:
        assert np.allclose(camera_roll_rad(cameras[1]), np.deg2rad(roll_deg), atol=0.02)
    assert {pose.model.obj_id for pose in found} == set(range(1, 5 + is_rolled))
    for pose in found:
        assert np.allclose(pose.cam_T_obj, true[pose.model.obj_id - 1], atol=1e-3)


@given(st.integers(0, 2**31))
def test_a_support_tells_how_a_camera_is_rolled(seed: int):
    rng = np.random.default_rng(seed)
    up = unit_vector(rng.normal(size=3))
    level_R_cam = Support(up, 0.3).roll().T
    assert np.allclose(level_R_cam @ level_R_cam.T, np.eye(3))
    assert level_R_cam[2, 2] == 1
    if np.hypot(*up[:2]) > 0.21:
        assert np.allclose(level_R_cam @ up, [0, -np.hypot(*up[:2]), up[2]])
        angle_rad = abs(camera_roll_rad(level_R_cam))
        assert np.array_equal(Support(up, 0.3).roll(angle_rad + 1e-6), np.eye(3))
        assert np.array_equal(Support(up, 0.3).roll(angle_rad - 1e-6).T, level_R_cam)
    assert np.array_equal(Support(np.array([0.0, 0.1, -0.995]), 0.3).roll(), np.eye(3))


class Judged(PoseEstimator):
    """Finds every pose as likely as any other."""

    def _judged(self, look: Look, evidence: object, cam_T_obj: np.ndarray) -> PoseEstimate:
        return PoseEstimate(look.model, cam_T_obj, 0.5, look, 0.0)


def in_air() -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("x", 60, degrees=True).as_matrix()
    return pose


def estimate(objects: list[ObjectModel], index: int, cam_T_obj: np.ndarray) -> PoseEstimate:
    detection = Detection(index, np.zeros(2), 1.0, 1.0)
    look = SimpleNamespace(detection=detection, model=objects[index], evidence=lambda: None, rolled=lambda _: look)
    return PoseEstimate(objects[index], cam_T_obj, 0.5, look, 0.0)  # type: ignore[arg-type]


def test_a_checkpoint_knows_how_its_objects_stand(objects: list[ObjectModel], parts: Parts, tmp_path: Path):
    weights = {f"model.{k}": v for k, v in GlanceGaze(parts.network, 5).state_dict().items()}
    known = {"kind": "objects", "network": asdict(parts.network), "objects": [model.to_json() for model in objects]}
    save_tensors(tmp_path / "a.safetensors", weights, {**known, "standings": [asdict(s) for s in STANDINGS]})
    save_tensors(tmp_path / "b.safetensors", weights, known)
    assert PoseEstimator.from_checkpoint(tmp_path / "a.safetensors").standings == STANDINGS
    assert PoseEstimator.from_checkpoint(tmp_path / "b.safetensors").standings == []


def test_errors_come_from_what_was_found_nearby(objects: list[ObjectModel]):
    """Poses are compared with the exact one in the same photograph, unless they're of something else."""
    rng = np.random.default_rng(6)
    poses, exact = [], []
    for number in range(12):
        cam_T_obj = camera(rng) @ on_table(rng, 0)
        near, far = cam_T_obj.copy(), cam_T_obj.copy()
        near[:3, 3] *= 1.01
        far[:2, 3] += 0.2
        poses.append([estimate(objects, 0, far)] + ([estimate(objects, 0, near)] if number < 10 else []))
        exact.append((number, 0, cam_T_obj))
    learned = learn_errors(STANDINGS, objects, poses, exact)
    assert learned[0].range_bias == pytest.approx(np.log(1.01))
    assert list(learned[1:]) == STANDINGS[1:]


def test_standings_survive_json():
    standing = Standing((Stand((0.0, 0.6, 0.8), 0.1), Stand((1.0, 0.0, 0.0), 0.2)), 0.01, 0.02, 0.03)
    assert from_dict(Standing, asdict(standing), where="here") == standing


K = np.array([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]])
TABLE = Support(np.array([0.0, 0.0, 1.0]), 0.0)
IMAGE = np.zeros((480, 640, 3), np.uint8)


def on(truth: np.ndarray) -> np.ndarray:
    """Where an object's centre is seen, in pixels."""
    u, v, z = K @ truth[:3, 3]
    return np.array([u, v]) / z


@given(st.integers(0, 2**31), st.floats(0.2, 0.8))
def test_whatever_stands_in_view_is_near_a_detection(seed: int, step: float):
    """Nearer than half a diagonal of the grid, and at about its distance."""
    rng = np.random.default_rng(seed)
    index = int(rng.integers(5))
    model = object_model(index + 1, "box", box_mesh(SIZES[index]), 8)
    cam_T_world = camera(rng)
    truth, side_m = cam_T_world @ on_table(rng, index), 1.5 * model.diameter_m
    if not (0 <= on(truth)[0] < 640 and 0 <= on(truth)[1] < 480):
        return
    z_m = truth[2, 3]
    support = TABLE.seen_from(cam_T_world)
    places = sweep(support, STANDINGS[index], K, (480, 640), side_m, (0.9 * z_m, 1.1 * z_m), step)
    side_px = side_m * 500 / z_m
    off_px, depth_m = min((float(np.linalg.norm(center_px - on(truth))), depth_m) for center_px, depth_m in places)
    assert off_px < 0.85 * step * side_px
    assert abs(np.log(depth_m / z_m)) < 0.35
    for center_px, depth_m in places:
        assert 0.9 / 1.3 < depth_m / z_m < 1.1 * 1.3
        # As high above the table as it stands.
        place = depth_m * np.linalg.solve(K, [*center_px, 1])
        assert support.up @ place - support.offset_m == pytest.approx(SIZES[index][2] / 2, abs=1e-6)


def test_what_stands_in_no_known_way_is_not_looked_for():
    support = TABLE.seen_from(camera(np.random.default_rng(0)))
    assert sweep(support, Standing(), K, (480, 640), 0.2, (0.5, 1.5), 0.5) == []


def test_a_table_behind_the_camera_shows_nothing():
    behind = Support(np.array([0.0, 0.0, -1.0]), 1.0)
    assert sweep(behind, STANDINGS[0], K, (480, 640), 0.2, (0.5, 1.5), 0.5) == []


class Knowing(PoseEstimator):
    """Finds an object wherever it looks near it, and something else, that looks more like it from afar."""

    def __init__(self, parts: Parts, objects: list[ObjectModel], config: EstimatorConfig, seed: int) -> None:
        super().__init__(GlanceGaze(parts.network, 5), objects, config, standings=STANDINGS)
        rng = np.random.default_rng(seed)
        cam_T_world = camera(rng)
        self.truth = []
        while len(self.truth) < 5:
            pose = cam_T_world @ on_table(rng, len(self.truth))
            if 60 < on(pose)[0] < 580 and 60 < on(pose)[1] < 420:
                self.truth.append(pose)
        self.decoy: np.ndarray | None = None
        """Pose of what is taken for the last object."""
        self.num_looks = 0
        nothing = (np.zeros((6, 6)), np.zeros(6))
        self.search = SimpleNamespace(  # type: ignore[assignment]
            pull_all=lambda *_, by_edges: nothing, move=lambda _, cam_T_obj, __, by_edges: cam_T_obj
        )
        self.sight = SimpleNamespace(  # type: ignore[assignment]
            gaze=self.gaze, promising=lambda _, __, detections, ___: detections
        )

    def gaze(self, _: np.ndarray, K: np.ndarray, detections: list[Detection]) -> list[Look]:
        """Two dimensions are enough: where it looks."""
        self.num_looks += len(detections)
        seen = []
        for detection in detections:
            index = detection.object_index
            known = [(self.truth[index], 0.9)]
            if index == 4 and self.decoy is not None:
                known = [(self.truth[4], 0.15), (self.decoy, 0.2)]
            for cam_T_obj, score in known:
                side_px = 1.5 * self.objects[index].diameter_m * 500 / cam_T_obj[2, 3]
                if np.linalg.norm(detection.center_px - on(cam_T_obj)) < 0.3 * side_px:
                    pose = replace(estimate(self.objects, index, cam_T_obj), score=score)
                    pose.look.found = pose  # type: ignore[attr-defined]
                    seen.append(pose.look)
        return seen

    def _candidates(self, looks: list) -> list:
        return looks

    def _solve(self, look: Look) -> PoseEstimate | None:
        return look.found  # type: ignore[attr-defined]

    def _judged(self, look: Look, evidence: object, cam_T_obj: np.ndarray) -> PoseEstimate:
        """Looking closely, it isn't deceived."""
        is_decoy = self.decoy is not None and np.allclose(cam_T_obj[:3, 3], self.decoy[:3, 3], atol=0.02)
        return PoseEstimate(look.model, cam_T_obj, 0.02 if is_decoy else 0.9, look, 0.0)


@pytest.mark.parametrize("instances", [1, None])
@pytest.mark.parametrize("together", [True, False])
def test_what_the_glance_misses_is_found_where_it_stands(
    parts: Parts, objects: list[ObjectModel], instances: int | None, together: bool
):
    """Where it's known that it's there, and that it stands with the others; what is found isn't looked for."""
    config = EstimatorConfig(looks=1, instances_per_object=instances, stand_together=together)
    estimator = Knowing(parts, objects, config, seed=3)
    detections = [Detection.at(i, pose, K) for i, pose in enumerate(estimator.truth)]
    found = estimator.estimate(IMAGE, K, detections[:4])
    is_swept = together and instances is not None
    assert {pose.model.obj_id for pose in found} == set(range(1, 5 + is_swept))
    for pose in found:
        np.testing.assert_allclose(pose.cam_T_obj, estimator.truth[pose.model.obj_id - 1], atol=0.01)
    estimator.num_looks = 0
    assert len(estimator.estimate(IMAGE, K, detections)) == 5
    assert estimator.num_looks == 5 + 5 * config.looks_around


def test_of_doubtful_poses_closer_looks_tell(parts: Parts, objects: list[ObjectModel]):
    estimator = Knowing(parts, objects, EstimatorConfig(looks=1, instances_per_object=1), seed=3)
    estimator.decoy = estimator.truth[4].copy()
    estimator.decoy[:3, 3] += 0.8 * (estimator.truth[0] - estimator.truth[4])[:3, 3]
    detections = [Detection.at(i, pose, K) for i, pose in enumerate([*estimator.truth[:4], estimator.decoy])]
    found = {pose.model.obj_id: pose for pose in estimator.estimate(IMAGE, K, detections)}
    np.testing.assert_allclose(found[5].cam_T_obj, estimator.truth[4], atol=0.01)
    # As surely as the others it isn't replaced.
    sure = replace(estimator.config, doubt=0.0)
    estimator.config = sure
    found = {pose.model.obj_id: pose for pose in estimator.estimate(IMAGE, K, detections)}
    np.testing.assert_allclose(found[5].cam_T_obj[:3, 3], estimator.decoy[:3, 3], atol=0.05)
