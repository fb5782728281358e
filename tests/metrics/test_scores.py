import math

import pytest
import torch

from glimpose.metrics.scores import mean_interval, reliability, roc_auc


def test_auc_is_the_share_of_pairs_in_the_right_order():
    g = torch.Generator().manual_seed(0)
    score = torch.randint(0, 12, (60,), generator=g).double()  # with ties
    is_positive = torch.rand(60, generator=g) < 0.3
    pairs = [(p > n) + 0.5 * (p == n) for p in score[is_positive].tolist() for n in score[~is_positive].tolist()]
    assert roc_auc(score, is_positive) == pytest.approx(sum(pairs) / len(pairs))


def test_auc_of_perfect_reversed_and_constant_scores():
    labels = torch.tensor([False, False, True, True])
    assert roc_auc(torch.tensor([0.0, 1, 2, 3]), labels) == 1
    assert roc_auc(torch.tensor([3.0, 2, 1, 0]), labels) == 0
    assert roc_auc(torch.zeros(4), labels) == 0.5
    assert math.isnan(roc_auc(torch.rand(4), torch.ones(4, dtype=torch.bool)))


def test_interval_of_three_replicas_is_students():
    mean, half = mean_interval(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert mean == 2
    assert half == pytest.approx(4.302652729749462 / math.sqrt(3))  # t of two degrees of freedom at 97.5 %


def test_interval_of_one_replica_is_unknown():
    mean, half = mean_interval(torch.tensor([5.0]))
    assert mean == 5
    assert math.isnan(half)


def test_reliability_of_probabilities_lies_on_the_diagonal():
    g = torch.Generator().manual_seed(1)
    prob = torch.rand(20_000, generator=g, dtype=torch.float64)
    is_right = torch.rand(20_000, generator=g, dtype=torch.float64) < prob
    bins = reliability(prob, is_right)
    assert [num for _, _, num in bins] == [4000] * 5
    for said, came, _ in bins:
        assert came == pytest.approx(said, abs=0.03)
    assert reliability(torch.tensor([0.5]), torch.tensor([True])) == [(0.5, 1.0, 1)]
