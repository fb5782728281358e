"""Gathers the scores of replicas into one table: means, 95 % intervals, and a picture of both."""

import csv
import io
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from glimpose.data.files import read_json, write_image, write_text
from glimpose.metrics.scores import mean_interval
from glimpose.viz.points import Panel, draw_points

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Column:
    """One quantity of the table."""

    key: str
    """In summary.json."""
    title: str
    factor: float = 1.0
    """From the summary's unit to the table's."""


COLUMNS = (
    Column("E_uv_px", "E_uv px"),
    Column("E_psi_deg", "E_psi deg"),
    Column("E_d_percent", "E_d %"),
    Column("E_xyz_m", "E_xyz cm", 100),
    Column("gamma_1m_45deg", "Gamma %", 100),
    Column("led_auc", "AUC %", 100),
    Column("presence_auc", "presence %", 100),
)


def tabulate(runs: Sequence[Path], out: Path) -> str:
    """Write out/table.csv, table.md and table.png of all summary.json below the folders given; returns the Markdown.

    The folder of a summary is a replica, and the folder around it names its row: scores/latent-pose/0, …/1 and …/2
    make one row. Intervals are Student's over the replicas; one replica has none.
    """
    rows = _gather(runs)
    table = {
        name: {c.key: mean_interval(torch.tensor(values[c.key])) if values[c.key] else None for c in COLUMNS}
        for name, values in rows.items()
    }
    num = {name: max(len(values) for values in found.values()) for name, found in rows.items()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "replicas", *(f"{c.title} {what}" for c in COLUMNS for what in ("mean", "±"))])
    for name, cells in table.items():
        pairs = [cells[c.key] or (math.nan, math.nan) for c in COLUMNS]
        writer.writerow([name, num[name], *(f"{x:.6g}" if math.isfinite(x) else "" for pair in pairs for x in pair)])
    markdown = _markdown(table, num)
    write_text(out / "table.csv", text.getvalue())
    write_text(out / "table.md", markdown)
    panels = [
        Panel(c.title, [rows[name][c.key] for name in rows], [table[name][c.key] for name in rows]) for c in COLUMNS
    ]
    write_image(out / "table.png", draw_points(list(rows), panels))
    return markdown


def _gather(runs: Sequence[Path]) -> dict[str, dict[str, list[float]]]:
    """Values by row and key, in the table's units."""
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: {column.key: [] for column in COLUMNS})
    for run in runs:
        summaries = sorted(run.rglob("summary.json"))
        if not summaries:
            raise FileNotFoundError(f"{run}: no summary.json below; expected a folder that glimpose evaluate wrote")
        for path in summaries:
            folder = path.resolve().parent.parent
            above = run.resolve().parent
            name = str(folder.relative_to(above)) if folder != above and folder.is_relative_to(above) else folder.name
            for column, value in _values(path).items():
                rows[name][column].append(value)
    return dict(rows)


def _values(path: Path) -> dict[str, float]:
    summary = read_json(path)
    missing = [column.key for column in COLUMNS if not (isinstance(summary, Mapping) and column.key in summary)]
    if missing:
        raise ValueError(f"{path}: no {', '.join(missing)}; expected the scores of robots' poses")
    return {c.key: c.factor * float(summary[c.key]) for c in COLUMNS if summary[c.key] is not None}


def _markdown(table: Mapping[str, Mapping[str, tuple[float, float] | None]], num: Mapping[str, int]) -> str:
    def told(cell: tuple[float, float] | None) -> str:
        if cell is None:
            return "–"
        mean, half = cell
        return f"{mean:.3g}" + (f" ± {half:.2g}" if math.isfinite(half) else "")

    lines = [
        "| | n | " + " | ".join(column.title for column in COLUMNS) + " |",
        "|---|" + "---|" * (len(COLUMNS) + 1),
        *(
            f"| {name} | {num[name]} | " + " | ".join(told(cells[c.key]) for c in COLUMNS) + " |"
            for name, cells in table.items()
        ),
    ]
    return "\n".join(lines) + "\n"
