"""How the task decoders talk to each other: cross-modal attention and multi-modal distillation."""

import torch
from torch import Tensor, nn


class MultiEmbedding(nn.Module):
    """Project each pixel into several embeddings ("heads"): b×c×h×w → b×heads×dim×h×w."""

    def __init__(self, channels: int, heads: int, dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Conv2d(channels, heads * dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Embed."""
        return self.project(x).unflatten(1, (self.heads, -1))


class CrossModalAttention(nn.Module):
    """One modality queries another at the same pixel, attending across embeddings.

    Memory is linear in the number of pixels: scores are heads×heads per pixel, never pixels×pixels
    (the form of FSRE-Depth, Jung et al., ICCV 2021).
    """

    def __init__(self, channels: int, heads: int = 4, dim: int = 16) -> None:
        super().__init__()
        self.query = MultiEmbedding(channels, heads, dim)
        self.key = MultiEmbedding(channels, heads, dim)
        self.value = MultiEmbedding(channels, heads, dim)
        self.out = nn.Conv2d(heads * dim, channels, 1)
        self.scale = dim**-0.5

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """Refine target, b×c×h×w, by what source says at the same pixels."""
        query, key, value = self.query(target), self.key(source), self.value(source)
        scores = (query.unsqueeze(2) * key.unsqueeze(1)).sum(3) * self.scale  # b×heads×heads×h×w
        weights = scores.float().softmax(dim=2).to(value.dtype)
        attended = (weights.unsqueeze(3) * value.unsqueeze(1)).sum(2)  # b×heads×dim×h×w
        return target + self.out(attended.flatten(1, 2))


class Distillation(nn.Module):
    """Multi-modal distillation: each task takes from the others what its own gate lets through (PAD-Net, CVPR 2018)."""

    def __init__(self, channels: dict[str, int]) -> None:
        super().__init__()
        total = sum(channels.values())
        self.message = nn.ModuleDict({task: nn.Conv2d(total - c, c, 1) for task, c in channels.items()})
        self.gate = nn.ModuleDict({task: nn.Conv2d(c, c, 1) for task, c in channels.items()})

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Exchange messages between the tasks' features, all of one resolution."""
        distilled = {}
        for task, own in features.items():
            others = torch.cat([feature for name, feature in features.items() if name != task], dim=1)
            distilled[task] = own + torch.sigmoid(self.gate[task](own)) * self.message[task](others)
        return distilled
