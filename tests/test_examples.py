"""The examples run as they are."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from glimpose.data.bop import Camera, write_camera
from glimpose.data.files import write_image

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_examples_are_short():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name


def test_drawing_a_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["01_draw_a_part.py"])
    runpy.run_path(str(EXAMPLES / "01_draw_a_part.py"), run_name="__main__")
    assert (tmp_path / "part.png").stat().st_size > 1000


def test_poses_in_a_photograph(tmp_path, monkeypatch, checkpoint, capsys):
    write_image(tmp_path / "photo.png", np.full((480, 640, 3), 80, np.uint8))
    write_camera(tmp_path / "camera.json", Camera(np.array([[570.0, 0, 320], [0, 570, 240], [0, 0, 1]])))
    arguments = [str(checkpoint), str(tmp_path / "photo.png"), str(tmp_path / "camera.json")]
    monkeypatch.setattr(sys, "argv", ["02_poses_in_a_photograph.py", *arguments])
    runpy.run_path(str(EXAMPLES / "02_poses_in_a_photograph.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert all("score" in line for line in lines)


def test_an_unknown_public_name_is_an_attribute_error():
    import glimpose

    with pytest.raises(AttributeError, match="nonsense"):
        _ = glimpose.nonsense
