"""From a photograph to the relative poses of the robots in it: maps, peaks, sightings, poses."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from glimpose.config import from_dict
from glimpose.data.images import equalised
from glimpose.data.led_h5 import RobotCamera
from glimpose.nets.led_fcn import LedFcn, LedFcnConfig, mean_direction
from glimpose.robots.baselines import AnyPretext
from glimpose.robots.labels import input_image
from glimpose.robots.leds import LedRobot
from glimpose.robots.placement import Calibration, focal_px, place, project
from glimpose.training.checkpoint import load_checkpoint, load_weights

BATCHED_MAPS = ("position", "uv", "bearing", "led", "log_range")
RECENTRINGS = 2
"""How often the window around a peak moves to the middle of what it holds."""
SUPPRESSED_WINDOWS = 1.5
"""So many windows around a robot no other one is looked for."""
MIN_APART_M = 0.25
"""Two robots' middles are farther apart than this, for they are wider."""
SAME_ROBOT_PX = 16
"""So near to each other, in the network's input, what is seen in a picture and in its mirror image is one robot."""


@dataclass(frozen=True)
class DecodeConfig:
    """How maps become robots."""

    max_robots: int = 3
    window_cells: float = 2.0
    """What lies within so many cells of a peak belongs to it."""
    sharpness: float = 0.25
    """For place and range, cells of a window count by this power of their probability: any cell from which all LEDs can
    be told will do for the likelihood, so which one is likeliest is nearly chance."""
    min_presence: float = 0.5
    """Of all robots but the surest, which is always given."""
    min_share: float = 0.25
    """Of the surest robot's probability mass that another needs."""
    mirror: bool = True
    """Look at the mirror image, too, and average, if the robot is symmetric: better, and takes twice the time."""


@dataclass(frozen=True)
class Sighting:
    """What the network says of one robot, in pixels of its input; NaN where it doesn't say."""

    uv_px: np.ndarray
    presence: float
    bearing_rad: float
    bearing_spread_rad: float
    """Circular standard deviation."""
    log_range: float
    led_prob: np.ndarray
    """K."""

    def mirrored(self, width: int, leds: Sequence[int]) -> "Sighting":
        """Tell what it is in the mirror image of a picture so wide, where these LEDs take each one's place."""
        uv_px = np.array([width - 1 - self.uv_px[0], self.uv_px[1]])
        led_prob = self.led_prob[list(leds)] if len(self.led_prob) else self.led_prob
        return replace(self, uv_px=uv_px, bearing_rad=-self.bearing_rad, led_prob=led_prob)

    def averaged(self, others: Sequence["Sighting"]) -> "Sighting":
        """Average it with the nearest of others, if that is near enough to be the same robot."""
        other = min(others, key=lambda other: float(np.linalg.norm(other.uv_px - self.uv_px)))
        if np.linalg.norm(other.uv_px - self.uv_px) > SAME_ROBOT_PX:
            return self
        both = (self, other)
        direction = sum(
            math.exp(-(one.bearing_spread_rad**2) / 2)
            * np.array([math.cos(one.bearing_rad), math.sin(one.bearing_rad)])
            for one in both
        )
        bearing_rad, spread_rad = _circular(np.asarray(direction) / 2)
        return Sighting(
            (self.uv_px + other.uv_px) / 2,
            (self.presence + other.presence) / 2,
            bearing_rad,
            spread_rad,
            (self.log_range + other.log_range) / 2,
            (self.led_prob + other.led_prob) / 2,
        )


def image_maps(maps: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Take one image's maps out of a batch's; what all images share stays."""
    return {name: value[index] if name in BATCHED_MAPS else value for name, value in maps.items()}


def find_robots(maps: Mapping[str, Tensor], has_presence: bool, config: DecodeConfig) -> list[Sighting]:
    """Decode the maps of one image: robots, surest first, at least one.

    All is a mean over cells of all levels around a peak: bearing and LEDs by the cells' probabilities, place and range
    by a power of them. Where the network has a slot for "no robot", presence is the mass against that slot's.
    """
    position = maps["position"]
    logits = torch.cat([position, maps["no_robot"]]) if has_presence else position
    prob = logits.double().softmax(0).cpu().numpy()[: len(position)]
    no_robot = max(0.0, 1 - prob.sum())
    uv, cell_px = maps["uv"].double().cpu().numpy(), maps["cell_px"].cpu().numpy()
    directions = _directions(maps["bearing"]) if "bearing" in maps else np.full((len(prob), 2), np.nan)
    led = maps["led"].sigmoid().double().cpu().numpy() if "led" in maps else np.full((len(prob), 0), np.nan)
    log_range = maps["log_range"].double().cpu().numpy()

    sightings: list[Sighting] = []
    first_mass = 0.0
    left = prob.copy()
    for _ in range(config.max_robots):
        peak = int(left.argmax())
        radius_px = config.window_cells * float(cell_px[peak])
        center = uv[peak]
        for _ in range(RECENTRINGS):
            is_near = np.linalg.norm(uv - center, axis=1) < radius_px
            mass = float(left[is_near].sum())
            likeliest = np.where(is_near, left, 0) / mass
            center = likeliest @ uv
        all_near = np.where(np.linalg.norm(uv - center, axis=1) < radius_px, left**config.sharpness, 0)
        all_near /= all_near.sum()
        led_prob = likeliest @ led
        presence = mass / (mass + no_robot) if has_presence else _confidence(led_prob, position[peak])
        if sightings and (mass < config.min_share * first_mass or presence < config.min_presence):
            break
        first_mass = first_mass or mass
        bearing_rad, spread_rad = _circular(likeliest @ directions)
        sightings.append(
            Sighting(all_near @ uv, presence, bearing_rad, spread_rad, float(all_near @ log_range), led_prob)
        )
        left[np.linalg.norm(uv - center, axis=1) < SUPPRESSED_WINDOWS * radius_px] = 0
        if not left.any():
            break
    return sightings


def _confidence(led_prob: np.ndarray, logit: Tensor) -> float:
    """How sure the LEDs' states are, 0 to 1; without LEDs, how likely the place is."""
    return float(np.abs(2 * led_prob - 1).mean()) if len(led_prob) else float(logit.sigmoid())


def _directions(bearing: Tensor) -> np.ndarray:
    """Mean direction at each cell, n×2; shorter than 1 where a distribution is broad."""
    direction = mean_direction(bearing.double().cpu())
    return (nn.functional.normalize(direction, dim=-1) if bearing.shape[-1] == 2 else direction).numpy()


def _circular(direction: np.ndarray) -> tuple[float, float]:
    """Mean angle and circular standard deviation of a mean direction."""
    length = min(float(np.hypot(*direction)), 1.0)
    spread_rad = math.sqrt(-2 * math.log(length)) if length > 0 else math.inf
    return math.atan2(direction[1], direction[0]), spread_rad


@dataclass(frozen=True)
class RobotEstimate:
    """One robot in a photograph."""

    uv_px: np.ndarray
    """Of its gimbal joint, in the photograph."""
    presence: float
    bearing_rad: float
    bearing_spread_rad: float
    led_prob: np.ndarray
    distance_m: float | None
    """In the ground plane, from base to base; None before a calibration."""
    base_T_target: np.ndarray | None
    """(x, y, θ) in the camera robot's base frame."""
    cam_T_robot: np.ndarray | None
    """4×4, of its base frame."""

    def overlaps(self, other: "RobotEstimate") -> bool:
        """Whether both would stand in the same place; unknown places don't."""
        if self.base_T_target is None or other.base_T_target is None:
            return False
        return float(np.hypot(*(self.base_T_target - other.base_T_target)[:2])) < MIN_APART_M


@dataclass(frozen=True)
class BearingCurve:
    """Turns a network's bearings, which crowd where most LEDs are seen, into ones from all sides equally often."""

    bearing_knots_rad: tuple[float, ...]
    """What the network says at bearings that are evenly spaced over a turn; ascending within -π to π."""
    bearing_offset_rad: float = 0.0
    """Of the evenly spaced ones."""

    @classmethod
    def fitted(cls, bearings_rad: np.ndarray, is_symmetric: bool, num_knots: int = 32) -> "BearingCurve":
        """Fit it to the bearings of a robot that was seen from everywhere; a symmetric one's curve is symmetric."""
        seen = np.sort(np.concatenate([bearings_rad, -bearings_rad]) if is_symmetric else bearings_rad)
        knots = np.quantile(seen, (np.arange(num_knots) + 0.5) / num_knots)
        apart = float(np.angle(np.exp(1j * (knots - cls._even(num_knots))).mean()))
        return cls(tuple(knots.tolist()), apart)

    def __call__(self, bearing_rad: float) -> float:
        """Move a bearing to where it is likely to be: -π to π; NaN stays NaN."""
        turns = 2 * math.pi * np.array([[-1], [0], [1]])
        even = self._even(len(self.bearing_knots_rad)) + self.bearing_offset_rad
        moved_rad = np.interp(bearing_rad, (self.bearing_knots_rad + turns).ravel(), (even + turns).ravel())
        return math.atan2(math.sin(moved_rad), math.cos(moved_rad))

    @staticmethod
    def _even(num: int) -> np.ndarray:
        return 2 * math.pi * ((np.arange(num) + 0.5) / num) - math.pi


@dataclass(frozen=True)
class RobotModel:
    """All that a network is built from; stored in every checkpoint."""

    robot: LedRobot
    network: LedFcnConfig
    pretext: AnyPretext

    def build(self) -> nn.Module:
        """Make the network."""
        return self.pretext.build(self.network, self.robot)


class RobotEstimator:
    """A trained network, its calibration if there is one, and the geometry that turns its maps into poses."""

    def __init__(
        self,
        network: nn.Module,
        model: RobotModel,
        calibration: Calibration | None,
        config: DecodeConfig | None = None,
        bearing_curve: BearingCurve | None = None,
    ) -> None:
        self.network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        self.calibration = calibration
        self.config = config or DecodeConfig()
        self.bearing_curve = bearing_curve
        self._looks_twice = self.config.mirror and isinstance(network, LedFcn) and model.robot.is_symmetric

    @classmethod
    def from_checkpoint(
        cls, path: Path | str, config: DecodeConfig | None = None, device: str = "cpu"
    ) -> "RobotEstimator":
        """Load what `glimpose train` wrote; nothing is unpickled."""
        checkpoint = load_checkpoint(path)
        if checkpoint.metadata.get("kind") != "robots" or "model" not in checkpoint.metadata:
            kind = checkpoint.metadata.get("kind")
            raise ValueError(f"{path}: a checkpoint of {kind!r} without a model, expected one of 'robots'")
        model = from_dict(RobotModel, checkpoint.metadata["model"], where=f"{path}, model")
        network = model.build()
        load_weights(network, checkpoint.group("model"), path)

        def stored(what: type[Calibration] | type[BearingCurve]) -> dict:
            names = [field.name for field in fields(what) if field.name in checkpoint.metadata]
            return {name: checkpoint.metadata[name] for name in names}

        calibration = curve = None
        if checkpoint.metadata["scale_m"] is not None:
            calibration = from_dict(Calibration, stored(Calibration), where=str(path))
        if "bearing_knots_rad" in checkpoint.metadata:
            curve = from_dict(BearingCurve, stored(BearingCurve), where=str(path))
        return cls(network.to(device), model, calibration, config, curve)

    @torch.inference_mode()
    def sight(self, image: np.ndarray) -> list[Sighting]:
        """Find robots in a photograph, H×W×3 uint8 RGB, in pixels of the network's input."""
        small = equalised(input_image(image, self.model.network.input_scale), self.model.network.clip_limit)
        pictures = [small, small[:, ::-1]] if self._looks_twice else [small]
        device = next(self.network.parameters()).device
        batch = torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2).float() / 255
        maps = self.network(batch)
        seen, *mirrored = (
            find_robots(image_maps(maps, i), self.model.pretext.has_presence, self.config) for i in range(len(pictures))
        )
        for others in mirrored:
            back = [other.mirrored(small.shape[1], self.model.robot.mirrored) for other in others]
            seen = [one.averaged(back) for one in seen]
        return seen

    def __call__(self, image: np.ndarray, camera: RobotCamera | None) -> list[RobotEstimate]:
        """Estimate poses in a photograph, surest robot first, at least one; without a camera there are no metres.

        Where there are, a robot that would stand in the same place as a surer one is that one, seen twice.
        """
        height, width = image.shape[:2]
        if camera is not None and (camera.width, camera.height) != (width, height):
            raise ValueError(
                f"the image is {width}×{height} pixels, but its camera takes {camera.width}×{camera.height}; "
                "give the camera of these images, or resize them"
            )
        found: list[RobotEstimate] = []
        for sighting in self.sight(image):
            robot = self._place(sighting, width, height, camera)
            if not any(robot.overlaps(surer) for surer in found):
                found.append(robot)
        return found

    def _place(self, seen: Sighting, width: int, height: int, camera: RobotCamera | None) -> RobotEstimate:
        input_scale = self.model.network.input_scale
        uv_px = in_photograph(seen.uv_px, width, height, input_scale)
        bearing_rad = self.bearing_curve(seen.bearing_rad) if self.bearing_curve else seen.bearing_rad
        pose = cam_T_robot = distance_m = None
        if self.calibration is not None and camera is not None:
            focal = focal_px(camera) * input_scale
            to_joint_m = self.calibration.to_joint_m(
                uv_px, seen.log_range, bearing_rad, focal, camera, self.model.robot
            )
            uv_px = project(to_joint_m, camera)
            pose, cam_T_robot = place(to_joint_m, bearing_rad, camera, self.model.robot)
            distance_m = float(np.hypot(*pose[:2]))
        return RobotEstimate(
            uv_px,
            seen.presence,
            bearing_rad,
            seen.bearing_spread_rad,
            seen.led_prob,
            distance_m,
            pose,
            cam_T_robot,
        )


def in_photograph(uv_px: np.ndarray, width: int, height: int, input_scale: float) -> np.ndarray:
    """Move a pixel of the network's input to the photograph of that size."""
    factors = np.array([round(width * input_scale) / width, round(height * input_scale) / height])
    return (uv_px + 0.5) / factors - 0.5
