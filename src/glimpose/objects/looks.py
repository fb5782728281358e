"""What the networks see of objects: where the glance detects them, what the gaze sees close up, and poses of that."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from glimpose.geometry.pnp import PnPResult, solve_pnp
from glimpose.objects.agreement import Agreement
from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.crops import focal_px
from glimpose.objects.equations import rolled
from glimpose.objects.evidence import Evidence, GazeViews

AROUND = (0.1, 0.1, 0.12, 0.4)
"""How looks around a pose differ, standard deviations: to the side and down, in crop sides, log size, and turn, rad."""


@dataclass(frozen=True)
class Detection:
    """Where the glance saw an object."""

    object_index: int
    center_px: np.ndarray
    depth_m: float
    score: float
    turn_rad: float = 0.0
    """By which the crop is turned, clockwise."""

    @classmethod
    def at(cls, object_index: int, cam_T_obj: np.ndarray, K: np.ndarray) -> "Detection":
        """What a perfect glance would see of an object at a pose."""
        u, v, z = K @ cam_T_obj[:3, 3]
        return cls(object_index, np.array([u, v]) / z, float(z), score=1.0)

    def beside(self, side_px: float, num: int) -> list["Detection"]:
        """An even number of detections, a little beside this one of a crop so wide.

        In pairs on either side, for a pose is drawn a little to where it's looked for.
        """
        half = np.random.default_rng(0).normal(0, AROUND, (num // 2, 4))
        return [
            replace(
                self,
                center_px=self.center_px + side_px * np.array([u, v]),
                depth_m=self.depth_m * math.exp(log_scale),
                turn_rad=turn_rad,
            )
            for u, v, log_scale, turn_rad in (*half, *-half)
        ]


@dataclass(frozen=True)
class Look:
    """One object seen close up."""

    detection: Detection
    """What was looked at."""
    model: ObjectModel
    crop: np.ndarray
    K: Tensor
    """Of the crop, in which the camera is the photograph's: poses are the same in both."""
    views: GazeViews
    index: int
    """Of this crop in ``views``."""
    reference_m: float
    t_m: Tensor
    """Voted centre and depth."""

    @property
    def certainty(self) -> float:
        """Mean probability of the cells that show the object, each counted by that probability."""
        return float(self.views.certainty[self.index])

    @property
    def score(self) -> float:
        """How much is seen, and how surely: what is seen in a corner only is more often something else."""
        return self.certainty * math.sqrt(float(self.views.visible[self.index].mean()))

    @property
    def place_m(self) -> np.ndarray:
        """Where the object is believed to be."""
        return self.t_m.numpy()

    def evidence(self) -> Evidence:
        """What was seen, as searching and judging poses takes it."""
        return self.views.evidence(self.index, self.crop, self.K.numpy(), self.t_m, self.reference_m)

    def rolled(self, new_R_cam: np.ndarray) -> "Look":
        """The same crop of the same photograph, for a camera that is rolled about its optical axis."""
        R = torch.from_numpy(new_R_cam)
        return replace(self, K=self.K @ R.T, t_m=R @ self.t_m)

    def aimed(self, K: np.ndarray) -> Detection:
        """Look again, at what was voted for, with the photograph's K."""
        t = self.place_m
        return replace(self.detection, center_px=(K @ t)[:2] / t[2], depth_m=float(t[2]))


@dataclass(frozen=True)
class PoseEstimate:
    """One object found in a photograph."""

    model: ObjectModel
    cam_T_obj: np.ndarray
    score: float
    """0..1; higher is surer, and a probability where the checkpoint is calibrated."""
    look: Look
    disagreement: float
    """Distance between the solved translation and the one from voted centre and depth, in diameters."""
    agreement: Agreement | None = None
    """With the photograph, where the object could be drawn into it."""
    around: tuple[Evidence, ...] = ()
    """Seen in looks beside, where the pose was moved to what all looks see."""

    @property
    def place_m(self) -> np.ndarray:
        """Where the object is believed to be."""
        return self.cam_T_obj[:3, 3]

    def rolled(self, new_R_cam: np.ndarray) -> "PoseEstimate":
        """The same object in the same photograph, for a camera that is rolled about its optical axis."""
        return replace(self, cam_T_obj=rolled(self.cam_T_obj, new_R_cam), look=self.look.rolled(new_R_cam))


def solve_from_keypoints(views: GazeViews, i: int, model: ObjectModel, K: Tensor) -> PnPResult:
    """Solve crop i's pose from its voted keypoints, each as sure as its votes agree."""
    keypoints = torch.from_numpy(model.keypoints_m)
    covariance = views.keypoints_covariance[i]
    return solve_pnp(views.keypoints_px[i], keypoints, K, covariance_uv=covariance, threshold_px=6.0)


def solve_from_coordinates(views: GazeViews, i: int, model: ObjectModel, K: Tensor, depth_m: float) -> PnPResult:
    """Solve crop i's pose from the object coordinate of every cell that shows the object."""
    shows = views.visible[i] > 0.5
    radius_m = model.diameter_m / 2
    # An error of a coordinate is an error in the image of this many pixels per radius, at the object's distance.
    px_per_radius = focal_px(K.numpy()) * radius_m / depth_m
    variance_px = (views.xyz_std[i, shows] * px_per_radius).square() + 0.25
    covariance = variance_px[:, None, None] * torch.eye(2, dtype=torch.float64)
    return solve_pnp(
        views.cells_px[shows], views.xyz[i, shows] * radius_m, K, covariance_uv=covariance, threshold_px=4.0
    )
