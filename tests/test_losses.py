import math

import torch

from glimpose import losses


def test_losses_are_unreduced():
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    assert losses.l1(a, b).shape == a.shape
    assert losses.bce(a, torch.rand_like(a)).shape == a.shape
    assert losses.laplace_nll(a.abs(), b).shape == a.shape
    assert losses.dice(a, torch.rand_like(a)).shape == (2, 3)


def test_laplace_likelihood_is_best_where_the_deviation_is_the_error():
    error = torch.tensor(3.0)
    log_std = torch.linspace(-1, 3, 4001)
    best = log_std[losses.laplace_nll(error.expand_as(log_std), log_std).argmin()]
    assert abs(float(best) - math.log(3)) < 2e-3


def test_distance_is_euclidean_and_has_a_gradient_where_points_coincide():
    a = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    b = a.detach().clone()
    b[0] += torch.randn(3, 2, 4)
    found = losses.distance(a, b, dim=2)
    torch.testing.assert_close(found, torch.linalg.vector_norm(a - b, dim=2), atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad(found.sum(), a)
    assert gradient.isfinite().all()
    assert (gradient[1] == 0).all()


def test_dice_is_zero_for_a_perfect_mask_and_for_two_empty_ones():
    target = torch.zeros(2, 16, 16)
    target[0, 4:9, 3:12] = 1
    logits = target * 60 - 30
    torch.testing.assert_close(losses.dice(logits, target), torch.zeros(2), atol=1e-5, rtol=0)
    assert losses.dice(-logits, target)[0] > 0.9


def test_masked_mean_ignores_what_has_no_weight_and_survives_no_weight_at_all():
    values = torch.tensor([[1.0, 2.0, 1e9]], requires_grad=True)
    mean = losses.masked_mean(values, torch.tensor([[1.0, 3.0, 0.0]]))
    torch.testing.assert_close(mean, torch.tensor(1.75))
    nothing = losses.masked_mean(values, torch.zeros(1, 3))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert values.grad is not None
    assert values.grad.isfinite().all()
