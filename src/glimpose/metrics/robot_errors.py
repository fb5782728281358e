"""Errors of robots' relative poses, as the LED papers count them (arXiv 2410.04536, 2509.10405)."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NEAR_M = 1.0
NEAR_BEARING_RAD = math.pi / 4


def pixel_error_px(pred_uv: Float[Tensor, "*b 2"], gt_uv: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b"]:
    """E_uv: distance in the image."""
    return (pred_uv - gt_uv).norm(dim=-1)


def bearing_error_rad(pred_rad: Float[Tensor, "*b"], gt_rad: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """E_ψ: the smaller of the two angles between the bearings, 0 to π."""
    difference = pred_rad - gt_rad
    return torch.atan2(difference.sin(), difference.cos()).abs()


def relative_distance_error(pred_m: Float[Tensor, "*b"], gt_m: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """E_d: error as a share of the true distance."""
    return (pred_m - gt_m).abs() / gt_m


def position_error_m(pred_xyz: Float[Tensor, "*b 3"], gt_xyz: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
    """E_xyz: distance in space."""
    return (pred_xyz - gt_xyz).norm(dim=-1)


def is_near(position_error: Float[Tensor, "*b"], bearing_error: Float[Tensor, "*b"]) -> Bool[Tensor, "*b"]:
    """Γ(1 m, 45°): whether position and bearing are both right to within that; false where either is NaN."""
    return (position_error < NEAR_M) & (bearing_error < NEAR_BEARING_RAD)
