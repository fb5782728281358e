"""Which way round placed objects are, by the edges of all photographs together.

A network that takes an object's back for its front does so in all photographs alike, and they agree. But few of the
photographs' edges lie where such a pose has the object's (`edges`).

rotations ── masks, roughly ── edges, blurred ── the best few ── each moved to the edges ── the one they support most
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from glimpose.geometry.se3 import random_rotations
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.edges import EdgeMap, draw_edges, edge_support, pull_to_edges
from glimpose.objects.equations import NormalEquations, make_pose, turn_to
from glimpose.objects.evidence import Evidence
from glimpose.objects.search import PoseSearch, mask_fit
from glimpose.objects.static_scene import LEAST_PHOTOGRAPHS, UNIT_STAYS, Placement, StaticScene, fit_scene

NUM_ROTATIONS = 1500
"""From everywhere, about 12 degrees apart."""
NUM_COMPARED = 300
"""Whose outlines fit masks best: they are compared with edges."""
NUM_MOVED = 12
DISTINCT_DEG = 14.0
DISTINCT_DIAMETERS = 0.14
"""By which those that are moved differ: turned or moved by more."""
MOST_PHOTOGRAPHS = 12
TO_COMPARE = 6
"""Photographs by whose edges rotations are compared."""
COMPARED_PX = 3
"""How far from where they are drawn edges may be there."""
BLURRED_PX = 2.0
"""Gaussian, of pictures in which edges are found from further."""
BLURRED_TRUSTS_PX = (8.0, 8.0, 6.0, 6.0, 4.0, 4.0, 3.0, 3.0)
SHARP_TRUSTS_PX = (3.0, 2.0, 2.0, 1.5)
FITTED_TRUSTS_PX = (3.0,) * 4 + (2.0,) * 4 + (1.5,) * 4 + (1.0,) * 4
OTHER_DEG = 25.0
OTHER_DIAMETERS = 0.25
"""A pose that is turned or moved by more is another one."""
SAME_DEG = 6.0
SAME_DIAMETERS = 0.05
"""By which poses may differ to be one, told by different photographs."""
LEAST_MARGIN = 0.03
"""Of edges' support, by which a pose has to surpass all others to be taken instead of the one at hand."""
MOST_MARGIN = 0.15
ASIDE_DEG = (-140, -90, -40, 40, 90, 140, 180)
"""About each of the object's axes, poses that one photograph's edges are to tell from the one at hand."""
ASIDE_DIAMETERS = 0.12
"""The same for poses beside it."""
UNRIVALLED = 0.05
"""Margin where all that were moved came to one pose: by how much it surpasses others isn't known."""


def fit_to_edges(
    scene: StaticScene,
    evidence: Mapping[tuple[int, int], Evidence],
    objects: Sequence[ObjectModel],
    search: PoseSearch,
    hold: Callable[[Placement], NormalEquations] | None = None,
) -> StaticScene:
    """Move objects, and change the unit, until edges of drawn objects lie on photographs' edges, all at once.

    ``hold`` is as `fit_scene` takes it.
    """
    edges = {pair: entry.edges for pair, entry in evidence.items()}
    return fit_scene(scene, edges, objects, _EdgePull(search), FITTED_TRUSTS_PX, hold=hold)


def turn_objects(
    scene: StaticScene,
    evidence: Mapping[tuple[int, int], Evidence],
    objects: Sequence[ObjectModel],
    search: PoseSearch,
) -> StaticScene:
    """Turn each object to where most edges support it, where that is clear, and tell how clear it is.

    ``evidence`` is given by photograph and number of the placement. Of it, photographs count in which a sighting agrees
    with the placement, whichever way round that has the object: in others it may have been moved.
    """
    rotations = random_rotations(NUM_ROTATIONS, torch.Generator().manual_seed(0)).double().numpy()
    placements = []
    for p, placement in enumerate(tqdm(scene.placements, desc="turn objects", unit="object", leave=False)):
        shown = sorted(number for number, q in evidence if q == p and number in placement.photographs)
        shown = shown[:: -(-len(shown) // MOST_PHOTOGRAPHS) or 1]
        own = {number: evidence[number, p] for number in shown}
        if len(own) >= LEAST_PHOTOGRAPHS:
            placement = Turning(scene, placement, own, objects, search).turned(rotations)
        placements.append(placement)
    return replace(scene, placements=placements)


def edge_margin(model: ObjectModel, cam_T_obj: np.ndarray, edges: EdgeMap, search: PoseSearch) -> float:
    """By how much one photograph's edges support a pose more than those turned about its axes, and those beside it."""

    def support(pose: np.ndarray) -> float:
        contour = draw_edges(search.renderer, search.meshes[model.obj_id], pose, edges, model.diameter_m)
        return edge_support(edges, contour, 1)

    turns = [Rotation.from_euler(axis, deg, degrees=True).as_matrix() for axis in "xyz" for deg in ASIDE_DEG]
    others = [make_pose(cam_T_obj[:3, :3] @ turn, cam_T_obj[:3, 3]) for turn in turns]
    others = [pose for pose in others if pose_gap(pose, cam_T_obj, 1.0, model)[1] > OTHER_DEG]
    for u, v in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        aside = ASIDE_DIAMETERS * model.diameter_m * np.array([u, v, 0])
        others.append(make_pose(cam_T_obj[:3, :3], cam_T_obj[:3, 3] + aside))
    return support(cam_T_obj) - max(support(pose) for pose in others)


class _EdgePull:
    """Where a photograph's edges pull an object's pose."""

    def __init__(self, search: PoseSearch) -> None:
        self.search = search

    def __call__(self, model: ObjectModel, cam_T_obj: np.ndarray, edges: EdgeMap, trust_px: float) -> NormalEquations:
        mesh = self.search.meshes[model.obj_id]
        contour = draw_edges(self.search.renderer, mesh, cam_T_obj, edges, model.diameter_m)
        return pull_to_edges(edges, contour, cam_T_obj, model.diameter_m / 2, trust_px)


class Turning:
    """One placement among its alternatives."""

    def __init__(
        self,
        scene: StaticScene,
        placement: Placement,
        evidence: Mapping[int, Evidence],
        objects: Sequence[ObjectModel],
        search: PoseSearch,
        hold: Callable[[Placement], NormalEquations] | None = None,
    ) -> None:
        self.scene, self.placement, self.evidence = replace(scene, placements=[placement]), placement, evidence
        self.objects, self.search, self.hold = objects, search, hold
        self.model = objects[placement.object_index]
        self.blurred = {number: EdgeMap.of(entry.crop, entry.K, BLURRED_PX) for number, entry in evidence.items()}
        self.sharp = {number: entry.edges for number, entry in evidence.items()}

    def turned(self, rotations: np.ndarray) -> Placement:
        """The placement as edges have it, if they do clearly."""
        now = self.placement.scene_T_obj
        compared = [make_pose(rotation, now[:3, 3]) for rotation in rotations[self.fitting(rotations)]]
        best = self.chosen(compared, now)
        return best if best.margin > LEAST_MARGIN else self.placement

    def chosen(self, poses: Sequence[np.ndarray], now: np.ndarray | None = None) -> Placement:
        """Where most edges are, starting from poses in the scene's frame, and by how much more than elsewhere.

        ``now`` is started from, too, however few edges are there.
        """
        some = dict(list(self.blurred.items())[:: -(-len(self.blurred) // TO_COMPARE)])
        support = [self.support(pose, some, COMPARED_PX) for pose in poses]
        moved = [] if now is None else [now]
        fitted = [self.fitted(pose, self.sharp, SHARP_TRUSTS_PX) for pose in moved]
        for i in np.argsort(-np.array(support)):
            if all(self.is_distinct(poses[i], other) for other in moved):
                moved.append(poses[i])
            if len(moved) == NUM_MOVED:
                break
        for pose in moved:
            near = self.fitted(pose, self.blurred, BLURRED_TRUSTS_PX)
            fitted.append(self.fitted(near, self.sharp, SHARP_TRUSTS_PX))
        support = [self.support(pose, self.sharp, 1) for pose in fitted]
        best = fitted[int(np.argmax(support))]
        others = [value for value, pose in zip(support, fitted, strict=True) if self.is_other(pose, best)]
        margin = min(max(support) - max(others), MOST_MARGIN) if others else UNRIVALLED
        return replace(self.placement, scene_T_obj=best, margin=margin)

    def fitting(self, rotations: np.ndarray) -> np.ndarray:
        """Which rotations have outlines that fit masks best, by the nearest drawn view of each."""
        bank = self.search.banks[self.model.obj_id]
        fit = np.zeros(len(rotations))
        for number, entry in self.evidence.items():
            cam_T_obj = self.scene.cam_T_obj(number, self.placement)
            ray_R_scene = turn_to(cam_T_obj[:3, 3]).T @ self.scene.cam_T_scene[number][:3, :3]
            cosines = (ray_R_scene @ rotations).reshape(-1, 9) @ bank.ray_R_obj.reshape(-1, 9).T
            fit += mask_fit(bank.masks, entry)[cosines.argmax(1)]
        return np.argsort(-fit)[:NUM_COMPARED]

    def support(self, scene_T_obj: np.ndarray, edges: Mapping[int, EdgeMap], tolerance_px: int) -> float:
        """Mean share of the drawn object's edges that photographs have, too."""
        mesh, placement = self.search.meshes[self.model.obj_id], replace(self.placement, scene_T_obj=scene_T_obj)
        shares = []
        for number, entry in edges.items():
            cam_T_obj = self.scene.cam_T_obj(number, placement)
            contour = draw_edges(self.search.renderer, mesh, cam_T_obj, entry, self.model.diameter_m)
            shares.append(edge_support(entry, contour, tolerance_px))
        return float(np.mean(shares))

    def fitted(self, scene_T_obj: np.ndarray, edges: Mapping[int, EdgeMap], trusts_px: Sequence[float]) -> np.ndarray:
        """Move a pose to where the edges are, all photographs at once; the unit stays."""
        scene = replace(self.scene, placements=[replace(self.placement, scene_T_obj=scene_T_obj)])
        seen = {(number, 0): entry for number, entry in edges.items()}
        pull = _EdgePull(self.search)
        scene = fit_scene(scene, seen, self.objects, pull, trusts_px, step_log_unit=UNIT_STAYS, hold=self.hold)
        return scene.placements[0].scene_T_obj

    def is_distinct(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Whether it's worth while to start from both."""
        off_m = self.scene.unit_m * np.linalg.norm(a[:3, 3] - b[:3, 3])
        return bool(off_m > DISTINCT_DIAMETERS * self.model.diameter_m or _turn_deg(a, b) > DISTINCT_DEG)

    def is_other(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Whether two poses clearly differ."""
        off_diameters, turn_deg = pose_gap(a, b, self.scene.unit_m, self.model)
        return off_diameters > OTHER_DIAMETERS or turn_deg > OTHER_DEG


def pose_gap(a: np.ndarray, b: np.ndarray, unit_m: float, model: ObjectModel) -> tuple[float, float]:
    """How far apart two poses in the scene's frame and unit are: diameters, and degrees as symmetries have it."""
    off_m = unit_m * float(np.linalg.norm(a[:3, 3] - b[:3, 3]))
    turn_deg = min(_turn_deg(a @ symmetry, b) for symmetry in model.symmetries.numpy())
    return off_m / model.diameter_m, turn_deg


def is_one_place(a: np.ndarray, b: np.ndarray, unit_m: float, model: ObjectModel) -> bool:
    """Whether two such poses are about the same."""
    off_diameters, turn_deg = pose_gap(a, b, unit_m, model)
    return off_diameters < SAME_DIAMETERS and turn_deg < SAME_DEG


def _turn_deg(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.rad2deg(Rotation.from_matrix(a[:3, :3].T @ b[:3, :3]).magnitude()))
