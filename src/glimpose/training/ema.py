"""Exponential moving average of a network's weights: the teacher, and what is evaluated and shipped."""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn


class Ema:
    """Average of a model's parameters and buffers over its training steps; integer buffers are copied.

    The decay warms up as min(decay, (1 + n) / (10 + n)) after n updates, so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay: got {decay}, expected 0 <= decay < 1")
        self.decay = decay
        self.num_updates = 0
        self.model = deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards `model`'s present weights."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averages, currents = [], []
        for average, current in zip(_tensors(self.model), _tensors(model), strict=True):
            if average.is_floating_point():
                averages.append(average)
                currents.append(current)
            else:
                average.copy_(current)
        torch._foreach_lerp_(averages, currents, 1 - decay)
        self.num_updates += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Give the averaged weights under the model's own names."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor], num_updates: int) -> None:
        """Continue from `state` as it was after that many updates."""
        self.model.load_state_dict(state)
        self.num_updates = num_updates


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
