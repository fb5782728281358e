"""Rotations and rigid motions: group laws, accuracy at the awkward angles, gradients."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.autograd import gradcheck

from glimpose.geometry.se3 import (
    adjoint,
    hat,
    invert,
    make_transform,
    random_rotations,
    rotation_angle_rad,
    se3_exp,
    so3_exp,
    so3_log,
    transform_points,
)

BATCHES = [(), (1,), (3, 1, 2)]
ANGLES_RAD = [0.0, 1e-12, 1e-8, 1e-5, 1e-4, 1e-3, 0.5, 2.0, 3.0, math.pi - 1e-5, math.pi - 1e-9]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation_vectors(angle_rad: float) -> Tensor:
    """Of that angle, about random axes and all coordinate axes in both directions."""
    axes = torch.cat([torch.nn.functional.normalize(randn(20, 3), dim=-1), torch.eye(3), -torch.eye(3)])
    return angle_rad * axes


@pytest.mark.parametrize("batch", BATCHES)
def test_inverse_undoes_a_transform(batch: tuple[int, ...]) -> None:
    T, xyz = se3_exp(randn(*batch, 6)), randn(*batch, 5, 3, seed=1)
    torch.testing.assert_close(transform_points(invert(T), transform_points(T, xyz)), xyz)
    torch.testing.assert_close(invert(T) @ T, torch.eye(4, dtype=torch.float64).expand_as(T))


@pytest.mark.parametrize("batch", BATCHES)
def test_transforms_compose(batch: tuple[int, ...]) -> None:
    a_T_b, b_T_c, xyz = se3_exp(randn(*batch, 6)), se3_exp(randn(*batch, 6, seed=1)), randn(*batch, 5, 3, seed=2)
    torch.testing.assert_close(
        transform_points(a_T_b @ b_T_c, xyz), transform_points(a_T_b, transform_points(b_T_c, xyz))
    )


def test_batch_shapes_broadcast() -> None:
    R, t = so3_exp(randn(3, 1, 3)), randn(2, 3, seed=1)
    T = make_transform(R, t)
    assert T.shape == (3, 2, 4, 4)
    torch.testing.assert_close(T[2, 1], make_transform(R[2, 0], t[1]))
    assert transform_points(T, randn(7, 3)).shape == (3, 2, 7, 3)


@pytest.mark.parametrize("batch", BATCHES)
def test_hat_is_the_cross_product(batch: tuple[int, ...]) -> None:
    w, x = randn(*batch, 3), randn(*batch, 3, seed=1)
    torch.testing.assert_close((hat(w) @ x[..., None])[..., 0], torch.linalg.cross(w, x))


@pytest.mark.parametrize("angle_rad", [*ANGLES_RAD, math.pi, 10.0])
def test_so3_exp_agrees_with_scipy(angle_rad: float) -> None:
    w = rotation_vectors(angle_rad)
    torch.testing.assert_close(so3_exp(w), torch.from_numpy(Rotation.from_rotvec(w.numpy()).as_matrix()))


@pytest.mark.parametrize("angle_rad", ANGLES_RAD)
def test_so3_log_inverts_exp_at_every_angle(angle_rad: float) -> None:
    w = rotation_vectors(angle_rad)
    torch.testing.assert_close(so3_log(so3_exp(w)), w, rtol=0, atol=1e-14)


def test_so3_log_gives_an_axis_at_half_a_turn() -> None:
    R = so3_exp(rotation_vectors(math.pi))
    w = so3_log(R)
    torch.testing.assert_close(w.norm(dim=-1), torch.full_like(w[:, 0], math.pi))
    torch.testing.assert_close(so3_exp(w), R, rtol=0, atol=1e-14)


@pytest.mark.parametrize("batch", BATCHES)
def test_so3_log_keeps_batch_shape_in_single_precision(batch: tuple[int, ...]) -> None:
    w = randn(*batch, 3).float()
    torch.testing.assert_close(so3_log(so3_exp(w)), w)


@pytest.mark.parametrize("batch", BATCHES)
def test_se3_exp_adds_along_one_twist(batch: tuple[int, ...]) -> None:
    xi = randn(*batch, 6)
    torch.testing.assert_close(se3_exp(0.3 * xi) @ se3_exp(0.5 * xi), se3_exp(0.8 * xi))


def test_se3_exp_of_a_translation_or_a_rotation_alone() -> None:
    v, w, zero = randn(4, 3), randn(4, 3, seed=1), torch.zeros(4, 3, dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(se3_exp(torch.cat([v, zero], -1)), make_transform(eye, v))
    torch.testing.assert_close(se3_exp(torch.cat([zero, w], -1)), make_transform(so3_exp(w), zero))


@pytest.mark.parametrize("batch", BATCHES)
def test_adjoint_moves_a_twist_to_another_frame(batch: tuple[int, ...]) -> None:
    T, xi = se3_exp(randn(*batch, 6)), randn(*batch, 6, seed=1)
    moved = (adjoint(T) @ xi[..., None])[..., 0]
    torch.testing.assert_close(se3_exp(moved), T @ se3_exp(xi) @ invert(T))


def test_random_rotations_are_uniform_and_follow_the_generator() -> None:
    R = random_rotations(4000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(R @ R.mT, torch.eye(3).expand_as(R), rtol=0, atol=1e-5)
    assert bool((torch.linalg.det(R) > 0).all())
    # Of uniform rotations every entry averages 0 and its square 1/3, and the angle averages π/2 + 2/π.
    assert float(R.mean(0).abs().max()) < 0.04
    assert float((R.square().mean(0) - 1 / 3).abs().max()) < 0.03
    angle_rad = rotation_angle_rad(R, torch.eye(3))
    assert abs(float(angle_rad.mean()) - (math.pi / 2 + 2 / math.pi)) < 0.05
    assert torch.equal(R, random_rotations(4000, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("angle_rad", [*ANGLES_RAD, math.pi])
def test_rotation_angle_is_exact_at_every_angle(angle_rad: float) -> None:
    R = so3_exp(randn(26, 3))
    angles_rad = rotation_angle_rad(R, R @ so3_exp(rotation_vectors(angle_rad)))
    torch.testing.assert_close(angles_rad, torch.full_like(angles_rad, angle_rad), rtol=0, atol=5e-15)


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1.0, 4.0])
def test_exponentials_have_exact_gradients(scale: float) -> None:
    assert gradcheck(so3_exp, (scale * randn(2, 3)).requires_grad_())
    assert gradcheck(se3_exp, (scale * randn(2, 6)).requires_grad_())


@pytest.mark.parametrize("angle_rad", [0.0, 1e-9, 1e-4, 1.0, 3.0, math.pi - 1e-3])
def test_so3_log_has_exact_gradients(angle_rad: float) -> None:
    w = rotation_vectors(angle_rad)[:6]
    assert gradcheck(so3_log, so3_exp(w).requires_grad_())
    jacobian = torch.func.vmap(torch.func.jacrev(lambda w: so3_log(torch.linalg.matrix_exp(hat(w)))))(w)
    torch.testing.assert_close(jacobian, torch.eye(3, dtype=torch.float64).expand_as(jacobian))


def test_angle_has_exact_gradients() -> None:
    R_a, R_b = so3_exp(randn(3, 3)).requires_grad_(), so3_exp(randn(3, 3, seed=1)).requires_grad_()
    assert gradcheck(rotation_angle_rad, (R_a, R_b))


def test_gradient_of_the_angle_between_equal_rotations_is_finite() -> None:
    R = so3_exp(randn(3, 3)).requires_grad_()
    rotation_angle_rad(R, R.detach()).sum().backward()
    assert R.grad is not None
    assert bool(R.grad.isfinite().all())
