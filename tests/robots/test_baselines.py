import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from glimpose.cli import main
from glimpose.config import load
from glimpose.data.bop import read_camera
from glimpose.data.led_h5 import open_recording
from glimpose.data.robot_poses import read_robot_poses
from glimpose.nets.led_fcn import LedFcnConfig, pyramid_grid
from glimpose.nets.regressors import Autoencoder, FrozenEncoderHead, as_maps, load_clip
from glimpose.objects.photographs import find_photographs
from glimpose.objects.train import ObjectsConfig, load_objects
from glimpose.robots.baselines import (
    AutoencoderPretext,
    ClipHead,
    Ednn,
    LedP,
    UpperBound,
    is_labelled,
    labelled_pose,
    place_error,
    soft_disc,
)
from glimpose.robots.estimator import DecodeConfig, find_robots, image_maps
from glimpose.robots.labels import is_seen
from glimpose.robots.pretexts import LatentPose, WeightedBce, latent_pose
from glimpose.robots.train import load_experiment
from glimpose.training.checkpoint import load_checkpoint
from glimpose.training.loop import TrainingConfig, _State

CONFIGS = Path(__file__).parents[2] / "configs" / "robots"
EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = LedFcnConfig(num_scales=2, channels=(8, 8, 8, 8, 8, 8, 8))
GRID = pyramid_grid(48, 64, SMALL)


def batch_of(num: int = 2, targets: int = 1, **changes) -> dict[str, torch.Tensor]:
    batch = {
        "image": torch.rand(num, 3, 48, 64),
        "led_on": torch.randint(0, 2, (num, targets, 4), generator=torch.Generator().manual_seed(0)).float(),
        "is_there": torch.ones(num, targets),
        "uv": torch.tensor([30.0, 20.0]).expand(num, targets, 2),
        "bearing_rad": torch.full((num, targets), 0.5),
        "log_range": torch.full((num, targets), -4.0),
        "is_visible": torch.ones(num, targets),
        "frame": torch.arange(num),
        "view_A": torch.zeros(0, 3, 3),
        "twin": torch.zeros(0, 2, dtype=torch.long),
    }
    return batch | changes


PRETEXTS = [
    UpperBound(),
    LedP(labelled_share=1.0),
    Ednn(),
    AutoencoderPretext(),
    AutoencoderPretext(mode="place", labelled_share=1.0),
]


@pytest.mark.parametrize("pretext", PRETEXTS, ids=lambda pretext: f"{pretext.kind}-{getattr(pretext, 'mode', '')}")
def test_baselines_share_the_interface_and_their_maps_can_be_decoded(room, pretext):
    torch.manual_seed(0)
    network = pretext.build(SMALL, room.robot)
    batch = batch_of()
    maps = network(batch["image"])
    terms = pretext.terms(maps, batch)
    assert all(term.shape == (2,) for term in terms.values())
    sum(term.sum() for term in terms.values()).backward()
    robots = find_robots(image_maps({k: v.detach() for k, v in maps.items()}, 0), pretext.has_presence, DecodeConfig())
    assert np.isfinite(robots[0].uv_px).all()


@pytest.mark.parametrize(
    "pretext",
    [*PRETEXTS, LatentPose(), WeightedBce(), WeightedBce(zoom_weight=1.0)],
    ids=lambda pretext: f"{pretext.kind}-{getattr(pretext, 'mode', '')}",
)
def test_whatever_is_to_be_learned_has_a_gradient(room, pretext):
    """Several processes refuse to train what has none."""
    network = pretext.build(SMALL, room.robot)
    batch = batch_of()
    sum(term.sum() for term in pretext.terms(network(batch["image"]), batch).values()).backward()
    assert [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None] == []


def test_labels_lower_the_loss_of_maps_that_agree_with_them(room):
    network = UpperBound().build(SMALL, room.robot).eval()
    batch = batch_of(1)
    maps = {name: value.detach() for name, value in network(batch["image"]).items()}
    before = labelled_pose(maps, batch).item()
    near = (maps["uv"][0] - batch["uv"][0, 0]).norm(dim=-1) < maps["cell_px"]
    right = {
        **maps,
        "position": maps["position"] + 12 * near,
        "bearing": maps["bearing"] + 6 * torch.cos(torch.arange(16) * math.pi / 8 - 0.5),
        "log_range": torch.full_like(maps["log_range"], -4.0),
        "led": 8 * (batch["led_on"] - 0.5).expand_as(maps["led"]),
    }
    assert labelled_pose(right, batch).item() < before - 5
    for name in ("position", "bearing", "log_range", "led"):
        assert labelled_pose(right, batch) < labelled_pose({**right, name: maps[name]}, batch)


def test_upper_bound_begins_with_a_range_that_robots_have(room):
    """Not with one of e^0 metres per pixel: hundreds of metres, which it would take thousands of steps to leave."""
    network = UpperBound().build(SMALL, room.robot).eval()
    with torch.no_grad():
        maps = network(torch.rand(1, 3, 90, 160))
    depth_m = maps["log_range"].exp() * 200
    assert 0.5 < float(depth_m.min()) < float(depth_m.max()) < 8


def test_a_robot_out_of_view_teaches_only_that_there_is_none(room):
    network = UpperBound().build(SMALL, room.robot)
    unknown = {name: torch.full((1, 1), math.nan) for name in ("bearing_rad", "log_range")}
    batch = batch_of(1, is_visible=torch.zeros(1, 1), uv=torch.full((1, 1, 2), math.nan), **unknown)
    loss = labelled_pose(network(batch["image"]), batch)
    loss.backward()
    assert network.no_robot.grad < 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_several_labels_add_up(room):
    network = UpperBound().build(SMALL, room.robot).eval()
    batch = batch_of(1, targets=2)
    maps = network(batch["image"])
    single = [
        labelled_pose(
            maps,
            {
                **batch,
                **{
                    n: batch[n][:, t : t + 1]
                    for n in ("led_on", "is_there", "uv", "bearing_rad", "log_range", "is_visible")
                },
            },
        )
        for t in range(2)
    ]
    torch.testing.assert_close(labelled_pose(maps, batch), sum(single))
    # More observations can only be less likely than the LEDs alone, but for densities above one.
    assert latent_pose(maps, batch["led_on"], batch["is_there"]).isfinite()


def test_soft_discs_are_where_robots_are_seen():
    maps = {"uv": GRID.uv[None]}
    disc = soft_disc(maps, batch_of(1), 10.0)[0]
    distance = (GRID.uv - torch.tensor([30.0, 20.0])).norm(dim=1)
    assert disc[distance < 5].min() > 0.8
    assert disc[distance > 20].max() < 0.05
    assert soft_disc(maps, batch_of(1, is_visible=torch.zeros(1, 1)), 10.0).max() == 0


def test_labelled_frames_are_a_fixed_share():
    frames = {"frame": torch.arange(10_000)}
    for share in (0.0, 0.1, 0.3, 1.0):
        assert is_labelled(frames, share).mean() == pytest.approx(share, abs=0.01)
    few, many = is_labelled(frames, 0.1), is_labelled(frames, 0.3)
    assert (many >= few).all()


def test_unlabelled_frames_teach_led_p_no_position(room):
    pretext = LedP(labelled_share=0.0)
    maps = pretext.build(SMALL, room.robot)(batch_of()["image"])
    terms = pretext.terms(maps, batch_of())
    assert (terms["task"] == 0).all()
    assert (terms["pretext"] > 0).all()


def test_place_error_counts_the_nearest_robot_in_image_widths():
    maps = as_maps(torch.rand(2, 3, 48, 64), torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
    uv = torch.tensor([[[31.5, 23.5 + 6.4], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    batch = batch_of(2, 2, uv=uv, is_visible=torch.tensor([[1.0, 1.0], [0.0, math.nan]]))
    torch.testing.assert_close(place_error(maps, batch, 1.0), torch.tensor([0.01, 0.0]))


def test_the_encoder_of_the_second_mode_learns_a_hundred_times_slower():
    state = _State(Autoencoder(32, encoder_rate=0.01), TrainingConfig())
    factors = {id(p): group["factor"] for group in state.optimizer.param_groups for p in group["params"]}
    for name, parameter in state.model.named_parameters():
        assert factors[id(parameter)] == (0.01 if name.startswith("encoder") else 1.0), name


def test_an_encoder_that_is_not_trained_is_not_stored_either():
    encoder = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    model = FrozenEncoderHead(encoder, 12, 32)
    assert all(name.startswith("head.") for name in model.state_dict())
    model(torch.rand(2, 3, 48, 64))["uv"].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_clip_folder_that_is_none_is_named(tmp_path, room):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        ClipHead(folder=tmp_path).build(SMALL, room.robot)


def test_a_tiny_clip_gives_places(tmp_path, room):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=8,
    )
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    encoder, features, side_px = load_clip(tmp_path / "clip")
    assert (features, side_px) == (8, 32)
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, 8)
    pretext = ClipHead(folder=tmp_path / "clip")
    maps = pretext.build(SMALL, room.robot)(batch_of()["image"])
    assert pretext.terms(maps, batch_of())["place"].shape == (2,)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_experiment_can_be_read(path):
    if 'track = "robots"' in path.read_text():
        _, robot = load_experiment(path)
        assert len(robot.leds) == 6


def test_the_mean_predictor_says_the_means_of_what_was_seen(room, tmp_path):
    (tmp_path / "box.toml").write_text(room.robot_file.read_text())
    (tmp_path / "mean.toml").write_text((CONFIGS / "mean.toml").read_text())
    changes = [
        f"data.recording={room.recording}",
        "data.robot=box.toml",
        "training.precision=32-true",
        "batch.frames=8",
    ]
    assert main(["train", str(tmp_path / "mean.toml"), "--out", str(tmp_path / "run"), *changes]) == 0
    checkpoint = tmp_path / "run" / "best.safetensors"
    assert load_checkpoint(checkpoint).metadata["scale_m"] == 1.0
    assert main(["predict", str(checkpoint), str(room.recording), "--out", str(tmp_path / "poses.csv")]) == 0
    poses = read_robot_poses(tmp_path / "poses.csv")
    assert len({tuple(pose.values.items()) for pose in poses}) == 1
    recording = open_recording(room.recording)
    seen = [s for i in range(108) for s in recording.robots(i) if is_seen(s)]  # the last tenth is held out
    uv = np.mean([state.uv_px for state in seen], axis=0)
    np.testing.assert_allclose([poses[0].values["u_px"], poses[0].values["v_px"]], uv, atol=0.01)
    depth_m = np.mean([state.z_m for state in seen])
    assert poses[0].values["cam_z_m"] == pytest.approx(depth_m, rel=1e-3)
    argv = [
        "evaluate",
        str(tmp_path / "poses.csv"),
        "--recording",
        str(room.recording),
        "--robot",
        str(room.robot_file),
    ]
    assert main([*argv, "--out", str(tmp_path / "scores")]) == 0
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert summary["presence_auc"] == pytest.approx(0.5)


def test_a_robot_becomes_an_object_of_the_other_track(room, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["example", str(room.recording), "robomaster", str(tmp_path / "out")])
    runpy.run_path(str(EXAMPLES / "03_a_robot_as_an_object.py"), run_name="__main__")
    assert "120 photographs" in capsys.readouterr().out
    config = load(ObjectsConfig, CONFIGS / "cad-supervised.toml", [f"data.models={tmp_path / 'out' / 'models'}"])
    (model,), _ = load_objects(config.data, config.network.num_keypoints)
    assert 0.3 < model.diameter_m < 0.6  # about 0.32 m long, with a gun
    assert read_camera(tmp_path / "out" / "camera.json").width == 160
    assert len(find_photographs([tmp_path / "out" / "test"])) == 120
