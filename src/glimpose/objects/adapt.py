"""Self-supervision: a model learns from photographs that nobody labelled.

          clean                                              believed as far as they agree
photographs ──── teacher ──── search ──── poses ──── agreement ──── pseudo-labels ─┐
    ▲               ▲                                                             ├── student
    └── distorted ──┼──────────────────────────────────────── synthesised scenes ─┘     │
                    └──────────────── average of its weights ──────────────────────────┘

In rounds: the teacher labels all photographs, the student learns from them and from synthesised scenes, and the average
of its weights is the next round's teacher. A round after which the poses in photographs held out agree less is undone.
Mean teachers are after Tarvainen and Valpola (NeurIPS 2017); the use for poses, with two kinds of agreement, after
Self6D++ (Wang et al., PAMI 2021).
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from glimpose.data.files import write_text
from glimpose.objects.adaptation_page import write_page
from glimpose.objects.agreement import UNCALIBRATED, Confidence
from glimpose.objects.calibrate import hulls_of, judge, judged, synthesised
from glimpose.objects.estimator import EstimatorConfig, PoseEstimator
from glimpose.objects.photographs import Photograph, find_photographs, read_photograph
from glimpose.objects.pseudo_labels import Labels, PseudoLabel, label
from glimpose.objects.real_samples import RealSampleMaker
from glimpose.objects.samples import collate
from glimpose.objects.scene_labels import label_static_scene
from glimpose.objects.scene_places import learn_errors
from glimpose.objects.search import PoseSearch
from glimpose.objects.self_supervision import Assessment, Round, SelfSupervisionConfig
from glimpose.objects.standing import Standing
from glimpose.objects.structure_from_motion import find_cameras
from glimpose.objects.task import Batch, CurriculumConfig, SynthesisBatches
from glimpose.objects.train import ObjectsConfig, build_task, load_objects
from glimpose.render.mesh import Mesh
from glimpose.training.checkpoint import load_checkpoint, save_tensors
from glimpose.training.loop import fit

logger = logging.getLogger(__name__)

SURE_WEIGHT = 0.5
"""Of labels that a model's poses are compared with."""
LEAST_JUDGED = 20
"""Of right poses and of wrong ones, to learn from them what scores mean; with fewer they mean what they did."""


class AdaptationBatches(SynthesisBatches):
    """Synthesised batches with samples of photographs added; batch i is a function of (seed, i) alone."""

    def __init__(
        self,
        synthesised: SynthesisBatches,
        photographs: Sequence[Photograph],
        labels: Labels,
        config: SelfSupervisionConfig,
    ) -> None:
        super().__init__(*synthesised.parts, synthesised.batch, synthesised.curriculum)
        self.real_parts = (photographs, labels, config.distortion)
        uses = self.batch.uses
        self.sizes = (("glance", config.windows // uses), ("gaze", config.crops // uses))
        self._real: RealSampleMaker | None = None

    def portion(self, index: int) -> Batch:
        """Draw what is new in a batch."""
        if self._real is None:
            self._real = RealSampleMaker(self.maker, *self.real_parts)
        batch = super().portion(index)
        for number, (part, size) in enumerate(self.sizes):
            rngs = [np.random.default_rng([self.batch.seed, index, 2 + number, i]) for i in range(size)]
            if rngs:
                real = collate([getattr(self._real, part)(rng) for rng in rngs])
                batch[part] = {key: torch.cat([batch[part][key], real[key]]) for key in real} if part in batch else real
        return batch


def read_photographs(folder: Path, camera: Path) -> list[Photograph]:
    """Read all images of a folder; they must have one size."""
    photographs: list[Photograph] = []
    for file in tqdm(find_photographs([folder]), desc="read photographs", unit="image", leave=False):
        im_id = int(file.path.stem) if file.path.stem.isdecimal() else None
        photograph = read_photograph(file.path, im_id, camera, with_depth=True)
        height, width = photograph.image.shape[:2]
        if photographs and (height, width) != photographs[0].image.shape[:2]:
            raise ValueError(f"{file.path}: is {width}×{height} pixels, others aren't; adapt to one camera")
        photographs.append(photograph)
    return photographs


def adapt(config: ObjectsConfig, checkpoint: Path, run_dir: Path, resume: bool = False) -> Path:
    """Adapt a checkpoint to photographs, and return the adapted one.

    Writes to ``run_dir``: adapted.safetensors, page.html with what was accepted and what came of it, rounds.json, and a
    folder with labels and training for each round. Raises ValueError where the photographs teach nothing.
    """
    adaptation, uses = config.self_supervision, config.batch.uses
    if adaptation.windows % uses or adaptation.crops % uses:
        sizes = f"windows = {adaptation.windows} and crops = {adaptation.crops}"
        raise ValueError(f"batch.uses = {uses}: expected a divisor of self_supervision's {sizes} as well")
    resume = resume or not is_first_process()
    if run_dir.exists() and any(run_dir.iterdir()) and not resume:
        raise ValueError(f"{run_dir}: isn't empty; resume it, or choose another folder")
    return _Adaptation(config, checkpoint, Path(run_dir), resume).run()


def is_first_process() -> bool:
    """With several processes Lightning starts this command again for each of the others, when training begins."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


class _Adaptation:
    """What all rounds share."""

    def __init__(self, config: ObjectsConfig, checkpoint: Path, run_dir: Path, resume: bool) -> None:
        self.config, self.adaptation = config, config.self_supervision
        self.run_dir, self.resume = run_dir, resume
        self.objects, meshes = load_objects(config.data, config.network.num_keypoints)
        self.meshes = {model.obj_id: mesh for model, mesh in zip(self.objects, meshes, strict=True)}
        photographs = read_photographs(self.adaptation.photographs, self.adaptation.camera)
        every = round(1 / self.adaptation.held_out_share)
        self.held_out, self.taught = photographs[::every], [p for i, p in enumerate(photographs) if i % every]
        if not self.taught:
            raise ValueError(f"{self.adaptation.photographs}: one photograph is too few: some are held out to check")
        self.search: PoseSearch | None = None
        self.checkpoint = checkpoint
        self.confidence = UNCALIBRATED
        self.first = self.estimator(checkpoint)
        self.confidence, self.believed = self.judgement(meshes)
        self.first.confidence = self.confidence

    def judgement(self, meshes: Sequence[Mesh]) -> tuple[Confidence, Confidence | None]:
        """How probable poses are, and what labels are believed by: as calibrated, or fitted on made-up photographs."""
        config, measures = self.config, self.adaptation.filter.measures
        known = self.first.confidence
        if known is not UNCALIBRATED and (self.adaptation.static_scene or measures == "both"):
            return known, known
        shown = synthesised(config, self.objects, meshes, seed=config.training.seed + 1)
        judged = judge(self.first, shown, config.synthesis.K, self.meshes, self.adaptation.calibration_photographs)
        return Confidence.fit(judged), self.adaptation.filter.confidence(judged)

    def estimator(self, path: Path) -> PoseEstimator:
        """Load a model that looks as all do here."""
        adaptation = self.adaptation
        # What is hardly seen isn't worth looking for in all places.
        looking = EstimatorConfig(instances_per_object=adaptation.instances_per_object, doubt=0.0)
        if adaptation.static_scene:
            # Where exactly they are, photographs tell together.
            looking = EstimatorConfig(
                instances_per_object=adaptation.sightings_per_object,
                candidates_per_instance=1,
                looks_around=0,
                stand_together=False,
            )
        estimator = PoseEstimator.from_checkpoint(path, looking)
        known = [model.obj_id for model in estimator.objects]
        if known != list(self.meshes):
            raise ValueError(
                f"{path}: knows objects {known}, the config's data.object_ids are {list(self.meshes)}; "
                "give the config that it was trained by"
            )
        network = estimator.model.config
        # Students may see larger crops than the first teacher.
        if self.search is None or self.search.network != network:
            self.search = PoseSearch(estimator.objects, self.meshes, network, adaptation.search)
        estimator.search = self.search
        if self.confidence is not UNCALIBRATED:
            estimator.confidence = self.confidence
        return estimator

    def run(self) -> Path:
        """Go through all rounds, or until one doesn't help."""
        best, teacher = self.checkpoint, self.first
        cam_T_scene = self.cameras() if self.adaptation.static_scene else {}
        first = now = Assessment.of(teacher, self.held_out, self.confidence)
        logger.info("agreement in %d photographs held out: %.3f", len(self.held_out), now.agreement)
        rounds: list[Round] = []
        all_labels: list[Labels] = []
        for number in range(1, self.adaptation.rounds + 1):
            folder = self.run_dir / f"round-{number}"
            before = all_labels[-1].labels if all_labels else ()
            labels = self.label(teacher, folder / "labels.safetensors", cam_T_scene, before)
            student = self.train(best, labels, folder / "training")
            pupil = self.estimator(student)
            after = Assessment.of(pupil, self.held_out, self.confidence)
            is_kept = after.agreement >= now.agreement - self.adaptation.tolerated_loss
            rounds.append(Round(number, *self.accepted(labels), now, after, is_kept))
            all_labels.append(labels)
            verdict = "" if is_kept else "; worse, so this round is undone, and adaptation ends"
            logger.info("round %d: agreement %.3f, before %.3f%s", number, after.agreement, now.agreement, verdict)
            write_text(self.run_dir / "rounds.json", json.dumps([asdict(r) for r in rounds], indent=2) + "\n")
            if not is_kept:
                break
            best, teacher, now = student, pupil, after
        adapted = self.run_dir / "adapted.safetensors"
        if is_first_process():
            page = self.run_dir / "page.html"
            write_page(page, self.objects, self.meshes, self.taught, all_labels, rounds, first, now)
            kept = [labels for labels, r in zip(all_labels, rounds, strict=True) if r.is_kept]
            learned = self.learned(best, kept[-1]) if kept else (self.first.standings, self.confidence)
            self.save(adapted, best, len(kept), *learned)
        return adapted

    def label(
        self, teacher: PoseEstimator, path: Path, cam_T_scene: dict[int, np.ndarray], before: Sequence[PseudoLabel]
    ) -> Labels:
        """Label the photographs, or read how they were labelled before an interruption."""
        if self.resume and path.exists():
            return Labels.load(path)
        if self.adaptation.static_scene:
            labels = label_static_scene(teacher, self.taught, cam_T_scene, before)
        else:
            labels = label(teacher, self.taught, self.believed, self.adaptation.filter)
        expected = sum(entry.weight for entry in labels.labels)
        if expected < self.adaptation.min_labels:
            names = ", ".join(model.name for model in self.objects)
            still = " Did they keep their places while the camera moved?" if self.adaptation.static_scene else ""
            raise ValueError(
                f"{self.adaptation.photographs}: of {len(labels.labels)} poses found in {len(self.taught)} photographs "
                f"about {expected:.0f} are right: too few to learn from. Do they show {names}?{still} Is "
                f"{self.adaptation.camera} their camera? Otherwise train longer first; the checkpoint stays as it is"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        labels.save(path)
        return labels

    def cameras(self) -> dict[int, np.ndarray]:
        """Where the photographs that are learned from were taken from; found once."""
        path = self.run_dir / "cameras.safetensors"
        if not path.exists():
            found = find_cameras(self.taught)
            self.run_dir.mkdir(parents=True, exist_ok=True)
            save_tensors(path, {str(number): torch.from_numpy(pose) for number, pose in found.items()}, {})
        return {int(number): pose.numpy() for number, pose in load_checkpoint(path).tensors.items()}

    def train(self, start: Path, labels: Labels, folder: Path) -> Path:
        """Train a student, and return the average of its weights."""
        hard = replace(self.config, curriculum=CurriculumConfig(steps=0))
        task = build_task(hard, self.objects, list(self.meshes.values()))
        task.batches = AdaptationBatches(task.batches, self.taught, labels, self.adaptation)
        task.freeze_batch_norm = self.adaptation.freeze_batch_norm
        last = folder / "last.safetensors"
        fit(task, replace(self.adaptation.training, init_from=start), folder, resume=self.resume and last.exists())
        return last

    def accepted(self, labels: Labels) -> tuple[dict[int, float], dict[int, float]]:
        """By object: the share of photographs with a label above the threshold, and labels' mean probability."""
        shares, means = {}, {}
        for index, model in enumerate(self.objects):
            own = [entry for entry in labels.labels if entry.object_index == index]
            threshold = self.adaptation.filter.threshold
            shares[model.obj_id] = len({p.photograph for p in own if p.weight >= threshold}) / len(self.taught)
            means[model.obj_id] = float(np.mean([entry.probability for entry in own])) if own else 0.0
            logger.info(
                "%s: %d labels, %.0f %% of photographs accepted, mean probability %.2f",
                model.name,
                len(own),
                100 * shares[model.obj_id],
                means[model.obj_id],
            )
        return shares, means

    def learned(self, student: Path, labels: Labels) -> tuple[Sequence[Standing], Confidence]:
        """How objects stand, and how exact the student is and what its scores say of that, by how they are labelled."""
        if not labels.standings:
            return self.first.standings, self.confidence
        estimator = self.estimator(student)
        estimator.config = EstimatorConfig(instances_per_object=1, stand_together=False)
        photographs = tqdm(self.taught, desc="compare with labels", unit="image", leave=False)
        poses = [estimator(photograph.image, photograph.K) for photograph in photographs]
        exact = [(p.photograph, p.object_index, p.cam_T_obj) for p in labels.labels if p.weight >= SURE_WEIGHT]
        standings = learn_errors(labels.standings, self.objects, poses, exact)
        hulls = hulls_of(self.meshes)
        judgements = [
            judged(pose, [cam_T_obj], hulls[pose.model.obj_id])
            for number, index, cam_T_obj in exact
            for pose in poses[number]
            if pose.look.detection.object_index == index
        ]
        num_right = sum(judgement.is_right for judgement in judgements)
        logger.info("of %d poses in single photographs %d are where they are labelled", len(judgements), num_right)
        if min(num_right, len(judgements) - num_right) < LEAST_JUDGED:
            return standings, self.confidence
        return standings, Confidence.fit(judgements)

    def save(
        self, path: Path, best: Path, num_rounds: int, standings: Sequence[Standing], confidence: Confidence
    ) -> None:
        """Write the adapted model without what only training needs."""
        content = load_checkpoint(best)
        weights = {name: value for name, value in content.tensors.items() if name.startswith("model.")}
        more = {
            "confidence": asdict(confidence),
            "standings": [asdict(standing) for standing in standings],
            "adaptation_rounds": num_rounds,
        }
        save_tensors(path, weights, {**content.metadata, **more})
