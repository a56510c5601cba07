"""Items that are read inside the backbone, from spans to a batch, against loops over tokens and items."""

import dataclasses

import numpy as np
import pytest

from mmjax.data.chat_template import MediaSpan, TextSpan
from mmjax.data.collate import collate
from mmjax.data.contracts import Media
from mmjax.data.conversation import Conversation, MediaPart, Message, TextPart
from mmjax.data.inside import SEES, seen_items
from mmjax.data.items import Layout, MediaSize, TokenPlanError
from mmjax.data.processor import Processor
from mmjax.data.token_plan import TokenPlan
from mmjax.recipes.assemble import byte_tokenizer

# "image" and "sound" are read inside, "sound" without a token of its own; "video" stands in the text as 3 tokens.
IMAGE, VIDEO = 900, 901
PORTS = ("image", "video", "sound")
SHAPES = {"image": (2, 2, 3), "video": (1, 2, 3), "sound": (4, 5)}


def make_plan(sees="latest", **changes):
    options = {
        "count": lambda port, grid, original_size: 3,
        "media_tokens": {"image": IMAGE, "video": VIDEO},
        "lengths": (64,),
        "inside": {"sound": sees, "image": sees},
        "item_shapes": SHAPES,
        "layouts": {"sound": Layout(SHAPES["sound"], tokens=lambda entries: 2 * entries)},
    }
    return TokenPlan(**{**options, **changes})


def text(*ids, loss=False):
    return TextSpan(tuple(ids), (loss,) * len(ids))


def draw_spans(rng, pieces, start=None, loss=0.4):
    """Spans in random order and what each is: ids, or (port, item); items count on from `start`."""
    counts = dict.fromkeys(PORTS, 0) if start is None else start
    spans = []
    for _ in range(pieces):
        port = PORTS[rng.integers(0, 3)]
        if rng.random() < 0.5:
            spans.append(text(*rng.integers(1, 4, rng.integers(1, 4)), loss=bool(rng.random() < loss)))
        else:
            spans.append(MediaSpan(port, counts[port]))
            counts[port] += 1
    return spans, counts


def by_hand(spans, counts, sees):
    """(tokens, seen [T][I], images after sounds) by walking over the spans, an item at a time."""
    tokens, places = [], {}
    for span in spans:
        if isinstance(span, TextSpan):
            tokens += span.ids
            continue
        places[span.port, span.item] = len(tokens)
        tokens += {"image": [IMAGE], "video": [VIDEO] * 3, "sound": []}[span.port]
    seen = []
    for at in range(len(tokens)):
        row = []
        for port in ("sound", "image"):
            mine = {item: place for (p, item), place in places.items() if p == port}
            for item in range(counts[port]):
                place = mine.get(item)
                behind = [other for other in mine.values() if other <= at]
                if place is None:
                    row.append(False)
                elif sees == "all":
                    row.append(True)
                elif sees == "before":
                    row.append(place <= at)
                else:
                    row.append(bool(behind) and place == max(behind))
        seen.append(row)
    return tokens, np.array(seen, bool).reshape(len(tokens), counts["sound"] + counts["image"])


def sizes_of(counts):
    return {port: [MediaSize()] * count for port, count in counts.items()}


def with_arrays(sample, rng):
    return sample.with_media({
        port: [rng.normal(size=SHAPES[port]).astype(np.float32) for _ in counts]
        for port, counts in sample.item_tokens.items()
    })  # fmt: skip


@pytest.mark.parametrize("sees", SEES)
def test_which_items_a_token_sees_in_a_batch(sees):
    """Rows with several images, with none, with sounds that leave no token; beside a port that stands in the text."""
    rng = np.random.default_rng(0)
    plan = make_plan(sees)
    assert plan.ports == ("image", "video", "sound") and plan.standing == ("video",)
    samples, wanted = [], []
    for row in range(25):
        spans, counts = draw_spans(rng, int(rng.integers(1, 9)))
        spans = [text(7), *spans, text(8, 9, loss=True)]
        sample = plan.plan_sample(spans, sizes_of(counts), f"row {row}")
        tokens, seen = by_hand(spans, counts, sees)
        assert sample.tokens.tolist() == tokens
        np.testing.assert_array_equal(sample.media_attention, seen)
        # Only the video has rows among the projected tokens that stand in the text.
        assert sample.media_index[sample.tokens == VIDEO].tolist() == list(range(3 * counts["video"]))
        assert (sample.media_index[sample.tokens != VIDEO] == -1).all()
        samples.append(with_arrays(sample, rng))
        wanted.append((counts, seen))
    assert any(not counts["image"] for counts, _ in wanted) and any(counts["image"] > 1 for counts, _ in wanted)
    batch = collate(samples, plan)
    room = {port: media.values.shape[1] for port, media in batch.media.items()}
    assert batch.text.media_attention.shape == (25, 64, room["sound"] + room["image"])
    for row, (counts, seen) in enumerate(wanted):
        whole = np.zeros((64, room["sound"] + room["image"]), bool)
        whole[: len(seen), : counts["sound"]] = seen[:, : counts["sound"]]
        whole[: len(seen), room["sound"] : room["sound"] + counts["image"]] = seen[:, counts["sound"] :]
        np.testing.assert_array_equal(batch.text.media_attention[row], whole)
        for port, count in counts.items():
            assert batch.media[port].segment_ids[row].tolist() == [*range(1, count + 1)] + [0] * (room[port] - count)
            for item in range(count):
                np.testing.assert_array_equal(batch.media[port].values[row, item], samples[row].media[port][item])
    # A batch without any has no entry, and nothing to see; one with sounds alone has their columns alone.
    plain = plan.plan_sample([text(1, 2, loss=True)], None, "s")
    assert collate([plain], plan).text.media_attention is None and not collate([plain], plan).media
    sound = with_arrays(plan.plan_sample([MediaSpan("sound", 0), text(1)], sizes_of({"sound": 1}), "s"), rng)
    alone = collate([plain, sound], plan)
    assert set(alone.media) == {"sound"} and alone.text.media_attention.shape == (2, 64, 1)
    assert alone.text.media_attention[:, :, 0].sum(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize("sees", SEES)
@pytest.mark.parametrize("limit", [3, 5, 8, 11])
def test_truncation_drops_items_and_their_columns(sees, limit):
    rng = np.random.default_rng(limit)
    cut_somewhere = 0
    for _ in range(20):
        spans, counts = draw_spans(rng, 7, loss=0)
        spans = [text(7, 8), *spans, text(9, 9)]
        whole = make_plan(sees).plan_sample(spans, sizes_of(counts), "s")
        sample = make_plan(sees, too_long="truncate", lengths=(limit,)).plan_sample(spans, sizes_of(counts), "s")
        end = len(sample)
        cut_somewhere += end < len(whole)
        assert sample.tokens.tolist() == whole.tokens[:end].tolist()
        kept = {port: len(items) for port, items in sample.item_tokens.items()}
        # What is left is what planning the beginning alone gives.
        first, at = [], 0
        for span in spans:
            length = 1 if isinstance(span, MediaSpan) else len(span.ids)
            length = {"video": 3, "sound": 0}.get(getattr(span, "port", ""), length)
            if at + length <= end and (not isinstance(span, MediaSpan) or span.item < kept[span.port]):
                first.append(span)
            elif isinstance(span, TextSpan) and at < end:
                first.append(TextSpan(span.ids[: end - at], span.loss[: end - at]))
            at += length
        again = make_plan(sees).plan_sample(first, sizes_of(kept), "s")
        assert again.tokens.tolist() == sample.tokens.tolist()
        np.testing.assert_array_equal(sample.media_attention, again.media_attention)
        np.testing.assert_array_equal(sample.media_index, again.media_index)
        collate([with_arrays(sample, rng)], make_plan(sees, lengths=(limit,)))
    assert cut_somewhere


@pytest.mark.parametrize("sees", SEES)
def test_branches_see_what_they_saw_alone(sees):
    """Shared media and a branch's own, without tokens too: every token of the merged row sees what it saw before."""
    rng = np.random.default_rng(1)
    plan, shared_somewhere = make_plan(sees, lengths=(256,)), 0
    for _ in range(30):
        common, counts = draw_spans(rng, 3)
        branches = []
        for _ in range(int(rng.integers(2, 4))):
            own, counts = draw_spans(rng, 2, counts)
            branches.append([text(7), *common, *own, text(8, 9, loss=True)])
        samples = [plan.plan_sample(spans, sizes_of(counts), "s", branch=True) for spans in branches]
        for spans, sample in zip(branches, samples, strict=True):
            np.testing.assert_array_equal(sample.media_attention, by_hand(spans, counts, sees)[1])
        if not np.concatenate([sample.media_attention for sample in samples]).any(axis=0).all():
            # An image right behind another that leaves no token: nobody sees the first.
            assert sees == "latest"
            continue
        merged = plan.share_prefix(samples)
        shared_somewhere += len(merged) < sum(map(len, samples))
        for number, sample in enumerate(samples, 1):
            mine = np.isin(merged.attend_group, (0, number))
            assert merged.tokens[mine].tolist() == sample.tokens.tolist()
            np.testing.assert_array_equal(merged.media_attention[mine], sample.media_attention)
    assert shared_somewhere


def test_branches_that_show_an_item_nowhere_are_named():
    plan, sizes = make_plan(), sizes_of({"image": 2})
    samples = [plan.plan_sample([MediaSpan("image", 0), text(k)], sizes, "s", branch=True) for k in (1, 2)]
    with pytest.raises(TokenPlanError, match=r"s: 2 media item\(s\) .* see 1 of them"):
        plan.share_prefix(samples)
    with pytest.raises(TokenPlanError, match=r"s: 1 image placeholder\(s\) but 2 image item\(s\)"):
        plan.plan_sample([MediaSpan("image", 0)], sizes, "s")


def test_places_by_hand():
    """Two items at one place came together; one that is not shown is seen by nobody."""
    latest = seen_items(4, [1, 1, 3, None], "latest").astype(int)
    assert latest.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]
    assert seen_items(2, [1, None], "before").astype(int).tolist() == [[0, 0], [1, 0]]
    assert seen_items(2, [1, None], "all").astype(int).tolist() == [[1, 0], [1, 0]]
    assert all(seen_items(3, [], sees).shape == (3, 0) for sees in SEES)
    with pytest.raises(TokenPlanError, match=r"inside\['sound'\] is 'first'"):
        make_plan("first")
    with pytest.raises(TokenPlanError, match="port 'smell' has no media token"):
        make_plan(items={"smell": (0, 1)})


TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}:{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '<' + part['type'] + '>' }}{% endif %}"
    "{% endfor %};{% endfor %}"
)


def talk(*parts, answer="b"):
    content = tuple(TextPart(p) if isinstance(p, str) else MediaPart("image", p) for p in parts)
    return Conversation((Message("user", content), Message("assistant", (TextPart(answer),))), name="s")


@pytest.mark.parametrize("token", [258, None])
def test_a_processor_of_a_port_with_and_without_a_token(token):
    """The template prints a placeholder for both; where the port has no token, nothing is left of it in the text."""
    tokenizer = byte_tokenizer().with_tokens(["<image>"] if token else [])
    features = [np.full((2, 6), number, np.float32) for number in range(3)]
    processor = Processor(
        tokenizer,
        {},
        TEMPLATE,
        {"image": "<image>"},
        {"image": token} if token else {},
        lambda port, grid, original_size: 2,
        inside={"image": "latest"},
        layouts={"image": Layout((2, 2, 3), tokens=lambda entries: 2 * entries)},
    )
    assert processor.ports == processor.plan.ports == ("image",) and processor.plan.standing == ()
    samples = [processor.sample(talk(features[0], "x", features[1], features[2], "y")), processor.sample(talk("x"))]
    assert tokenizer.decode(samples[0].tokens) == "user:xy;assistant:b;"
    assert np.flatnonzero(samples[0].tokens == token).tolist() == ([5, 7, 8] if token else [])
    first = samples[0].media_attention.astype(int)
    mark = int(token is not None)
    assert first[:5].sum() == 0 and (first[5 : 6 + mark] == [1, 0, 0]).all()
    if token:
        assert first[7].tolist() == [0, 1, 0] and (first[8:] == [0, 0, 1]).all()
    else:
        assert (first[6:] == [0, 1, 1]).all()
    batch = collate(samples, processor.plan)
    assert isinstance(batch.media["image"], Media) and batch.media["image"].stage == "encoded"
    assert batch.media["image"].segment_ids.tolist() == [[1, 1, 2, 2, 3, 3, 0, 0], [0] * 8]
    assert (batch.text.media_index == -1).all() and not batch.text.media_attention[1].any()
    assert batch.text.media_attention.shape[2] == 4
    both = dataclasses.replace(processor, inside={"image": "all"}).sample(talk("x", features[0]))
    assert both.media_attention.all() and both.media_attention.shape[1] == 1
