"""Pose by search: of many drawn views of the object, those that explain the gaze's maps best, moved until they fit.

PnP from object coordinates needs them exact, and a young network's are blurred: halfway between two sides it cannot
tell apart. A drawn view can't be halfway. Views are compared with everything the gaze says, coordinates and both masks;
the best few are then moved by Gauss's and Newton's method, to where their outlines lie on the mask's edge and their
coordinates agree, and the best of those is the pose.

maps ── compare with drawn views ── the best few ── move each (contour, coordinates) ── the one that explains most

To move is to refine: what is drawn at the pose at hand is compared with what is seen, again and again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from glimpose.geometry.se3 import random_rotations
from glimpose.nets.glance_gaze import GlanceGazeConfig
from glimpose.nets.mtgoe import STRIDE
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.contour import Contour, draw_contour, edge_offsets, inner_maximum
from glimpose.objects.crops import central_mean, focal_px
from glimpose.objects.edges import pull_to_edges
from glimpose.objects.equations import NormalEquations, contour_equations, make_pose, motion_jacobian, stepped, turn_to
from glimpose.objects.evidence import Evidence
from glimpose.render.mesh import Mesh, simplify
from glimpose.render.scene import Buffers, Instance, Renderer, make_renderer

DRAWN_FACES = 1000
"""Of meshes, which are simplified to it: cells don't show more."""


@dataclass(frozen=True)
class SearchConfig:
    """How poses are searched for."""

    num_views: int = 1500
    """Drawn of each object: from everywhere, about 12 degrees apart. Without any, PnP's pose alone is moved."""
    num_kept: int = 5
    """Views that are moved."""
    distinct_deg: float = 20.0
    """Kept views differ by at least this."""
    mask_weight: float = 4.0
    """Of the masks' agreement, against a standard deviation of the coordinates."""
    view_std: float = 0.15
    """Of coordinates, in object radii, when drawn views are compared: half the way to the next view."""
    pose_std: float = 0.05
    """The same when moved poses are."""
    largest_error: float = 4.0
    """In standard deviations: coordinates further off than this don't get worse."""
    trusts_px: tuple[float, ...] = (6.0, 4.0, 3.0, 2.0)
    """One step each: an edge found that far from the contour counts half."""
    contour_weight: float = 1.0
    hidden_weight: float = 0.05
    """Of contours where nothing of the object is seen, relative to where it is."""
    coordinate_weight: float = 0.5
    """Cells' errors are less independent than they seem: whole objects are turned a little too far."""
    step_rad: float = 0.2
    step_radii: float = 0.1
    """Standard deviations of one step."""
    depth_std: float = 0.03
    """Of the voted distance, relative."""
    edge_weight: float = 1.0
    """Of the photograph's own edges, where poses are moved by them."""


@dataclass(frozen=True)
class ViewBank:
    """Drawn views of one object, at the crops' nominal size."""

    ray_R_obj: np.ndarray
    """v×3×3: rotations in a camera frame whose z axis goes through the object's centre."""
    masks: np.ndarray
    """v×n float32."""
    xyz: np.ndarray
    """v×n×3 float16, object radii, canonical frame."""

    @classmethod
    def draw(
        cls, renderer: Renderer, mesh: Mesh, model: ObjectModel, network: GlanceGazeConfig, num: int
    ) -> "ViewBank":
        """Draw ``num`` views from everywhere, each pixel a cell."""
        rotations = random_rotations(num, torch.Generator().manual_seed(0)).double()
        cells = network.crop_px // STRIDE
        focal = cells / (model.diameter_m * network.crop_pad)  # at a distance of a metre
        K = np.array([[focal, 0, (cells - 1) / 2], [0, focal, (cells - 1) / 2], [0, 0, 1]])
        poses = torch.eye(4, dtype=torch.float64).repeat(num, 1, 1)
        poses[:, :3, :3] = rotations
        poses[:, 2, 3] = 1.0
        canonical_T_obj = torch.linalg.solve(model.canonical(poses), poses).numpy()
        masks = np.zeros((num, cells * cells), np.float32)
        xyz = np.zeros((num, cells * cells, 3), np.float16)
        for i, (pose, symmetry) in enumerate(zip(poses.numpy(), canonical_T_obj, strict=True)):
            buffers = renderer.render([Instance(mesh, pose)], K, cells, cells)
            covers = buffers.mask.ravel() > 0
            masks[i] = covers
            points = buffers.xyz.reshape(-1, 3) @ symmetry[:3, :3].T + symmetry[:3, 3]
            xyz[i] = np.where(covers[:, None], points / (model.diameter_m / 2), 0)
        return cls(rotations.numpy(), masks, xyz)


class PoseSearch:
    """Drawn views of all objects, and the search among them."""

    def __init__(
        self,
        objects: Sequence[ObjectModel],
        meshes: Mapping[int, Mesh],
        network: GlanceGazeConfig,
        config: SearchConfig | None = None,
        renderer: Renderer | None = None,
    ) -> None:
        self.config = config or SearchConfig()
        self.network = network
        self.renderer = renderer or make_renderer()
        self.meshes = {model.obj_id: simplify(meshes[model.obj_id], DRAWN_FACES) for model in objects}
        self.banks = {
            model.obj_id: ViewBank.draw(self.renderer, self.meshes[model.obj_id], model, network, self.config.num_views)
            for model in tqdm(objects, desc="draw views", unit="object", leave=False)
        }

    def __call__(self, model: ObjectModel, evidence: Evidence, also: np.ndarray | None = None) -> np.ndarray | None:
        """Return the pose cam_T_obj that explains the evidence best; None where there is nothing to start from.

        ``also`` is a pose to start from beside the drawn views.
        """
        bank = self.banks[model.obj_id]
        scores = self._explained(bank.masks, bank.xyz, evidence, self.config.view_std)
        candidates = [] if also is None else [also]
        cam_R_ray = turn_to(evidence.t_m)
        for index in np.argsort(-scores):
            R = cam_R_ray @ bank.ray_R_obj[index]
            angles = [np.arccos(np.clip((np.trace(R.T @ kept[:3, :3]) - 1) / 2, -1, 1)) for kept in candidates]
            if all(angle > np.deg2rad(self.config.distinct_deg) for angle in angles):
                candidates.append(make_pose(R, evidence.t_m))
            if len(candidates) == self.config.num_kept:
                break
        moved = [self.move(model, pose, [evidence]) for pose in candidates]
        return max(moved, key=lambda pose: self.explained(model, pose, evidence), default=None)

    def move(
        self, model: ObjectModel, cam_T_obj: np.ndarray, evidence: Sequence[Evidence], by_edges: bool = False
    ) -> np.ndarray:
        """Move a pose to where its contour lies on the mask's edge and its coordinates agree, on average of all looks.

        Looks are of one photograph, so the pose is the same in all of them; the first shows the object whole. With
        ``by_edges``, also to where the photograph's own edges are: they are exact, but only near them does it help.
        """
        prior = np.diag(np.repeat([self.config.step_rad**-2, self.config.step_radii**-2], 3))
        for trust_px in self.config.trusts_px:
            hessian, gradient = self.pull_all(model, cam_T_obj, evidence, trust_px, by_edges)
            cam_T_obj = stepped(cam_T_obj, np.linalg.solve(hessian + prior, gradient), model.diameter_m / 2)
        return cam_T_obj

    def pull_all(
        self,
        model: ObjectModel,
        cam_T_obj: np.ndarray,
        evidence: Sequence[Evidence],
        trust_px: float,
        by_edges: bool = False,
    ) -> NormalEquations:
        """Where all looks pull a pose, on average; ``by_edges`` as `move` takes it."""
        drawn = self._contour(model, cam_T_obj, evidence[0])
        cam_A_drawn = np.linalg.inv(evidence[0].K)
        pulls = []
        for look in evidence:
            contour = None if drawn is None else drawn.seen_in(look.K @ cam_A_drawn, look.cells * STRIDE)
            pulls.append(self._pull(model, cam_T_obj, look, contour, trust_px, by_edges))
        hessians, gradients = zip(*pulls, strict=True)
        return np.mean(hessians, axis=0), np.mean(gradients, axis=0)

    def draw(self, model: ObjectModel, cam_T_obj: np.ndarray, evidence: Evidence) -> Buffers:
        """Draw an object into the crop that the evidence is of."""
        size = evidence.cells * STRIDE
        return self.renderer.render([Instance(self.meshes[model.obj_id], cam_T_obj)], evidence.K, size, size)

    def _explained(self, masks: np.ndarray, xyz: np.ndarray, evidence: Evidence, least_std: float) -> np.ndarray:
        """How well views explain the evidence, v."""
        visible = evidence.visible
        mask = mask_fit(masks, evidence)
        shown = np.flatnonzero(visible > 0.2)  # most cells are background, and cost as much
        error = np.linalg.norm(xyz[:, shown].astype(np.float32) - evidence.xyz[None, shown].astype(np.float32), axis=2)
        std = np.hypot(evidence.xyz_std[shown], least_std).astype(np.float32)
        error = np.minimum(error / std, self.config.largest_error)
        error = np.where(masks[:, shown] > 0, error, self.config.largest_error)
        weight = visible[shown] / max(visible[shown].sum(), 1e-6)
        return self.config.mask_weight * mask - error @ weight

    def explained(self, model: ObjectModel, cam_T_obj: np.ndarray, evidence: Evidence) -> float:
        """How well a pose explains the evidence: 0 is perfect, less is worse."""
        buffers = self.draw(model, cam_T_obj, evidence)
        covers, points = central_mean(buffers.xyz, buffers.mask > 0)
        xyz = model.coordinates(points, cam_T_obj)
        masks = covers.reshape(1, -1).astype(np.float32)
        return float(self._explained(masks, xyz.reshape(1, -1, 3), evidence, self.config.pose_std)[0])

    def pull(self, model: ObjectModel, cam_T_obj: np.ndarray, evidence: Evidence, trust_px: float) -> NormalEquations:
        """Where a crop pulls a pose: its contour to the mask's edge, its coordinates to where they are seen.

        An edge found ``trust_px`` from the contour counts half.
        """
        return self._pull(model, cam_T_obj, evidence, self._contour(model, cam_T_obj, evidence), trust_px)

    def _contour(self, model: ObjectModel, cam_T_obj: np.ndarray, evidence: Evidence) -> Contour | None:
        mesh, size = self.meshes[model.obj_id], evidence.cells * STRIDE
        return draw_contour(self.renderer, mesh, cam_T_obj, evidence.K, size)

    def _pull(
        self,
        model: ObjectModel,
        cam_T_obj: np.ndarray,
        evidence: Evidence,
        contour: Contour | None,
        trust_px: float,
        by_edges: bool = False,
    ) -> NormalEquations:
        radius_m = model.diameter_m / 2
        log_odds, visible = evidence.masks_px
        terms = [
            self._range_term(cam_T_obj, evidence, radius_m),
            self._coordinate_term(model, cam_T_obj, evidence, radius_m),
        ]
        if contour is not None:
            seen = inner_maximum(visible, contour)
            terms.append(self._contour_term(contour, log_odds, seen, cam_T_obj, evidence.K, radius_m, trust_px))
            if by_edges:
                terms.append(self._edge_term(contour.part(seen > 0.5), evidence, cam_T_obj, radius_m, trust_px))
        hessians, gradients = zip(*terms, strict=True)
        return np.sum(hessians, axis=0), np.sum(gradients, axis=0)

    def _contour_term(
        self,
        contour: Contour,
        log_odds: np.ndarray,
        seen: np.ndarray,
        cam_T_obj: np.ndarray,
        K: np.ndarray,
        radius_m: float,
        trust_px: float,
    ) -> NormalEquations:
        """Along its normal, each point of the contour is off by as much as the mask's edge is.

        Where something hides the object, the edge is a guess, and counts as much as the object is seen there.
        """
        offset_px, variance_px2 = edge_offsets(log_odds, contour)
        weight = self.config.contour_weight * np.maximum(seen, self.config.hidden_weight) / variance_px2
        return contour_equations(contour, offset_px, weight, trust_px, cam_T_obj, K, radius_m)

    def _edge_term(
        self, shown: Contour | None, evidence: Evidence, cam_T_obj: np.ndarray, radius_m: float, trust_px: float
    ) -> NormalEquations:
        """Where the object is seen, its outline is one of the picture's edges."""
        hessian, gradient = pull_to_edges(evidence.edges, shown, cam_T_obj, radius_m, trust_px)
        return self.config.edge_weight * hessian, self.config.edge_weight * gradient

    def _coordinate_term(
        self, model: ObjectModel, cam_T_obj: np.ndarray, evidence: Evidence, radius_m: float
    ) -> NormalEquations:
        """Each cell's surface point is off by the distance between the cell and where the point is seen."""
        shown = np.flatnonzero(evidence.visible > 0.5)
        uv = np.stack([shown % evidence.cells, shown // evidence.cells], 1) * STRIDE + (STRIDE - 1) / 2
        # The network speaks of the canonical one of equivalent poses; its coordinates move to this one's frame.
        obj_T_canonical = np.linalg.solve(cam_T_obj, model.canonical(torch.from_numpy(cam_T_obj)).numpy())
        xyz_m = evidence.xyz[shown] * radius_m @ obj_T_canonical[:3, :3].T + obj_T_canonical[:3, 3]
        xyz_cam = xyz_m @ cam_T_obj[:3, :3].T + cam_T_obj[:3, 3]
        uvw = xyz_cam @ evidence.K.T
        error = uv - uvw[:, :2] / uvw[:, 2:]
        std_px = np.hypot(evidence.xyz_std[shown] * radius_m * focal_px(evidence.K) / evidence.t_m[2], 0.5)
        weight = self.config.coordinate_weight / std_px**2 / (1 + (error**2).sum(1) / (3 * std_px) ** 2)  # Cauchy's
        J = motion_jacobian(xyz_cam, cam_T_obj[:3, 3], evidence.K, radius_m)
        return np.einsum("nci,n,ncj->ij", J, weight, J), np.einsum("nci,n,nc->i", J, weight, error)

    def _range_term(self, cam_T_obj: np.ndarray, evidence: Evidence, radius_m: float) -> NormalEquations:
        """The voted distance is worth more than the coordinates' scale."""
        voted_m = np.linalg.norm(evidence.t_m)
        ray = evidence.t_m / voted_m
        J = np.concatenate([np.zeros(3), ray * radius_m])
        weight = (self.config.depth_std * voted_m) ** -2
        return weight * np.outer(J, J), weight * J * (voted_m - ray @ cam_T_obj[:3, 3])


def mask_fit(masks: np.ndarray, evidence: Evidence) -> np.ndarray:
    """How well masks, v×n, fit the evidence's amodal one: 0 is perfect, less is worse."""
    return masks @ evidence.log_odds / np.maximum(np.maximum(evidence.log_odds, 0).sum(), 1e-6) - 1
