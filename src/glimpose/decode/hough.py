"""Hough voting: every cell of a map votes for points, and robust means of the votes become points with covariances.

A vote is the cell's centre plus a predicted offset in pixels, with a predicted isotropic standard deviation; it may
land anywhere, however far from its cell. A vote agrees with a point by

    agreement = 1 / (1 + (distance / 3 std)^4),

which is flat for honest votes, 1/2 at three standard deviations, and falls fast enough that outliers add next to
nothing to means and covariances. Everything is differentiable except for the choice of peaks and of the cells that
each peak owns.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import conv2d, pad

from glimpose.geometry.camera import pixel_grid, unproject

_CUTOFF = 3.0
# Variance of the agreeing share of Gaussian votes relative to all of them: with t ~ Exp(1) (half the squared distance
# in std) and agreement a(t), E[a t] / E[a].
_SHRINKAGE = 0.885672
# Less than this many votes are none, and nothing is divided by less than the second: gradients would overflow.
_MIN_COUNT = 1e-6
_MIN_DIVISOR = 1e-20
_LOG_DEPTH_FLOOR = 0.005


@dataclass(frozen=True)
class PointEstimates:
    """Points voted for, in pixels."""

    mean: Float[Tensor, "*b p 2"]
    covariance: Float[Tensor, "*b p 2 2"]
    """Infinite on its diagonal where nothing voted; the mean is then 0 and means nothing."""
    support: Float[Tensor, "*b p"]
    """Share of the weight that agrees, 0..1: 1 for votes that coincide, 0.93 for scatter as large as the std says."""


@dataclass(frozen=True)
class Centers:
    """Instances found, k slots per image in the order of their peaks' height; slots that are not valid are empty."""

    class_index: Int[Tensor, "b k"]
    """-1 in empty slots."""
    center_px: Float[Tensor, "b k 2"]
    covariance: Float[Tensor, "b k 2 2"]
    """Of the centre; infinite on its diagonal in empty slots."""
    log_depth: Float[Tensor, "b k"]
    log_depth_std: Float[Tensor, "b k"]
    """Of the mean, with votes counted as for the covariance; infinite in empty slots."""
    score: Float[Tensor, "b k"]
    """0..1, comparable between classes: class probability of the votes that agree, times their share of the votes
    around, times n / (n + min_votes) for n of them."""
    valid: Bool[Tensor, "b k"]
    assignment: UInt8[Tensor, "b h w"]
    """The slot + 1 that each cell agrees with most; 0 where its class probability times agreement is below 1/4."""


def aggregate_votes(
    votes: Float[Tensor, "*b n p 2"],
    std: Float[Tensor, "*b n p"],
    weight: Float[Tensor, "*b n"],
    *,
    iterations: int = 8,
    max_votes: float = 4.0,
    floor_px: float = 0.25,
) -> PointEstimates:
    """Robust mean of n votes for each of p points, by reweighted least squares whose scale is annealed.

    The first scale is the spread of all votes about their mean, halved in each iteration on top of the claimed std, so
    that the mean settles in the largest cluster; 40 % of the votes may be wrong. ``weight`` is the probability that a
    vote counts, so its sum is the expected number of votes.

    The covariance is S · (1/n + 1/max_votes): S the spread of the agreeing votes, n their expected number. Neighbouring
    cells see the same pixels and err together. If any two errors correlate by ρ, the spread shows only 1 - ρ of the
    variance while the mean keeps ρ of it, and the mean's variance is S · (1/n + ρ/(1 - ρ)): however many votes, they
    are worth at most ``max_votes`` = (1 - ρ)/ρ independent ones. ``floor_px`` is added in quadrature, to each std too.
    """
    variance = std.mT.contiguous().square() + floor_px**2  # *b p n
    points = votes.movedim(-3, -1).contiguous()  # *b p 2 n
    weights = weight[..., None, :].expand(variance.shape)
    mean = _mean(points, weights / variance)
    spread = _mean((points - mean[..., None]).square().sum(-2, keepdim=True), weights / variance)[..., 0]
    mean, covariance, agreement = _refine(points, variance, weights, mean, spread, iterations, max_votes, floor_px)
    return PointEstimates(mean, covariance, _ratio(agreement.sum(-1), weights.sum(-1)))


def accumulate_votes(
    votes: Float[Tensor, "b n 2"], weight: Float[Tensor, "b n c"], height: int, width: int
) -> Float[Tensor, "b c {height} {width}"]:
    """Add each vote to the four bins around it, bilinearly; bin (0, 0) is centred at 0, and votes outside are dropped.

    The same votes go into c maps with the weights of each.
    """
    limit = votes.new_tensor([width, height])
    votes = torch.minimum(votes.clamp(min=-2), limit + 1)  # still outside, and safe to convert to integers
    corner = votes.floor().long()[:, :, None] + torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=votes.device)
    inside = ((corner >= 0) & (corner < limit)).all(-1)
    bin_index = (corner[..., 1] * width + corner[..., 0]).where(inside, height * width)  # one more bin, for the dropped
    share = 1 - (votes[:, :, None] - corner).abs()
    added = ((share[..., 0] * share[..., 1])[..., None] * weight[:, :, None]).flatten(1, 2).mT  # b c 4n
    bins = added.new_zeros(*added.shape[:2], height * width + 1)
    bins = bins.scatter_add(2, bin_index.flatten(1)[:, None].expand_as(added), added)
    return bins[..., :-1].unflatten(-1, (height, width))


def find_centers(
    offsets: Float[Tensor, "b 2 h w"],
    log_depth: Float[Tensor, "b h w"],
    std: Float[Tensor, "b h w"],
    class_prob: Float[Tensor, "b c h w"],
    stride: int,
    *,
    max_instances: int = 16,
    min_votes: float = 1.0,
    blur_px: float = 6.0,
    margin_px: float = 64.0,
    iterations: int = 4,
    max_votes: float = 4.0,
    floor_px: float = 0.25,
) -> Centers:
    """Find the centres of all instances of all classes; classes are without background.

    Each class has its own accumulator with bins of ``stride`` pixels, blurred by a Gaussian of ``blur_px`` and reaching
    ``margin_px`` beyond the image. Its unit is one certain vote; a peak needs ``min_votes``. Of the peaks of one class
    that its votes' std cannot tell apart only the tallest stays; peaks of different classes at one place all stay.
    Each vote then belongs to the nearest peak of its class, if within six standard deviations, and centres, covariances
    and depths are robust means as in `aggregate_votes`.
    """
    if not 0 < max_instances < 256:
        raise ValueError(f"find_centers: max_instances is {max_instances}, expected 1..255")
    height, width = std.shape[-2:]
    cells = pixel_grid(height, width, stride, offsets.device).to(offsets)
    votes = offsets.flatten(2) + cells.flatten(0, 1).mT.contiguous()  # b 2 hw
    variance = std.flatten(1).square() + floor_px**2  # b hw
    prob = class_prob.flatten(2)  # b c hw
    with torch.no_grad():
        # Blurring lowers the peak of a vote with a variance of its own: what is left of its height is its weight.
        weight = prob * (blur_px**2 / (blur_px**2 + variance))[:, None]
        margin = math.ceil(margin_px / stride)
        bins = (votes.mT + 0.5) / stride - 0.5 + margin
        accumulator = _blur(
            accumulate_votes(bins, weight.mT, height + 2 * margin, width + 2 * margin), blur_px / stride
        )
        class_index, peaks, peak_votes = _tallest_peaks(accumulator, math.ceil(blur_px / stride), max_instances)
        peaks = (peaks - margin + 0.5) * stride - 0.5
        is_peak, is_owned = _assign(
            votes, variance + blur_px**2, prob, class_index, peaks, is_peak=peak_votes >= min_votes
        )

    of_slot = class_index[..., None].expand(-1, -1, prob.shape[-1])
    prob = prob.gather(1, of_slot)  # b k hw
    weight = prob * is_owned
    spread = torch.full_like(peaks[..., 0], blur_px**2)
    mean, covariance, agreement = _refine(
        votes[:, None], variance[:, None], weight, peaks, spread, iterations, max_votes, floor_px
    )
    count = agreement.sum(-1)
    valid = is_peak & (count > _MIN_COUNT)
    information = agreement / variance[:, None]
    log_depths = log_depth.flatten(1)[:, None, None]  # b 1 1 hw
    log_z = _mean(log_depths, information)  # b k 1
    depth_spread = _mean((log_depths - log_z[..., None]).square(), information)[..., 0]
    depth_variance = depth_spread * (1 / count.where(valid, 1) + 1 / max_votes)
    score = _ratio((agreement * prob).sum(-1), weight.sum(-1)) * count / (count + min_votes)
    belonging, slot = agreement.detach().max(1)
    assignment = (slot + 1).where(belonging > 0.25, 0).to(torch.uint8).unflatten(-1, (height, width))
    return Centers(
        class_index=class_index.where(valid, -1),
        center_px=mean,
        covariance=covariance,
        log_depth=log_z[..., 0],
        log_depth_std=(depth_variance + _LOG_DEPTH_FLOOR**2).sqrt().where(valid, math.inf),
        score=score,
        valid=valid,
        assignment=assignment,
    )


def translation_from_center(
    center_px: Float[Tensor, "*b 2"], depth_m: Float[Tensor, "*b"], K: Float[Tensor, "*b 3 3"]
) -> Float[Tensor, "*b 3"]:
    """Object position in the camera frame, from the image of its centre and the centre's depth z."""
    return unproject(K, center_px[..., None, :], depth_m[..., None])[..., 0, :]


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Divide; where the whole is nothing, give 0 with zero gradients."""
    is_some = whole > _MIN_DIVISOR
    return (part / whole.where(is_some, 1)).where(is_some, 0)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Means of values[*b d n] under weight[*b n]; 0 where there is no weight."""
    return _ratio((values * weight[..., None, :]).sum(-1), weight.sum(-1, keepdim=True))


def _refine(
    votes: Tensor,
    variance: Tensor,
    weight: Tensor,
    mean: Tensor,
    spread: Tensor,
    iterations: int,
    max_votes: float,
    floor_px: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Move means[*b p 2] to where votes[*b p 2 n] agree; also give covariances and weight × agreement[*b p n]."""

    def agreement(scale: Tensor) -> tuple[Tensor, Tensor]:
        residual = votes - mean[..., None]
        return residual, weight / (1 + (residual.square().sum(-2) / (_CUTOFF**2 * scale)).square())

    for iteration in range(iterations):
        residual, agreeing = agreement(variance + spread[..., None] / 4**iteration)
        mean = mean + _mean(residual, agreeing / variance)
    residual, agreeing = agreement(variance)
    count = agreeing.sum(-1)[..., None, None]
    is_some = count > _MIN_COUNT
    information = (agreeing / variance)[..., None, :]
    total = information.sum(-1, keepdim=True).where(is_some, 1)
    eye = torch.eye(2, dtype=mean.dtype, device=mean.device)
    # The claimed variance gives back the degree of freedom that the mean takes, and is all that a single vote has.
    scatter = (information * residual) @ residual.mT / (_SHRINKAGE * total) + eye / total
    covariance = scatter * (1 / count.where(is_some, 1) + 1 / max_votes) + floor_px**2 * eye
    nothing = eye.new_full((2,), math.inf).diag()
    return mean.where(is_some[..., 0], 0), covariance.where(is_some, nothing), agreeing


def _blur(maps: Tensor, std: float) -> Tensor:
    """Blur maps[b c h w] by a Gaussian of height 1, so that sums keep their unit."""
    radius = math.ceil(3 * std)
    x = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-(x / std).square() / 2).view(1, 1, -1, 1)
    planes = conv2d(maps.flatten(0, 1)[:, None], kernel, padding=(radius, 0))
    return conv2d(planes, kernel.mT, padding=(0, radius)).view_as(maps)


def _tallest_peaks(maps: Tensor, radius: int, num_peaks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Channels[b k], positions[b k 2] and heights[b k] of the local maxima of maps[b c h w], tallest first."""
    height, width = maps.shape[-2:]
    window = 2 * radius + 1
    tallest = pad(maps, (radius,) * 4).unfold(-1, window, 1).amax(-1).unfold(-2, window, 1).amax(-1)
    peak_height, index = maps.where(maps == tallest, 0).flatten(1).topk(num_peaks)
    channel, position = index // (height * width), index % (height * width)
    return channel, torch.stack([position % width, position // width], -1).to(maps), peak_height


def _assign(
    votes: Tensor, variance: Tensor, prob: Tensor, class_index: Tensor, peaks: Tensor, is_peak: Tensor
) -> tuple[Tensor, Tensor]:
    """Drop peaks in the reach of a taller one of their class; tell which votes[b 2 hw] belong to which peak[b k]."""
    distance2 = (votes[:, None] - peaks[..., None]).square().sum(-2)  # b k hw
    of_slot = class_index[..., None].expand_as(distance2)
    reach2 = _CUTOFF**2 * variance[:, None]
    near = prob.gather(1, of_slot) * (distance2 < reach2)
    own_reach2 = _ratio((near * reach2).sum(-1), near.sum(-1))
    between2 = (peaks[:, :, None] - peaks[:, None]).square().sum(-1)  # b, of the taller, of the lower
    same_class = class_index[:, :, None] == class_index[:, None]
    hidden = (same_class & (between2 < own_reach2[..., None]) & is_peak[..., None]).triu(1).any(1)
    is_peak = is_peak & ~hidden
    distance2 = distance2.where(is_peak[..., None], math.inf)
    nearest2 = torch.full_like(prob, math.inf).scatter_reduce(1, of_slot, distance2, "amin").gather(1, of_slot)
    return is_peak, (distance2 == nearest2) & (distance2 < 4 * reach2)
