"""MTGOE: one encoder, three decoders that exchange what they know, and the named maps they predict.

image ─ MobileNetV2 ─┬─ depth ─────────┐ CMA ┐
                     ├─ segmentation ──┘     ├─ MMD ─ heads ─ maps at stride 4
                     └─ field ───────────────┘
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glimpose.nets.attention import CrossModalAttention, Distillation
from glimpose.nets.mobilenet import MobileNetV2

STRIDE = 4
TASKS = ("depth", "segmentation", "field")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class MtgoeConfig:
    """Size of an MTGOE network."""

    width: float = 1.0
    """Width multiplier of the encoder; torchvision's ImageNet file needs 1.0."""
    neck_channels: int = 96
    branch_channels: int = 64
    depth_channels: int = 24
    segmentation_channels: int = 32
    field_channels: int = 64


class Fuse(nn.Module):
    """Upsample a coarse map to its skip's resolution, add the two, and filter 3×3."""

    def __init__(self, coarse: int, skip: int, out: int) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(coarse, out, 1, bias=False)
        self.skip = nn.Conv2d(skip, out, 1, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.filter = nn.Sequential(nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """Fuse features of stride 2s with those of stride s."""
        # Projecting before upsampling gives the same sum for a quarter of the work.
        summed = F.interpolate(self.coarse(coarse), scale_factor=2.0, mode="nearest") + self.skip(skip)
        return self.filter(F.relu(self.norm(summed)))


class ObjectFilm(nn.Module):
    """Tell features which object is meant: a learned scale and shift per object and channel (FiLM, AAAI 2018)."""

    def __init__(self, num_objects: int, channels: int) -> None:
        super().__init__()
        self.scale = nn.Embedding(num_objects, channels)
        self.shift = nn.Embedding(num_objects, channels)
        nn.init.normal_(self.scale.weight, 1.0, 0.3)
        nn.init.normal_(self.shift.weight, 0.0, 0.3)

    def forward(self, x: Tensor, object_index: Tensor) -> Tensor:
        """Modulate x, b×c×h×w, by the objects of index object_index, b."""
        scale, shift = self.scale(object_index), self.shift(object_index)
        return x * scale[:, :, None, None].to(x.dtype) + shift[:, :, None, None].to(x.dtype)


class BankHead(nn.Module):
    """1×1 convolution with a bank of weights, one set per object, so that no two objects share the last layer."""

    def __init__(self, channels: int, out: int, num_objects: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_objects, out, channels) * channels**-0.5 * 0.3)
        self.bias = nn.Parameter(torch.zeros(num_objects, out))

    def forward(self, x: Tensor, object_index: Tensor) -> Tensor:
        """Map b×c×h×w to b×out×h×w, each sample by its own object's weights."""
        weight = self.weight[object_index].to(x.dtype)
        bias = self.bias[object_index].to(x.dtype)
        return torch.baddbmm(bias.unsqueeze(2), weight, x.flatten(2)).unflatten(2, x.shape[2:])


class Mtgoe(nn.Module):
    """Multi-task network: depth, segmentation and vector fields, each with as many named maps as asked for.

    ``heads`` gives, for each of the three tasks, the names and channels of its maps. With ``num_objects`` > 0 the
    network is told which object to look for (the gaze); with 0 it isn't (the glance).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: MtgoeConfig,
        heads: Mapping[str, Mapping[str, int]],
        num_objects: int = 0,
    ) -> None:
        super().__init__()
        if set(heads) != set(TASKS):
            raise ValueError(f"heads: got {sorted(heads)}, expected exactly {sorted(TASKS)}")
        self.heads = {task: dict(heads[task]) for task in TASKS}
        self.num_objects = num_objects
        self.encoder = MobileNetV2(config.width)
        _, c4, c8, c16, c32 = self.encoder.channels
        branch = config.branch_channels
        self.neck = Fuse(c32, c16, config.neck_channels)
        self.film = ObjectFilm(num_objects, config.neck_channels) if num_objects else None
        self.branches = nn.ModuleDict({task: Fuse(config.neck_channels, c8, branch) for task in TASKS})
        self.depth_asks_segmentation = CrossModalAttention(branch)
        self.segmentation_asks_depth = CrossModalAttention(branch)
        channels = {
            "depth": config.depth_channels,
            "segmentation": config.segmentation_channels,
            "field": config.field_channels,
        }
        self.fine = nn.ModuleDict({task: Fuse(branch, c4, channels[task]) for task in TASKS})
        self.distill = Distillation(channels)
        self.predict = nn.ModuleDict(
            {task: BankHead(channels[task], sum(self.heads[task].values()), max(num_objects, 1)) for task in TASKS}
        )
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(-1, 1, 1), persistent=False)

    def forward(self, image: Tensor, object_index: Tensor | None = None) -> dict[str, Tensor]:
        """Predict maps at stride 4 from an RGB image in 0..1, b×3×h×w; sides not divisible by 32 are padded.

        ``object_index`` (b, int64) says which object is meant; only networks built with ``num_objects`` take it.
        """
        if (object_index is None) != (self.film is None):
            raise ValueError("object_index goes with a network built for num_objects > 0, and only with that")
        height, width = image.shape[-2:]
        x = (image - self.mean) / self.std
        x = F.pad(x, (0, -width % 32, 0, -height % 32))
        _, f4, f8, f16, f32 = self.encoder(x)

        neck = self.neck(f32, f16)
        if self.film is not None:
            neck = self.film(neck, object_index)
        else:
            object_index = torch.zeros(len(image), dtype=torch.long, device=image.device)
        coarse = {task: branch(neck, f8) for task, branch in self.branches.items()}
        depth, segmentation = coarse["depth"], coarse["segmentation"]
        coarse["depth"] = self.depth_asks_segmentation(depth, segmentation)
        coarse["segmentation"] = self.segmentation_asks_depth(segmentation, depth)
        fine = self.distill({task: fuse(coarse[task], f4) for task, fuse in self.fine.items()})

        maps: dict[str, Tensor] = {}
        rows, columns = -(-height // STRIDE), -(-width // STRIDE)
        for task, head in self.predict.items():
            stacked = head(fine[task], object_index)[..., :rows, :columns].float()
            maps.update(zip(self.heads[task], stacked.split(list(self.heads[task].values()), dim=1), strict=True))
        return maps
