"""How far poses that are put off on purpose are brought back: share within a tenth of the diameter, before and after.

    python benchmarks/refine.py WEIGHTS --models LMO/models --dataset LMO --split val

Rotations are off by 5, 10 and 20 degrees about a random axis, and distances by 2, 5 and 10 %, with centres off by as
much of the diameter (a standard deviation). Prints a Markdown table, and the milliseconds per object.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from glimpose.data.bop import BopDataset
from glimpose.metrics.pose_errors import add_m, add_s_m
from glimpose.objects.estimator import EstimatorConfig, PoseEstimator
from glimpose.objects.predict import load_meshes
from glimpose.objects.search import PoseSearch, SearchConfig

LEVELS = {5: 0.02, 10: 0.05, 20: 0.10}
"""Rotation in degrees, and the distance that goes with it."""


def main() -> None:
    """Refine every labelled object that shows at least a tenth of itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--every", type=int, default=1, help="take every n-th photograph")
    parser.add_argument("--times", type=int, nargs="+", default=[1], help="refine so often, each from where it was")
    parser.add_argument("--free", action="store_true", help="don't move poses so that objects stand together")
    args = parser.parse_args()

    estimator = PoseEstimator.from_checkpoint(args.weights, EstimatorConfig(stand_together=not args.free))
    index = {model.obj_id: i for i, model in enumerate(estimator.objects)}
    meshes = load_meshes(estimator, args.models)
    vertices = {obj_id: torch.from_numpy(mesh.vertices).double() for obj_id, mesh in meshes.items()}
    # Nothing is searched for: poses are moved from where they are.
    estimator.search = PoseSearch(estimator.objects, meshes, estimator.model.config, SearchConfig(num_views=0))

    def error_d(obj_id: int, cam_T_obj: np.ndarray, gt_cam_T_obj: np.ndarray) -> float:
        model = estimator.objects[index[obj_id]]
        distance = add_s_m if len(model.symmetries) > 1 else add_m
        pose, truth = torch.from_numpy(cam_T_obj), torch.from_numpy(gt_cam_T_obj)
        return float(distance(pose, truth, vertices[obj_id])) / model.diameter_m

    errors: dict[tuple, list[float]] = defaultdict(list)
    time_ms = []
    rng = np.random.default_rng(0)
    for frame in tqdm(list(BopDataset(args.dataset, args.split))[:: args.every]):
        image = frame.read_image()
        shown = [a for a in frame.annotations or () if a.visible_fraction is None or a.visible_fraction >= 0.1]
        for degrees, share in LEVELS.items():
            off = [
                put_off(a.cam_T_obj, estimator.objects[index[a.obj_id]].diameter_m, degrees, share, rng) for a in shown
            ]
            refined = off
            for times in range(1, max(args.times) + 1):
                start = time.perf_counter()
                found = estimator.refine(
                    image, frame.K, [(index[a.obj_id], pose) for a, pose in zip(shown, refined, strict=True)]
                )
                time_ms.append(1e3 * (time.perf_counter() - start) / len(shown))
                refined = [pose.cam_T_obj for pose in found]
                for annotation, before, after in zip(shown, off, refined, strict=True):
                    key = (annotation.obj_id, degrees, times)
                    errors[(*key, "before")].append(error_d(annotation.obj_id, before, annotation.cam_T_obj))
                    errors[(*key, "after")].append(error_d(annotation.obj_id, after, annotation.cam_T_obj))

    print("| times | off by | n | within 0.1 d before | after | median error before | after | per object after |")
    print("|---|---|---|---|---|---|---|---|")
    for times in args.times:
        for degrees, share in LEVELS.items():

            def pooled(when: str, ids: list[int], key: tuple = (degrees, times)) -> np.ndarray:
                return np.concatenate([errors[(obj_id, *key, when)] for obj_id in ids])

            seen = sorted({key[0] for key in errors})
            before, after = pooled("before", seen), pooled("after", seen)
            objects_told = " ".join(f"{i}:{100 * np.mean(pooled('after', [i]) < 0.1):.0f}" for i in seen)
            told = [times, f"{degrees}°, {100 * share:.0f} %", len(after)]
            told += [f"{100 * np.mean(error < 0.1):.1f}" for error in (before, after)]
            told += [f"{np.median(error):.3f} d" for error in (before, after)]
            print("| " + " | ".join(map(str, [*told, objects_told])) + " |")
    print(f"\n{np.median(time_ms):.0f} ms per object")


def put_off(
    cam_T_obj: np.ndarray, diameter_m: float, degrees: float, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Turn a pose by that angle, and move it by that share of its distance, nearer or farther, and sideways."""
    axis = rng.normal(size=3)
    off = cam_T_obj.copy()
    turn = Rotation.from_rotvec(np.deg2rad(degrees) * axis / np.linalg.norm(axis)).as_matrix()
    off[:3, :3] = turn @ cam_T_obj[:3, :3]
    off[:3, 3] *= 1 + share * rng.choice([-1, 1])
    off[:2, 3] += share * diameter_m * rng.normal(size=2)
    return off


if __name__ == "__main__":
    main()
