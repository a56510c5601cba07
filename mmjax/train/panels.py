"""Sample panels: what the model answers to a few images while it trains, as one picture to look at."""

import dataclasses
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL, MARGIN, LINE, SIZE = 224, 8, 15, 12
COLUMNS_OF_TEXT = 34
COLOURS = {"prompt": (90, 90, 90), "truth": (20, 20, 20), "right": (20, 120, 40), "wrong": (180, 30, 30)}


@dataclasses.dataclass(frozen=True)
class PanelSample:
    """One cell of a panel.

    Attributes:
        image: uint8 [H, W, 3] of any size, or None where there is no image.
        prompt, truth, answer: text; `answer` is the model's, drawn green when it equals `truth`.
    """

    image: np.ndarray | None
    prompt: str
    truth: str
    answer: str


def draw_panel(samples: Sequence[PanelSample], path: str | os.PathLike, columns: int = 4) -> np.ndarray:
    """Draws the samples as a grid, writes it as PNG, and returns it as uint8 [H, W, 3].

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("a panel needs at least one sample")
    font = ImageFont.load_default(SIZE)
    lines = [_lines(sample) for sample in samples]
    columns = min(columns, len(samples))
    rows = -(-len(samples) // columns)
    width = columns * (CELL + MARGIN) + MARGIN
    heights = [
        CELL + MARGIN + LINE * max(map(len, lines[row * columns : (row + 1) * columns]))
        for row in range(rows)
    ]
    panel = Image.new("RGB", (width, sum(heights) + MARGIN * (rows + 1)), "white")
    draw = ImageDraw.Draw(panel)
    for i, sample in enumerate(samples):
        row, column = divmod(i, columns)
        x, y = MARGIN + column * (CELL + MARGIN), MARGIN + sum(heights[:row]) + MARGIN * row
        if sample.image is not None:
            image = Image.fromarray(np.asarray(sample.image, np.uint8))
            image.thumbnail((CELL, CELL)) if max(image.size) > CELL else None
            scale = max(1, CELL // max(image.size))
            image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
            panel.paste(image, (x + (CELL - image.width) // 2, y + (CELL - image.height) // 2))
        for number, (colour, text) in enumerate(lines[i]):
            draw.text((x, y + CELL + MARGIN // 2 + number * LINE), text, fill=colour, font=font)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    panel.save(path, format="PNG")
    return np.asarray(panel)


def _lines(sample: PanelSample) -> list[tuple[tuple[int, int, int], str]]:
    right = sample.answer.strip() == sample.truth.strip()
    parts = (
        (COLOURS["prompt"], "Q: ", sample.prompt),
        (COLOURS["truth"], "truth: ", sample.truth),
        (COLOURS["right" if right else "wrong"], "model: ", sample.answer),
    )
    out = []
    for colour, label, text in parts:
        wrapped = textwrap.wrap(label + text, COLUMNS_OF_TEXT)
        if len(wrapped) > 4:
            wrapped = [*wrapped[:3], wrapped[3][: COLUMNS_OF_TEXT - 3] + "..."]
        out += [(colour, line) for line in wrapped]
    return out
