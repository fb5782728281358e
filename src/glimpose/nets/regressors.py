"""Networks that say one place for a whole picture; as maps, they have a single cell that lies where they say."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AUTOENCODER_PX = (96, 160)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def as_maps(image: Tensor, place: Tensor) -> dict[str, Tensor]:
    """Make maps of one cell for images b×3×h×w from places b×2, in shares of the image's sides."""
    height, width = image.shape[-2:]
    uv = place * place.new_tensor([width, height]) - 0.5
    nothing = place[:, :1] * 0
    cell_px = place.new_tensor([float(width)])
    return {"position": nothing, "uv": uv[:, None], "log_range": nothing, "cell_px": cell_px}


def place_head(features: int) -> nn.Sequential:
    """Build what turns an embedding into a place."""
    return nn.Sequential(nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, 2))


class Autoencoder(nn.Module):
    """A convolutional autoencoder with a narrow middle, and a head that tells a place from that."""

    def __init__(self, bottleneck: int, encoder_rate: float = 1.0) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 64)
        rows, columns = (side // 16 for side in AUTOENCODER_PX)
        self.small = (widths[-1], rows, columns)
        num_small = widths[-1] * rows * columns
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for i in range(4):
            down += [nn.Conv2d(widths[i], widths[i + 1], 4, 2, 1), nn.BatchNorm2d(widths[i + 1]), nn.ReLU()]
            up = [nn.Upsample(scale_factor=2), nn.Conv2d(widths[i + 1], widths[i], 3, 1, 1), nn.ReLU(), *up]
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(num_small, bottleneck))
        self.decoder = nn.Sequential(nn.Linear(bottleneck, num_small), nn.Unflatten(1, self.small), *up[:-1])
        self.head = place_head(bottleneck)
        for parameter in self.encoder.parameters():
            parameter.learning_rate_factor = encoder_rate  # type: ignore[attr-defined]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Give maps of one cell, and besides ``reconstruction`` and what it should be, ``small``, b×3×96×160."""
        small = F.interpolate(image, AUTOENCODER_PX, mode="bilinear", antialias=True)
        middle = self.encoder(small)
        return {**as_maps(image, self.head(middle)), "reconstruction": self.decoder(middle), "small": small}


class FrozenEncoderHead(nn.Module):
    """A place from the embedding of an encoder that isn't trained, nor stored with the weights."""

    def __init__(self, encoder: Callable[[Tensor], Tensor], features: int, side_px: int) -> None:
        super().__init__()
        self._encoder = (encoder,)  # in a tuple, where it is no part of this module
        self.side_px = side_px
        self.head = place_head(features)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Give maps of one cell."""
        square = F.interpolate(image, (self.side_px, self.side_px), mode="bilinear", antialias=True)
        mean, std = (square.new_tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        with torch.no_grad():
            embedding = self._encoder[0]((square - mean) / std)
        return as_maps(image, self.head(F.normalize(embedding, dim=-1)))


class Constant(nn.Module):
    """The same answer for every picture: a place, a bearing, a range and LED states."""

    def __init__(self, num_leds: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.full((2,), 0.5))
        self.direction = nn.Parameter(torch.zeros(2))
        self.log_range = nn.Parameter(torch.zeros(1))
        self.led = nn.Parameter(torch.zeros(num_leds))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Give maps of one cell."""
        num = len(image)
        given = {"bearing": self.direction, "led": self.led}
        maps = as_maps(image, self.place.expand(num, 2)) | {k: v.expand(num, 1, -1) for k, v in given.items()}
        return maps | {"log_range": self.log_range.expand(num, 1)}


def load_clip(folder: Path) -> tuple[Callable[[Tensor], Tensor], int, int]:
    """Load a CLIP-like image encoder from a local folder in Hugging Face's layout: it, its features and its side.

    Needs the optional extra "clip" (`pip install glimpose[clip]`); nothing is downloaded.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: no config.json; expected a CLIP model's folder, as save_pretrained writes it"
        )
    try:
        from transformers import CLIPVisionModelWithProjection
    except ImportError:
        raise ValueError("the CLIP head needs transformers: pip install 'glimpose[clip]'") from None
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)
    return (lambda image: encoder(image).image_embeds), encoder.config.projection_dim, encoder.config.image_size
