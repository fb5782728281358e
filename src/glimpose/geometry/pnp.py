"""Poses from correspondences between pixels and points of the object."""

import math
from dataclasses import dataclass

import numpy as np
import poselib
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from glimpose.geometry.camera import project
from glimpose.geometry.se3 import adjoint, hat, make_transform, se3_exp, transform_points

_MIN_POINTS = 4
# Second singular value of points on a line, over their largest coordinate.
_COLLINEAR = 1e-6
# Of RANSAC: samples of points (between the two the share of inliers decides; the most suffice for a fifth), and points.
_MIN_SAMPLES = 50
_MAX_SAMPLES = 5000
_MAX_VOTERS = 256
# What exact pixels count as, and how uncertain a rotation may be.
_MIN_STD_PX = 0.01
_MAX_STD_RAD = 1.0
# Points closer to the camera's plane than this are behind it, and cost as much as 1000 standard deviations and more.
_NEAR_M = 1e-3
_UNSEEN = 1e6
# Last step of the refinement, in standard deviations of the pose; what is left is a tenth of that, a third at worst.
_CONVERGED = 0.1


@dataclass(frozen=True)
class PnPResult:
    """A pose, or the reason why there is none."""

    cam_T_obj: Float[Tensor, "4 4"] | None
    inliers: Bool[Tensor, "n"]
    """Correspondences that the pose explains within the threshold; none of them where there is no pose."""
    reprojection_px: float
    """Root mean square over the inliers; NaN where there is no pose."""
    covariance: Float[Tensor, "6 6"] | None
    """Of the twist xi in ``se3_exp(xi) @ cam_T_obj``, as in `refine_pose`."""
    reason: str = ""
    """Empty where there is a pose."""


@torch.no_grad()
def solve_pnp(
    uv: Float[Tensor, "n 2"],
    xyz: Float[Tensor, "n 3"],
    K: Float[Tensor, "3 3"],
    *,
    covariance_uv: Float[Tensor, "n 2 2"] | None = None,
    threshold_px: float = 4.0,
    seed: int = 0,
) -> PnPResult:
    """Find the pose that most correspondences agree with, and refine it on those by `refine_pose`.

    ``covariance_uv`` weights the refinement; a correspondence whose variance is infinite is left out. Without it all
    count alike, and their standard deviation is that of the inliers' residuals. Computed in double precision on the
    CPU, returned in the type and on the device of ``xyz``, and detached: `refine_pose` is the differentiable one.

    Too few points, points on a line, numbers that are not finite, too few inliers and a rotation that they leave open
    by more than a radian give a result with a reason.

    :raises ValueError: where lengths differ, K is no camera, or a covariance is not positive definite.
    """
    num, like = len(xyz), xyz
    if len(uv) != num or (covariance_uv is not None and len(covariance_uv) != num):
        given = f"{len(uv)} pixels, {num} points" + (
            "" if covariance_uv is None else f", {len(covariance_uv)} covariances"
        )
        raise ValueError(f"solve_pnp: {given}; expected as many of each")
    uv, xyz, K = (x.to("cpu", torch.float64) for x in (uv, xyz, K))
    _check_camera(K)
    eye = torch.eye(2, dtype=torch.float64).expand(num, 2, 2)
    covariance_px2 = eye if covariance_uv is None else covariance_uv.to(eye)

    def failure(reason: str) -> PnPResult:
        return PnPResult(None, torch.zeros(num, dtype=torch.bool, device=like.device), math.nan, None, reason)

    is_number = uv.isfinite().all(-1) & xyz.isfinite().all(-1) & ~covariance_px2.isnan().any(-1).any(-1)
    if not is_number.all():
        return failure(f"{int((~is_number).sum())} of {num} correspondences are not finite")
    usable = covariance_px2.isfinite().all(-1).all(-1)
    uv, xyz, information = uv[usable], xyz[usable], _information(covariance_px2[usable])
    if len(xyz) < _MIN_POINTS:
        return failure(f"{len(xyz)} of {num} correspondences are usable, {_MIN_POINTS} are needed")
    if _on_a_line(xyz):
        return failure("the object points lie on one line")

    def errors(pose: Tensor) -> tuple[Tensor, Tensor]:
        xyz_cam = transform_points(pose, xyz)
        error_px = (project(K, xyz_cam) - uv).norm(dim=-1)
        return error_px, (error_px <= threshold_px) & (xyz_cam[:, 2] > 0)

    pose = _ransac(uv, xyz, K, threshold_px, seed)
    error_px, agrees = errors(pose)
    if agrees.sum() < _MIN_POINTS:
        return failure(f"only {int(agrees.sum())} of {num} correspondences agree within {threshold_px:g} px")
    if covariance_uv is None:
        variance_px2 = float(error_px[agrees].square().sum()) / (2 * int(agrees.sum()) - 6)
        information = information / max(variance_px2, _MIN_STD_PX**2)
    pose, covariance = refine_pose(pose, uv[agrees], xyz[agrees], K, information[agrees])
    std_rad = float(covariance[3:, 3:].trace().sqrt())
    if not std_rad < _MAX_STD_RAD:
        return failure(
            f"the {int(agrees.sum())} correspondences that agree leave the rotation open by {std_rad:.2g} rad"
        )

    error_px, agrees = errors(pose)
    if agrees.sum() < _MIN_POINTS:
        return failure(f"only {int(agrees.sum())} of {num} are within {threshold_px:g} px of the refined pose")
    return PnPResult(
        cam_T_obj=pose.to(like),
        inliers=usable.masked_scatter(usable, agrees).to(like.device),
        reprojection_px=float(error_px[agrees].square().mean().sqrt()),
        covariance=covariance.to(like),
    )


def refine_pose(
    cam_T_obj: Float[Tensor, "*#b 4 4"],
    uv: Float[Tensor, "*#b n 2"],
    xyz: Float[Tensor, "*#b n 3"],
    K: Float[Tensor, "*#b 3 3"],
    information_uv: Float[Tensor, "*#b n 2 2"],
    *,
    iterations: int = 10,
    cauchy_scale: float = 3.0,
) -> tuple[Float[Tensor, "*b 4 4"], Float[Tensor, "*b 6 6"]]:
    """Minimise the reprojection error, weighted by inverse covariances, by Levenberg's and Marquardt's method.

    The loss is Cauchy's, of ``cauchy_scale`` standard deviations: a correspondence that far away counts half. Those
    behind the camera don't count, nor do those with zero information.

    Also returns the covariance of the twist ``xi``, translation first, in ``se3_exp(xi) @ cam_T_obj``: metres and
    radians about the camera's axes and centre. It takes the given information at its word and the correspondences'
    errors as independent; for Gaussian ones its variances are a sixth too large, being those of the weights.
    Its diagonal is infinite where the correspondences don't determine a pose.

    Differentiable in all tensors through the iterations, which end early only where no gradient is asked for.
    """
    # NumPy's, for torch's takes half a second when first called.
    batch = np.broadcast_shapes(*(x.shape[:-2] for x in (cam_T_obj, uv, xyz, K, information_uv[..., 0])))
    cam_T_obj = cam_T_obj.expand(*batch, 4, 4)
    eye = torch.eye(6, dtype=uv.dtype, device=uv.device)

    # Twists act about the points' centroid. About the camera, moving and turning a far object look nearly alike, and
    # the normal equations lose their difference to rounding.
    weight = information_uv.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
    centroid = (weight * xyz).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True).clamp(min=_tiny(uv))
    pivot = transform_points(cam_T_obj, centroid)[..., 0, :]
    pivot_T_obj = make_transform(cam_T_obj[..., :3, :3], cam_T_obj[..., :3, 3] - pivot)

    # What lies behind the camera costs the same wherever it is, and more than it would anywhere in the image.
    unseen = _UNSEEN * (weight[..., 0] > 0)

    def linearise(pivot_T_obj: Tensor) -> tuple[Tensor, Tensor]:
        """Cost[*b] and normal equations[*b 7 7] of a twist on the left: [[hessian, gradient], [gradientᵀ, _]]."""
        xyz_pivot = transform_points(pivot_T_obj, xyz)
        uvw = (xyz_pivot + pivot[..., None, :]) @ K.mT
        depth = uvw[..., 2:].clamp(min=_NEAR_M)
        pred_uv = uvw[..., :2] / depth
        d_uv_d_xyz = (K[..., None, :2, :] - pred_uv[..., None] * K[..., None, 2:, :]) / depth[..., None]
        d_uv_d_w = torch.linalg.cross(xyz_pivot[..., None, :], d_uv_d_xyz)
        rows = torch.cat([d_uv_d_xyz, d_uv_d_w, (pred_uv - uv)[..., None]], -1)  # *b n 2 7
        weighted = information_uv @ rows
        is_seen = uvw[..., 2] > _NEAR_M
        excess = ((rows[..., -1] * weighted[..., -1]).sum(-1) / cauchy_scale**2).where(is_seen, unseen)
        share = is_seen / (1 + excess)
        return excess.log1p().sum(-1), rows.flatten(-3, -2).mT @ (share[..., None, None] * weighted).flatten(-3, -2)

    cost, normal = linearise(pivot_T_obj)
    damping = torch.full_like(cost, 1e-3)
    for _ in range(iterations):
        unit, factor, _ = _factorise(normal, damping)
        # In units of the pose's standard deviations, so a small one no longer matters.
        step = torch.cholesky_solve(unit[..., None] * normal[..., :6, 6:], factor)[..., 0]
        new_T = se3_exp(-unit * step) @ pivot_T_obj
        new_cost, new_normal = linearise(new_T)
        is_better = new_cost <= cost
        pivot_T_obj = new_T.where(is_better[..., None, None], pivot_T_obj)
        normal = new_normal.where(is_better[..., None, None], normal)
        cost = new_cost.where(is_better, cost)
        damping = (damping * torch.where(is_better, 0.1, 10.0)).clamp(min=torch.finfo(uv.dtype).eps ** 0.5)
        if not cost.requires_grad and bool((step.norm(dim=-1) < _CONVERGED).all()):
            break

    unit, factor, is_definite = _factorise(normal, torch.zeros_like(damping))
    is_definite = is_definite[..., None, None]
    cam_T_pivot = make_transform(eye[:3, :3], pivot)
    about_camera = adjoint(cam_T_pivot) * unit[..., None, :].where(is_definite, 1)
    covariance = about_camera @ torch.cholesky_inverse(factor.where(is_definite, eye)) @ about_camera.mT
    return cam_T_pivot @ pivot_T_obj, covariance.where(is_definite, eye.new_full((6,), math.inf).diag())


def fuse_translation(
    cam_T_obj: Float[Tensor, "4 4"],
    covariance: Float[Tensor, "6 6"],
    t: Float[Tensor, "3"],
    covariance_t: Float[Tensor, "3 3"],
) -> Float[Tensor, "4 4"]:
    """Correct a pose by an independent measurement of its translation, as a Kalman filter does.

    ``covariance`` is that of a twist on the left, as `refine_pose` returns it. Turning and moving are correlated in
    it, so the rotation follows.
    """
    expected = cam_T_obj[:3, 3]
    J = torch.cat([torch.eye(3).to(t), -hat(expected)], -1)  # of the translation, by the twist
    gain = torch.linalg.solve(J @ covariance @ J.mT + covariance_t, J @ covariance).mT
    return se3_exp(gain @ (t - expected)) @ cam_T_obj


def _factorise(normal: Tensor, damping: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Units[*b 6] in which the Hessian's diagonal is 1, its damped Cholesky factor there, and whether it has one."""
    hessian = normal[..., :6, :6]
    unit = hessian.diagonal(dim1=-2, dim2=-1).clamp(min=_tiny(normal)).rsqrt()
    scaled = unit[..., :, None] * hessian * unit[..., None, :]
    factor, info = torch.linalg.cholesky_ex(scaled + torch.diag_embed(damping[..., None].expand(unit.shape)))
    return unit, factor, info == 0


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny


def _information(covariance: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(covariance)
    if info.any():
        worst = covariance[info > 0][0].tolist()
        raise ValueError(
            f"solve_pnp: covariance_uv has {worst}, which is not positive definite; expected pixels squared"
        )
    return torch.cholesky_inverse(factor)


def _check_camera(K: Tensor) -> None:
    (a, b, _), (c, d, _), last = K.tolist()
    is_camera = last == [0, 0, 1] and a * d != b * c and bool(K.isfinite().all())
    if not is_camera:
        raise ValueError(f"solve_pnp: K is {K.tolist()}, expected an invertible 3×3 with the last row (0, 0, 1)")


def _on_a_line(xyz: Tensor) -> bool:
    """Whether all points coincide or lie on one line."""
    _, second, _ = torch.linalg.svdvals(xyz - xyz.mean(0)).tolist()
    return second <= _COLLINEAR * float(xyz.abs().max())


def _ransac(uv: Tensor, xyz: Tensor, K: Tensor, threshold_px: float, seed: int) -> Tensor:
    """Pose from poselib, whose camera has neither skew nor rotation; it looks at no more than `_MAX_VOTERS` points.

    K's upper left is U·S·Vᵀ: the image turned by Uᵀ, which changes no distance between pixels, is that of a camera with
    focal lengths S in a scene turned by Vᵀ. So thresholds stay those of the image at hand, whatever K is.
    """
    U, focal, Vt = torch.linalg.svd(K[:2, :2])
    if Vt[0, 0] * Vt[1, 1] < Vt[0, 1] * Vt[1, 0]:  # mirrored: let U do it
        U, Vt = U * U.new_tensor([1, -1]), Vt * Vt.new_tensor([[1], [-1]])
    camera = {"model": "PINHOLE", "width": 1, "height": 1, "params": [*focal.tolist(), 0.0, 0.0]}
    options = {
        "max_reproj_error": threshold_px,
        "min_iterations": _MIN_SAMPLES,
        "max_iterations": _MAX_SAMPLES,
        "seed": seed,
    }
    if len(xyz) > _MAX_VOTERS:
        chosen = torch.randperm(len(xyz), generator=torch.Generator().manual_seed(seed))[:_MAX_VOTERS]
        uv, xyz = uv[chosen], xyz[chosen]
    uv = (uv - K[:2, 2]) @ U
    turned, _ = poselib.estimate_absolute_pose(uv.numpy(), xyz.numpy(), camera, options, {"max_iterations": 0})
    turn = torch.block_diag(Vt.mT, torch.eye(1, dtype=Vt.dtype))
    return make_transform(turn @ torch.tensor(turned.R), turn @ torch.tensor(turned.t))
