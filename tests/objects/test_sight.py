"""What networks see, and where it is worth looking."""

import numpy as np
import pytest
import torch
from parts import Parts

from glimpose.nets.glance_gaze import GlanceGaze
from glimpose.nets.mtgoe import STRIDE
from glimpose.objects.looks import Detection
from glimpose.objects.sight import Sight

IMAGE = np.zeros((240, 320, 3), np.uint8)
K = np.array([[300.0, 0, 159.5], [0, 300, 119.5], [0, 0, 1]])
PROBABILITY = 0.4


@pytest.fixture
def sight(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Sight:
    """Its glance finds the second object likely in a single cell, that of the photograph's pixel (200, 80)."""
    sight = Sight(GlanceGaze(parts.network, 2), parts.objects)
    glance = sight._glance_maps

    def maps(image: np.ndarray, roll_rad: float = 0.0):
        seen, out_A_img = glance(image, roll_rad)
        u, v, _ = (out_A_img @ [200.0, 80.0, 1]) / STRIDE
        logits = torch.full_like(seen["class_logits"], -20.0)
        logits[:, 0] = 0
        logits[0, 2, round(v), round(u)] = np.log(PROBABILITY / (1 - PROBABILITY))
        return {"class_logits": logits}, out_A_img

    monkeypatch.setattr(sight, "_glance_maps", maps)
    return sight


def at(index: int, u: float, v: float) -> Detection:
    return Detection(index, np.array([u, v]), 0.6, 0.0)


@pytest.mark.parametrize("roll", [0.0, 0.5, -1.2])
def test_what_the_glance_finds_at_all_likely_is_worth_a_look(sight: Sight, roll: float):
    """However the camera is rolled, of the object that's likely only, and as far as a look's middle half reaches."""
    c, s = np.cos(roll), np.sin(roll)
    rolled_K = K @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    half_px = sight._side_px(at(1, 0, 0), rolled_K) / 4
    near, far = 0.6 * half_px, 1.5 * half_px + 3 * STRIDE / sight.model.config.glance_scale
    kept = sight.promising(
        IMAGE,
        rolled_K,
        [at(1, 200, 80), at(0, 200, 80), at(1, 200 + near, 80), at(1, 200, 80 + far), at(1, -900, 9000)],
        PROBABILITY - 0.01,
    )
    assert [detection.center_px[0] for detection in kept] == [200, 200 + near]
    assert all(detection.object_index == 1 for detection in kept)
    assert sight.promising(IMAGE, rolled_K, [at(1, 200, 80)], PROBABILITY + 0.01) == []


def test_nothing_is_too_unlikely_where_everything_is_wanted(sight: Sight):
    everywhere = [at(0, 10, 10), at(1, 310, 230), at(1, -900, 9000)]
    assert sight.promising(IMAGE, K, everywhere, 0.0) == everywhere
