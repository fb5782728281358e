import math

import pytest
import torch

from glimpose.metrics.robot_errors import (
    bearing_error_rad,
    is_near,
    pixel_error_px,
    position_error_m,
    relative_distance_error,
)


def test_bearing_error_goes_the_short_way_round():
    pred = torch.tensor([0.1, 3.1, -3.0, 0.0, 7.0]).double()
    gt = torch.tensor([-0.1, -3.1, 3.0, math.pi, 7.0 + 4 * math.pi]).double()
    expected = torch.tensor([0.2, 2 * math.pi - 6.2, 2 * math.pi - 6.0, math.pi, 0.0]).double()
    torch.testing.assert_close(bearing_error_rad(pred, gt), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_errors_keep_the_batch_and_are_what_their_names_say(batch):
    uv = torch.rand(*batch, 2)
    torch.testing.assert_close(pixel_error_px(uv + torch.tensor([3.0, 4.0]), uv), torch.full(batch, 5.0))
    xyz = torch.rand(*batch, 3)
    torch.testing.assert_close(position_error_m(xyz + torch.tensor([2.0, 3.0, 6.0]), xyz), torch.full(batch, 7.0))
    torch.testing.assert_close(
        relative_distance_error(torch.full(batch, 1.5), torch.full(batch, 2.0)), torch.full(batch, 0.25)
    )


def test_near_needs_both_position_and_bearing_and_knows_no_nan():
    near = is_near(torch.tensor([0.9, 1.1, 0.9, math.nan, 0.1]), torch.tensor([0.7, 0.7, 0.8, 0.0, math.nan]))
    assert near.tolist() == [True, False, False, False, False]
