from pathlib import Path

import pytest

from glimpose.config import load
from glimpose.robots.demo import run_demo, simple_room
from glimpose.robots.simulate import SimulationConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "robots"
ROBOT = Path("robomaster")


def test_the_small_room_to_simulate_is_that_of_the_demo():
    assert load(SimulationConfig, CONFIGS / "small-a.toml") == simple_room()


def test_demo_refuses_a_folder_with_something_in_it(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        run_demo(tmp_path, ROBOT)


@pytest.mark.slow
def test_demo_goes_the_whole_way(tmp_path):
    result = run_demo(tmp_path / "demo", ROBOT, minutes=0.02, num_frames=60, num_test=20)
    text = result.page.read_text()
    assert "<img" in text
    assert "Surprise" in text
    assert result.summary["n"] > 0
    assert result.summary["E_d_percent"] is not None
