from dataclasses import replace

import numpy as np
import pytest
import torch

from glimpose.data.backgrounds import Backgrounds
from glimpose.objects.crops import gaze_reference_depth_m
from glimpose.objects.evidence import decode_gaze
from glimpose.objects.looks import solve_from_coordinates, solve_from_keypoints
from glimpose.objects.samples import SampleConfig, SampleMaker, collate
from glimpose.objects.synthesis import Photographer, SceneSampler
from glimpose.objects.task import BatchConfig, CurriculumConfig, SynthesisBatches, cell_centers_px
from glimpose.render.scene import make_renderer


def _true_maps(batch):
    """What a perfect network would say."""
    offsets = batch["points_px"][..., None, None] - cell_centers_px(batch["valid"][:, None])
    flat = torch.zeros_like(batch["valid"])[:, None]
    return {
        "visible_logits": batch["valid"][:, None] * 40 - 20,
        "amodal_logits": batch["amodal"][:, None] * 40 - 20,
        "center_offset": offsets[:, 0],
        "center_log_depth": flat + batch["center_log_depth"].view(-1, 1, 1, 1),
        "center_log_std": flat,
        "keypoint_offset": offsets[:, 1:].flatten(1, 2),
        "keypoint_log_std": flat.expand(-1, 8, -1, -1),
        "log_depth": batch["log_depth"][:, None],
        "xyz": batch["xyz"],
        "xyz_log_std": flat - 3,
    }


def test_true_maps_give_true_poses(maker, parts):
    samples = [maker.gaze(np.random.default_rng([1, i])) for i in range(16)]
    batch = collate([sample for sample in samples if sample["valid"].sum() > 40])  # of a sliver, poses can't be told
    views = decode_gaze(_true_maps(batch))
    assert len(batch["K"]) >= 8
    for i in range(len(batch["K"])):
        model, K = parts.objects[int(batch["object_index"][i])], batch["K"][i].double()
        true = batch["cam_T_obj"][i].double()
        depth_m = gaze_reference_depth_m(K.numpy(), model.diameter_m, parts.network) * views.center_log_depth[i].exp()
        assert abs(float(depth_m) - float(true[2, 3])) < 1e-4
        for solved in (
            solve_from_keypoints(views, i, model, K),
            solve_from_coordinates(views, i, model, K, float(depth_m)),
        ):
            assert solved.cam_T_obj is not None, solved.reason
            corners = torch.from_numpy(model.keypoints_m)
            error = (
                corners @ (solved.cam_T_obj[:3, :3] - true[:3, :3]).T + solved.cam_T_obj[:3, 3] - true[:3, 3]
            ).norm(dim=1)
            assert float(error.max()) < 1e-3


def test_a_sample_is_a_function_of_its_generator(maker):
    first, second = (maker.gaze(np.random.default_rng([4, 2])) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    other = maker.gaze(np.random.default_rng([4, 3]))
    assert not np.array_equal(first["image"], other["image"])


def test_visible_is_within_amodal(maker):
    for i in range(8):
        sample = maker.gaze(np.random.default_rng([5, i]))
        assert (sample["visible"] <= sample["amodal"] + 0.26).all()  # amodal is drawn at half the resolution
        assert (sample["valid"] <= (sample["visible"] > 0)).all()


def test_symmetric_objects_have_one_target_for_equal_pictures(parts):
    bar = parts.objects[1]
    generator = torch.Generator().manual_seed(0)
    from glimpose.geometry.se3 import make_transform, random_rotations

    R = random_rotations(50, generator).double()
    cam_T_obj = make_transform(R, torch.tensor([0.0, 0.0, 0.5], dtype=torch.float64).expand(50, 3))
    turned = cam_T_obj @ bar.symmetries[1]
    torch.testing.assert_close(bar.canonical(cam_T_obj), bar.canonical(turned))


def test_glance_centres_lie_where_objects_project(maker):
    sample = maker.glance(np.random.default_rng(9))
    seen = sample["valid"] > 0
    assert set(np.unique(sample["class_map"])) <= {0, 1, 2}
    assert (sample["class_map"][seen] > 0).all()
    # A centre is never farther from its cells than a diameter appears at the smallest distance.
    rows, columns = np.nonzero(seen)
    cells = np.stack([columns, rows]) * 4 + 1.5
    distance = np.linalg.norm(sample["center_px"][:, seen] - cells, axis=0)
    assert distance.max() < 0.14 * 287 / 0.3


def test_decoys_show_nothing_of_what_is_asked_for(parts):
    """Whatever stands there: the picture isn't empty, but its masks are."""
    sampler = SceneSampler(parts.meshes, parts.synthesis)
    photographer = Photographer(make_renderer(), Backgrounds())
    maker = SampleMaker(parts.objects, sampler, photographer, parts.network, SampleConfig(decoy_probability=1))
    for seed in range(4):
        sample = maker.gaze(np.random.default_rng(seed))
        assert sample["image"].std() > 5
        for name in ("visible", "amodal", "valid"):
            assert not sample[name].any()
        assert all(np.isfinite(value).all() for value in sample.values())


def test_what_a_photograph_s_border_cuts_off_isn_t_seen(parts):
    """The picture repeats its last line there, and only the amodal mask goes on."""
    sampler = SceneSampler(parts.meshes, replace(parts.synthesis, patch_probability=0.0))
    photographer = Photographer(make_renderer(), Backgrounds())
    config = SampleConfig(decoy_probability=0, cut_off_probability=1, min_visible_fraction=0.3)
    maker = SampleMaker(parts.objects, sampler, photographer, parts.network, config)
    beyond = 0
    for seed in range(12):
        sample = maker.gaze(np.random.default_rng(seed))
        sides = [np.rot90(sample["image"], turns, (1, 2)) for turns in range(4)]
        repeated = [int((rows == rows[:, -1:]).all((0, 2))[::-1].cumprod().sum()) for rows in sides]
        turns, beyond_px = int(np.argmax(repeated)), max(repeated) - 1
        assert beyond_px > 1
        gone = np.s_[len(sample["visible"]) - beyond_px // 4 :]
        assert not np.rot90(sample["visible"], turns)[gone].any()
        beyond += int((np.rot90(sample["amodal"], turns)[gone] > 0.5).sum())
        assert sample["visible"].sum() >= 0.29 * sample["amodal"].sum()
    assert beyond > 20


def test_samples_are_used_again_and_batches_stay_functions_of_their_number(parts):
    def batches() -> SynthesisBatches:
        batch = BatchConfig(windows=0, crops=4, uses=2, use_again_after=3)
        return SynthesisBatches(
            parts.objects,
            parts.meshes,
            parts.synthesis,
            parts.network,
            SampleConfig(),
            batch,
            CurriculumConfig(steps=0),
        )

    in_order, started_late = batches(), batches()
    images = [in_order[i]["gaze"]["image"] for i in range(5)]
    assert all(len(image) == 4 for image in images)
    assert torch.equal(images[3][:2], images[0][2:])
    assert torch.equal(images[4][:2], images[1][2:])
    assert not torch.equal(images[0][:2], images[0][2:])
    assert torch.equal(started_late[4]["gaze"]["image"], images[4])
    with pytest.raises(ValueError, match="uses = 3"):
        BatchConfig(windows=0, crops=4, uses=3)
