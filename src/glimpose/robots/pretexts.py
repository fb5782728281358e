"""Pretexts: what a network must know about a robot's pose to predict which of its LEDs are on.

All take the network's named maps over the n cells of an image pyramid (`nets.led_fcn`), the states of K LEDs of up to
T robots, b×T×K of 0 and 1, and which of those T there are, b×T. They are pure and unreduced: a value for each image.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glimpose.nets.led_fcn import LedFcn, LedFcnConfig, bin_bearings_rad, mean_direction, visibility_logits
from glimpose.robots.leds import LedRobot

COMPARED_CELLS = 32
"""So many of the likeliest cells have their ranges compared between views."""

Maps = Mapping[str, Tensor]


class Pretext(Protocol):
    """A way to learn, which is a config dataclass of its own."""

    @property
    def scale_m(self) -> float | None:
        """What the range has to be multiplied by to be metres per pixel; None if only a calibration can tell."""

    @property
    def has_presence(self) -> bool:
        """Whether it learns when there is no robot."""

    def build(self, network: LedFcnConfig, robot: LedRobot) -> nn.Module:
        """Make the network."""

    def terms(self, maps: Maps, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weighted terms of the loss, each b, of what the network made of ``batch["image"]``."""


def log_pose_prob(maps: Maps) -> tuple[Tensor, Tensor]:
    """Log-probabilities of there being a robot at each cell and bearing, b×n×bins, and of there being none, b.

    One softmax over everything: position and bearing logits are only two factors of its exponentials.
    """
    position = maps["position"]
    nothing = maps["no_robot"].expand(len(position), 1)
    log_place = torch.cat([position, nothing], -1).log_softmax(-1)
    return log_place[:, :-1, None] + maps["bearing"].log_softmax(-1), log_place[:, -1]


def log_led_likelihood(led: Tensor, visibility: Tensor, led_on: Tensor, cost: Tensor | float = 0.0) -> Tensor:
    """Log-probability of LED states given the pose: b×T×n×bins.

    An LED that is seen is on as the cell's map says; one that isn't is on half of the time. ``led`` b×n×K and
    ``visibility`` bins×K are logits; ``cost`` b×n×K is what a claim to see an LED costs.
    """
    hidden = F.logsigmoid(-visibility) - math.log(2)
    signs = 2 * led_on - 1
    cost = torch.as_tensor(cost, device=led.device).expand_as(led)
    total = hidden.sum(-1)
    for k in range(led.shape[-1]):  # LED by LED, for all of them at once are too many numbers to pass through memory
        log_prob = F.logsigmoid(signs[:, :, None, k] * led[:, None, :, k]) - cost[:, None, :, k]
        # log(v q + (1 − v) / 2), with v = sigmoid(w), is log((1 − v) / 2) + softplus(w + log 2 + log q).
        total = total + F.softplus(log_prob[..., None] + (visibility[:, k] + math.log(2)))
    return total


def unusual_doubt(led: Tensor, visibility: Tensor, log_pose: Tensor) -> Tensor:
    """How much the entropy of each LED's state exceeds the usual one: b×n×K, 0 where it doesn't.

    Hidden LEDs are explained as well by "seen, but it could be either" as by "hidden", so nothing would keep a bearing
    from claiming to see them; hence claims cost what they are in doubt. Usual is the mean over all claims of the batch,
    a constant for the gradient: while nothing is known everything is as usual, so a network can begin to learn.
    """
    doubt = F.binary_cross_entropy_with_logits(led, led.sigmoid(), reduction="none")
    with torch.no_grad():
        claimed = log_pose.exp() @ visibility.sigmoid()  # b×n×K
        usual = (claimed * doubt).sum() / claimed.sum().clamp(min=1e-6)
    return (doubt - usual).clamp(min=0)


def latent_pose(maps: Maps, led_on: Tensor, is_there: Tensor, certainty: float = 0.0) -> Tensor:
    """Negative log-likelihood of the LED states with the pose as a latent variable, summed over the robots.

    p(l) = π₀ 2^-K + Σ π(cell, ψ) Π_k [v_k(ψ) Bern(l_k; q_k(cell)) e^(-β max(0, H(q_k) − H₀)) + (1 − v_k(ψ)) / 2], the
    sum over all levels' cells and all bearings, β being the ``certainty`` asked for and H₀ the usual doubt.
    """
    log_pose, log_nothing = log_pose_prob(maps)
    bearing_rad = bin_bearings_rad(log_pose.shape[-1]).to(log_pose)
    visibility = visibility_logits(maps["visibility"], bearing_rad)
    cost = certainty * unusual_doubt(maps["led"], visibility, log_pose) if certainty else 0.0
    by_pose = log_pose[:, None] + log_led_likelihood(maps["led"], visibility, led_on, cost)
    by_chance = log_nothing[:, None] - led_on.shape[-1] * math.log(2)
    log_prob = torch.logaddexp(by_pose.flatten(2).logsumexp(-1), by_chance)
    return -(log_prob * is_there).sum(1)


def weighted_bce(maps: Maps, led_on: Tensor, is_there: Tensor) -> Tensor:
    """The published loss (arXiv 2509.10405): cross-entropies weighted by position and by which LED faces the camera.

    Of bearing bins, their mean direction is taken for the bearing, however spread they are. One softmax of positions
    runs over all levels, enlarged to the finest by repeating cells: the network's positions are already those of all
    copies of a cell together.
    """
    prob = maps["position"].softmax(-1)
    cos, sin = mean_direction(maps["bearing"]).unbind(-1)
    facing = 1 + torch.cos(torch.atan2(sin, cos)[..., None] - maps["azimuth_rad"])
    weight = prob[..., None] * facing / facing.sum(-1, keepdim=True)  # b×n×K
    targets = led_on[:, :, None].expand(-1, -1, prob.shape[1], -1)
    bce = F.binary_cross_entropy_with_logits(maps["led"][:, None].expand_as(targets), targets, reduction="none")
    return ((weight[:, None] * bce).sum((-2, -1)) * is_there).sum(1)


def bearing_divergence(maps: Maps) -> Tensor:
    """Kullback-Leibler divergence of bearings from a uniform distribution where the robot is believed to be: b."""
    log_prob = maps["bearing"].log_softmax(-1)
    divergence = (log_prob.exp() * log_prob).sum(-1) + math.log(log_prob.shape[-1])
    return (maps["position"].detach().softmax(-1) * divergence).sum(-1)


def zoom_error(maps: Maps, view_A: Tensor) -> Tensor:
    """How far ranges disagree between two views of a frame where the robot is believed to be: b, 0 without two views.

    The last m images are second views of the first m, enlarged and moved by ``view_A``, m×3×3. What is seen ζ times as
    large has a range that is smaller by log ζ; a network that makes it so knows size up to a factor. Both views are
    compared on the same level: between levels it could tell which is which by their noise and borders instead. Where
    the robot is, is taken as given. In units of (log ζ)²: 1 if the range takes no notice of the zoom.
    """
    num_views, position, log_range = len(view_A), maps["position"], maps["log_range"]
    error = torch.zeros_like(position[:, 0])
    if num_views == 0:
        return error
    likeliest = position[:num_views].detach().topk(min(COMPARED_CELLS, position.shape[1])).indices
    uv = maps["uv"][:num_views].gather(1, likeliest[..., None].expand(-1, -1, 2))
    uv_there = uv @ view_A[:, :2, :2].mT + view_A[:, None, :2, 2]
    log_zoom = torch.linalg.det(view_A[:, :2, :2]).abs().log()[:, None] / 2
    is_same_level = maps["level"][likeliest][..., None] == maps["level"]
    distance_px = torch.cdist(uv_there, maps["uv"][-num_views:]).masked_fill(~is_same_level, torch.inf)
    nearest_px, nearest = distance_px.min(-1)
    prob = position.detach().softmax(-1)[:num_views].gather(1, likeliest) * (nearest_px < maps["cell_px"][likeliest])
    here, there = log_range[:num_views].gather(1, likeliest), log_range[-num_views:].gather(1, nearest)
    disagreement = (prob * (there - here + log_zoom).square()).sum(-1) / prob.sum(-1).clamp(min=1e-6)
    return error.index_copy(0, torch.arange(num_views, device=error.device), disagreement / log_zoom[:, 0].square())


def twin_divergence(maps: Maps, twin: Tensor) -> Tensor:
    """How far poses of dark twins diverge from those of the frames they are twins of: b, 0 for what is no twin.

    Kullback-Leibler divergence over all cells and bearings, and of there being no robot. ``twin`` is m×2, the rows of a
    frame and of its twin; the frame, in which LEDs are seen, is taken as given.
    """

    def log_prob(rows: Tensor) -> Tensor:
        log_pose, log_nothing = log_pose_prob({**maps, **{name: maps[name][rows] for name in ("position", "bearing")}})
        return torch.cat([log_pose.flatten(1), log_nothing[:, None]], 1)

    given, dark = log_prob(twin[:, 0]).detach(), log_prob(twin[:, 1])
    divergence = F.kl_div(dark, given, reduction="none", log_target=True).sum(-1)
    return torch.zeros_like(maps["position"][:, 0]).index_copy(0, twin[:, 1], divergence)


def led_fcn(
    network: LedFcnConfig, robot: LedRobot, learned: Sequence[str] = ("no_robot", "arc_change"), **heads: int
) -> LedFcn:
    """Build the network with these heads beside that of positions; of what all pictures share, only some is learned.

    What a loss takes no notice of gets no gradient, and several processes refuse to train what has none.
    """
    model = LedFcn(network, {"position": 1, **heads}, robot.azimuths_rad.tolist(), robot.half_widths_rad.tolist())
    for name in ("no_robot", "arc_change"):
        model.get_parameter(name).requires_grad_(name in learned)
    return model


@dataclass(frozen=True)
class LatentPose:
    """The LED states' likelihood with the pose as a latent variable; ranges agree between zooms, poses without LEDs."""

    kind: Literal["latent_pose"] = "latent_pose"
    num_bins: int = 16
    """Directions from which a robot is told apart to be seen."""
    zoom_weight: float = 1.0
    certainty: float = 1.0
    """How much it costs to claim that an LED is seen whose state is more in doubt than is usual."""
    doubt_weight: float = 0.1
    """Of the bearing's divergence from "any side": what has once settled on a wrong side hardly learns otherwise."""
    twin_weight: float = 1.0
    """Of how far poses diverge when LEDs are painted over."""
    scale_m: ClassVar[float | None] = None
    has_presence: ClassVar[bool] = True

    def build(self, network: LedFcnConfig, robot: LedRobot) -> nn.Module:
        """Make the network."""
        return led_fcn(network, robot, bearing=self.num_bins, led=len(robot.leds), log_range=1)

    def terms(self, maps: Maps, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the likelihood, how views and twins disagree, and how sure bearings are; the published loss at first.

        The likelihood excuses an LED that is told wrong as one that can't be seen, so it learns slowly from the
        mistakes of a network that still makes many. The published loss excuses none (docs/lab-book.md).
        """
        if "started" in batch:
            published = weighted_bce(maps, batch["led_on"], batch["is_there"])
            # Several processes refuse to train parameters without a gradient: those of the likelihood's get zero.
            unused = 0 * (maps["no_robot"].sum() + maps["visibility"].sum())
            none = torch.zeros_like(published)
            return {"led": batch["led_on"].shape[-1] * published + unused, "zoom": none, "doubt": none, "twin": none}
        return {
            "led": latent_pose(maps, batch["led_on"], batch["is_there"], self.certainty),
            "zoom": self.zoom_weight * zoom_error(maps, batch["view_A"]),
            "doubt": self.doubt_weight * bearing_divergence(maps),
            "twin": self.twin_weight * twin_divergence(maps, batch["twin"]),
        }


@dataclass(frozen=True)
class WeightedBce:
    """The published loss. Distance is the level that wins, unless a range is learned as well."""

    kind: Literal["weighted_bce"] = "weighted_bce"
    zoom_weight: float = 0.0
    scale_m: ClassVar[float | None] = None
    has_presence: ClassVar[bool] = False

    def build(self, network: LedFcnConfig, robot: LedRobot) -> nn.Module:
        """Make the network."""
        ranges = {"log_range": 1} if self.zoom_weight else {}
        return led_fcn(network, robot, learned=(), bearing=2, led=len(robot.leds), **ranges)

    def terms(self, maps: Maps, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the loss and, where a range is learned, the zoom error."""
        terms = {"led": weighted_bce(maps, batch["led_on"], batch["is_there"])}
        if self.zoom_weight:
            terms["zoom"] = self.zoom_weight * zoom_error(maps, batch["view_A"])
        return terms
