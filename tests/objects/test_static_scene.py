"""Static scenes: of many poses, most of them wrong, those that belong together are found, and made exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from glimpose.nets.mtgoe import STRIDE
from glimpose.objects.agreement import Agreement
from glimpose.objects.catalogue import ObjectModel, object_model
from glimpose.objects.equations import rolled
from glimpose.objects.evidence import Evidence, GazeViews
from glimpose.objects.glimpsed import Glimpse
from glimpose.objects.looks import Detection, Look, PoseEstimate
from glimpose.objects.photographs import Photograph
from glimpose.objects.pseudo_labels import PseudoLabel
from glimpose.objects.scene_labels import label_static_scene
from glimpose.objects.static_scene import (
    Placement,
    Sighting,
    StaticScene,
    fit_scene,
    part_placements,
    place_objects,
)
from glimpose.render.mesh import box_mesh
from glimpose.render.scene import Buffers

K = np.array([[570.0, 0, 320], [0, 570, 240], [0, 0, 1]])
SIZES = [(0.1, 0.06, 0.04), (0.12, 0.05, 0.03), (0.08, 0.08, 0.1), (0.05, 0.07, 0.14), (0.09, 0.05, 0.05)]
HALF_TURN = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def objects() -> list[ObjectModel]:
    """Five boxes, the second of which looks the same after half a turn."""
    return [
        object_model(i + 1, f"box {i}", box_mesh(size), 8, [HALF_TURN] if i == 1 else [])
        for i, size in enumerate(SIZES)
    ]


def random_pose(rng: np.random.Generator) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.random(random_state=rng).as_matrix()
    pose[:3, 3] = rng.uniform([-0.25, -0.2, 0.7], [0.25, 0.2, 1.3])
    return pose


def arrangement(rng: np.random.Generator, num: int) -> np.ndarray:
    """world_T_obj of objects that stand apart on a table."""
    poses = np.tile(np.eye(4), (num, 1, 1))
    poses[:, :3, :3] = Rotation.from_euler("z", rng.uniform(0, 2 * np.pi, num)[:, None]).as_matrix()
    places = [(-0.16, -0.1), (0.02, -0.14), (0.17, -0.02), (-0.1, 0.13), (0.1, 0.15)]
    poses[:, :2, 3] = rng.permutation(places)[:num]
    return poses


def camera(rng: np.random.Generator) -> np.ndarray:
    """cam_T_world of a camera about a metre away that looks at the table's middle."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.2)
    back = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0])
    cam_T_world = np.eye(4)
    cam_T_world[:3, :3] = np.stack([right, np.cross(-back, right), -back])
    cam_T_world[2, 3] = rng.uniform(0.8, 1.1)
    return cam_T_world


def sighted(
    rng: np.random.Generator,
    arrangements: list[np.ndarray],
    photographs_each: int,
    share_right: float,
    turn_std: float = 0.06,
) -> tuple[list[Sighting], dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Sightings, each right with some probability and then as inexact as a network's; cameras; and the true poses."""
    sightings, cameras, truth = [], {}, {}
    for number in range(photographs_each * len(arrangements)):
        world_T_obj = arrangements[number // photographs_each]
        cam_T_world = camera(rng)
        cameras[number] = in_units(cam_T_world)
        truth[number] = cam_T_world @ world_T_obj
        for index, pose in enumerate(truth[number]):
            found = random_pose(rng)
            if rng.random() < share_right:
                found = pose.copy()
                found[:3, :3] = Rotation.from_rotvec(rng.normal(0, turn_std, 3)).as_matrix() @ pose[:3, :3]
                found[:3, 3] *= np.exp(rng.normal(0, 0.03))
                found[:2, 3] += rng.normal(0, 0.003, 2)
                if index == 1 and rng.random() < 0.5:
                    found = found @ HALF_TURN
            sightings.append(Sighting(number, index, found, rng.uniform(0.2, 0.6)))
    return sightings, cameras, truth


UNIT_M = 0.37
"""Of the scene, which structure from motion can't know."""


def in_units(cam_T_world: np.ndarray) -> np.ndarray:
    """As structure from motion gives a camera."""
    scaled = cam_T_world.copy()
    scaled[:3, 3] /= UNIT_M
    return scaled


@pytest.mark.parametrize("seed", range(3))
def test_a_third_of_the_poses_is_enough(objects: list[ObjectModel], seed: int):
    """From sightings of which two thirds are wrong come the scene's unit, and objects more exact than right ones."""
    rng = np.random.default_rng(seed)
    sightings, cameras, truth = sighted(rng, [arrangement(rng, 5)], 30, 0.35)
    scene = place_objects(sightings, cameras, [K] * 30, objects)
    assert scene.unit_m == pytest.approx(UNIT_M, rel=0.02)
    assert sorted(p.object_index for p in scene.placements) == list(range(5))
    for placement in scene.placements:
        assert 5 <= len(placement.photographs) <= 20
        pose = scene.cam_T_obj(0, placement)
        true = truth[0][placement.object_index]
        equivalents = pose @ objects[placement.object_index].symmetries.numpy()
        turns = Rotation.from_matrix(true[:3, :3].T @ equivalents[:, :3, :3]).magnitude()
        assert np.rad2deg(turns.min()) < 8
        assert np.linalg.norm(pose[:3, 3] - true[:3, 3]) < 0.04


def test_objects_may_be_moved_in_between(objects: list[ObjectModel]):
    """Of an object that stood in two places both are found, each by the photographs that show it there."""
    rng = np.random.default_rng(4)
    before = arrangement(rng, 5)
    after = before.copy()
    after[2, :2, 3] = [0.3, 0.3]
    sightings, cameras, _ = sighted(rng, [before, after], 15, 0.7)
    scene = place_objects(sightings, cameras, [K] * 30, objects)
    assert sorted(p.object_index for p in scene.placements) == [0, 1, 2, 2, 3, 4]
    first, second = sorted((p for p in scene.placements if p.object_index == 2), key=lambda p: min(p.photographs))
    assert max(first.photographs) < 15 <= min(second.photographs)


def test_what_is_not_there_is_not_placed(objects: list[ObjectModel]):
    """One object is taken for another at the same place, and a third is never sighted right: neither is placed."""
    rng = np.random.default_rng(5)
    sightings, cameras, _ = sighted(rng, [arrangement(rng, 5)[:4]], 25, 0.8)
    sightings = [s for s in sightings if s.object_index not in (2, 3)]
    for s in [s for s in sightings if s.object_index == 0]:
        sightings += [Sighting(s.photograph, 3, s.cam_T_obj, 0.1), Sighting(s.photograph, 2, random_pose(rng), 0.3)]
    scene = place_objects(sightings, cameras, [K] * 25, objects)
    assert sorted(p.object_index for p in scene.placements) == [0, 1]


def test_an_object_turned_round_in_its_place_is_one_object_seen_wrong(objects: list[ObjectModel]):
    """Where a part of the photographs has it back to front, the greater part is believed."""
    rng = np.random.default_rng(6)
    sightings, cameras, _ = sighted(rng, [arrangement(rng, 5)], 30, 1.0)
    sightings = [replace(s, cam_T_obj=s.cam_T_obj @ HALF_TURN) if s.photograph % 3 == 0 else s for s in sightings]
    scene = place_objects(sightings, cameras, [K] * 30, objects)
    assert len(scene.placements) == 5
    asymmetric = [placement for placement in scene.placements if placement.object_index != 1]
    assert all(number % 3 for placement in asymmetric for number in placement.photographs)


def test_nothing_in_common_is_an_error(objects: list[ObjectModel]):
    rng = np.random.default_rng(6)
    _, cameras, _ = sighted(rng, [arrangement(rng, 5)], 4, 0.0)
    with pytest.raises(ValueError, match="how large the scene is"):
        place_objects([], cameras, [K] * 4, objects)


class Teacher:
    """Says of photograph i, whose pixels are all i, what it is told to; looking again, it sees what is there."""

    def __init__(self, objects: list[ObjectModel], sightings: list[Sighting], truth: dict[int, np.ndarray]) -> None:
        self.objects, self.sightings, self.truth = objects, sightings, truth
        self.search = self.sight = self
        self.meshes = {model.obj_id: box_mesh(size) for model, size in zip(objects, SIZES, strict=True)}
        self.disowned = -1
        """Object that is hardly likely to be anywhere."""
        self.dim = -1
        """Photograph in which all poses are hardly likely."""
        self.exact: set[int] = set()
        """Photographs in which it sees exactly where objects are, looking close."""
        self.faint: set[tuple[int, int]] = set()
        """Photographs and objects whose poses it hardly believes."""
        self.hidden: set[tuple[int, int]] = set()
        """Photographs and objects that aren't seen in them."""
        self.covered: dict[tuple[int, int], float] = {}
        """By photograph and object, how much is seen of it: too little to know it by, if it's given here."""
        self.told_apart: set[tuple[int, int]] = set()
        """Photographs and objects whose poses it hardly believes if they are turned otherwise than is true."""
        self.decoys: dict[tuple[int, int], np.ndarray] = {}
        """By photograph and object, the pose of something else that is taken for it."""
        self.askew: dict[int, np.ndarray] = {}
        """By photograph, cam_R_level where its camera is rolled."""

    def level(self, poses: list[PoseEstimate]) -> np.ndarray:
        return self.askew.get(poses[0].look.crop.flat[0], np.eye(3)) if poses else np.eye(3)

    def __call__(self, image: np.ndarray, K: np.ndarray) -> list[PoseEstimate]:
        own = [s for s in self.sightings if s.photograph == image.flat[0]]
        return [self.estimate(image.flat[0], K, s.object_index, s.cam_T_obj, overlap=0.9) for s in own]

    def class_probabilities(self, image: np.ndarray) -> np.ndarray:
        return np.stack([np.full((2, 2), p, np.float32) for p in (0.5, 0.2, 0.1, 0.1, 0.05, 0.05)])

    def verify(
        self, image: np.ndarray, K_upright: np.ndarray, poses: list[tuple[int, np.ndarray]]
    ) -> list[PoseEstimate]:
        number, looked = image.flat[0], []
        assert np.allclose(K_upright, K @ self.askew.get(number, np.eye(3)))
        for index, level_T_obj in poses:
            pose = rolled(level_T_obj, self.askew.get(number, np.eye(3)))
            decoy = self.decoys.get((number, index))
            is_there = is_near(pose, self.truth[number][index]) and (number, index) not in (*self.hidden, *self.covered)
            is_taken = decoy is not None and is_near(pose, decoy)
            estimate = self.estimate(
                number, K_upright, index, level_T_obj, overlap=0.9 if is_there or is_taken else 0.0
            )
            is_faint = (number, index) in self.faint
            if (number, index) in self.told_apart:
                is_faint = turn_deg(pose, self.truth[number][index]) > 20
            score = 0.25 if is_taken else 0.04 if is_faint else estimate.score
            looked.append(replace(estimate, score=score))
        return [replace(pose, score=0.03) for pose in looked] if number == self.dim else looked

    def pull(
        self, model: ObjectModel, cam_T_obj: np.ndarray, evidence: Evidence, trust_px: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """As a search, it's content with every pose, or pulls to where it sees the object."""
        if not evidence.t_m.any():
            return np.zeros((6, 6)), np.zeros(6)
        move = (evidence.t_m - cam_T_obj[:3, 3]) / (model.diameter_m / 2)
        return 1e4 * np.diag([0, 0, 0, 1, 1, 1]), 1e4 * np.concatenate([np.zeros(3), move])

    def move(self, model: ObjectModel, cam_T_obj: np.ndarray, evidence: list) -> np.ndarray:
        """The same."""
        return cam_T_obj

    def draw(self, model: ObjectModel, cam_T_obj: np.ndarray, evidence: Evidence) -> Buffers:
        """The object fills its crop."""
        full = np.ones((2 * STRIDE, 2 * STRIDE), np.uint8)
        nothing = np.zeros((*full.shape, 3), np.float32)
        return Buffers(nothing.astype(np.uint8), nothing, full.astype(np.float32), full, nothing)

    def estimate(self, number: int, K: np.ndarray, index: int, pose: np.ndarray, overlap: float) -> PoseEstimate:
        one, none = torch.ones(1, 4), torch.zeros(1, 4, 3)
        visible = one * self.covered.get((number, index), 1.0)
        views = GazeViews(visible, one, one, none, one, none[:, 0, :2], one[:, 0], none, none, one[:, 0], one)
        look = Look(
            Detection(index, np.zeros(2), 1.0, 1.0),
            self.objects[index],
            np.full((8, 8, 3), number, np.uint8),
            torch.from_numpy(K),
            views,
            0,
            1.0,
            torch.from_numpy(self.truth[number][index][:3, 3])
            if number in self.exact
            else torch.zeros(3, dtype=torch.float64),
        )
        agreement = Agreement(0.9, overlap, *[0.9] * 6)
        score = 0.05 if index == self.disowned else 0.3
        return PoseEstimate(self.objects[index], pose, score, look, 0.0, agreement)


@pytest.mark.parametrize("roll_deg", [0.0, 30.0])
def test_labels_come_from_the_scene(objects: list[ObjectModel], monkeypatch: pytest.MonkeyPatch, roll_deg: float):
    """Objects are labelled where they stand, found there or not, unless nothing of the kind is seen there.

    Photographs that are askew are looked at upright, which changes nothing else.
    """
    without_edges(monkeypatch)
    rng = np.random.default_rng(8)
    before = arrangement(rng, 5)
    after = before.copy()
    after[3, :2, 3] = [0.25, 0.25]  # moved once, for the last few photographs
    sightings, cameras, truth = sighted(rng, [before, before, before, after], 6, 0.7)
    teacher = Teacher(objects, sightings, truth)
    teacher.disowned = 2
    level = Rotation.from_euler("z", roll_deg, degrees=True).as_matrix()
    teacher.askew = {3: level, 8: level.T, 20: level}
    photographs = [Photograph(np.full((480, 640, 3), i, np.uint8), K) for i in range(24)]
    del cameras[7]
    teacher.dim = 23  # the last one, so no later one tells that objects stay
    labels = label_static_scene(teacher, photographs, cameras)  # type: ignore[arg-type]
    believed = [label for label in labels.labels if label.weight > 0]
    assert len({(label.photograph, label.object_index) for label in believed}) == len(believed)
    assert len(believed) > 23 * 3 + 17
    for label in believed:
        true = truth[label.photograph][label.object_index]
        assert np.linalg.norm(label.cam_T_obj[:3, 3] - true[:3, 3]) < 0.1
    assert all(label.object_index != 2 and label.photograph != 7 for label in believed)
    found = {(s.photograph, s.object_index) for s in sightings if is_right(s, truth)}
    assert any((label.photograph, label.object_index) not in found for label in believed)
    assert all((label.weight < 0.02) == (label.photograph == 23) for label in believed)
    assert max(label.weight for label in believed) == 1
    for number, background in enumerate(labels.background):
        # What looks like an object that is labelled elsewhere in the photograph isn't it.
        own = {label.object_index: label.weight for label in believed if label.photograph == number}
        likely = 0.5 + sum(weight * (0.2, 0.1, 0.1, 0.05, 0.05)[index] for index, weight in own.items())
        np.testing.assert_allclose(background, likely, atol=1e-6)
    assert labels.mistaken
    for label in labels.mistaken:
        standing = [b for b in believed if (b.photograph, b.object_index) == (label.photograph, label.object_index)]
        assert len(standing) == 1
        assert label.weight == standing[0].weight
        seen_px = [(K @ b.cam_T_obj[:3, 3])[:2] / b.cam_T_obj[2, 3] for b in (label, standing[0])]
        assert np.linalg.norm(seen_px[0] - seen_px[1]) > 30


@pytest.mark.parametrize(("margin", "weight"), [(0.05, 1.0), (0.02, 0.4), (0.0, 0.012), (-0.02, 0.012)])
def test_edges_tell_what_the_teacher_has_yet_to_learn(
    objects: list[ObjectModel], monkeypatch: pytest.MonkeyPatch, margin: float, weight: float
):
    """Where it finds an object unlikely, edges tell whether it's still in its place; without them, it hardly counts."""
    without_edges(monkeypatch)
    rng = np.random.default_rng(15)
    sightings, cameras, truth = sighted(rng, [arrangement(rng, 5)], 12, 1.0)
    teacher = Teacher(objects, sightings, truth)
    teacher.dim = 11

    def in_dim_photograph(model: ObjectModel, cam_T_obj: np.ndarray, *_: object) -> float:
        return margin if is_near(cam_T_obj, truth[11][model.obj_id - 1]) else 0.0

    monkeypatch.setattr("glimpose.objects.trust.edge_margin", in_dim_photograph)
    photographs = [Photograph(np.full((480, 640, 3), i, np.uint8), K) for i in range(12)]
    labels = label_static_scene(teacher, photographs, cameras)  # type: ignore[arg-type]
    weights = [label.weight for label in labels.labels if label.photograph == 11 and label.weight > 0]
    assert weights == pytest.approx([weight] * 5, abs=0.001)


@pytest.mark.parametrize("roll_deg", [0.0, 30.0])
def test_what_was_labelled_before_is_looked_for_again(
    objects: list[ObjectModel], monkeypatch: pytest.MonkeyPatch, roll_deg: float
):
    """A teacher that no longer finds an object by itself still knows it where it was labelled."""
    without_edges(monkeypatch)
    rng = np.random.default_rng(8)
    sightings, cameras, truth = sighted(rng, [arrangement(rng, 5)], 8, 1.0)
    teacher = Teacher(objects, sightings, truth)
    teacher.askew = {3: Rotation.from_euler("z", roll_deg, degrees=True).as_matrix()}
    photographs = [Photograph(np.full((480, 640, 3), i, np.uint8), K) for i in range(8)]
    before = label_static_scene(teacher, photographs, cameras).labels  # type: ignore[arg-type]
    teacher.sightings = [s for s in sightings if s.object_index != 1]

    def labelled(*before: list[PseudoLabel]) -> dict[int, np.ndarray]:
        labels = label_static_scene(teacher, photographs, cameras, *before).labels  # type: ignore[arg-type]
        return {label.photograph: label.cam_T_obj for label in labels if label.object_index == 1 and label.weight > 0.5}

    assert not labelled()
    again = labelled(before)
    assert list(again) == list(range(8))
    assert all(is_near(pose, truth[number][1]) for number, pose in again.items())


def test_one_photograph_is_enough_for_what_stands(objects: list[ObjectModel], monkeypatch: pytest.MonkeyPatch):
    """Objects were turned from place to place, so it's known how they stand; the support tells distances."""
    without_edges(monkeypatch)
    rng = np.random.default_rng(11)
    places = [arrangement(rng, 5) for _ in range(3)]
    once = places[0].copy()
    once[2] = once[2] @ in_place_turned(70)
    once[2, :2, 3] = [0.3, -0.25]
    sightings, cameras, truth = sighted(rng, [*places[:1] * 7, *places[1:2] * 7, *places[2:] * 7, once], 1, 1.0, 0.01)
    photographs = [Photograph(np.full((480, 640, 3), i, np.uint8), K) for i in range(22)]
    sightings = [replace(s, score=0.4) for s in sightings]
    teacher = Teacher(objects, sightings, truth)
    teacher.exact = set(range(21))
    labels = label_static_scene(teacher, photographs, cameras)  # type: ignore[arg-type]
    assert [len(standing.stands) for standing in labels.standings] == [1] * 5
    (label,) = (label for label in labels.labels if (label.photograph, label.object_index) == (21, 2))
    (found,) = (s for s in sightings if (s.photograph, s.object_index) == (21, 2))
    assert label.weight > 0.9
    off_m = [np.linalg.norm(pose[:3, 3] - truth[21][2][:3, 3]) for pose in (label.cam_T_obj, found.cam_T_obj)]
    assert off_m[0] < 0.5 * off_m[1]


def test_what_was_turned_in_its_place_is_looked_for_anew(objects: list[ObjectModel], monkeypatch: pytest.MonkeyPatch):
    """Something of the kind is seen in its place, but far less likely than in other photographs."""
    without_edges(monkeypatch)
    rng = np.random.default_rng(14)
    places = [arrangement(rng, 5) for _ in range(3)]
    turned = places[2].copy()
    turned[2] = turned[2] @ in_place_turned(90)
    sightings, cameras, truth = sighted(rng, [*places[:1] * 7, *places[1:2] * 7, *places[2:] * 7, turned], 1, 1.0, 0.01)
    photographs = [Photograph(np.full((480, 640, 3), i, np.uint8), K) for i in range(22)]
    teacher = Teacher(objects, [replace(s, score=0.4) for s in sightings], truth)
    teacher.told_apart = {(21, 2)}
    labels = label_static_scene(teacher, photographs, cameras)  # type: ignore[arg-type]
    (label,) = (label for label in labels.labels if (label.photograph, label.object_index) == (21, 2))
    assert turn_deg(label.cam_T_obj, truth[21][2]) < 5
    assert label.weight > 0.9


@pytest.mark.parametrize("is_told_apart", [True, False])
def test_what_is_taken_for_an_object_elsewhere_is_no_label(
    objects: list[ObjectModel], monkeypatch: pytest.MonkeyPatch, is_told_apart: bool
):
    """Where the object is hidden, something else is taken for it; but also in photographs that show the object."""
    without_edges(monkeypatch)
    rng = np.random.default_rng(12)
    sightings, cameras, truth = sighted(rng, [arrangement(rng, 5)], 20, 1.0)
    teacher = Teacher(objects, sightings, truth)
    for number, camera_ in cameras.items():
        teacher.decoys[number, 2] = camera_.copy()  # in the middle of the table
        teacher.decoys[number, 2][:3, 3] *= UNIT_M
    teacher.hidden = {(number, 2) for number in range(12, 20)}
    shown = range(20) if is_told_apart else range(12, 20)
    sightings[:] = [s for s in sightings if (s.photograph, s.object_index) not in teacher.hidden]
    sightings += [Sighting(number, 2, teacher.decoys[number, 2], 0.25) for number in shown]
    if not is_told_apart:
        teacher.decoys = {pair: pose for pair, pose in teacher.decoys.items() if pair in teacher.hidden}
    photographs = [Photograph(np.full((480, 640, 3), i, np.uint8), K) for i in range(20)]
    labels = label_static_scene(teacher, photographs, cameras)  # type: ignore[arg-type]
    labelled = {label.photograph for label in labels.labels if label.object_index == 2 and label.weight > 0}
    assert labelled == set(range(12)) if is_told_apart else labelled > set(range(12))


def test_what_is_hidden_is_labelled_between_photographs_that_show_it(
    objects: list[ObjectModel], monkeypatch: pytest.MonkeyPatch
):
    """In the same place, if anything is seen of it; what's taken for it elsewhere then isn't it."""
    without_edges(monkeypatch)
    rng = np.random.default_rng(16)
    before, after = arrangement(rng, 5), arrangement(rng, 5)
    sightings, cameras, truth = sighted(rng, [before, after], 8, 1.0)
    teacher = Teacher(objects, sightings, truth)
    teacher.covered = {(3, 2): 0.3, (4, 2): 0.02, (7, 1): 0.3, (8, 1): 0.3, (15, 0): 0.3}
    sightings[:] = [s for s in sightings if (s.photograph, s.object_index) not in teacher.covered]
    elsewhere = cameras[3].copy()
    elsewhere[:3, 3] *= UNIT_M
    sightings.append(Sighting(3, 2, elsewhere, 0.25))
    photographs = [Photograph(np.full((480, 640, 3), i, np.uint8), K) for i in range(16)]
    labels = label_static_scene(teacher, photographs, cameras)  # type: ignore[arg-type]
    believed = {(label.photograph, label.object_index): label for label in labels.labels if label.weight > 0}
    # Where almost nothing shows, or where it was moved before or after, it may not be there.
    assert set(teacher.covered) & set(believed) == {(3, 2)}
    assert is_near(believed[3, 2].cam_T_obj, truth[3][2])
    assert believed[3, 2].weight > 0.9
    assert [(label.photograph, label.object_index) for label in labels.mistaken] == [(3, 2)]


@pytest.mark.parametrize("is_decoy", [False, True])
def test_what_is_glimpsed_is_labelled_where_edges_have_it(
    objects: list[ObjectModel], monkeypatch: pytest.MonkeyPatch, is_decoy: bool
):
    """Turned otherwise in each photograph, it's in no place; once it is, doubt about all of it alike is none.

    But what looks like it also in photographs that show it elsewhere isn't it.
    """
    without_edges(monkeypatch)
    rng = np.random.default_rng(13)
    places = [arrangement(rng, 5) for _ in range(3)]
    sightings, cameras, truth = sighted(rng, places, 7, 1.0, 0.01)
    teacher = Teacher(objects, [], truth)
    teacher.faint = {(number, 3) for number in range(7)}
    for s in sightings:
        pose = s.cam_T_obj.copy()
        if (s.photograph, s.object_index) in teacher.faint:
            pose[:3, :3] = Rotation.random(random_state=rng).as_matrix()
        teacher.sightings.append(replace(s, cam_T_obj=pose, score=0.2))
    asked = []
    place = places[0][3].copy()
    if is_decoy:
        place[:2, 3] = 0.0, 0.0
        teacher.hidden = teacher.faint
        teacher.decoys = {(n, 3): camera_ @ in_units(place) for n, camera_ in cameras.items()}
        for pose in teacher.decoys.values():
            pose[:3, 3] *= UNIT_M

    def by_edges(glimpse: Glimpse, evidence: object, scene: StaticScene, *_: object) -> Placement:
        asked.append(glimpse)
        return Placement(3, in_units(place), frozenset(glimpse.photographs), 0.1)

    monkeypatch.setattr("glimpose.objects.scene_places.place_glimpsed", by_edges)
    photographs = [Photograph(np.full((480, 640, 3), i, np.uint8), K) for i in range(21)]
    labels = label_static_scene(teacher, photographs, cameras)  # type: ignore[arg-type]
    assert [glimpse.object_index for glimpse in asked] == [3, 3]
    weights = {
        label.photograph: label.weight for label in labels.labels if label.object_index == 3 and label.weight > 0
    }
    assert weights == dict.fromkeys(range(7, 21) if is_decoy else range(21), 1.0)


def without_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """These photographs have none, so they tell nothing."""
    for name in ("turn_objects", "fit_to_edges"):
        monkeypatch.setattr(f"glimpose.objects.scene_places.{name}", lambda scene, *_: scene)
    monkeypatch.setattr("glimpose.objects.trust.edge_margin", lambda *_: 0.0)


def is_near(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.linalg.norm(a[:3, 3] - b[:3, 3]) < 0.1)


def turn_deg(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.rad2deg(Rotation.from_matrix(a[:3, :3].T @ b[:3, :3]).magnitude()))


def is_right(sighting: Sighting, truth: dict[int, np.ndarray]) -> bool:
    true = truth[sighting.photograph][sighting.object_index]
    return bool(np.linalg.norm(sighting.cam_T_obj[:3, 3] - true[:3, 3]) < 0.1)


def magnet(
    model: ObjectModel, cam_T_obj: np.ndarray, seen: np.ndarray, trust_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pull every pose to the one that is seen."""
    turn = Rotation.from_matrix(seen[:3, :3] @ cam_T_obj[:3, :3].T).as_rotvec()
    move = (seen[:3, 3] - cam_T_obj[:3, 3]) / (model.diameter_m / 2)
    return 1e4 * np.eye(6), 1e4 * np.concatenate([turn, move])


def test_a_scene_is_fitted_to_all_evidence_at_once(objects: list[ObjectModel]):
    """Objects that are off, and a unit that is wrong, come to where every pair is right, those unseen, too."""
    rng = np.random.default_rng(9)
    world_T_obj = arrangement(rng, 5)
    cameras = [camera(rng) for _ in range(4)]
    placements = []
    for index, pose in enumerate(world_T_obj):
        off = in_units(pose)
        off[:3, :3] = Rotation.from_rotvec(rng.normal(0, 0.05, 3)).as_matrix() @ pose[:3, :3]
        off[:3, 3] += rng.normal(0, 0.02, 3)
        placements.append(Placement(index, off, frozenset()))
    scene = StaticScene({i: in_units(pose) for i, pose in enumerate(cameras)}, 1.04 * UNIT_M, placements)
    truth = {(i, k): cameras[i] @ world_T_obj[k] for i in range(4) for k in range(5)}
    seen = {pair: pose for pair, pose in truth.items() if pair != (2, 3)}
    fitted = fit_scene(scene, seen, objects, magnet)
    assert fitted.unit_m == pytest.approx(UNIT_M, rel=1e-5)
    for (i, k), pose in truth.items():
        assert np.abs(scene.cam_T_obj(i, placements[k]) - pose).max() > 1e-3
        assert np.abs(fitted.cam_T_obj(i, fitted.placements[k]) - pose).max() < 1e-5


def test_places_of_an_object_that_was_moved_by_little_are_parted(objects: list[ObjectModel]):
    """Taken for one, the two are wrong in all photographs; parted, each is right, and what agrees with none is out."""
    rng = np.random.default_rng(10)
    before = arrangement(rng, 5)
    after = before.copy()
    after[0, 0, 3] += 0.012
    cameras = [camera(rng) for _ in range(14)]
    truth = {(i, k): cameras[i] @ (before if i < 8 else after)[k] for i in range(14) for k in range(5)}
    truth[3, 4] = cameras[3] @ before[4] @ in_place_turned(40.0)  # turned for one photograph
    placements = [Placement(k, in_units(before[k]), frozenset(range(14))) for k in range(5)]
    scene = StaticScene({i: in_units(pose) for i, pose in enumerate(cameras)}, UNIT_M, placements)
    sightings = []
    for (i, k), pose in truth.items():
        seen = pose.copy()
        seen[:3, 3] *= np.exp(rng.normal(0, 0.01))
        sightings.append(Sighting(i, k, seen, 0.5))
    parted = part_placements(scene, sightings, truth, [K] * 14, objects, magnet)
    assert sorted(p.object_index for p in parted.placements) == [0, 0, 1, 2, 3, 4]
    shown = [sorted(p.photographs) for p in parted.placements if p.object_index == 0]
    assert sorted(shown) == [list(range(8)), list(range(8, 14))]
    assert parted.unit_m == UNIT_M
    for p in parted.placements:
        assert (3 in p.photographs) == (p.object_index != 4 and min(p.photographs) == 0)
        for i in p.photographs:
            assert np.abs(parted.cam_T_obj(i, p) - truth[i, p.object_index]).max() < 1e-4


def in_place_turned(degrees: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
    return pose
