"""Images that are to be found, and what somebody said should be done: of the parts of another port."""

import json

import numpy as np
import pytest
from PIL import Image

from mmjax.data.choice_targets import DecisionTargets, RetrievalTargets
from mmjax.data.collate import collate
from mmjax.data.conversation import parse_record
from mmjax.data.image import ImageError, ImageProcessor
from mmjax.data.items import TokenPlanError
from mmjax.data.processor import Processor
from mmjax.data.recipes import recipe_from_hf
from mmjax.recipes.assemble import byte_tokenizer

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '[IMG0]' }}{% endfor %}{{ eos_token }}{% endfor %}"
)


@pytest.fixture(scope="module")
def processor():
    tokenizer = byte_tokenizer().with_tokens(["[IMG0]", "[IMG1]"])
    ids = tuple(map(tokenizer.token_id, ("[IMG0]", "[IMG1]")))
    find = RetrievalTargets("find", side=6)
    return Processor(
        tokenizer,
        {"image_out": RetrievalTargets(side=8), "find": find, "decision": DecisionTargets()},
        TEMPLATE,
        {"image_out": "[IMG0]"},
        {},
        lambda port, grid, size: 1,
        items=dict.fromkeys(("image_out", "find", "decision"), (0, 1, 2)),
        signals=dict.fromkeys(("image_out", "find", "decision"), ids),
    )


def picture(shade):
    return Image.fromarray(np.full((9, 14, 3), shade, np.uint8))


def talk(*choices, name="one"):
    shades = [picture(40 * number) for number in range(len(choices))]
    parts = [{"type": "image", "image": image, "choice": one} for image, one in zip(shades, choices, strict=True)]
    said = [{"type": "text", "text": "Here:"}, *parts, {"type": "text", "text": "."}]
    question = {"role": "user", "content": "Draw."}
    return parse_record({"messages": [question, {"role": "assistant", "content": said}]}, name)


def test_both_read_the_parts_of_the_port_that_they_share_a_signal_with(processor):
    sample = processor.sample(talk("retrieve", None))
    # Nothing was asked of "find", which reads a port of its own.
    assert set(sample.targets) == {"image_out", "decision"}
    images = sample.targets["image_out"]["images"]
    assert images.shape == (2, 8, 8, 3) and images.dtype == np.float32
    recipe = ImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    np.testing.assert_array_equal(images[1], recipe(picture(40)))
    np.testing.assert_array_equal(sample.targets["decision"]["choice"], [1, -1])
    silent = processor.sample(talk(None))
    assert set(silent.targets) == {"image_out"}
    batch = collate([sample, silent], processor.plan)
    np.testing.assert_array_equal(batch.targets["decision"]["weights"], [[1, 1], [0, 0]])
    np.testing.assert_array_equal(batch.targets["image_out"]["weights"], [[1, 1], [1, 0]])
    np.testing.assert_array_equal(batch.targets["decision"]["choice"], [[1, -1], [0, 0]])


def test_errors_name_the_part(processor):
    with pytest.raises(TokenPlanError, match="two: decision 1: choice is 'paint'.*draw, retrieve"):
        processor.sample(talk("draw", "paint", name="two"))
    broken = parse_record(
        {"messages": [{"role": "assistant", "content": [{"type": "image", "image": b"no image"}]}]}, "three"
    )
    with pytest.raises(ImageError, match="three: image_out 0"):
        processor.sample(broken)


@pytest.mark.parametrize("recipe", [RetrievalTargets("image_out", 8, std=(1.0, 2.0, 3.0)), DecisionTargets("made")])
def test_recipes_go_through_json(recipe):
    assert recipe_from_hf(json.loads(json.dumps(recipe.to_hf())), "any") == recipe
