import pytest
import torch
from torch import nn

from glimpose.training.ema import Ema


def shifted(model: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by


def test_average_of_constant_weights_is_those_weights() -> None:
    model = nn.Linear(3, 2)
    ema = Ema(model, decay=0.9)
    for _ in range(5):
        ema.update(model)
    torch.testing.assert_close(ema.model.weight, model.weight.detach())


def test_decay_warms_up_and_then_stays() -> None:
    model = nn.Linear(1, 1, bias=False)
    ema = Ema(model, decay=0.5)
    average = model.weight.item()
    for n in range(30):
        shifted(model, 1.0)
        ema.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * model.weight.item()
        assert ema.model.weight.item() == pytest.approx(average, rel=1e-5)


def test_float_buffers_are_averaged_and_integer_buffers_copied() -> None:
    model = nn.BatchNorm2d(4)
    ema = Ema(model, decay=0.9)
    model.train()(torch.rand(8, 4, 5, 5) + 10)
    ema.update(model)
    assert ema.model.num_batches_tracked == 1
    start = torch.zeros(4)
    torch.testing.assert_close(ema.model.running_mean, start.lerp(model.running_mean, 0.9))


def test_average_is_frozen_in_eval_mode_and_shares_no_memory() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
    ema = Ema(model, decay=0.9)
    assert not ema.model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    before = ema.model[0].weight.clone()
    shifted(model, 1.0)
    assert torch.equal(ema.model[0].weight, before)


def test_state_continues_where_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    ema, other = Ema(model, decay=0.9), Ema(model, decay=0.9)
    for _ in range(3):
        shifted(model, 1.0)
        ema.update(model)
    other.load_state_dict(ema.state_dict(), num_updates=ema.num_updates)
    for average in (ema, other):
        average.update(model)
    assert all(torch.equal(a, b) for a, b in zip(ema.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="expected 0 <= decay < 1"):
        Ema(nn.Linear(1, 1), decay)
