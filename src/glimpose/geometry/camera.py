"""Pinhole cameras, and the affine maps that crops, resizes and rotations of images are.

An affine ``out_A_img`` maps homogeneous pixels; the camera follows as ``K_out = out_A_img @ K``. So K may be skewed or
rotated in the image plane; its last row is (0, 0, 1). All batch shapes broadcast.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad


def project(K: Float[Tensor, "*#b 3 3"], xyz_cam: Float[Tensor, "*#b n 3"]) -> Float[Tensor, "*b n 2"]:
    """Pixels of points in the camera frame.

    Depth is not checked: points behind the camera get mirrored pixels, and those at z = 0 infinite ones.
    """
    uvw = xyz_cam @ K.mT
    return uvw[..., :2] / uvw[..., 2:]


def unproject(
    K: Float[Tensor, "*#b 3 3"], uv: Float[Tensor, "*#b n 2"], depth: Float[Tensor, "*#b n"]
) -> Float[Tensor, "*b n 3"]:
    """Points in the camera frame that lie at depth z and are seen at pixels uv."""
    return pad(uv, (0, 1), value=1.0) @ torch.linalg.inv(K).mT * depth[..., None]


def crop_affine(
    center_uv: Float[Tensor, "*#b 2"],
    side_px: Float[Tensor, "*#b"],
    out_px: int,
    angle_rad: Float[Tensor, "*#b"] | float = 0.0,
) -> Float[Tensor, "*b 3 3"]:
    """Return out_A_img of a square crop of that side around a point, resized to out_px.

    The picture is turned about the point by the angle, from the u axis towards v: clockwise as one sees it.
    """
    angle = torch.as_tensor(angle_rad, dtype=side_px.dtype, device=side_px.device)
    zoom, angle = torch.broadcast_tensors(out_px / side_px, angle)
    a, b = zoom * angle.cos(), zoom * angle.sin()
    linear = torch.stack([a, -b, b, a], -1).unflatten(-1, (2, 2))
    return _affine(linear, (out_px - 1) / 2 - (linear @ center_uv[..., None])[..., 0])


def resize_affine(
    scale_u: Float[Tensor, "*#b"] | float, scale_v: Float[Tensor, "*#b"] | float
) -> Float[Tensor, "*b 3 3"]:
    """Return out_A_img of an image resized by a factor for each axis."""
    scale = torch.stack(torch.broadcast_tensors(torch.as_tensor(scale_u), torch.as_tensor(scale_v)), -1)
    return _affine(torch.diag_embed(scale), (scale - 1) / 2)


def _affine(linear: Tensor, shift: Tensor) -> Tensor:
    shift, _ = torch.broadcast_tensors(shift, linear[..., 0])
    top = torch.cat([linear.expand(*shift.shape, 2), shift[..., None]], -1)
    bottom = top.new_tensor([0, 0, 1]).expand_as(top[..., :1, :])
    return torch.cat([top, bottom], -2)


def apply_affine(A: Float[Tensor, "*#b 3 3"], uv: Float[Tensor, "*#b n 2"]) -> Float[Tensor, "*b n 2"]:
    """Move pixels: with ``out_A_img``, from img to out."""
    return uv @ A[..., :2, :2].mT + A[..., None, :2, 2]


def pixel_grid(
    height: int, width: int, stride: int = 1, device: torch.device | None = None
) -> Float[Tensor, "{height} {width} 2"]:
    """Centres (u, v) of the cells of a height × width map, in pixels of the image that is stride times as large."""
    v, u = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return (torch.stack([u, v], -1) + 0.5) * stride - 0.5
