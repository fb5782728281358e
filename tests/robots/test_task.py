from dataclasses import replace

import numpy as np
import pytest
import torch

from glimpose.data.led_h5 import open_recording
from glimpose.nets.led_fcn import LedFcnConfig
from glimpose.robots.augment import AugmentConfig
from glimpose.robots.baselines import UpperBound
from glimpose.robots.estimator import RobotEstimator, RobotModel
from glimpose.robots.leds import Led, LedRobot
from glimpose.robots.pretexts import LatentPose, WeightedBce
from glimpose.robots.task import NEIGHBOURS, BatchConfig, LedBatches, RobotsTask

NETWORK = LedFcnConfig(input_scale=1.0, num_scales=2, channels=(8, 8, 8, 12, 12, 12, 12))
UNCHANGED = {"blackout_prob": 0.0, "clutter": (0, 0), "sensor_prob": 0.0}
STILL = AugmentConfig(flip_prob=0.0, rotation_deg=0.0, shift=0.0, zoom=(1.0, 1.0), **UNCHANGED)


def task_of(room, pretext=None, augmentation=STILL, **batch) -> RobotsTask:
    model = RobotModel(room.robot, NETWORK, pretext or LatentPose())
    recording = open_recording(room.recording, led_names=room.robot.led_names)
    config = BatchConfig(**{"frames": 16, "views": 4, "validation_frames": 12, **batch})
    return RobotsTask(model, recording, None, augmentation, config, seed=0, num_workers=0)


def test_a_batch_is_a_function_of_its_index(room):
    first, again = (task_of(room, augmentation=AugmentConfig()).batches for _ in range(2))
    for name, value in first[3].items():
        torch.testing.assert_close(value, again[3][name], equal_nan=True)
    assert (first[3]["frame"] != first[4]["frame"]).any()


def test_every_frame_leads_one_couple_in_an_epoch(room):
    batches = task_of(room, frames=18, views=0).batches
    num_frames = len(batches.frames)
    assert num_frames % 9 == 0
    leaders = torch.cat([batches[i]["frame"][::2] for i in range(num_frames // 9)])
    assert sorted(leaders.tolist()) == list(range(num_frames))


def test_couples_are_neighbours_in_time_with_other_leds(room):
    batch = task_of(room, views=0).batches[0]
    first, second = batch["frame"][::2], batch["frame"][1::2]
    assert ((first - second).abs() <= NEIGHBOURS).all()
    assert (first != second).all()
    differing = (batch["led_on"][::2] != batch["led_on"][1::2]).float().mean()
    assert differing > 0.8


def test_couples_are_augmented_alike(room):
    """Apart from what moves and what shines, the two pictures of a couple are one: so are unchanging frames."""
    task = task_of(room, augmentation=AugmentConfig(), views=0)
    pictures = task.batches
    pictures.recording = Frozen(pictures.recording)
    batch = pictures[0]
    assert torch.equal(batch["image"][::2], batch["image"][1::2])
    assert not torch.equal(batch["image"][0], batch["image"][2])


@pytest.mark.parametrize("num_processes", [1, 2])
def test_training_starts_with_what_glows_in_plain_pictures(room, num_processes):
    whole = AugmentConfig(clutter=(20, 20), sensor_prob=0.0, blackout_prob=0.0)
    start, later = (task_of(room, augmentation=whole, views=0, start_steps=steps) for steps in (4, 0))
    start.loader(0, 8, 0, num_processes)
    batches = [start.batches[i * num_processes] for i in range(6)]
    assert [float(batch.get("started", 1)) for batch in batches] == [0, 0.25, 0.5, 0.75, 1, 1]
    same = task_of(room, augmentation=replace(whole, clutter=(0, 0), tone_prob=0.0), views=0).batches[0]
    assert torch.equal(batches[0]["image"], same["image"])
    assert torch.equal(batches[4]["image"], later.batches[4 * num_processes]["image"])
    assert "started" not in later.batches[0]


class Frozen:
    """A recording that shows its first picture all the time."""

    def __init__(self, recording):
        self.recording = recording

    def __getitem__(self, index):
        return replace(self.recording[index], image=self.recording[0].image)

    def __getattr__(self, name):
        return getattr(self.recording, name)


def test_second_views_come_once_training_has_started(room):
    batches = task_of(room, views=6, start_steps=2).batches
    assert [len(batches[i]["view_A"]) for i in range(4)] == [0, 0, 6, 6]


def test_second_views_show_their_frame_where_the_matrix_says(room):
    batch = task_of(room, augmentation=AugmentConfig(**UNCHANGED), views=6).batches[2]
    assert len(batch["image"]) == 16 + 6
    assert torch.equal(batch["frame"][16:], batch["frame"][:6])
    assert torch.equal(batch["led_on"][16:], batch["led_on"][:6])
    for i, view_A in enumerate(batch["view_A"]):
        uv = torch.cat([batch["uv"][i, 0], torch.ones(1)])
        torch.testing.assert_close((view_A @ uv)[:2], batch["uv"][16 + i, 0], atol=1e-3, rtol=1e-4)
        zoom = torch.linalg.det(view_A[:2, :2]).abs().sqrt()
        expected = batch["log_range"][i, 0] - zoom.log()
        torch.testing.assert_close(batch["log_range"][16 + i, 0], expected, equal_nan=True)


def test_twins_show_the_same_frames_at_the_same_places_and_tell_no_leds(room):
    batch = task_of(room, augmentation=AugmentConfig(**UNCHANGED), views=2, twins=4).batches[2]
    assert batch["twin"].tolist() == [[0, 16], [1, 17], [2, 18], [3, 19]]
    lit, dark = batch["twin"].T
    assert torch.equal(batch["frame"][dark], batch["frame"][lit])
    torch.testing.assert_close(batch["uv"][dark], batch["uv"][lit], equal_nan=True)
    assert (batch["is_there"][dark] == 0).all()
    assert batch["is_there"][lit].sum() > 0
    assert torch.equal(batch["frame"][20:], batch["frame"][:2])  # second views come after them
    assert len(batch["view_A"]) == 2
    lit_vivid, dark_vivid = (np.ptp(batch["image"][rows].numpy(), 1).max((1, 2)) for rows in (lit, dark))
    assert (dark_vivid < 0.6 * lit_vivid).any()
    assert (dark_vivid <= lit_vivid + 10).all()


def test_there_are_no_twins_before_training_has_started(room):
    batches = task_of(room, twins=4, start_steps=2).batches
    assert [len(batches[i]["twin"]) for i in range(4)] == [0, 0, 4, 4]


def test_labels_lie_where_the_robot_is_drawn(room):
    task = task_of(room)
    batch = task.batches.collate(list(range(20)))
    for i in torch.nonzero(batch["is_visible"][:, 0] == 1).flatten().tolist():
        u, v = batch["uv"][i, 0].round().int().tolist()
        body = batch["image"][i, :, v - 1 : v + 2, u - 1 : u + 2].float().mean()
        assert batch["image"][i].float().mean() - body > 20 or body > 100  # dark, or one of its lights


def test_training_and_prediction_show_the_network_the_same_picture(room):
    task = task_of(room)
    batch = task.batches.collate([3])
    model = RobotModel(room.robot, NETWORK, LatentPose())
    shown: list[torch.Tensor] = []
    network = model.build()
    network.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    image = task.batches.recording.image(3)
    RobotEstimator(network, model, None).sight(image)
    torch.testing.assert_close(shown[0][0], batch["image"][0].float() / 255)
    assert not np.array_equal(batch["image"][0].permute(1, 2, 0).numpy(), image)  # dim and bright places look alike


def test_held_out_frames_are_not_trained_on(room):
    task = task_of(room)
    assert not set(task.batches.frames.tolist()) & set(task.held_out_frames)
    assert max(task.batches.frames) < min(task.held_out_frames)
    assert len(task.held_out_frames) <= 12


def test_missing_targets_are_masked(crowd, room):
    model = RobotModel(room.robot, NETWORK, LatentPose())
    recording = open_recording(crowd, led_names=room.robot.led_names)
    batches = LedBatches(recording, range(40), model, STILL, BatchConfig(4, views=0), seed=0)
    assert batches[0]["led_on"].shape == (4, 2, 4)
    batches.max_targets = 3
    assert batches[0]["is_there"].tolist() == [[1, 1, 0]] * 4
    assert batches[0]["uv"][:, 2].isnan().all()


@pytest.mark.parametrize("pretext", [LatentPose(), WeightedBce(), UpperBound()])
def test_validation_gives_a_score_without_labels_and_errors_with_them(room, pretext):
    task = task_of(room, pretext)
    measured = task.validate(task.model.eval())
    terms = [value for name, value in measured.items() if name not in ("score", "uv_px", "psi_deg")]
    assert measured["score"] == pytest.approx(-sum(terms))
    assert measured["uv_px"] >= 0
    assert 0 <= measured["psi_deg"] <= 180


def test_seeds_give_different_networks_and_the_same_seed_the_same(room):
    recording = open_recording(room.recording, led_names=room.robot.led_names)
    model = RobotModel(room.robot, NETWORK, LatentPose())
    first, same, other = (
        RobotsTask(model, recording, None, STILL, BatchConfig(16, views=4), seed=seed, num_workers=0).model.head.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_robots_with_other_leds_are_refused(room):
    other = LedRobot("other", (Led("front", 0.0), Led("rear", 180.0)), (0.0, 0.0, 0.1))
    recording = open_recording(room.recording)
    with pytest.raises(ValueError, match="rear"):
        LedBatches(recording, range(40), RobotModel(other, NETWORK, LatentPose()), STILL, BatchConfig(), seed=0)


def learn(task, batch, num_steps: int, learning_rate: float = 1e-2) -> list[float]:
    """Learn one batch: what can't, can't learn at all."""
    model = task.model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    history = []
    for _ in range(num_steps):
        loss = sum(task.losses(model, batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    return history


def test_pose_labels_teach_a_network_to_find_the_robot(room):
    task = task_of(room, UpperBound(), frames=8)
    batch = task.batches[0]
    history = learn(task, batch, num_steps=100, learning_rate=3e-3)
    assert history[-1] < history[0] - 3
    task._validation = [batch]
    assert task.validate(task.model)["uv_px"] < 6  # of cells of 8


def test_the_latent_pose_learns_one_batch(room):
    task = task_of(room, LatentPose(zoom_weight=0.0), frames=8)
    batch = task.batches[0]
    learn(task, {**batch, "started": torch.tensor(0.0)}, num_steps=50)
    history = learn(task, batch, num_steps=50)
    assert history[-1] < 0.82 * 4 * np.log(2)


def test_batch_sizes_must_suit_the_recording(room):
    with pytest.raises(ValueError, match="even"):
        task_of(room, frames=7)
    with pytest.raises(ValueError, match="fewer than"):
        task_of(room, frames=400)
    with pytest.raises(ValueError, match="validation_share"):
        replace(BatchConfig(), validation_share=1.0)
