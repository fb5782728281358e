from pathlib import Path

import numpy as np
import pytest

from glimpose.robots.leds import Led, LedRobot, load_leds

ROBOMASTER = Path("robomaster")


def test_arcs_of_the_robomaster_are_the_published_ones():
    robot = load_leds(ROBOMASTER)
    arcs = {"bf": (-80, 80), "bl": (35, 145), "br": (-145, -35), "tl": (0, 180), "tr": (-180, 0)}
    for psi in range(-179, 180):
        seen = dict(zip(robot.led_names, robot.faces(np.deg2rad(psi)), strict=True))
        assert seen["bb"] == (abs(psi) >= 100)
        assert all(seen[name] == (low <= psi <= high) for name, (low, high) in arcs.items())


def test_mirroring_swaps_left_and_right_and_keeps_the_rest():
    robot = load_leds(ROBOMASTER)
    mirrored = {robot.led_names[i]: robot.led_names[j] for i, j in enumerate(robot.mirrored)}
    assert mirrored == {"bf": "bf", "bb": "bb", "bl": "br", "br": "bl", "tl": "tr", "tr": "tl"}


def test_ambiguous_mirror_images_are_refused():
    leds = (Led("low", 90), Led("high", 90), Led("right", -90))
    with pytest.raises(ValueError, match="mirror image of LED right could be low, high"):
        _ = LedRobot("lamp", leds, (0, 0, 0)).mirrored


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\ngimbal_m = [0, 0, 0]\nleds = []', "at least one"),
        ('name = "x"\ngimbal_m = [0, 0, 0]\n[[leds]]\nname = "a"', r"leds\[0\].azimuth_deg: missing"),
        ('name = "x"\ngimbal_m = [0, 0, 0]\n[[leds]]\nname = "a"\nazimut_deg = 1', "azimuth_deg"),
        ('name = "x"\ngimbal_m = [0, 0, 0]\n[[leds]]\nname = "a b"\nazimuth_deg = 1', "a b"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, text, message):
    (tmp_path / "robot.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_leds(tmp_path / "robot.toml")


def test_names_given_twice_are_named():
    with pytest.raises(ValueError, match="a given more than once"):
        LedRobot("x", (Led("a", 0), Led("a", 90)), (0, 0, 0))


def test_robots_are_files_or_come_with_glimpose(tmp_path: Path):
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\ngimbal_m = [0, 0, 0.1]\n[[leds]]\nname = "f"\nazimuth_deg = 0\n'
    )
    assert load_leds(Path("mine.toml"), beside=tmp_path).name == "mine"
    assert load_leds(Path("robomaster"), beside=tmp_path).name == "robomaster"
    with pytest.raises(FileNotFoundError, match=r"robmaster: no such .* or one of robomaster"):
        load_leds(Path("robmaster"))
