"""Images as codes in a text: tokens beside transformers' processors, what is learned of them, and their pixels."""

import dataclasses

import numpy as np
import pytest
import transformers
from PIL import Image

from mmjax.data.code_images import CodeImages, CodeLayout
from mmjax.data.collate import collate
from mmjax.data.conversation import parse_record
from mmjax.data.image import HALF, ImageError
from mmjax.data.items import TokenPlanError
from mmjax.data.processor import Processor, load_processor
from mmjax.data.recipes import recipe_from_hf
from mmjax.data.samples import SampleTooLong
from mmjax.recipes.assemble import byte_tokenizer

# Behind 258 tokens of the byte tokenizer.
WORDS = ("<image>", "<|image start|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>", "<|image end|>")
BLANK, START, BEGIN, ROW_END, FRAME_END, END = range(258, 264)
STOP = 257
LAYOUT = CodeLayout("image", BLANK, ROW_END, 8, BEGIN, (FRAME_END, END, STOP))
RECIPE = CodeImages(32, 48, "<|image start|>{height}*{width}<|image token|>", "<|extra_201|><|image end|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<image>' }}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else '|' }}{% endfor %}"
)


def processor(layout=LAYOUT, recipe=RECIPE, **options):
    return Processor(
        byte_tokenizer().with_tokens(WORDS),
        {layout.port: recipe},
        TEMPLATE,
        {layout.port: "<image>"},
        {},
        lambda port, grid, size: 0,
        items={layout.port: (0, 1, 2)},
        codes=layout,
        **options,
    )


def picture(height, width):
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8))


def shown(height=32, width=48):
    return {"type": "image", "image": picture(height, width)}


def record(user, assistant, name="one", **more):
    part = lambda one: one if isinstance(one, dict) else {"type": "text", "text": one}
    roles = {"user": user, "assistant": assistant}
    messages = [{"role": role, "content": list(map(part, said))} for role, said in roles.items() if said]
    return parse_record({"messages": messages, **more}, name)


def ids(text):
    return byte_tokenizer().encode(text)


def image(height=4, width=6):
    return [START, *ids(f"{height}*{width}"), BEGIN, *([BLANK] * width + [ROW_END]) * height, FRAME_END, END]


@pytest.fixture(scope="module")
def their_tokenizer(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().with_tokens((*WORDS, "<racm3:break>", "<eoss>", "<sep>")).save(str(place))
    names = ("image_token", "boi_token", "image_wrapper_token", "eol_token", "eof_token", "eoi_token")
    return lambda **others: transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(place / "tokenizer.json"), bos_token="<s>", eos_token="</s>",
        extra_special_tokens={**dict(zip(names, WORDS, strict=True)), **others},
    )  # fmt: skip


def test_tokens_are_those_of_emu3s_processor(their_tokenizer):
    images = transformers.Emu3ImageProcessor(min_pixels=8 * 8, max_pixels=64 * 64, image_mean=HALF, image_std=HALF)
    theirs = transformers.Emu3Processor(images, their_tokenizer())
    wanted = theirs(images=[picture(32, 48)], text="A <image>b", return_tensors="np")
    sample = processor().sample(record(["A ", shown(), "b"], []), mode="plain")
    # Theirs has the placeholder at ends of rows too, which their model then fills in.
    found = np.where(sample.tokens == ROW_END, BLANK, sample.tokens)
    np.testing.assert_array_equal(found, wanted["input_ids"][0])
    assert tuple(wanted["image_sizes"][0]) == (32, 48)
    # With the published mean and deviation, and of an image that fits, the pixels are the same too.
    pixels = wanted["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(sample.targets["image"]["media"][0], pixels, atol=1e-5)


def test_tokens_are_those_of_chameleons_processor(their_tokenizer):
    words = dict(boi_token="<racm3:break>", eoi_token="<eoss>", sep_token="<sep>")
    images = transformers.ChameleonImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    theirs = transformers.ChameleonProcessor(images, their_tokenizer(**words), image_seq_length=4)
    wanted = theirs(images=[picture(20, 30)], text="A <image>b", return_tensors="np")
    names = {word: theirs.tokenizer.convert_tokens_to_ids(word) for word in ("<racm3:break>", "<eoss>", "<sep>")}
    layout = CodeLayout("image", BLANK, None, 8, names["<racm3:break>"], (names["<eoss>"],))
    model = processor(layout, CodeImages(16, 16, "<racm3:break>", "<eoss>"))
    model = dataclasses.replace(model, tokenizer=model.tokenizer.with_tokens(["<racm3:break>", "<eoss>", "<sep>"]))
    sample = model.sample(record(["A ", shown(20, 30), "b"], []), mode="plain")
    found = [*sample.tokens, names["<sep>"]]
    np.testing.assert_array_equal(found[-len(wanted["input_ids"][0]) :], wanted["input_ids"][0])


def test_what_an_assistant_shows_is_learned_to_its_end_and_what_a_user_shows_is_read():
    model = processor(recipe=dataclasses.replace(RECIPE, weight=0.5))
    sample = model.sample(record([shown(5, 9), "Wider?"], ["Here: ", shown(64, 64)]))
    read, said = [256, *image(), *ids("Wider?|")], [*ids("Here: "), *image(), STOP]
    np.testing.assert_array_equal(sample.tokens, [*read, *said])
    wanted = [0.0] * len(read) + [0.5 if token == BLANK else 1.0 for token in said]
    np.testing.assert_array_equal(sample.loss_weights, wanted)
    assert (sample.media_index == -1).all() and not sample.item_tokens
    media = sample.targets["image"]["media"]
    assert media.shape == (2, 32, 48, 3) and -1 <= media.min() < -0.5 and 0.5 < media.max() <= 1
    # A message that is not to be learned is read, and so is what ends it.
    turn = {"role": "assistant", "content": [shown()], "train": False}
    unlearned = parse_record({"messages": [{"role": "user", "content": "A cat"}, turn]}, "two")
    assert not model.sample(unlearned).loss_weights.any()
    batch = collate([sample, model.sample(record(["No"], ["picture"]))], model.plan)
    np.testing.assert_array_equal(batch.targets["image"]["weights"], [[1, 1], [0, 0]])
    assert collate([model.sample(record(["No"], ["picture"]))], model.plan).targets is None


def test_codes_with_a_port_of_their_own_are_what_an_assistant_shows():
    layout = CodeLayout("image_out", 999, None, 8)
    model = processor(layout, CodeImages(8, 16))
    sample = model.sample(record(["Draw"], ["Here", shown()]))
    np.testing.assert_array_equal(sample.tokens, [256, *ids("Draw|Here"), 999, 999, STOP])
    assert sample.targets["image_out"]["media"].shape == (1, 8, 16, 3)
    with pytest.raises(TokenPlanError, match="no port 'image'"):
        model.sample(record([shown()], ["Here"]))


def test_long_texts_are_cut_off_inside_an_image():
    model = processor(lengths=(16, 24), too_long="truncate")
    sample = model.sample(record(["A"], [shown()]))
    np.testing.assert_array_equal(sample.tokens, [256, *ids("A|"), *image()][:24])
    assert len(sample.targets["image"]["media"]) == 1


def test_recipe_is_saved_and_read(tmp_path):
    assert recipe_from_hf(RECIPE.to_hf(), "image") == RECIPE
    model = processor()
    model.save(tmp_path)
    again = load_processor(tmp_path, model.count, codes=LAYOUT)
    talk = record([shown(), "?"], [shown(), "."])
    np.testing.assert_array_equal(again.sample(talk).tokens, model.sample(talk).tokens)
    # A model that says nothing of codes leaves the recipe alone.
    assert again.code_run == model.code_run and dataclasses.replace(again, images={}, placeholders={}).code_run is None


def test_what_cannot_work_is_named():
    one = record([shown()], ["Yes"])
    for layout, recipe, message in (
        ({}, {"width": 50}, "32 x 50 pixels are no whole number of codes, each of which is 8 x 8"),
        ({"begin": START}, {}, "the model writes an image behind 259"),
        ({}, {"behind": "<|image end|>"}, r"stand the tokens \[263\]; the model ends an image with \[262, 263, 257\]"),
    ):
        model = processor(dataclasses.replace(LAYOUT, **layout), dataclasses.replace(RECIPE, **recipe))
        with pytest.raises(TokenPlanError, match=message):
            model.sample(one)
    with pytest.raises(SampleTooLong, match="one: 3 image items to draw, more than the largest bucket of 2"):
        processor().sample(record([shown()] * 3, ["Yes"]))
    branches = [[{"role": "user", "content": [shown()]}, {"role": "assistant", "content": "Yes"}]]
    with pytest.raises(TokenPlanError, match="one: its branches have image items, which are codes in the text"):
        processor().sample(record(["Look"], [], branches=branches))
    with pytest.raises(ImageError, match="one: image 1"):
        bad = {"type": "image", "image": b"no image"}
        processor().sample(record([shown(), bad], ["Yes"]))
