"""Layouts by consensus: of many poses, most of them wrong, those that belong together are found."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from glimpose.objects.agreement import Agreement
from glimpose.objects.catalogue import ObjectModel, object_model
from glimpose.objects.estimator import Detection, Look, PoseEstimate
from glimpose.objects.evidence import GazeViews
from glimpose.objects.photographs import Photograph
from glimpose.objects.pseudo_labels import label_static_scene
from glimpose.objects.static_scene import Layout, Sighting, find_layouts, fit_layout
from glimpose.render.mesh import box_mesh

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
    rng: np.random.Generator, arrangements: list[np.ndarray], photographs_each: int, share_right: float
) -> tuple[list[Sighting], dict[int, np.ndarray]]:
    """Sightings, each right with some probability and then as inexact as a network's; and the true poses."""
    sightings, truth = [], {}
    for number in range(photographs_each * len(arrangements)):
        world_T_obj = arrangements[number // photographs_each]
        truth[number] = camera(rng) @ world_T_obj
        for index, pose in enumerate(truth[number]):
            found = random_pose(rng)
            if rng.random() < share_right:
                found = pose.copy()
                found[:3, :3] = Rotation.from_rotvec(rng.normal(0, 0.06, 3)).as_matrix() @ pose[:3, :3]
                found[:3, 3] *= np.exp(rng.normal(0, 0.03))
                found[:2, 3] += rng.normal(0, 0.003, 2)
                if index == 1 and rng.random() < 0.5:
                    found = found @ HALF_TURN
            sightings.append(Sighting(number, index, found, rng.uniform(0.2, 0.6)))
    return sightings, truth


@pytest.mark.parametrize("seed", range(3))
def test_half_of_the_poses_are_enough(objects: list[ObjectModel], seed: int):
    """From sightings of which half are wrong comes a layout that is more exact than the right ones."""
    rng = np.random.default_rng(seed)
    sightings, truth = sighted(rng, [arrangement(rng, 5)], 30, 0.5)
    (layout,) = find_layouts(sightings, [K] * 30, objects)
    assert set(layout.scene_T_obj) == set(range(5))
    assert len(layout.cam_T_scene) >= 8
    assert all(4 <= count <= len(layout.cam_T_scene) for count in layout.support.values())
    errors_deg, across_m, along = [], [], []
    for number in layout.cam_T_scene:
        for index, pose in layout.cam_T_obj(number).items():
            equivalents = pose @ objects[index].symmetries.numpy()
            turns = Rotation.from_matrix(truth[number][index][:3, :3].T @ equivalents[:, :3, :3])
            errors_deg.append(np.rad2deg(turns.magnitude().min()))
            true_t = truth[number][index][:3, 3]
            ray = true_t / np.linalg.norm(true_t)
            off = pose[:3, 3] - true_t
            across_m.append(np.linalg.norm(off - off @ ray * ray))
            along.append(abs(off @ ray) / true_t[2])
    assert np.median(errors_deg) < 3.5  # the right sightings' median is 5.3
    assert np.median(across_m) < 0.004
    assert np.median(along) < 0.015  # theirs is 0.02
    assert np.quantile(errors_deg, 0.95) < 10


def test_arrangements_are_told_apart(objects: list[ObjectModel]):
    """Objects that were moved in between make two layouts, and no photograph belongs to both."""
    rng = np.random.default_rng(4)
    sightings, _ = sighted(rng, [arrangement(rng, 5), arrangement(rng, 5)], 20, 0.7)
    layouts = find_layouts(sightings, [K] * 40, objects)
    assert len(layouts) == 2
    first, second = sorted(sorted(layout.cam_T_scene) for layout in layouts)
    assert len(first) > 10
    assert first[-1] < 20
    assert len(second) > 10
    assert second[0] >= 20


def test_what_is_not_there_is_not_placed(objects: list[ObjectModel]):
    """One object is taken for another at the same place, and a third is never sighted right: neither is placed."""
    rng = np.random.default_rng(5)
    sightings, _ = sighted(rng, [arrangement(rng, 5)[:4]], 25, 0.8)
    sightings = [s for s in sightings if s.object_index not in (2, 3)]
    for s in [s for s in sightings if s.object_index == 0]:
        sightings += [Sighting(s.photograph, 3, s.cam_T_obj, 0.1), Sighting(s.photograph, 2, random_pose(rng), 0.3)]
    sightings += [Sighting(s.photograph, 4, s.cam_T_obj @ _beside(), 0.4) for s in sightings if s.object_index == 0]
    (layout,) = find_layouts(sightings, [K] * 25, objects)
    assert set(layout.scene_T_obj) == {0, 1, 4}  # and 3 is where 0 is


def _beside() -> np.ndarray:
    pose = np.eye(4)
    pose[0, 3] = 0.15
    return pose


def test_nothing_in_common_is_no_layout(objects: list[ObjectModel]):
    rng = np.random.default_rng(6)
    sightings, _ = sighted(rng, [arrangement(rng, 5)], 20, 0.0)
    assert find_layouts(sightings, [K] * 20, objects) == []
    assert find_layouts([], [K] * 20, objects) == []
    assert find_layouts([], [], objects) == []


def test_photographs_without_a_camera_have_no_poses(objects: list[ObjectModel]):
    rng = np.random.default_rng(7)
    sightings, _ = sighted(rng, [arrangement(rng, 5)], 20, 0.9)
    sightings = [s for s in sightings if s.photograph != 3]
    (layout,) = find_layouts(sightings, [K] * 20, objects)
    assert layout.cam_T_obj(3) == {}
    assert torch.tensor(layout.cam_T_obj(4)[0]).shape == (4, 4)


class Teacher:
    """Says of photograph i, whose pixels are all i, what it is told to; looking again, it sees what is there."""

    def __init__(self, objects: list[ObjectModel], sightings: list[Sighting], truth: dict[int, np.ndarray]) -> None:
        self.objects, self.sightings, self.truth = objects, sightings, truth
        self.search = self
        self.disowned = -1
        """Object whose coordinates agree with no pose."""

    def __call__(self, image: np.ndarray, K: np.ndarray) -> list[PoseEstimate]:
        own = [s for s in self.sightings if s.photograph == image.flat[0]]
        return [self.estimate(K, s.object_index, s.cam_T_obj, overlap=0.9) for s in own]

    def background_probability(self, image: np.ndarray) -> np.ndarray:
        return np.ones((2, 2), np.float32)

    def verify(self, image: np.ndarray, K: np.ndarray, poses: list[tuple[int, np.ndarray]]) -> list[PoseEstimate]:
        off_m = [np.linalg.norm(self.truth[image.flat[0]][index][:3, 3] - pose[:3, 3]) for index, pose in poses]
        return [
            self.estimate(K, index, pose, overlap=0.9 if off < 0.1 else 0.0)
            for off, (index, pose) in zip(off_m, poses, strict=True)
        ]

    def pull(self, *_: object) -> tuple[np.ndarray, np.ndarray]:
        """As a search, it's content with every pose."""
        return np.zeros((6, 6)), np.zeros(6)

    def estimate(self, K: np.ndarray, index: int, pose: np.ndarray, overlap: float) -> PoseEstimate:
        one, none = torch.ones(1, 4), torch.zeros(1, 4, 3)
        views = GazeViews(one, one, one, none, one, none[:, 0, :2], one[:, 0], none, none, one[:, 0], one)
        look = Look(
            Detection(index, np.zeros(2), 1.0, 1.0),
            self.objects[index],
            np.zeros((8, 8, 3), np.uint8),
            torch.from_numpy(K),
            views,
            0,
            1.0,
            torch.zeros(3),
        )
        coordinates = 0.05 if index == self.disowned else 0.6
        agreement = Agreement(0.9, overlap, coordinates, 0.9, 0.9, 0.9, 0.9)
        return PoseEstimate(self.objects[index], pose, 0.3, look, 0.0, agreement)


def test_labels_come_from_the_layout(objects: list[ObjectModel]):
    """Objects are labelled where they stand, found there or not, unless nothing of the kind is seen there."""
    rng = np.random.default_rng(8)
    before = arrangement(rng, 5)
    after = before.copy()
    after[3, :2, 3] = [0.25, 0.25]  # moved once, for the last few photographs
    few = sighted(rng, [before, before, before, after], 6, 0.7)
    teacher = Teacher(objects, *few)
    teacher.disowned = 2
    photographs = [Photograph(np.full((480, 640, 3), i, np.uint8), K) for i in range(24)]
    labels = label_static_scene(teacher, photographs)  # type: ignore[arg-type]
    believed = [label for label in labels.labels if label.weight > 0]
    assert len(believed) > 40
    assert len({(label.photograph, label.object_index) for label in believed}) == len(believed)
    wrong = 0
    for label in believed:
        truth = teacher.truth[label.photograph][label.object_index]
        wrong += np.linalg.norm(label.cam_T_obj[:3, 3] - truth[:3, 3]) > 0.1
    assert wrong == 0
    assert all(label.object_index != 2 for label in believed)
    sighted_right = {
        (s.photograph, s.object_index)
        for s in few[0]
        if np.linalg.norm(s.cam_T_obj[:3, 3] - few[1][s.photograph][s.object_index][:3, 3]) < 0.1
    }
    assert any((label.photograph, label.object_index) not in sighted_right for label in believed)
    assert labels.background.shape == (24, 2, 2)
    assert len(labels.sightings) == len(few[0])
    blind = Teacher(objects, [], few[1])
    assert not label_static_scene(blind, photographs).labels  # type: ignore[arg-type]
    helped = label_static_scene(blind, photographs, labels.sightings)  # type: ignore[arg-type]
    assert len([label for label in helped.labels if label.weight > 0]) > 40


class Magnet:
    """A search that pulls every pose to the one it is given as evidence."""

    def pull(
        self, model: ObjectModel, cam_T_obj: np.ndarray, evidence: np.ndarray, trust_px: float
    ) -> tuple[np.ndarray, np.ndarray]:
        turn = Rotation.from_matrix(evidence[:3, :3] @ cam_T_obj[:3, :3].T).as_rotvec()
        move = (evidence[:3, 3] - cam_T_obj[:3, 3]) / (model.diameter_m / 2)
        return 1e4 * np.eye(6), 1e4 * np.concatenate([turn, move])


def test_a_layout_is_fitted_to_all_evidence_at_once(objects: list[ObjectModel]):
    """Cameras and objects that are off come to where every pair is right, those without evidence, too."""
    rng = np.random.default_rng(9)
    world_T_obj = arrangement(rng, 5)
    cameras = [camera(rng) for _ in range(4)]

    def off(pose: np.ndarray) -> np.ndarray:
        moved = pose.copy()
        moved[:3, :3] = Rotation.from_rotvec(rng.normal(0, 0.05, 3)).as_matrix() @ pose[:3, :3]
        moved[:3, 3] += rng.normal(0, 0.01, 3)
        return moved

    layout = Layout(
        {k: off(pose) for k, pose in enumerate(world_T_obj)},
        {i: off(cam_T_world) for i, cam_T_world in enumerate(cameras)},
        frozenset(),
    )
    pairs = {(i, k): cameras[i] @ world_T_obj[k] for i in range(4) for k in range(5)}
    seen = {pair: pose for pair, pose in pairs.items() if pair != (2, 3)}
    fitted = fit_layout(layout, seen, objects, Magnet())  # type: ignore[arg-type]
    for (i, k), pose in pairs.items():
        assert np.abs(layout.cam_T_obj(i)[k] - pose).max() > 1e-3
        assert np.abs(fitted.cam_T_obj(i)[k] - pose).max() < 1e-4
