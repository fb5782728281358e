import base64
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from glimpose.viz.report import Page

IMAGE = np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3).astype(np.uint8)
VOID = {"meta", "img"}


class Checker(HTMLParser):
    """Collects text and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check(page: Page) -> Checker:
    checker = Checker()
    checker.feed(page.html())
    assert not checker.open
    return checker


def polylines(page: Page) -> list[np.ndarray]:
    found = re.findall(r'points="([^"]*)"', page.html())
    return [np.array([pair.split(",") for pair in points.split()], dtype=float) for points in found]


def test_page_is_well_formed_and_refers_to_nothing_outside(tmp_path: Path) -> None:
    page = Page("Title").heading("Part").text("One.", "Two.").table([{"a": 1}], "Caption.")
    page.figure(IMAGE, "Figure.").gallery([IMAGE, IMAGE], ["left", "right"]).curve({"loss": ([0, 1], [2, 3])})
    path = page.write(tmp_path / "new" / "index.html")
    text = path.read_text()
    assert check(page).seen.count("img") == 3
    assert "http" not in text
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', text))
    assert "prefers-color-scheme: dark" in text
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


def test_text_is_shown_literally() -> None:
    nasty = '<script>alert("1 & 2")</script>'
    page = Page(nasty).heading(nasty).text(nasty).table([{nasty: nasty}], nasty).figure(IMAGE, nasty)
    page.gallery([IMAGE], [nasty], nasty).curve({nasty: ([0, 1], [0, 1])}, nasty, nasty, nasty)
    checker = check(page)
    assert "script" not in checker.seen
    assert checker.text.count(nasty) == 14


def test_lossless_pictures_keep_their_pixels() -> None:
    html = Page("").figure(IMAGE, lossless=True).html()
    encoded = re.search(r"data:image/png;base64,([^\"]*)", html)
    assert encoded is not None
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(encoded[1]), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded[..., ::-1], IMAGE)


def test_table_has_the_columns_of_all_rows_and_dashes_for_what_lacks() -> None:
    page = Page("").table([{"name": "duck", "ADD": 0.12345}, {"name": "can", "AR": 12345.6, "ADD": math.nan}])
    cells = re.findall(r"([^<>]*)</t[hd]>", page.html())
    assert cells == ["name", "ADD", "AR", "duck", "0.123", "–", "can", "–", "12,346"]


def test_numbers_are_set_to_the_right_and_words_to_the_left() -> None:
    html = Page("").table([{"name": "duck", "ADD": 0.5}, {"name": None, "ADD": None}]).html()
    assert re.findall(r'<td( class="number")?>', html) == ["", ' class="number"'] * 2


def test_curve_rises_where_its_numbers_do() -> None:
    (line,) = polylines(Page("").curve({"a": ([0, 1, 2], [0, 1, 4])}))
    assert (np.diff(line[:, 0]) > 0).all()
    assert (np.diff(line[:, 1]) < 0).all()  # y points down
    assert line[2, 1] - line[1, 1] == pytest.approx(3 * (line[1, 1] - line[0, 1]), abs=0.2)


def test_logarithmic_curve_spaces_factors_evenly() -> None:
    (line,) = polylines(Page("").curve({"a": ([0, 1, 2], [1, 10, 100])}, log_y=True))
    assert line[2, 1] - line[1, 1] == pytest.approx(line[1, 1] - line[0, 1], abs=0.2)


def test_numbers_that_cannot_be_drawn_leave_gaps() -> None:
    y = [1.0, 2.0, math.nan, 3.0, math.inf, 4.0, 5.0]
    assert [len(line) for line in polylines(Page("").curve({"a": (range(7), y)}))] == [2, 2, 2]
    y = [1.0, 2.0, 0.0, -3.0, 1.0]
    assert [len(line) for line in polylines(Page("").curve({"a": (range(5), y)}, log_y=True))] == [2, 2]


@pytest.mark.parametrize("series", [{}, {"none": ([], [])}, {"nan": ([0], [math.nan])}, {"same": ([3, 3], [7, 7])}])
@pytest.mark.parametrize("log_y", [False, True])
def test_degenerate_curves_give_an_axis(series: dict, log_y: bool) -> None:
    page = Page("").curve(series, log_y=log_y)
    assert check(page).seen.count("svg") == 1
    assert "nan" not in page.html().replace("nan<", "<")
    assert all(np.isfinite(line).all() for line in polylines(page))


def test_axes_are_marked_with_round_numbers_within_their_range() -> None:
    html = Page("").curve({"a": ([0, 1337], [0.013, 0.094])}).html()
    across = [float(v.replace(",", "")) for v in re.findall(r'text-anchor="middle">([\d.,]+)<', html)]
    up = [float(v) for v in re.findall(r'text-anchor="end">([\d.,]+)<', html)]
    assert across == [0, 500, 1000]
    assert up == [0.02, 0.04, 0.06, 0.08]


def test_diagonal_spans_the_unit_square() -> None:
    html = Page("").curve({"score": ([0.1, 0.9], [0.2, 0.8])}, diagonal=True).html()
    assert html.count('<line class="guide"') == 1


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"curve 'loss': 2 values of x and 3 of y"):
        Page("").curve({"loss": ([0, 1], [0, 1, 2])})
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        Page("").gallery([IMAGE, IMAGE], ["one"])
