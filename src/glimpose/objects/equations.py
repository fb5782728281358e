"""Poses that take steps: what pulls one of them, as a term of Gauss's and Newton's method, and the step itself."""

import numpy as np
from scipy.spatial.transform import Rotation

from glimpose.objects.contour import Contour

NormalEquations = tuple[np.ndarray, np.ndarray]
"""Hessian 6×6 and gradient 6 of one term, by turning about the object's origin (radians) and moving (object radii)."""


def make_pose(R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """4×4 from a rotation and a translation."""
    cam_T_obj = np.eye(4)
    cam_T_obj[:3, :3], cam_T_obj[:3, 3] = R, t
    return cam_T_obj


def rolled(cam_T_obj: np.ndarray, new_R_cam: np.ndarray) -> np.ndarray:
    """The same pose, 4×4, for a camera that is turned."""
    return make_pose(new_R_cam @ cam_T_obj[:3, :3], new_R_cam @ cam_T_obj[:3, 3])


def stepped(cam_T_obj: np.ndarray, step: np.ndarray, radius_m: float) -> np.ndarray:
    """A pose after a step of 6: turned about the object's origin, radians, and moved, object radii."""
    turn = Rotation.from_rotvec(step[:3]).as_matrix()
    return make_pose(turn @ cam_T_obj[:3, :3], cam_T_obj[:3, 3] + step[3:] * radius_m)


def turn_to(t: np.ndarray) -> np.ndarray:
    """cam_R_ray: the smallest rotation that takes the z axis to the direction of t."""
    ray = t / np.linalg.norm(t)
    axis = np.cross([0.0, 0.0, 1.0], ray)
    sine = np.linalg.norm(axis)
    if sine < 1e-12:
        return np.eye(3)
    return Rotation.from_rotvec(axis / sine * np.arctan2(sine, ray[2])).as_matrix()


def contour_equations(
    contour: Contour,
    offset_px: np.ndarray,
    weight: np.ndarray,
    trust_px: float,
    cam_T_obj: np.ndarray,
    K: np.ndarray,
    radius_m: float,
) -> NormalEquations:
    """Where a pose is pulled if each point of its contour is off outwards; Cauchy's weights, half at ``trust_px``."""
    J = motion_jacobian(contour.xyz_cam, cam_T_obj[:3, 3], K, radius_m)
    J = np.einsum("nc,nck->nk", contour.normal, J)
    weight = weight / (1 + (offset_px / trust_px) ** 2)
    return (J * weight[:, None]).T @ J, (J * weight[:, None]).T @ offset_px


def motion_jacobian(xyz_cam: np.ndarray, pivot: np.ndarray, K: np.ndarray, radius_m: float) -> np.ndarray:
    """…×2×6 of points …×3: pixels per radian of turning about the pivot, and per ``radius_m`` of moving."""
    uvw = xyz_cam @ K.T
    uv = uvw[..., :2] / uvw[..., 2:]
    by_xyz = (K[:2] - uv[..., None] * K[2:]) / uvw[..., 2, None, None]
    by_turn = np.cross((xyz_cam - pivot)[..., None, :], by_xyz)  # row·(w × arm) = w·(arm × row)
    return np.concatenate([by_turn, by_xyz * radius_m], -1)
