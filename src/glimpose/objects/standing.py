"""Objects that stand: all of them on one support, each one way up, and its origin at one height above it.

How far away an object is, its picture tells worst. But where several objects stand on one table, and it's known how
each of them stands, the table is where they all would have it, and each is where the table has it.

static scene ── the direction about which objects were turned ── up ── how each object stands
poses in a photograph, how objects stand ── the support that most agree on ── poses moved to stand on it

How objects stand is learned from a static scene (`standing_scene`), whose parallax tells distances; nobody has to label
or measure anything. What stands otherwise agrees with no support, and stays where it was found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from glimpose.objects.catalogue import ObjectModel
from glimpose.objects.equations import NormalEquations, stepped

UNEVEN_RAD = np.deg2rad(1.5)
UNEVEN_DIAMETERS = 0.025
"""How exactly objects stand, standard deviations."""
ACROSS_M = 0.002
"""Of a pose found in one photograph, across the line of sight, standard deviation."""
DOUBT = 20.0
"""Squared deviation, in standard deviations, at which an object counts a quarter as one that stands."""
LEAST_STANDING = 3
"""Objects that have to agree on a support."""
STANDS_ANEW = 0.2
"""Chance that an object stands as it was never seen to."""
CERTAINTY = 0.01
"""By which what is seen of an object counts when all are moved together: cells are wrong alike, by ten times as much as
they would be if each were wrong by itself."""
TOGETHER_TRUSTS_PX = (3.0, 2.0, 2.0)
"""As `SearchConfig.trusts_px`."""
DAMPING = 0.01
"""Of steps that neither what is seen nor the support tells anything of."""
LEAST_ACROSS = 0.2
"""Part of up, in length, that has to be across the optical axis to tell how a camera is rolled."""
ASKEW_RAD = float(np.deg2rad(10))
"""A camera that is rolled by more is taken for one that isn't, with a turned picture."""
MOST_CANDIDATES = 12
"""Poses, the likeliest, that may propose a support."""


@dataclass(frozen=True)
class Stand:
    """One way in which an object stands."""

    up: tuple[float, float, float]
    """Which way is up, in the object's frame; unit length."""
    height_m: float
    """Of the object's origin above the support."""


@dataclass(frozen=True)
class Standing:
    """How an object stands, and how far off poses from single photographs are."""

    stands: tuple[Stand, ...] = ()
    """Most often seen first."""
    range_bias: float = 0.0
    """Of distances found in single photographs, as a logarithm: median."""
    range_std: float = 0.05
    """The same, standard deviation."""
    tilt_std_rad: float = 0.15
    """Of which way is up."""


@dataclass(frozen=True)
class Support:
    """A plane on which objects stand, in some frame."""

    up: np.ndarray
    """Unit length, away from what is beneath."""
    offset_m: float
    """A point x is ``up @ x - offset_m`` above it."""

    def roll(self, least_rad: float = 0.0) -> np.ndarray:
        """cam_R_level, 3×3, from a camera rolled about its optical axis until up is up in its picture, to this one.

        The identity where that is less than ``least_rad``, or where one looks almost straight along.
        """
        sine, cosine = self.up[0], -self.up[1]
        across, cam_R_level = np.hypot(sine, cosine), np.eye(3)
        if across > LEAST_ACROSS and abs(np.arctan2(sine, cosine)) >= least_rad:
            cam_R_level[:2, :2] = np.array([[cosine, -sine], [sine, cosine]]) / across
        return cam_R_level

    def seen_from(self, cam_T_frame: np.ndarray) -> "Support":
        """The same plane in a camera's frame; translation in metres."""
        up = cam_T_frame[:3, :3] @ self.up
        return Support(up, self.offset_m + float(up @ cam_T_frame[:3, 3]))


@dataclass(frozen=True)
class StoodPoses:
    """Poses, each in each of its stands, as arrays over e of them."""

    owner: np.ndarray
    """Number of the pose."""
    up_obj: np.ndarray
    """e×3, of the stand."""
    up: np.ndarray
    """e×3, where the pose has it."""
    t: np.ndarray
    """e×3, the pose's translation."""
    height: np.ndarray
    """e, of the stand."""
    range_std: np.ndarray
    tilt_std: np.ndarray
    uneven_m: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, poses: Sequence["StandingPose"]) -> "StoodPoses":
        """Lay out poses; of objects that are known to stand in no way there are none."""
        rows = [
            (i, up_obj, height_m, pose)
            for i, pose in enumerate(poses)
            for up_obj, height_m in equivalents(pose.model, pose.standing)
        ]
        return cls(
            owner=np.array([i for i, *_ in rows], dtype=int),
            up_obj=np.array([up_obj for _, up_obj, *_ in rows]).reshape(-1, 3),
            up=np.array([pose.cam_T_obj[:3, :3] @ up_obj for _, up_obj, _, pose in rows]).reshape(-1, 3),
            t=np.array([pose.cam_T_obj[:3, 3] for *_, pose in rows]).reshape(-1, 3),
            height=np.array([height_m for _, _, height_m, _ in rows]),
            range_std=np.array([pose.standing.range_std for *_, pose in rows]),
            tilt_std=np.array([pose.standing.tilt_std_rad for *_, pose in rows]),
            uneven_m=np.array([UNEVEN_DIAMETERS * pose.model.diameter_m for *_, pose in rows]),
            score=np.array([max(pose.score, 1e-6) for *_, pose in rows]),
        )

    def off(self, up: np.ndarray, offset_m: np.ndarray | float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Squared deviations from standing on supports …×3 and …, missing heights and their deviation: …×e each."""
        tilt = np.arccos(np.clip(up @ self.up.T, -1, 1))
        above = up @ self.t.T
        missing = self.height - (above - np.expand_dims(offset_m, -1))
        # How far away something is changes its height as much as one looks down at it.
        std = np.sqrt((self.range_std * above) ** 2 + self.uneven_m**2 + ACROSS_M**2)
        return tilt**2 / (self.tilt_std**2 + UNEVEN_RAD**2) + (missing / std) ** 2, missing, std


@dataclass(frozen=True)
class StandingPose:
    """A pose found in one photograph, and what is known of how its object stands."""

    model: ObjectModel
    standing: Standing
    cam_T_obj: np.ndarray
    score: float = 1.0
    """How likely it's right."""


def equivalents(model: ObjectModel, standing: Standing) -> list[tuple[np.ndarray, float]]:
    """Up and height of an object's stands, in each of the poses that look the same."""
    if not standing.stands:
        return []
    symmetries = model.symmetries.numpy()
    stands_up = np.array([stand.up for stand in standing.stands])
    up = (symmetries[:, :3, :3].mT @ stands_up[:, None, :, None])[..., 0].reshape(-1, 3)
    height_m = np.array([stand.height_m for stand in standing.stands])[:, None] + stands_up @ symmetries[:, :3, 3].T
    height_m = height_m.ravel()
    found = []
    while len(up):
        found.append((up[0], float(height_m[0])))
        is_new = (up @ up[0] < np.cos(0.02)) | (np.abs(height_m - height_m[0]) > 1e-3 * model.diameter_m)
        is_new[0] = False
        up, height_m = up[is_new], height_m[is_new]
    return found


@dataclass(frozen=True)
class NearestStand:
    """The stand that a pose is nearest to, on a support."""

    up_obj: np.ndarray
    height_m: float
    up: np.ndarray
    """Where the pose has it."""
    missing_m: float
    """Of the pose's height."""
    uneven_m: float
    score: float
    """Of the pose."""
    belief: float
    """In the object's standing so."""

    @classmethod
    def of(cls, pose: StandingPose, support: Support) -> "NearestStand | None":
        """None where it isn't known how the object stands."""
        stood = StoodPoses.of([pose])
        if not len(stood.owner):
            return None
        squared, missing, _ = stood.off(support.up, support.offset_m)
        i = int(np.argmin(squared))
        return cls(
            stood.up_obj[i],
            float(stood.height[i]),
            stood.up[i],
            float(missing[i]),
            float(stood.uneven_m[i]),
            float(stood.score[i]),
            float(trust(squared[i])),
        )


def unbiased(pose: StandingPose) -> StandingPose:
    """Undo what single photographs have wrong on average."""
    cam_T_obj = pose.cam_T_obj.copy()
    cam_T_obj[:3, 3] *= np.exp(-pose.standing.range_bias)
    return replace(pose, cam_T_obj=cam_T_obj)


def find_support(poses: Sequence[StandingPose]) -> Support | None:
    """Find what most poses would stand on: pairs propose it, all decide, and all together place it exactly.

    None where too few agree.
    """
    stood = StoodPoses.of(poses)
    likely = np.argsort(-np.array([pose.score for pose in poses]))[:MOST_CANDIDATES]
    proposing = np.flatnonzero(np.isin(stood.owner, likely))
    a, b = (proposing[i] for i in np.triu_indices(len(proposing), 1))
    may = (stood.owner[a] != stood.owner[b]) & ((stood.up[a] * stood.up[b]).sum(1) > 0.9)
    a, b = a[may], b[may]
    if not len(a):
        return None
    up = stood.score[a, None] * stood.up[a] + stood.score[b, None] * stood.up[b]
    up /= np.linalg.norm(up, axis=1, keepdims=True)
    offset_m = np.mean([(stood.t[i] * up).sum(1) - stood.height[i] for i in (a, b)], 0)
    agreement = stood.score * trust(stood.off(up, offset_m)[0])
    # Of a pose's stands the best counts.
    worth = sum(agreement[:, stood.owner == i].max(1) for i in np.unique(stood.owner))
    best = int(np.argmax(worth))
    support = Support(up[best], float(offset_m[best]))
    for _ in range(10):
        support, num_agreeing = _placed(support, stood)
    return support if num_agreeing >= LEAST_STANDING else None


def level(support: Support | None, least_rad: float = ASKEW_RAD) -> np.ndarray:
    """cam_R_level, 3×3, as `Support.roll` has it; the identity, too, where there is no support."""
    return np.eye(3) if support is None else support.roll(least_rad)


def _placed(support: Support, stood: StoodPoses) -> tuple[Support, int]:
    """One step towards where all poses together have the support, and how many agree with it."""
    squared, missing, std = stood.off(support.up, support.offset_m)
    # Of a pose's stands the nearest counts.
    order = np.lexsort((squared, stood.owner))
    nearest = order[np.unique(stood.owner[order], return_index=True)[1]]
    squared, missing, std, up, t = (value[nearest] for value in (squared, missing, std, stood.up, stood.t))
    weight = np.sqrt(stood.score[nearest]) * trust(squared)
    across = _across(support.up)
    by_tilt = weight / (stood.tilt_std[nearest] ** 2 + UNEVEN_RAD**2)
    hessian = 1e-6 * np.eye(3)
    hessian[:2, :2] += by_tilt.sum() * np.eye(2)
    gradient = np.append(across @ (by_tilt @ (up - support.up)), 0.0)
    rows = np.concatenate([t @ across.T, -np.ones((len(t), 1))], 1)  # heights by tilt and offset
    hessian += (rows * (weight / std**2)[:, None]).T @ rows
    gradient += rows.T @ (weight / std**2 * missing)
    step = np.linalg.solve(hessian, gradient)
    moved = Support(unit_vector(support.up + step[:2] @ across), support.offset_m + float(step[2]))
    return moved, int((squared < DOUBT).sum())


def settle(pose: StandingPose, support: Support) -> tuple[np.ndarray, float]:
    """Move a pose to where it is likeliest, given how exact it is and how it would stand; and how far that is believed.

    Along the line of sight it may be moved far, across it hardly. Where it isn't known how an object stands, it stays,
    and is believed.
    """
    stand = NearestStand.of(pose, support)
    if stand is None:
        return pose.cam_T_obj, 1.0
    t, standing = pose.cam_T_obj[:3, 3], pose.standing
    axis = np.cross(stand.up, support.up)
    sine = np.linalg.norm(axis)
    tilt_rad = np.arctan2(sine, stand.up @ support.up)
    share = stand.belief * standing.tilt_std_rad**2 / (standing.tilt_std_rad**2 + UNEVEN_RAD**2)
    ray = t / np.linalg.norm(t)
    covariance = ACROSS_M**2 * (np.eye(3) - np.outer(ray, ray)) + standing.range_std**2 * np.outer(t, t)
    gain = covariance @ support.up / (support.up @ covariance @ support.up + stand.uneven_m**2)
    settled = pose.cam_T_obj.copy()
    settled[:3, :3] = Rotation.from_rotvec(share * tilt_rad * axis / max(sine, 1e-9)).as_matrix() @ settled[:3, :3]
    settled[:3, 3] += stand.belief * stand.missing_m * gain
    return settled, stand.belief


def move_together(
    poses: Sequence[StandingPose], support: Support, pull: Callable[[int, np.ndarray, float], NormalEquations]
) -> list[tuple[np.ndarray, float]]:
    """Move all poses and the support at once to where they fit what is seen; with how far each is believed to stand.

    ``pull`` tells where what is seen of pose i pulls it, as `PoseSearch.pull` does. What is hidden is pulled weakly, so
    what is seen well tells where the support is, and that where the hidden is.
    """
    settled = [settle(pose, support) for pose in poses]
    beliefs = [belief for _, belief in settled]
    moved = [cam_T_obj for cam_T_obj, _ in settled]
    for trust_px in TOGETHER_TRUSTS_PX:
        up, across = support.up, _across(support.up)
        hessian = np.diag(np.concatenate([np.full(3, 1e-6), np.full(6 * len(poses), DAMPING)]))
        gradient = np.zeros(len(hessian))
        for i, pose in enumerate(poses):
            own, radius_m = slice(3 + 6 * i, 9 + 6 * i), pose.model.diameter_m / 2
            as_seen = moved[i].copy()
            as_seen[:3, 3] *= np.exp(pose.standing.range_bias)
            H, g = pull(i, as_seen, trust_px)
            hessian[own, own] += CERTAINTY * H
            gradient[own] += CERTAINTY * g
            stand = NearestStand.of(pose, support)
            if stand is None:
                continue
            up_seen, t = moved[i][:3, :3] @ stand.up_obj, moved[i][:3, 3]
            # What is missing, in tilt and in height, and how the support's tilt and offset and the pose change it.
            missing = np.append(across @ (up - up_seen), stand.height_m - (up @ t - support.offset_m))
            J = np.zeros((3, len(hessian)))
            J[:2, :2] = np.eye(2)
            J[:2, own.start : own.start + 3] = across @ _cross_matrix(up_seen)
            J[2, :2], J[2, 2] = -(across @ t), 1
            J[2, own.start + 3 : own.stop] = -radius_m * up
            weight = np.sqrt(stand.score) * stand.belief
            weight = weight / np.array([UNEVEN_RAD, UNEVEN_RAD, stand.uneven_m]) ** 2
            hessian += (J * weight[:, None]).T @ J
            gradient -= J.T @ (weight * missing)
        step = np.linalg.solve(hessian, gradient)
        support = Support(unit_vector(up + step[:2] @ across), support.offset_m + float(step[2]))
        moved = [
            stepped(cam_T_obj, step[3 + 6 * i : 9 + 6 * i], pose.model.diameter_m / 2)
            for i, (cam_T_obj, pose) in enumerate(zip(moved, poses, strict=True))
        ]
    return list(zip(moved, beliefs, strict=True))


def _cross_matrix(v: np.ndarray) -> np.ndarray:
    """3×3: its product with w is v × w."""
    return np.cross(v, np.eye(3)).T


def trust(squared: np.ndarray) -> np.ndarray:
    """By which what deviates so far counts."""
    return 1 / (1 + squared / DOUBT) ** 2


def _across(up: np.ndarray) -> np.ndarray:
    """2×3, orthonormal, at right angles to a direction."""
    first = unit_vector(np.cross(up, np.eye(3)[int(np.argmin(np.abs(up)))]))
    return np.stack([first, np.cross(up, first)])


def unit_vector(vector: np.ndarray) -> np.ndarray:
    """The same direction, of length 1."""
    return vector / np.linalg.norm(vector)
