"""What it's worth to filter pseudo-labels, and by what: one round of adaptation each, everything else alike.

    python benchmarks/filters.py configs/objects/lmo.toml --checkpoint weights/lmo-supervised.safetensors \\
        --out filters --dataset LMO --split val --targets LMO/val_targets_bop19.json \\
        --models LMO/models --camera LMO/camera.json self_supervision.photographs=LMO/adapt [KEY=VALUE ...]

Photographs are judged one by one (`self_supervision.static_scene` stays false). Runs `glimpose adapt`, `predict` and
`evaluate`; when started again, goes on where it stopped. Prints a Markdown table.
"""

import argparse
import json
from pathlib import Path

from commands import run

from glimpose.objects.pseudo_labels import Labels

FILTERS = ("none", *(f"{measures}-{kind}" for kind in ("soft", "hard") for measures in ("visual", "geometric", "both")))
"""Measures, and kind where there are any."""


def main() -> None:
    """Adapt with each filter, and score what comes of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--targets", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--camera", type=Path, required=True)
    parser.add_argument("--filter", action="append", choices=FILTERS, help="once or more; all where left out")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_intermixed_args()

    print("| filter | labels' mean weight | ADD(-S) 0.1 d | AR_MSSD | AR_MSPD | score AUC |\n|---|---|---|---|---|---|")
    print(row("before", score(args, args.checkpoint, args.out / "before")), flush=True)
    for name in args.filter or FILTERS:
        folder = args.out / name
        adapted = folder / "adapted.safetensors"
        if not adapted.exists():
            measures, _, kind = name.partition("-")
            config = {"filter.measures": measures, "filter.kind": kind or "soft", "rounds": 1, "camera": args.camera}
            chosen = [f"self_supervision.{key}={value}" for key, value in config.items()]
            chosen += [f"data.models={args.models}", *args.overrides]
            run("adapt", args.config, "--checkpoint", args.checkpoint, "--out", folder, "--resume", *chosen)
        print(row(name, score(args, adapted, folder), folder), flush=True)


def score(args: argparse.Namespace, weights: Path, folder: Path) -> dict:
    """Predict and evaluate, unless that was done before."""
    summary = folder / "scores" / "summary.json"
    if not summary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        poses, photographs = folder / "poses.csv", args.dataset / args.split
        looking = ["--camera", args.camera, "--models", args.models, "--search", "--instances", "1"]
        run("predict", weights, photographs, *looking, "--out", poses)
        wanted = ["--dataset", args.dataset, "--split", args.split, "--targets", args.targets]
        run("evaluate", poses, *wanted, "--out", folder / "scores")
    return json.loads(summary.read_text())


def row(name: str, summary: dict, folder: Path | None = None) -> str:
    """One line of the table."""
    weight = "" if folder is None else f"{mean_weight(folder):.2f}"
    told = [f"{100 * summary[key]:.1f}" for key in ("ADD_S_0.1d", "AR_MSSD", "AR_MSPD")]
    return "| " + " | ".join([name, weight, *told, f"{summary['score_auc']:.2f}"]) + " |"


def mean_weight(folder: Path) -> float:
    """How far the round's labels were believed."""
    labels = Labels.load(folder / "round-1" / "labels.safetensors").labels
    return sum(entry.weight for entry in labels) / len(labels)


if __name__ == "__main__":
    main()
