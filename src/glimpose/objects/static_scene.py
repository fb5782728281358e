"""A scene that stands still while the camera moves: what one photograph can't tell, all of them together can.

Poses found in single photographs are often wrong, but wrong ones disagree with each other, for the objects keep their
places while the camera doesn't. So from sightings in many photographs a layout is found by consensus (Fischler and
Bolles, CACM 1981) and adjusted as a bundle: where each object stands, and where each photograph was taken from.

sightings ── the photograph whose poses explain the others' best ── cameras ⇄ objects, adjusted together ── layout
layout, masks and coordinates seen close up ── cameras and objects moved until all drawn objects fit ── exact layout

Poses are compared by where an object's keypoints are seen, in apparent diameters: distances are what single photographs
tell worst. Symmetric objects are sighted in each of their equivalent poses.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from glimpose.objects.bundle import Bundle, SceneSystem, carried, moved
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.crops import focal_px
from glimpose.objects.evidence import Evidence
from glimpose.objects.search import PoseSearch

TOLERANCES = (0.35, 0.3, 0.25, 0.2, 0.2)
"""Mean distance of keypoints, in apparent diameters, at which two poses no longer agree; one round each."""
MOST_VARIANTS = 24
"""Of one sighting of an object that looks the same from everywhere around."""
NEAREST = 0.25
"""Of the sum of two objects' diameters: nearer to each other than this, one of them is taken for the other."""
LEAST_OBJECTS = 3
"""That have to agree on a camera: two do by chance."""
LEAST_PHOTOGRAPHS = 4
"""That have to agree on where an object stands, and on a layout."""
TRUST = 0.05
"""Distance of a keypoint, in apparent diameters, at which it begins to count less when all are adjusted."""
FIT_TRUSTS_PX = (6.0,) * 4 + (4.0,) * 4 + (3.0,) * 4 + (2.0,) * 4
"""One step of fitting to what is seen each: an edge found that far from the contour counts half."""
STEP_RAD = 0.1
STEP_M = 0.03
"""Standard deviations of such a step, of a camera or an object."""


@dataclass(frozen=True)
class Sighting:
    """A pose found in one photograph, right or wrong."""

    photograph: int
    object_index: int
    cam_T_obj: np.ndarray
    score: float


@dataclass(frozen=True)
class Layout:
    """Where objects stand, and where photographs were taken from; the scene's frame is that of one of the cameras."""

    scene_T_obj: dict[int, np.ndarray]
    """By object index, of those that enough photographs agree on."""
    cam_T_scene: dict[int, np.ndarray]
    """By photograph, of those in which two objects or more agree."""
    agreeing: frozenset[tuple[int, int]]
    """Photograph and object index of every sighting that agrees."""

    @property
    def support(self) -> dict[int, int]:
        """By object index, in how many photographs a sighting agrees."""
        return {index: sum(other == index for _, other in self.agreeing) for index in self.scene_T_obj}

    def cam_T_obj(self, photograph: int) -> dict[int, np.ndarray]:
        """Give the poses of all objects in a photograph, by object index; none where its camera is unknown."""
        camera = self.cam_T_scene.get(photograph)
        return {} if camera is None else {index: camera @ pose for index, pose in self.scene_T_obj.items()}


@dataclass(frozen=True)
class _View:
    """The sightings of one photograph, each as often as its object has equivalent poses."""

    K: np.ndarray
    object_index: np.ndarray
    cam_T_obj: np.ndarray
    """v×4×4."""
    points_px: np.ndarray
    """v×m×2: where keypoints and origin are seen."""
    diameter_px: np.ndarray
    score: np.ndarray

    def gaps(self, points_px: np.ndarray, use: np.ndarray) -> np.ndarray:
        """Mean distance of keypoints from some of the sightings', in apparent diameters; leading axes broadcast."""
        return np.linalg.norm(points_px - self.points_px[use], axis=-1).mean(-1) / self.diameter_px[use]


class _Consensus:
    """The search for a layout: objects' poses, of which some are placed, and cameras."""

    def __init__(self, sightings: Sequence[Sighting], K: Sequence[np.ndarray], objects: Sequence[ObjectModel]) -> None:
        self.diameter_m = np.array([model.diameter_m for model in objects])
        self.points_m = np.stack([np.concatenate([np.zeros((1, 3)), model.keypoints_m]) for model in objects])
        self.views = [
            _view([s for s in sightings if s.photograph == i], k, objects, self.points_m) for i, k in enumerate(K)
        ]
        self.scene_T_obj = np.tile(np.eye(4), (len(objects), 1, 1))
        self.is_placed = np.zeros(len(objects), bool)
        self.cam_T_scene: dict[int, np.ndarray] = {}
        self.agreeing: dict[tuple[int, int], int] = {}
        """By photograph and object index: the sighting that agrees."""

    def start(self, tolerance: float) -> None:
        """Take the photograph whose best poses explain the others' best for a first layout."""
        best = -1.0
        for view in self.views:
            poses, is_placed = self.scene_T_obj.copy(), np.zeros_like(self.is_placed)
            for v in np.argsort(-view.score):
                index = view.object_index[v]
                if not is_placed[index] and self._is_free(index, view.cam_T_obj[v], poses, is_placed):
                    poses[index], is_placed[index] = view.cam_T_obj[v], True
            total = sum(self._camera(other, poses, is_placed, tolerance)[1] for other in self.views)
            if total > best:
                best, self.scene_T_obj, self.is_placed = total, poses, is_placed

    def place_cameras(self, tolerance: float) -> None:
        """Find each photograph's camera: the one by which most of its sightings agree, at least three objects'."""
        self.cam_T_scene, self.agreeing = {}, {}
        for i, view in enumerate(self.views):
            camera, _, agreeing = self._camera(view, self.scene_T_obj, self.is_placed, tolerance)
            if len(agreeing) >= LEAST_OBJECTS:
                self.cam_T_scene[i] = camera
                self.agreeing |= {(i, index): v for index, v in agreeing.items()}

    def place_objects(self, tolerance: float) -> None:
        """Find each object's pose in the scene: the one by which most photographs' sightings agree.

        The surest is placed first, and no other in the same place.
        """
        found = []
        for index in range(len(self.scene_T_obj)):
            seen = {i: np.flatnonzero(self.views[i].object_index == index) for i in self.cam_T_scene}
            proposals = [
                np.linalg.inv(self.cam_T_scene[i]) @ self.views[i].cam_T_obj[use] for i, use in seen.items() if len(use)
            ]
            if self.is_placed[index]:
                proposals.append(self.scene_T_obj[None, index])
            if not proposals:
                continue
            poses = np.concatenate(proposals)
            explained, support = np.zeros(len(poses)), np.zeros(len(poses), int)
            for i, use in seen.items():
                if len(use):
                    view = self.views[i]
                    points_px = _project(view.K, self.cam_T_scene[i] @ poses, self.points_m[index])
                    gap = view.gaps(points_px[:, None], use)
                    explained += (view.score[use] * np.maximum(0, 1 - gap / tolerance)).max(1)
                    support += gap.min(1) < tolerance
            best = int(np.argmax(explained))
            if support[best] >= LEAST_PHOTOGRAPHS:
                found.append((explained[best], index, poses[best]))
        self.is_placed[:] = False
        for _, index, pose in sorted(found, key=lambda entry: -entry[0]):
            if self._is_free(index, pose, self.scene_T_obj, self.is_placed):
                self.scene_T_obj[index], self.is_placed[index] = pose, True

    def adjust(self) -> None:
        """Move cameras and objects until keypoints are seen where the agreeing sightings have them."""
        pairs = [(i, index, v) for (i, index), v in self.agreeing.items() if self.is_placed[index]]
        if not pairs:
            return
        cameras = sorted({i for i, _, _ in pairs})
        placed = sorted({index for _, index, _ in pairs})
        camera_of = np.array([cameras.index(i) for i, _, _ in pairs])
        object_of = np.array([placed.index(index) for _, index, _ in pairs])
        cam_T_scene = np.stack([self.cam_T_scene[i] for i in cameras])
        scene_T_obj = self.scene_T_obj[placed]
        bundle = Bundle(
            camera_of,
            object_of,
            np.stack([self.views[i].K for i, _, _ in pairs]),
            self.points_m[[index for _, index, _ in pairs]],
            np.stack([self.views[i].points_px[v] for i, _, v in pairs]),
            TRUST * np.array([self.views[i].diameter_px[v] for i, _, v in pairs]),
        )
        cam_T_scene, scene_T_obj = bundle.adjusted(cam_T_scene, scene_T_obj)
        self.cam_T_scene |= dict(zip(cameras, cam_T_scene, strict=True))
        self.scene_T_obj[placed] = scene_T_obj

    def _is_free(self, index: int, pose: np.ndarray, poses: np.ndarray, is_placed: np.ndarray) -> bool:
        """Whether no placed object is where another would be."""
        distance_m = np.linalg.norm(poses[is_placed, :3, 3] - pose[:3, 3], axis=1)
        return bool((distance_m > NEAREST * (self.diameter_m[is_placed] + self.diameter_m[index])).all())

    def _camera(
        self, view: _View, scene_T_obj: np.ndarray, is_placed: np.ndarray, tolerance: float
    ) -> tuple[np.ndarray, float, dict[int, int]]:
        """Place one camera; gives it, how much it explains, and the agreeing sighting of each object."""
        use = np.flatnonzero(is_placed[view.object_index])
        if not len(use):
            return np.eye(4), 0.0, {}
        index = view.object_index[use]
        cameras = view.cam_T_obj[use] @ np.linalg.inv(scene_T_obj[index])
        points_px = _project(view.K, cameras[:, None] @ scene_T_obj, self.points_m)  # h×objects×m×2
        gap = view.gaps(points_px[:, index], use)  # h×v, as each camera would have it
        worth = view.score[use] * np.maximum(0, 1 - gap / tolerance)
        # A camera's own sighting agrees with it by construction: only what others say counts.
        most = np.zeros((len(cameras), len(scene_T_obj)))
        for v, object_index in enumerate(index):
            most[:, object_index] = np.maximum(most[:, object_index], worth[:, v])
        most[np.arange(len(cameras)), index] = 0
        explained = most.sum(1)
        best = int(np.argmax(explained))
        agreeing = {
            int(k): int(use[np.argmin(np.where(index == k, gap[best], np.inf))])
            for k in np.unique(index[gap[best] < tolerance])
        }
        return cameras[best], float(explained[best]), agreeing


def find_layouts(
    sightings: Sequence[Sighting], K: Sequence[np.ndarray], objects: Sequence[ObjectModel]
) -> list[Layout]:
    """Find layouts that explain many sightings, one after the other, each from what the others leave unexplained.

    So a photograph may be in several, with objects that were moved in one and those that stayed in another.
    ``K`` has one 3×3 camera matrix for each photograph.
    """
    layouts: list[Layout] = []
    left = list(sightings)
    while (layout := _find_layout(left, K, objects)) is not None:
        layouts.append(layout)
        left = [s for s in left if (s.photograph, s.object_index) not in layout.agreeing]
    return layouts


def fit_layout(
    layout: Layout,
    evidence: Mapping[tuple[int, int], Evidence],
    objects: Sequence[ObjectModel],
    search: PoseSearch,
) -> Layout:
    """Move cameras and objects until every drawn object fits what the gaze sees of it, in all photographs at once.

    ``evidence`` is given by photograph and object index. Poses found in single photographs are as wrong as one contour;
    here each camera is held by all contours it sees, and each object by all cameras.
    """
    cameras, placed = sorted(layout.cam_T_scene), sorted(layout.scene_T_obj)
    cam_T_scene = np.stack([layout.cam_T_scene[i] for i in cameras])
    scene_T_obj = np.stack([layout.scene_T_obj[k] for k in placed])
    pairs = [(cameras.index(i), placed.index(k), entry) for (i, k), entry in evidence.items()]
    prior = np.tile(np.repeat([STEP_RAD**-2, STEP_M**-2], 3), len(cameras) + len(placed))
    for trust_px in FIT_TRUSTS_PX:
        system = SceneSystem(len(cameras), len(placed))
        for i, k, entry in pairs:
            model = objects[placed[k]]
            cam_T_obj = cam_T_scene[i] @ scene_T_obj[k]
            pull = search.pull(model, cam_T_obj, entry, trust_px)
            system.add(i, k, pull, carried(cam_T_scene[i], cam_T_obj, model.diameter_m / 2))
        step = np.linalg.solve(system.hessian + np.diag(prior), system.gradient).reshape(-1, 6)
        cam_T_scene = moved(cam_T_scene, step[: len(cameras)])
        scene_T_obj = moved(scene_T_obj, step[len(cameras) :])
    return replace(
        layout,
        cam_T_scene=dict(zip(cameras, cam_T_scene, strict=True)),
        scene_T_obj=dict(zip(placed, scene_T_obj, strict=True)),
    )


def _find_layout(
    sightings: Sequence[Sighting], K: Sequence[np.ndarray], objects: Sequence[ObjectModel]
) -> Layout | None:
    search = _Consensus(sightings, K, objects)
    search.start(TOLERANCES[0])
    for tolerance in TOLERANCES:
        search.place_cameras(tolerance)
        search.adjust()
        search.place_objects(tolerance)
    search.place_cameras(TOLERANCES[-1])
    search.adjust()
    if len(search.cam_T_scene) < LEAST_PHOTOGRAPHS:
        return None
    count = Counter(index for _, index in search.agreeing)
    placed = {k: search.scene_T_obj[k] for k in sorted(count) if count[k] >= LEAST_PHOTOGRAPHS}
    return Layout(placed, search.cam_T_scene, frozenset(pair for pair in search.agreeing if pair[1] in placed))


def _view(sightings: Sequence[Sighting], K: np.ndarray, objects: Sequence[ObjectModel], points_m: np.ndarray) -> _View:
    poses, indices, scores = [np.zeros((0, 4, 4))], [], []
    for sighting in sightings:
        symmetries = objects[sighting.object_index].symmetries.numpy()
        symmetries = symmetries[:: -(-len(symmetries) // MOST_VARIANTS)]
        poses.append(sighting.cam_T_obj @ symmetries)
        indices += [sighting.object_index] * len(symmetries)
        scores += [sighting.score] * len(symmetries)
    cam_T_obj, index = np.concatenate(poses), np.array(indices, int)
    diameters_m = np.array([model.diameter_m for model in objects])[index]
    return _View(
        K,
        index,
        cam_T_obj,
        _project(K, cam_T_obj, points_m[index]),
        focal_px(K) * diameters_m / cam_T_obj[:, 2, 3],
        np.array(scores),
    )


def _project(K: np.ndarray, cam_T_obj: np.ndarray, points_m: np.ndarray) -> np.ndarray:
    """…×m×2 pixels; what is behind the camera comes out far outside."""
    xyz = points_m @ np.swapaxes(cam_T_obj[..., :3, :3], -1, -2) + cam_T_obj[..., None, :3, 3]
    uvw = xyz @ np.swapaxes(K, -1, -2)
    return uvw[..., :2] / np.maximum(uvw[..., 2:], 1e-3)
