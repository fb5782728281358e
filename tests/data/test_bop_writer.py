from pathlib import Path

import numpy as np
import pytest

from glimpose.data.bop import BopDataset, ModelInfo, model_path, read_models_info
from glimpose.data.bop_results import targets_of
from glimpose.data.bop_writer import SceneWriter, write_models
from glimpose.render.mesh import Mesh, box_mesh, diameter_m, load_mesh, sphere_mesh

K = np.array([[500.0, 2, 8], [0, 510, 6], [0, 0, 1]])
IMAGE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
POSE = np.array([[0.0, -1, 0, 0.1], [1, 0, 0, -0.2], [0, 0, 1, 0.7], [0, 0, 0, 1]])
MASK = np.zeros((12, 16), bool)
MASK[2:8, 3:13] = True
VISIBLE = MASK & (np.arange(16) < 6)
NOTHING = np.zeros_like(MASK)


def test_a_written_scene_reads_as_it_was(tmp_path: Path) -> None:
    depth_m = np.where(VISIBLE, 0.6543, 0).astype(np.float32)
    with SceneWriter(tmp_path, "train", 4, image_suffix=".png") as scene:
        for i in range(2):
            masks, visible = [MASK, MASK, NOTHING], [VISIBLE, MASK, NOTHING]
            assert scene.add(IMAGE, K, [5, 7, 7], [POSE] * 3, masks, visible, depth_m) == i
    dataset = BopDataset(tmp_path, "train")
    assert dataset.keys == [(4, 0), (4, 1)]
    frame = dataset[1]
    np.testing.assert_array_equal(frame.read_image(), IMAGE)
    np.testing.assert_array_equal(frame.K, K)
    np.testing.assert_allclose(frame.read_depth(), depth_m, atol=0.5e-4)
    np.testing.assert_array_equal(frame.read_mask(0), MASK)
    np.testing.assert_array_equal(frame.read_visible_mask(0), VISIBLE)
    assert frame.annotations is not None
    assert [a.obj_id for a in frame.annotations] == [5, 7, 7]
    assert [a.visible_fraction for a in frame.annotations] == [0.3, 1.0, 0.0]
    np.testing.assert_allclose(frame.annotations[0].cam_T_obj, POSE)
    assert [(t.obj_id, t.inst_count) for t in targets_of(dataset)] == [(5, 1), (7, 1)] * 2


def test_the_visible_fraction_counts_what_lies_beyond_the_image(tmp_path: Path) -> None:
    with SceneWriter(tmp_path, "train", 0) as scene:
        scene.add(IMAGE, K, [5], [POSE], [MASK], [MASK], silhouettes_px=[120])
    frame = BopDataset(tmp_path, "train")[0]
    assert frame.annotations is not None
    assert frame.annotations[0].visible_fraction == 0.5
    assert not frame.has_depth


def test_an_interrupted_scene_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with SceneWriter(tmp_path, "train", 0) as scene:
            scene.add(IMAGE, K, [5], [POSE], [MASK], [VISIBLE])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list((tmp_path / "train").iterdir())


def test_an_existing_scene_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "train" / "000000").mkdir(parents=True)
    with pytest.raises(ValueError, match="000000: exists already"):
        SceneWriter(tmp_path, "train", 0)


def test_depth_beyond_16_bits_is_refused(tmp_path: Path) -> None:
    far = np.full(MASK.shape, 7.0)
    with pytest.raises(ValueError, match="larger depth_scale"), SceneWriter(tmp_path, "train", 0) as scene:
        scene.add(IMAGE, K, [], [], [], [], far)
    with SceneWriter(tmp_path, "train", 0, depth_scale=1.0) as scene:
        scene.add(IMAGE, K, [], [], [], [], far)
    np.testing.assert_allclose(BopDataset(tmp_path, "train")[0].read_depth(), 7.0)


def coloured(mesh: Mesh) -> Mesh:
    colors = np.random.default_rng(1).integers(0, 256, mesh.colors.shape, dtype=np.uint8)
    return Mesh(mesh.vertices, mesh.faces, mesh.normals, colors)


def test_models_survive_their_files(tmp_path: Path) -> None:
    meshes = {3: coloured(box_mesh((0.1, 0.2, 0.05))), 11: coloured(sphere_mesh(0.04, 2))}
    half_turn = np.diag([-1.0, -1, 1, 1])
    half_turn[0, 3] = 0.01
    spin = (np.array([0.0, 0, 1]), np.array([0.0, 0.002, 0]))
    infos = {3: ModelInfo(diameter_m(meshes[3]), (half_turn,)), 11: ModelInfo(diameter_m(meshes[11]), (), (spin,))}
    write_models(tmp_path, meshes, infos)
    read = read_models_info(tmp_path)
    for obj_id, mesh in meshes.items():
        loaded = load_mesh(model_path(tmp_path, obj_id))
        np.testing.assert_allclose(loaded.vertices, mesh.vertices, atol=1e-8)
        np.testing.assert_array_equal(loaded.faces, mesh.faces)
        np.testing.assert_allclose(loaded.normals, mesh.normals, atol=0.02)  # trimesh computes them anew
        np.testing.assert_array_equal(loaded.colors, mesh.colors)
        assert read[obj_id].diameter_m == pytest.approx(infos[obj_id].diameter_m)
    np.testing.assert_allclose(read[3].discrete[0], half_turn)
    np.testing.assert_allclose(read[11].continuous[0], spin)


def test_textures_are_written_beside_the_mesh(tmp_path: Path) -> None:
    box = box_mesh((0.1, 0.1, 0.1))
    uv = np.random.default_rng(2).random((len(box.vertices), 2), dtype=np.float32)
    mesh = Mesh(box.vertices, box.faces, box.normals, box.colors, uv, IMAGE)
    write_models(tmp_path, {1: mesh}, {1: ModelInfo(diameter_m(mesh))})
    loaded = load_mesh(model_path(tmp_path, 1))
    assert loaded.texture is not None
    assert loaded.uv is not None
    np.testing.assert_array_equal(loaded.texture, IMAGE)
    np.testing.assert_allclose(loaded.uv, uv, atol=1e-6)
