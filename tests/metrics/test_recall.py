import torch
from torch import Tensor

from glimpose.metrics.recall import match_greedily


def matched(errors: list[list[float]], threshold: float) -> list[list[bool]]:
    return match_greedily(torch.tensor(errors), torch.tensor(threshold)).tolist()


def test_an_error_on_the_threshold_is_not_below_it() -> None:
    assert matched([[1.0]], 1.0) == [[False]]
    assert matched([[0.999]], 1.0) == [[True]]


def test_the_first_estimate_chooses_first() -> None:
    assert matched([[0.5, 0.6], [0.1, 0.9]], 1.0) == [[True, False], [False, True]]


def test_an_estimate_takes_the_nearest_instance_left() -> None:
    assert matched([[0.3, 0.2], [0.4, 0.1]], 0.5) == [[False, True], [True, False]]


def test_an_instance_is_found_once() -> None:
    assert matched([[0.1], [0.1]], 1.0) == [[True], [False]]


def test_nan_matches_nothing() -> None:
    assert matched([[float("nan"), 0.2]], 1.0) == [[False, True]]


def test_an_infinite_threshold_pairs_all_it_can() -> None:
    pairs = match_greedily(torch.rand(3, 5, generator=torch.Generator().manual_seed(0)), torch.tensor(torch.inf))
    assert pairs.sum(1).tolist() == [1, 1, 1]
    assert pairs.sum(0).max() == 1


def test_thresholds_are_independent() -> None:
    errors = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(1))
    thresholds = torch.tensor([0.2, 0.5, 0.8, 1.0])
    batched = match_greedily(errors, thresholds)
    single: list[Tensor] = [match_greedily(e, t) for e, t in zip(errors, thresholds, strict=True)]
    assert torch.equal(batched, torch.stack(single))


def test_nothing_to_match_matches_nothing() -> None:
    assert match_greedily(torch.zeros(0, 2), torch.tensor(1.0)).shape == (0, 2)
    assert match_greedily(torch.zeros(2, 0), torch.tensor(1.0)).shape == (2, 0)
