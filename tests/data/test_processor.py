"""The processor against transformers' LlavaProcessor: the same ids and the same pixels."""

import functools
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from mmjax.data.collate import collate
from mmjax.data.conversation import parse_record
from mmjax.data.image import ImageError, ImageProcessor
from mmjax.data.items import TokenPlanError
from mmjax.data.pipeline import make_pipeline
from mmjax.data.processor import Processor, load_processor
from mmjax.data.samples import SampleTooLong
from mmjax.data.tokenizer import load_tokenizer

WORDS = [
    "what",
    "is",
    "this",
    "a",
    "blue",
    "frog",
    "and",
    "that",
    "?",
    ".",
    "USER",
    "ASSISTANT",
    ":",
    "the",
    "colour",
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<unk>", "<pad>", "<image>", "<|user|>", "<|assistant|>", "<|system|>"]
PIXELS = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 12}, "crop_size": 12}


def count(port, grid, original_size):
    return 9


@pytest.fixture
def checkpoint(tmp_path):
    """A directory with the tokenizer and processor files of a tiny LLaVA."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(SPECIAL)
    path = tmp_path / "llava"
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "pad_token": "<pad>"}
    config |= {"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": {"image_token": "<image>"}}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    (path / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    return path


def picture(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def conversation(*questions, answer="a blue frog .", images=(), name="s"):
    content = [{"type": "image", "image": image} for image in images]
    messages = []
    for number, question in enumerate(questions):
        parts = (content if number == 0 else []) + [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": parts})
        if answer:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return parse_record({"messages": messages}, name)


def test_ids_and_pixels_equal_llava_processor(checkpoint):
    pytest.importorskip("transformers")
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    theirs = LlavaProcessor(
        image_processor=CLIPImageProcessorPil.from_pretrained(checkpoint),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(checkpoint),
        patch_size=4,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    )
    processor = load_processor(checkpoint, count)
    assert processor.placeholders == {"image": "<image>"} and processor.media_tokens == {"image": 4}
    for images in ([picture(20, 31)], [picture(7, 5), picture(40, 12, 1)]):
        messages = [{"role": "user", "content": [{"type": "image"} for _ in images]}]
        messages[0]["content"].append({"type": "text", "text": "what is this ?"})
        prompt = theirs.apply_chat_template(messages, add_generation_prompt=True)
        expected = theirs(images=images, text=prompt, return_tensors="np", add_special_tokens=False)
        sample = processor.sample(
            conversation("what is this ?", answer=None, images=images), add_generation_prompt=True
        )
        assert sample.tokens.tolist() == expected["input_ids"][0].tolist()
        assert sample.item_tokens == {"image": (9,) * len(images)}
        assert sample.media_sizes["image"][-1].original_size == (images[-1].height, images[-1].width)
        for ours, pixels in zip(sample.media["image"], expected["pixel_values"], strict=True):
            np.testing.assert_allclose(ours, pixels.transpose(1, 2, 0), rtol=0, atol=1e-6)


def test_only_the_answer_is_a_target(checkpoint):
    processor = load_processor(checkpoint, count)
    sample = processor.sample(conversation("what is this ?", images=[picture(9, 9)]))
    vocabulary = SPECIAL + WORDS
    targets = [vocabulary[i] for i in sample.tokens[sample.loss_weights > 0]]
    assert targets == ["a", "blue", "frog", ".", "</s>"]
    batch = collate([sample], processor.plan, pad_id=processor.tokenizer.pad_id)
    assert batch.media["image"].values.shape == (1, 1, 12, 12, 3)
    assert (batch.text.tokens == 4).sum() == 9


def test_plain_mode_has_no_template(checkpoint):
    processor = load_processor(checkpoint, count)
    content = [{"type": "image", "image": picture(5, 6)}]
    answer = {"role": "assistant", "content": "a frog"}
    sample = processor.sample(
        parse_record({"messages": [{"role": "user", "content": content}, answer]}, "s"), mode="plain"
    )
    words = [(SPECIAL + WORDS)[i] for i in sample.tokens]
    assert words == ["<image>"] * 9 + ["a", "frog"]
    assert sample.loss_weights.tolist() == [0] * 9 + [1, 1]
    with pytest.raises(ValueError, match="mode is 'raw'"):
        processor.sample(conversation("this"), mode="raw")


def test_branches_share_the_image(checkpoint):
    processor = load_processor(checkpoint, count)
    record = {"messages": [{"role": "user", "content": [{"type": "image", "image": picture(8, 8)}]}]}
    record["branches"] = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in (("what is this ?", "a frog"), ("what colour is that ?", "blue"))
    ]
    sample = processor.sample(parse_record(record, "s"))
    assert len(sample.media["image"]) == 1 and (sample.media_index >= 0).sum() == 9
    assert set(sample.attend_group.tolist()) == {0, 1, 2}
    assert (sample.attend_group[sample.media_index >= 0] == 0).all()
    words = SPECIAL + WORDS
    for group, answer in ((1, ["a", "frog", "</s>"]), (2, ["blue", "</s>"])):
        keep = (sample.attend_group == group) & (sample.loss_weights > 0)
        assert [words[i] for i in sample.tokens[keep]] == answer
    with pytest.raises(TokenPlanError, match='needs mode "chat"'):
        processor.sample(parse_record(record, "s"), mode="plain")


def test_what_is_bad_is_named(checkpoint, tmp_path):
    processor = load_processor(checkpoint, count, lengths=(16,))
    with pytest.raises(FileNotFoundError, match=r"row 3: image 0: .*none\.png"):
        processor.sample(conversation("what", images=[str(tmp_path / "none.png")], name="row 3"))
    with pytest.raises(ImageError, match="row 3: image 1: bytes: not an image"):
        processor.sample(conversation("what", images=[picture(3, 3), b"hello"], name="row 3"))
    with pytest.raises(SampleTooLong, match="row 3: .* tokens.*16"):
        processor.sample(conversation("what " * 20, name="row 3"))
    video = [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "what"}]
    with pytest.raises(ValueError, match="row 3.*video"):
        processor.sample(parse_record({"messages": [{"role": "user", "content": video}]}, "row 3"))
    with pytest.raises(ValueError, match="port 'depth' has no media token"):
        Processor(processor.tokenizer, {"depth": ImageProcessor()}, None, {}, {"image": 4}, count)


def test_encoded_features_pass_through(checkpoint):
    tokenizer = load_tokenizer(str(checkpoint))
    processor = Processor(tokenizer, {}, None, {"image": "<image>"}, {"image": 4}, count)
    features = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    sample = processor.sample(conversation("what", images=[features]))
    batch = collate([sample], processor.plan)
    assert batch.media["image"].stage == "encoded"
    np.testing.assert_array_equal(batch.media["image"].values[0], features)
    with pytest.raises(TokenPlanError, match="s: image 0: port 'image' has no image processor.*Image"):
        processor.sample(conversation("what", images=[picture(3, 3)]))


def test_truncation_drops_whole_images(checkpoint):
    processor = load_processor(checkpoint, count, lengths=(16,), too_long="truncate")
    turns = conversation("what", images=[picture(3, 3), picture(4, 4)], answer=None)
    sample = processor.sample(turns)
    assert len(sample.media["image"]) == 1 and len(sample) == 10


def test_saving_and_loading(checkpoint, tmp_path):
    processor = load_processor(
        checkpoint, count, lengths=(32, 64), items={"image": (0, 1, 3)}, too_long="skip"
    )
    processor.save(tmp_path / "saved")
    again = load_processor(tmp_path / "saved", count)
    assert again.plan == processor.plan and again.images == processor.images
    assert load_processor(tmp_path / "saved", count, lengths=(128,)).lengths == (128,)
    turns = conversation("what is this ?", "the colour ?", images=[picture(9, 14)])
    a, b = processor.sample(turns), again.sample(turns)
    assert a.tokens.tolist() == b.tokens.tolist()
    np.testing.assert_array_equal(a.media["image"][0], b.media["image"][0])
    assert pickle.loads(pickle.dumps(again)).sample(turns).tokens.tolist() == a.tokens.tolist()
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs.chat_template == TEMPLATE
    other = Processor(again.tokenizer, {}, "{{ messages }}", {}, {}, count)
    other.save(tmp_path / "other")
    assert (tmp_path / "other" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert not (tmp_path / "other" / "preprocessor_config.json").exists()


def test_loading_what_is_not_there(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        load_processor(tmp_path / "absent", count)
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        load_processor(tmp_path, count)
    with pytest.raises(ValueError, match="'<frog>' for port 'image'"):
        load_processor(checkpoint, count, placeholders={"image": "<frog>"})
    (checkpoint / "preprocessor_config.json").write_text('{"image_processor_type": "FancyImageProcessor"}')
    with pytest.raises(ValueError, match="llava.*FancyImageProcessor"):
        load_processor(checkpoint, count)
    (checkpoint / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: not valid JSON"):
        load_processor(checkpoint, count)
    (checkpoint / "preprocessor_config.json").unlink()
    assert load_processor(checkpoint, count).images == {}
    (checkpoint / "processor_config.json").write_text(
        json.dumps({"image_token": "<image>", "image_processor": PIXELS})
    )
    assert load_processor(checkpoint, count).images["image"].output_size() == (12, 12)


def test_llava_records_through_a_pipeline(checkpoint, tmp_path):
    records = []
    for i in range(6):
        picture(10 + i, 9, i).save(tmp_path / f"{i}.png")
        turns = [
            {"from": "human", "value": "<image>\nwhat is this ?"},
            {"from": "gpt", "value": "a frog ." * (i + 1)},
        ]
        records.append({"id": i, "image": f"{i}.png", "conversations": turns})
    (tmp_path / "2.png").write_bytes(b"broken")
    (tmp_path / "data.json").write_text(json.dumps(records))
    processor = load_processor(checkpoint, count, lengths=(32, 64))
    to_sample = functools.partial(processor.from_record, image_root=str(tmp_path))
    pipeline = make_pipeline(
        [tmp_path / "data.json"], to_sample, processor.plan, 3, seed=0, shuffle=False, epochs=1, skip_budget=1
    )
    batches = list(pipeline)
    assert len(batches) == 2
    for row, i in enumerate((0, 1, 3, 3, 4, 5)):
        media = batches[row // 3].media["image"]
        assert media.original_size[row % 3, 0].tolist() == [10 + i, 9]
        expected = ImageProcessor.from_hf(PIXELS)(tmp_path / f"{i}.png")
        np.testing.assert_array_equal(media.values[row % 3, 0], expected)
    [(name, reason)] = pipeline.counters.bad.items()
    assert name.endswith("data.json record 2") and "2.png: not an image" in reason
