"""MobileNetV2 encoder (Sandler et al., CVPR 2018), with torchvision's key names so that its ImageNet file fits."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

# (expansion, channels, repeats, stride) of each stage: table 2 of the paper.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
# The last block at each stride 2, 4, 8, 16, 32: what decoders take as skips.
TAPS = (1, 3, 6, 13, 17)
UNUSED_PREFIXES = ("features.18.", "classifier.")


class DepthwiseConv(nn.Conv2d):
    """3×3 depthwise convolution."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, channels, 3, stride, 1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; the stride may be taken by pooling, which gives the same numbers."""
        # oneDNN's backward of a strided depthwise convolution is 1.6 to 6 times slower than that of the dense one and
        # a pooling of single pixels (bf16, channels last). Slicing would do, but its gradient loses the memory format.
        if self.stride == (2, 2) and self.training and x.device.type == "cpu":
            return F.avg_pool2d(F.conv2d(x, self.weight, None, 1, 1, 1, self.groups), 1, 2)
        return super().forward(x)


def conv_bn_relu6(conv: nn.Conv2d) -> nn.Sequential:
    """Follow a convolution by batch norm and ReLU6."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project; with a shortcut where shapes allow."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        expand = [conv_bn_relu6(nn.Conv2d(channels_in, hidden, 1, bias=False))] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            conv_bn_relu6(DepthwiseConv(hidden, stride)),
            nn.Conv2d(hidden, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.has_shortcut = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """Map features to features."""
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """Encoder whose forward returns the features at strides 2, 4, 8, 16 and 32."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            """Round to a multiple of 8, never down by more than 10 % (the paper's rule)."""
            rounded = max(8, int(channels * width + 4) // 8 * 8)
            return rounded + 8 if rounded < 0.9 * channels * width else rounded

        channels = scaled(32)
        blocks: list[nn.Module] = [conv_bn_relu6(nn.Conv2d(3, channels, 3, 2, 1, bias=False))]
        self.channels: list[int] = []
        for expansion, stage_channels, repeats, stage_stride in STAGES:
            for repeat in range(repeats):
                stride = stage_stride if repeat == 0 else 1
                blocks.append(InvertedResidual(channels, scaled(stage_channels), stride, expansion))
                channels = scaled(stage_channels)
                if len(blocks) - 1 in TAPS:
                    self.channels.append(channels)
        self.features = nn.Sequential(*blocks)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Encode a normalised image, b×3×h×w with h and w divisible by 32."""
        taps = []
        for index, block in enumerate(self.features):
            image = block(image)
            if index in TAPS:
                taps.append(image)
        return taps

    def load_imagenet(self, path: Path) -> None:
        """Load torchvision's MobileNetV2 file (.pth read without unpickling code, or .safetensors)."""
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = {key: value for key, value in state.items() if not key.startswith(UNUSED_PREFIXES)}
        own = self.state_dict()
        wrong = [key for key in own.keys() | state.keys() if key not in own or key not in state]
        wrong += [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
        if wrong:
            raise ValueError(
                f"{path}: not a MobileNetV2 of this width: {len(wrong)} tensors differ, first {sorted(wrong)[0]}; "
                "give torchvision's mobilenet_v2 file and width=1.0"
            )
        self.load_state_dict(state)
