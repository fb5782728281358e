"""Objects that look the same from several sides."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor

from glimpose.geometry.se3 import make_transform, so3_exp

_MAX_STEP = 0.01
_RIGID_TOLERANCE = 1e-3

Transform = Real[Tensor, "4 4"] | Real[np.ndarray, "4 4"]
Vector = Real[Tensor, "3"] | Real[np.ndarray, "3"]


def symmetry_transforms(
    discrete: Sequence[Transform], continuous: Sequence[tuple[Vector, Vector]]
) -> Float[Tensor, "s 4 4"]:
    """All symmetries of an object: every given one and the identity, which is first, followed by every turn.

    ``discrete`` are rigid motions of the object onto itself in metres, ``continuous`` axes with a point on each, which
    are cut into ⌈π / 0.01⌉ turns as BOP does. The result is in double precision.

    :raises ValueError: where a discrete symmetry is not rigid, or an axis has no direction.
    """
    eye = torch.eye(4, dtype=torch.float64)
    motions = [eye, *(_rigid(motion, f"discrete symmetry {i}") for i, motion in enumerate(discrete))]
    turns = [_turns(axis, offset, f"continuous symmetry {i}") for i, (axis, offset) in enumerate(continuous)]
    all_turns = torch.cat(turns) if turns else eye[None]
    return (all_turns @ torch.stack(motions)[:, None]).flatten(0, 1)


def canonicalise(cam_T_obj: Float[Tensor, "*b 4 4"], symmetries: Float[Tensor, "s 4 4"]) -> Float[Tensor, "*b 4 4"]:
    """Of all equivalent poses the one whose rotation is nearest to the identity: ``argmax_S trace(R S)``.

    Equivalent poses give the same result unless two are equally near. A pose that is as near as any stays as it is, so
    doing it twice changes nothing.
    """
    R = cam_T_obj[..., :3, :3]
    traces = torch.einsum("...ij,sji->...s", R, symmetries[:, :3, :3])
    best, index = traces.max(-1)
    gain = best - R.diagonal(dim1=-2, dim2=-1).sum(-1)
    is_better = gain > 64 * torch.finfo(R.dtype).eps
    return torch.where(is_better[..., None, None], cam_T_obj @ symmetries[index], cam_T_obj)


def _rigid(motion: Transform, where: str) -> Tensor:
    T = torch.as_tensor(motion, dtype=torch.float64)
    R = T[:3, :3]
    eye = torch.eye(4, dtype=torch.float64)
    error = float(torch.maximum((R @ R.mT - eye[:3, :3]).abs().max(), (T[3] - eye[3]).abs().max()))
    if not error < _RIGID_TOLERANCE or torch.linalg.det(R) < 0:
        raise ValueError(
            f"symmetry_transforms, {where}: not a rigid motion (R Rᵀ and the last row are off by {error:.2g}, "
            f"det R is {float(torch.linalg.det(R)):.3g}); expected a 4×4 [R t; 0 1] with t in metres, row by row"
        )
    return T


def _turns(axis: Vector, offset: Vector, where: str) -> Tensor:
    """All turns about an axis through a point."""
    direction, point = torch.as_tensor(axis, dtype=torch.float64), torch.as_tensor(offset, dtype=torch.float64)
    length = float(direction.norm())
    if not (math.isfinite(length) and length > 0):
        raise ValueError(f"symmetry_transforms, {where}: axis {direction.tolist()} has no direction, expected a vector")
    num_turns = math.ceil(math.pi / _MAX_STEP)
    angles_rad = 2 * math.pi / num_turns * torch.arange(num_turns, dtype=torch.float64)
    R = so3_exp(angles_rad[:, None] * direction / length)
    return make_transform(R, point - R @ point)
