"""Directories with tokenizer and processor files: a chat about pictures equals transformers' own way.

LLaVA-NeXT, whose images are tiles, and Qwen2-VL, whose images are patches in their own shape.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import mmjax
from mmjax.data.collate import collate
from mmjax.data.conversation import parse_record

SPECIAL = ["<|end|>", "<pad>", "<image>", "<start>", "<stop>", "<video>"]
IMAGE, START, STOP, VIDEO = 2, 3, 4, 5
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for part in m['content'] %}{% if part['type'] == 'image' %}MARK\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TEXT = dict(
    hidden_size=32, intermediate_size=42, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=512, eos_token_id=0, pad_token_id=1, vocab_size=262,
)  # fmt: skip


def tokenizer_of(**names):
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator([], trainers.BpeTrainer(vocab_size=262, special_tokens=SPECIAL, initial_alphabet=alphabet))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", pad_token="<pad>", additional_special_tokens=SPECIAL[2:], **names
    )


def llava_next():
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=24, intermediate_size=38, num_hidden_layers=2, num_attention_heads=4, image_size=20,
            patch_size=5,
        ),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[20, 40], [40, 20], [40, 40]],
    )  # fmt: skip
    sizes = dict(size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20})
    images = LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=config.image_grid_pinpoints)
    processor = transformers.LlavaNextProcessor(
        images, tokenizer_of(), patch_size=5, vision_feature_select_strategy="default",
        chat_template=TEMPLATE.replace("MARK", "<image>"), num_additional_image_tokens=1,
    )  # fmt: skip
    return transformers.LlavaNextForConditionalGeneration(config), processor


def qwen2_vl():
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config=dict(depth=2, embed_dim=24, hidden_size=32, mlp_ratio=2, num_heads=2, patch_size=4),
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=STOP,
    )  # fmt: skip
    images = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 200, "longest_edge": 900})
    tokenizer = tokenizer_of()
    tokenizer.image_token, tokenizer.video_token = "<image>", "<video>"
    tokenizer.image_token_id, tokenizer.video_token_id = IMAGE, VIDEO
    return transformers.Qwen2VLForConditionalGeneration(config), (images, tokenizer)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("next")
    torch.manual_seed(0)
    reference, processor = llava_next()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(4.0)
    reference.eval().save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory, reference, processor


def test_tokens_tiles_and_replies_are_theirs(built, tmp_path):
    directory, reference, processor = built
    random = np.random.default_rng(0)
    pictures = []
    for number, size in enumerate([(31, 60), (55, 23)]):
        pictures.append(tmp_path / f"{number}.png")
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(pictures[-1])
    content = [{"type": "image", "path": str(pictures[0])}, {"type": "text", "text": "and"}]
    content += [{"type": "image", "path": str(pictures[1])}, {"type": "text", "text": "what?"}]
    messages = [{"role": "user", "content": content}]

    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    theirs = processor(text=prompt, images=[Image.open(path) for path in pictures], return_tensors="pt")
    model = mmjax.from_pretrained(directory)
    sample = model.processor.sample(parse_record({"messages": messages}, "chat"), add_generation_prompt=True)
    assert sample.tokens.tolist() == theirs["input_ids"][0].tolist()
    for mine, image in zip(sample.media["image"], theirs["pixel_values"], strict=True):
        np.testing.assert_allclose(mine.transpose(0, 3, 1, 2), image[: len(mine)], atol=1e-5)

    with torch.no_grad():
        wanted = reference(**theirs).logits[0].numpy()
        tokens = reference.generate(**theirs, max_new_tokens=5, do_sample=False, pad_token_id=1)[0]
    batch = collate([sample], model.processor.plan)
    found = np.asarray(model.apply(model.params, batch).logits)[0, : len(sample)]
    assert np.abs(found - wanted).max() <= 1e-4 * max(1.0, float(np.sqrt(np.mean(wanted**2))))
    reply = model.chat(messages, max_new_tokens=5)
    assert str(reply) == processor.tokenizer.decode(tokens[len(sample) :], skip_special_tokens=True)

    model.save_pretrained(tmp_path / "own", format="mmjax")
    assert str(mmjax.from_pretrained(tmp_path / "own").chat(messages, max_new_tokens=5)) == str(reply)
    model.save_pretrained(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    again = LlavaNextImageProcessorPil(**{k: v for k, v in saved.items() if k != "image_processor_type"})
    tiles = again(Image.open(pictures[0]), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(tiles, theirs["pixel_values"][0][: len(tiles)], atol=1e-5)


@pytest.mark.slow
def test_patches_and_replies_are_theirs(tmp_path):
    torch.manual_seed(1)
    reference, (recipe, tokenizer) = qwen2_vl()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(3.0)
    directory = tmp_path / "qwen"
    reference.eval().save_pretrained(directory)
    tokenizer.chat_template = TEMPLATE.replace("MARK", "<start><image><stop>")
    tokenizer.save_pretrained(directory)
    recipe.save_pretrained(directory)
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*size, 3), np.uint8) for size in [(31, 17), (12, 40)]]
    content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": "which?"}]
    messages = [{"role": "user", "content": content}]

    model = mmjax.from_pretrained(directory)
    sample = model.processor.sample(parse_record({"messages": messages}, "chat"), add_generation_prompt=True)
    found = recipe(images, return_tensors="pt")
    marks = [f"<start>{'<image>' * int(grid.prod() // 4)}<stop>\n" for grid in found["image_grid_thw"]]
    theirs = tokenizer("user: " + "".join(marks) + "which?<|end|>assistant: ", return_tensors="pt")
    assert sample.tokens.tolist() == theirs["input_ids"][0].tolist()
    np.testing.assert_allclose(np.concatenate(sample.media["image"]), found["pixel_values"], atol=1e-5)
    given = dict(**theirs, **found, mm_token_type_ids=(theirs["input_ids"] == IMAGE).int())
    given.pop("token_type_ids", None)
    with torch.no_grad():
        wanted = reference(**given).logits[0].numpy()
        tokens = reference.generate(**given, max_new_tokens=5, do_sample=False, pad_token_id=1)[0]
    logits = np.asarray(model.apply(model.params, collate([sample], model.processor.plan)).logits)[0, : len(sample)]
    assert np.abs(logits - wanted).max() <= 1e-4 * max(1.0, float(np.sqrt(np.mean(wanted**2))))
    reply = model.chat(messages, max_new_tokens=5)
    assert str(reply) == tokenizer.decode(tokens[len(sample) :], skip_special_tokens=True)


def test_bad_input_names_the_sample(built, tmp_path):
    processor = mmjax.from_pretrained(built[0]).processor

    def of(content, **listed):
        return processor.sample(parse_record({"messages": [{"role": "user", "content": content}], **listed}, "row 7"))

    with pytest.raises(FileNotFoundError, match=r"row 7: image 0: .*gone\.png: no such image file"):
        of([{"type": "image", "path": str(tmp_path / "gone.png")}, {"type": "text", "text": "what?"}])
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n....")
    with pytest.raises(ValueError, match=r"row 7: image 0: .*half\.png: not an image"):
        of([{"type": "image", "path": str(tmp_path / "half.png")}, {"type": "text", "text": "what?"}])
    with pytest.raises(ValueError, match=r'"row 7": 2 image placeholder\(s\) in the text but 1'):
        of("<image> and <image>", images=["a.png"])
    with pytest.raises(ValueError, match=r"row 7: audio 0: the model has no port 'audio', only \['image'\]"):
        of([{"type": "audio", "path": "a.wav"}, {"type": "text", "text": "what?"}])
    processor = dataclasses.replace(processor, images={}, placeholders={}, media_tokens={}, layouts={})
    with pytest.raises(ValueError, match=r"row 7: image 0: the model has no port 'image', only \[\]"):
        of([{"type": "image", "path": "a.png"}, {"type": "text", "text": "what?"}])
