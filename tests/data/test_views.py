"""Second views of an item, from a conversation to the arrays of both ports."""

import numpy as np

from mmjax.data.conversation import Conversation, MediaPart, Message, TextPart
from mmjax.data.image import ImageProcessor
from mmjax.data.items import Layout
from mmjax.data.processor import Processor
from mmjax.data.views import with_views
from mmjax.recipes.assemble import byte_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}:{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '<' + part['type'] + '>' }}{% endif %}"
    "{% endfor %};{% endfor %}"
)


def turn(*parts, role="user"):
    return Message(role, tuple(TextPart(p) if isinstance(p, str) else MediaPart("image", p) for p in parts))


def test_every_item_goes_to_both_ports_in_order():
    talk = Conversation((turn("a", 1, 2),), ((turn(3),), (turn("b"),)), "s")
    seen = with_views(talk, {"detail": "image"})
    assert [part.source for part in seen.media("detail")] == [part.source for part in seen.media("image")] == [1, 2, 3]
    assert [getattr(part, "port", "text") for part in seen.messages[0].parts] == ["text", *["detail", "image"] * 2]
    assert seen.branches[1] == talk.branches[1] and with_views(talk, {}) is talk


def test_a_processor_opens_an_image_at_two_sizes():
    sides = {"image": 2, "detail": 5}
    recipe = lambda side: ImageProcessor(size={"height": side, "width": side}, do_center_crop=False)
    processor = Processor(
        byte_tokenizer().with_tokens(["<image>"]),
        {port: recipe(side) for port, side in sides.items()},
        TEMPLATE,
        {"image": "<image>", "detail": "<detail>"},
        {"image": 258},
        lambda port, grid, original_size: 3,
        inside={"detail": "latest"},
        layouts={port: Layout((side, side, 3), tokens=lambda entries: entries) for port, side in sides.items()},
        views={"detail": "image"},
    )
    pixels = np.random.default_rng(0).integers(0, 256, (7, 6, 3), np.uint8)
    talk = Conversation((turn("x", pixels), turn("b", role="assistant")), name="s")
    sample = processor.sample(talk)
    assert [sample.media[port][0].shape for port in ("image", "detail")] == [(2, 2, 3), (5, 5, 3)]
    # The view leaves nothing in the text, and is seen from where its image stands.
    assert np.flatnonzero(sample.tokens == 258).tolist() == [6, 7, 8]
    assert sample.item_tokens == {"image": (3,), "detail": (0,)}
    assert np.flatnonzero(sample.media_attention[:, 0])[0] == 6 and sample.media_attention[6:].all()
