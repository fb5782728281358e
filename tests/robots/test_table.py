import csv
import json

import pytest

from glimpose.cli import main
from glimpose.data.files import read_image
from glimpose.robots.table import COLUMNS, tabulate

SCORES = {
    "E_uv_px": 5.0,
    "E_psi_deg": 8.0,
    "E_d_percent": 10.0,
    "E_xyz_m": 0.5,
    "gamma_1m_45deg": 0.9,
    "led_auc": 0.98,
    "presence_auc": 0.99,
}


def write(folder, **changes) -> None:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(SCORES | changes))


def test_replicas_make_a_row_with_mean_and_interval_in_the_tables_units(tmp_path):
    for replica, error_px in enumerate((4.0, 5.0, 6.0)):
        write(tmp_path / "scores" / "latent" / str(replica), E_uv_px=error_px)
    write(tmp_path / "scores" / "mean" / "0", E_d_percent=None)
    markdown = tabulate([tmp_path / "scores"], tmp_path / "out")
    assert "| scores/latent | 3 | 5 ± 2.5 | 8 ± 0 | 10 ± 0 | 50 ± 0 | 90 ± 0 |" in markdown
    assert "| scores/mean | 1 | 5 | 8 | – | 50 | 90 |" in markdown
    assert (tmp_path / "out" / "table.md").read_text() == markdown
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["E_uv px ±"]) == pytest.approx(4.302652729749462 / 3**0.5, rel=1e-5)
    assert rows[1]["E_d % mean"] == ""
    picture = read_image(tmp_path / "out" / "table.png")
    assert picture.shape[1] > 150 * len(COLUMNS)
    assert picture.std() > 5


def test_single_replicas_can_be_named_one_by_one(tmp_path):
    for replica in "01":
        write(tmp_path / "upper-bound" / replica)
    markdown = tabulate([tmp_path / "upper-bound" / "0", tmp_path / "upper-bound" / "1"], tmp_path / "out")
    assert "| upper-bound | 2 |" in markdown


def test_folders_without_scores_of_robots_are_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["table", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 2
    assert "empty" in capsys.readouterr().err
    (tmp_path / "empty" / "summary.json").write_text('{"AR": 0.5}')
    assert main(["table", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 2
    assert "E_uv_px" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
