import pytest
import torch
from safetensors.torch import save_file

from glimpose.nets.mobilenet import DepthwiseConv, MobileNetV2


def test_keys_and_sizes_are_torchvisions():
    state = MobileNetV2().state_dict()
    expected = {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.0.1.running_var": (32,),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.2.conv.0.0.weight": (96, 16, 1, 1),
        "features.2.conv.1.0.weight": (96, 1, 3, 3),
        "features.2.conv.3.running_mean": (24,),
        "features.17.conv.2.weight": (320, 960, 1, 1),
    }
    assert {key: tuple(state[key].shape) for key in expected} == expected
    # torchvision's 3,504,872 parameters without features.18 (412,160) and the classifier (1,281,000).
    assert sum(p.numel() for p in MobileNetV2().parameters()) == 1_811_712


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_imagenet_file_loads_and_its_classifier_is_ignored(tmp_path, suffix):
    source = MobileNetV2()
    state = source.state_dict() | {"classifier.1.weight": torch.zeros(3), "features.18.0.weight": torch.zeros(3)}
    path = tmp_path / f"mobilenet{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = MobileNetV2()
    loaded.load_imagenet(path)
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_file_of_another_width_is_refused_by_name(tmp_path):
    path = tmp_path / "half.pth"
    torch.save(MobileNetV2(0.5).state_dict(), path)
    with pytest.raises(ValueError, match=r"half\.pth.*width"):
        MobileNetV2().load_imagenet(path)


@pytest.mark.parametrize("size", [8, 9])
def test_stride_by_pooling_is_the_strided_convolution(size):
    conv = DepthwiseConv(6, stride=2).double()
    x = torch.randn(2, 6, size, size, dtype=torch.float64)
    sliced, strided = conv.train()(x), conv.eval()(x)
    torch.testing.assert_close(sliced, strided)


def test_features_have_strides_2_to_32():
    network = MobileNetV2(0.35)
    features = network(torch.zeros(2, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [
        (2, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(network.channels, (2, 4, 8, 16, 32), strict=True)
    ]
