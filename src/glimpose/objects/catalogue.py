"""The objects a model knows: what stays of a CAD model once training is over."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from glimpose.geometry.symmetry import canonicalise, symmetry_transforms
from glimpose.render.mesh import Mesh, diameter_m

# The view that canonical poses are nearest to: from 45 degrees above the object, whose z is up. Objects that stand on
# something are seen from around there; the identity, a view from right below, would be equally far from both poses of
# an object with a half-turn symmetry about z, whenever it's seen from the top.
REFERENCE_VIEW = torch.tensor(
    [
        [1.0, 0.0, 0.0, 0.0],
        [0.0, -(0.5**0.5), -(0.5**0.5), 0.0],
        [0.0, 0.5**0.5, -(0.5**0.5), 0.0],
        [0.0, 0.0, 0.0, 1.0],
    ],
    dtype=torch.float64,
)


@dataclass(frozen=True)
class ObjectModel:
    """One object: everything that training, prediction and overlays need, and nothing that needs the mesh."""

    obj_id: int
    """BOP's id."""
    name: str
    diameter_m: float
    keypoints_m: np.ndarray
    """K×3, object frame; the object's origin ("centre") is not among them."""
    bounds_m: np.ndarray
    """2×3: lowest and highest corner of the axis-aligned box in the object frame."""
    symmetries: Tensor
    """s×4×4 in metres, the identity among them."""

    def canonical(self, cam_T_obj: Tensor) -> Tensor:
        """Of all equivalent poses the one training targets use, for any batch shape."""
        view = REFERENCE_VIEW.to(cam_T_obj)
        return view @ canonicalise(view.mT @ cam_T_obj, self.symmetries.to(cam_T_obj))

    def coordinates(self, points_m: np.ndarray, cam_T_obj: np.ndarray) -> np.ndarray:
        """Object coordinates as networks give them, of points ...×3 in the frame of the object drawn at a pose.

        They are in object radii, and in the frame of the canonical one of the poses that look the same.
        """
        canonical_T_obj = np.linalg.solve(self.canonical(torch.from_numpy(cam_T_obj)).numpy(), cam_T_obj)
        return (points_m @ canonical_T_obj[:3, :3].T + canonical_T_obj[:3, 3]) / (self.diameter_m / 2)

    def to_json(self) -> dict:
        """Plain numbers and strings for a checkpoint's metadata."""
        return {
            "obj_id": self.obj_id,
            "name": self.name,
            "diameter_m": self.diameter_m,
            "keypoints_m": self.keypoints_m.tolist(),
            "bounds_m": self.bounds_m.tolist(),
            "symmetries": self.symmetries.tolist(),
        }

    @classmethod
    def from_json(cls, entry: dict) -> "ObjectModel":
        """Rebuild from `to_json`'s output."""
        return cls(
            obj_id=int(entry["obj_id"]),
            name=str(entry["name"]),
            diameter_m=float(entry["diameter_m"]),
            keypoints_m=np.asarray(entry["keypoints_m"], dtype=np.float64),
            bounds_m=np.asarray(entry["bounds_m"], dtype=np.float64),
            symmetries=torch.tensor(entry["symmetries"], dtype=torch.float64),
        )


def object_model(
    obj_id: int,
    name: str,
    mesh: Mesh,
    num_keypoints: int,
    symmetries_discrete: Sequence[np.ndarray] = (),
    symmetries_continuous: Sequence[tuple[np.ndarray, np.ndarray]] = (),
) -> ObjectModel:
    """Describe a mesh: diameter, bounds, symmetries (metres) and keypoints spread over its surface."""
    return ObjectModel(
        obj_id=obj_id,
        name=name,
        diameter_m=diameter_m(mesh),
        keypoints_m=farthest_points(mesh.vertices.astype(np.float64), num_keypoints),
        bounds_m=np.stack([mesh.vertices.min(0), mesh.vertices.max(0)]).astype(np.float64),
        symmetries=symmetry_transforms(list(symmetries_discrete), list(symmetries_continuous)),
    )


def farthest_points(points: np.ndarray, num: int) -> np.ndarray:
    """Pick num of n×3 points, each the farthest from those before it; the first is farthest from the origin."""
    chosen = [int(np.argmax(np.linalg.norm(points, axis=1)))]
    distance = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < num:
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return points[chosen]
