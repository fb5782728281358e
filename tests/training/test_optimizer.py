"""Muon for what mixes channels, AdamW for the rest, and both as they were after resuming."""

import pytest
import torch
from torch import Tensor, nn

from glimpose.training.optimizer import Muon, MuonAdamW


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(128, 5)
    )


def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(images()).square().mean().backward()
    optimizer.step()


def test_layers_that_mix_channels_take_steps_of_like_singular_values():
    model = network()
    before = model[4].weight.detach().clone()
    step(model, MuonAdamW(model, 1e-2, 0.0))
    singular = torch.linalg.svdvals(before - model[4].weight.detach())[:4]  # four images: of rank four
    assert singular.max() < 2.5 * singular.min()
    # As large as AdamW's usual steps: a fifth of the learning rate, root mean square.
    assert (before - model[4].weight.detach()).square().mean().sqrt() == pytest.approx(2e-3, rel=0.3)


def test_all_else_steps_as_adamw_does():
    models = network(), network()
    others = [models[0][1].weight, models[0][1].bias, models[0][2].weight]
    step(models[0], torch.optim.AdamW(others, 1e-2, weight_decay=0.0))
    step(models[1], MuonAdamW(models[1], 1e-2, 0.0))
    for name in ("1.weight", "1.bias", "2.weight"):
        torch.testing.assert_close(models[1].get_parameter(name), models[0].get_parameter(name))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 12)])
def test_muon_steps_as_torch_does_but_for_its_rounding(shape: tuple[int, int]):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    optimizers = [
        Muon([ours], 1e-2, 0.1),
        torch.optim.Muon([theirs], 1e-2, 0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - weight).norm()
    assert (ours - theirs).norm() < 0.03 * moved  # torch's are rounded to bfloat16


def test_the_layout_in_memory_changes_nothing():
    models = network(), network().to(memory_format=torch.channels_last)
    assert not models[1][0].weight.is_contiguous()
    before = models[0][0].weight.detach().clone()
    for model in models:
        step(model, MuonAdamW(model, 1e-2, 0.01))
    steps = [(model[0].weight.detach() - before).flatten() for model in models]
    torch.testing.assert_close(*steps)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_goes_on_as_if_never_stopped(layout):
    whole = network().to(memory_format=layout)
    optimizer = MuonAdamW(whole, 1e-2, 0.01)
    step(whole, optimizer)
    resumed = network().to(memory_format=layout)
    resumed.load_state_dict(whole.state_dict())
    again = MuonAdamW(resumed, 1e-2, 0.01)
    again.load_moments(
        {name: value.clone(memory_format=torch.contiguous_format) for name, value in optimizer.moments().items()}
    )
    step(whole, optimizer)
    step(resumed, again)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_parameter_without_a_gradient_stays_and_has_no_moments():
    model = network()
    model[4].weight.requires_grad_(False)
    before = model[0].weight.detach().clone()
    optimizer = MuonAdamW(model, 1e-2, 0.0)
    model[1](torch.rand(2, 8, 3, 3)).square().mean().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before)
    assert {name.partition(".")[2] for name in optimizer.moments()} == {"1.weight", "1.bias"}
    MuonAdamW(model, 1e-2, 0.0).load_moments(optimizer.moments())


def test_moments_of_another_optimizer_are_refused():
    model = network()
    with pytest.raises(KeyError, match=r"exp_avg\.4\.weight"):
        MuonAdamW(model, 1e-2, 0.0).load_moments({"exp_avg.4.weight": torch.zeros(5, 128)})


def test_each_parameter_has_the_pace_it_asks_for():
    model = network()
    model[4].weight.learning_rate_factor = 0.1  # type: ignore[attr-defined]
    optimizer = MuonAdamW(model, 1e-2, 0.0)
    factors = {id(p): group["factor"] for group in optimizer.param_groups for p in group["params"]}
    assert sorted(factors.values()) == [0.1] + [1.0] * (len(list(model.parameters())) - 1)
    assert factors[id(model[4].weight)] == 0.1
