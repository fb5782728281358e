"""Pretexts: what a network must know about a robot's pose to predict which of its LEDs are on.

All take the network's named maps over the n cells of an image pyramid (`nets.led_fcn`), the states of K LEDs of up to
T robots, b×T×K of 0 and 1, and which of those T there are, b×T. They are pure and unreduced: a value for each image.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from glimpose.nets.led_fcn import PyramidGrid, bin_bearings_rad, visibility_logits

Maps = Mapping[str, Tensor]


class Pretext(Protocol):
    """What the task asks of a pretext; every kind is a config dataclass of its own."""

    @property
    def bearing(self) -> Literal["bins", "vector"]:
        """How the network has to give bearings."""

    def terms(
        self, maps: Maps, grid: PyramidGrid, batch: Mapping[str, Tensor], azimuth_rad: Tensor
    ) -> dict[str, Tensor]:
        """Weighted terms of the loss, each b."""


def log_pose_prob(maps: Maps) -> tuple[Tensor, Tensor]:
    """Log-probabilities of there being a robot at each cell and bearing, b×n×bins, and of there being none, b.

    One softmax over everything: position and bearing logits are only two factors of its exponentials.
    """
    position = maps["position"]
    nothing = maps["no_robot"].expand(len(position), 1)
    log_place = torch.cat([position, nothing], -1).log_softmax(-1)
    return log_place[:, :-1, None] + maps["bearing"].log_softmax(-1), log_place[:, -1]


def log_led_likelihood(led: Tensor, visibility: Tensor, led_on: Tensor) -> Tensor:
    """Log-probability of LED states given the pose: b×T×n×bins.

    An LED that is seen is on as the cell's map says; one that isn't is on half of the time. ``led`` b×n×K and
    ``visibility`` bins×K are logits.
    """
    logits = led[:, :, None]
    seen, hidden = F.logsigmoid(visibility), F.logsigmoid(-visibility) - math.log(2)
    of_states = [torch.logaddexp(seen + F.logsigmoid(x), hidden) for x in (logits, -logits)]  # each b×n×bins×K
    table = torch.cat(of_states, -1)
    chosen = torch.cat([led_on, 1 - led_on], -1)
    return (chosen @ table.flatten(1, 2).mT).unflatten(-1, table.shape[1:3])


def latent_pose(maps: Maps, led_on: Tensor, is_there: Tensor) -> Tensor:
    """Negative log-likelihood of the LED states with the pose as a latent variable, summed over the robots.

    p(l) = π₀ 2^-K + Σ π(cell, ψ) Π_k [v_k(ψ) Bern(l_k; q_k(cell)) + (1 − v_k(ψ)) / 2], the sum over all levels' cells
    and all bearings.
    """
    log_pose, log_nothing = log_pose_prob(maps)
    bearing_rad = bin_bearings_rad(log_pose.shape[-1]).to(log_pose)
    visibility = visibility_logits(maps["visibility"], bearing_rad)
    by_pose = log_pose[:, None] + log_led_likelihood(maps["led"], visibility, led_on)
    by_chance = log_nothing[:, None] - led_on.shape[-1] * math.log(2)
    log_prob = torch.logaddexp(by_pose.flatten(2).logsumexp(-1), by_chance)
    return -(log_prob * is_there).sum(1)


def weighted_bce(maps: Maps, grid: PyramidGrid, led_on: Tensor, is_there: Tensor, azimuth_rad: Tensor) -> Tensor:
    """The published loss (arXiv 2509.10405): cross-entropies weighted by position and by which LED faces the camera.

    One softmax of positions runs over all levels, enlarged to the finest by repeating cells.
    """
    prob = (maps["position"] + grid.num_copies.log()).softmax(-1)
    cos, sin = maps["bearing"].unbind(-1)
    facing = 1 + torch.cos(torch.atan2(sin, cos)[..., None] - azimuth_rad)
    weight = prob[..., None] * facing / facing.sum(-1, keepdim=True)  # b×n×K
    targets = led_on[:, :, None].expand(-1, -1, prob.shape[1], -1)
    bce = F.binary_cross_entropy_with_logits(maps["led"][:, None].expand_as(targets), targets, reduction="none")
    return ((weight[:, None] * bce).sum((-2, -1)) * is_there).sum(1)


def zoom_error(maps: Maps, grid: PyramidGrid) -> Tensor:
    """How far the range disagrees between neighbouring levels where the robot is believed to be: b.

    Levels are zooms of known factors, so a network that knows size up to a factor gives the same range on each. The
    mean square is in units of the factor's logarithm: 1 if the range takes no notice of the zoom. Where the robot is,
    is taken as given.
    """
    log_range, level = maps["log_range"], grid.level
    prob = maps["position"].detach().softmax(-1)
    step = grid.log_zoom.unique().diff().mean()  # NaN if there is one level, and then the sum below is empty
    is_next = (torch.arange(grid.twins.shape[1], device=level.device) - level[:, None]).abs() == 1
    difference = (log_range[:, grid.twins] - log_range[..., None]) / step
    per_cell = torch.where(is_next, difference.square(), 0).sum(-1) / is_next.sum(-1).clamp(min=1)
    return (prob * per_cell).sum(-1)


@dataclass(frozen=True)
class LatentPose:
    """The LED states' likelihood with the pose as a latent variable, and agreement of the range between zooms."""

    kind: Literal["latent_pose"] = "latent_pose"
    zoom_weight: float = 0.3

    @property
    def bearing(self) -> Literal["bins", "vector"]:
        """Bearings are a distribution."""
        return "bins"

    def terms(
        self, maps: Maps, grid: PyramidGrid, batch: Mapping[str, Tensor], azimuth_rad: Tensor
    ) -> dict[str, Tensor]:
        """Give the likelihood and the zoom error."""
        led = latent_pose(maps, batch["led_on"], batch["is_there"])
        return {"led": led, "zoom": self.zoom_weight * zoom_error(maps, grid)}


@dataclass(frozen=True)
class WeightedBce:
    """The published loss; its distance is the level that wins, unless the range is trained as well."""

    kind: Literal["weighted_bce"] = "weighted_bce"
    zoom_weight: float = 0.0

    @property
    def bearing(self) -> Literal["bins", "vector"]:
        """Bearings are the angle of a vector."""
        return "vector"

    def terms(
        self, maps: Maps, grid: PyramidGrid, batch: Mapping[str, Tensor], azimuth_rad: Tensor
    ) -> dict[str, Tensor]:
        """Give the loss and, if asked for, the zoom error."""
        terms = {"led": weighted_bce(maps, grid, batch["led_on"], batch["is_there"], azimuth_rad)}
        if self.zoom_weight:
            terms["zoom"] = self.zoom_weight * zoom_error(maps, grid)
        return terms
