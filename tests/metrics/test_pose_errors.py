import math

import pytest
import torch
from torch import Tensor

from glimpose.geometry.se3 import make_transform, random_rotations, so3_exp
from glimpose.geometry.symmetry import symmetry_transforms
from glimpose.metrics.pose_errors import (
    add_m,
    add_s_m,
    hull_vertices,
    mspd_px,
    mssd_m,
    rotation_error_rad,
    translation_error_m,
    vsd,
)

K = torch.tensor([[600.0, 0, 320], [0, 610, 240], [0, 0, 1]], dtype=torch.float64)
HALF_TURN = symmetry_transforms([torch.diag(torch.tensor([-1.0, -1, 1, 1]))], [])
NO_SYMMETRY = symmetry_transforms([], [])


def poses(seed: int, *batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rotations = random_rotations(math.prod(batch), generator).double()
    t = torch.rand(math.prod(batch), 3, generator=generator, dtype=torch.float64) * 0.2 + torch.tensor([0, 0, 0.8])
    return make_transform(rotations, t).reshape(*batch, 4, 4)


def points(num: int = 60) -> Tensor:
    return torch.randn(num, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 0.05


def moved(pose: Tensor, x_m: float) -> Tensor:
    shifted = pose.clone()
    shifted[..., 0, 3] += x_m
    return shifted


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_errors_keep_the_batch_and_vanish_for_equal_poses(batch: tuple[int, ...]) -> None:
    pose, xyz = poses(0, *batch), points()
    intrinsics = K.expand(*batch, 3, 3)
    errors = [
        add_m(pose, pose, xyz),
        add_s_m(pose, pose, xyz),
        mssd_m(pose, pose, xyz, HALF_TURN),
        mspd_px(pose, pose, xyz, HALF_TURN, intrinsics),
        rotation_error_rad(pose, pose, HALF_TURN),
        translation_error_m(pose, pose),
    ]
    for error in errors:
        torch.testing.assert_close(error, torch.zeros(batch, dtype=torch.float64), atol=1e-7, rtol=0)


def test_a_shift_is_its_own_length_in_every_distance() -> None:
    pose, xyz = poses(1), points()
    shifted = moved(pose, 0.03)
    for error in (
        add_m(shifted, pose, xyz),
        mssd_m(shifted, pose, xyz, NO_SYMMETRY),
        translation_error_m(shifted, pose),
    ):
        assert error.item() == pytest.approx(0.03)
    assert add_s_m(shifted, pose, xyz) <= 0.03


def test_batched_errors_are_those_of_single_pairs() -> None:
    pred, gt, xyz = poses(2, 3), poses(3, 3), points()
    for error in (add_m, add_s_m):
        torch.testing.assert_close(
            error(pred, gt, xyz), torch.stack([error(p, g, xyz) for p, g in zip(pred, gt, strict=True)])
        )
    batched = mspd_px(pred, gt, xyz, HALF_TURN, K.expand(3, 3, 3))
    torch.testing.assert_close(
        batched, torch.stack([mspd_px(p, g, xyz, HALF_TURN, K) for p, g in zip(pred, gt, strict=True)])
    )


def test_distances_are_those_of_the_definitions() -> None:
    pred, gt, xyz = poses(4), poses(5), points()
    at = {"pred": xyz @ pred[:3, :3].T + pred[:3, 3], "gt": xyz @ gt[:3, :3].T + gt[:3, 3]}
    distances = torch.cdist(at["gt"], at["pred"])
    pixels = {name: (x @ K.T)[:, :2] / x[:, 2:] for name, x in at.items()}
    assert add_m(pred, gt, xyz).item() == pytest.approx(distances.diagonal().mean().item())
    assert add_s_m(pred, gt, xyz).item() == pytest.approx(distances.min(1).values.mean().item())
    assert mssd_m(pred, gt, xyz, NO_SYMMETRY).item() == pytest.approx(distances.diagonal().max().item())
    expected_px = (pixels["pred"] - pixels["gt"]).norm(dim=1).max().item()
    assert mspd_px(pred, gt, xyz, NO_SYMMETRY, K).item() == pytest.approx(expected_px)


def test_mssd_needs_only_the_hull() -> None:
    xyz = points(2000)
    hull = hull_vertices(xyz)
    assert len(hull) < 100
    pred, gt = poses(6, 50), poses(7, 50)
    torch.testing.assert_close(mssd_m(pred, gt, hull, HALF_TURN), mssd_m(pred, gt, xyz, HALF_TURN))


def test_hull_of_a_flat_object_is_all_of_it() -> None:
    flat = points() * torch.tensor([1.0, 1, 0], dtype=torch.float64)
    assert torch.equal(hull_vertices(flat), flat)


def test_symmetric_poses_have_no_symmetric_error() -> None:
    symmetries = symmetry_transforms([], [(torch.tensor([0.0, 0, 1]), torch.tensor([0.01, 0, 0]))])
    gt, xyz = poses(8), points()
    pred = gt @ symmetries[100]
    assert mssd_m(pred, gt, xyz, symmetries) < 1e-9
    assert mspd_px(pred, gt, xyz, symmetries, K) < 1e-6
    assert rotation_error_rad(pred, gt, symmetries) < 1e-6
    assert mssd_m(pred, gt, xyz, NO_SYMMETRY) > 0.05
    assert rotation_error_rad(pred, gt, NO_SYMMETRY) > 1


def test_rotation_error_is_the_angle() -> None:
    gt = poses(9)
    turn = make_transform(
        so3_exp(torch.tensor([0.0, 0.25, 0], dtype=torch.float64)), torch.zeros(3, dtype=torch.float64)
    )
    assert rotation_error_rad(gt @ turn, gt, NO_SYMMETRY).item() == pytest.approx(0.25)


def test_prediction_behind_the_camera_is_infinitely_far_off_in_the_image() -> None:
    gt, xyz = poses(10), points()
    pred = gt.clone()
    pred[2, 3] = -0.8
    assert mspd_px(pred, gt, xyz, NO_SYMMETRY, K).isinf()
    pred[2, 3] = 0.0
    assert mspd_px(pred, gt, xyz, NO_SYMMETRY, K).isinf()


def squares(left: int, z_m: float) -> Tensor:
    depth = torch.zeros(40, 60, dtype=torch.float64)
    depth[10:30, left : left + 20] = z_m
    return depth


TAUS_M = torch.tensor([0.005, 0.02, 0.1], dtype=torch.float64)
LONG_LENS = torch.tensor([[1e5, 0, 30], [0, 1e5, 20], [0, 0, 1]], dtype=torch.float64)


def test_vsd_of_the_true_pose_is_zero_and_of_a_distant_one_is_one() -> None:
    gt = squares(10, 1.0)
    assert vsd(gt, gt, gt, K, TAUS_M).tolist() == [0, 0, 0]
    assert vsd(torch.zeros_like(gt), gt, gt, K, TAUS_M).tolist() == [1, 1, 1]
    assert vsd(squares(35, 1.0), gt, torch.zeros_like(gt), K, TAUS_M).tolist() == [1, 1, 1]


def test_vsd_counts_pixels_that_only_one_pose_covers() -> None:
    gt, pred, unmeasured = squares(10, 1.0), squares(15, 1.0), torch.zeros(40, 60, dtype=torch.float64)
    torch.testing.assert_close(vsd(pred, gt, unmeasured, K, TAUS_M), torch.full_like(TAUS_M, 10 / 25))


def test_vsd_counts_depth_errors_beyond_the_tolerance() -> None:
    assert vsd(squares(10, 1.05), squares(10, 1.0), squares(10, 1.0), LONG_LENS, TAUS_M).tolist() == [1, 1, 0]


def test_vsd_ignores_what_is_occluded_but_not_what_is_within_delta() -> None:
    gt, pred = squares(10, 1.0), squares(15, 1.0)
    occluder = squares(10, 1.0)
    occluder[:, 20:] = 0.5  # hides the right halves
    torch.testing.assert_close(vsd(pred, gt, occluder, LONG_LENS, TAUS_M), torch.full_like(TAUS_M, 5 / 10))
    nearly = torch.where(occluder == 0.5, 0.99, occluder)
    torch.testing.assert_close(vsd(pred, gt, nearly, LONG_LENS, TAUS_M), torch.full_like(TAUS_M, 10 / 25))


def test_vsd_measures_along_the_ray() -> None:
    K_wide = torch.tensor(
        [[10.0, 0, -20], [0, 10, 20], [0, 0, 1]], dtype=torch.float64
    )  # everything is far to the side
    gt, pred = squares(10, 1.0), squares(10, 1.0 + 0.8 * TAUS_M[1].item())
    assert vsd(pred, gt, gt, LONG_LENS, TAUS_M).tolist() == [1, 0, 0]
    assert vsd(pred, gt, gt, K_wide, TAUS_M).tolist() == [1, 1, 0]
