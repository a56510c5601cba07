"""Tokens that see each other both ways: numbers of groups, from spans to a batch, and what the mask makes of them."""

import numpy as np
import pytest

from mmjax.data.bidirectional import item_group, prefix_group
from mmjax.data.chat_template import MediaSpan, TextSpan
from mmjax.data.collate import collate
from mmjax.data.items import MediaSize, TokenPlanError
from mmjax.data.positions import Run
from mmjax.data.token_plan import TokenPlan
from mmjax.nn.masks import attention_mask


def text(*ids, loss=False):
    return TextSpan(tuple(ids), (loss,) * len(ids))


def make_plan(kind, **changes):
    options = {"media_tokens": {"image": 90}, "lengths": (6, 12), "bidirectional": kind, **changes}
    return TokenPlan(lambda port, grid, size: 3, **options)


def with_arrays(sample):
    return sample.with_media({"image": [np.ones((2, 2, 3), np.float32)] * len(sample.item_tokens["image"])})


def test_groups():
    valid = np.array([[0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]], bool)
    targets = np.array([[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
    assert prefix_group(valid, targets).tolist() == [[0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    runs = [Run(1, (1, 1, 2)), Run(3, (1, 2, 2))]
    assert item_group(8, runs).tolist() == [0, 1, 1, 2, 2, 2, 2, 0]


SPANS = [text(1), MediaSpan("image", 0), text(2), text(3, 4, loss=True), text(5), text(6, loss=True)]
SIZES = {"image": [MediaSize()]}


@pytest.mark.parametrize(
    "kind, group",
    [("prefix", [1, 1, 1, 1, 1, 0, 0, 0, 0]), ("item", [0, 1, 1, 1, 0, 0, 0, 0, 0])],
)
def test_from_spans_to_the_mask(kind, group):
    plan = make_plan(kind)
    sample = plan.plan_sample(SPANS, SIZES, "s")
    assert sample.bidirectional_group.tolist() == group
    prompt = plan.plan_sample([text(7, 8)], None, "prompt")
    batch = collate([with_arrays(sample), prompt], plan)
    found = batch.text.bidirectional_group
    assert found.dtype == np.int32 and found[0].tolist() == group + [0] * 3
    assert found[1].tolist() == [int(kind == "prefix")] * 2 + [0] * 10
    seen = np.asarray(attention_mask(batch.text))[0, :9, :9]
    for query in range(9):
        for key in range(9):
            together = group[query] == group[key] > 0
            assert seen[query, key] == (key <= query or together)


def test_none_and_unknown():
    plan = make_plan("none")
    sample = plan.plan_sample(SPANS, SIZES, "s")
    assert sample.bidirectional_group is None
    assert collate([with_arrays(sample)], plan).text.bidirectional_group is None
    with pytest.raises(TokenPlanError, match="bidirectional is 'both'"):
        make_plan("both")


def test_truncation_cuts_the_group_too():
    plan = make_plan("prefix", lengths=(7,), too_long="truncate")
    sample = plan.plan_sample(SPANS, SIZES, "s")
    assert len(sample) == 7 and sample.bidirectional_group.tolist() == [1, 1, 1, 1, 1, 0, 0]


def test_branches():
    branches = [[text(1), MediaSpan("image", 0), text(2, n), text(5, loss=True)] for n in (3, 4)]
    plan = make_plan("item")
    merged = plan.share_prefix([plan.plan_sample(spans, SIZES, "s", branch=True) for spans in branches])
    assert merged.attend_group.tolist() == [0] * 5 + [1] * 2 + [2] * 2
    assert merged.bidirectional_group.tolist() == [0, 1, 1, 1] + [0] * 5
    plan = make_plan("prefix")
    samples = [plan.plan_sample(spans, SIZES, "s", branch=True) for spans in branches]
    with pytest.raises(TokenPlanError, match="s: its 2 branches cannot share a prefix"):
        plan.share_prefix(samples)
    assert plan.share_prefix(samples[:1]) is samples[0]
