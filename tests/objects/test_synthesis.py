from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import Delaunay
from trimesh.convex import convex_hull

from glimpose.data.sensor import SensorConfig
from glimpose.objects import synthesis
from glimpose.objects.dataset import LabelledPhotographs
from glimpose.objects.synthesis import SceneSampler, SynthesisConfig, _orientation, _Prop, only_visible_in
from glimpose.render.mesh import box_mesh

UPRIGHT = {"tilt_deg": 0.0, "free_pose_probability": 0.0, "side_probability": 0.0}


@pytest.fixture
def sampler(parts) -> SceneSampler:
    return SceneSampler(parts.meshes, parts.synthesis)


def test_a_scene_is_a_function_of_its_generator(sampler):
    first, second = (sampler.draw(np.random.default_rng(5)) for _ in range(2))
    assert first.object_index == second.object_index
    for a, b in zip(first.instances, second.instances, strict=True):
        np.testing.assert_array_equal(a.cam_T_obj, b.cam_T_obj)


def test_poses_are_rigid_and_in_front_of_the_camera(sampler):
    for seed in range(20):
        for instance in sampler.draw(np.random.default_rng(seed)).instances:
            R = instance.cam_T_obj[:3, :3]
            np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
            assert np.linalg.det(R) > 0
            assert instance.cam_T_obj[2, 3] > 0


def test_upright_objects_are_seen_from_the_elevations_asked_for(parts):
    synthesis = replace(parts.synthesis, elevation_deg=(30.0, 40.0), **UPRIGHT)
    sampler = SceneSampler(parts.meshes, synthesis)
    for seed in range(20):
        for instance in sampler.draw(np.random.default_rng(seed)).instances:
            up = instance.cam_T_obj[:3, 2]  # the table's normal, in the camera frame
            elevation_deg = np.rad2deg(np.arcsin(-up[2]))
            assert 30 - 1e-9 <= elevation_deg <= 40 + 1e-9


def test_fallen_objects_lie_on_sides_that_hold_them(parts):
    """The lowest corners of a fallen part are level, and their hull holds its centre of mass."""
    sampler = SceneSampler(parts.meshes, replace(parts.synthesis, **UPRIGHT))
    for prop in sampler.objects:
        rotations, prob = prop.sides
        assert prob.sum() == pytest.approx(1.0)
        hull = convex_hull(prop.outline_m)
        for rotation in rotations:
            np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
            corners = hull.vertices @ rotation.T
            touching = corners[corners[:, 2] < corners[:, 2].min() + 1e-6]
            assert len(touching) >= 3
            assert Delaunay(touching[:, :2]).find_simplex((rotation @ hull.center_mass)[:2]) >= 0


def test_a_cube_falls_onto_each_of_its_six_sides_alike():
    prop = SceneSampler([box_mesh((0.1, 0.1, 0.1))], SynthesisConfig()).objects[0]
    np.testing.assert_allclose(prop.sides[1], np.full(6, 1 / 6), atol=1e-6)


def test_what_stays_on_no_side_stands_as_it_is(parts, monkeypatch):
    monkeypatch.setattr(synthesis, "LEAST_SIDE", 1.1)  # as of a ball, which falls onto each too seldom
    prop = _Prop.of(parts.meshes[0])
    rotations, prob = prop.sides
    assert len(rotations) == len(prob) == 0
    config = replace(parts.synthesis, **{**UPRIGHT, "side_probability": 1.0})
    assert _orientation(np.random.default_rng(0), config, prop, is_free=False)[2, 2] == pytest.approx(1.0)


def test_a_share_of_objects_lies_on_another_side(parts):
    for share in (0.0, 0.5):
        sampler = SceneSampler(parts.meshes, replace(parts.synthesis, **{**UPRIGHT, "side_probability": share}))
        ups = []
        for seed in range(60):
            rng = np.random.default_rng(seed)
            ups += [_orientation(rng, sampler.config, sampler.objects[seed % 2], False)[2, 2]]
        fallen = np.mean(np.array(ups) < 0.99)
        assert fallen == pytest.approx(share * 0.8, abs=0.2)


def test_full_difficulty_is_the_config_and_none_is_a_fair_day():
    config = SynthesisConfig()
    assert config.eased(1.0) == config
    easy = config.eased(0.0)
    assert easy.free_pose_probability == easy.side_probability == easy.patch_probability == 0
    assert easy.num_distractors == (0, 0)
    assert easy.sensor.exposure_gain == easy.sensor.gamma == (1, 1)
    assert easy.sensor.hue_rad == (0, 0)
    assert easy.crowding > config.crowding


def test_parts_in_a_bin_stay_in_any_pose_however_easy():
    assert SynthesisConfig(free_pose_probability=1.0).eased(0.0).free_pose_probability == 1.0


def test_difficulty_between_lies_between():
    config, half = SensorConfig(), SensorConfig().eased(0.5)
    assert config.exposure_gain[0] < half.exposure_gain[0] < 1 < half.exposure_gain[1] < config.exposure_gain[1]
    assert 0 < half.motion_prob < config.motion_prob


def test_what_is_left_out_of_a_scene_is_not_in_the_picture(sampler, maker, parts):
    renderer, K = maker.photographer.renderer, parts.synthesis.K
    shifted = np.array([[1, 0, -250], [0, 1, -150], [0, 0, 1.0]]) @ K
    for seed in range(8):
        scene = sampler.draw(np.random.default_rng(seed))
        whole = renderer.render(scene.instances, shifted, 96, 96)
        part = renderer.render(only_visible_in(scene, shifted, 96, 96).instances, shifted, 96, 96)
        np.testing.assert_array_equal(whole.depth, part.depth)


def test_photographs_to_keep_are_drawn_of_simplified_meshes(parts):
    """As those to train on are: what isn't drawn takes no time."""
    photographs = LabelledPhotographs(parts.objects, parts.meshes, replace(parts.synthesis, mesh_faces=8), seed=0)
    assert all(len(mesh.faces) > 8 for mesh in parts.meshes)
    assert all(len(prop.mesh.faces) <= 8 for prop in photographs.sampler.objects)
