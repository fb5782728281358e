"""Rotations and rigid motions.

A twist ``xi`` has the translation first: ``xi = (v, w)``. All batch shapes broadcast.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, pad


def make_transform(R: Float[Tensor, "*#b 3 3"], t: Float[Tensor, "*#b 3"]) -> Float[Tensor, "*b 4 4"]:
    """Put a rotation and a translation into one 4×4 matrix."""
    t, _ = torch.broadcast_tensors(t, R[..., 0])
    top = torch.cat([R.expand(*t.shape, 3), t[..., None]], -1)
    bottom = top.new_tensor([0, 0, 0, 1]).expand_as(top[..., :1, :])
    return torch.cat([top, bottom], -2)


def invert(T: Float[Tensor, "*b 4 4"]) -> Float[Tensor, "*b 4 4"]:
    """Invert rigid motions: ``a_T_b`` becomes ``b_T_a``."""
    inverse_R = T[..., :3, :3].mT
    return make_transform(inverse_R, -(inverse_R @ T[..., :3, 3:])[..., 0])


def transform_points(T: Float[Tensor, "*#b 4 4"], xyz: Float[Tensor, "*#b n 3"]) -> Float[Tensor, "*b n 3"]:
    """Move points: with ``a_T_b``, from frame b to frame a."""
    return xyz @ T[..., :3, :3].mT + T[..., None, :3, 3]


def hat(w: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """Matrix of the cross product: ``hat(w) @ x = w × x``."""
    return torch.linalg.cross(torch.eye(3, dtype=w.dtype, device=w.device).expand(*w.shape, 3), w[..., None, :])


def adjoint(T: Float[Tensor, "*b 4 4"]) -> Float[Tensor, "*b 6 6"]:
    """Take twists from one frame to another: ``se3_exp(adjoint(T) @ xi) = T @ se3_exp(xi) @ invert(T)``."""
    R = T[..., :3, :3]
    top = torch.cat([R, hat(T[..., :3, 3]) @ R], -1)
    return torch.cat([top, pad(R, (3, 0))], -2)


def so3_exp(w: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """Rotation by ``|w|`` radians about ``w``; smooth everywhere."""
    return torch.linalg.matrix_exp(hat(w))


def so3_log(R: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3"]:
    """Rotation vector of at most π, accurate and differentiable from 0 to π.

    At π itself both directions of the axis are right, and one of them is returned.
    """
    q = _quaternion(R)
    q = torch.where(q[..., :1] < 0, -q, q)
    cosine, axis = q[..., :1], q[..., 1:]
    sine2 = axis.square().sum(-1, keepdim=True)
    is_small = sine2 < 1e-8
    sine = sine2.where(~is_small, 1).sqrt()
    # Half the angle over its sine; the series holds where the closed form would divide 0 by 0.
    series = (1 - sine2 / (3 * cosine.where(is_small, 1).square())) / cosine.where(is_small, 1)
    return 2 * axis * torch.where(is_small, series, torch.atan2(sine, cosine) / sine)


def _quaternion(R: Tensor) -> Tensor:
    """Unit quaternion, w first, of either sign.

    The matrix of its products, 4·q·qᵀ, is linear in R. Each row is a multiple of q, and the one with the largest entry
    on the diagonal is at least 2 long, so nothing is ever divided by something small.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in R.unbind(-2))
    products = torch.stack(
        [
            *(1 + xx + yy + zz, zy - yz, xz - zx, yx - xy),
            *(zy - yz, 1 + xx - yy - zz, yx + xy, xz + zx),
            *(xz - zx, yx + xy, 1 - xx + yy - zz, zy + yz),
            *(yx - xy, xz + zx, zy + yz, 1 - xx - yy + zz),
        ],
        -1,
    ).unflatten(-1, (4, 4))
    largest = products.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = products.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4))
    return normalize(row[..., 0, :], dim=-1)


def se3_exp(xi: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 4 4"]:
    """Rigid motion along a twist, translation part first; smooth everywhere."""
    v, w = xi.split(3, -1)
    return torch.linalg.matrix_exp(pad(torch.cat([hat(w), v[..., None]], -1), (0, 0, 0, 1)))


def random_rotations(n: int, generator: torch.Generator) -> Float[Tensor, "{n} 3 3"]:
    """Draw rotations uniformly, on the generator's device."""
    q = normalize(torch.randn(n, 4, generator=generator, device=generator.device), dim=-1)
    axis = hat(q[:, 1:])
    return torch.eye(3, device=q.device) + 2 * (q[:, :1, None] * axis + axis @ axis)


def rotation_angle_rad(R_a: Float[Tensor, "*#b 3 3"], R_b: Float[Tensor, "*#b 3 3"]) -> Float[Tensor, "*b"]:
    """Angle between two rotations, 0..π; as accurate near 0 and π as elsewhere."""
    R = R_a.mT @ R_b
    twice_sine = torch.stack(
        [R[..., 2, 1] - R[..., 1, 2], R[..., 0, 2] - R[..., 2, 0], R[..., 1, 0] - R[..., 0, 1]], -1
    )
    trace = R.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.atan2(torch.linalg.vector_norm(twice_sine, dim=-1), trace - 1)
