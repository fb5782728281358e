from pathlib import Path

import numpy as np
import pytest

from glimpose.data.files import read_gray, read_image, read_json, write_image, write_text

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def test_png_keeps_every_pixel_in_rgb_order(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", IMAGE)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), IMAGE)


def test_sixteen_bits_survive(tmp_path: Path) -> None:
    depth = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) * 300
    write_image(tmp_path / "a.png", depth)
    np.testing.assert_array_equal(read_gray(tmp_path / "a.png"), depth)


def test_grey_images_are_read_with_three_channels(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", IMAGE[..., 0])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.repeat(IMAGE[..., :1], 3, axis=2))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.99])
def test_truncated_images_are_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"000017{suffix}"
    write_image(path, IMAGE)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match=r"000017\.(png|jpg): "):
        read_image(path)


def test_bytes_after_the_image_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    write_image(path, IMAGE)
    whole = read_image(path)
    path.write_bytes(path.read_bytes() + b"trailer of some phone")
    np.testing.assert_array_equal(read_image(path), whole)


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty"), (b"text", "not an image"), (None, "no such image")])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        read_image(path)


def test_malformed_json_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "scene_gt.json"
    path.write_text('{"1": [\n  {"obj_id": 5,')
    with pytest.raises(ValueError, match=r"scene_gt\.json, line 2, column \d+: malformed JSON"):
        read_json(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file"):
        read_json(path)


def test_interrupted_writing_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
