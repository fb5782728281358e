import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from glimpose.nets.attention import CrossModalAttention
from glimpose.nets.glance_gaze import GlanceGaze, GlanceGazeConfig
from glimpose.nets.mtgoe import Mtgoe, MtgoeConfig

HEADS = {"depth": {"log_depth": 1}, "segmentation": {"mask": 2}, "field": {"center_offset": 2, "sure": 1}}
TINY = MtgoeConfig(
    width=0.25, neck_channels=16, branch_channels=16, depth_channels=8, segmentation_channels=8, field_channels=8
)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (50, 70), (33, 32)])
def test_any_size_gives_maps_of_a_quarter_rounded_up(height, width):
    maps = Mtgoe(TINY, HEADS).eval()(torch.rand(2, 3, height, width))
    shapes = {name: tuple(value.shape) for name, value in maps.items()}
    rows, columns = -(-height // 4), -(-width // 4)
    assert shapes == {
        "log_depth": (2, 1, rows, columns),
        "mask": (2, 2, rows, columns),
        "center_offset": (2, 2, rows, columns),
        "sure": (2, 1, rows, columns),
    }


def test_images_of_a_batch_do_not_see_each_other():
    network = Mtgoe(TINY, HEADS, num_objects=3).eval()
    images, index = torch.rand(3, 3, 64, 64), torch.tensor([2, 0, 1])
    together = network(images, index)
    for i in range(3):
        alone = network(images[i : i + 1], index[i : i + 1])
        for name, value in alone.items():
            torch.testing.assert_close(value[0], together[name][i], rtol=1e-4, atol=1e-5)


def test_the_object_asked_for_changes_every_map():
    network = Mtgoe(TINY, HEADS, num_objects=2).eval()
    image = torch.rand(1, 3, 64, 64)
    first, second = network(image, torch.tensor([0])), network(image, torch.tensor([1]))
    assert all(not torch.allclose(first[name], second[name]) for name in first)


def test_object_index_is_demanded_where_it_belongs_and_only_there():
    image, index = torch.rand(1, 3, 64, 64), torch.tensor([0])
    with pytest.raises(ValueError, match="object_index"):
        Mtgoe(TINY, HEADS, num_objects=2)(image)
    with pytest.raises(ValueError, match="object_index"):
        Mtgoe(TINY, HEADS)(image, index)


@pytest.mark.parametrize("task", ["depth", "segmentation", "field"])
def test_every_output_is_fed_by_every_decoder(task):
    network = Mtgoe(TINY, HEADS)
    output = next(iter(HEADS[task]))
    network(torch.rand(2, 3, 64, 64))[output].square().sum().backward()
    for name, decoder in network.fine.items():
        assert decoder.filter[0].weight.grad.abs().max() > 0, f"{name} does not reach {output}"


def test_attention_memory_is_linear_in_pixels():
    attention = CrossModalAttention(16)

    def saved_bytes(side: int) -> int:
        saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel() * tensor.element_size()
            return tensor

        x = torch.rand(1, 16, side, side, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            attention(x, x)
        return saved

    assert saved_bytes(64) < 4.1 * saved_bytes(32)


def test_attention_looks_only_at_its_own_pixel():
    attention = CrossModalAttention(8).eval()
    target, source = torch.rand(1, 8, 5, 5), torch.rand(1, 8, 5, 5)
    changed = source.clone()
    changed[..., 2, 3] += 1
    is_changed = (attention(target, source) != attention(target, changed)).any(1)[0]
    assert is_changed.nonzero().tolist() == [[2, 3]]


def test_a_photograph_with_eight_objects_costs_less_than_8_gflop():
    model = GlanceGaze(GlanceGazeConfig(), num_objects=8).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.glance_maps(torch.rand(1, 3, 240, 320))
        model.gaze_maps(torch.rand(8, 3, 160, 160), torch.arange(8))  # the shipped weights' largest crops
    assert counter.get_total_flops() < 8e9


def test_offsets_and_their_deviations_are_in_pixels():
    config = GlanceGazeConfig(glance=TINY, gaze=TINY, num_keypoints=4)
    model = GlanceGaze(config, num_objects=2).eval()
    image, index = torch.rand(1, 3, 64, 64), torch.tensor([1])
    raw, scaled = model.gaze(image, index), model.gaze_maps(image, index)
    torch.testing.assert_close(scaled["keypoint_offset"], raw["keypoint_offset"] * 32)
    ratio = (scaled["keypoint_log_std"] - raw["keypoint_log_std"]).exp()
    torch.testing.assert_close(ratio, torch.full_like(ratio, 8.0))
    torch.testing.assert_close(scaled["xyz"], raw["xyz"])
