"""The refiner's network: from a photograph and a drawing of the object, where each drawn point is in the photograph."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from glimpose.nets.mtgoe import Mtgoe, MtgoeConfig

DRAWING_CHANNELS = 6
"""Albedo and normal."""
FLOW_UNIT_PX = 8.0
"""Flow is predicted in this unit, so that outputs are about 1 when training starts."""


@dataclass(frozen=True)
class FlowRefinerConfig:
    """Architecture of the refiner, and what its crops look like; stored in every checkpoint."""

    mtgoe: MtgoeConfig = field(default_factory=MtgoeConfig)
    crop_px: int = 96
    crop_pad: float = 1.4
    """Side of the crop in apparent object diameters."""


class FlowRefiner(nn.Module):
    """An MTGOE network that compares. It is not told which object it sees: the drawing says.

    Maps have stride 4. ``flow``, ``flow_log_std``: from a drawn point to where it is in the photograph, pixels.
    ``log_depth_ratio``: of the object's true distance to the drawn one. ``seen_logits``: whether the drawn point shows
    in the photograph. ``visible_logits``: the object's mask in the photograph.
    """

    def __init__(self, config: FlowRefinerConfig) -> None:
        super().__init__()
        self.config = config
        self.mtgoe = Mtgoe(
            config.mtgoe,
            {
                "depth": {"log_depth_ratio": 1},
                "segmentation": {"visible_logits": 1, "seen_logits": 1},
                "field": {"flow": 2, "flow_log_std": 1},
            },
            in_channels=3 + DRAWING_CHANNELS,
        )

    def forward(self, photograph: Tensor, drawing: Tensor) -> dict[str, Tensor]:
        """Compare crops, b×3×h×w in 0..1, with drawings, b×6×h×w."""
        maps = self.mtgoe(torch.cat([photograph, drawing], 1))
        maps["flow"] = maps["flow"] * FLOW_UNIT_PX
        maps["flow_log_std"] = maps["flow_log_std"] + math.log(FLOW_UNIT_PX / 4)
        return maps

    def start_from(self, encoder: dict[str, Tensor]) -> None:
        """Take over another MTGOE's trained encoder; what the first layer makes of the drawing stays as it is."""
        own = self.mtgoe.encoder.state_dict()
        for name, value in encoder.items():
            if own[name].shape == value.shape:
                own[name] = value
            else:
                own[name] = torch.cat([value, own[name][:, value.shape[1] :]], 1)
        self.mtgoe.encoder.load_state_dict(own)
