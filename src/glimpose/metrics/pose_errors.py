"""Errors of single poses, as the BOP benchmark defines them (Hodaň et al., "BOP Challenge 2020").

Give float64: the errors are differences of nearly equal numbers.
"""

import torch
from jaxtyping import Float
from scipy.spatial import ConvexHull, QhullError, cKDTree
from torch import Tensor

from glimpose.geometry.camera import project, unproject
from glimpose.geometry.se3 import rotation_angle_rad, transform_points

VSD_DELTA_M = 0.015


def add_m(
    pred_cam_T_obj: Float[Tensor, "*b 4 4"], gt_cam_T_obj: Float[Tensor, "*b 4 4"], vertices: Float[Tensor, "v 3"]
) -> Float[Tensor, "*b"]:
    """ADD: mean distance between the vertices in one pose and in the other."""
    return _displacement(pred_cam_T_obj - gt_cam_T_obj, vertices).mean(-1)


def add_s_m(
    pred_cam_T_obj: Float[Tensor, "*b 4 4"], gt_cam_T_obj: Float[Tensor, "*b 4 4"], vertices: Float[Tensor, "v 3"]
) -> Float[Tensor, "*b"]:
    """ADD-S: mean distance from the vertices in the true pose to the nearest ones in the predicted pose."""
    pred = transform_points(pred_cam_T_obj, vertices)
    gt = transform_points(gt_cam_T_obj, vertices)
    flat = [points.reshape(-1, *points.shape[-2:]).cpu().numpy() for points in (pred, gt)]
    means = [float(cKDTree(pred_xyz).query(gt_xyz)[0].mean()) for pred_xyz, gt_xyz in zip(*flat, strict=True)]
    return pred.new_tensor(means).reshape(pred.shape[:-2])


def mssd_m(
    pred_cam_T_obj: Float[Tensor, "*b 4 4"],
    gt_cam_T_obj: Float[Tensor, "*b 4 4"],
    vertices: Float[Tensor, "v 3"],
    symmetries: Float[Tensor, "s 4 4"],
) -> Float[Tensor, "*b"]:
    """Maximum symmetry-aware surface distance.

    `hull_vertices` give the same value as all vertices: the length of an affine function of the vertex is convex, so
    its maximum is at a corner of the convex hull.
    """
    equivalent = gt_cam_T_obj[..., None, :, :] @ symmetries
    return _displacement(pred_cam_T_obj[..., None, :, :] - equivalent, vertices).amax(-1).amin(-1)


def mspd_px(
    pred_cam_T_obj: Float[Tensor, "*b 4 4"],
    gt_cam_T_obj: Float[Tensor, "*b 4 4"],
    vertices: Float[Tensor, "v 3"],
    symmetries: Float[Tensor, "s 4 4"],
    K: Float[Tensor, "*b 3 3"],
) -> Float[Tensor, "*b"]:
    """Maximum symmetry-aware projection distance; infinite for a prediction that isn't in front of the camera.

    It needs all vertices: a perspective image isn't affine.
    """
    pred_xyz = transform_points(pred_cam_T_obj, vertices)
    gt_xyz = transform_points(gt_cam_T_obj[..., None, :, :] @ symmetries, vertices)
    pred_uv, gt_uv = project(K, pred_xyz), project(K[..., None, :, :], gt_xyz)
    distance = (pred_uv[..., None, :, :] - gt_uv).norm(dim=-1).amax(-1).amin(-1)
    in_front = (pred_xyz[..., 2] > 0).all(-1)
    return torch.where(in_front, distance, torch.inf)


def vsd(
    pred_depth: Float[Tensor, "h w"],
    gt_depth: Float[Tensor, "h w"],
    test_depth: Float[Tensor, "h w"],
    K: Float[Tensor, "3 3"],
    tolerances_m: Float[Tensor, " t"],
    delta_m: float = VSD_DELTA_M,
) -> Float[Tensor, " t"]:
    """Visible surface discrepancy for each misalignment tolerance: 0 is perfect, 1 is worst.

    The depths (metres, 0 where nothing is) are those of the object drawn alone in either pose, and the measured one.
    Surfaces count as visible where nothing was measured, and down to `delta_m` behind what was.
    """
    v, u = torch.nonzero((pred_depth > 0) | (gt_depth > 0), as_tuple=True)
    # BOP compares distances from the camera's centre, not depths.
    length = unproject(K, torch.stack([u, v], -1).to(K), torch.ones_like(u).to(K)).norm(dim=-1)
    pred_m, gt_m, test_m = (depth[v, u] * length for depth in (pred_depth, gt_depth, test_depth))
    unmeasured = test_m == 0
    gt_visible = (gt_m > 0) & (unmeasured | (gt_m - test_m <= delta_m))
    # Where the true object is seen, the predicted one counts as seen even if it lies deeper than what was measured.
    pred_visible = (pred_m > 0) & (unmeasured | (pred_m - test_m <= delta_m) | gt_visible)
    both, either = pred_visible & gt_visible, pred_visible | gt_visible
    wrong = ((pred_m - gt_m)[both].abs() >= tolerances_m[:, None]).sum(-1) + (either & ~both).sum()
    num_either = either.sum()
    return torch.where(num_either > 0, wrong / num_either.clamp(min=1), 1.0).to(tolerances_m)


def rotation_error_rad(
    pred_cam_T_obj: Float[Tensor, "*b 4 4"], gt_cam_T_obj: Float[Tensor, "*b 4 4"], symmetries: Float[Tensor, "s 4 4"]
) -> Float[Tensor, "*b"]:
    """Angle between the rotations, the smallest one over the object's symmetries."""
    equivalent = gt_cam_T_obj[..., None, :, :] @ symmetries
    return rotation_angle_rad(pred_cam_T_obj[..., None, :3, :3], equivalent[..., :3, :3]).amin(-1)


def translation_error_m(
    pred_cam_T_obj: Float[Tensor, "*b 4 4"], gt_cam_T_obj: Float[Tensor, "*b 4 4"]
) -> Float[Tensor, "*b"]:
    """Distance between the objects' origins."""
    return (pred_cam_T_obj - gt_cam_T_obj)[..., :3, 3].norm(dim=-1)


def hull_vertices(vertices: Float[Tensor, "v 3"]) -> Float[Tensor, "h 3"]:
    """Pick the corners of the convex hull; all vertices where they lie in one plane."""
    try:
        return vertices[ConvexHull(vertices.cpu().numpy()).vertices]
    except QhullError:
        return vertices


def _displacement(difference: Float[Tensor, "*b 4 4"], vertices: Float[Tensor, "v 3"]) -> Float[Tensor, "*b v"]:
    """Distance of each vertex in one pose from itself in another: the difference of affine maps is an affine map."""
    moved = difference[..., :3, :3] @ vertices.mT + difference[..., :3, 3:]
    return moved.norm(dim=-2)
