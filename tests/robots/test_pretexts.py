import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from glimpose.nets.led_fcn import LedFcnConfig, bin_bearings_rad, curve_coefficients, pyramid_grid, visibility_logits
from glimpose.robots.leds import Led, LedRobot
from glimpose.robots.pretexts import (
    LatentPose,
    WeightedBce,
    bearing_divergence,
    latent_pose,
    log_led_likelihood,
    log_pose_prob,
    twin_divergence,
    unusual_doubt,
    weighted_bce,
    zoom_error,
)

CONFIG = LedFcnConfig(num_scales=3)
BINS = 8
HEIGHT, WIDTH = 40, 56
GRID = pyramid_grid(HEIGHT, WIDTH, CONFIG)
NUM = len(GRID.uv)
AZIMUTH = torch.tensor([0.0, math.pi, math.pi / 2, -math.pi / 2], dtype=torch.float64)
MIRRORED = [0, 1, 3, 2]
K = len(AZIMUTH)
ROBOT = LedRobot("four", tuple(Led(f"l{k}", math.degrees(AZIMUTH[k])) for k in range(K)), (0.0, 0.0, 0.1))


def random_maps(seed: int, batch: int = 2, bearings: int = BINS, num: int = NUM) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return 2 * torch.randn(*shape, generator=g, dtype=torch.float64)

    return {
        "position": normal(batch, num),
        "bearing": normal(batch, num, bearings),
        "led": normal(batch, num, K),
        "log_range": normal(batch, num),
        "no_robot": normal(1),
        "visibility": normal(K, 7),
    }


FIXED = {"azimuth_rad": AZIMUTH, **vars(GRID)}


def random_states(seed: int, batch: int = 2, robots: int = 1) -> torch.Tensor:
    return torch.randint(0, 2, (batch, robots, K), generator=torch.Generator().manual_seed(seed)).double()


def there(led_on: torch.Tensor) -> torch.Tensor:
    return torch.ones(led_on.shape[:2], dtype=torch.float64)


def brute_force(maps: dict[str, torch.Tensor], led_on: torch.Tensor, certainty: float = 0.0) -> float:
    """The facts' formula for one image and robot, slot by slot, without logarithms."""
    position, bearing, led = maps["position"][0], maps["bearing"][0], maps["led"][0]
    bins = bearing.shape[-1]
    seen = visibility_logits(maps["visibility"], bin_bearings_rad(bins).double()).sigmoid()
    slots = {
        (c, psi): float(position[c] + bearing[c, psi] - bearing[c].logsumexp(0))
        for c in range(len(position))
        for psi in range(bins)
    }
    partition = math.exp(maps["no_robot"].item()) + sum(math.exp(x) for x in slots.values())
    doubt = -led.sigmoid() * F.logsigmoid(led) - led.neg().sigmoid() * F.logsigmoid(-led)
    claims = {(*slot, k): math.exp(x) * float(seen[slot[1], k]) for slot, x in slots.items() for k in range(K)}
    usual = sum(claim * float(doubt[c, k]) for (c, _, k), claim in claims.items()) / sum(claims.values())
    total = math.exp(maps["no_robot"].item()) / partition * 0.5**K
    for (c, psi), logit in slots.items():
        likelihood = 1.0
        for k in range(K):
            q, v = float(led[c, k].sigmoid()), float(seen[psi, k])
            cost = certainty * max(0.0, float(doubt[c, k]) - usual)
            likelihood *= v * (q if led_on[k] else 1 - q) * math.exp(-cost) + (1 - v) / 2
        total += math.exp(logit) / partition * likelihood
    return -math.log(total)


@pytest.mark.parametrize("seed", range(3))
def test_latent_pose_is_the_sum_over_all_slots(seed):
    maps, led_on = random_maps(seed, batch=1, num=12), random_states(seed, batch=1)
    for certainty in (0.0, 1.3):
        expected = brute_force(maps, led_on[0, 0], certainty)
        assert latent_pose(maps, led_on, there(led_on), certainty).item() == pytest.approx(expected, rel=1e-9)


def test_probabilities_of_all_states_sum_to_one():
    maps = random_maps(0, batch=1)
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=K)), dtype=torch.float64)
    prob = sum(latent_pose(maps, state.view(1, 1, K), torch.ones(1, 1)).neg().exp().item() for state in states)
    assert prob == pytest.approx(1.0)


def test_latent_pose_has_the_right_gradients():
    maps = {name: value.requires_grad_() for name, value in random_maps(1, batch=1, bearings=4, num=5).items()}
    led_on = random_states(1, batch=1, robots=2)
    names = [name for name in maps if name != "log_range"]

    def loss(*values: torch.Tensor) -> torch.Tensor:
        return latent_pose(dict(zip(names, values, strict=True)), led_on, there(led_on))

    assert torch.autograd.gradcheck(loss, [maps[name] for name in names])


def test_a_claims_cost_has_the_right_gradient():
    maps, led_on = random_maps(1, batch=1, num=5), random_states(1, batch=1, robots=2)
    visibility = torch.randn(4, K, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs = [maps["led"].requires_grad_(), visibility.requires_grad_(), torch.rand(1, 5, K, dtype=torch.float64)]

    def likelihood(led: torch.Tensor, visibility: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
        return log_led_likelihood(led, visibility, led_on, cost)

    assert torch.autograd.gradcheck(likelihood, [*inputs[:2], inputs[2].requires_grad_()])


def test_latent_pose_ignores_hidden_leds():
    maps, led_on = random_maps(2), random_states(2)
    maps["visibility"][1] = 0
    maps["visibility"][1, 0] = -200.0  # LED 1 is seen from nowhere
    other = led_on.clone()
    other[..., 1] = 1 - other[..., 1]
    torch.testing.assert_close(latent_pose(maps, led_on, there(led_on)), latent_pose(maps, other, there(other)))
    changed = {**maps, "led": maps["led"] + torch.tensor([0, 5.0, 0, 0], dtype=torch.float64)}
    torch.testing.assert_close(latent_pose(maps, led_on, there(led_on)), latent_pose(changed, led_on, there(led_on)))


def test_claims_to_see_an_led_cost_what_is_asked_for():
    """Seen from bin 0, hidden from bin 1, and its state is anyone's guess: only the cost tells the bins apart."""
    visibility = torch.tensor([[40.0], [-40.0]], dtype=torch.float64)
    led = torch.zeros(1, 1, 1, dtype=torch.float64)
    for state in (0.0, 1.0):
        led_on = torch.tensor([[[state]]], dtype=torch.float64)
        for cost in (0.0, 0.5, 2.0):
            seen, hidden = log_led_likelihood(led, visibility, led_on, cost)[0, 0, 0]
            assert hidden.item() == pytest.approx(-math.log(2))
            assert seen.item() == pytest.approx(-math.log(2) - cost)


def test_unusual_doubt_is_beyond_that_of_leds_which_are_claimed_to_be_seen():
    log_pose = torch.full((1, 3, 1), -60.0, dtype=torch.float64)
    log_pose[0, 0] = 0.0  # cell 0
    visibility = torch.tensor([[60.0, 60.0, -60.0, -60.0]], dtype=torch.float64)  # of LEDs 0 and 1
    led = torch.full((1, 3, K), 60.0, dtype=torch.float64)
    led[0, 0, 1:3] = 0.0  # anyone's guess: one that is seen, one that isn't
    # Usual is ln 2 / 2, for one of two claims is a guess.
    expected = torch.zeros(1, 3, K, dtype=torch.float64)
    expected[0, 0, 1:3] = math.log(2) / 2
    torch.testing.assert_close(unusual_doubt(led, visibility, log_pose), expected)


def test_no_doubt_is_unusual_while_nothing_is_known():
    maps, led_on = random_maps(6), random_states(6)
    maps["led"] = torch.zeros_like(maps["led"])
    torch.testing.assert_close(
        latent_pose(maps, led_on, there(led_on), certainty=2.0), latent_pose(maps, led_on, there(led_on))
    )


def test_bearings_diverge_from_any_side_by_their_certainty_where_the_robot_is():
    position = torch.tensor([[0.0, 0.0, -50.0]])
    even, sure = torch.zeros(BINS), torch.cat([torch.tensor([50.0]), torch.zeros(BINS - 1)])
    for bearings, expected in [((even, even, sure), 0.0), ((sure, sure, even), 1.0), ((even, sure, even), 0.5)]:
        found = bearing_divergence({"position": position, "bearing": torch.stack(bearings)[None]})
        assert found.item() == pytest.approx(expected * math.log(BINS), abs=1e-4)


def test_certainty_that_there_is_no_robot_costs_ln_2_for_each_led():
    maps, led_on = random_maps(3), random_states(3)
    maps["no_robot"] = torch.tensor([1e4], dtype=torch.float64)
    expected = torch.full((2,), K * math.log(2), dtype=torch.float64)
    torch.testing.assert_close(latent_pose(maps, led_on, there(led_on)), expected)


def test_latent_pose_stays_finite_however_sure_and_wrong_the_network_is():
    maps, led_on = random_maps(4), torch.ones(2, 1, K, dtype=torch.float64)
    maps = {name: 1e4 * value for name, value in maps.items()}
    maps["led"] = torch.full_like(maps["led"], -1e4)
    maps = {name: value.float().requires_grad_() for name, value in maps.items()}
    loss = latent_pose(maps, led_on.float(), there(led_on), certainty=1.0)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(value.grad.isfinite().all() for name, value in maps.items() if name != "log_range")


@given(st.permutations(range(K)), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_the_order_of_leds_does_not_matter(order, seed):
    maps, led_on = random_maps(seed), random_states(seed)
    permuted = {**maps, "led": maps["led"][..., order], "visibility": maps["visibility"][order]}
    torch.testing.assert_close(
        latent_pose(permuted, led_on[..., order], there(led_on)), latent_pose(maps, led_on, there(led_on))
    )


def test_a_mirror_image_costs_as_much():
    maps, led_on = random_maps(6), random_states(6)
    maps["visibility"] = curve_coefficients(AZIMUTH, torch.full_like(AZIMUTH, 1.2)).double()
    flipped = {
        **maps,
        "bearing": maps["bearing"].flip(-1).roll(1, -1),  # ψ becomes −ψ, and bin 0 stays bin 0
        "led": maps["led"][..., MIRRORED],
    }
    torch.testing.assert_close(
        latent_pose(flipped, led_on[..., MIRRORED], there(led_on)), latent_pose(maps, led_on, there(led_on))
    )


def test_several_robots_add_up_and_missing_ones_cost_nothing():
    maps, led_on = random_maps(7), random_states(7, robots=3)
    each = [latent_pose(maps, led_on[:, t : t + 1], torch.ones(2, 1)) for t in range(3)]
    torch.testing.assert_close(latent_pose(maps, led_on, there(led_on)), sum(each))
    is_there = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    found = latent_pose(maps, led_on, is_there)
    torch.testing.assert_close(found, torch.stack([(each[0] + each[2])[0], torch.zeros(()).double()]))


def test_likelihood_is_highest_where_the_robot_is():
    maps = random_maps(8, batch=1)
    led_on = torch.tensor([[[1.0, 0, 1, 0]]], dtype=torch.float64)
    maps["visibility"] = curve_coefficients(AZIMUTH, torch.full_like(AZIMUTH, 1.2)).double()
    maps["led"].zero_()
    maps["led"][0, 5] = 20 * (led_on[0, 0] - 0.5)  # cell 5 alone knows
    costs = []
    for cell in range(NUM):
        maps["position"].zero_()
        maps["position"][0, cell] = 30.0
        costs.append(latent_pose(maps, led_on, there(led_on)).item())
    assert min(range(NUM), key=costs.__getitem__) == 5


def slow_weighted_bce(maps: dict[str, torch.Tensor], led_on: torch.Tensor) -> float:
    """The published loss for one image and robot: maps enlarged, stacked, and summed cell by cell."""
    finest = [-(-HEIGHT // 8), -(-WIDTH // 8)]
    stacks = []
    for level in range(CONFIG.num_scales):
        is_level = GRID.level == level
        rows = len(GRID.uv[is_level, 1].unique())
        head = maps["position"][0] - GRID.num_copies.log()  # as it was before the network counted copies
        values = torch.cat([head[is_level, None], maps["bearing"][0, is_level], maps["led"][0, is_level]], -1)
        image = values.view(rows, -1, values.shape[-1]).permute(2, 0, 1)[None]
        stacks.append(F.interpolate(image, size=finest, mode="nearest")[0].flatten(1).mT)
    cells = torch.cat(stacks)
    partition = sum(math.exp(cell[0]) for cell in cells)
    total = 0.0
    for cell in cells:
        psi = math.atan2(cell[2], cell[1])
        facing = [1 + math.cos(psi - alpha) for alpha in AZIMUTH.tolist()]
        for k in range(K):
            prob = 1 / (1 + math.exp(-cell[3 + k]))
            bce = -math.log(prob if led_on[k] else 1 - prob)
            total += math.exp(cell[0]) / partition * facing[k] / sum(facing) * bce
    return total


@pytest.mark.parametrize("seed", range(3))
def test_weighted_bce_is_the_plain_loop(seed):
    maps, led_on = random_maps(seed, batch=1, bearings=2), random_states(seed, batch=1)
    found = weighted_bce(FIXED | maps, led_on, there(led_on))
    assert found.item() == pytest.approx(slow_weighted_bce(maps, led_on[0, 0]), rel=1e-6)


def test_weights_of_four_leds_at_right_angles_are_quarters_of_one_plus_cosine():
    maps, led_on = random_maps(0, bearings=2), random_states(0)
    maps["led"] = torch.zeros_like(maps["led"])
    found = weighted_bce(FIXED | maps, led_on, there(led_on))
    torch.testing.assert_close(found, torch.full_like(found, math.log(2)))  # the weights sum to one


def test_bins_count_by_their_mean_direction_however_spread_they_are():
    maps, led_on = {**random_maps(2), **FIXED}, random_states(3)
    spread = {**maps, "bearing": 0.1 * maps["bearing"]}
    angle = bin_bearings_rad(BINS).double()
    directions = spread["bearing"].softmax(-1) @ torch.stack([angle.cos(), angle.sin()], -1)
    assert directions.norm(dim=-1).max() < 0.5
    expected = weighted_bce({**maps, "bearing": directions}, led_on, there(led_on))
    torch.testing.assert_close(weighted_bce(spread, led_on, there(led_on)), expected)


def test_training_starts_with_the_published_loss_and_leaves_no_weight_without_a_gradient():
    pretext = LatentPose(num_bins=BINS)
    model = pretext.build(LedFcnConfig(num_scales=2, channels=(4,) * 7), ROBOT)
    led_on = random_states(4).float()
    no_twin = torch.zeros(0, 2, dtype=torch.long)
    batch = {"led_on": led_on, "is_there": there(led_on).float(), "view_A": torch.zeros(0, 3, 3), "twin": no_twin}
    maps = model(torch.rand(2, 3, 40, 56))
    terms = pretext.terms(maps, {**batch, "started": torch.tensor(0.5)})
    torch.testing.assert_close(terms["led"], K * weighted_bce(maps, led_on, batch["is_there"]))
    assert all(terms[name].abs().max() == 0 for name in ("zoom", "doubt", "twin"))
    sum(term.sum() for term in terms.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch.testing.assert_close(
        pretext.terms(maps, batch)["led"], latent_pose(maps, led_on, batch["is_there"], pretext.certainty)
    )


def test_weighted_bce_has_gradients_through_position_bearing_and_leds():
    maps = {name: value.requires_grad_() for name, value in random_maps(1, batch=1, bearings=2).items()}
    led_on = random_states(1, batch=1, robots=2)

    def loss(position: torch.Tensor, bearing: torch.Tensor, led: torch.Tensor) -> torch.Tensor:
        maps = FIXED | {"position": position, "bearing": bearing, "led": led}
        return weighted_bce(maps, led_on, there(led_on))

    inputs = (maps["position"], maps["bearing"], maps["led"])
    assert torch.autograd.gradcheck(loss, inputs)
    gradients = torch.autograd.grad(loss(*inputs).sum(), inputs)
    assert all((gradient != 0).any() for gradient in gradients)


def two_views(seed: int, zoom: float) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Make maps of one frame and of its view, enlarged about the middle, with a robot for sure in the middle."""
    maps = FIXED | random_maps(seed)
    maps["uv"] = GRID.uv.double().expand(2, -1, -1)
    middle = torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2], dtype=torch.float64)
    view_A = torch.eye(3, dtype=torch.float64)
    view_A[:2, :2] *= zoom
    view_A[:2, 2] = middle - zoom * middle
    maps["position"] = -((maps["uv"] - middle).norm(dim=-1))
    return maps, view_A[None]


def test_a_range_that_follows_the_zoom_has_no_zoom_error_and_one_that_ignores_it_has_one():
    for zoom in (0.7, 1.4):
        maps, view_A = two_views(2, zoom)
        maps["log_range"] = torch.tensor([[0.7], [0.7 - math.log(zoom)]]).expand(-1, NUM).double()
        torch.testing.assert_close(zoom_error(maps, view_A), torch.zeros(2).double(), atol=1e-9, rtol=0)
        maps["log_range"] = torch.full((2, NUM), 0.7, dtype=torch.float64)
        torch.testing.assert_close(zoom_error(maps, view_A), torch.tensor([1.0, 0.0]).double())


def test_knowing_only_the_level_does_not_pass_for_knowing_the_size():
    maps, view_A = two_views(3, 1.4)
    maps["log_range"] = (0.7 + 0.2 * GRID.level).double().expand(2, -1)
    torch.testing.assert_close(zoom_error(maps, view_A)[0], torch.tensor(1.0).double())


def test_zoom_error_leaves_positions_alone_and_counts_where_the_robot_is():
    maps, view_A = two_views(4, 1.2)
    maps["position"] = maps["position"].requires_grad_()
    maps["log_range"] = maps["log_range"].requires_grad_()
    zoom_error(maps, view_A).sum().backward()
    assert maps["position"].grad is None
    counted = maps["log_range"].grad[0].abs()
    middle = torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    assert (GRID.uv[counted.argmax()] - middle).norm() < 12
    assert counted[(GRID.uv - middle).norm(dim=1) > 25].max() < 1e-3 * counted.max()


def test_twins_that_agree_do_not_diverge_and_only_the_dark_one_learns():
    maps = FIXED | random_maps(6, batch=3)
    for name in ("position", "bearing"):
        maps[name][2] = maps[name][0]
        maps[name].requires_grad_()
    twin = torch.tensor([[0, 2], [1, 0]])
    divergence = twin_divergence(maps, twin)
    log_pose, log_nothing = (value.detach() for value in log_pose_prob(maps))
    by_hand = (log_pose[1].exp() * (log_pose[1] - log_pose[0])).sum()
    by_hand += log_nothing[1].exp() * (log_nothing[1] - log_nothing[0])
    torch.testing.assert_close(divergence.detach(), torch.stack([by_hand, 0 * by_hand, 0 * by_hand]))
    assert by_hand > 0.1
    divergence.sum().backward()
    assert (maps["position"].grad[1] == 0).all()
    assert maps["position"].grad[0].abs().max() > 1e-3
    assert maps["bearing"].grad[2].abs().max() < 1e-9


def test_without_twins_nothing_diverges():
    assert twin_divergence(FIXED | random_maps(4), torch.zeros(0, 2, dtype=torch.long)).tolist() == [0.0, 0.0]


def test_without_second_views_there_is_no_zoom_error():
    maps = FIXED | random_maps(4)
    assert zoom_error(maps, torch.zeros(0, 3, 3)).tolist() == [0.0, 0.0]


def test_pose_probabilities_and_that_of_nothing_sum_to_one():
    log_pose, log_nothing = log_pose_prob(random_maps(5))
    torch.testing.assert_close(log_pose.exp().sum((1, 2)) + log_nothing.exp(), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("pretext", [LatentPose(num_bins=8), WeightedBce(), WeightedBce(zoom_weight=0.3)])
def test_pretexts_share_an_interface_and_every_weight_learns(pretext):
    torch.manual_seed(0)
    model = pretext.build(LedFcnConfig(channels=(8, 8, 8, 8, 8, 8, 8), num_scales=2), ROBOT)
    led_on = random_states(0, robots=2).float()
    batch = {
        "led_on": led_on,
        "is_there": there(led_on).float(),
        "view_A": torch.diag(torch.tensor([1.2, 1.2, 1]))[None],
        "twin": torch.tensor([[0, 1]]),
    }
    terms = pretext.terms(model(torch.rand(2, 3, HEIGHT, WIDTH)), batch)
    assert all(term.shape == (2,) for term in terms.values())
    assert ("zoom" in terms) == bool(pretext.zoom_weight)
    sum(term.sum() for term in terms.values()).backward()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unused <= {"no_robot", "arc_change"}
    assert not unused or isinstance(pretext, WeightedBce)
