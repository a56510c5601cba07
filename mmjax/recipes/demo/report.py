"""The page that the demo leaves behind: one HTML file, readable on a phone and in the dark."""

import base64
import dataclasses
import io
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line to draw: `values` over `steps`."""

    title: str
    steps: Sequence[float]
    values: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Scores:
    """A table of scores: `rows` maps a metric to what `mmjax.recipes.demo.evaluate.score` gives for it."""

    title: str
    note: str
    rows: Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Answered:
    """One picture, uint8 [H, W, 3], with what was asked, what is right and what the model said."""

    image: np.ndarray
    question: str
    truth: str
    answer: str
    right: bool


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Drawings side by side with what they should show.

    Attributes:
        title, note: a heading and a sentence.
        rows: (what was asked for, drawing, real picture), the pictures uint8 [H, W, 3], or None where there is none.
    """

    title: str
    note: str
    rows: Sequence[tuple[str, np.ndarray | None, np.ndarray | None]]


@dataclasses.dataclass(frozen=True)
class Report:
    """All that the page shows, in this order.

    Attributes:
        title, summary: a heading and a paragraph.
        facts: (name, value) pairs, such as times and sizes.
        scores: tables of scores.
        samples: pictures with answers.
        sheets: drawings.
        curves: one chart each.
        tables: (title, preformatted text) pairs, such as who was trained and who was frozen.
        limits: sentences on what the scores do not say.
        commands: (what for, command line) pairs to try next.
    """

    title: str
    summary: str
    facts: Sequence[tuple[str, str]] = ()
    scores: Sequence[Scores] = ()
    samples: Sequence[Answered] = ()
    sheets: Sequence[Sheet] = ()
    curves: Sequence[Curve] = ()
    tables: Sequence[tuple[str, str]] = ()
    limits: Sequence[str] = ()
    commands: Sequence[tuple[str, str]] = ()


STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #65696f; --paper: #fff; --card: #f4f5f7;
  --line: #d9dce1; --good: #17803d; --bad: #b3261e; --mark: #2563c9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a0a6ad; --paper: #15171a;
  --card: #202328; --line: #383d44; --good: #5fd38d; --bad: #ff8a80; --mark: #7fb0ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.soft { color: var(--soft); } .wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; color: var(--soft); font-size: .85rem; }
.grid { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
.card { background: var(--card); border-radius: .5rem; padding: .6rem; font-size: .85rem; line-height: 1.35; }
.card img { width: 64px; height: 64px; display: block; margin: 0 auto .4rem; background: #fff;
  border-radius: .3rem; }
.pair { display: flex; justify-content: center; gap: .3rem; }
.pair img { margin: 0 0 .4rem; } .pair img + img { opacity: .55; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
pre { background: var(--card); padding: .7rem; border-radius: .5rem; overflow-x: auto; font-size: .8rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .axis { stroke: var(--line); } svg .curve { stroke: var(--mark); fill: none; stroke-width: 2; }
"""


def write_report(report: Report, path: str | os.PathLike) -> None:
    """Writes the page; it loads nothing from anywhere."""
    Path(path).write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    """The page as HTML. All texts are escaped."""
    body = [f"<h1>{escape(report.title)}</h1>", f"<p>{escape(report.summary)}</p>"]
    if report.facts:
        rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in report.facts)
        body.append(f'<div class="wide"><table>{rows}</table></div>')
    body += [_scores(scores) for scores in report.scores]
    if report.samples:
        right = sum(sample.right for sample in report.samples)
        cards = "".join(map(_card, report.samples))
        body.append(
            f"<h2>{len(report.samples)} pictures that training never showed, {right} answered rightly</h2>"
            f'<div class="grid">{cards}</div>'
        )
    body += [_sheet(sheet) for sheet in report.sheets]
    body += [f"<h2>{escape(curve.title)}</h2>{chart(curve)}" for curve in report.curves]
    body += [f"<h2>{escape(title)}</h2><pre>{escape(text)}</pre>" for title, text in report.tables]
    if report.limits:
        items = "".join(f"<li>{escape(limit)}</li>" for limit in report.limits)
        body.append(f"<h2>What this does not show</h2><ul>{items}</ul>")
    if report.commands:
        items = "".join(f"<p>{escape(why)}</p><pre>{escape(line)}</pre>" for why, line in report.commands)
        body.append(f"<h2>Try next</h2>{items}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _scores(scores: Scores) -> str:
    head = ("", "score", "95 % interval", "blind", "constant answer", "n")
    rows = []
    for metric, row in scores.rows.items():
        blind = "" if "blind" not in row else f"{row['blind']:.3f}"
        constant = f"{row['constant']:.3f} “{row['constant_answer']}”" if "constant" in row else ""
        spread = f"{row['low']:.3f} – {row['high']:.3f}" if "low" in row else ""
        cells = (f"<b>{row['value']:.3f}</b>", spread, blind)
        cells += (escape(constant), str(row["n"]))
        rows.append(f"<tr><td>{escape(metric)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    names = "".join(f"<th>{name}</th>" for name in head)
    return (
        f'<h2>{escape(scores.title)}</h2><p class="soft">{escape(scores.note)}</p>'
        f'<div class="wide"><table><tr>{names}</tr>{"".join(rows)}</table></div>'
    )


def _card(sample: Answered) -> str:
    mark, kind = ("✓", "good") if sample.right else ("✗", "bad")
    truth = "" if sample.right else f'<div class="soft">truth: {escape(sample.truth)}</div>'
    return (
        f'<div class="card"><img alt="{escape(sample.truth)}" src="{data_uri(sample.image)}">'
        f'<div class="soft">{escape(sample.question)}</div>'
        f'<div class="{kind}">{mark} {escape(sample.answer)}</div>{truth}</div>'
    )


def _sheet(sheet: Sheet) -> str:
    cards = []
    for asked, drawn, real in sheet.rows:
        named = ((drawn, f"drawing of {asked}"), (real, f"the real {asked}"))
        images = "".join(
            f'<img alt="{escape(name)}" src="{data_uri(image)}">' for image, name in named if image is not None
        )
        missing = "" if drawn is not None else '<div class="bad">✗ drew nothing</div>'
        cards.append(
            f'<div class="card"><div class="pair">{images}</div>{missing}<div class="soft">{escape(asked)}</div></div>'
        )
    head = f'<h2>{escape(sheet.title)}</h2><p class="soft">{escape(sheet.note)}</p>'
    return f'{head}<div class="grid">{"".join(cards)}</div>'


def data_uri(image: np.ndarray) -> str:
    """A uint8 image [H, W, 3] as a lossless data URI."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def chart(curve: Curve, width: int = 640, height: int = 240, margin: int = 40) -> str:
    """A line chart as SVG, with ticks at round numbers. Values that are not finite are left out.

    Raises:
        ValueError: no finite value, or steps and values differ in number.
    """
    points = [(x, y) for x, y in zip(curve.steps, curve.values, strict=True) if math.isfinite(y)]
    if not points:
        raise ValueError(f"{curve.title}: there is nothing to draw")
    xs, ys = zip(*points, strict=True)
    ticks_x, ticks_y = round_ticks(min(xs), max(xs)), round_ticks(min(ys), max(ys))
    low_x, high_x = min(xs[0], ticks_x[0]), max(max(xs), ticks_x[-1])
    low_y, high_y = min(min(ys), ticks_y[0]), max(max(ys), ticks_y[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        right = (x - low_x) / ((high_x - low_x) or 1)
        up = (y - low_y) / ((high_y - low_y) or 1)
        return margin + right * (width - 2 * margin), height - margin - up * (height - 2 * margin)

    marks = []
    for tick in ticks_y:
        _, y = place(low_x, tick)
        marks.append(f'<line class="axis" x1="{margin}" x2="{width - margin}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text x="{margin - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in ticks_x:
        x, _ = place(tick, low_y)
        marks.append(f'<text x="{x:.1f}" y="{height - margin + 18}" text-anchor="middle">{tick:g}</text>')
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(curve.title)}">'
        f'{"".join(marks)}<polyline class="curve" points="{line}"/></svg>'
    )


def round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` multiples of 1, 2 or 5 times a power of ten that span [low, high] or lie just inside."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= most - 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [round(index * step, 10) for index in range(first, last + 1)]
    return ticks or [round(low, 10)]
