"""Normal equations of cameras that move about objects that don't move: an object is seen where both have it."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import block_diag
from scipy.spatial.transform import Rotation

from glimpose.objects.search import NormalEquations, motion_jacobian

MOST_STEPS = 100
"""Of an adjustment."""


@dataclass(frozen=True)
class Bundle:
    """Pairs of a camera and an object, and where the one sees the other's keypoints."""

    camera_of: np.ndarray
    object_of: np.ndarray
    K: np.ndarray
    """p×3×3."""
    points_m: np.ndarray
    """p×m×3, object frame."""
    seen_px: np.ndarray
    """p×m×2."""
    trust_px: np.ndarray
    """p."""

    def adjusted(self, cam_T_scene: np.ndarray, scene_T_obj: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Move all poses until keypoints are seen where they should be, by Levenberg's and Marquardt's method."""
        damping = 1e-3
        cost, hessian, gradient = self._normal_equations(cam_T_scene, scene_T_obj)
        for _ in range(MOST_STEPS):
            # The whole scene may be moved without any effect, so the Hessian alone is singular.
            step = np.linalg.solve(hessian + np.diag(damping * np.diag(hessian) + 1e-9), gradient).reshape(-1, 6)
            cams = moved(cam_T_scene, step[: len(cam_T_scene)])
            objs = moved(scene_T_obj, step[len(cam_T_scene) :])
            before = cost
            new = self._normal_equations(cams, objs)
            if new[0] < cost:
                cam_T_scene, scene_T_obj, (cost, hessian, gradient) = cams, objs, new
                damping = max(damping / 4, 1e-6)
                if before - cost < 1e-4 * before:
                    break
            else:
                damping *= 8
        return cam_T_scene, scene_T_obj

    def _normal_equations(
        self, cam_T_scene: np.ndarray, scene_T_obj: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Cauchy's cost, and its Hessian and negative gradient by turning and moving each pose, cameras first."""
        system = SceneSystem(len(cam_T_scene), len(scene_T_obj))
        cost = 0.0
        for i, k, K, points_m, seen_px, trust_px in zip(
            self.camera_of, self.object_of, self.K, self.points_m, self.seen_px, self.trust_px, strict=True
        ):
            cam_T_obj = cam_T_scene[i] @ scene_T_obj[k]
            xyz_cam = points_m @ cam_T_obj[:3, :3].T + cam_T_obj[:3, 3]
            uvw = xyz_cam @ K.T
            error = seen_px - uvw[:, :2] / uvw[:, 2:]
            squared = (error**2).sum(-1) / trust_px**2
            weight = 1 / (1 + squared) / trust_px**2
            J = motion_jacobian(xyz_cam, cam_T_obj[:3, 3], K, 1.0)
            hessian, gradient = np.einsum("mci,m,mcj->ij", J, weight, J), np.einsum("mci,m,mc->i", J, weight, error)
            system.add(i, k, (hessian, gradient), carried(cam_T_scene[i], cam_T_obj, 1.0))
            cost += float(np.log1p(squared).sum())
        return cost, system.hessian, system.gradient


class SceneSystem:
    """Normal equations of how cameras and objects turn and move, cameras first."""

    def __init__(self, num_cameras: int, num_objects: int) -> None:
        self.num_cameras = num_cameras
        num = 6 * (num_cameras + num_objects)
        self.hessian, self.gradient = np.zeros((num, num)), np.zeros(num)

    def add(self, camera: int, placed: int, pull: NormalEquations, carrying: np.ndarray) -> None:
        """Add what pulls at an object as seen by a camera, and how the two carry it (see `carried`)."""
        hessian, gradient = pull
        columns = np.concatenate([6 * camera + np.arange(6), 6 * (self.num_cameras + placed) + np.arange(6)])
        self.hessian[np.ix_(columns, columns)] += carrying.T @ hessian @ carrying
        self.gradient[columns] += carrying.T @ gradient


def carried(cam_T_scene: np.ndarray, cam_T_obj: np.ndarray, unit_m: float) -> np.ndarray:
    """How an object turns, and moves in units of ``unit_m``, when the camera and its pose in the scene do: 6×12."""
    R, arm = cam_T_scene[:3, :3], cam_T_obj[:3, 3] - cam_T_scene[:3, 3]
    by_camera = np.block([[np.eye(3), np.zeros((3, 3))], [-_cross_matrix(arm) / unit_m, np.eye(3) / unit_m]])
    return np.hstack([by_camera, block_diag(R, R / unit_m)])


def moved(poses: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Turn n×4×4 poses about their own origins by rotation vectors, and move them; n×6, the turn first."""
    after = poses.copy()
    after[:, :3, :3] = Rotation.from_rotvec(steps[:, :3]).as_matrix() @ poses[:, :3, :3]
    after[:, :3, 3] += steps[:, 3:]
    return after


def _cross_matrix(v: np.ndarray) -> np.ndarray:
    """Matrix of the cross product: ``_cross_matrix(v) @ w = v × w``."""
    return np.cross(v, -np.eye(3))
