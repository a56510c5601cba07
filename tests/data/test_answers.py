"""What an encoder-decoder reads and writes of a sample: by brute force, into buckets, batches and the pipeline."""

import dataclasses

import numpy as np
import pytest

from mmjax.data.answers import answer_span, join_answer, split_answer, without_targets
from mmjax.data.chat_template import MediaSpan, TextSpan
from mmjax.data.collate import collate
from mmjax.data.conversation import Conversation, MediaPart, Message, TextPart
from mmjax.data.items import MediaSize, TokenPlanError
from mmjax.data.pipeline import make_pipeline
from mmjax.data.processor import Processor
from mmjax.data.samples import SampleTooLong
from mmjax.data.token_plan import TokenPlan
from mmjax.recipes.assemble import byte_tokenizer
from mmjax.recipes.inspect_data import describe_sample

SIZE = [MediaSize()]


def text(*ids, loss=False):
    return TextSpan(tuple(ids), (loss,) * len(ids))


def make_plan(**changes):
    options = {"media_tokens": {"image": 90}, "lengths": (4, 8, 64), "start_token": 7, **changes}
    return TokenPlan(lambda port, grid, size: 3, **options)


def planned(plan, *spans, images=1):
    sample = plan.plan_sample(spans, {"image": SIZE * images}, "s")
    return sample.with_media({"image": [np.ones((2, 2, 3), np.float32)] * len(sample.item_tokens["image"])})


def runs(weights):
    """(start, end) of every run of targets, one token after the other."""
    found, start = [], None
    for place, weight in enumerate([*weights, 0]):
        if weight and start is None:
            start = place
        if not weight and start is not None:
            found.append((start, place))
            start = None
    return found


def test_the_answer_is_the_last_run_of_targets():
    rng = np.random.default_rng(0)
    plan = make_plan()
    for _ in range(200):
        spans, ids = [text(1), MediaSpan("image", 0)], [1, 90, 90, 90]
        weights = [0.0] * 4
        for loss in rng.random(rng.integers(0, 6)) < 0.5:
            new = rng.integers(10, 80, rng.integers(1, 4)).tolist()
            spans.append(text(*new, loss=bool(loss)))
            ids, weights = ids + new, weights + [float(loss)] * len(new)
        start, end = (runs(weights) or [(len(ids), len(ids))])[-1]
        assert answer_span(np.array(weights)) == (start, end)
        sample = planned(plan, *spans)
        assert sample.tokens.tolist() == ids[:start] and sample.answer.tolist() == ids[start:end]
        assert not sample.loss_weights.any() and sample.answer_weights.tolist() == weights[start:end]
        assert sample.num_targets == end - start and sample.num_written == (end - start + 1 if end > start else 0)
        assert sample.media_index.tolist() == [-1, 0, 1, 2] + [-1] * (start - 4)
        whole = join_answer(sample)
        assert whole.tokens.tolist() == ids[:end] and whole.num_targets == end - start
        assert whole.positions.tolist() == list(range(end)) and len(whole.media_index) == end


def test_weights_of_an_answer_are_kept():
    spans = [text(1), TextSpan((2, 3), (0.5, 2.0))]
    sample = planned(make_plan(), *spans, images=0)
    assert sample.answer.tolist() == [2, 3] and sample.answer_weights.tolist() == [0.5, 2.0]


@pytest.mark.parametrize(
    "spans, images, message",
    [
        ([text(1), text(2, loss=True), MediaSpan("image", 0)], 1, "s: .* reads media before its answer"),
        ([text(1), text(2, loss=True), MediaSpan("image", 0), text(3, loss=True)], 1, None),
        ([text(2, 3, loss=True)], 0, "s: there is nothing before the answer"),
        ([], 0, "s: there is nothing before the answer"),
    ],
)
def test_what_cannot_be_read_is_refused(spans, images, message):
    if message is None:  # media behind an earlier answer are read
        assert planned(make_plan(), *spans, images=images).tokens.tolist() == [1, 2, 90, 90, 90]
        return
    with pytest.raises(TokenPlanError, match=message):
        planned(make_plan(), *spans, images=images)


def test_media_in_an_answer_are_refused():
    sample = make_plan(start_token=None).plan_sample([text(1, 2, 3)], None, "s")
    inside = dataclasses.replace(
        sample, loss_weights=np.array([0, 1, 1], np.float32), media_index=np.array([-1, -1, 0], np.int32)
    )
    with pytest.raises(TokenPlanError, match="not in or behind it"):
        split_answer(inside)


def test_truncation_cuts_what_is_read_and_what_is_written():
    spans = [text(*range(10, 19)), text(20, 21, loss=True)]
    with pytest.raises(SampleTooLong, match="s: 9 tokens, more than the longest bucket of 8"):
        planned(make_plan(lengths=(4, 8)), *spans, images=0)
    sample = planned(make_plan(lengths=(4, 8), too_long="truncate"), *spans, images=0)
    assert sample.tokens.tolist() == list(range(10, 18)) and sample.answer.tolist() == [20, 21]
    spans = [text(1), text(*range(20, 30), loss=True)]
    with pytest.raises(SampleTooLong, match="s: an answer of 10 tokens and the start token"):
        planned(make_plan(lengths=(4, 8)), *spans, images=0)
    sample = planned(make_plan(lengths=(4, 8), too_long="truncate"), *spans, images=0)
    assert sample.answer.tolist() == list(range(20, 27)) and sample.num_targets == 7
    spans = [text(*range(10, 16)), MediaSpan("image", 0), text(5, loss=True)]
    sample = planned(make_plan(lengths=(8,), too_long="truncate"), *spans)
    assert sample.tokens.tolist() == list(range(10, 16)) and sample.item_tokens["image"] == ()


def test_buckets_hold_what_is_written_whatever_is_read():
    plan = make_plan()
    short, long = (planned(plan, text(1), text(*range(20, 20 + n), loss=True), images=0) for n in (1, 40))
    assert (plan.bucket([short]).length, plan.bucket([short]).answer, plan.bucket([short]).targets) == (4, 16, 16)
    bucket = plan.bucket([short, long])
    assert (bucket.length, bucket.answer, bucket.targets) == (4, 64, 64)
    assert plan.largest_bucket().answer == 64
    prompt = planned(plan, text(1, 2), images=0)
    assert plan.bucket([prompt]).answer == 0 and set(collate([prompt], plan).texts) == {"query"}


def test_batches():
    plan = make_plan()
    first = planned(plan, text(1), MediaSpan("image", 0), text(2), text(30, 31, loss=True), text(9))
    second = planned(plan, text(3, 4), images=0)
    batch = collate([first, second], plan, pad_id=5, pad_rows_to=3)
    query, written = batch.texts["query"], batch.texts["decoder"]
    assert query.tokens[0].tolist() == [1, 90, 90, 90, 2, 5, 5, 5] and query.loss_weights is None
    assert query.media_index[0].tolist() == [-1, 0, 1, 2, -1, -1, -1, -1]
    assert written.tokens[0].tolist() == [7, 30, 31] + [5] * 13
    assert written.segment_ids[:, :4].tolist() == [[1, 1, 1, 0], [0] * 4, [0] * 4]
    assert written.positions[0].tolist() == [0, 1, 2] + [0] * 13
    assert written.loss_weights[:, :4].tolist() == [[0, 1, 1, 0], [0] * 4, [0] * 4]
    assert written.loss_positions.tolist() == [[1, 2] + [-1] * 14, [-1] * 16, [-1] * 16]
    assert written.tokens[1].tolist() == [5] * 16
    small = dataclasses.replace(plan.bucket([first]), answer=2)
    with pytest.raises(TokenPlanError, match="s: 3 tokens of an answer do not fit the bucket's 2"):
        collate([first], plan, bucket=small)


def test_branches_are_refused():
    plan = make_plan()
    rows = [plan.plan_sample([text(1, n), text(5, loss=True)], None, "s", branch=True) for n in (3, 4)]
    with pytest.raises(TokenPlanError, match="its 2 branches cannot share a prefix"):
        plan.share_prefix(rows)
    assert plan.share_prefix(rows[:1]) is rows[0]


def record_of(record, name):
    words = text(*range(10, 10 + record["id"] % 5 + 1)), text(*[record["id"]] * (1 + record["id"] % 20), loss=True)
    return planned(make_plan(lengths=(8, 32)), *words, images=0)


def test_pipeline_counts_both_streams():
    records = [{"id": number} for number in range(21)]
    pipeline = make_pipeline([records], record_of, make_plan(lengths=(8, 32)), 3, seed=0, epochs=1)
    seen = set()
    for batch in pipeline:
        written = batch.texts["decoder"]
        assert (written.tokens[:, 0] == 7).all()
        seen |= set(written.tokens[written.loss_weights > 0].tolist())
    assert seen == set(range(21))
    counters = pipeline.counters
    assert counters.tokens == sum(number % 5 + 1 + 1 + 1 + number % 20 for number in range(21))
    assert counters.slots >= counters.tokens and len(counters.buckets) <= 3


TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'A:' }}{% for p in m['content'] %}{{ p['text'] }}"
    "{% endfor %}{{ eos_token }}{% else %}{% for p in m['content'] %}"
    "{{ '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
)


def say(role, *words):
    parts = [MediaPart("image", np.ones((3, 8), np.float32)) if word is None else TextPart(word) for word in words]
    return Message(role, tuple(parts))


def test_conversations():
    """Training learns the last answer; a prompt keeps all that was said, earlier answers and the last question."""
    tokenizer = byte_tokenizer().with_tokens(["<image>"])
    options = {"lengths": (64,), "start_token": 7}
    counted = lambda port, grid, size: 3
    processor = Processor(tokenizer, {}, TEMPLATE, {"image": "<image>"}, {"image": 258}, counted, **options)
    talk = Conversation((say("user", None, "one?"), say("assistant", "yes"), say("user", "two?")))
    prompt = processor.sample(talk, add_generation_prompt=True)
    image = "<image>" * 3
    assert tokenizer.decode(prompt.tokens, skip_special=False) == image + "one?A:yes</s>two?A:"
    assert not prompt.num_written
    learned = processor.sample(Conversation((*talk.messages, say("assistant", "no"))))
    assert tokenizer.decode(learned.tokens, skip_special=False) == image + "one?A:yes</s>two?A:"
    assert tokenizer.decode(learned.answer, skip_special=False) == "no</s>" and learned.answer_weights.all()
    shown = describe_sample(learned, processor)
    assert "3 are targets of the loss" in shown and "LOSS" in shown and "no" in shown


def test_without_targets():
    spans = (text(1, 2, loss=True), MediaSpan("image", 0), text(3))
    assert without_targets(spans) == (text(1, 2), MediaSpan("image", 0), text(3))
