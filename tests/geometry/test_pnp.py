"""Poses from correspondences: exact, robust, and honest about what isn't known."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from glimpose.geometry.camera import crop_affine, project, resize_affine
from glimpose.geometry.pnp import PnPResult, fuse_translation, refine_pose, solve_pnp
from glimpose.geometry.se3 import invert, rotation_angle_rad, se3_exp, so3_log, transform_points

BATCHES = [(), (1,), (3, 1, 2)]
PHOTO = torch.tensor([[572.4, 0, 325.3], [0, 573.6, 242.0], [0, 0, 1]], dtype=torch.float64)
CROP = crop_affine(torch.tensor([350.0, 200]).double(), torch.tensor(100.0).double(), 128, 0.7) @ PHOTO
CAMERAS = {
    "photo": PHOTO,
    "turned crop": CROP,
    "squeezed after turning": resize_affine(torch.tensor(1.5).double(), torch.tensor(0.6).double()) @ CROP,
    "mirrored": torch.tensor([[-1, 0, 639], [0, 1, 0], [0, 0, 1]]).double() @ PHOTO,
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def object_points(*shape: int, seed: int = 0) -> Tensor:
    """In a cube of 10 cm."""
    return 0.1 * torch.rand((*shape, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.05


def poses(*batch: int, seed: int = 0) -> Tensor:
    """Any rotation, 60 cm in front of the camera."""
    place = torch.tensor([0.03, -0.02, 0.6], dtype=torch.float64)
    T = se3_exp(torch.cat([0.02 * randn(*batch, 3, seed=seed), 2 * randn(*batch, 3, seed=seed + 1)], -1))
    T[..., :3, 3] = T[..., :3, 3] + place
    return T


def seen(K: Tensor, cam_T_obj: Tensor, xyz: Tensor) -> Tensor:
    return project(K, transform_points(cam_T_obj, xyz))


def information(*shape: int, std_px: float = 1.0) -> Tensor:
    return torch.eye(2, dtype=torch.float64).expand(*shape, 2, 2) / std_px**2


def twist_between(cam_T_obj: Tensor, gt_cam_T_obj: Tensor) -> Tensor:
    """To first order, xi of ``cam_T_obj = se3_exp(xi) @ gt_cam_T_obj``."""
    T = cam_T_obj @ invert(gt_cam_T_obj)
    return torch.cat([T[..., :3, 3], so3_log(T[..., :3, :3])], -1)


def assert_solved(result: PnPResult, cam_T_obj: Tensor, tolerance_m: float, tolerance_deg: float) -> None:
    assert result.cam_T_obj is not None, result.reason
    assert result.reason == ""
    assert float((result.cam_T_obj[:3, 3] - cam_T_obj[:3, 3]).norm()) < tolerance_m
    assert math.degrees(rotation_angle_rad(result.cam_T_obj[:3, :3], cam_T_obj[:3, :3])) < tolerance_deg


def assert_failed(result: PnPResult, num: int, reason: str) -> None:
    assert result.cam_T_obj is None
    assert result.covariance is None
    assert math.isnan(result.reprojection_px)
    assert result.inliers.shape == (num,)
    assert not result.inliers.any()
    assert reason in result.reason


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("num_points", [4, 9, 200])
def test_exact_pixels_give_the_exact_pose(camera: str, num_points: int) -> None:
    for seed in range(5):
        xyz, cam_T_obj = object_points(num_points, seed=seed), poses(seed=seed)
        result = solve_pnp(seen(CAMERAS[camera], cam_T_obj, xyz), xyz, CAMERAS[camera])
        assert_solved(result, cam_T_obj, tolerance_m=1e-7, tolerance_deg=1e-5)
        assert bool(result.inliers.all())
        assert result.reprojection_px < 1e-4


def test_points_in_a_plane_are_enough() -> None:
    xyz, cam_T_obj = object_points(20), poses()
    xyz[:, 2] = 0.01
    assert_solved(solve_pnp(seen(PHOTO, cam_T_obj, xyz), xyz, PHOTO), cam_T_obj, 1e-7, 1e-5)


@pytest.mark.parametrize("camera", CAMERAS)
def test_forty_percent_of_outliers_do_no_harm(camera: str) -> None:
    K = CAMERAS[camera]
    for seed in range(5):
        xyz, cam_T_obj = object_points(300, seed=seed), poses(seed=seed)
        uv = seen(K, cam_T_obj, xyz) + 0.5 * randn(300, 2, seed=seed)
        uv[:120] += 60 * (torch.rand((120, 2), generator=torch.Generator().manual_seed(seed)) - 0.5)
        result = solve_pnp(uv, xyz, K)
        assert_solved(result, cam_T_obj, tolerance_m=5e-3, tolerance_deg=1.0)
        assert bool(result.inliers[120:].all())
        assert result.inliers[:120].double().mean() < 0.1


@pytest.mark.parametrize("camera", CAMERAS)
def test_the_threshold_is_in_pixels_of_the_image_at_hand(camera: str) -> None:
    K, xyz, cam_T_obj = CAMERAS[camera], object_points(60), poses()
    angle_rad = torch.arange(20, dtype=torch.float64) * math.pi / 10
    away = torch.stack([angle_rad.cos(), angle_rad.sin()], -1)
    uv = seen(K, cam_T_obj, xyz)
    uv[:20] += 5.2 * away
    uv[20:40] += 4.8 * away
    result = solve_pnp(uv, xyz, K, threshold_px=5.0, covariance_uv=_covariance(40 * [10.0] + 20 * [0.01]))
    assert result.inliers.tolist() == 20 * [False] + 40 * [True]


def _covariance(std_px: list[float]) -> Tensor:
    return torch.diag_embed(torch.tensor(std_px, dtype=torch.float64).square()[:, None].expand(-1, 2))


def test_too_few_points_are_a_failure_with_a_reason() -> None:
    for num in (0, 3):
        uv, xyz = randn(num, 2), object_points(num)
        assert_failed(solve_pnp(uv, xyz, PHOTO), num, f"{num} of {num} correspondences are usable, 4 are needed")


def test_points_on_a_line_are_a_failure_with_a_reason() -> None:
    line = torch.tensor([[0.01, 0.02, -0.01]], dtype=torch.float64) * randn(10, 1) + 0.03
    assert_failed(solve_pnp(seen(PHOTO, poses(), line), line, PHOTO), 10, "lie on one line")
    point = line[:1].expand(10, 3)
    assert_failed(solve_pnp(seen(PHOTO, poses(), point), point, PHOTO), 10, "lie on one line")


def test_agreement_on_a_line_alone_is_a_failure_with_a_reason() -> None:
    for seed in range(20):
        xyz = torch.tensor([[0.01, 0.02, -0.01]], dtype=torch.float64) * randn(40, 1, seed=seed)
        xyz[:3] = object_points(3, seed=seed)
        uv = seen(PHOTO, poses(seed=seed), xyz)
        uv[:3] = torch.tensor([[90000.0, 0], [-300, 70000], [0, -80000]], dtype=torch.float64)
        assert_failed(solve_pnp(uv, xyz, PHOTO), 40, "leave the rotation open")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_a_failure_with_a_reason(value: float) -> None:
    xyz = object_points(10)
    uv = seen(PHOTO, poses(), xyz)
    broken_uv, broken_xyz = uv.clone(), xyz.clone()
    broken_uv[3, 1] = broken_xyz[5, 0] = value
    assert_failed(solve_pnp(broken_uv, broken_xyz, PHOTO), 10, "2 of 10 correspondences are not finite")
    covariance = _covariance([1.0] * 10)
    covariance[0, 0, 1] = math.nan
    assert_failed(solve_pnp(uv, xyz, PHOTO, covariance_uv=covariance), 10, "1 of 10 correspondences are not finite")


def test_points_that_contradict_each_other_are_a_failure_with_a_reason() -> None:
    uv = 640 * torch.rand((12, 2), generator=torch.Generator().manual_seed(0))
    result = solve_pnp(uv, object_points(12).float(), PHOTO.float(), threshold_px=0.01)
    assert_failed(result, 12, "of 12 correspondences agree within 0.01 px")


def test_infinite_variance_leaves_a_correspondence_out() -> None:
    xyz, cam_T_obj = object_points(12), poses()
    uv = seen(PHOTO, cam_T_obj, xyz)
    uv[:6] = 0
    result = solve_pnp(uv, xyz, PHOTO, covariance_uv=_covariance([math.inf] * 6 + [1.0] * 6))
    assert_solved(result, cam_T_obj, 1e-7, 1e-5)
    assert result.inliers.tolist() == [False] * 6 + [True] * 6
    result = solve_pnp(uv, xyz, PHOTO, covariance_uv=_covariance([math.inf] * 9 + [1.0] * 3))
    assert_failed(result, 12, "3 of 12 correspondences are usable")


def test_a_callers_mistakes_are_told() -> None:
    xyz = object_points(5)
    uv = seen(PHOTO, poses(), xyz)
    for K in (torch.zeros(3, 3), PHOTO.T, PHOTO * math.nan):
        with pytest.raises(ValueError, match=r"K is .*, expected an invertible 3×3 with the last row \(0, 0, 1\)"):
            solve_pnp(uv, xyz, K)
    with pytest.raises(ValueError, match="not positive definite"):
        solve_pnp(uv, xyz, PHOTO, covariance_uv=-_covariance([1.0] * 5))


def test_precise_pixels_outweigh_vague_ones() -> None:
    std_px = torch.tensor([0.1] * 8 + [2.0] * 8)
    weighted, unweighted = [], []
    for seed in range(20):
        xyz, cam_T_obj = object_points(16, seed=seed), poses(seed=seed)
        uv = seen(PHOTO, cam_T_obj, xyz) + std_px[:, None] * randn(16, 2, seed=seed)
        for errors, covariance in ((weighted, _covariance(std_px.tolist())), (unweighted, None)):
            result = solve_pnp(uv, xyz, PHOTO, covariance_uv=covariance, threshold_px=10.0)
            assert result.cam_T_obj is not None
            errors.append(float((result.cam_T_obj[:3, 3] - cam_T_obj[:3, 3]).norm()))
    assert sum(weighted) < sum(unweighted) / 4


def test_a_seed_gives_the_same_pose_again_in_the_type_of_the_points() -> None:
    xyz, cam_T_obj = object_points(50).float(), poses().float()
    uv = seen(PHOTO.float(), cam_T_obj, xyz) + randn(50, 2).float()
    first, again = (solve_pnp(uv, xyz, PHOTO.float(), seed=3) for _ in range(2))
    assert first.cam_T_obj is not None
    assert again.cam_T_obj is not None
    assert torch.equal(first.cam_T_obj, again.cam_T_obj)
    assert first.cam_T_obj.dtype == torch.float32


def test_without_covariances_the_residuals_tell_the_pixels_std() -> None:
    xyz, cam_T_obj = object_points(200), poses()
    for std_px in (0.2, 1.0):
        uv = seen(PHOTO, cam_T_obj, xyz) + std_px * randn(200, 2)
        result = solve_pnp(uv, xyz, PHOTO)
        assert result.covariance is not None
        _, expected = refine_pose(cam_T_obj, uv, xyz, PHOTO, information(200, std_px=std_px))
        ratio = torch.linalg.eigvals(torch.linalg.solve(expected, result.covariance)).real
        assert 0.7 < float(ratio.min()) <= float(ratio.max()) < 1.4


@pytest.mark.parametrize("batch", BATCHES)
def test_refinement_keeps_batch_shape_and_equals_that_of_each_item(batch: tuple[int, ...]) -> None:
    xyz, cam_T_obj = object_points(*batch, 12), poses(*batch)
    uv = seen(CROP, cam_T_obj, xyz) + randn(*batch, 12, 2)
    K = CROP.expand(*batch, 3, 3)
    start = se3_exp(0.01 * randn(*batch, 6, seed=5)) @ cam_T_obj
    together, covariance = refine_pose(start, uv, xyz, K, information(*batch, 12))
    assert together.shape == (*batch, 4, 4)
    assert covariance.shape == (*batch, 6, 6)
    for i in range(math.prod(batch)):
        item = (x.reshape(-1, *x.shape[len(batch) :])[i] for x in (start, uv, xyz, K, information(*batch, 12)))
        alone, alone_covariance = refine_pose(*item)
        # Each stops by itself once a step is below a tenth of a standard deviation; what is left is far less.
        error = twist_between(together.reshape(-1, 4, 4)[i], alone)
        assert float(error @ torch.linalg.solve(alone_covariance, error)) < 0.03**2
        torch.testing.assert_close(covariance.reshape(-1, 6, 6)[i], alone_covariance, rtol=0.02, atol=1e-8)


def test_refinement_broadcasts_a_camera_or_a_start() -> None:
    xyz, cam_T_obj = object_points(12), poses()
    K = torch.stack([PHOTO, CROP])
    uv = seen(K, cam_T_obj, xyz)
    start = se3_exp(torch.full((6,), 0.01, dtype=torch.float64)) @ cam_T_obj
    for iterations in (0, 10):
        refined, covariance = refine_pose(start, uv, xyz, K, information(12), iterations=iterations)
        assert refined.shape == (2, 4, 4)
        assert covariance.shape == (2, 6, 6)
    torch.testing.assert_close(refined, cam_T_obj.expand(2, 4, 4), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_refinement_finds_the_pose_from_afar(dtype: torch.dtype) -> None:
    xyz, cam_T_obj = object_points(50, 20), poses(50)
    direction = torch.nn.functional.normalize(randn(50, 2, 3), dim=-1)
    # Off by 3 cm and 20 degrees about the object's centre.
    turned = se3_exp(torch.cat([0 * direction[:, 0], math.radians(20) * direction[:, 1]], -1))
    start = cam_T_obj @ turned
    start[:, :3, 3] += 0.03 * direction[:, 0]
    inputs = (x.to(dtype) for x in (start, seen(PHOTO, cam_T_obj, xyz), xyz, PHOTO, information(20)))
    refined, _ = refine_pose(*inputs, iterations=20, cauchy_scale=30.0)
    error = twist_between(refined.double(), cam_T_obj)
    assert float(error.abs().max()) < (1e-6 if dtype == torch.float64 else 1e-3)


def test_refinement_ignores_what_carries_no_information_or_lies_behind() -> None:
    xyz, cam_T_obj = object_points(12), poses()
    uv = seen(PHOTO, cam_T_obj, xyz)
    start = se3_exp(torch.full((6,), 0.005, dtype=torch.float64)) @ cam_T_obj
    expected, expected_covariance = refine_pose(start, uv[2:], xyz[2:], PHOTO, information(10))
    weight = information(12).clone()
    weight[0] = 0
    uv[0] = 1000
    xyz[1] = (invert(cam_T_obj) @ torch.tensor([0.0, 0, -0.2, 1]).double())[:3]
    refined, covariance = refine_pose(start, uv, xyz, PHOTO, weight)
    torch.testing.assert_close(refined, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(covariance, expected_covariance, rtol=1e-4, atol=1e-9)


def test_refinement_resists_outliers_from_a_good_start() -> None:
    xyz, cam_T_obj = object_points(40), poses()
    uv = seen(PHOTO, cam_T_obj, xyz) + 0.5 * randn(40, 2)
    uv[:8] += 50
    refined, _ = refine_pose(cam_T_obj, uv, xyz, PHOTO, information(40, std_px=0.5))
    without, covariance = refine_pose(cam_T_obj, uv[8:], xyz[8:], PHOTO, information(32, std_px=0.5))
    difference = twist_between(refined, without)
    assert float(difference @ torch.linalg.solve(covariance, difference)) < 1


def test_nothing_to_go_by_leaves_the_pose_and_an_infinite_covariance() -> None:
    xyz, cam_T_obj = object_points(2, 6), poses(2)
    weight = information(2, 6) * torch.tensor([0.0, 1.0]).double()[:, None, None, None]
    refined, covariance = refine_pose(cam_T_obj, seen(PHOTO, cam_T_obj, xyz) + 1, xyz, PHOTO, weight)
    torch.testing.assert_close(refined[0], cam_T_obj[0])
    assert bool(covariance[0].diagonal().isinf().all())
    assert bool(covariance[1].isfinite().all())


def test_covariance_is_the_scatter_of_repeated_measurements() -> None:
    num_trials, num_points = 1000, 30
    xyz, cam_T_obj = object_points(num_points), poses()
    # Elongated and turned errors, larger for some points than for others.
    root = randn(num_points, 2, 2, seed=3) + 0.5 * torch.eye(2, dtype=torch.float64)
    noise = (root @ randn(num_trials, num_points, 2, 1, seed=4))[..., 0]
    precision = torch.linalg.inv(root @ root.mT)
    uv = seen(CROP, cam_T_obj, xyz) + noise
    refined, covariance = refine_pose(cam_T_obj, uv, xyz, CROP, precision)
    twist = twist_between(refined, cam_T_obj)
    scatter = twist.T @ twist / num_trials
    ratio = torch.linalg.eigvals(torch.linalg.solve(covariance.mean(0), scatter)).real
    # A sixth too large, as its docstring says, in every direction of the pose.
    assert 0.7 < float(ratio.min()) <= float(ratio.max()) < 1.05
    assert 0.8 < float(ratio.mean()) < 0.95


def test_refinement_has_exact_gradients() -> None:
    xyz, cam_T_obj = object_points(6), poses()
    uv = seen(PHOTO, cam_T_obj, xyz) + randn(6, 2)
    root = randn(6, 2, 2, seed=1) + 2 * torch.eye(2, dtype=torch.float64)
    start = se3_exp(0.003 * randn(6, seed=2)) @ cam_T_obj

    def refined(uv: Tensor, xyz: Tensor, root: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
        pose, covariance = refine_pose(start, uv, xyz, K, root @ root.mT, iterations=12)
        return pose, 1e3 * covariance

    inputs = tuple(x.clone().requires_grad_() for x in (uv, xyz, root, PHOTO))
    assert gradcheck(refined, inputs, atol=1e-5, rtol=1e-3, fast_mode=True)
    # Where it starts has no influence on where it ends.
    xi = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    pose, _ = refine_pose(se3_exp(xi) @ start, uv, xyz, PHOTO, root @ root.mT, iterations=20)
    (gradient,) = torch.autograd.grad(pose.sum(), xi)
    assert float(gradient.abs().max()) < 1e-4


def test_a_measured_translation_counts_by_its_covariance() -> None:
    cam_T_obj, xyz = poses(), object_points(30)
    uv = seen(PHOTO, cam_T_obj, xyz) + 0.5 * randn(30, 2)
    pose, covariance = refine_pose(cam_T_obj, uv, xyz, PHOTO, information(30, std_px=0.5))
    measured = pose[:3, 3] + torch.tensor([0.002, -0.001, 0.03], dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    certain = fuse_translation(pose, covariance, measured, 1e-12 * eye)
    torch.testing.assert_close(certain[:3, 3], measured, atol=5e-4, rtol=0)  # exact to first order
    torch.testing.assert_close(fuse_translation(pose, covariance, measured, 1e9 * eye), pose, atol=1e-6, rtol=0)


def test_fusing_finds_the_most_likely_pose() -> None:
    cam_T_obj, xyz = poses(), object_points(12)
    uv = seen(PHOTO, cam_T_obj, xyz) + 2 * randn(12, 2)
    pose, covariance = refine_pose(cam_T_obj, uv, xyz, PHOTO, information(12, std_px=2.0))
    measured, covariance_t = cam_T_obj[:3, 3], (0.002 * randn(3).abs() + 1e-3).square().diag()
    fused = fuse_translation(pose, covariance, measured, covariance_t)

    def cost(candidate: Tensor) -> float:
        xi, off = twist_between(candidate, pose), candidate[:3, 3] - measured
        return float(xi @ torch.linalg.solve(covariance, xi) + off @ torch.linalg.solve(covariance_t, off))

    scale = covariance.diagonal().sqrt()
    for seed in range(30):
        assert cost(fused) < cost(se3_exp(0.1 * scale * randn(6, seed=seed)) @ fused)
