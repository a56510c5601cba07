"""Boxes as text and back, in the spellings that published models read and write.

| codec | spelling of a box | grid |
|---|---|---|
| shikra | `[0.123,0.456,0.789,0.999]`, several with `;` between | decimals of the side (Chen et al., 2023) |
| qwen_vl | `<ref>cat</ref><box>(x1,y1),(x2,y2)</box>` | 0 to 999 (Bai et al., 2023) |
| kosmos2 | `<phrase>cat</phrase><object><patch_index_0044><patch_index_0863></object>` | 32 x 32 (Peng et al., 2023) |
| paligemma | `<loc0000><loc0000><loc0000><loc0000> cat`, as y1 x1 y2 x2 | 0 to 1023 (Beyer et al., 2024) |
| ofa | `<bin_0> <bin_0> <bin_0> <bin_0> cat` | 0 to 999 (Wang et al., 2022) |

Boxes are x1, y1, x2, y2 in pixels, the right and lower edges beyond the last pixel, and sizes are (height, width).
Models that see a padded square (Shikra) want boxes and size of that square, see `mmjax.data.box_geometry`.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from mmjax.config import check_choice

Size = tuple[int, int]


class BoxError(ValueError):
    """Boxes that cannot be written, or text that begins like a box and is none; the message says where."""


class Group(NamedTuple):
    """Boxes that a text names together.

    Attributes:
        phrase: what they are boxes of, or None where the text does not mark it.
        span: where the phrase stands in the clean text, or, without one, where the boxes stood (of length 0).
        boxes: float64 [R, 4] in pixels.
    """

    phrase: str | None
    span: tuple[int, int]
    boxes: np.ndarray


class Parsed(NamedTuple):
    """A text without its boxes' markup, and the boxes."""

    text: str
    groups: tuple[Group, ...]


class BoxCodec(Protocol):
    """One spelling."""

    def encode(self, boxes: Any, size: Size, phrase: str | None = None) -> str:
        """Boxes [R, 4] of one phrase in an image of (height, width) -> text.

        What sticks out of the image is cut off.

        Raises:
            BoxError: no boxes, not four finite numbers each, no area inside the image, or a phrase with markup in it.
        """

    def decode(self, text: str, size: Size, malformed: str = "raise") -> Parsed:
        """Text -> the text without markup, and all boxes with their corners in order.

        Spaces between tokens and a missing closing tag do no harm.

        Args:
            text: what a model wrote.
            size: (height, width) of the image, or of its padded square, in pixels.
            malformed: what begins like boxes but is none: "raise", or "skip" to leave it in the text.

        Raises:
            BoxError: malformed boxes, with the place and what is wrong.
        """


@dataclasses.dataclass(frozen=True)
class ShikraCodec:
    """Decimals in brackets. Phrases are not marked; pairs in brackets are Shikra's points and stay in the text."""

    decimals: int = 3

    def encode(self, boxes: Any, size: Size, phrase: str | None = None) -> str:
        rows = _fractions(boxes, size)
        text = ";".join(",".join(f"{value:.{self.decimals}f}" for value in row) for row in rows)
        return f"[{text}]" if phrase is None else f"{_plain(phrase, _BRACKETS)} [{text}]"

    def decode(self, text: str, size: Size, malformed: str = "raise") -> Parsed:
        def read(part):
            rows = [[float(number) for number in re.split(r"\s*,\s*", row.strip())] for row in part.split(";")]
            _four(rows)
            return _within(np.array(rows), 1.0)

        return _parse(text, _BRACKETS, read, size, malformed)


@dataclasses.dataclass(frozen=True)
class QwenVLCodec:
    """Whole numbers from 0 to 999 in tags; 999 is the far edge, as the published evaluation has it."""

    def encode(self, boxes: Any, size: Size, phrase: str | None = None) -> str:
        rows = np.rint(_fractions(boxes, size) * 999).astype(int)
        text = "".join(f"<box>({x1},{y1}),({x2},{y2})</box>" for x1, y1, x2, y2 in rows)
        return text if phrase is None else f"<ref>{_plain(phrase, _QWEN_TAGS)}</ref>{text}"

    def decode(self, text: str, size: Size, malformed: str = "raise") -> Parsed:
        def read(part):
            inside = re.findall(r"<box>([^<]*)", part)
            for box in inside:
                if odd := re.sub(r"[\d(),\s]", "", box):
                    raise BoxError(f"{odd[:20]!r} between the numbers")
            rows = [re.findall(r"\d+", box) for box in inside]
            _four(rows)
            return _within(np.array(rows, float), 1000.0) / 999

        return _parse(text, _QWEN, read, size, malformed, _QWEN_TAGS)


@dataclasses.dataclass(frozen=True)
class Kosmos2Codec:
    """The cells of a grid in which the upper left and the lower right corner lie, numbered row by row.

    Read back, a corner is its cell's centre, but a box in one row or column of cells is these cells whole.
    """

    cells: int = 32

    def encode(self, boxes: Any, size: Size, phrase: str | None = None) -> str:
        pairs = []
        for x1, y1, x2, y2 in _fractions(boxes, size) * self.cells:
            first = math.floor(y1) * self.cells + math.floor(x1)
            last = math.ceil(y2 - 1) * self.cells + math.ceil(x2 - 1)
            pairs.append(f"<patch_index_{first:04d}><patch_index_{last:04d}>")
        text = f"<object>{'</delimiter_of_multi_objects/>'.join(pairs)}</object>"
        return text if phrase is None else f"<phrase>{_plain(phrase, _KOSMOS_TAGS)}</phrase>{text}"

    def decode(self, text: str, size: Size, malformed: str = "raise") -> Parsed:
        def read(part):
            pairs = [
                [int(index) for index in re.findall(r"<patch_index_(\d+)>", pair)]
                for pair in part.split("</delimiter_of_multi_objects/>")
            ]
            for pair in pairs:
                if len(pair) != 2:
                    raise BoxError(f"{len(pair)} patch indices, but a box has 2")
                if max(pair) >= self.cells**2:
                    raise BoxError(f"patch index {max(pair)}, but there are {self.cells**2} cells")
            return np.array([self._corners(*pair) for pair in pairs])

        return _parse(text, _KOSMOS, read, size, malformed, _KOSMOS_TAGS)

    def _corners(self, first: int, last: int) -> tuple[float, ...]:
        (top, left), (bottom, right) = divmod(first, self.cells), divmod(last, self.cells)
        near, far = (0.0, 1.0) if top == bottom or left == right else (0.5, 0.5)
        corners = left + near, top + near, right + far, bottom + far
        return tuple(place / self.cells for place in corners)


@dataclasses.dataclass(frozen=True)
class BinCodec:
    """Four tokens of a vocabulary of bins, the first and the last of which are the edges; the phrase stands behind.

    Attributes:
        token: format of one token.
        bins: how many there are.
        order: which of x1, y1, x2, y2 each token says.
        between: what stands between the tokens of a box.
        separator: what stands between boxes, each of which has the phrase behind it.
    """

    token: str
    bins: int
    order: tuple[int, int, int, int]
    between: str
    separator: str

    def encode(self, boxes: Any, size: Size, phrase: str | None = None) -> str:
        rows = np.rint(_fractions(boxes, size) * (self.bins - 1)).astype(int)[:, self.order]
        behind = "" if phrase is None else f" {_plain(phrase, re.compile('[<;]'))}"
        return self.separator.join(self.between.join(map(self.token.format, row)) + behind for row in rows)

    def decode(self, text: str, size: Size, malformed: str = "raise") -> Parsed:
        name = re.escape(self.token.split("{")[0])

        def read(part):
            numbers = [int(number) for number in re.findall(r"\d+", part)]
            if len(numbers) % 4:
                raise BoxError(f"{len(numbers)} tokens, but a box has 4")
            if max(numbers) >= self.bins:
                raise BoxError(f"bin {max(numbers)}, but there are {self.bins}")
            # Writing takes coordinates in `order`; reading puts them back.
            return np.array(numbers, float).reshape(-1, 4)[:, np.argsort(self.order)] / (self.bins - 1)

        pattern = re.compile(rf"(?P<boxes>{name}\d+>(?:\s*{name}\d+>)*)(?:<seg\d+>)*(?P<after>[^;<\n]*)")
        return _parse(text, pattern, read, size, malformed, re.compile(r"<seg\d+>"))


CODECS: dict[str, BoxCodec] = {
    "shikra": ShikraCodec(),
    "qwen_vl": QwenVLCodec(),
    "kosmos2": Kosmos2Codec(),
    "paligemma": BinCodec("<loc{:04d}>", 1024, (1, 0, 3, 2), "", " ; "),
    "ofa": BinCodec("<bin_{}>", 1000, (0, 1, 2, 3), " ", " "),
}

# What begins a text that is to be answered with boxes (KOSMOS-2).
GROUNDING = "<grounding>"

_NUMBER = r"\s*-?\d*\.?\d+\s*"
# At least one comma, so that a lone number (a reference to a source) is no box; a single pair is a point.
_POINTS = f"{_NUMBER},{_NUMBER}(?:;{_NUMBER},{_NUMBER})*"
_BRACKETS = re.compile(rf"\s*\[(?!{_POINTS}\])(?P<boxes>{_NUMBER}(?:[,;]{_NUMBER})+)\]")
_QWEN = re.compile(r"(?:<ref>(?P<before>[^<]+)</ref>\s*)?(?P<boxes><box>[^<]*(?:</box>)?(?:\s*<box>[^<]*(?:</box>)?)*)")
_QWEN_TAGS = re.compile(r"</?(?:ref|box|quad)>")
_KOSMOS = re.compile(
    r"(?:<phrase>(?P<before>[^<]+)</phrase>\s*)?<object>"
    r"(?P<boxes>(?:\s|<patch_index_\d+>|</delimiter_of_multi_objects/>)*)(?:</object>)?"
)
_KOSMOS_TAGS = re.compile(
    r"<patch_index_\d+>|</delimiter_of_multi_objects/>|</?(?:grounding|phrase|object|doc|image|chunk|line|s)>"
)


def _fractions(boxes: Any, size: Size) -> np.ndarray:
    """Boxes in pixels -> float64 [R, 4] of the sides, cut off at the image's edges."""
    boxes = np.asarray(boxes, np.float64)
    boxes = boxes[None] if boxes.ndim == 1 else boxes
    height, width = size
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
        raise BoxError(f"boxes must be [R, 4] with R at least 1, got {list(boxes.shape)}")
    if height <= 0 or width <= 0:
        raise BoxError(f"an image of height {height} and width {width} has no boxes")
    inside = np.clip(boxes / (width, height, width, height), 0, 1)
    for row, (box, cut) in enumerate(zip(boxes, inside, strict=True)):
        if not np.isfinite(box).all():
            raise BoxError(f"box {row} is not finite: {box.tolist()}")
        if cut[2] <= cut[0] or cut[3] <= cut[1]:
            raise BoxError(
                f"box {row}, {box.tolist()} as x1, y1, x2, y2, has no area inside an image of height {height} "
                f"and width {width}"
            )
    return inside


def _plain(phrase: str, markup: re.Pattern) -> str:
    """The phrase, which must hold nothing that reading it back would take for markup."""
    if found := markup.search(phrase):
        raise BoxError(f"phrase {phrase!r} holds {found[0]!r}, which would be read as markup")
    return phrase


def _four(rows: list[list]) -> None:
    for row in rows:
        if len(row) != 4:
            raise BoxError(f"{len(row)} numbers, but a box has 4")


def _within(values: np.ndarray, most: float) -> np.ndarray:
    if values.min() < 0 or values.max() > most:
        odd = values.min() if values.min() < 0 else values.max()
        raise BoxError(f"coordinate {odd:g} is not in 0 to {most:g}")
    return values


def _parse(
    text: str,
    pattern: re.Pattern,
    read: Callable[[str], np.ndarray],
    size: Size,
    malformed: str,
    tags: re.Pattern | None = None,
) -> Parsed:
    """Takes markup out of a text.

    Args:
        text: with markup.
        pattern: finds boxes, the group "boxes", and the phrase, in the group "before" or "after" where there is one.
        read: the group "boxes" -> corners as fractions [R, 4]; raises BoxError without the place.
        size, malformed: as `BoxCodec.decode`.
        tags: markup besides, which is dropped.
    """
    check_choice("malformed", malformed, ("raise", "skip"))
    height, width = size
    clean, groups = "", []
    for piece, found in _pieces(text, pattern):
        clean += tags.sub("", piece) if tags else piece
        if found is None:
            continue
        try:
            boxes = read(found["boxes"])
        except BoxError as error:
            if malformed == "raise":
                where = f"{found[0].strip()[:80]!r} at character {found.start()}"
                raise BoxError(f"{where}: {error}") from error
            clean += found[0]
            continue
        parts = found.groupdict()
        phrase = parts.get("before") or parts.get("after") or ""
        if parts.get("after") and clean[-1:].isspace():
            phrase = phrase.lstrip()  # the space before the boxes and that behind them are one
        lead = len(phrase) - len(phrase.lstrip())
        start = len(clean) + (lead if phrase.strip() else 0)
        clean += phrase
        phrase = phrase.strip() or None
        corners = np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        boxes = np.clip(corners, 0, 1) * (width, height, width, height)
        groups.append(Group(phrase, (start, start + len(phrase or "")), boxes))
    shift = len(clean) - len(clean.lstrip())
    clean = clean.strip()
    # Boxes without a phrase may have stood in the space that is gone.
    place = lambda at: min(max(at - shift, 0), len(clean))
    groups = [group._replace(span=tuple(map(place, group.span))) for group in groups]
    return Parsed(clean, tuple(groups))


def _pieces(text: str, pattern: re.Pattern) -> Iterator[tuple[str, re.Match | None]]:
    """What stands before each match, with the match; then the rest."""
    at = 0
    for found in pattern.finditer(text):
        yield text[at : found.start()], found
        at = found.end()
    yield text[at:], None
