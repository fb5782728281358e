"""What the pretexts are compared with. Each is a config that shares network, loop and evaluation with them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glimpose.nets.led_fcn import LedFcnConfig, bin_bearings_rad, visibility_logits
from glimpose.nets.regressors import Autoencoder, Constant, FrozenEncoderHead, load_clip
from glimpose.robots.labels import Labels
from glimpose.robots.leds import LedRobot
from glimpose.robots.pretexts import LatentPose, Maps, WeightedBce, led_fcn, log_led_likelihood, log_pose_prob

PLACE_STD_CELLS = 0.5
"""Kernels with which a pose label is compared with cells, bearing bins and ranges."""
BEARING_CONCENTRATION = 6.0
RANGE_SCALE = 0.1
USUAL_LOG_RANGE = math.log(2 / 200)
"""Of a robot two metres away, seen by a camera whose focal length is 200 of the input's pixels."""


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
        model = led_fcn(network, robot, bearing=self.num_bins, led=len(robot.leds), log_range=1)
        # What all ranges have in common only a bias can tell; from 0 to there it would creep for thousands of steps.
        with torch.no_grad():
            model.head.bias[-1] = USUAL_LOG_RANGE  # type: ignore[index]
        return model

    def terms(self, maps: Maps, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the labels' likelihood."""
        return {"pose": labelled_pose(maps, batch)}


def soft_disc(maps: Maps, batch: Mapping[str, Tensor], radius_px: float) -> Tensor:
    """Return the position map a robot should give, b×n: 1 at its place, falling to 0 about a radius away."""
    offset_px = (batch["uv"][:, :, None] - maps["uv"][:, None]).norm(dim=-1)  # b×T×n
    disc = torch.sigmoid((radius_px - offset_px) / (radius_px / 4))
    return torch.where((batch["is_visible"] == 1)[..., None], disc, 0).amax(1)


def is_labelled(batch: Mapping[str, Tensor], share: float) -> Tensor:
    """Pick the frames that count as labelled, the same in every epoch: b of 0 and 1."""
    # Multiplying by an odd number and keeping the low bits shuffles frame numbers (Knuth's hash).
    return ((batch["frame"] * 2654435761 % 2**32) < share * 2**32).float()


def place_error(maps: Maps, batch: Mapping[str, Tensor], share: float) -> Tensor:
    """Squared distance of one place from the nearest robot, in image widths: b, 0 where none is seen or labelled."""
    width = batch["image"].shape[-1]
    offset = (batch["uv"] - maps["uv"][:, :1]) / width
    is_counted = batch["is_visible"] == 1
    nearest = torch.where(is_counted, offset.square().sum(-1), torch.inf).amin(1)
    return torch.where(is_counted.any(1), nearest, 0) * is_labelled(batch, share)


@dataclass(frozen=True)
class MeanPredictor:
    """The training set's means, whatever the picture shows."""

    kind: Literal["mean"] = "mean"
    scale_m: ClassVar[float | None] = 1.0
    has_presence: ClassVar[bool] = False

    def build(self, network: LedFcnConfig, robot: LedRobot) -> nn.Module:
        """Make the network."""
        return Constant(len(robot.leds))

    @torch.no_grad()
    def set_means(self, network: nn.Module, labels: Iterable[Labels], height: int, width: int) -> None:
        """Take the means of what is labelled and can be seen, for inputs of that size."""
        assert isinstance(network, Constant)
        uv, bearing, log_range, led_on = [], [], [], []
        for frame in labels:
            seen = frame.is_visible == 1
            uv.append(frame.uv_px[seen])
            bearing.append(frame.bearing_rad[seen])
            log_range.append(frame.log_range[seen])
            led_on.append(frame.led_on[seen])
        psi, led = np.concatenate(bearing), torch.from_numpy(np.concatenate(led_on))
        if not len(psi):
            raise ValueError("no frame shows a robot with a known pose: there is nothing to take the mean of")
        network.place.copy_(torch.from_numpy((np.concatenate(uv).mean(0) + 0.5) / (width, height)))
        network.direction.copy_(torch.tensor([np.cos(psi).mean(), np.sin(psi).mean()]))
        network.log_range.fill_(float(np.log(np.exp(np.concatenate(log_range)).mean())))
        network.led.copy_(led.double().mean(0).clamp(1e-3, 1 - 1e-3).logit())

    def terms(self, maps: Maps, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the squared error of the place."""
        return {"place": place_error(maps, batch, 1.0)}


@dataclass(frozen=True)
class LedP:
    """Positions from a labelled share of the frames, with LED states as a second task (arXiv 2402.09886)."""

    kind: Literal["led_p"] = "led_p"
    labelled_share: float = 0.1
    pretext_weight: float = 0.01
    """λ: the loss is (1 − λ) task + λ pretext."""
    radius_px: float = 16.0
    """Of the disc around a robot, in pixels of the network's input."""
    scale_m: ClassVar[float | None] = None
    has_presence: ClassVar[bool] = False

    def build(self, network: LedFcnConfig, robot: LedRobot) -> nn.Module:
        """Make the network."""
        return led_fcn(network, robot, learned=(), led=len(robot.leds))

    def terms(self, maps: Maps, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the masked squared error of the map, and the cross-entropy of the LED map's spatial mean."""
        error = (maps["position"].sigmoid() - soft_disc(maps, batch, self.radius_px)).square().mean(-1)
        share = is_labelled(batch, self.labelled_share)
        prob = maps["led"].sigmoid().mean(1, keepdim=True).expand_as(batch["led_on"])
        bce = F.binary_cross_entropy(prob, batch["led_on"], reduction="none").mean(-1)
        pretext = (bce * batch["is_there"]).sum(1)
        return {"task": (1 - self.pretext_weight) * error * share, "pretext": self.pretext_weight * pretext}


@dataclass(frozen=True)
class Ednn:
    """A position map alone, learned with the weight where it errs; made for synthetic images, then fine-tuned."""

    kind: Literal["ednn"] = "ednn"
    labelled_share: float = 1.0
    radius_px: float = 16.0
    scale_m: ClassVar[float | None] = None
    has_presence: ClassVar[bool] = False

    def build(self, network: LedFcnConfig, robot: LedRobot) -> nn.Module:
        """Make the network."""
        return led_fcn(network, robot, learned=())

    def terms(self, maps: Maps, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the cross-entropy, weighted by the squared error."""
        target = soft_disc(maps, batch, self.radius_px)
        bce = F.binary_cross_entropy_with_logits(maps["position"], target, reduction="none")
        focal = (target - maps["position"].sigmoid()).square() * bce
        return {"position": focal.mean(-1) * is_labelled(batch, self.labelled_share)}


@dataclass(frozen=True)
class AutoencoderPretext:
    """An autoencoder of all images, and a place from its middle (AE-P): reconstruct first, then place."""

    kind: Literal["ae_p"] = "ae_p"
    mode: Literal["reconstruct", "place"] = "reconstruct"
    """The second starts from what the first has learned: training.init_from."""
    bottleneck: int = 512
    labelled_share: float = 0.1
    encoder_rate: float = 0.01
    """Learning rate of the encoder in the second mode, as a share of the head's."""
    scale_m: ClassVar[float | None] = None
    has_presence: ClassVar[bool] = False

    def build(self, network: LedFcnConfig, robot: LedRobot) -> nn.Module:
        """Make the network."""
        model = Autoencoder(self.bottleneck, self.encoder_rate if self.mode == "place" else 1.0)
        (model.decoder if self.mode == "place" else model.head).requires_grad_(False)
        return model

    def terms(self, maps: Maps, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the mode's squared error."""
        if self.mode == "place":
            return {"place": place_error(maps, batch, self.labelled_share)}
        return {"reconstruction": (maps["reconstruction"] - maps["small"]).square().mean((1, 2, 3))}


@dataclass(frozen=True)
class ClipHead:
    """A place from the embedding of a CLIP-like encoder that stays as it is."""

    kind: Literal["clip_head"] = "clip_head"
    folder: Path = Path("clip")
    """Of the encoder, in Hugging Face's layout; predicting needs it too."""
    labelled_share: float = 1.0
    scale_m: ClassVar[float | None] = None
    has_presence: ClassVar[bool] = False

    def build(self, network: LedFcnConfig, robot: LedRobot) -> nn.Module:
        """Make the network."""
        return FrozenEncoderHead(*load_clip(self.folder))

    def terms(self, maps: Maps, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the squared error."""
        return {"place": place_error(maps, batch, self.labelled_share)}


AnyPretext = LatentPose | WeightedBce | UpperBound | MeanPredictor | LedP | Ednn | AutoencoderPretext | ClipHead
