"""The demo's page: whole, self-contained, escaped."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mmjax.recipes.demo.report import (
    Answered,
    Curve,
    Report,
    Scores,
    chart,
    render,
    round_ticks,
    write_report,
)

VOID = {"meta", "img", "line", "polyline"}
ROW = {"value": 0.9, "low": 0.85, "high": 0.95, "n": 129, "constant": 0.125, "constant_answer": "Blue <frog>"}


class Checker(HTMLParser):
    """Notes links, and that every tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        assert tag in VOID

    def handle_data(self, data):
        self.text.append(data)


def report():
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    return Report(
        title="A demo & more",
        summary="x < y",
        facts=[("time", "9 min")],
        scores=[Scores("Pairs", "held out", {"exact": ROW, "colour": {**ROW, "blind": 0.1}})],
        samples=[
            Answered(image, "What?", "Blue frog", "Blue frog", True),
            Answered(image, "What?", "Red <b>cat", "Green & cat", False),
        ],
        curves=[Curve("Loss", [1, 2, 3], [3.5, 2.0, float("nan")])],
        tables=[("Frozen", "part  <all>")],
        limits=["not recognition"],
        commands=[("Chat", "mmjax chat runs/demo/model")],
    )


def test_page_is_well_formed_and_loads_nothing(tmp_path):
    write_report(report(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert len(checker.links) == 2 and all(link.startswith("data:image/png") for link in checker.links)
    assert not re.search(r"https?://|url\(|@import", page)
    text = " ".join(checker.text)
    for part in ("A demo & more", "x < y", "Red <b>cat", "Blue <frog>", "part  <all>", "1 answered rightly"):
        assert part in text
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page


def test_pictures_survive():
    checker = Checker()
    checker.feed(render(report()))
    data = base64.b64decode(checker.links[0].partition(",")[2])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), report().samples[0].image)


def test_empty_parts_leave_no_headings():
    assert "<h2>" not in render(Report("only", "this"))


def test_chart_puts_points_in_order():
    drawn = chart(Curve("Loss", [0, 5, 10], [4.0, 2.0, 1.0]))
    points = re.search(r'points="([^"]*)"', drawn)[1].split()
    xs, ys = zip(*(map(float, point.split(",")) for point in points), strict=True)
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys)  # y grows downwards in SVG
    assert chart(Curve("one", [3], [2.0])).count("polyline") == 1
    with pytest.raises(ValueError, match="nothing to draw"):
        chart(Curve("none", [1], [float("nan")]))


@pytest.mark.parametrize(
    ("low", "high"), [(0, 100), (0.013, 0.87), (3.4, 3.41), (-2, 7), (5, 5), (1e-9, 2e5), (0, 0)]
)
def test_round_ticks_are_few_and_inside(low, high):
    ticks = round_ticks(low, high)
    assert 1 <= len(ticks) <= 6
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
