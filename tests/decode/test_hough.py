"""Hough voting: robust means with honest covariances, and centres that keep their identity."""

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from glimpose.decode.hough import Centers, accumulate_votes, aggregate_votes, find_centers, translation_from_center
from glimpose.geometry.camera import pixel_grid

STRIDE = 4
HEIGHT, WIDTH = 24, 32
Maps = tuple[Tensor, Tensor, Tensor, Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def scene(
    *objects: tuple[int, tuple[int, int, int, int], tuple[float, float]], num_classes: int = 3, noise_px: float = 0.0
) -> Maps:
    """Maps of objects, each a class, a box of cells (top, left, bottom, right) and a centre in pixels."""
    center = torch.zeros(HEIGHT, WIDTH, 2, dtype=torch.float64)
    prob = torch.zeros(1, num_classes, HEIGHT, WIDTH, dtype=torch.float64)
    log_depth = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.float64)
    for number, (class_index, (top, left, bottom, right), uv) in enumerate(objects):
        cells = (slice(top, bottom), slice(left, right))
        center[cells] = torch.tensor(uv, dtype=torch.float64)
        prob[(0, class_index, *cells)] = 0.9
        log_depth[(0, *cells)] = 0.1 * (number + 1)
    votes = center + noise_px * randn(HEIGHT, WIDTH, 2)
    offsets = (votes - pixel_grid(HEIGHT, WIDTH, STRIDE).to(votes)).permute(2, 0, 1)[None]
    return offsets, log_depth, torch.full_like(log_depth, max(noise_px, 1.0)), prob


def found(centers: Centers) -> list[tuple[int, Tensor]]:
    """Class and position of the valid centres of the first image, in the order of classes."""
    valid = centers.valid[0]
    classes = [int(index) for index in centers.class_index[0, valid]]
    return sorted(zip(classes, centers.center_px[0, valid], strict=True), key=lambda item: item[0])


@pytest.mark.parametrize("batch", [(), (1,), (3, 2)])
def test_estimates_keep_batch_shape_and_equal_those_of_each_item(batch: tuple[int, ...]) -> None:
    votes, std = 20 * randn(*batch, 30, 4, 2), 1 + randn(*batch, 30, 4).square()
    weight = torch.rand((*batch, 30), generator=generator(), dtype=torch.float64)
    together = aggregate_votes(votes, std, weight)
    assert together.covariance.shape == (*batch, 4, 2, 2)
    for item in torch.cartesian_prod(*map(torch.arange, batch)).view(-1, len(batch)).tolist() if batch else [[]]:
        index = tuple(item)
        alone = aggregate_votes(votes[index], std[index], weight[index])
        torch.testing.assert_close(together.mean[index], alone.mean)
        torch.testing.assert_close(together.support[index], alone.support)


def test_mean_follows_shifts_and_rotations_and_ignores_order() -> None:
    votes, std, weight = 5 * randn(50, 3, 2), torch.ones(50, 3).double(), torch.ones(50).double()
    estimate = aggregate_votes(votes, std, weight)
    quarter_turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    shift = torch.tensor([1e4, -3.3], dtype=torch.float64)
    moved = aggregate_votes((votes @ quarter_turn.mT + shift).flip(0), std, weight)
    torch.testing.assert_close(moved.mean, estimate.mean @ quarter_turn.mT + shift)
    torch.testing.assert_close(moved.covariance, quarter_turn @ estimate.covariance @ quarter_turn.mT)
    torch.testing.assert_close(moved.support, estimate.support)


@pytest.mark.parametrize("kind", ["scattered", "one-sided", "another point", "far away"])
def test_mean_survives_forty_percent_outliers(kind: str) -> None:
    votes = randn(100, 300, 1, 2)
    noise = randn(100, 120, 1, 2, seed=1)
    wrong = {
        "scattered": 30 * noise,
        "one-sided": 30 * noise.abs(),
        "another point": noise + 25,
        "far away": 1000 * noise,
    }[kind]
    votes[:, :120] = wrong
    estimate = aggregate_votes(votes, torch.ones(100, 300, 1).double(), torch.ones(100, 300).double())
    assert estimate.mean.norm(dim=-1).max() < 0.5
    torch.testing.assert_close(estimate.support.mean(), torch.tensor(0.57).double(), atol=0.03, rtol=0)


@pytest.mark.parametrize("correlation", [0.0, 0.2, 0.5])
@pytest.mark.parametrize(("claimed", "tolerance"), [(1.0, 1.25), (0.5, 2.0), (2.0, 1.5)])
def test_covariance_is_calibrated(correlation: float, claimed: float, tolerance: float) -> None:
    trials, num_votes = 2000, 40
    errors = math.sqrt(1 - correlation) * randn(trials, num_votes, 1, 2)
    errors += math.sqrt(correlation) * randn(trials, 1, 1, 2, seed=1)
    max_votes = (1 - correlation) / correlation if correlation else math.inf
    std = torch.full((trials, num_votes, 1), claimed * math.sqrt(1 - correlation)).double()
    estimate = aggregate_votes(
        3 * errors, 3 * std, torch.ones(trials, num_votes).double(), max_votes=max_votes, floor_px=0.01
    )
    whitened = torch.linalg.solve(estimate.covariance, estimate.mean[..., None])[..., 0]
    squared_error = (whitened * estimate.mean).sum(-1).mean() / 2  # 1 if calibrated
    assert 1 / tolerance < squared_error < tolerance


def test_covariance_has_the_direction_and_size_of_the_noise() -> None:
    noise = randn(5000, 1, 2) * torch.tensor([1.0, 2.0])
    std, weight = torch.full((5000, 1), 1.5).double(), torch.ones(5000).double()
    covariance = aggregate_votes(noise, std, weight, max_votes=4.0, floor_px=0.01).covariance[0]
    torch.testing.assert_close(covariance, torch.tensor([[0.25, 0.0], [0.0, 1.0]]).double(), atol=0.15, rtol=0)


def test_single_vote_is_worth_its_claim() -> None:
    estimate = aggregate_votes(torch.tensor([[[7.0, -2.0]]]), torch.tensor([[3.0]]), torch.ones(1), max_votes=math.inf)
    torch.testing.assert_close(estimate.mean, torch.tensor([[7.0, -2.0]]))
    torch.testing.assert_close(estimate.covariance, 9.0 * torch.eye(2)[None], atol=0.2, rtol=0)
    torch.testing.assert_close(estimate.support, torch.ones(1))


def test_votes_that_agree_less_have_less_support() -> None:
    std, weight = torch.ones(500, 1).double(), torch.ones(500).double()
    support = [aggregate_votes(spread * randn(500, 1, 2), std, weight).support.item() for spread in (0, 1, 3, 10)]
    assert support == sorted(support, reverse=True)
    assert support[0] == 1.0
    assert support[1] == pytest.approx(0.93, abs=0.01)


@pytest.mark.parametrize("num_votes", [0, 5])
def test_without_weight_nothing_is_known_and_gradients_are_finite(num_votes: int) -> None:
    inputs = [randn(2, num_votes, 3, 2), torch.ones(2, num_votes, 3).double(), torch.zeros(2, num_votes).double()]
    for tensor in inputs:
        tensor.requires_grad_()
    estimate = aggregate_votes(*inputs)
    assert (estimate.support == 0).all()
    assert (estimate.mean == 0).all()
    assert torch.equal(estimate.covariance[0, 0], torch.tensor([[math.inf, 0.0], [0.0, math.inf]]).double())
    (estimate.mean.sum() + estimate.covariance.sum() + estimate.support.sum()).backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in inputs if tensor.grad is not None)


def test_estimates_pass_gradcheck() -> None:
    votes, std, weight = 5 * randn(6, 2, 2), 1 + randn(6, 2).square(), torch.ones(6).double()
    for tensor in (votes, std, weight):
        tensor.requires_grad_()

    def estimate(*inputs: Tensor) -> tuple[Tensor, ...]:
        points = aggregate_votes(*inputs)
        return points.mean, points.covariance, points.support

    assert gradcheck(estimate, (votes, std, weight))


def test_accumulator_keeps_mass_and_centroid_and_drops_what_is_outside() -> None:
    votes = torch.tensor([[[2.25, 3.5], [1e30, 0.0], [-1e30, 2.0], [-0.5, 0.0]]])
    maps = accumulate_votes(votes, torch.tensor([[[1.0, 2.0], [1.0, 1.0], [1.0, 1.0], [0.0, 4.0]]]), 6, 8)
    torch.testing.assert_close(maps.sum((-2, -1)), torch.tensor([[1.0, 4.0]]))
    torch.testing.assert_close(torch.einsum("hw,hwd->d", maps[0, 0], pixel_grid(6, 8).float()), votes[0, 0])
    votes, weight = 3 + randn(2, 5, 2), randn(2, 5, 3)
    assert gradcheck(lambda v, w: accumulate_votes(v, w, 6, 8), (votes.requires_grad_(), weight.requires_grad_()))


def test_centers_of_different_classes_keep_their_identity_even_at_one_place() -> None:
    maps = scene((2, (2, 2, 8, 8), (60.0, 40.0)), (0, (10, 20, 14, 24), (60.0, 40.0)))
    (first, at_first), (second, at_second) = found(find_centers(*maps, STRIDE))
    assert (first, second) == (0, 2)
    torch.testing.assert_close(at_first, torch.tensor([60.0, 40.0]).double())
    torch.testing.assert_close(at_second, at_first)


def test_instances_of_one_class_are_separated_with_their_depths_and_cells() -> None:
    boxes = [(2, 2, 10, 10), (2, 10, 10, 18), (16, 24, 22, 30)]
    points = [(23.0, 23.0), (55.0, 23.0), (107.0, 75.0)]
    maps = scene(*((1, box, point) for box, point in zip(boxes, points, strict=True)), noise_px=1.5)
    centers = find_centers(*maps, STRIDE)
    assert int(centers.valid.sum()) == 3
    for number, ((top, left, bottom, right), point) in enumerate(zip(boxes, points, strict=True)):
        slot = centers.assignment[0, top, left].long() - 1
        assert (centers.assignment[0, top:bottom, left:right] == slot + 1).all()
        torch.testing.assert_close(centers.center_px[0, slot], torch.tensor(point).double(), atol=1.0, rtol=0)
        assert centers.log_depth[0, slot].item() == pytest.approx(0.1 * (number + 1), abs=1e-6)
    assert int((centers.assignment > 0).sum()) == 64 + 64 + 36


@pytest.mark.parametrize("noise_px", [2.0, 5.0, 10.0])
def test_noisy_votes_for_one_place_are_one_center(noise_px: float) -> None:
    for columns in (8, 16, 32):
        centers = find_centers(*scene((0, (0, 0, 24, columns), (64.0, 48.0)), noise_px=noise_px), STRIDE)
        assert int(centers.valid.sum()) == 1
        torch.testing.assert_close(
            centers.center_px[0, 0], torch.tensor([64.0, 48.0]).double(), atol=noise_px / 3, rtol=0
        )


@pytest.mark.parametrize("point", [(-40.0, 30.0), (170.0, 130.0)])
def test_center_may_lie_outside_the_image_up_to_the_margin(point: tuple[float, float]) -> None:
    maps = scene((1, (4, 4, 8, 8), point))
    [(_, center)] = found(find_centers(*maps, STRIDE))
    torch.testing.assert_close(center, torch.tensor(point).double())
    assert not find_centers(*maps, STRIDE, margin_px=8.0).valid.any()


def test_centers_follow_the_votes_and_ignore_where_the_cells_are() -> None:
    offsets, log_depth, std, prob = scene((1, (4, 4, 12, 12), (50.0, 40.0)), noise_px=2)
    centers = find_centers(offsets, log_depth, std, prob, STRIDE)
    shift = torch.tensor([3.3, -5.9]).double()
    moved = find_centers(offsets + shift.view(2, 1, 1), log_depth, std, prob, STRIDE, iterations=12)
    torch.testing.assert_close(moved.center_px[0, 0], centers.center_px[0, 0] + shift, atol=0.02, rtol=0)
    grid = pixel_grid(HEIGHT, WIDTH, STRIDE).to(offsets).permute(2, 0, 1)
    order = torch.randperm(HEIGHT * WIDTH, generator=generator())
    votes, log_depth, std, prob = (
        maps.flatten(-2)[..., order].unflatten(-1, (HEIGHT, WIDTH)) for maps in (offsets + grid, log_depth, std, prob)
    )
    shuffled = find_centers(votes - grid, log_depth, std, prob, STRIDE)
    torch.testing.assert_close(shuffled.center_px, centers.center_px)
    torch.testing.assert_close(shuffled.score, centers.score)


def test_score_is_comparable_between_classes_and_falls_with_doubt() -> None:
    large, small = (0, (2, 2, 14, 14), (30.0, 30.0)), (1, (16, 20, 21, 25), (90.0, 75.0))
    centers = find_centers(*scene(large, small), STRIDE)
    assert centers.score[0, :2].tolist() == pytest.approx([0.9, 0.9], abs=0.05)
    offsets, log_depth, std, prob = scene(large, small)
    offsets[..., 2:14:2, 2:14] += 40 * randn(1, 2, 6, 12)  # half of the large one's votes are wrong
    prob[:, 1] /= 2  # and the small one's class is doubtful
    doubtful = find_centers(offsets, log_depth, std, prob, STRIDE)
    top = {int(c): float(s) for c, s in zip(doubtful.class_index[0, :2], doubtful.score[0, :2], strict=True)}
    assert top[0] < 0.8
    assert top[1] == pytest.approx(0.45, abs=0.05)


def test_center_covariance_is_calibrated() -> None:
    center = torch.tensor([30.0, 30.0]).double()
    offsets, *maps = (tensor.expand(300, *tensor.shape[1:]) for tensor in scene((0, (2, 2, 10, 10), (30.0, 30.0))))
    log_depth, std, prob = maps
    offsets = offsets + 3 * randn(*offsets.shape)
    centers = find_centers(offsets, log_depth, 3 * std, prob, STRIDE, max_votes=math.inf, floor_px=0.01)
    assert (centers.valid.sum(1) == 1).all()
    error = centers.center_px[:, 0] - center
    squared_error = (torch.linalg.solve(centers.covariance[:, 0], error[..., None])[..., 0] * error).sum(-1).mean() / 2
    assert 0.67 < squared_error < 1.5


def test_batch_equals_loop() -> None:
    scenes = [
        scene((2, (2, 2, 8, 8), (60.0, 40.0)), noise_px=2),
        scene((0, (3, 2, 8, 12), (20.0, 50.0)), (0, (9, 20, 20, 30), (95.0, 60.0)), noise_px=3),
        scene(),
    ]
    together = find_centers(*(torch.cat(maps) for maps in zip(*scenes, strict=True)), STRIDE)
    for number, maps in enumerate(scenes):
        alone = find_centers(*maps, STRIDE)
        for field in fields(Centers):
            torch.testing.assert_close(getattr(together, field.name)[number], getattr(alone, field.name)[0])


def test_nothing_is_found_where_nothing_is_and_gradients_are_finite() -> None:
    maps = [tensor.requires_grad_() for tensor in scene()]
    centers = find_centers(*maps, STRIDE)
    assert not centers.valid.any()
    assert (centers.class_index == -1).all()
    assert (centers.score == 0).all()
    assert torch.isinf(centers.log_depth_std).all()
    assert (centers.assignment == 0).all()
    (centers.center_px.sum() + centers.covariance.sum() + centers.score.sum() + centers.log_depth_std.sum()).backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in maps if tensor.grad is not None)
    assert find_centers(*(tensor[:0] for tensor in scene()), STRIDE).center_px.shape == (0, 16, 2)


def test_centers_pass_gradcheck() -> None:
    offsets, log_depth, std, prob = scene((0, (4, 4, 6, 7), (30.0, 20.0)), num_classes=1, noise_px=1)
    maps = [tensor[..., 3:7, 3:8].clone().requires_grad_() for tensor in (offsets, log_depth, std, prob)]

    def centers(*inputs: Tensor) -> tuple[Tensor, ...]:
        c = find_centers(*inputs, STRIDE, max_instances=2)
        return tuple(t[c.valid] for t in (c.center_px, c.covariance, c.log_depth, c.log_depth_std, c.score))

    assert len(centers(*maps)[0]) == 1
    assert gradcheck(centers, maps)


def test_impossible_number_of_instances_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_instances is 256, expected 1\.\.255"):
        find_centers(*scene(), STRIDE, max_instances=256)


@pytest.mark.gpu
def test_gpu_agrees_with_cpu() -> None:
    maps = scene((2, (2, 2, 8, 8), (60.0, 40.0)), (2, (9, 20, 20, 30), (95.0, 60.0)), noise_px=2)
    on_cpu, on_gpu = find_centers(*maps, STRIDE), find_centers(*(tensor.cuda() for tensor in maps), STRIDE)
    for field in fields(Centers):
        torch.testing.assert_close(getattr(on_gpu, field.name).cpu(), getattr(on_cpu, field.name))
    votes, std, weight = 5 * randn(2, 50, 3, 2), torch.ones(2, 50, 3).double(), torch.ones(2, 50).double()
    torch.testing.assert_close(
        aggregate_votes(votes.cuda(), std.cuda(), weight.cuda()).covariance.cpu(),
        aggregate_votes(votes, std, weight).covariance,
    )


@pytest.mark.parametrize("batch", [(), (3, 2)])
def test_translation_projects_back_onto_the_center(batch: tuple[int, ...]) -> None:
    K = torch.tensor([[500.0, 12.0, 320.0], [-7.0, 480.0, 240.0], [0.0, 0.0, 1.0]]).expand(*batch, 3, 3)
    center, depth = 300 + 100 * randn(*batch, 2).float(), 0.5 + randn(*batch).float().square()
    t = translation_from_center(center, depth, K)
    uvw = (K @ t[..., None])[..., 0]
    torch.testing.assert_close(t[..., 2], depth)
    torch.testing.assert_close(uvw[..., :2] / uvw[..., 2:], center)
