"""How well scores tell two classes apart, and how sure a mean is."""

import math

import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata, t
from torch import Tensor


def roc_auc(score: Float[Tensor, " n"], is_positive: Bool[Tensor, " n"]) -> float:
    """Probability that a positive outscores a negative, ties counting half; NaN if there is only one class."""
    num_positive = int(is_positive.sum())
    num_negative = len(is_positive) - num_positive
    if not (num_positive and num_negative):
        return math.nan
    ranks = torch.from_numpy(rankdata(score.double().numpy()))
    return float((ranks[is_positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def reliability(
    score: Float[Tensor, " n"], is_right: Bool[Tensor, " n"], num_bins: int = 5
) -> list[tuple[float, float, int]]:
    """Compare scores with what comes of them: for as many bins of equal size, mean score, share right, and number."""
    order = score.argsort()
    bins = [chosen for chosen in order.tensor_split(num_bins) if len(chosen)]
    return [(float(score[i].mean()), float(is_right[i].double().mean()), len(i)) for i in bins]


def mean_interval(values: Float[Tensor, " n"], confidence: float = 0.95) -> tuple[float, float]:
    """Mean, and half the width of its confidence interval by Student's t, which is NaN for a single value."""
    n = len(values)
    if n < 2:
        return float(values.mean()), math.nan
    return float(values.mean()), float(t.ppf((1 + confidence) / 2, n - 1) * values.std() / math.sqrt(n))
