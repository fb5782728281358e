"""Where accuracy is lost: predict with true values swapped in stage by stage, and score each.

    python benchmarks/stages.py CHECKPOINT --dataset LMO --split val --targets LMO/val_targets_bop19.json

Prints a Markdown table; with --models LMO/models also for the search. "true centres" gives the gaze crops around the
true centres, at the true distances.
"""

import argparse
import tempfile
from itertools import product
from pathlib import Path

from tqdm import tqdm

from glimpose.data.bop import BopDataset, Frame
from glimpose.data.bop_results import ResultRow, write_results_csv
from glimpose.objects.estimator import EstimatorConfig, PoseEstimator
from glimpose.objects.evaluate import evaluate
from glimpose.objects.looks import Detection, PoseEstimate
from glimpose.objects.predict import load_meshes
from glimpose.objects.search import PoseSearch


def true_detections(estimator: PoseEstimator, frame: Frame) -> list[Detection]:
    """What a perfect glance would see of the labelled objects."""
    index = {model.obj_id: i for i, model in enumerate(estimator.objects)}
    return [
        Detection.at(index[annotation.obj_id], annotation.cam_T_obj, frame.K)
        for annotation in frame.annotations or ()
        if annotation.obj_id in index
    ]


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--targets", type=Path, required=True)
    parser.add_argument("--models", type=Path, help="folder of CAD models, for the search")
    args = parser.parse_args()

    frames = list(BopDataset(args.dataset, args.split))
    rows: dict[str, list[ResultRow]] = {}

    def keep(stage: str, frame: Frame, poses: list[PoseEstimate]) -> None:
        rows.setdefault(stage, []).extend(
            ResultRow(frame.scene_id, frame.im_id, pose.model.obj_id, pose.score, pose.cam_T_obj) for pose in poses
        )

    search: PoseSearch | None = None
    for solver, looks in product(("keypoints", "coordinates", *(["search"] if args.models else [])), (1, 2)):
        correspondences = "keypoints" if solver == "keypoints" else "coordinates"
        config = EstimatorConfig(correspondences, looks, instances_per_object=1)
        estimator = PoseEstimator.from_checkpoint(args.checkpoint, config)
        if solver == "search":
            meshes = load_meshes(estimator, args.models)
            search = search or PoseSearch(estimator.objects, meshes, estimator.model.config)
            estimator.search = search
        name = f"{solver}, {looks} look{'s' if looks > 1 else ''}"
        for frame in tqdm(frames, desc=name):
            image = frame.read_image()
            keep(f"glance → {name}", frame, estimator(image, frame.K))
            detections = true_detections(estimator, frame)
            keep(f"true centres → {name}", frame, estimator.estimate(image, frame.K, detections))

    print("| stage | ADD(-S) 0.1 d | AR_MSSD | AR_MSPD | per object ADD(-S) |\n|---|---|---|---|---|")
    for stage, stage_rows in rows.items():
        with tempfile.TemporaryDirectory() as folder:
            csv = Path(folder) / "poses.csv"
            write_results_csv(csv, stage_rows)
            summary = evaluate(csv, args.dataset, args.split, args.targets, Path(folder))
        scores = " | ".join(f"{100 * summary[name]:.1f}" for name in ("ADD_S_0.1d", "AR_MSSD", "AR_MSPD"))
        objects = " ".join(f"{row['obj_id']}:{100 * row['ADD_S_0.1d']:.0f}" for row in summary["objects"])
        print(f"| {stage} | {scores} | {objects} |")


if __name__ == "__main__":
    main()
