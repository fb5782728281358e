"""How far to trust a pose: what the gaze says of a crop, the crop itself, and the object drawn into it at that pose.

Every measure is 1 where the two agree and falls towards 0, so one logistic regression weighs them all; it is fitted on
synthesised photographs, whose poses are known (`objects.calibrate`), or on real ones of a static scene, where all
together tell (`objects.adapt`), and gives the probability that a pose is right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
from scipy.optimize import minimize
from scipy.special import erf, expit, log_expit

from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.crops import central_mean
from glimpose.objects.evidence import Evidence
from glimpose.render.scene import Buffers

COORDINATE_SCALE = 0.2
"""Object radii at which an error of object coordinates counts 1/e."""
DISTANCE_SCALE = 0.1
"""The same for distances, in diameters."""
DISTANCE_STD = 0.02
"""About how exactly a picture tells a distance, relative."""
CHROMATICITY_SCALE = 0.06
"""The same for mean colours without their brightness."""


VISUAL = ("certainty", "overlap", "pattern", "color")
"""Measures of what is seen."""
GEOMETRIC = ("coordinates", "depth", "center", "exactness")
"""Measures of where it is."""


@dataclass(frozen=True)
class Agreement:
    """How well a pose agrees with a photograph."""

    certainty: float
    """Mean probability of the cells that show the object, each counted by that probability."""
    overlap: float
    """Intersection over union of the drawn object and the amodal mask."""
    coordinates: float
    """Drawn against predicted object coordinates, where the object is seen."""
    depth: float
    """Drawn against predicted depth, there."""
    center: float
    """Pose against voted centre and depth."""
    pattern: float
    """Correlation of drawn and photographed colours over the object: which part is lighter, redder, bluer?"""
    color: float
    """Drawn against photographed mean colour, without brightness."""
    exactness: float
    """How probable it is that the distance is right to `DISTANCE_SCALE`, whatever else agrees: not very where the
    object is small and far away, for then a little of the distance is much of the object."""


@dataclass(frozen=True)
class Judgement:
    """One estimate on a photograph whose truth is known."""

    agreement: Agreement
    is_right: bool


@dataclass(frozen=True)
class Confidence:
    """The probability that a pose is right, from how well it agrees."""

    weights: dict[str, float]
    """By measure of `Agreement`; those that aren't named don't count."""
    bias: float

    def __post_init__(self) -> None:
        known = [field.name for field in fields(Agreement)]
        if unknown := [name for name in self.weights if name not in known]:
            raise ValueError(
                f"weights: unknown measures {unknown}, expected some of {known}; `glimpose calibrate` anew"
            )

    def __call__(self, agreement: Agreement) -> float:
        """Probability, 0..1."""
        return float(expit(sum(w * getattr(agreement, name) for name, w in self.weights.items()) + self.bias))

    @classmethod
    def fit(
        cls,
        judgements: Sequence[Judgement],
        measures: Sequence[str] = (*VISUAL, *GEOMETRIC),
        ridge: float = 1.0,
    ) -> "Confidence":
        """Fit by penalised maximum likelihood, from some of the measures, none of which may count against a pose.

        Raises ValueError where all poses are right, or none is.
        """
        is_right = [judgement.is_right for judgement in judgements]
        if all(is_right) or not any(is_right):
            raise ValueError(
                f"{sum(is_right)} of {len(is_right)} poses are right: confidence can be learned only from right and "
                "wrong ones; train longer, or calibrate on more photographs"
            )
        x = np.array([[*(getattr(judgement.agreement, name) for name in measures), 1.0] for judgement in judgements])
        sign = np.where(is_right, 1.0, -1.0)

        def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
            margin = sign * (x @ w)
            penalised = np.append(w[:-1], 0.0)
            gradient = -(sign * expit(-margin)) @ x + ridge * penalised
            return float(-log_expit(margin).sum() + 0.5 * ridge * penalised @ penalised), gradient

        bounds = [(0, None)] * (x.shape[1] - 1) + [(None, None)]
        w = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds).x
        return cls(dict(zip(measures, w[:-1].tolist(), strict=True)), float(w[-1]))


UNCALIBRATED = Confidence(
    {"certainty": 4.0, "overlap": 4.0, "coordinates": 4.0, "depth": 1.0, "center": 1.0, "pattern": 1.0, "color": 1.0},
    -12.0,
)
"""For checkpoints that weren't calibrated: ranks poses, but isn't a probability."""


def agree(model: ObjectModel, cam_T_obj: np.ndarray, evidence: Evidence, drawn: Buffers) -> Agreement:
    """Compare a pose with a crop and what the gaze says of it, given the object drawn into it at that pose."""
    cells = evidence.cells
    inside = drawn.mask > 0
    covers, points = central_mean(drawn.xyz, inside)
    _, drawn_depth_m = central_mean(drawn.depth[..., None], inside)
    is_drawn = covers.ravel()
    amodal = evidence.amodal
    overlap = np.minimum(is_drawn, amodal).sum() / max(np.maximum(is_drawn, amodal).sum(), 1e-6)

    xyz = model.coordinates(points.reshape(-1, 3), cam_T_obj)
    seen = evidence.visible * is_drawn
    coordinates = np.exp(-np.linalg.norm(xyz - evidence.xyz, axis=1) / COORDINATE_SCALE)
    depth = np.exp(-np.abs(drawn_depth_m.ravel() - evidence.depth_m) / (DISTANCE_SCALE * model.diameter_m))
    off_m = float(np.linalg.norm(cam_T_obj[:3, 3] - evidence.t_m))
    photographed = cv2.resize(evidence.crop, (cells, cells), interpolation=cv2.INTER_AREA).reshape(-1, 3) / 255.0
    weight = np.where(inside, 1.0, 0.0)[..., None]
    area = cv2.resize(weight, (cells, cells), interpolation=cv2.INTER_AREA).reshape(-1, 1)
    albedo = cv2.resize(drawn.albedo * weight, (cells, cells), interpolation=cv2.INTER_AREA).reshape(-1, 3) / 255.0
    albedo = albedo / np.maximum(area, 1e-6)
    # What was seen but isn't drawn there counts against the pose as well.
    visible_mass = max(float(evidence.visible.sum()), 1e-6)
    return Agreement(
        certainty=float((evidence.visible**2).sum()) / visible_mass,
        overlap=float(overlap),
        coordinates=float(seen @ coordinates) / visible_mass,
        depth=float(seen @ depth) / visible_mass,
        center=float(np.exp(-off_m / (DISTANCE_SCALE * model.diameter_m))),
        pattern=_pattern(albedo, photographed, seen),
        color=_color(albedo, photographed, seen),
        exactness=float(erf(DISTANCE_SCALE * model.diameter_m / (np.sqrt(2) * DISTANCE_STD * cam_T_obj[2, 3]))),
    )


def _pattern(drawn: np.ndarray, photographed: np.ndarray, weight: np.ndarray) -> float:
    """Correlation over cells of brightness and of two differences of colours, all three together."""
    if weight.sum() < 4:
        return 0.0
    opponents = np.array([[1, 1, 1], [1, -1, 0], [0.5, 0.5, -1]])
    share = weight / weight.sum()
    a, b = (colors @ opponents.T for colors in (drawn, photographed))
    a, b = a - share @ a, b - share @ b
    covariance, variance_a, variance_b = share @ (a * b), share @ a**2, share @ b**2
    # Brightness is mostly light; where the model has no pattern there is nothing to correlate.
    return float(covariance.sum() / np.sqrt(variance_a.sum() * variance_b.sum() + 1e-6))


def _color(drawn: np.ndarray, photographed: np.ndarray, weight: np.ndarray) -> float:
    if weight.sum() < 4:
        return 0.0
    means = [weight @ colors / weight.sum() for colors in (drawn, photographed)]
    chromaticities = [mean / max(mean.sum(), 1e-6) for mean in means]
    return float(np.exp(-np.linalg.norm(chromaticities[0] - chromaticities[1]) / CHROMATICITY_SCALE))
