"""Fixtures: two small parts, one with a half-turn symmetry, and all that is needed to make samples of them."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from glimpose.data.backgrounds import Backgrounds
from glimpose.nets.glance_gaze import GlanceGaze, GlanceGazeConfig
from glimpose.nets.mtgoe import MtgoeConfig
from glimpose.objects.catalogue import ObjectModel, object_model
from glimpose.objects.samples import SampleConfig, SampleMaker
from glimpose.objects.synthesis import Photographer, SceneSampler, SynthesisConfig
from glimpose.render.mesh import Mesh, box_mesh
from glimpose.render.scene import make_renderer
from glimpose.training.checkpoint import save_tensors

TINY = MtgoeConfig(
    width=0.35, neck_channels=32, branch_channels=24, depth_channels=16, segmentation_channels=16, field_channels=24
)


@dataclass(frozen=True)
class Parts:
    objects: list[ObjectModel]
    meshes: list[Mesh]
    network: GlanceGazeConfig
    synthesis: SynthesisConfig


@pytest.fixture(scope="session")
def parts() -> Parts:
    rng = np.random.default_rng(3)
    box = box_mesh((0.1, 0.06, 0.04))
    corners = len(box.vertices) // 6
    box = replace(box, colors=np.repeat(rng.integers(0, 255, (6, 3)), corners, axis=0).astype(np.uint8))
    half_turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    bar = box_mesh((0.12, 0.05, 0.03))
    meshes = [box, bar]
    objects = [object_model(3, "box", box, 8), object_model(7, "bar", bar, 8, [half_turn])]
    network = GlanceGazeConfig(glance=TINY, gaze=TINY)
    synthesis = SynthesisConfig(num_objects=(2, 3), num_distractors=(0, 2), distance_m=(0.4, 0.7), mesh_faces=0)
    return Parts(objects, meshes, network, synthesis)


@pytest.fixture(scope="session")
def maker(parts: Parts) -> SampleMaker:
    sampler = SceneSampler(parts.meshes, parts.synthesis)
    photographer = Photographer(make_renderer(), Backgrounds())
    return SampleMaker(parts.objects, sampler, photographer, parts.network, SampleConfig(decoy_probability=0))


@pytest.fixture
def checkpoint(tmp_path: Path, parts: Parts) -> Path:
    """An untrained checkpoint of the two parts."""
    path = tmp_path / "model.safetensors"
    weights = {f"model.{name}": value for name, value in GlanceGaze(parts.network, 2).state_dict().items()}
    objects = [model.to_json() for model in parts.objects]
    save_tensors(path, weights, {"kind": "objects", "network": asdict(parts.network), "objects": objects})
    return path
