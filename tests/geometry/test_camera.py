"""Cameras and the affine maps of crops: what the picture does, K does too."""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from glimpose.geometry.camera import apply_affine, crop_affine, pixel_grid, project, resize_affine, unproject
from glimpose.geometry.se3 import make_transform, so3_exp, transform_points

BATCHES = [(), (1,), (3, 1, 2)]


def rand(*shape: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def cameras(*batch: int) -> Tensor:
    """Skewed, and with a camera that is rolled."""
    K = torch.tensor([[572.4, 1.5, 325.3], [0, 573.6, 242.0], [0, 0, 1]], dtype=torch.float64)
    return crop_affine(rand(*batch, 2, high=400), rand(*batch, low=100, high=300), 128, rand(*batch, high=6)) @ K


def points(*batch: int) -> Tensor:
    return rand(*batch, 7, 3, low=-0.2, high=0.2, seed=1) + torch.tensor([0, 0, 0.7], dtype=torch.float64)


@pytest.mark.parametrize("batch", BATCHES)
def test_unproject_undoes_project(batch: tuple[int, ...]) -> None:
    K, xyz = cameras(*batch), points(*batch)
    torch.testing.assert_close(unproject(K, project(K, xyz), xyz[..., 2]), xyz)


@pytest.mark.parametrize("batch", BATCHES)
def test_project_undoes_unproject(batch: tuple[int, ...]) -> None:
    K, uv, depth = cameras(*batch), rand(*batch, 7, 2, low=-100, high=700), rand(*batch, 7, low=0.1, high=2)
    xyz = unproject(K, uv, depth)
    torch.testing.assert_close(xyz[..., 2], depth)
    torch.testing.assert_close(project(K, xyz), uv)


def test_project_is_the_pinhole() -> None:
    K = torch.tensor([[500.0, 0, 320], [0, 400, 240], [0, 0, 1]])
    uv = project(K, torch.tensor([[0, 0, 2.0], [0.1, 0, 1], [0, 0.1, 0.5]]))
    torch.testing.assert_close(uv, torch.tensor([[320.0, 240], [370, 240], [320, 320]]))


def test_one_camera_serves_a_batch() -> None:
    K, xyz = cameras(), points(3, 2)
    uv = project(K, xyz)
    torch.testing.assert_close(uv[2, 1], project(K, xyz[2, 1]))
    torch.testing.assert_close(unproject(K, uv, xyz[..., 2]), xyz)


@pytest.mark.parametrize("batch", BATCHES)
def test_crop_keeps_projection(batch: tuple[int, ...]) -> None:
    K, xyz = cameras(*batch), points(*batch)
    A = crop_affine(rand(*batch, 2, high=640), rand(*batch, low=20, high=300), 128, rand(*batch, low=-4, high=4))
    assert A.shape == (*batch, 3, 3)
    torch.testing.assert_close(project(A @ K, xyz), apply_affine(A, project(K, xyz)))


@pytest.mark.parametrize("batch", BATCHES)
def test_resize_keeps_projection(batch: tuple[int, ...]) -> None:
    K, xyz = cameras(*batch), points(*batch)
    A = resize_affine(rand(*batch, low=0.3, high=3), rand(*batch, low=0.3, high=3, seed=1))
    torch.testing.assert_close(project(A @ K, xyz), apply_affine(A, project(K, xyz)))


def test_turning_the_crop_is_rolling_the_camera() -> None:
    angle = torch.tensor(0.4, dtype=torch.float64)
    center = torch.tensor([320.0, 240], dtype=torch.float64)
    K = torch.tensor([[500, 0, 320], [0, 500, 240], [0, 0, 1]], dtype=torch.float64)
    side = torch.tensor(128.0, dtype=torch.float64)
    roll = make_transform(so3_exp(torch.stack([0 * angle, 0 * angle, angle])), torch.zeros_like(K[0]))
    torch.testing.assert_close(
        project(crop_affine(center, side, 128, angle) @ K, points()),
        project(crop_affine(center, side, 128) @ K, transform_points(roll, points())),
    )


def test_resize_moves_borders_to_borders() -> None:
    corners = torch.tensor([[-0.5, -0.5], [639.5, 479.5]])
    resized = apply_affine(resize_affine(0.5, 0.25), corners)
    torch.testing.assert_close(resized, torch.tensor([[-0.5, -0.5], [319.5, 119.5]]))


def test_crop_moves_its_square_to_the_whole_picture() -> None:
    center, side = torch.tensor([100.3, 50.6]), torch.tensor(64.0)
    square = center + side / 2 * torch.tensor([[-1.0, -1], [1, 1], [0, 0]])
    cropped = apply_affine(crop_affine(center, side, 128), square)
    torch.testing.assert_close(cropped, torch.tensor([[-0.5, -0.5], [127.5, 127.5], [63.5, 63.5]]))


def test_positive_angles_turn_the_picture_clockwise() -> None:
    center = torch.tensor([100.0, 50])
    A = crop_affine(center, torch.tensor(128.0), 128, np.pi / 2)
    right_of_it = apply_affine(A, center + torch.tensor([[10.0, 0]]))
    torch.testing.assert_close(right_of_it, torch.tensor([[63.5, 73.5]]))


def ramp(height: int, width: int) -> np.ndarray:
    """Picture of its own pixel coordinates."""
    return pixel_grid(height, width).numpy()


def test_resize_agrees_with_opencv() -> None:
    resized = cv2.resize(ramp(48, 64), (32, 16), interpolation=cv2.INTER_AREA)
    A = resize_affine(32 / 64, 16 / 48)
    torch.testing.assert_close(apply_affine(A, torch.from_numpy(resized)), pixel_grid(16, 32), rtol=0, atol=1e-4)


def test_crop_agrees_with_opencv() -> None:
    A = crop_affine(torch.tensor([150.0, 120]), torch.tensor(60.0), 128, 0.5)
    cropped = cv2.warpAffine(ramp(240, 320), A[:2].numpy(), (128, 128), flags=cv2.INTER_LINEAR)
    # OpenCV rounds to 1/32 of a pixel; a crop pixel is half as large.
    torch.testing.assert_close(apply_affine(A, torch.from_numpy(cropped)), pixel_grid(128, 128), rtol=0, atol=0.08)


def test_affine_maps_broadcast() -> None:
    A = crop_affine(rand(3, 1, 2, high=100), rand(2, low=10, high=50), 64, 0.1)
    assert A.shape == (3, 2, 3, 3)
    assert apply_affine(A, rand(5, 2)).shape == (3, 2, 5, 2)


def test_pixel_grid_holds_cell_centres() -> None:
    torch.testing.assert_close(pixel_grid(2, 3)[1, 2], torch.tensor([2.0, 1.0]))
    coarse = pixel_grid(3, 4, stride=8)
    fine = pixel_grid(24, 32).unflatten(0, (3, 8)).unflatten(2, (4, 8)).mean((1, 3))
    torch.testing.assert_close(coarse, fine)


def test_cameras_have_exact_gradients() -> None:
    K, xyz = cameras(), points()
    assert gradcheck(project, (K.requires_grad_(), xyz.requires_grad_()))
    uv, depth = rand(4, 2, high=640).requires_grad_(), rand(4, low=0.1).requires_grad_()
    assert gradcheck(unproject, (K, uv, depth))
    center, side, angle = rand(2, high=640), rand(low=20, high=80), rand(high=3)
    assert gradcheck(
        lambda *crop: crop_affine(*crop[:2], 64, crop[2]),
        (center.requires_grad_(), side.requires_grad_(), angle.requires_grad_()),
    )
