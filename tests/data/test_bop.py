import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from glimpose.data.bop import BopDataset, Camera, ModelInfo, model_path, read_camera, read_models_info, write_camera
from glimpose.data.bop_results import (
    ResultRow,
    Target,
    read_results_csv,
    read_targets,
    targets_of,
    write_results_csv,
    write_targets,
)
from glimpose.data.files import write_image

K = [500.0, 0.0, 8.0, 0.0, 510.0, 6.0, 0.0, 0.0, 1.0]
R = Rotation.from_euler("xyz", [0.1, -0.7, 2.0]).as_matrix()
GREY = np.full((12, 16, 3), 99, np.uint8)


def dump(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def label(obj_id: int = 5) -> dict[str, Any]:
    return {"cam_R_m2c": R.ravel().tolist(), "cam_t_m2c": [10.0, -20.0, 900.0], "obj_id": obj_id}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two scenes; the second has neither labels nor colour, and its image is a JPEG."""
    one, two = tmp_path / "val" / "000001", tmp_path / "val" / "000023"
    dump(one / "scene_camera.json", {"3": {"cam_K": K, "depth_scale": 0.5}, "14": {"cam_K": K}})
    dump(one / "scene_gt.json", {"3": [label(5), label(7)], "14": [label(7)]})
    dump(one / "scene_gt_info.json", {"3": [{"visib_fract": 0.9}, {"visib_fract": 0.05}], "14": [{"visib_fract": 1.0}]})
    dump(two / "scene_camera.json", {"0": {"cam_K": K}})
    for folder in (one / "rgb", one / "depth", one / "mask", one / "mask_visib", two / "gray"):
        folder.mkdir()
    write_image(one / "rgb" / "000003.png", GREY)
    write_image(two / "gray" / "000000.jpg", GREY[..., 0])
    write_image(one / "depth" / "000003.png", np.full((12, 16), 1500, np.uint16))
    write_image(one / "mask" / "000003_000001.png", np.full((12, 16), 255, np.uint8))
    write_image(one / "mask_visib" / "000003_000001.png", np.eye(12, 16, dtype=np.uint8) * 255)
    return tmp_path


def test_a_dataset_is_every_frame_of_every_scene(root: Path) -> None:
    dataset = BopDataset(root, "val")
    assert dataset.scene_ids == [1, 23]
    assert dataset.keys == [(frame.scene_id, frame.im_id) for frame in dataset] == [(1, 3), (1, 14), (23, 0)]
    assert len(dataset) == 3
    assert dataset[1].im_id == 14


def test_a_frame_is_in_metres(root: Path) -> None:
    frame = BopDataset(root, "val").frame(1, 3)
    assert frame.K.tolist() == [K[:3], K[3:6], K[6:]]
    assert frame.annotations is not None
    annotation = frame.annotations[1]
    assert (annotation.obj_id, annotation.visible_fraction) == (7, 0.05)
    np.testing.assert_allclose(annotation.cam_T_obj[:3, 3], [0.01, -0.02, 0.9])
    np.testing.assert_array_equal(annotation.cam_T_obj[:3, :3], R)
    np.testing.assert_allclose(frame.read_depth(), 0.75)


def test_images_and_masks_are_found_where_they_are(root: Path) -> None:
    dataset = BopDataset(root, "val")
    np.testing.assert_array_equal(dataset.frame(1, 3).read_image(), GREY)
    np.testing.assert_array_equal(dataset.frame(23, 0).read_image(), GREY)
    assert dataset.frame(1, 3).read_mask(1).all()
    assert dataset.frame(1, 3).read_visible_mask(1).sum() == 12
    with pytest.raises(FileNotFoundError, match=r"image 3 is missing, expected mask/000003_000000\.png"):
        dataset.frame(1, 3).read_mask(0)
    with pytest.raises(FileNotFoundError, match=r"000001: image 14 is missing, expected rgb or gray/000014\.png"):
        dataset.frame(1, 14).read_image()


def test_unlabelled_scenes_have_no_annotations(root: Path) -> None:
    frame = BopDataset(root, "val").frame(23, 0)
    assert frame.annotations is None
    assert not frame.has_depth


def test_targets_are_what_shows_enough_of_itself(root: Path, tmp_path: Path) -> None:
    targets = targets_of(BopDataset(root, "val"))
    assert targets == [Target(1, 3, 5, 1), Target(1, 14, 7, 1)]
    write_targets(tmp_path / "targets.json", targets)
    assert read_targets(tmp_path / "targets.json") == targets


def test_missing_parts_are_named(root: Path) -> None:
    (root / "test" / "stray").mkdir(parents=True)
    dataset = BopDataset(root, "val")
    for error, wrong in (
        (r"nowhere: no such dataset folder", lambda: BopDataset(root / "nowhere", "val")),
        (r"no split 'tset'; there is val", lambda: BopDataset(root, "tset")),
        (r"test: the split is empty", lambda: BopDataset(root, "test")),
        (r"val: no scene 2; there is 1, 23", lambda: dataset.scene(2)),
        (r"000001/scene_camera\.json: no entry for image 4; it has images 3, 14", lambda: dataset.frame(1, 4)),
        (r"no CAD models, expected models_eval/models_info\.json", lambda: dataset.models_eval_dir),
        (r"object 9 has no mesh, expected obj_000009\.ply; there is none", lambda: model_path(root, 9)),
        (r"scene_camera\.json, image 14: no depth_scale", lambda: _depth_without_scale(root)),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=error):
            wrong()


def _depth_without_scale(root: Path) -> np.ndarray:
    write_image(root / "val" / "000001" / "depth" / "000014.png", np.ones((12, 16), np.uint16))
    return BopDataset(root, "val").frame(1, 14).read_depth()


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("scene_camera", {}, "scene has no images"),
        ("scene_camera", [], "expected an object with named fields"),
        ("scene_camera", {"17": {"cam_K": K[:8]}}, r"image 17: cam_K has 8 numbers, expected 9"),
        ("scene_camera", {"17": {}}, r"image 17: cam_K is None, expected 9 numbers"),
        ("scene_camera", {"17": {"cam_K": [*K[:8], "one"]}}, r"image 17: cam_K is .*, expected 9 finite numbers"),
        ("scene_camera", {"17": {"cam_K": [*K[:8], 2.0]}}, r"image 17: got K = "),
        ("scene_camera", {"x": {"cam_K": K}}, r"image id is 'x', expected a whole number"),
        ("scene_gt", {"3": [label(5)]}, r"scene_gt_info\.json, image 3: has 2 entries, expected 1"),
        ("scene_gt", {"3": [label(), {**label(), "obj_id": -1}]}, r"image 3, entry 1: obj_id is -1"),
        (
            "scene_gt",
            {"3": [label(), {**label(), "cam_t_m2c": [1, 2]}]},
            r"entry 1: cam_t_m2c has 2 numbers, expected 3",
        ),
        ("scene_gt", {"3": [label(), {**label(), "cam_R_m2c": K}]}, r"entry 1: cam_R_m2c is no rotation"),
        ("scene_gt_info", {"3": [{}, {}]}, r"image 3, entry 0: no field visib_fract"),
    ],
)
def test_wrong_scene_files_are_refused(root: Path, file: str, content: Any, error: str) -> None:
    dump(root / "val" / "000001" / f"{file}.json", content)
    with pytest.raises(ValueError, match=rf"{file.split('_')[0]}.*{error}"):
        BopDataset(root, "val").scene(1)


def test_a_camera_survives_its_file(tmp_path: Path) -> None:
    camera = Camera(np.reshape(K, (3, 3)), 16, 12)
    write_camera(tmp_path / "camera.json", camera)
    read = read_camera(tmp_path / "camera.json")
    np.testing.assert_array_equal(read.K, camera.K)
    assert (read.width, read.height) == (16, 12)
    read.check_size(GREY, "000003.png")
    with pytest.raises(ValueError, match=r"000003\.png: is 12×16 pixels, but its camera takes 16×12"):
        read.check_size(GREY.transpose(1, 0, 2), "000003.png")


def test_a_camera_with_skew_has_no_camera_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="skewed"):
        write_camera(tmp_path / "camera.json", Camera(np.array([[500.0, 1, 8], [0, 500, 6], [0, 0, 1]])))
    assert not list(tmp_path.iterdir())


def test_scene_cameras_are_told_apart(tmp_path: Path) -> None:
    path = dump(tmp_path / "scene_camera.json", {"1": {"cam_K": K}, "2": {"cam_K": [400.0, *K[1:]]}})
    assert read_camera(path, 1).K[0, 0] == 500
    assert read_camera(str(path), 2).K[0, 0] == 400  # as in the README
    with pytest.raises(ValueError, match="no entry for image 3; it has images 1, 2"):
        read_camera(path, 3)
    with pytest.raises(ValueError, match="different cameras for its 2 images"):
        read_camera(path)
    assert read_camera(dump(path, {"1": {"cam_K": K}, "2": {"cam_K": K}})).K[0, 0] == 500


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({"fx": 1.0}, "no field fy"),
        ({"fx": 0.0, "fy": 1, "cx": 1, "cy": 1}, "got K = "),
        ({"width": 640}, "neither a camera.json"),
        ({}, "neither a camera.json"),
        ([1], "expected an object with named fields"),
    ],
)
def test_wrong_cameras_are_refused(tmp_path: Path, content: Any, error: str) -> None:
    with pytest.raises(ValueError, match=rf"camera\.json.*{re.escape(error)}"):
        read_camera(dump(tmp_path / "camera.json", content))


def test_models_info_is_in_metres(tmp_path: Path) -> None:
    symmetry = [-1, 0, 0, 10, 0, -1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    continuous = [{"axis": [0, 0, 1], "offset": [0, 5, 0]}]
    dump(
        tmp_path / "models_info.json",
        {
            "4": {"diameter": 120, "symmetries_discrete": [symmetry], "symmetries_continuous": continuous},
            "9": {"diameter": 80},
        },
    )
    infos = read_models_info(tmp_path)
    assert infos[4].diameter_m == pytest.approx(0.12)
    assert infos[4].discrete[0][:3, 3].tolist() == pytest.approx([0.01, 0, 0])
    assert infos[4].continuous[0][1].tolist() == pytest.approx([0, 0.005, 0])
    assert (infos[4].is_symmetric, infos[9].is_symmetric) == (True, False)
    assert infos[9] == ModelInfo(pytest.approx(0.08))


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ({}, "object 4: no field diameter"),
        ({"diameter": 0}, "object 4: diameter is 0, expected millimetres above 0"),
        ({"diameter": 1, "symmetries_discrete": [[1, 2]]}, "object 4: symmetries_discrete has 2 numbers, expected 16"),
        ({"diameter": 1, "symmetries_continuous": [{}]}, "object 4: axis is None, expected 3 numbers"),
    ],
)
def test_wrong_models_info_is_refused(tmp_path: Path, entry: Any, error: str) -> None:
    dump(tmp_path / "models_info.json", {"4": entry})
    with pytest.raises(ValueError, match=rf"models_info\.json, {error}"):
        read_models_info(tmp_path)


def test_results_survive_their_file(tmp_path: Path) -> None:
    cam_T_obj = np.eye(4)
    cam_T_obj[:3, :3], cam_T_obj[:3, 3] = R, [0.1, -0.2, 1 / 3]
    rows = [ResultRow(2, 27, 5, 0.75, cam_T_obj, 0.125), ResultRow(2, 28, 5, 0.5, cam_T_obj)]
    path = tmp_path / "poses.csv"
    write_results_csv(path, rows)
    for row, read in zip(rows, read_results_csv(path), strict=True):
        assert (read.scene_id, read.im_id, read.obj_id) == (row.scene_id, row.im_id, row.obj_id)
        assert (read.score, read.time_s) == (row.score, row.time_s)
        np.testing.assert_array_equal(read.cam_T_obj[:3, :3], row.cam_T_obj[:3, :3])
        np.testing.assert_allclose(read.cam_T_obj, row.cam_T_obj, rtol=1e-15)


IDENTITY = "1 0 0 0 1 0 0 0 1"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (f"2,27,5,0.5,{IDENTITY},0 0 900", "line 2: has 6 columns, expected 7"),
        (f"2,27,duck,0.5,{IDENTITY},0 0 900,-1", "line 2: obj_id is 'duck', expected a whole number"),
        (f"2,27,5,high,{IDENTITY},0 0 900,-1", "line 2: score is high, expected 1 finite number"),
        (f"2,27,5,0.5,{IDENTITY},0 0 nan,-1", "line 2: t is 0, 0, nan, expected 3 finite numbers"),
        ("2,27,5,0.5,1 0 0 0 1 0 0 0,0 0 900,-1", "line 2: R has 8 numbers, expected 9"),
        ("2,27,5,0.5,1 0 0 0 1 0 0 0 -1,0 0 900,-1", "line 2: R is no rotation"),
    ],
)
def test_wrong_results_are_refused(tmp_path: Path, line: str, error: str) -> None:
    path = tmp_path / "a_lmo-val.csv"
    path.write_text(f"scene_id,im_id,obj_id,score,R,t,time\n{line}\n")
    with pytest.raises(ValueError, match=rf"a_lmo-val\.csv, {error}"):
        read_results_csv(path)


def test_a_file_without_the_header_is_no_result_file(tmp_path: Path) -> None:
    for content in ("", "x,y\n1,2\n"):
        (tmp_path / "a.csv").write_text(content)
        with pytest.raises(ValueError, match="expected the header scene_id,im_id,obj_id,score,R,t,time"):
            read_results_csv(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match="no such file of poses"):
        read_results_csv(tmp_path / "b.csv")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ([], "expected a list"),
        ({}, "expected a list"),
        ([{"scene_id": 1, "im_id": 3, "obj_id": 5}], "entry 0: inst_count is None"),
        ([{"scene_id": 1, "im_id": 3, "obj_id": 5, "inst_count": 1}] * 2, "scene 1, image 3 asks twice for object 5"),
    ],
)
def test_wrong_targets_are_refused(tmp_path: Path, content: Any, error: str) -> None:
    with pytest.raises(ValueError, match=rf"targets\.json.*{error}"):
        read_targets(dump(tmp_path / "targets.json", content))


@pytest.mark.data
def test_every_frame_of_lmo_is_readable(lmo: Path) -> None:
    val, adapt = BopDataset(lmo, "val"), BopDataset(lmo, "adapt")
    assert (len(val), len(adapt)) == (40, 100)
    assert all(frame.annotations for frame in val)
    assert all(frame.annotations is None for frame in adapt)
    assert all(frame.read_image().shape == (480, 640, 3) for frame in val)
    assert read_camera(lmo / "camera.json").K.tolist() == val[0].K.tolist()
