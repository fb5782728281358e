"""What the pretexts are compared with. Each is a config that shares network, loop and evaluation with them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from glimpose.nets.led_fcn import LedFcnConfig, bin_bearings_rad, visibility_logits
from glimpose.robots.leds import LedRobot
from glimpose.robots.pretexts import LatentPose, Maps, WeightedBce, led_fcn, log_led_likelihood, log_pose_prob

PLACE_STD_CELLS = 0.5
"""Kernels with which a pose label is compared with cells, bearing bins and ranges."""
BEARING_CONCENTRATION = 6.0
RANGE_SCALE = 0.1


def labelled_pose(maps: Maps, batch: Mapping[str, Tensor]) -> Tensor:
    """Negative log-likelihood of pose labels and LED states under the distribution of poses, summed over robots: b.

    The same mixture as `latent_pose`, of which every label is one more observation: place (normal around a cell),
    bearing (von Mises around a bin) and range (Laplace). Robots out of view leave only the slot for "no robot".
    """
    log_pose, log_nothing = log_pose_prob(maps)
    bins_rad = bin_bearings_rad(log_pose.shape[-1]).to(log_pose)
    std_px = PLACE_STD_CELLS * maps["cell_px"]
    is_visible = batch["is_visible"] == 1
    # Labels of robots out of view may be missing; whatever stands in for them is left out below.
    uv, bearing, log_range = (torch.nan_to_num(batch[name]) for name in ("uv", "bearing_rad", "log_range"))
    offset = uv[:, :, None] - maps["uv"][:, None]
    log_place = -offset.square().sum(-1) / (2 * std_px.square()) - (2 * math.pi * std_px.square()).log()  # b×T×n
    log_range = -(log_range[..., None] - maps["log_range"][:, None]).abs() / RANGE_SCALE - math.log(2 * RANGE_SCALE)
    log_bearing = BEARING_CONCENTRATION * torch.cos(bearing[..., None] - bins_rad)
    log_bearing = log_bearing - log_bearing.logsumexp(-1, keepdim=True)  # b×T×bins
    log_led = log_led_likelihood(maps["led"], visibility_logits(maps["visibility"], bins_rad), batch["led_on"])
    log_joint = log_pose[:, None] + log_led + (log_place + log_range)[..., None] + log_bearing[:, :, None]
    seen = -log_joint.flatten(2).logsumexp(-1)
    return (torch.where(is_visible, seen, -log_nothing[:, None]) * batch["is_there"]).sum(1)


@dataclass(frozen=True)
class UpperBound:
    """Pose labels on every frame: what the network could do."""

    kind: Literal["upper_bound"] = "upper_bound"
    num_bins: int = 16
    scale_m: ClassVar[float | None] = 1.0
    has_presence: ClassVar[bool] = True

    def build(self, network: LedFcnConfig, robot: LedRobot) -> nn.Module:
        """Make the network."""
        return led_fcn(network, robot, bearing=self.num_bins, led=len(robot.leds), log_range=1)

    def terms(self, maps: Maps, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the labels' likelihood."""
        return {"pose": labelled_pose(maps, batch)}


AnyPretext = LatentPose | WeightedBce | UpperBound
