"""The token plan against brute-force constructions: layout, truncation, shared prefixes, buckets."""

import dataclasses

import numpy as np
import pytest

from mmjax.data.chat_template import MediaSpan, TextSpan
from mmjax.data.items import MediaSize, TokenPlanError
from mmjax.data.samples import Bucket, Sample, SampleTooLong
from mmjax.data.token_plan import TokenPlan

IMAGE, AUDIO = 900, 901


def count(port, grid, original_size):
    """Images: 3 tokens, or their grid's size; audio: 2 tokens."""
    if port == "audio":
        return 2
    return 3 if grid is None else int(np.prod(grid))


def text(*ids, loss=False):
    return TextSpan(tuple(ids), (loss,) * len(ids))


def make_plan(**changes):
    return TokenPlan(
        **{"count": count, "media_tokens": {"image": IMAGE, "audio": AUDIO}, "lengths": (8, 16), **changes}
    )


NO_SIZE = MediaSize()


def test_layout_of_two_ports():
    spans = [
        text(1, 2),
        MediaSpan("audio", 0),
        text(3),
        MediaSpan("image", 0),
        MediaSpan("image", 1),
        text(4, 5, loss=True),
        text(6),
    ]
    sizes = {"image": [MediaSize((1, 2, 1)), NO_SIZE], "audio": [NO_SIZE]}
    sample = make_plan().plan_sample(spans, sizes, "s")
    assert sample.tokens.tolist() == [1, 2, AUDIO, AUDIO, 3] + [IMAGE] * 5 + [4, 5, 6]
    # Images come first in the config: rows 0-1 and 2-4; the audio's rows are 5-6.
    assert sample.media_index.tolist() == [-1, -1, 5, 6, -1, 0, 1, 2, 3, 4, -1, -1, -1]
    assert sample.positions.tolist() == list(range(13))
    assert sample.loss_weights.tolist() == [0.0] * 10 + [1.0, 1.0, 0.0]
    assert sample.item_tokens == {"image": (2, 3), "audio": (2,)}
    assert sample.num_targets == 2 and len(sample) == 13
    for field in ("tokens", "positions", "media_index"):
        assert getattr(sample, field).dtype == np.int32
    assert sample.loss_weights.dtype == np.float32


def test_the_first_token_is_never_a_target_and_weights_may_be_fractions():
    sample = make_plan().plan_sample([TextSpan((1, 2, 3), (1.0, 0.5, 0.0))], None, "s")
    assert sample.loss_weights.tolist() == [0.0, 0.5, 0.0]


@pytest.mark.parametrize(
    "spans, sizes, message",
    [
        (
            [MediaSpan("image", 0), MediaSpan("image", 1)],
            {"image": [NO_SIZE]},
            r"s: 2 image placeholder.* 1 image item",
        ),
        ([text(1)], {"image": [NO_SIZE] * 2}, r"s: 0 image placeholder.* 2 image item"),
        ([MediaSpan("image", 0)], {}, r"s: 1 image placeholder.* 0 image item"),
        (
            [MediaSpan("image", 1), MediaSpan("image", 0)],
            {"image": [NO_SIZE] * 2},
            r"s: image items.*\[1, 0\]",
        ),
        ([MediaSpan("video", 0)], {"video": [NO_SIZE]}, r"s: no port 'video'.*image.*audio"),
        ([text(1)], {"video": [NO_SIZE]}, r"s: no port 'video'"),
        ([MediaSpan("image", 0)], {"image": [MediaSize((0, 2, 2))]}, "counted as 0"),
    ],
)
def test_text_and_media_must_match(spans, sizes, message):
    with pytest.raises(TokenPlanError, match=message):
        make_plan().plan_sample(spans, sizes, "s")


def test_too_long():
    spans = [text(*range(1, 18), loss=True)]
    for policy in ("error", "skip"):
        with pytest.raises(SampleTooLong, match="s: 17 tokens.*16"):
            make_plan(too_long=policy).plan_sample(spans, None, "s")
    sample = make_plan(too_long="truncate").plan_sample(spans, None, "s")
    assert sample.tokens.tolist() == list(range(1, 17))
    with pytest.raises(SampleTooLong, match="s: 3 image items.*2"):
        make_plan(items={"image": (0, 2)}).plan_sample(
            [MediaSpan("image", i) for i in range(3)], {"image": [NO_SIZE] * 3}, "s"
        )
    with pytest.raises(SampleTooLong, match="s: 6 target tokens.*4"):
        make_plan(targets=(2, 4)).plan_sample([text(1), text(*range(6), loss=True)], None, "s")


@pytest.mark.parametrize("lead", range(1, 17))
def test_truncation_never_cuts_an_item(lead):
    """Against a search for the longest beginning that holds whole items only."""
    plan = make_plan(too_long="truncate")
    spans = [text(*range(1, lead + 1), loss=True), MediaSpan("image", 0), MediaSpan("audio", 0), text(70, 71)]
    spans += [MediaSpan("image", 1), MediaSpan("audio", 1), text(*range(80, 90), loss=True)]
    sizes = {"image": [NO_SIZE, NO_SIZE], "audio": [NO_SIZE, NO_SIZE]}
    whole = make_plan(lengths=(99,)).plan_sample(spans, sizes, "s")
    items, row = {}, 0
    for port in ("image", "audio"):
        for number, size in enumerate(whole.item_tokens[port]):
            for r in range(row, row + size):
                items[r] = (port, number)
            row += size
    owner = [items.get(int(r)) for r in whole.media_index]
    cut = 16
    while cut and owner[cut - 1] is not None and cut < len(owner) and owner[cut] == owner[cut - 1]:
        cut -= 1
    sample = plan.plan_sample(spans, sizes, "s")
    assert sample.tokens.tolist() == whole.tokens[:cut].tolist()
    kept = {port: len({o for o in owner[:cut] if o and o[0] == port}) for port in ("image", "audio")}
    assert {port: len(sizes) for port, sizes in sample.item_tokens.items()} == kept
    # Rows must be what planning only the kept items gives.
    short = [s for s in spans if not isinstance(s, MediaSpan) or s.item < kept[s.port]]
    again = make_plan(lengths=(99,)).plan_sample(short, {p: [NO_SIZE] * n for p, n in kept.items()}, "s")
    assert sample.media_index.tolist() == again.media_index[:cut].tolist()
    arrays = {"image": [np.zeros((1, 1)), np.ones((1, 1))], "audio": [np.zeros((1, 1))] * 2}
    assert {port: len(a) for port, a in sample.with_media(arrays).media.items()} == kept
    if kept["image"]:
        with pytest.raises(TokenPlanError, match=r"s: \d image item\(s\) planned but 0 array"):
            sample.with_media({"audio": arrays["audio"]})


def test_truncation_that_leaves_nothing_is_refused():
    plan = make_plan(too_long="truncate")
    with pytest.raises(SampleTooLong, match="s: 18 tokens.*no target"):
        plan.plan_sample([text(*range(16)), text(1, 2, loss=True)], None, "s")
    with pytest.raises(SampleTooLong, match="s: 20 tokens.*nothing left"):
        plan.plan_sample([MediaSpan("image", 0)], {"image": [MediaSize((1, 4, 5))]}, "s")
    with pytest.raises(SampleTooLong, match="a branch is not truncated"):
        plan.plan_sample([text(*range(18))], None, "s", branch=True)


def branch(rng, shared, own, answers):
    spans = [MediaSpan("image", 0), text(*shared), text(*own), text(*answers, loss=True)]
    return make_plan(lengths=(64,)).plan_sample(spans, {"image": [NO_SIZE]}, "s", branch=True)


@pytest.mark.parametrize("case", range(12))
def test_a_shared_prefix_leaves_every_branch_its_own_view(case):
    """Each token of the merged row sees (in order) what it saw in its own row, and so does each target."""
    rng = np.random.default_rng(case)
    shared = rng.integers(1, 4, rng.integers(0, 5))
    samples = [
        branch(rng, shared, rng.integers(1, 4, rng.integers(0, 4)), rng.integers(1, 4, rng.integers(1, 4)))
        for _ in range(rng.integers(2, 5))
    ]
    plan = make_plan(lengths=(64, 128))
    merged = plan.share_prefix(samples)
    prefix = int(np.count_nonzero(merged.attend_group == 0))
    assert prefix >= 2
    if case == 0:
        assert len(merged) < sum(map(len, samples))

    def views(sample, group):
        """(position, row, token) of all that a token sees, for each token of the group or the prefix."""
        keep = np.ones(len(sample), bool) if group is None else np.isin(sample.attend_group, (0, group))
        fields = np.stack([sample.positions, sample.media_index, sample.tokens], 1)[keep].tolist()
        return fields

    for k, sample in enumerate(samples, 1):
        assert views(merged, k) == views(sample, None)
    starts = np.flatnonzero(np.diff(merged.attend_group)) + 1
    assert (merged.loss_weights[starts] == 0).all()
    assert merged.loss_weights.sum() == sum(sample.loss_weights.sum() for sample in samples)
    for k, sample in enumerate(samples, 1):
        own = merged.loss_weights[merged.attend_group == k]
        assert own.tolist() == sample.loss_weights[prefix:].tolist()


def test_shared_prefix_by_hand():
    plan = make_plan(lengths=(64,))
    a = plan.plan_sample([text(1, 2, 3), text(4, 5, loss=True)], None, "a")
    b = plan.plan_sample([text(1, 2, 3), text(6, loss=True)], None, "b")
    merged = plan.share_prefix([a, b])
    # Token 3 is given to both branches, since what follows it is a target in both.
    assert merged.tokens.tolist() == [1, 2, 3, 4, 5, 3, 6]
    assert merged.positions.tolist() == [0, 1, 2, 3, 4, 2, 3]
    assert merged.attend_group.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert merged.loss_weights.tolist() == [0, 0, 0, 1, 1, 0, 1]
    assert plan.share_prefix([a]) is a


def test_shared_prefix_that_holds_targets_counts_them_for_every_branch():
    plan = make_plan(lengths=(64,))
    turns = [[text(1, 2), text(3, loss=True), text(4), text(last), text(8, loss=True)] for last in (5, 6, 7)]
    merged = plan.share_prefix([plan.plan_sample(turn, None, "s") for turn in turns])
    assert merged.tokens.tolist() == [1, 2, 3, 4, 5, 8, 6, 8, 7, 8]
    assert merged.loss_weights.tolist() == [0, 0, 3, 0, 0, 1, 0, 1, 0, 1]


def test_branches_that_do_not_fit_are_named():
    plan = make_plan(lengths=(8,))
    one = plan.plan_sample([MediaSpan("image", 0), text(1, 2)], {"image": [NO_SIZE]}, "one")
    none = plan.plan_sample([text(1, 2)], None, "none")
    with pytest.raises(TokenPlanError, match="one: its branches do not share"):
        plan.share_prefix([one, none])
    hidden = plan.plan_sample([text(1, 2)], {"image": [NO_SIZE]}, "hidden", branch=True)
    with pytest.raises(TokenPlanError, match="hidden: the media have 3 tokens but the branches show 0"):
        plan.share_prefix([hidden, hidden])
    long = [plan.plan_sample([text(1), text(*range(k, k + 6), loss=True)], None, "long") for k in (1, 2)]
    with pytest.raises(SampleTooLong, match="long: 14 tokens.*8"):
        plan.share_prefix(long)


def test_bucket_is_the_smallest_that_fits():
    plan = make_plan(lengths=(8, 16, 40), items={"image": (0, 1, 4)})
    samples = [
        plan.plan_sample([text(*range(9))], None, "a"),
        plan.plan_sample(
            [MediaSpan("image", 0), MediaSpan("image", 1), text(1, loss=True)], {"image": [NO_SIZE] * 2}, "b"
        ),
    ]
    assert plan.bucket(samples) == Bucket(16, (("image", 4), ("audio", 0)), 16)
    assert plan.bucket(samples[:1]) == Bucket(16, (("image", 0), ("audio", 0)), 16)
    long = plan.plan_sample([text(0), text(*range(30), loss=True)], None, "c")
    assert plan.bucket([long]).targets == 32 and plan.bucket([long]).length == 40
    assert plan.largest_bucket() == Bucket(40, (("image", 4), ("audio", 8)), 40)
    assert plan.bucket([dataclasses.replace(long, attend_group=long.tokens)]).grouped
    assert make_plan(grouped=True).bucket(samples[1:]).grouped
    assert len({plan.bucket(samples), plan.bucket(samples)}) == 1


def test_every_bucket_comes_from_a_small_fixed_set():
    rng = np.random.default_rng(0)
    plan = make_plan(lengths=(8, 16, 40), items={"image": (0, 1, 4), "audio": (0,)})
    seen = set()
    for _ in range(200):
        n = int(rng.integers(1, 41))
        weights = rng.random(n) < rng.random()
        sample = Sample(
            np.zeros(n, np.int32), np.zeros(n, np.int32), weights.astype(np.float32), np.full(n, -1)
        )
        bucket = plan.bucket([sample])
        assert bucket.length >= n and bucket.targets >= sample.num_targets
        seen.add(bucket)
    assert len(seen) <= 6


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lengths": ()}, "lengths"),
        ({"lengths": (8, 4)}, "lengths"),
        ({"items": {"image": (1, 1)}}, "items"),
        ({"items": {"imgae": (1,)}}, "imgae"),
        ({"too_long": "cut"}, "cut"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(change, message):
    with pytest.raises(TokenPlanError, match=message):
        make_plan(**change)
