"""Glance and gaze: one network sees the whole photograph and finds objects, another sees each of them close up."""

import math
from dataclasses import dataclass, field

from torch import Tensor, nn

from glimpose.nets.mtgoe import Mtgoe, MtgoeConfig


@dataclass(frozen=True)
class GlanceGazeConfig:
    """Architecture of the pair; stored in every checkpoint."""

    glance: MtgoeConfig = field(
        default_factory=lambda: MtgoeConfig(
            width=0.5,
            neck_channels=64,
            branch_channels=32,
            depth_channels=16,
            segmentation_channels=24,
            field_channels=24,
        )
    )
    gaze: MtgoeConfig = field(default_factory=MtgoeConfig)
    num_keypoints: int = 8
    glance_scale: float = 0.5
    """The glance sees the photograph resized by this factor."""
    crop_px: int = 128
    """Side of the gaze's square crop."""
    crop_pad: float = 1.4
    """Side of the crop in apparent object diameters."""


# Networks predict offsets in these units of pixels, so that their outputs are about 1 when training starts.
GLANCE_UNIT_PX = 16.0
GAZE_UNIT_PX = 32.0


def _in_pixels(maps: dict[str, Tensor], unit_px: float) -> dict[str, Tensor]:
    """Scale offsets and their log standard deviations from network units to pixels."""
    scaled = dict(maps)
    for name, value in maps.items():
        if name.endswith("_offset"):
            scaled[name] = value * unit_px
            std = name.removesuffix("_offset") + "_log_std"
            scaled[std] = maps[std] + math.log(unit_px / 4)
    return scaled


class GlanceGaze(nn.Module):
    """The two networks of the object track.

    Maps have stride 4. Offsets and ``*_log_std`` of points are in pixels of the network's input; depths are
    logarithms relative to the input's reference depth (CONVENTIONS.md); ``xyz`` is in object radii (diameter / 2).
    """

    def __init__(self, config: GlanceGazeConfig, num_objects: int) -> None:
        super().__init__()
        self.config = config
        self.num_objects = num_objects
        k = config.num_keypoints
        center = {"center_offset": 2, "center_log_depth": 1, "center_log_std": 1}
        self.glance = Mtgoe(
            config.glance,
            {"depth": {"log_depth": 1}, "segmentation": {"class_logits": num_objects + 1}, "field": center},
        )
        self.gaze = Mtgoe(
            config.gaze,
            {
                "depth": {"log_depth": 1},
                "segmentation": {"visible_logits": 1, "amodal_logits": 1},
                "field": center | {"keypoint_offset": 2 * k, "keypoint_log_std": k} | {"xyz": 3, "xyz_log_std": 1},
            },
            num_objects=num_objects,
        )

    def glance_maps(self, image: Tensor) -> dict[str, Tensor]:
        """Maps of whole photographs, b×3×h×w in 0..1, already resized by ``glance_scale``."""
        return _in_pixels(self.glance(image), GLANCE_UNIT_PX)

    def gaze_maps(self, image: Tensor, object_index: Tensor) -> dict[str, Tensor]:
        """Maps of crops, b×3×crop_px×crop_px in 0..1, each centred on the object of that index."""
        return _in_pixels(self.gaze(image, object_index), GAZE_UNIT_PX)

    def forward(
        self, photographs: Tensor | None, crops: Tensor | None, object_index: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Maps of both, as training needs them; either may be None and then gives no maps."""
        glance = {} if photographs is None else self.glance_maps(photographs)
        if crops is None or object_index is None:
            return glance, {}
        return glance, self.gaze_maps(crops, object_index)
