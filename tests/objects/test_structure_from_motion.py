"""Cameras are found from pictures alone, up to the scene's frame and unit."""

import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from glimpose.objects.photographs import Photograph
from glimpose.objects.structure_from_motion import find_cameras
from glimpose.render.mesh import Mesh
from glimpose.render.scene import Instance, make_renderer

K = np.array([[430.0, 0, 151.5], [0, 440.0, 117.0], [0, 0, 1]])


def hills(rng: np.random.Generator) -> Mesh:
    """A piece of land, a metre wide, whose heights and colours are random: full of corners."""
    cells = 70
    y, x = np.mgrid[:cells, :cells] / (cells - 1) - 0.5
    vertices = np.stack([x, y, rng.uniform(0, 0.05, x.shape) + 0.15 * np.sin(7 * x) * np.cos(5 * y)], -1)
    corner = (np.arange(cells - 1)[:, None] * cells + np.arange(cells - 1)).ravel()
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + cells], 1),
            np.stack([corner + 1, corner + cells + 1, corner + cells], 1),
        ]
    )
    return Mesh(
        vertices.reshape(-1, 3).astype(np.float32),
        faces.astype(np.int32),
        np.tile(np.float32([0, 0, 1]), (cells**2, 1)),
        rng.integers(0, 256, (cells**2, 3), dtype=np.uint8),
    )


def looking_down(azimuth: float) -> np.ndarray:
    """cam_T_world of a camera above the land that looks at its middle."""
    back = np.array([0.6 * np.cos(azimuth), 0.6 * np.sin(azimuth), 0.8])
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(-back, right), -back])
    pose[2, 3] = 0.9
    return pose


def test_cameras_are_where_pictures_were_taken_from():
    """Of a scene that stands still: how cameras turned, and they moved up to one factor."""
    land, renderer = hills(np.random.default_rng(0)), make_renderer()
    truth = [looking_down(azimuth) for azimuth in np.arange(11) * 0.12]
    photographs = [Photograph(renderer.render([Instance(land, pose)], K, 240, 320).albedo, K) for pose in truth]
    noise = np.random.default_rng(1).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    found = find_cameras([*photographs, Photograph(noise, K)])
    assert 10 <= len(found) <= 11
    assert 11 not in found
    ratios = []
    for number, pose in found.items():
        by_truth, moved = truth[number] @ np.linalg.inv(truth[0]), pose @ np.linalg.inv(found[0])
        off = Rotation.from_matrix(by_truth[:3, :3].T @ moved[:3, :3]).magnitude()
        assert np.rad2deg(off) < 0.5
        if number:
            ratios.append(np.linalg.norm(moved[:3, 3]) / np.linalg.norm(by_truth[:3, 3]))
    assert np.std(ratios) < 0.01 * np.mean(ratios)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(ValueError, match=r"pip install glimpose\[scene\]"):
        find_cameras([])
