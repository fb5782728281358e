"""Symmetric objects: one pose of all that look the same."""

import numpy as np
import pytest
import torch
from torch import Tensor

from glimpose.geometry.se3 import (
    invert,
    make_transform,
    rotation_angle_rad,
    se3_exp,
    so3_exp,
    transform_points,
)
from glimpose.geometry.symmetry import canonicalise, symmetry_transforms

BATCHES = [(), (1,), (3, 1, 2)]
NUM_TURNS = 315


def about(axis: list[float], offset: list[float], angle_deg: float) -> np.ndarray:
    """Rotation about an axis through a point."""
    R = so3_exp(np.deg2rad(angle_deg) * torch.tensor(axis, dtype=torch.float64))
    point = torch.tensor(offset, dtype=torch.float64)
    return make_transform(R, point - R @ point).numpy()


def square() -> Tensor:
    """Four quarter turns about an axis beside the origin."""
    return symmetry_transforms([about([0, 0, 1], [0.02, -0.01, 0], angle) for angle in (90, 180, 270)], [])


def cylinder() -> Tensor:
    """Any turn about y, and upside down."""
    flip = about([1, 0, 0], [0.0, 0.03, 0.01], 180)
    return symmetry_transforms([flip], [(np.array([0, 2, 0]), np.array([0, 0.5, 0.01]))])


def no_symmetry() -> Tensor:
    return symmetry_transforms([], [])


def poses(*batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    w = 2 * torch.randn((*batch, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return make_transform(so3_exp(w), torch.tensor([0.1, -0.2, 0.8], dtype=torch.float64)).to(dtype)


def test_identity_is_first_and_turns_multiply_discrete_symmetries() -> None:
    for symmetries, num in ((no_symmetry(), 1), (square(), 4), (cylinder(), 2 * NUM_TURNS)):
        assert symmetries.shape == (num, 4, 4)
        assert symmetries.dtype == torch.float64
        torch.testing.assert_close(symmetries[0], torch.eye(4, dtype=torch.float64))


def test_turns_are_even_and_close_the_circle() -> None:
    turns = symmetry_transforms([], [(torch.tensor([0, 0, 1]), torch.zeros(3))])
    following = turns.roll(-1, 0)
    step_rad = rotation_angle_rad(turns[:, :3, :3], following[:, :3, :3])
    torch.testing.assert_close(step_rad, torch.full_like(step_rad, 2 * np.pi / NUM_TURNS))


def test_turns_keep_their_axis_and_the_distance_to_it() -> None:
    axis, offset = torch.tensor([1.0, 2, -1], dtype=torch.float64), torch.tensor([0.1, 0, 0.2], dtype=torch.float64)
    turns = symmetry_transforms([], [(axis, offset)])
    on_axis = offset + torch.tensor([[-1.0], [0], [2]], dtype=torch.float64) * axis
    torch.testing.assert_close(transform_points(turns, on_axis), on_axis.expand(NUM_TURNS, 3, 3))


@pytest.mark.parametrize("symmetries", [no_symmetry(), square(), cylinder()], ids=["none", "square", "cylinder"])
@pytest.mark.parametrize("batch", BATCHES)
def test_canonical_pose_is_equivalent_and_nearest_to_the_identity(batch: tuple[int, ...], symmetries: Tensor) -> None:
    cam_T_obj = poses(*batch)
    canonical = canonicalise(cam_T_obj, symmetries)
    assert canonical.shape == cam_T_obj.shape
    used = invert(cam_T_obj) @ canonical
    assert float((used[..., None, :, :] - symmetries).abs().amax((-2, -1)).min(-1).values.max()) < 1e-9
    orbit = cam_T_obj[..., None, :, :] @ symmetries
    eye = torch.eye(3, dtype=torch.float64)
    angles_rad = rotation_angle_rad(orbit[..., :3, :3], eye)
    nearest_rad = rotation_angle_rad(canonical[..., :3, :3], eye)
    torch.testing.assert_close(nearest_rad, angles_rad.min(-1).values)


@pytest.mark.parametrize("symmetries", [no_symmetry(), square(), cylinder()], ids=["none", "square", "cylinder"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_canonicalising_twice_changes_nothing(symmetries: Tensor, dtype: torch.dtype) -> None:
    once = canonicalise(poses(200, dtype=dtype), symmetries.to(dtype))
    assert torch.equal(canonicalise(once, symmetries.to(dtype)), once)


@pytest.mark.parametrize("symmetries", [square(), cylinder()], ids=["square", "cylinder"])
def test_equivalent_poses_have_one_canonical_pose(symmetries: Tensor) -> None:
    cam_T_obj = poses(20)
    orbit = cam_T_obj[:, None] @ symmetries
    canonical = canonicalise(cam_T_obj, symmetries)[:, None].expand_as(orbit)
    torch.testing.assert_close(canonicalise(orbit, symmetries), canonical)


def test_a_pose_stays_where_all_are_equally_near() -> None:
    # Seen from above: turning about y changes the angle to the identity of none of these.
    upside_down = torch.from_numpy(about([1, 0, 0], [0, 0, 0.5], 180))
    turns = symmetry_transforms([], [(np.array([0, 1, 0]), np.zeros(3))])
    orbit = upside_down @ turns
    assert torch.equal(canonicalise(orbit, turns), orbit)


def test_an_object_without_symmetries_keeps_its_pose() -> None:
    cam_T_obj = se3_exp(torch.tensor([0.1, 0.2, 0.9, 2.0, 1.0, -1.0]))
    assert torch.equal(canonicalise(cam_T_obj, no_symmetry().float()), cam_T_obj)


def test_a_discrete_symmetry_that_is_not_rigid_is_refused() -> None:
    for motion in (
        np.diag([2.0, 2, 2, 1]),
        np.diag([-1.0, 1, 1, 1]),
        np.eye(4) * np.nan,
        about([0, 0, 1], [9, 9, 9], 90).T,
    ):
        with pytest.raises(ValueError, match="discrete symmetry 1: not a rigid motion"):
            symmetry_transforms([np.eye(4), motion], [])


def test_an_axis_without_direction_is_refused() -> None:
    for axis in (np.zeros(3), np.array([np.nan, 0, 1])):
        with pytest.raises(ValueError, match=r"continuous symmetry 0: axis .* has no direction"):
            symmetry_transforms([], [(axis, np.zeros(3))])
