import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from glimpose.data.bop import BopDataset, ModelInfo
from glimpose.data.bop_results import ResultRow, Target, targets_of, write_results_csv, write_targets
from glimpose.data.bop_writer import SceneWriter, write_models
from glimpose.objects.evaluate import evaluate
from glimpose.render.mesh import box_mesh, diameter_m, sphere_mesh
from glimpose.render.raster import RasterRenderer
from glimpose.render.scene import Instance

WIDTH, HEIGHT = 64, 48
K = np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]])
BOX, BALL = 1, 4
MESHES = {BOX: box_mesh((0.1, 0.06, 0.04)), BALL: sphere_mesh(0.05, 2)}
# Half turns about the three axes.
INFOS = {
    BOX: ModelInfo(
        diameter_m(MESHES[BOX]), tuple(np.diag([*signs, 1.0]) for signs in ((1, -1, -1), (-1, 1, -1), (-1, -1, 1)))
    ),
    BALL: ModelInfo(diameter_m(MESHES[BALL])),
}


def at(x_m: float, y_m: float = 0.0, z_m: float = 0.5) -> np.ndarray:
    cam_T_obj = np.eye(4)
    cam_T_obj[:3, 3] = x_m, y_m, z_m
    return cam_T_obj


SCENE = [(BOX, at(-0.15)), (BALL, at(0.0)), (BALL, at(0.15))]


def make_dataset(root: Path, with_depth: bool) -> Path:
    """Write two equal images of a box and two balls, and the targets file."""
    write_models(root / "models_eval", MESHES, INFOS)
    renderer = RasterRenderer()
    instances = [Instance(MESHES[obj_id], pose) for obj_id, pose in SCENE]
    buffers = renderer.render(instances, K, HEIGHT, WIDTH)
    masks = [buffers.mask == i + 1 for i in range(len(SCENE))]
    with SceneWriter(root, "val", 2) as scene:
        for _ in range(2):
            depth_m = buffers.depth if with_depth else None
            scene.add(buffers.albedo, K, [o for o, _ in SCENE], [p for _, p in SCENE], masks, masks, depth_m)
    write_targets(root / "targets.json", targets_of(BopDataset(root, "val")))
    return root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset"), with_depth=False)


def truth() -> list[ResultRow]:
    return [ResultRow(2, im_id, obj_id, 0.9, pose, 0.5 + im_id) for im_id in (0, 1) for obj_id, pose in SCENE]


def score(rows: list[ResultRow], dataset: Path, out: Path, targets: str = "targets.json") -> dict:
    write_results_csv(out / "poses.csv", rows)
    return evaluate(out / "poses.csv", dataset, "val", dataset / targets, out)


def test_the_truth_scores_one(dataset: Path, tmp_path: Path) -> None:
    summary = score(truth(), dataset, tmp_path)
    for key in ("AR", "AR_MSSD", "AR_MSPD", "ADD_S_0.1d"):
        assert summary[key] == 1.0
    assert summary["AR_VSD"] is None
    assert (summary["num_targets"], summary["num_images"]) == (6, 2)
    assert (summary["num_missing"], summary["num_ignored"]) == (0, 0)
    assert summary["mean_time_s"] == 1.0
    assert summary["median_translation_m"] == pytest.approx(0, abs=1e-9)
    assert [row["obj_id"] for row in summary["objects"]] == [BOX, BALL]
    assert [row["num_targets"] for row in summary["objects"]] == [2, 4]


def test_scores_are_compared_with_what_comes_of_them(dataset: Path, tmp_path: Path) -> None:
    rows = truth()
    wrong = [replace(row, cam_T_obj=far(row.cam_T_obj), score=0.3) for row in rows[:3]]
    summary = score([*wrong, *rows[3:]], dataset, tmp_path)
    assert summary["score_auc"] == 1.0
    assert sum(entry["num"] for entry in summary["reliability"]) == 6
    assert summary["reliability"][0] == {"score": pytest.approx(0.3), "share_right": 0.0, "num": 2}
    assert "What scores are worth" in (tmp_path / "scores.html").read_text()
    assert score(rows, dataset, tmp_path)["score_auc"] is None  # with nothing wrong there is nothing to tell apart


def far(cam_T_obj: np.ndarray) -> np.ndarray:
    moved = cam_T_obj.copy()
    moved[:3, 3] *= 1.5
    return moved


def test_summary_and_table_are_written(dataset: Path, tmp_path: Path) -> None:
    summary = score(truth()[1:], dataset, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    with (tmp_path / "targets.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 6
    assert (table[0]["obj_id"], table[0]["mssd_m"], table[0]["add_correct"]) == ("1", "", "False")
    assert float(table[1]["mspd_px"]) == pytest.approx(0, abs=1e-6)


def test_with_depth_there_is_vsd(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, with_depth=True)
    assert score(truth(), dataset, tmp_path)["AR_VSD"] > 0.99
    shifted = [replace(row, cam_T_obj=row.cam_T_obj @ at(0.01, 0, 0)) for row in truth()[1:]]
    summary = score(shifted, dataset, tmp_path)
    assert 0.3 < summary["AR_VSD"] < 0.9
    assert summary["AR"] == pytest.approx((summary["AR_MSSD"] + summary["AR_MSPD"] + summary["AR_VSD"]) / 3)


def test_recalls_average_over_thresholds_and_instances(dataset: Path, tmp_path: Path) -> None:
    rows = truth()
    # The box is off by 0.22 of its diameter: right at 0.25 … 0.5, six of the ten thresholds. The rest is right.
    off_m = 0.22 * INFOS[BOX].diameter_m
    rows[0] = replace(rows[0], cam_T_obj=at(-0.15, 0, 0.5 + off_m))
    summary = score(rows, dataset, tmp_path)
    assert summary["AR_MSSD"] == pytest.approx((5 + 0.6) / 6)
    assert summary["ADD_S_0.1d"] == pytest.approx(5 / 6)
    assert summary["objects"][0]["AR_MSSD"] == pytest.approx(0.8)
    assert summary["objects"][0]["median_translation_m"] == pytest.approx(off_m / 2)


def test_projection_errors_count_at_640_pixels(dataset: Path, tmp_path: Path) -> None:
    rows = truth()
    # 0.01 m at the nearest surface (0.48 m) are 1.25 pixels of 64, or 12.5 of 640: right at 15 … 50.
    rows[0] = replace(rows[0], cam_T_obj=at(-0.14))
    assert score(rows, dataset, tmp_path)["objects"][0]["AR_MSPD"] == pytest.approx((1 + 0.8) / 2)


def test_symmetric_poses_are_right(dataset: Path, tmp_path: Path) -> None:
    rows = [replace(row, cam_T_obj=row.cam_T_obj @ np.diag([-1.0, -1, 1, 1])) for row in truth()]
    box, ball = score(rows, dataset, tmp_path)["objects"]
    assert (box["AR_MSSD"], box["ADD_S_0.1d"]) == (1.0, 1.0)
    assert box["median_rotation_deg"] == pytest.approx(0, abs=1e-5)
    assert ball["median_rotation_deg"] == pytest.approx(180)
    assert ball["ADD_S_0.1d"] == 0.0  # nobody declared it symmetric


def test_missing_estimates_are_wrong(dataset: Path, tmp_path: Path) -> None:
    summary = score(truth()[:3], dataset, tmp_path)
    assert (summary["AR"], summary["num_missing"]) == (0.5, 3)
    nothing = score([], dataset, tmp_path)
    assert (nothing["AR"], nothing["num_missing"], nothing["median_rotation_deg"]) == (0.0, 6, None)


def test_only_the_best_estimates_count(dataset: Path, tmp_path: Path) -> None:
    wrong = at(0.0, 0.1)
    worse = [replace(row, score=0.1, cam_T_obj=wrong) for row in truth()]
    better = [replace(row, score=0.95, cam_T_obj=wrong) for row in truth()]
    summary = score(worse + truth(), dataset, tmp_path)
    assert (summary["AR"], summary["num_ignored"]) == (1.0, 6)
    assert score(better + truth(), dataset, tmp_path)["ADD_S_0.1d"] == 0.0


def test_several_instances_are_each_found_once(dataset: Path, tmp_path: Path) -> None:
    rows = [row for row in truth() if row.obj_id == BALL]
    twice = [replace(row, cam_T_obj=at(0.15)) for row in rows]
    assert score(rows[::-1], dataset, tmp_path)["objects"][1]["AR_MSSD"] == 1.0
    assert score(twice, dataset, tmp_path)["objects"][1]["ADD_S_0.1d"] == 0.5


def test_of_more_instances_than_asked_for_the_most_visible_count(dataset: Path, tmp_path: Path) -> None:
    fractions = {}
    for annotation in BopDataset(dataset, "val")[0].annotations or ():
        fractions[annotation.cam_T_obj[0, 3]] = annotation.visible_fraction
    assert fractions[0.0] == fractions[0.15]  # nothing hides them; the first one is taken
    write_targets(dataset / "one.json", [Target(2, 0, BALL, 1)])
    right, other = ([replace(truth()[1], cam_T_obj=at(x_m))] for x_m in (0.0, 0.15))
    assert score(right, dataset, tmp_path, "one.json")["AR"] == 1.0
    assert score(other, dataset, tmp_path, "one.json")["AR"] == 0.0


def test_unknown_times_have_no_mean(dataset: Path, tmp_path: Path) -> None:
    rows = truth()
    rows[2] = replace(rows[2], time_s=rows[2].time_s + 1)
    with pytest.raises(ValueError, match="scene 2, image 0 has rows with times"):
        score(rows, dataset, tmp_path)
    assert not (tmp_path / "summary.json").exists()
    assert score([replace(row, time_s=-1) for row in rows], dataset, tmp_path)["mean_time_s"] is None


def test_poses_of_something_else_are_warned_about(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary = score([replace(row, scene_id=7) for row in truth()], dataset, tmp_path)
    assert (summary["num_ignored"], summary["num_missing"]) == (6, 6)
    assert "none of its 6 poses" in caplog.text


@pytest.mark.parametrize(
    ("target", "error"),
    [
        (Target(2, 0, BALL, 3), r"image 0: has 2 instances of object 4, but .*wrong\.json asks for 3"),
        (Target(2, 9, BALL, 1), r"scene_camera\.json: no entry for image 9"),
        (Target(3, 0, BALL, 1), r"val: no scene 3"),
        (Target(2, 0, 6, 1), r"models_info\.json: no entry for object 6; it has \[1, 4\]"),
    ],
)
def test_targets_of_another_dataset_are_refused(dataset: Path, tmp_path: Path, target: Target, error: str) -> None:
    write_targets(dataset / "wrong.json", [target])
    with pytest.raises(ValueError, match=error):
        score(truth(), dataset, tmp_path, "wrong.json")


def test_an_object_without_a_mesh_is_named(tmp_path: Path) -> None:
    root = make_dataset(tmp_path, with_depth=False)
    (root / "models_eval" / "obj_000004.ply").unlink()
    with pytest.raises(FileNotFoundError, match=r"models_eval: object 4 has no mesh, expected obj_000004\.ply"):
        score(truth(), root, tmp_path)


def test_an_unlabelled_split_is_refused(tmp_path: Path) -> None:
    root = make_dataset(tmp_path, with_depth=False)
    (root / "val" / "000002" / "scene_gt.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"000002: no scene_gt\.json to compare with"):
        score(truth(), root, tmp_path)


@pytest.mark.data
@pytest.mark.parametrize("method", ["megapose-cnos", "keypoint"])
def test_scores_are_those_of_bop_toolkit(lmo: Path, tmp_path: Path, method: str) -> None:
    reference = lmo.parents[1] / "reference"
    if not reference.is_dir():
        pytest.skip(f"{reference}: no public results to compare with")
    expected = json.loads((reference / "bop_parity.json").read_text())[method]
    poses_csv = reference / f"{method}_lmo-val.csv"
    summary = evaluate(poses_csv, lmo, "val", lmo / "val_targets_bop19.json", tmp_path)
    assert {key: summary[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    assert summary["num_targets"] == 297
