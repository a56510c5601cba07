"""Collation against an item-by-item construction, and against the gather that the model does."""

import dataclasses

import numpy as np
import pytest

from mmjax.data.chat_template import MediaSpan, TextSpan
from mmjax.data.collate import collate
from mmjax.data.contracts import Batch
from mmjax.data.items import Layout, MediaSize, TokenPlanError
from mmjax.data.samples import Bucket
from mmjax.data.token_plan import TokenPlan

PORTS = {"image": 900, "depth": 901, "audio": 902}
TOKENS = {"image": 3, "depth": 1, "audio": 2}
SHAPES = {"image": (5, 4, 3), "depth": (2, 2, 3), "audio": (6, 7)}


def make_plan(**changes):
    items = {"image": (0, 1, 3), "depth": (0, 2), "audio": (0, 1, 2)}
    settings = {"media_tokens": PORTS, "lengths": (8, 16, 32), "items": items}
    return TokenPlan(count=lambda port, grid, size: TOKENS[port], **{**settings, **changes})


def make_sample(rng, plan, name, counts):
    """A sample with the given number of items of each port, in random order among text."""
    order = rng.permutation([port for port, number in counts.items() for _ in range(number)])
    used = dict.fromkeys(PORTS, 0)
    spans = [TextSpan((1,), (False,))]
    for port in order:
        spans.append(MediaSpan(str(port), used[port]))
        used[port] += 1
        ids = tuple(rng.integers(1, 100, rng.integers(0, 3)).tolist())
        spans.append(TextSpan(ids, tuple((rng.random(len(ids)) < 0.5).tolist())))
    sizes = {port: [MediaSize(None, (10 + i, 20)) for i in range(number)] for port, number in counts.items()}
    media = {
        p: [rng.standard_normal(SHAPES[p]).astype(np.float32) for _ in range(n)] for p, n in counts.items()
    }
    return plan.plan_sample(spans, sizes, name).with_media(media)


def make_samples(seed=0):
    rng = np.random.default_rng(seed)
    counts = [(2, 0, 1), (0, 0, 0), (1, 2, 2), (3, 0, 0)]
    plan = make_plan()
    return plan, [
        make_sample(rng, plan, f"s{k}", dict(zip(PORTS, numbers, strict=True)))
        for k, numbers in enumerate(counts)
    ]


def test_padding_and_dtypes():
    plan, samples = make_samples()
    batch = collate(samples, plan, pad_id=7, pad_rows_to=6)
    assert isinstance(batch, Batch)
    text = batch.text
    bucket = plan.bucket(samples)
    assert text.tokens.shape == (6, bucket.length) and text.loss_positions.shape == (6, bucket.targets)
    for field in ("tokens", "positions", "segment_ids", "media_index", "loss_positions"):
        assert getattr(text, field).dtype == np.int32
    assert text.loss_weights.dtype == np.float32
    assert text.attend_group is None
    for b in range(6):
        n = len(samples[b]) if b < 4 else 0
        assert text.segment_ids[b].tolist() == [1] * n + [0] * (bucket.length - n)
        assert (text.tokens[b, n:] == 7).all() and (text.media_index[b, n:] == -1).all()
        assert (text.loss_weights[b, n:] == 0).all() and (text.positions[b, n:] == 0).all()
        if n:
            assert text.tokens[b, :n].tolist() == samples[b].tokens.tolist()
            assert text.positions[b, :n].tolist() == list(range(n))
        targets = [t for t in range(bucket.length) if text.loss_weights[b, t] > 0]
        assert text.loss_positions[b].tolist() == targets + [-1] * (bucket.targets - len(targets))


@pytest.mark.parametrize("seed", range(4))
def test_media_index_finds_the_right_item(seed):
    """Gathers as the model does, from projected tokens that spell out (port, item, place in the item)."""
    plan, samples = make_samples(seed)
    batch = collate(samples, plan)
    projected = []
    for p, port in enumerate(PORTS):
        media = batch.media[port]
        items = media.segment_ids.shape[1] // (SHAPES[port][0] if media.stage == "encoded" else 1)
        rows = [(p, i, j) for i in range(items) for j in range(TOKENS[port])]
        projected += rows
    for b, sample in enumerate(samples):
        seen = {(p, i): [] for p in range(3) for i in range(4)}
        for t in range(len(sample)):
            token, row = batch.text.tokens[b, t], batch.text.media_index[b, t]
            if row < 0:
                assert token < 900
                continue
            p, i, j = projected[row]
            assert token == 900 + p
            seen[p, i].append(j)
        for p, port in enumerate(PORTS):
            for i in range(4):
                expected = list(range(TOKENS[port])) if i < len(sample.item_tokens[port]) else []
                assert seen[p, i] == expected


def test_media_values():
    plan, samples = make_samples()
    batch = collate(samples, plan)
    assert list(batch.media) == ["image", "depth", "audio"]
    image, audio = batch.media["image"], batch.media["audio"]
    assert image.values.shape == (4, 3, 5, 4, 3) and image.values.dtype == np.float32 and image.stage == "raw"
    assert image.segment_ids.tolist() == [[1, 2, 0], [0, 0, 0], [1, 0, 0], [1, 2, 3]]
    assert image.original_size[3].tolist() == [[10, 20], [11, 20], [12, 20]] and image.grid is None
    for b, sample in enumerate(samples):
        for i in range(3):
            expected = sample.media["image"][i] if i < len(sample.media["image"]) else np.zeros((5, 4, 3))
            np.testing.assert_array_equal(image.values[b, i], expected)
    assert audio.values.shape == (4, 12, 7) and audio.stage == "encoded"
    assert (
        audio.segment_ids[2].tolist() == [1] * 6 + [2] * 6
        and audio.segment_ids[0].tolist() == [1] * 6 + [0] * 6
    )
    np.testing.assert_array_equal(audio.values[2, 6:], samples[2].media["audio"][1])


def test_ports_without_media_are_left_out_unless_the_bucket_says_otherwise():
    plan, samples = make_samples()
    assert collate(samples[1:2], plan).media == {}
    assert list(collate(samples[:1], plan).media) == ["image", "audio"]
    with pytest.raises(TokenPlanError, match=r"s1: 3 padding item.*'image'.*item_shapes"):
        collate(samples[1:2], plan, bucket=plan.largest_bucket())
    shaped = dataclasses.replace(plan, item_shapes=SHAPES)
    full = collate(samples[1:2], shaped, pad_rows_to=2, bucket=plan.largest_bucket())
    assert full.media["image"].values.shape == (2, 3, 5, 4, 3) and not full.media["image"].segment_ids.any()
    empty = collate([], shaped, pad_rows_to=2, bucket=plan.largest_bucket())
    assert empty.text.tokens.shape == full.text.tokens.shape
    assert {p: m.values.shape for p, m in empty.media.items()} == {
        p: m.values.shape for p, m in full.media.items()
    }


def test_rows_of_a_batch_do_not_depend_on_each_other():
    plan, samples = make_samples()
    plan = dataclasses.replace(plan, item_shapes=SHAPES)
    bucket = plan.largest_bucket()
    whole = collate(samples, plan, bucket=bucket)
    for b, sample in enumerate(samples):
        alone = collate([sample], plan, bucket=bucket)
        for field in ("tokens", "media_index", "loss_positions", "segment_ids"):
            assert getattr(whole.text, field)[b].tolist() == getattr(alone.text, field)[0].tolist()
        for port in PORTS:
            np.testing.assert_array_equal(whole.media[port].values[b], alone.media[port].values[0])


def test_groups():
    plan, samples = make_samples()
    grouped = dataclasses.replace(samples[0], attend_group=np.arange(len(samples[0]), dtype=np.int32))
    batch = collate([samples[1], grouped], plan)
    assert not batch.text.attend_group[0].any()
    assert batch.text.attend_group[1, : len(grouped)].tolist() == list(range(len(grouped)))
    with pytest.raises(TokenPlanError, match="s0: has an attend_group"):
        collate([grouped], plan, bucket=plan.bucket(samples))


def test_grids_are_kept():
    plan = make_plan()
    spans = [MediaSpan("image", 0), TextSpan((1,), (False,))]
    sample = plan.plan_sample(spans, {"image": [MediaSize((1, 3, 1), (9, 3))]}, "g")
    batch = collate([sample.with_media({"image": [np.zeros((5, 4, 3), np.float32)]})], plan)
    assert batch.media["image"].grid.tolist() == [[[1, 3, 1]]]


def test_what_does_not_fit_is_named():
    plan, samples = make_samples()
    with pytest.raises(TokenPlanError, match="4 samples do not fit 3 rows"):
        collate(samples, plan, pad_rows_to=3)
    with pytest.raises(TokenPlanError, match="s0: .*tokens do not fit the bucket's 2"):
        collate(samples, plan, bucket=Bucket(2))
    with pytest.raises(TokenPlanError, match=r"s0: 2 image item\(s\) but 0 array"):
        collate([dataclasses.replace(samples[0], media={})], plan)
    other = dataclasses.replace(
        samples[3], media={**samples[3].media, "image": (np.zeros((9, 9, 3), np.float32),) * 3}
    )
    with pytest.raises(TokenPlanError, match=r"s3: image item of shape \[9, 9, 3\]; s0 has \[5, 4, 3\]"):
        collate([samples[0], other], plan)
    bytes_ = dataclasses.replace(
        samples[3], media={**samples[3].media, "image": (np.zeros((5, 4, 3), np.uint8),) * 3}
    )
    with pytest.raises(TokenPlanError, match="s3: image item is uint8"):
        collate([bytes_], plan)
    uneven = dataclasses.replace(samples[3], item_tokens={**samples[3].item_tokens, "image": (4, 4, 4)})
    with pytest.raises(TokenPlanError, match="s0 has image items of 3 tokens and s3 of 4"):
        collate([samples[0], uneven], plan)


def test_raw_items_of_two_axes_are_told_from_features_by_the_layout():
    rng = np.random.default_rng(0)
    plan = TokenPlan(lambda port, grid, size: 3, {"audio": 9}, (8,), layouts={"audio": Layout((4, 5), lambda n: 3 * n)})
    spans = [MediaSpan("audio", 0), TextSpan((1, 2), (0.0, 1.0))]
    sound = rng.normal(size=(4, 5)).astype(np.float32)
    sample = plan.plan_sample(spans, {"audio": [MediaSize()]}, "a").with_media({"audio": [sound]})
    media = collate([sample], plan).media["audio"]
    assert media.stage == "raw" and media.values.shape == (1, 1, 4, 5)
    np.testing.assert_array_equal(media.values[0, 0], sound)
    features = sample.with_media({"audio": [sound[:3]]})
    assert collate([features], plan).media["audio"].stage == "encoded"
