"""Masks to draw: signals in the text, squares and masks for the loss, and batches of them."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from mmjax.data.collate import collate
from mmjax.data.conversation import Conversation, MediaPart, Message, TextPart, parse_record
from mmjax.data.image import ImageProcessor
from mmjax.data.items import Layout
from mmjax.data.mask_targets import MaskTargets
from mmjax.data.processor import Processor
from mmjax.data.recipes import recipe_from_hf
from mmjax.data.regions import Region
from mmjax.data.samples import SampleTooLong
from mmjax.recipes.assemble import byte_tokenizer

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<' + part['type'] + '>' }}"
    "{% endfor %}{{ eos_token }}{% endfor %}"
)


def processor(signal=("<mask>",)):
    tokenizer = byte_tokenizer().with_tokens(["<image>", *signal])
    ids = tuple(tokenizer.token_id(token) for token in signal)
    return Processor(
        tokenizer,
        {
            "image": ImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False),
            "mask": MaskTargets(image_size=32, mask_size=16),
        },
        TEMPLATE,
        {"image": "<image>", "mask": signal[0]},
        {"image": tokenizer.token_id("<image>")},
        lambda port, grid, size: 4,
        layouts={"image": Layout((16, 16, 3), tokens=lambda n: 4 * n)},
        items={"mask": (0, 1, 2)},
        signals={"mask": ids},
    )


def picture(height=20, width=40):
    return MediaPart("image", Image.fromarray(np.full((height, width, 3), 255, np.uint8)))


def mask(*box, **options):
    return MediaPart("mask", Region(box=box, **options))


def turn(*parts, role="user"):
    return Message(role, tuple(TextPart(part) if isinstance(part, str) else part for part in parts))


def answer(*parts, **options):
    return dataclasses.replace(turn(*parts, role="assistant"), **options)


def test_signals_are_targets_and_masks_lie_in_the_square():
    made = processor()
    (signal,) = made.signals["mask"]
    said = answer("Here ", mask(0, 0, 0.5, 1), " and ", mask(0.5, 0.5, 1, 1), ".")
    sample = made.sample(Conversation((turn(picture(), "Where?"), said)))
    places = np.flatnonzero(sample.tokens == signal)
    assert len(places) == 2 and (sample.loss_weights[places] == 1).all() and (sample.media_index[places] == -1).all()
    arrays = sample.targets["mask"]
    # 20 x 40 pixels lie in the upper half of the square.
    pixels = np.zeros((16, 16))
    pixels[:8] = 1
    np.testing.assert_array_equal(arrays["pixels"], pixels)
    wanted = np.zeros((2, 16, 16))
    wanted[0, :8, :8] = wanted[1, 4:8, 8:] = 1
    np.testing.assert_array_equal(arrays["masks"], wanted)
    white = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(arrays["images"][:16], np.broadcast_to(white, (16, 32, 3)), rtol=1e-5)
    assert not arrays["images"][16:].any()


def test_batches_hold_what_the_loss_compares_with():
    made = processor()
    talks = [
        Conversation((turn(picture(), "?"), answer(mask(0, 0, 1, 1), " it is."))),
        Conversation((turn(picture(), "?"), answer("Nothing."))),
        Conversation((turn("?"), answer("No image."))),
    ]
    samples = [made.sample(talk) for talk in talks]
    batch = collate(samples, made.plan, pad_rows_to=4)
    found = batch.targets["mask"]
    assert {name: array.shape for name, array in found.items()} == {
        "images": (4, 32, 32, 3), "masks": (4, 1, 16, 16), "pixels": (4, 16, 16), "weights": (4, 1),
    }  # fmt: skip
    np.testing.assert_array_equal(found["weights"], [[1], [0], [0], [0]])
    np.testing.assert_array_equal(found["masks"][0], samples[0].targets["mask"]["masks"])
    assert collate(samples[1:], made.plan).targets is None
    whole = collate(samples[1:], dataclasses.replace(made, lengths=(64,)).plan, bucket=made.plan.bucket(samples))
    assert whole.targets["mask"]["weights"].shape == (2, 1) and not whole.targets["mask"]["weights"].any()
    many = answer(*(mask(0, 0, 1, 1) for _ in range(3)), "!")
    with pytest.raises(SampleTooLong, match="many: 3 mask items to draw"):
        made.sample(Conversation((turn(picture(), "?"), many), name="many"))


def test_a_signal_of_several_tokens_and_an_answer_that_is_not_trained():
    made = processor(("<a>", "<b>"))
    printed = "{'mask': '<a>', 'image': '<image>'}[part['type']]"
    made = dataclasses.replace(made, template=TEMPLATE.replace("'<' + part['type'] + '>'", printed))
    first = answer(mask(0, 0, 1, 1), "x", train=False)
    sample = made.sample(Conversation((turn(picture(), "?"), first, turn("?"), answer("y", mask(0, 0, 1, 1), "z"))))
    ids = np.array(made.signals["mask"])
    starts = np.flatnonzero(sample.tokens == ids[0])
    np.testing.assert_array_equal(sample.tokens[starts + 1], [ids[1]] * 2)
    np.testing.assert_array_equal(sample.loss_weights[starts], [0, 1])
    assert len(sample.targets["mask"]["masks"]) == 2


def test_records_files_and_errors(tmp_path):
    made = processor()
    content = [{"type": "text", "text": "Here "}, {"type": "mask", "box": [0, 0, 1, 1]}, {"type": "text", "text": "."}]
    user = [{"type": "image", "image": picture().source}, {"type": "text", "text": "?"}]
    record = {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": content}]}
    assert made.sample(parse_record(record, "r")).targets["mask"]["masks"].shape == (1, 16, 16)
    assert recipe_from_hf(made.images["mask"].to_hf(), "mask") == made.images["mask"]
    with pytest.raises(ValueError, match="two: its masks are of images .1, 2."):
        both = answer(mask(0, 0, 1, 1, image=1), mask(0, 0, 1, 1), ".")
        made.sample(Conversation((turn(picture(), picture(), "?"), both), name="two"))
    with pytest.raises(ValueError, match="none: mask 0 stands before its image"):
        made.sample(Conversation((turn("?"), answer(mask(0, 0, 1, 1), ".")), name="none"))
    with pytest.raises(ValueError, match="out: mask 0: box .* outside"):
        made.sample(Conversation((turn(picture(), "?"), answer(mask(0, 0, 2, 1), ".")), name="out"))
