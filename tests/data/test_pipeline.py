"""The pipeline: order, resumption, workers, mixtures, several hosts, bad records."""

import collections
import functools
import json
import time

import jax
import numpy as np
import pytest

from mmjax.data.chat_template import MediaSpan, TextSpan
from mmjax.data.items import MediaSize
from mmjax.data.pipeline import BadRecordsError, make_pipeline
from mmjax.data.token_plan import TokenPlan


def count(port, grid, original_size):
    return 2


PLAN = TokenPlan(
    count=count,
    media_tokens={"image": 99},
    lengths=(8, 16),
    items={"image": (0, 1)},
    too_long="error",
    item_shapes={"image": (2, 3, 3)},
)


def to_sample(record, name, plan=PLAN, delay=0.0):
    """The record's id, as many times as it says, with an image where it says so."""
    time.sleep(delay)
    if record.get("bad"):
        raise ValueError("this record is bad")
    ids = (record["id"],) * record["length"]
    spans = [TextSpan(ids, (True,) * len(ids))]
    sizes, media = [], []
    if record.get("image"):
        spans.insert(0, MediaSpan("image", 0))
        sizes, media = [MediaSize(None, (2, 3))], [np.full((2, 3, 3), record["id"], np.float32)]
    return plan.plan_sample(spans, {"image": sizes}, name).with_media({"image": media})


def make_records(number, first=0, **extra):
    return [
        {"id": i, "length": 2 + i % 11, "image": i % 3 == 0, **extra} for i in range(first, first + number)
    ]


def ids(batch):
    """The ids of the rows' records; padding rows are left out."""
    rows = zip(batch.text.tokens, batch.text.segment_ids, batch.text.media_index, strict=True)
    return [int(t[(s > 0) & (m < 0)][0]) for t, s, m in rows if s.any()]


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def take(pipeline, number, start=0):
    with pipeline.iterator(start) as iterator:
        return [next(iterator) for _ in range(number)]


def test_each_epoch_shows_each_record_once_in_a_new_order():
    pipeline = make_pipeline([make_records(23)], to_sample, PLAN, 4, seed=3, epochs=3)
    order = [i for batch in pipeline for i in ids(batch)]
    assert pipeline.steps == 18 and pipeline.steps_per_epoch == 23 / 4
    epochs = [order[k : k + 23] for k in (0, 23, 46)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs) and len(order) == 69
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(23))
    again = make_pipeline([make_records(23)], to_sample, PLAN, 4, seed=3, epochs=3)
    assert [i for batch in again for i in ids(batch)] == order
    other = make_pipeline([make_records(23)], to_sample, PLAN, 4, seed=4, epochs=3)
    assert [i for batch in other for i in ids(batch)] != order


def test_large_sources_are_shuffled_each_epoch_too(monkeypatch):
    """The same through grain's own shuffle, which small sources do not use because it is slow for them."""
    monkeypatch.setattr("mmjax.data.pipeline._SMALL", 0)
    pipeline = make_pipeline([make_records(60), make_records(40, 60)], to_sample, PLAN, 10, seed=0, epochs=2)
    order = [i for batch in pipeline for i in ids(batch)]
    assert sorted(order[:100]) == sorted(order[100:]) == list(range(100))
    assert order[:100] != order[100:] and order[:100] != list(range(100))


def test_without_shuffling_the_order_is_that_of_the_sources():
    sources = [make_records(5), make_records(4, first=5)]
    pipeline = make_pipeline(sources, to_sample, PLAN, 4, seed=0, shuffle=False, epochs=1)
    batches = list(pipeline)
    assert [ids(batch) for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    last = batches[-1].text
    assert last.tokens.shape[0] == 4 and not last.segment_ids[1:].any() and not last.loss_weights[1:].any()


def test_sources_without_weights_are_shuffled_together():
    pipeline = make_pipeline(
        [make_records(9), make_records(4, first=9)], to_sample, PLAN, 5, seed=0, epochs=2
    )
    order = [i for batch in pipeline for i in ids(batch)]
    assert sorted(order[:13]) == sorted(order[13:]) == list(range(13))
    assert set(order[:9]) != set(range(9))


@pytest.mark.parametrize("start", [0, 1, 4, 9])
def test_resuming_at_any_step_gives_the_same_batches(start):
    sources = [(make_records(7), 2.0), (make_records(5, first=50), 1.0)]
    whole = take(make_pipeline(sources, to_sample, PLAN, 4, seed=1), 12)
    pipeline = make_pipeline(sources, to_sample, PLAN, 4, seed=1)
    for a, b in zip(take(pipeline, 12 - start, start), whole[start:], strict=True):
        assert_same(a, b)
    assert_same(pipeline.batch(start), whole[start])


def test_iterators_end_and_know_their_step():
    pipeline = make_pipeline([make_records(6)], to_sample, PLAN, 4, seed=1, epochs=1)
    iterator = pipeline.iterator(1)
    assert iterator.step == 1
    next(iterator)
    assert iterator.step == 2
    assert list(iterator) == [] and list(pipeline.iterator(2)) == []
    with pytest.raises(IndexError, match="step 2"):
        pipeline.batch(2)


def test_worker_processes_give_the_same_batches():
    records = make_records(12)
    records[5]["bad"] = True
    make = functools.partial(
        make_pipeline, [(records, 2), (make_records(3, first=30), 1)], to_sample, PLAN, 4, 1
    )
    alone, shared = make(skip_budget=1), make(skip_budget=1, workers=2)
    for a, b in zip(take(alone, 7, 2), take(shared, 7, 2), strict=True):
        assert_same(a, b)
    assert shared.counters.bad == alone.counters.bad and alone.counters.skipped == shared.counters.skipped > 0
    assert shared.counters.buckets == alone.counters.buckets


def test_mixtures_keep_their_proportions_throughout():
    weights = {0: 0.6, 100: 0.3, 200: 0.1}
    sources = [
        (make_records(number, first), weights[first]) for first, number in ((0, 40), (100, 7), (200, 90))
    ]
    pipeline = make_pipeline(sources, to_sample, PLAN, 10, seed=0)
    order = [i for batch in take(pipeline, 60) for i in ids(batch)]
    for stretch in (order[:50], order[200:300], order):
        for first, weight in weights.items():
            share = sum(first <= i < first + 100 for i in stretch)
            assert abs(share - weight * len(stretch)) <= 2
    seen = collections.Counter(i for i in order if 100 <= i < 200)
    assert len(seen) == 7 and max(seen.values()) - min(seen.values()) <= 1


@pytest.mark.parametrize("processes", [2, 4])
def test_hosts_share_each_global_batch(processes):
    records = make_records(11)
    make = functools.partial(make_pipeline, [records], to_sample, PLAN, 8, seed=2, epochs=2)
    whole = list(make(fixed_shape=True))
    parts = [list(make(process_index=i, process_count=processes)) for i in range(processes)]
    assert len(whole) == 3 and all(len(part) == 3 for part in parts)
    for step, batch in enumerate(whole):
        union = jax.tree.map(lambda *rows: np.concatenate(rows), *(part[step] for part in parts))
        assert_same(union, batch)
    tight = list(make())
    assert [ids(batch) for batch in tight] == [ids(batch) for batch in whole]
    assert all(a.text.tokens.shape[1] <= b.text.tokens.shape[1] for a, b in zip(tight, whole, strict=True))


def test_media_come_with_their_rows():
    pipeline = make_pipeline([make_records(9)], to_sample, PLAN, 3, seed=0, epochs=1)
    found = 0
    for batch in pipeline:
        for row, i in enumerate(ids(batch)):
            if i % 3 == 0:
                found += 1
                assert (batch.media["image"].values[row, 0] == i).all()
    assert found == 3


def test_the_first_bad_record_is_an_error_without_a_budget():
    records = make_records(6)
    records[4]["bad"] = True
    pipeline = make_pipeline([records], to_sample, PLAN, 3, seed=0, shuffle=False)
    with pipeline.iterator() as iterator:
        assert ids(next(iterator)) == [0, 1, 2]
        with pytest.raises(
            BadRecordsError, match=r"(?s)1 bad record.*budget is 0.*record 4: ValueError: this record"
        ) as info:
            next(iterator)
    assert info.value.records == {"record 4": "ValueError: this record is bad"}
    assert "in to_sample" in info.value.__notes__[0]


def test_bad_records_are_counted_and_replaced():
    records = make_records(6)
    records[1]["bad"] = records[2]["bad"] = True
    make = functools.partial(make_pipeline, [records], to_sample, PLAN, 3, seed=0, shuffle=False)
    pipeline = make(skip_budget=2)
    # The next good record stands in; the same records are met again in the second epoch and are not new.
    assert [ids(batch) for batch in take(pipeline, 4)] == [[0, 3, 3], [3, 4, 5]] * 2
    assert pipeline.counters.skipped == 6 and list(pipeline.counters.bad) == ["record 1", "record 2"]
    with pytest.raises(BadRecordsError, match="(?s)2 bad record.*budget is 1.*record 1: .*record 2: "):
        take(make(skip_budget=1), 1)


def test_a_source_of_nothing_but_bad_records_ends(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1\n' * 3)
    with pytest.raises(BadRecordsError, match=r"a\.jsonl line 3: SourceError: .*not valid JSON"):
        take(make_pipeline([path], to_sample, PLAN, 2, seed=0, skip_budget=2, shuffle=False), 1)
    with pytest.raises(ValueError, match="no usable record"):
        take(make_pipeline([path], to_sample, PLAN, 2, seed=0, skip_budget=5), 1)


def test_a_bad_line_of_a_file_is_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(record) for record in make_records(4)]
    lines[1] = lines[1][:-3]
    path.write_text("\n".join(lines))
    pipeline = make_pipeline([str(path)], to_sample, PLAN, 4, seed=0, shuffle=False, skip_budget=1, epochs=1)
    assert [ids(batch) for batch in pipeline] == [[0, 2, 2, 3]]
    assert list(pipeline.counters.bad) == [f"{path} line 2"]


def test_too_long_samples_cost_no_budget_where_the_plan_skips_them():
    import dataclasses

    records = make_records(4)
    records[2]["length"] = 17
    skipping = dataclasses.replace(PLAN, too_long="skip")
    sample = functools.partial(to_sample, plan=skipping)
    pipeline = make_pipeline([records], sample, skipping, 2, seed=0, shuffle=False)
    assert [ids(batch) for batch in take(pipeline, 2)] == [[0, 1], [3, 3]]
    assert pipeline.counters.too_long == 1 and not pipeline.counters.bad
    with pytest.raises(BadRecordsError, match="record 2: SampleTooLong: record 2: 17 tokens"):
        take(make_pipeline([records], to_sample, PLAN, 2, seed=0, shuffle=False), 2)
    hopeless = make_pipeline([make_records(3, length=40)], sample, skipping, 2, seed=0)
    with pytest.raises(ValueError, match="3 are too long"):
        take(hopeless, 1)


def test_counters_tell_fill_shapes_and_waiting():
    slow = functools.partial(to_sample, delay=0.02)
    pipeline = make_pipeline([make_records(12)], slow, PLAN, 4, seed=0, epochs=1)
    batches = list(pipeline)
    counters = pipeline.counters
    assert counters.batches == 3 and counters.samples == 12
    assert counters.tokens == sum(int((b.text.segment_ids > 0).sum()) for b in batches)
    assert counters.slots == sum(b.text.tokens.size for b in batches)
    assert sum(counters.buckets.values()) == 3 and {b.length for b in counters.buckets} <= {8, 16}
    assert 0 < counters.last_wait_seconds <= counters.wait_seconds
    assert counters.wait_seconds > 0.06
    quick = make_pipeline([make_records(12)], slow, PLAN, 4, seed=0)
    with quick.iterator() as iterator:
        next(iterator)
        first = quick.counters.last_wait_seconds
        time.sleep(0.5)
        next(iterator)
        assert quick.counters.last_wait_seconds < first


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sources": []}, "sources"),
        ({"sources": [(make_records(2), 1.0), make_records(2)]}, "pairs"),
        ({"sources": [(make_records(2), 0.0)]}, "weights must be positive"),
        ({"sources": [make_records(2), []]}, "number 1.*no record"),
        ({"batch_size": 5, "process_count": 2}, "batch_size 5 cannot be split over 2"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"process_index": 1}, "process_index 1"),
        ({"epochs": 0}, "epochs 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    settings = {
        "sources": [make_records(2)],
        "to_sample": to_sample,
        "plan": PLAN,
        "batch_size": 2,
        "seed": 0,
    }
    with pytest.raises(ValueError, match=message):
        make_pipeline(**{**settings, **change})
    with pytest.raises(ValueError, match="start_step -1"):
        make_pipeline(**settings).iterator(-1)
