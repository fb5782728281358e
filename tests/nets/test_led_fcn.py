import math

import pytest
import torch

from glimpose.geometry.camera import pixel_grid
from glimpose.nets import led_fcn
from glimpose.nets.led_fcn import (
    STRIDE,
    LedFcn,
    LedFcnConfig,
    PictureNorm,
    bin_bearings_rad,
    glow,
    level_sizes,
    pyramid_grid,
    standardised,
    visibility_logits,
)

AZIMUTHS = [0.0, math.pi, math.pi / 2, -math.pi / 2, math.pi / 2, -math.pi / 2]
HALF_WIDTHS = [math.radians(w) for w in (80, 80, 55, 55, 90, 90)]
SMALL = LedFcnConfig(channels=(8, 8, 8, 8, 8, 8, 8))
HEADS = {"position": 1, "bearing": 16, "led": len(AZIMUTHS), "log_range": 1}


def network(config: LedFcnConfig = SMALL) -> LedFcn:
    torch.manual_seed(0)
    return LedFcn(config, HEADS, AZIMUTHS, HALF_WIDTHS)


def test_default_network_has_at_most_250_thousand_parameters():
    assert sum(parameter.numel() for parameter in network(LedFcnConfig()).parameters()) <= 250_000


@pytest.mark.parametrize("size", [(180, 320), (97, 131), (24, 33)])
def test_any_image_size_gives_a_value_for_every_cell(size):
    maps = network().eval()(torch.rand(2, 3, *size))
    grid = pyramid_grid(*size, SMALL)
    num = len(grid.uv)
    assert maps["position"].shape == maps["log_range"].shape == (2, num)
    assert maps["bearing"].shape == (2, num, 16)
    assert maps["led"].shape == (2, num, len(AZIMUTHS))
    assert all(value.isfinite().all() for value in maps.values())


def test_every_level_covers_the_whole_image():
    grid = pyramid_grid(180, 320, SMALL)
    for level in range(SMALL.num_scales):
        uv = grid.uv[grid.level == level]
        cell_px = STRIDE / SMALL.ratio**level
        assert (uv.amin(0) < cell_px).all()
        assert (uv.amax(0) > torch.tensor([320.0, 180.0]) - cell_px - 1).all()


def test_enlarging_by_repetition_copies_each_cell_as_often_as_the_grid_says():
    grid = pyramid_grid(180, 320, SMALL)
    finest = int((grid.level == 0).sum())
    for level in range(SMALL.num_scales):
        assert int(grid.num_copies[grid.level == level].sum()) == finest
    assert (grid.num_copies[grid.level == 0] == 1).all()


@pytest.fixture
def no_statistics(monkeypatch):
    """A network whose cells know nothing of the whole picture."""
    monkeypatch.setattr(led_fcn, "standardised", lambda image: image)
    monkeypatch.setattr(PictureNorm, "forward", lambda self, levels: levels)


@pytest.mark.usefixtures("no_statistics")
def test_a_cell_sees_100_to_180_pixels_around_it():
    config = LedFcnConfig(num_scales=1)
    middle = int((pyramid_grid(256, 256, config).uv - 128).square().sum(1).argmin())
    # Through maxima, a gradient finds one way only: all ways together are found by trying many images.
    seen = torch.zeros(256, 256, dtype=torch.bool)
    model = network(config).eval()
    for seed in range(20):
        image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        maps = model(image)
        (gradient,) = torch.autograd.grad(maps["led"][0, middle].square().sum(), image)
        seen |= gradient[0].abs().sum(0) > 0
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    for extent in (rows, columns):
        assert 100 <= int(extent[-1] - extent[0]) + 1 <= 180
        assert abs(float(extent[-1] + extent[0]) / 2 - 128) < STRIDE


@pytest.mark.usefixtures("no_statistics")
def test_a_shifted_image_gives_shifted_maps():
    config = LedFcnConfig(channels=SMALL.channels, num_scales=1)
    model = network(config).eval()
    image = torch.rand(1, 3, 256, 256)
    cells = 256 // STRIDE
    before = model(image)["led"].view(cells, cells, -1)
    after = model(image.roll((16, 24), dims=(2, 3)))["led"].view(cells, cells, -1)
    torch.testing.assert_close(after[15:18, 15:18], before[13:16, 12:15], atol=1e-5, rtol=0)


def test_exposure_and_white_balance_change_nothing():
    model = network().eval()
    image = 0.3 + 0.4 * torch.rand(1, 3, 64, 64)
    tinted = image * torch.tensor([0.6, 1.0, 1.3]).view(3, 1, 1) + 0.05
    torch.testing.assert_close(model(tinted)["led"], model(image)["led"], atol=2e-2, rtol=0)
    assert standardised(torch.full((1, 3, 8, 8), 0.7)).abs().max() < 1e-4  # and a wall is not blown up to noise


def test_norm_is_that_of_all_levels_of_a_picture_together():
    norm = PictureNorm(8)
    levels = [torch.randn(2, 8, 6, 9) + 1, 3 * torch.randn(2, 8, 3, 5)]
    normed = norm(levels)
    for i in range(2):
        given, rows = (torch.cat([x[i].flatten(1) for x in maps], 1) for maps in (levels, normed))
        expected = (given - given.mean(1, keepdim=True)) / given.var(1, unbiased=False, keepdim=True).sqrt()
        torch.testing.assert_close(rows, expected, atol=1e-4, rtol=0)


def test_what_is_seen_in_a_picture_does_not_depend_on_the_others_of_its_batch():
    model = network()
    image = torch.rand(3, 3, 48, 64)
    for mode in (model.train(), model.eval()):
        together, alone = mode(image), mode(image[1:2])
        for name in ("position", "led"):
            torch.testing.assert_close(together[name][1:2], alone[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("is_channels_last", [False, True])
def test_norm_passes_the_gradient_of_its_definition_whatever_the_memory_layout(is_channels_last):
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    norm = PictureNorm(5).double()
    torch.nn.init.normal_(norm.weight)
    levels = [torch.randn(2, 5, *size).double().to(memory_format=layout).requires_grad_() for size in ((6, 8), (3, 4))]
    upstream = [torch.randn_like(x).contiguous() for x in levels]

    def by_definition() -> list[torch.Tensor]:
        values = torch.cat([x.flatten(2) for x in levels], 2)[..., None]
        mean, std = values.mean(2, keepdim=True), (values.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
        scale, shift = norm.weight.view(5, 1, 1) / std, norm.bias.view(5, 1, 1)
        return [(x - mean) * scale + shift for x in levels]

    inputs = [*levels, norm.weight, norm.bias]
    found, expected = (
        torch.autograd.grad(sum((y * g).sum() for y, g in zip(out, upstream, strict=True)), inputs)
        for out in (norm(levels), by_definition())
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_visibility_starts_at_the_arc_from_which_an_led_is_seen():
    model = network()
    bearing = torch.linspace(-math.pi, math.pi, 721)
    seen = visibility_logits(model.arc, bearing) > 0
    for k, (azimuth, half_width) in enumerate(zip(AZIMUTHS, HALF_WIDTHS, strict=True)):
        away = torch.remainder(bearing - azimuth + math.pi, 2 * math.pi) - math.pi
        off = seen[:, k] != (away.abs() < half_width)
        assert not off[(away.abs() - half_width).abs() > 0.02].any()


def test_a_level_of_half_the_size_shows_everything_twice_as_far():
    config = LedFcnConfig(channels=SMALL.channels, num_scales=3, ratio=0.5)
    model = network(config).eval()
    with torch.no_grad():
        model.head.weight.zero_()
    log_range = model(torch.rand(1, 3, 64, 64))["log_range"][0]
    grid = pyramid_grid(64, 64, config)
    for level in range(3):
        assert log_range[grid.level == level].unique().item() == pytest.approx(level * math.log(0.5))


def test_levels_are_rounded_zooms_and_bearings_go_round():
    assert level_sizes(180, 320, LedFcnConfig(num_scales=3, ratio=0.5)) == [(180, 320), (90, 160), (45, 80)]
    assert bin_bearings_rad(4).tolist() == pytest.approx([0, math.pi / 2, math.pi, 3 * math.pi / 2])
    assert torch.equal(pyramid_grid(16, 16, LedFcnConfig(num_scales=1)).uv, pixel_grid(2, 2, STRIDE).flatten(0, 1))


def test_impossible_pyramids_are_refused():
    with pytest.raises(ValueError, match="ratio"):
        LedFcnConfig(ratio=1.0)
    with pytest.raises(ValueError, match="channels"):
        LedFcnConfig(channels=(8, 8))


def test_without_a_range_head_the_level_tells_the_range():
    model = LedFcn(SMALL, {"position": 1}).eval()
    maps = model(torch.rand(1, 3, 64, 64))
    assert torch.equal(maps["log_range"][0], maps["log_zoom"])
    assert "bearing" not in maps


def test_at_first_all_levels_have_equal_shares_of_the_robot():
    model = network().eval()
    with torch.no_grad():
        model.head.weight.zero_()
        prob = model(torch.rand(1, 3, 180, 320))["position"][0].double().softmax(0)
    grid = pyramid_grid(180, 320, SMALL)
    shares = [float(prob[grid.level == level].sum()) for level in range(SMALL.num_scales)]
    assert shares == pytest.approx([1 / SMALL.num_scales] * SMALL.num_scales)


def test_lights_glow_and_bright_walls_do_not():
    """Of a picture with a bright half and a small light, only the light's cell stands out; exposure changes nothing."""
    image = torch.full((1, 3, 64, 96), 0.2)
    image[..., :40, 60:] = 0.8
    image[0, 1, 42:45, 18:21] = 1.0
    spot = glow(standardised(image))[0]
    assert int(spot.argmax()) == 5 * 12 + 2
    torch.testing.assert_close(glow(standardised(0.5 * image))[0], spot, atol=0.05, rtol=0)
    assert glow(torch.zeros(1, 3, 64, 96)).abs().max() == 0


def test_positions_lean_on_what_glows_as_much_as_asked():
    model = network().eval()
    image = torch.full((1, 3, 180, 320), 0.3)
    image[0, :, 60:64, 200:204] = 1.0
    with torch.no_grad():
        plain, leaning = model(image), model(image, glow_weight=2.0)
    near = (leaning["uv"][0] - torch.tensor([201.5, 61.5])).norm(dim=1) < 12
    assert leaning["position"][0].softmax(0)[near].sum() > 20 * plain["position"][0].softmax(0)[near].sum()
    torch.testing.assert_close(leaning["led"], plain["led"])
