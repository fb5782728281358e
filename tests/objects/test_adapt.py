"""Learning from unlabelled photographs: labels, samples, weights, rounds, and what saves a model from them."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from parts import Parts
from scipy.spatial.transform import Rotation

from glimpose.cli import main
from glimpose.data.bop import Camera, ModelInfo, write_camera
from glimpose.data.bop_writer import write_models
from glimpose.data.files import write_image
from glimpose.nets.glance_gaze import GlanceGaze
from glimpose.nets.mtgoe import STRIDE
from glimpose.objects.adapt import adapt, read_photographs
from glimpose.objects.agreement import GEOMETRIC, VISUAL, Agreement, Confidence, Judgement
from glimpose.objects.crops import crop_matrix, frame_object
from glimpose.objects.dataset import LabelledPhotographs, write_dataset
from glimpose.objects.equations import make_pose
from glimpose.objects.estimator import EstimatorConfig, PoseEstimator
from glimpose.objects.photographs import Photograph
from glimpose.objects.pseudo_labels import CELLS_A_PX, FilterConfig, Labels, PseudoLabel, label
from glimpose.objects.real_samples import DistortionConfig, RealSampleMaker
from glimpose.objects.search import PoseSearch, SearchConfig
from glimpose.objects.self_supervision import Assessment, SelfSupervisionConfig
from glimpose.objects.standing import Stand, Standing
from glimpose.objects.task import BatchConfig, gaze_losses, glance_losses
from glimpose.objects.train import DataConfig, ObjectsConfig, build_task
from glimpose.training.checkpoint import load_checkpoint, save_tensors
from glimpose.training.loop import TrainingConfig

AGREES = Agreement(*[0.9] * 8)


def perfect_labels(parts: Parts, num: int = 3) -> tuple[list[Photograph], Labels, list]:
    """Synthesised photographs, labelled by the truth."""
    drawn = LabelledPhotographs(parts.objects, parts.meshes, parts.synthesis, seed=5)
    photographs, labels, truths = [], [], []
    K, size = parts.synthesis.K, parts.network.crop_px
    index = {model.obj_id: i for i, model in enumerate(parts.objects)}
    for number in range(num):
        truth = drawn[number]
        truths.append(truth)
        photographs.append(Photograph(truth.image, K))
        for obj_id, pose, mask in zip(truth.obj_ids, truth.cam_T_objs, truth.visible_masks, strict=True):
            model = parts.objects[index[obj_id]]
            crop_A_img = crop_matrix(*frame_object(pose, K, model.diameter_m, parts.network.crop_pad), size)
            cells_A_img = CELLS_A_PX @ crop_A_img
            v, u = np.mgrid[: size // 4, : size // 4]
            in_photo = np.linalg.solve(cells_A_img, np.stack([u.ravel(), v.ravel(), np.ones(u.size)]))
            uu, vv = np.rint(in_photo[:2]).astype(int)
            inside = (uu >= 0) & (vv >= 0) & (uu < mask.shape[1]) & (vv < mask.shape[0])
            visible = np.where(inside, mask[vv.clip(0, mask.shape[0] - 1), uu.clip(0, mask.shape[1] - 1)], 0)
            visible = visible.reshape(u.shape).astype(np.float32)
            labels.append(PseudoLabel(number, index[obj_id], pose, 0.8, 0.8, AGREES, visible, cells_A_img))
    return photographs, Labels(labels, np.ones((num, 60, 80), np.float32)), truths


def test_labels_survive_being_written(tmp_path: Path, parts: Parts):
    _, labels, _ = perfect_labels(parts)
    standings = [Standing((Stand((0.0, 0.0, 1.0), 0.1),), 0.01, 0.02, 0.03), Standing()]
    labels = Labels(labels.labels[:-1], labels.background, labels.labels[-1:], standings)
    labels.save(tmp_path / "labels.safetensors")
    again = Labels.load(tmp_path / "labels.safetensors")
    assert len(again.labels) == len(labels.labels) > 1
    assert [a.weight for a in again.mistaken] == [b.weight for b in labels.mistaken]
    for a, b in zip(again.labels, labels.labels, strict=True):
        assert (a.photograph, a.object_index, a.weight, a.agreement) == (
            b.photograph,
            b.object_index,
            b.weight,
            b.agreement,
        )
        assert np.array_equal(a.cam_T_obj, b.cam_T_obj)
        assert np.array_equal(a.visible, b.visible)
    assert again.standings == standings
    content = load_checkpoint(tmp_path / "labels.safetensors")
    save_tensors(tmp_path / "old.safetensors", content.tensors, {**content.metadata, "measures": ["overlap"]})
    with pytest.raises(ValueError, match=r"old.safetensors: written by another version.* remove it"):
        Labels.load(tmp_path / "old.safetensors")


def test_a_depth_sensor_has_a_say_in_labels(
    parts: Parts, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where the dataset has depth: what isn't measured where it's drawn is less likely."""
    models = {model.obj_id: ModelInfo(model.diameter_m) for model in parts.objects}
    meshes = {model.obj_id: mesh for model, mesh in zip(parts.objects, parts.meshes, strict=True)}
    write_models(tmp_path / "models", meshes, models)
    write_dataset(
        tmp_path / "data", "real", parts.objects, parts.meshes, tmp_path / "models", parts.synthesis, num=2, seed=5
    )
    camera = tmp_path / "data" / "camera.json"
    photographs = read_photographs(tmp_path / "data" / "real", camera)
    for photograph in photographs:
        assert photograph.depth_m is not None
        assert 0.2 < np.median(photograph.depth_m[photograph.depth_m > 0]) < 2
    teacher = PoseEstimator.from_checkpoint(checkpoint, EstimatorConfig(instances_per_object=1, min_certainty=0.0))
    teacher.search = PoseSearch(parts.objects, meshes, parts.network, SearchConfig(num_views=4))
    monkeypatch.setattr("glimpose.objects.surfaces.surface_agreement", lambda *_: 0.25)

    def weights(measures: str, seen: list[Photograph]) -> np.ndarray:
        labels = label(teacher, seen, Confidence({}, 2.0), FilterConfig(measures=measures)).labels
        return np.array([entry.weight for entry in labels])

    believed = 1 / (1 + np.exp(-2))
    blind = [replace(photograph, depth_m=None) for photograph in photographs]
    assert len(weights("both", blind)) > 0
    assert np.allclose(weights("both", blind), believed)
    assert np.allclose(weights("both", photographs), 0.25 * believed)
    assert np.allclose(weights("visual", photographs), believed)
    for wrong, message in (
        ({"cx": 1.0, "cy": 1.0, "fx": 1.0, "fy": 1.0}, "no depth_scale"),
        (None, "depth/000000.png: is 8×8 pixels"),
    ):
        if wrong:
            (tmp_path / "wrong.json").write_text(json.dumps(wrong))
        else:
            write_image(next((tmp_path / "data" / "real").glob("*/depth/000000.png")), np.ones((8, 8), np.uint16))
        with pytest.raises(ValueError, match=message):
            read_photographs(tmp_path / "data" / "real", tmp_path / "wrong.json" if wrong else camera)


@pytest.mark.parametrize("roll_deg", [0.0, 40.0])
def test_targets_of_photographs_fit_the_picture(parts: Parts, maker, roll_deg: float):
    """However the picture was turned: object coordinates, seen by the sample's camera, are where their cells are."""
    photographs, labels, _ = perfect_labels(parts)
    real = RealSampleMaker(maker, photographs, labels, DistortionConfig(roll_deg=roll_deg, patch_probability=0))
    num_cells = 0
    for seed in range(6):
        sample = real.gaze(np.random.default_rng(seed))
        model = parts.objects[int(sample["object_index"])]
        assert sample["weight"] == np.float32(0.8)
        rows, columns = np.nonzero(sample["valid"])
        num_cells += len(rows)
        xyz_m = sample["xyz"][:, rows, columns].T * model.diameter_m / 2
        xyz_cam = xyz_m @ sample["cam_T_obj"][:3, :3].T + sample["cam_T_obj"][:3, 3]
        uvw = xyz_cam @ sample["K"].T
        uv = uvw[:, :2] / uvw[:, 2:]
        cells = np.stack([columns, rows], 1) * 4 + 1.5
        assert np.abs(uv - cells).max() < 0.6
        # An upright camera: turning the picture turns the pose, not K.
        assert abs(sample["K"][0, 1]) < 1e-3 * sample["K"][0, 0]
    assert num_cells > 100


@pytest.mark.parametrize("roll_deg", [-30.0, 25.0, 4.0])
def test_photographs_that_are_askew_are_shown_upright(parts: Parts, maker, roll_deg: float):
    """As often as asked, where labels tell which way is up, and it's far off; whatever is drawn turns with them."""
    photographs, labels, _ = perfect_labels(parts, 1)
    height_m, down = 0.05, Rotation.from_euler("x", 115, degrees=True).as_matrix()  # looking down by 25 degrees
    cam_R_table = Rotation.from_euler("z", roll_deg, degrees=True).as_matrix() @ down
    standings, standing = [Standing((Stand((0.0, 0.0, 1.0), height_m),))] * len(parts.objects), []
    for i, (x_m, y_m) in enumerate([(0.1, 0), (-0.1, 0.05), (0, 0.1), (0.02, -0.1)]):
        turn = Rotation.from_euler("z", 70 * i, degrees=True).as_matrix()
        t = cam_R_table @ [x_m, y_m, height_m] + [0, 0, 0.6]
        standing.append(replace(labels.labels[0], object_index=i % 2, cam_T_obj=make_pose(cam_R_table @ turn, t)))
    told = Labels(standing, labels.background, standings=standings)

    def ups(labels: Labels, probability: float) -> np.ndarray:
        distortion = DistortionConfig(roll_deg=0, patch_probability=0, upright_probability=probability)
        real = RealSampleMaker(maker, photographs, labels, distortion)
        return np.stack([real.gaze(np.random.default_rng(seed))["cam_T_obj"][:3, 2] for seed in range(4)])

    assert np.allclose(ups(told, 1.0), (cam_R_table if roll_deg == 4.0 else down)[:, 2], atol=1e-3)
    assert np.allclose(ups(told, 0.0), cam_R_table[:, 2], atol=1e-3)
    assert np.allclose(ups(replace(told, standings=()), 1.0), cam_R_table[:, 2], atol=1e-3)


@pytest.fixture
def quiet(maker):
    """A maker whose sensor changes nothing, and whose crops all show what they are of."""
    sensor = replace(maker.sampler.config.sensor.eased(0.0), noise_prob=0.0, jpeg_prob=0.0, shading_prob=0.0)
    before, config = maker.sampler.config, maker.config
    maker.sampler.config = replace(before, sensor=sensor)
    maker.config = replace(config, decoy_probability=0.0, cut_off_probability=0.0)
    yield maker
    maker.sampler.config, maker.config = before, config


def marked(parts: Parts, photographs: Sequence[Photograph], truths: Sequence) -> list[Photograph]:
    """Black photographs, each kind of object in a colour of its own."""
    index = {model.obj_id: i for i, model in enumerate(parts.objects)}
    copies = []
    for photograph, truth in zip(photographs, truths, strict=True):
        image = np.zeros_like(photograph.image)
        for obj_id, mask in zip(truth.obj_ids, truth.visible_masks, strict=True):
            image[mask, index[obj_id]] = 255
        copies.append(replace(photograph, image=image))
    return copies


def test_turned_pictures_show_what_their_targets_say(parts: Parts, quiet):
    """Objects are coloured: where the target says object, the picture looks like it, and elsewhere it doesn't."""
    photographs, labels, truths = perfect_labels(parts)
    distortion = DistortionConfig(roll_deg=60, patch_probability=0, object_probability=0)
    real = RealSampleMaker(quiet, marked(parts, photographs, truths), labels, distortion)
    for seed in range(6):
        sample = real.gaze(np.random.default_rng(seed))
        seen = sample["image"].max(0)[2::4, 2::4][sample["valid"] > 0]
        assert (seen > 128).mean() > 0.9
        window = real.glance(np.random.default_rng(seed))
        is_object = window["class_map"] > 0
        picture = window["image"].max(0)[2::4, 2::4]
        assert (picture[is_object] > 128).mean() > 0.8
        assert (picture[(~is_object) & (window["weight"] > 0.9)] < 128).mean() > 0.9


def test_objects_are_put_before_others_and_hide_them(parts: Parts, quiet):
    """What's said to be seen is of the crop's kind, what's in front of it isn't."""
    photographs, labels, truths = perfect_labels(parts)
    hidden = {}
    for probability in (0.0, 1.0):
        distortion = DistortionConfig(patch_probability=0, object_probability=probability)
        real = RealSampleMaker(quiet, marked(parts, photographs, truths), labels, distortion)
        seen, counts = [], []
        for seed in range(16):
            sample = real.gaze(np.random.default_rng(seed))
            colours = sample["image"][:2, 2::4, 2::4] > 128
            own, other = colours[int(sample["object_index"])], colours[1 - int(sample["object_index"])]
            seen.append((own & ~other)[sample["visible"] > 0.9])
            counts.append((other & (sample["amodal"] > 0.9)).sum())
        assert np.concatenate(seen).mean() > 0.9
        assert len(np.concatenate(seen)) > 500
        hidden[probability] = sum(counts)
    assert hidden[1.0] > hidden[0.0] + 200


@torch.no_grad()
def test_what_was_taken_for_an_object_shows_none(parts: Parts, maker):
    """Some crops are of what stands elsewhere: there the gaze is asked to see nothing, by as much as that is sure."""
    photographs, labels, _ = perfect_labels(parts)
    taken = [replace(label, object_index=1 - label.object_index, weight=0.6) for label in labels.labels]
    real = RealSampleMaker(maker, photographs, replace(labels, mistaken=taken), DistortionConfig())
    decoys = 0
    maker.config, config = replace(maker.config, decoy_probability=0.5), maker.config
    for seed in range(40):
        sample = real.gaze(np.random.default_rng(seed))
        if sample["weight"] == np.float32(0.6):
            decoys += 1
            assert not sample["visible"].any()
            assert not sample["amodal"].any()
            assert not sample["valid"].any()
        else:
            assert sample["amodal"].any()
    maker.config = config
    assert 10 < decoys < 30


def test_samples_without_weight_teach_nothing(parts: Parts, maker):
    photographs, labels, _ = perfect_labels(parts)
    real = RealSampleMaker(maker, photographs, labels, DistortionConfig())
    task = build_task(ObjectsConfig(network=parts.network), parts.objects, parts.meshes)
    task.model.eval()
    crops = [real.gaze(np.random.default_rng(i)) for i in range(3)]
    windows = [real.glance(np.random.default_rng(i)) for i in range(3)]
    for samples, losses in ((crops, gaze_losses), (windows, glance_losses)):
        values = []
        for junk in (0.0, 1.0):
            batch = {k: torch.from_numpy(np.stack([s[k] for s in samples])).clone() for k in samples[0]}
            batch["weight"][0] = 0
            for name in ("log_depth", "xyz", "points_px", "center_px"):
                if name in batch:
                    batch[name][0] += junk
            image = batch["image"].float() / 255
            maps = (
                task.model.glance_maps(image)
                if losses is glance_losses
                else task.model.gaze_maps(image, batch["object_index"])
            )
            values.append({name: value.item() for name, value in losses(maps, batch, task.lambdas).items()})
        assert values[0] == values[1]


def test_confidence_is_the_share_of_right_poses():
    """Where rightness depends on one measure alone, that is what confidence learns, and it is calibrated."""
    rng = np.random.default_rng(0)
    judgements = []
    for _ in range(3000):
        agreement = Agreement(*rng.uniform(0, 1, 8))
        is_right = rng.random() < 1 / (1 + np.exp(-(8 * agreement.overlap - 5)))
        judgements.append(Judgement(agreement, bool(is_right)))
    confidence = Confidence.fit(judgements)
    assert abs(confidence.weights["overlap"] - 8) < 1
    assert max(abs(w) for name, w in confidence.weights.items() if name != "overlap") < 0.7
    said = np.array([confidence(j.agreement) for j in judgements])
    right = np.array([j.is_right for j in judgements])
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        chosen = (said >= low) & (said < low + 0.2)
        assert abs(right[chosen].mean() - said[chosen].mean()) < 0.06
    for measures, used in (("visual", VISUAL), ("geometric", GEOMETRIC)):
        some = FilterConfig(measures=measures).confidence(judgements)
        assert some is not None
        assert list(some.weights) == list(used)
    assert FilterConfig(measures="none").confidence(judgements) is None
    with pytest.raises(ValueError, match="train longer"):
        Confidence.fit([Judgement(AGREES, False)])


def test_filters_weigh():
    assert FilterConfig().weight(0.3) == 0.3
    assert FilterConfig().weight(0.01) == 0
    assert FilterConfig(kind="hard").weight(0.3) == 0
    assert FilterConfig(kind="hard").weight(0.6) == 1


@pytest.fixture
def setting(tmp_path: Path, parts: Parts) -> tuple[ObjectsConfig, Path]:
    """An untrained model, photographs, CAD models, and a config that takes seconds."""
    infos = {m.obj_id: ModelInfo(m.diameter_m) for m in parts.objects}
    write_models(
        tmp_path / "models", {m.obj_id: mesh for m, mesh in zip(parts.objects, parts.meshes, strict=True)}, infos
    )
    drawn = LabelledPhotographs(parts.objects, parts.meshes, parts.synthesis, seed=6)
    (tmp_path / "photographs").mkdir()
    for i in range(3):
        write_image(tmp_path / "photographs" / f"{i:06d}.png", drawn[i].image)
    write_camera(tmp_path / "camera.json", Camera(parts.synthesis.K, 640, 480))
    config = ObjectsConfig(
        data=DataConfig(models=tmp_path / "models"),
        network=parts.network,
        synthesis=parts.synthesis,
        batch=BatchConfig(windows=1, crops=2, validation_windows=1, validation_crops=2),
        training=TrainingConfig(precision="32-true"),
        self_supervision=SelfSupervisionConfig(
            photographs=tmp_path / "photographs",
            camera=tmp_path / "camera.json",
            rounds=2,
            training=TrainingConfig(steps=2, warmup_steps=1, validate_every=2, checkpoint_every=1, precision="32-true"),
            crops=2,
            windows=1,
            search=SearchConfig(num_views=40, num_kept=1),
            filter=FilterConfig(measures="none"),
            held_out_share=0.4,
            calibration_photographs=2,
            min_labels=1.0,
            tolerated_loss=1.0,
        ),
    )
    weights = {f"model.{k}": v for k, v in GlanceGaze(parts.network, 2).state_dict().items()}
    checkpoint = tmp_path / "model.safetensors"
    objects = [model.to_json() for model in parts.objects]
    save_tensors(checkpoint, weights, {"kind": "objects", "network": asdict(parts.network), "objects": objects})
    return config, checkpoint


def confident(monkeypatch: pytest.MonkeyPatch, probability: float = 0.5) -> None:
    """An untrained model is never right, so what its confidence would be is given."""
    bias = float(np.log(probability / (1 - probability)))
    monkeypatch.setattr(Confidence, "fit", classmethod(lambda cls, *_, **__: cls({}, bias)))
    monkeypatch.setattr("glimpose.objects.adapt.EstimatorConfig", partial(EstimatorConfig, min_certainty=0.0))
    monkeypatch.setattr("glimpose.objects.adapt.judge", lambda *_: [])


def test_rounds_end_in_a_model_and_a_page(setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, checkpoint = setting
    confident(monkeypatch)
    adapted = adapt(config, checkpoint, tmp_path / "out")
    content = load_checkpoint(adapted)
    assert content.metadata["adaptation_rounds"] == 2
    assert content.metadata["standings"] == []
    before = load_checkpoint(checkpoint).group("model")
    assert any(not torch.equal(before[name], value) for name, value in content.group("model").items())
    rounds = json.loads((tmp_path / "out" / "rounds.json").read_text())
    assert [entry["number"] for entry in rounds] == [1, 2]
    page = (tmp_path / "out" / "page.html").read_text()
    assert "Agreement before and after" in page
    assert "<img" in page
    with pytest.raises(ValueError, match="isn't empty"):
        adapt(config, checkpoint, tmp_path / "out")


def test_students_may_see_other_crops_than_their_first_teacher(
    setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, checkpoint = setting
    confident(monkeypatch)
    assert config.network.crop_px != 96
    adapted = adapt(replace(config, network=replace(config.network, crop_px=96)), checkpoint, tmp_path / "out")
    assert load_checkpoint(adapted).metadata["network"]["crop_px"] == 96
    labels = [Labels.load(tmp_path / "out" / f"round-{i}" / "labels.safetensors").labels for i in (1, 2)]
    assert [len(own[0].visible) for own in labels] == [config.network.crop_px // STRIDE, 96 // STRIDE]


def test_how_objects_stand_is_kept(setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As the labels have it; where they don't know, as the first teacher does. So is what scores mean."""
    config, checkpoint = setting
    confident(monkeypatch)
    content = load_checkpoint(checkpoint)
    old, new = (Standing((Stand((0.0, 0.0, 1.0), height_m),)) for height_m in (0.1, 0.2))
    save_tensors(checkpoint, content.tensors, {**content.metadata, "standings": [asdict(old)] * 2})
    config = replace(config, self_supervision=replace(config.self_supervision, rounds=1))
    assert PoseEstimator.from_checkpoint(adapt(config, checkpoint, tmp_path / "a")).standings == [old, old]

    def told(*arguments: object) -> Labels:
        return replace(label(*arguments), standings=[new, old])  # type: ignore[arg-type]

    monkeypatch.setattr("glimpose.objects.adapt.label", told)
    learned = PoseEstimator.from_checkpoint(adapt(config, checkpoint, tmp_path / "b"))
    assert learned.standings == [new, old]
    assert learned.confidence == Confidence({}, 0.0)  # of too few poses it's told whether they're right

    rightness, fitted = cycle([True, False]), []

    def fit(_: type, judgements: Sequence[Judgement]) -> Confidence:
        fitted.append([judgement.is_right for judgement in judgements])
        return Confidence({"overlap": 1.0}, -2.0)

    monkeypatch.setattr("glimpose.objects.adapt.judged", lambda pose, *_: Judgement(pose.agreement, next(rightness)))
    monkeypatch.setattr("glimpose.objects.adapt.LEAST_JUDGED", 1)
    monkeypatch.setattr("glimpose.objects.adapt._Adaptation.judgement", lambda *_: (learned.confidence, None))
    monkeypatch.setattr(Confidence, "fit", classmethod(fit))
    again = PoseEstimator.from_checkpoint(adapt(config, checkpoint, tmp_path / "c"))
    assert again.confidence == Confidence({"overlap": 1.0}, -2.0)
    assert len(fitted) == 1
    assert {True, False} == set(fitted[0])


def test_an_interrupted_adaptation_goes_on_to_the_same_model(setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, checkpoint = setting
    confident(monkeypatch)
    config = replace(config, self_supervision=replace(config.self_supervision, rounds=1))
    once = adapt(config, checkpoint, tmp_path / "once")
    stopped = tmp_path / "twice"
    shutil.copytree(tmp_path / "once", stopped)
    (stopped / "adapted.safetensors").unlink()
    (stopped / "round-1" / "training" / "last.safetensors").unlink()
    again = adapt(config, checkpoint, stopped, resume=True)
    a, b = load_checkpoint(once).group("model"), load_checkpoint(again).group("model")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_round_that_makes_things_worse_is_undone(setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, checkpoint = setting
    confident(monkeypatch)
    assessed = iter([0.5, 0.6, 0.3])

    def of(cls: type[Assessment], *_: object) -> Assessment:
        value = next(assessed)
        return cls(value, {3: value, 7: value})

    monkeypatch.setattr(Assessment, "of", classmethod(of))
    strict = replace(config, self_supervision=replace(config.self_supervision, tolerated_loss=0.0))
    adapted = adapt(strict, checkpoint, tmp_path / "out")
    kept = load_checkpoint(tmp_path / "out" / "round-1" / "training" / "last.safetensors").group("model")
    assert all(torch.equal(kept[name], value) for name, value in load_checkpoint(adapted).group("model").items())
    assert "undone" in (tmp_path / "out" / "page.html").read_text()


def test_photographs_of_something_else_are_told_not_learned(setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, checkpoint = setting
    confident(monkeypatch, probability=0.01)
    doubtful = replace(config.self_supervision, filter=FilterConfig(), min_labels=10.0)
    with pytest.raises(ValueError, match=r"too few to learn from\. Do they show obj_3, obj_7"):
        adapt(replace(config, self_supervision=doubtful), checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_folders_are_a_sentence(setting, tmp_path: Path, capsys: pytest.CaptureFixture):
    config, checkpoint = setting
    (tmp_path / "c.toml").write_text(f'[data]\nmodels = "{config.data.models}"\n')
    (tmp_path / "none").mkdir()
    arguments = ["adapt", str(tmp_path / "c.toml"), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
    assert main([*arguments, f"self_supervision.photographs={tmp_path / 'none'}"]) == 2
    assert "no images in this folder" in capsys.readouterr().err


def test_a_config_with_other_objects_than_the_checkpoint_is_refused(setting, tmp_path: Path):
    config, checkpoint = setting
    other = replace(config, data=replace(config.data, object_ids=(3,)))
    with pytest.raises(ValueError, match=r"knows objects \[3, 7\].*object_ids are \[3\]"):
        adapt(other, checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_photographs_of_many_scenes_are_not_taken_for_one(setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, checkpoint = setting
    confident(monkeypatch)
    moving = replace(config, self_supervision=replace(config.self_supervision, static_scene=True))
    with pytest.raises(ValueError, match="could be linked"):
        adapt(moving, checkpoint, tmp_path / "out")
    with pytest.raises(ValueError, match=r"batch\.uses = 2"):
        adapt(replace(config, batch=BatchConfig(windows=2, crops=2, uses=2)), checkpoint, tmp_path / "other")
