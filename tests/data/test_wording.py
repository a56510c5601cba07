"""Words around and between the tokens of an item, and items that stand in several runs."""

import numpy as np
import pytest

from mmjax.data.chat_template import MediaSpan, TextSpan
from mmjax.data.items import MediaSize, TokenPlanError
from mmjax.data.token_plan import TokenPlan
from mmjax.data.wording import WORDINGS, Part, Source, Word, Wording

NO_SIZE = MediaSize()


def text(*ids, loss=False):
    return TextSpan(ids, (loss,) * len(ids))


def rows_of(item, rows, columns, words=9):
    """An item of `rows` runs, a token of text behind each."""
    spans = []
    for row in range(rows):
        spans += [MediaSpan("image", item, first=row * columns, count=columns), text(words)]
    return spans


def plan(**options):
    return TokenPlan(count=lambda port, grid, size: 6, media_tokens={"image": 90}, **options)


def test_runs_of_an_item():
    sample = plan().plan_sample([text(1), *rows_of(0, 2, 3), MediaSpan("image", 1), text(2)], {"image": [NO_SIZE] * 2})
    assert sample.tokens.tolist() == [1, 90, 90, 90, 9, 90, 90, 90, 9, *[90] * 6, 2]
    assert sample.media_index.tolist() == [-1, 0, 1, 2, -1, 3, 4, 5, -1, *range(6, 12), -1]
    assert sample.item_tokens == {"image": (6, 6)}


@pytest.mark.parametrize("lead", range(1, 16))
def test_truncation_keeps_items_whole(lead):
    """A cut into the second run of an item takes its first run too."""
    spans = [text(*range(1, lead + 1), loss=True), *rows_of(0, 2, 3), *rows_of(1, 2, 3)]
    sample = plan(lengths=(16,), too_long="truncate").plan_sample(spans, {"image": [NO_SIZE] * 2})
    shown = np.count_nonzero(sample.media_index >= 0)
    assert shown == sum(sample.item_tokens["image"]) == (12 if lead + 15 <= 16 else 6 if lead + 7 <= 16 else 0)
    assert len(sample) <= 16


@pytest.mark.parametrize(
    "spans, message",
    [
        ([MediaSpan("image", 0, count=4)], "row: 2 of the tokens of image item 0 stand nowhere"),
        ([MediaSpan("image", 0, count=4), MediaSpan("image", 0, first=5)], "a run of 1 from token 5 on, where the 4"),
        ([MediaSpan("image", 0, count=7)], "image item 0 of 6 tokens: a run of 7"),
        ([MediaSpan("image", 0), MediaSpan("image", 0, first=6, count=1)], "a run of 1 from token 6 on"),
    ],
)
def test_runs_that_do_not_fit(spans, message):
    with pytest.raises(TokenPlanError, match=message):
        plan().plan_sample(spans, {"image": [NO_SIZE]}, "row")


def test_lines():
    source = Source([MediaSize((1, 4, 6))], [6])
    names = {"image_break_token": "[B]", "image_end_token": "[E]"}
    pieces = WORDINGS["PixtralProcessor"].of("image", source, names)
    assert pieces == (Part(0, 0, 3), Word("[B]"), Part(0, 3, 3), Word("[E]"))
    whole = Source([MediaSize((1, 3, 2))], [6])
    assert [piece.count for piece in WORDINGS["FuyuProcessor"].of("image", whole, {})[::2]] == [2, 2, 2]


def test_tiles():
    pieces = WORDINGS["Idefics3Processor"].of("image", Source([NO_SIZE] * 3, [4] * 3, rows=1, columns=2), {})
    assert [piece.item for piece in pieces if isinstance(piece, Part)] == [0, 1, 2]
    words = "".join(piece.text if isinstance(piece, Word) else "X" for piece in pieces)
    fake = "<fake_token_around_image>"
    assert words == f"{fake}<row_1_col_1>X{fake}<row_1_col_2>X\n\n{fake}<global-img>X{fake}"


def test_without_words_items_stand_as_they_are():
    assert Wording().of("sound", Source([NO_SIZE] * 2, [3, 3]), {}) == (Part(0), Part(1))
