"""The command line: one verb per step, heavy imports inside the verbs."""

import argparse
import logging
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger("glimpose")

DESCRIPTION = """\
6D poses of objects from CAD models and photographs that nobody labelled.

  glimpose demo                                     see the whole way on made-up parts, in minutes, without data
  glimpose synth    CONFIG --out DIR --num 100      look at what training will see
  glimpose train    CONFIG --out RUN                learn from CAD models alone
  glimpose adapt    CONFIG --checkpoint RUN/best.safetensors --out ADAPTED     learn from unlabelled photographs
  glimpose predict  RUN/best.safetensors IMAGES --camera camera.json --out poses.csv --overlay pictures
  glimpose evaluate poses.csv --dataset DIR --split test --targets FILE --out scores
  glimpose calibrate RUN/best.safetensors IMAGES --distance 1.0 --camera camera.json     give a robot metres
  glimpose simulate CONFIG --out recording.h5       record robots with LEDs that drive about in a simulated room
"""
ROBOMASTER = Path("robomaster")
CONFIG_HELP = "TOML file; only what differs from the defaults. `key=value` arguments after it override single keys"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0 done, 2 a mistake in what was asked for, 130 interrupted."""
    args = _parse(argv)
    logging.basicConfig(level=logging.DEBUG if args.verbose else logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("PIL", "trimesh", "matplotlib", "lightning_fabric"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        args.run(args)
    except (ValueError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        if args.verbose:
            raise
        print(f"glimpose {args.verb}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"glimpose {args.verb}: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse; key=value arguments may stand anywhere, also behind options, where argparse itself won't take them."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    overrides = [entry for entry in rest if "=" in entry and not entry.startswith("-")]
    if len(overrides) < len(rest) or (overrides and "overrides" not in args):
        parser.error(f"unrecognised arguments: {' '.join(rest)}; see glimpose {args.verb} --help")
    if overrides:
        args.overrides = [*args.overrides, *overrides]
    return args


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("glimpose", description=DESCRIPTION, formatter_class=raw)
    parser.add_argument("-v", "--verbose", action="store_true", help="log details, and show tracebacks of errors")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    demo = verbs.add_parser("demo", help="the whole way on made-up data, in minutes", description=run_demo.__doc__)
    demo.add_argument("track", nargs="?", choices=("objects", "robots"), default="objects")
    demo.add_argument(
        "--out", type=Path, default=Path("glimpose-demo"), help="folder of the page (default: %(default)s)"
    )
    demo.add_argument("--minutes", type=float, default=4.0, help="of training on two cores (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--robot", type=Path, default=ROBOMASTER, help="robots: its LEDs (default: %(default)s)")
    demo.set_defaults(run=run_demo)

    synth = verbs.add_parser("synth", help="write a synthesised BOP dataset", description=run_synth.__doc__)
    _config_arguments(synth)
    synth.add_argument("--out", type=Path, required=True, help="new folder of the dataset")
    synth.add_argument("--num", type=int, default=100, help="number of photographs (default: %(default)s)")
    synth.add_argument("--split", default="train_synth", help="name of the split (default: %(default)s)")
    synth.add_argument("--seed", type=int, default=0)
    synth.add_argument("--workers", type=int, default=0, help="processes that draw beside this one, e.g. one per core")
    synth.add_argument("--renderer", choices=("auto", "gl", "raster"), default="auto")
    synth.set_defaults(run=run_synth)

    train = verbs.add_parser("train", help="train on CAD models or a recording", description=run_train.__doc__)
    _config_arguments(train)
    train.add_argument("--out", type=Path, required=True, help="folder of the run: checkpoints, metrics, TensorBoard")
    train.add_argument("--resume", action="store_true", help="go on from OUT/last.safetensors")
    train.set_defaults(run=run_train)

    adapt = verbs.add_parser("adapt", help="learn from unlabelled photographs", description=run_adapt.__doc__)
    _config_arguments(adapt)
    adapt.add_argument("--checkpoint", type=Path, required=True, help="what to start from; it stays as it is")
    adapt.add_argument("--out", type=Path, required=True, help="folder for adapted.safetensors, page.html and rounds")
    adapt.add_argument("--resume", action="store_true", help="go on after an interruption")
    adapt.set_defaults(run=run_adapt)

    predict = verbs.add_parser("predict", help="poses in photographs", description=run_predict.__doc__)
    predict.add_argument("checkpoint", type=Path, help="what train wrote, e.g. RUN/best.safetensors")
    predict.add_argument("images", type=Path, nargs="+", help="images, folders of them, or (robots) one recording")
    predict.add_argument("--camera", type=Path, help="BOP's camera.json or a scene_camera.json; recordings hold theirs")
    predict.add_argument("--out", type=Path, required=True, help="CSV of poses to write, for objects in BOP's format")
    predict.add_argument("--overlay", type=Path, help="folder for pictures of the poses")
    predict.add_argument("--models", type=Path, help="folder of CAD models: pictures then show outlines, not boxes")
    predict.add_argument(
        "--refine", action="store_true", help="move poses to where drawings fit the photograph; needs --models"
    )
    predict.add_argument(
        "--search",
        action="store_true",
        help="refine drawn views, too: slower, finds more; needs --models",
    )
    predict.add_argument(
        "--free", action="store_true", help="don't move poses so that objects stand together, though it's known how"
    )
    predict.add_argument(
        "--instances",
        type=int,
        help="most instances of one object in an image (default: no limit); with --search or --refine, objects of "
        "which fewer are found are looked for all over what the others stand on",
    )
    predict.add_argument("--correspondences", choices=("keypoints", "coordinates"), help="what poses are solved from")
    predict.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    predict.set_defaults(run=run_predict)

    evaluate = verbs.add_parser("evaluate", help="score poses against the truth", description=run_evaluate.__doc__)
    evaluate.add_argument("poses", type=Path, help="CSV of poses, of whichever program")
    evaluate.add_argument("--dataset", type=Path, help="objects: folder of the dataset, in BOP's layout")
    evaluate.add_argument("--split", help="its split, e.g. test")
    evaluate.add_argument("--targets", type=Path, help="e.g. DATASET/test_targets_bop19.json")
    evaluate.add_argument("--recording", type=Path, help="robots: the recording that poses were predicted on")
    evaluate.add_argument("--robot", type=Path, default=ROBOMASTER, help="its LEDs (default: %(default)s)")
    evaluate.add_argument("--out", type=Path, required=True, help="folder for summary.json and the table of errors")
    evaluate.set_defaults(run=run_evaluate)

    calibrate = verbs.add_parser(
        "calibrate", help="give robots metres, or objects' scores a meaning", description=run_calibrate.__doc__
    )
    calibrate.add_argument("checkpoint", type=Path, help="what train wrote; what is found out is stored in it")
    calibrate.add_argument("images", type=Path, nargs="*", help="robots: images that show one at that distance")
    calibrate.add_argument(
        "--distance",
        type=float,
        nargs="+",
        metavar="METRES",
        help="robots: from base to base; one for all images, or one for each",
    )
    calibrate.add_argument("--camera", type=Path, help="robots: JSON or recording of this camera")
    calibrate.add_argument(
        "--frames",
        type=Path,
        metavar="RECORDING",
        help="robots: also spread bearings evenly over this recording, in which all sides are seen equally often",
    )
    calibrate.add_argument("--config", type=Path, help=f"objects: {CONFIG_HELP}")
    calibrate.add_argument("--num", type=int, default=60, help="objects: photographs made up (default: %(default)s)")
    calibrate.set_defaults(run=run_calibrate, overrides=[])

    table = verbs.add_parser("table", help="gather robots' scores over replicas", description=run_table.__doc__)
    table.add_argument("runs", type=Path, nargs="+", help="folders with summary.json below: ROW/REPLICA/summary.json")
    table.add_argument("--out", type=Path, required=True, help="folder for table.csv, table.md and table.png")
    table.set_defaults(run=run_table)

    simulate = verbs.add_parser(
        "simulate", help="record robots with LEDs in a simulated room", description=run_simulate.__doc__
    )
    _config_arguments(simulate)
    simulate.add_argument("--out", type=Path, required=True, help="HDF5 file to write")
    simulate.add_argument("--num", type=int, default=1000, help="number of frames (default: %(default)s)")
    simulate.add_argument("--seed", type=int, default=0)
    simulate.add_argument("--resume", action="store_true", help="go on after an interruption")
    simulate.add_argument("--workers", type=int, default=0, help="processes that draw instead of this one")
    simulate.add_argument("--renderer", choices=("auto", "gl", "raster"), default="auto")
    simulate.set_defaults(run=run_simulate)

    export = verbs.add_parser("export", help="make a small file to ship", description=run_export.__doc__)
    export.add_argument("checkpoint", type=Path)
    export.add_argument("out", type=Path, help="file to write, e.g. weights/mine.safetensors")
    export.set_defaults(run=run_export)
    return parser


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help=CONFIG_HELP)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. training.steps=5000 data.models=models")


def run_demo(args: argparse.Namespace) -> None:
    """Make up CAD models, or record simulated robots; train for a few minutes, predict, and write a page about it."""
    if args.track == "robots":
        from glimpose.robots.demo import run_demo as robots_demo

        print(robots_demo(args.out, args.robot, minutes=args.minutes, seed=args.seed).page)
        return
    from glimpose.objects.demo import run_demo as demo

    print(demo(args.out, minutes=args.minutes, seed=args.seed).page)


def run_synth(args: argparse.Namespace) -> None:
    """Write photographs synthesised from CAD models, with poses, masks and depth, as a BOP dataset."""
    from glimpose.config import load
    from glimpose.objects.dataset import write_dataset
    from glimpose.objects.train import ObjectsConfig, load_objects

    config = load(ObjectsConfig, args.config, args.overrides)
    objects, meshes = load_objects(config.data, config.network.num_keypoints)
    write_dataset(
        args.out,
        args.split,
        objects,
        meshes,
        config.data.models,
        config.synthesis,
        args.num,
        seed=args.seed,
        renderer=args.renderer,
        num_workers=args.workers,
    )
    print(args.out / args.split)


def run_train(args: argparse.Namespace) -> None:
    """Train on CAD models or, if the config says track = "robots", on a recording; prints the best checkpoint."""
    from glimpose.config import load

    if _track(args.config) == "robots":
        from glimpose.robots.train import load_experiment
        from glimpose.robots.train import train as train_robots

        print(train_robots(*load_experiment(args.config, args.overrides), args.out, resume=args.resume))
        return
    from glimpose.objects.train import ObjectsConfig, train

    print(train(load(ObjectsConfig, args.config, args.overrides), args.out, resume=args.resume))


def _track(config: Path) -> str:
    """Return which track a config belongs to; what's wrong with the file is left to its reader."""
    try:
        return tomllib.loads(config.read_text(encoding="utf-8")).get("track", "objects")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return "objects"


def run_adapt(args: argparse.Namespace) -> None:
    """Learn from photographs that nobody labelled, as [self_supervision] in the config says; prints the checkpoint."""
    from glimpose.config import load
    from glimpose.objects.adapt import adapt
    from glimpose.objects.train import ObjectsConfig

    print(adapt(load(ObjectsConfig, args.config, args.overrides), args.checkpoint, args.out, resume=args.resume))


def run_predict(args: argparse.Namespace) -> None:
    """Estimate the poses of all known objects in photographs and write them in BOP's format, or those of robots."""
    from dataclasses import replace

    from glimpose.training.checkpoint import load_checkpoint

    if load_checkpoint(args.checkpoint).metadata.get("kind") == "robots":
        return _predict_robots(args)
    if args.camera is None:
        raise ValueError("--camera: missing; objects' poses can't be told without")

    from glimpose.objects.estimator import EstimatorConfig, PoseEstimator
    from glimpose.objects.photographs import find_photographs
    from glimpose.objects.predict import load_meshes, predict

    config = EstimatorConfig(instances_per_object=args.instances, stand_together=not args.free)
    if args.correspondences:
        config = replace(config, correspondences=args.correspondences)
    photographs = find_photographs(args.images)
    estimator = PoseEstimator.from_checkpoint(args.checkpoint, config, args.device)
    meshes = load_meshes(estimator, args.models) if args.models else None
    if args.search or args.refine:
        from glimpose.objects.search import PoseSearch, SearchConfig

        if meshes is None:
            raise ValueError(f"{'--search' if args.search else '--refine'}: needs --models, the CAD models to draw")
        drawn = SearchConfig() if args.search else SearchConfig(num_views=0)
        estimator.search = PoseSearch(estimator.objects, meshes, estimator.model.config, drawn)
    rows = predict(estimator, photographs, args.camera, args.out, args.overlay, meshes)
    logger.info("%d poses in %d photographs: %s", len(rows), len(photographs), args.out)


def _predict_robots(args: argparse.Namespace) -> None:
    from glimpose.robots.estimator import DecodeConfig, RobotEstimator
    from glimpose.robots.predict import Views, predict

    views = Views(args.images, args.camera)
    config = DecodeConfig(max_robots=args.instances or DecodeConfig.max_robots)
    estimator = RobotEstimator.from_checkpoint(args.checkpoint, config, args.device)
    rows = predict(estimator, views, args.out, args.overlay)
    logger.info("%d robots in %d pictures: %s", len(rows), len(views), args.out)


def run_evaluate(args: argparse.Namespace) -> None:
    """Score poses against ground truth: ADD(-S), MSSD, MSPD and, where there is depth, VSD; robots' as their papers."""
    if args.recording:
        return _evaluate_robots(args)
    missing = [f"--{name}" for name in ("dataset", "split", "targets") if getattr(args, name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)}: missing; for robots, give --recording")
    from glimpose.objects.evaluate import evaluate

    summary = evaluate(args.poses, args.dataset, args.split, args.targets, args.out)
    for name in ("AR", "AR_MSSD", "AR_MSPD", "AR_VSD", "ADD_S_0.1d"):
        value = summary[name]
        print(f"{name:12s} {'-' if value is None else format(100 * value, '.1f')}")
    if summary["score_auc"] is not None:
        print(f"{'score AUC':12s} {summary['score_auc']:.2f}")
    logger.info("%s", args.out / "summary.json")


def _evaluate_robots(args: argparse.Namespace) -> None:
    from glimpose.robots.evaluate import evaluate

    summary = evaluate(args.poses, args.recording, args.robot, args.out)
    for name in ("E_uv_px", "E_psi_deg", "E_d_percent", "E_xyz_m", "gamma_1m_45deg", "led_auc", "presence_auc"):
        print(f"{name:15s} {'-' if summary[name] is None else format(summary[name], '.3g')}")
    logger.info("%s", args.out / "summary.json")


def run_calibrate(args: argparse.Namespace) -> None:
    """Store in a checkpoint what its numbers mean.

    Robots: what turns sightings into metres, from images with a robot at a known distance; four or more, from near to
    far, tell far more than one. With --frames also what turns bearings, which crowd where most LEDs are seen, into ones
    that are spread evenly. Objects: the probability that a pose found with --search is right, and how objects stand,
    from photographs made up of the CAD models in --config.
    """
    from glimpose.training.checkpoint import load_checkpoint

    if load_checkpoint(args.checkpoint).metadata.get("kind") == "objects":
        from glimpose.config import load
        from glimpose.objects.calibrate import calibrate_objects
        from glimpose.objects.train import ObjectsConfig

        if args.config is None:
            raise ValueError("--config: missing; scores of objects are calibrated on photographs made up as it says")
        overrides = [*map(str, args.images), *args.overrides]
        calibrate_objects(args.checkpoint, load(ObjectsConfig, args.config, overrides), args.num)
        return
    missing = [f"--{name}" for name in ("distance", "camera") if getattr(args, name) is None]
    if missing or not args.images:
        raise ValueError(f"{', '.join(missing) or 'images'}: missing; a robot's scale comes from its known distance")
    from glimpose.robots.calibrate import calibrate

    print(f"{calibrate(args.checkpoint, args.images, args.distance, args.camera, args.frames).scale_m:.6g}")


def run_table(args: argparse.Namespace) -> None:
    """Gather what evaluate wrote about robots: means over replicas, 95 % intervals, a plot, CSV and Markdown."""
    from glimpose.robots.table import tabulate

    print(tabulate(args.runs, args.out), end="")


def run_simulate(args: argparse.Namespace) -> None:
    """Record robots that drive about in a room and switch their LEDs, with ground truth, as an HDF5 file."""
    from glimpose.robots.simulate import load_simulation, simulate

    config, robot = load_simulation(args.config, args.overrides)
    simulate(
        config,
        robot,
        args.out,
        args.num,
        seed=args.seed,
        resume=args.resume,
        num_workers=args.workers,
        renderer=args.renderer,
    )
    print(args.out)


def run_export(args: argparse.Namespace) -> None:
    """Keep only what predicting needs, with the large tensors in half precision."""
    from glimpose.training.checkpoint import load_checkpoint, save_tensors

    checkpoint = load_checkpoint(args.checkpoint)
    weights = {f"model.{name}": value for name, value in checkpoint.group("model").items()}
    # Norms' statistics and biases are small, and some are too small or too large for half precision.
    half = {name: value.half() if value.ndim > 1 else value for name, value in weights.items()}
    save_tensors(args.out, half, {**checkpoint.metadata, "exported_from_step": checkpoint.metadata.get("step")})
    logger.info("%s: %.1f MB", args.out, args.out.stat().st_size / 1e6)


if __name__ == "__main__":
    sys.exit(main())
