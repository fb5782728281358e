"""The robots' network: small, fully convolutional, run with the same weights on every level of an image pyramid.

photograph ─┬─ level 0 ─┐                       ┌ position   is a robot at this cell, seen at this level?
            ├─ level 1 ─┼─ seven convolutions ──┼ bearing    from which side is it seen?
            ├─ level 2 ─┤  (stride 8)           ├ led        which of its LEDs are on?
            └─ level 3 ─┘                       └ log_range  how far away is it, up to a factor?
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glimpose.geometry.camera import pixel_grid

STRIDE = 8
KERNELS = (6, 3, 3, 3, 3, 3, 3)
DILATIONS = (1, 1, 1, 1, 2, 3, 2)
POOLED_AFTER = (1, 2)
"""Layers with 2×2 maxima; the first layer has a stride of 2 itself. 152 pixels see into each cell."""
GLOW_PX = 9
"""Side of the surroundings that a light is compared with."""
MIN_DEVIATION = 0.02
"""Contrast, of 0..1, below which a picture is not stretched any further."""
NUM_HARMONICS = 3
"""Fourier coefficients of a visibility curve: a constant, and as many cosines and sines."""
CURVE_SHARPNESS = 4.0
"""Of the visibility curves that training starts from: at the middle of a half-circle's arc they are sigmoid(4)."""


@dataclass(frozen=True)
class LedFcnConfig:
    """Architecture of the network and of the pyramid; stored in every checkpoint."""

    input_scale: float = 0.5
    """The finest level sees the photograph resized by this factor."""
    clip_limit: float = 3.0
    """Of the equalisation that makes dim and bright places look alike (`data.images.equalised`); 0 for none."""
    num_scales: int = 4
    ratio: float = 2**-0.5
    """Size of each level relative to the one before."""
    channels: tuple[int, ...] = (24, 32, 48, 64, 64, 64, 64)

    def __post_init__(self) -> None:
        if len(self.channels) != len(KERNELS):
            raise ValueError(f"channels: got {len(self.channels)} numbers, expected {len(KERNELS)}, one per layer")
        if not (0 < self.ratio < 1 and self.input_scale > 0 and self.num_scales >= 1 and self.clip_limit >= 0):
            raise ValueError("expected 0 < ratio < 1, input_scale > 0, num_scales >= 1 and clip_limit >= 0")


@dataclass(frozen=True)
class PyramidGrid:
    """Where the n cells of all levels are, finest level first; pixels are those of the network's input."""

    uv: Tensor
    """n×2 centres."""
    cell_px: Tensor
    """n sides."""
    level: Tensor
    """n."""
    log_zoom: Tensor
    """n: logarithm of the level's size relative to the input's, 0 and below."""
    num_copies: Tensor
    """n: how often the cell occurs once its level is enlarged to the finest one by repeating cells."""


def level_sizes(height: int, width: int, config: LedFcnConfig) -> list[tuple[int, int]]:
    """Rows and columns of each level's image."""
    zooms = [config.ratio**level for level in range(config.num_scales)]
    return [(max(1, round(height * zoom)), max(1, round(width * zoom))) for zoom in zooms]


@lru_cache(maxsize=8)
def pyramid_grid(height: int, width: int, config: LedFcnConfig) -> PyramidGrid:
    """Lay out the cells for an input of that size."""
    sizes = level_sizes(height, width, config)
    cells = [(-(-rows // STRIDE), -(-columns // STRIDE)) for rows, columns in sizes]
    uv, level, copies = [], [], []
    for i, (rows, columns) in enumerate(cells):
        scale = torch.tensor([width / sizes[i][1], height / sizes[i][0]])
        uv.append((pixel_grid(rows, columns, STRIDE).flatten(0, 1) + 0.5) * scale - 0.5)
        level.append(torch.full((rows * columns,), i))
        own = torch.arange(rows * columns, dtype=torch.float32).view(1, 1, rows, columns)
        enlarged = F.interpolate(own, size=cells[0], mode="nearest").long().flatten()
        copies.append(torch.bincount(enlarged, minlength=rows * columns))
    level_of = torch.cat(level)
    log_zoom = level_of * math.log(config.ratio)
    return PyramidGrid(
        uv=torch.cat(uv),
        cell_px=STRIDE * torch.exp(-log_zoom),
        level=level_of,
        log_zoom=log_zoom,
        num_copies=torch.cat(copies),
    )


def bin_bearings_rad(num_bins: int) -> Tensor:
    """Bearings at the middle of each bin."""
    return torch.arange(num_bins) * (2 * math.pi / num_bins)


def mean_direction(bearing: Tensor) -> Tensor:
    """Cosine and sine that a bearing head means, ...×2: as it gives them, or the mean over its bins."""
    if bearing.shape[-1] == 2:
        return bearing
    angle = bin_bearings_rad(bearing.shape[-1]).to(bearing)
    return bearing.softmax(-1) @ torch.stack([angle.cos(), angle.sin()], -1)


def curve_coefficients(azimuth_rad: Tensor, half_width_rad: Tensor) -> Tensor:
    """K×(1 + 2·harmonics) coefficients of visibility logits that are 0 at the ends of each LED's arc."""
    constant = -CURVE_SHARPNESS * half_width_rad.cos()
    first = CURVE_SHARPNESS * torch.stack([azimuth_rad.cos(), azimuth_rad.sin()], -1)
    return F.pad(torch.cat([constant[:, None], first], -1), (0, 2 * NUM_HARMONICS - 2))


def visibility_logits(coefficients: Tensor, bearing_rad: Tensor) -> Tensor:
    """Logit of each LED being seen from each bearing: ...×(1 + 2h) coefficients of K LEDs give ...×K."""
    order = torch.arange(1, NUM_HARMONICS + 1, device=bearing_rad.device)
    angle = bearing_rad[..., None] * order
    waves = torch.stack([angle.cos(), angle.sin()], -1).flatten(-2)
    return F.pad(waves, (1, 0), value=1.0) @ coefficients.mT


def standardised(image: Tensor) -> Tensor:
    """Take exposure and white balance out of images, b×3×h×w: each channel gets mean 0 and deviation 1.

    Those vary more than anything an LED changes, so they would drown it for as long as nothing else is known.
    """
    mean = image.mean((2, 3), keepdim=True)
    return (image - mean) / ((image - mean).square().mean((2, 3), keepdim=True) + MIN_DEVIATION**2).sqrt()


def glow(level: Tensor) -> Tensor:
    """How much the brightest spot of each cell outshines what is around it: b×n, of mean 0 and deviation 1.

    ``level`` is one of the pyramid's pictures. An LED is a light, and nearly all cells show none. A position map that
    starts from this, instead of from nothing, has a tenth of its mass on robots with an LED on, instead of a hundredth,
    and that mass is the share of the gradient that tells anything (docs/lab-book.md).
    """
    brightness = level.amax(1, keepdim=True)
    around = F.avg_pool2d(brightness, GLOW_PX, stride=1, padding=GLOW_PX // 2, count_include_pad=False)
    spot = F.max_pool2d(brightness - around, STRIDE).flatten(1)
    return (spot - spot.mean(1, keepdim=True)) / spot.std(1, keepdim=True).clamp(min=1e-3)


class PictureNorm(nn.Module):
    """Each channel gets mean and deviation of its own in each picture, over all levels, for their weights are shared.

    Statistics of the place that a network was trained in, as batch norm keeps them, are half of what it loses in
    another place (docs/lab-book.md).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Normalise each level's b×c×h×w."""
        # Batch norm of each picture's cells as rows of a matrix: instance and group norms take three times as long on
        # channels-last tensors (PyTorch 2.13, CPU).
        pictures = torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in levels], 1)
        given = self.weight, self.bias
        rows = torch.stack([F.batch_norm(x, None, None, *given, training=True) for x in pictures.unbind()])
        parts = rows.split([x.shape[2] * x.shape[3] for x in levels], 1)
        return [part.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2) for part, x in zip(parts, levels, strict=True)]


class Layer(nn.Module):
    """A convolution shared by all levels, and its norm; where the width stays, it adds to what it's given.

    Most of a norm's time is memory's, so none runs at the full resolution: the first layer, which sees standardised
    pictures, has a bias instead, and maxima are taken before the norm. Together that halves a training step.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, dilation: int, stride: int = 1, pools: bool = False
    ) -> None:
        super().__init__()
        padding = (kernel - stride) // 2 if stride > 1 else dilation * (kernel // 2)
        self.norm = PictureNorm(outputs) if stride == 1 else None
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=self.norm is None)
        self.pools = pools
        self.adds = inputs == outputs and not pools

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Filter every level."""
        filtered = [self.conv(x) for x in levels]
        if self.pools:
            filtered = [F.max_pool2d(x, 2) for x in filtered]
        if self.norm is not None:
            filtered = self.norm(filtered)
        return [F.relu(x + y if self.adds else y) for x, y in zip(levels, filtered, strict=True)]


class LedFcn(nn.Module):
    """The network, and where it is told of LEDs, what it learns of them: from where each is seen.

    ``heads`` gives the channels of "position" (1) and, as wanted, of "bearing" (2 for cos and sin, or the number of
    bins), "led" (K) and "log_range" (1).
    """

    azimuth_rad: Tensor
    arc: Tensor

    def __init__(
        self,
        config: LedFcnConfig,
        heads: Mapping[str, int],
        azimuth_rad: Sequence[float] = (),
        half_width_rad: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.config = config
        self.heads = dict(heads)
        widths = (3, *config.channels)
        self.layers = nn.ModuleList(
            Layer(widths[i], widths[i + 1], KERNELS[i], DILATIONS[i], 2 if i == 0 else 1, i in POOLED_AFTER)
            for i in range(len(KERNELS))
        )
        self.mix = Layer(widths[-1], widths[-1], kernel=1, dilation=1)
        # Features without a mean: whatever all cells of a picture have in common moves only the head's biases.
        self.center = PictureNorm(widths[-1])
        self.head = nn.Conv2d(widths[-1], sum(heads.values()), 1)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        # About the logarithm of how many cells there are: at first a robot is as likely somewhere as nowhere.
        self.no_robot = nn.Parameter(torch.tensor([7.0]))
        self.register_buffer("azimuth_rad", torch.tensor(azimuth_rad))
        # A sum of both, so that weight decay pulls towards the arc instead of towards "seen half of the time".
        self.register_buffer("arc", curve_coefficients(self.azimuth_rad, torch.tensor(half_width_rad)))
        self.arc_change = nn.Parameter(torch.zeros_like(self.arc))

    def forward(self, image: Tensor, glow_weight: Tensor | float | None = None) -> dict[str, Tensor]:
        """Predict maps of RGB images in 0..1, b×3×h×w of any size, already resized by ``input_scale``.

        With a ``glow_weight``, robots are likelier where something glows, as they are at the beginning of training.

        Over the n cells of `PyramidGrid`, whose tensors are given too (``uv`` as b×n×2): ``position`` b×n and
        ``bearing`` b×n×bins, logits of where a robot is and from where it's seen (or b×n×2, cos and sin); ``led``
        b×n×K, logits of what is on if it's there; ``log_range`` b×n, the logarithm of its depth up to a constant, which
        without a head is what the level tells. Besides, ``no_robot`` (1), the logit that there is none, on the scale of
        ``position``; and the LEDs' ``azimuth_rad`` (K) and ``visibility`` curves (K×coefficients).
        """
        height, width = image.shape[-2:]
        grid = {name: value.to(image.device) for name, value in vars(pyramid_grid(height, width, self.config)).items()}
        image = standardised(image)
        levels = [image]
        for size in level_sizes(height, width, self.config)[1:]:  # each from the one before, which is fast and no worse
            levels.append(F.interpolate(levels[-1], size, mode="bilinear"))
        levels = [F.pad(x, (0, -x.shape[3] % STRIDE, 0, -x.shape[2] % STRIDE)) for x in levels]
        prior = self._starting_positions(levels, grid["num_copies"], glow_weight)
        for layer in self.layers:
            levels = layer(levels)
        stacked = torch.cat([self.head(x).flatten(2) for x in self.center(self.mix(levels))], -1).mT.float()
        maps = dict(zip(self.heads, stacked.split(list(self.heads.values()), dim=-1), strict=True))
        maps["position"] = maps["position"][..., 0] + prior
        # A level shows everything further away than it is.
        seen_range = maps["log_range"][..., 0] if "log_range" in maps else torch.zeros_like(maps["position"])
        maps["log_range"] = seen_range + grid["log_zoom"]
        leds = {"azimuth_rad": self.azimuth_rad, "visibility": self.arc + self.arc_change}
        uv = grid["uv"].expand(len(image), -1, -1)
        return {**grid, **maps, **leds, "uv": uv, "no_robot": self.no_robot}

    @torch.no_grad()
    def _starting_positions(
        self, levels: list[Tensor], num_copies: Tensor, glow_weight: Tensor | float | None
    ) -> Tensor:
        """Logits that a network's own are added to: b×n, or 1×n without a ``glow_weight``.

        A coarse cell stands for as many as it would be on the finest level: all levels start with equal shares.
        """
        num_cells = [x.shape[2] * x.shape[3] // STRIDE**2 for x in levels]
        shares = []
        for level, copies in zip(levels, num_copies.log().split(num_cells), strict=True):
            leaning = copies[None] if glow_weight is None else glow_weight * glow(level) + copies
            shares.append(leaning.log_softmax(1) + math.log(num_cells[0]))
        return torch.cat(shares, 1)
