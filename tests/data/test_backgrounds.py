import cv2
import numpy as np
import pytest

from glimpose.data.backgrounds import Backgrounds, paste, procedural_texture, random_colour, random_piece


@pytest.fixture
def photographs(tmp_path):
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(90, 160), (1500, 700), (20, 30)]):
        noise = rng.integers(0, 256, (6, 6, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.png"), cv2.resize(noise, (width, height)))
    (tmp_path / "sub").mkdir()
    cv2.imwrite(str(tmp_path / "sub" / "3.jpg"), np.full((64, 64, 3), 128, np.uint8))
    (tmp_path / "notes.txt").write_text("not a photograph")
    return tmp_path


@pytest.fixture(params=["photographs", "procedural"])
def backgrounds(request):
    return Backgrounds(request.getfixturevalue("photographs") if request.param == "photographs" else None)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (480, 640), (97, 33), (5, 7), (1, 1)])
def test_backgrounds_have_the_size_asked_for(backgrounds, height, width):
    rng = np.random.default_rng(3)
    for _ in range(10):
        image = backgrounds.sample(rng, height, width)
        assert image.shape == (height, width, 3)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous


def test_backgrounds_are_a_function_of_the_generator(backgrounds):
    images = [[backgrounds.sample(np.random.default_rng((seed, 5)), 64, 96) for seed in range(20)] for _ in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(*images, strict=True))
    assert len({image.tobytes() for image in images[0]}) == 20


def test_sampling_leaves_the_photographs_as_they_were(photographs):
    backgrounds = Backgrounds(photographs, clutter_prob=1.0)
    before = [[level.copy() for level in pyramid] for pyramid in backgrounds.photographs]
    rng = np.random.default_rng(0)
    for _ in range(30):
        backgrounds.sample(rng, 90, 160)[:] = 0
    assert all(
        np.array_equal(a, b)
        for pyramid, copy in zip(backgrounds.photographs, before, strict=True)
        for a, b in zip(pyramid, copy, strict=True)
    )


def test_photographs_are_found_in_subfolders_and_kept_small(photographs):
    backgrounds = Backgrounds(photographs, max_side_px=500)
    assert len(backgrounds) == 4
    assert len(Backgrounds()) == 0
    assert max(max(pyramid[0].shape) for pyramid in backgrounds.photographs) == 500


def test_photographs_keep_their_channel_order(tmp_path):
    cv2.imwrite(str(tmp_path / "blue.png"), np.full((80, 80, 3), (200, 40, 10), np.uint8))
    (pyramid,) = Backgrounds(tmp_path).photographs
    assert all((level == (10, 40, 200)).all() for level in pyramid)


def test_textures_come_from_all_photographs(tmp_path):
    for value in (0, 100, 200):
        cv2.imwrite(str(tmp_path / f"{value}.png"), np.full((80, 80, 3), value, np.uint8))
    rng = np.random.default_rng(0)
    backgrounds = Backgrounds(tmp_path)
    seen = {int(np.median(backgrounds.texture(rng, 8, 8))) for _ in range(60)}
    assert {0, 100, 200} <= seen


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        Backgrounds(tmp_path / "nowhere")


def test_folder_without_photographs_is_named(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path.name}: no background photographs.*procedural"):
        Backgrounds(tmp_path)


@pytest.mark.parametrize("content", [b"", b"this is no JPEG"])
def test_unreadable_photograph_is_named(photographs, content):
    (photographs / "broken.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.jpg: not a readable image"):
        Backgrounds(photographs)


def test_pieces_lie_inside_the_image_wherever_they_are_centred():
    rng = np.random.default_rng(0)
    for i in range(300):
        height, width = (int(n) for n in rng.integers(4, 200, 2))
        center_uv = tuple(rng.uniform(-100, 300, 2)) if i % 2 else None
        piece = random_piece(rng, height, width, float(rng.uniform(3, 200)), center_uv=center_uv)
        assert 0 <= piece.rows.start < piece.rows.stop <= height
        assert 0 <= piece.columns.start < piece.columns.stop <= width
        box = (piece.rows.stop - piece.rows.start, piece.columns.stop - piece.columns.start)
        assert piece.alpha.shape == box
        assert piece.rgb.shape == (*box, 3)


def test_pieces_have_about_the_size_and_place_asked_for():
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(200):
        piece = random_piece(rng, 400, 400, 100.0, center_uv=(150.0, 250.0))
        rows, columns = np.nonzero(piece.alpha > 127)
        assert abs(columns.mean() + piece.columns.start - 150.0) < 25
        assert abs(rows.mean() + piece.rows.start - 250.0) < 25
        areas.append(len(rows))
    assert 1000 < np.mean(areas) < 10000


def test_pasting_changes_only_what_the_piece_covers():
    rng = np.random.default_rng(1)
    for _ in range(30):
        image = rng.integers(0, 256, (80, 90, 3), np.uint8)
        before = image.copy()
        piece = random_piece(rng, 80, 90, 40.0)
        paste(image, piece)
        alpha = np.zeros((80, 90), np.uint8)
        alpha[piece.rows, piece.columns] = piece.alpha
        assert np.array_equal(image[alpha == 0], before[alpha == 0])
        assert np.array_equal(image[piece.rows, piece.columns][piece.alpha == 255], piece.rgb[piece.alpha == 255])
        lowest = np.minimum(before[piece.rows, piece.columns], piece.rgb).astype(int)
        highest = np.maximum(before[piece.rows, piece.columns], piece.rgb).astype(int)
        blend = image[piece.rows, piece.columns].astype(int)
        assert (blend >= lowest - 1).all()
        assert (blend <= highest + 1).all()


def test_procedural_textures_and_colours_cover_dark_bright_grey_and_saturated():
    rng = np.random.default_rng(0)
    means = np.array([procedural_texture(rng, 16, 16).mean() for _ in range(200)])
    assert means.min() < 40
    assert means.max() > 215
    colours = np.array([random_colour(rng) for _ in range(300)], float)
    saturation = colours.max(1) - colours.min(1)
    assert saturation.min() < 10
    assert saturation.max() > 200
