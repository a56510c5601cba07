"""Janus against transformers: what it sees, the codes that it draws with guidance, and their pixels."""

import io
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import mmjax
from mmjax import cli
from mmjax.config import ConfigError
from mmjax.data.conversation import parse_record
from mmjax.data.processor import load_processor
from mmjax.data.recipes import recipe_from_hf
from mmjax.interop.huggingface.janus import FAMILY

PLACEHOLDER, BEGIN = 80, 81
TEXT = dict(
    model_type="llama", vocab_size=83, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    pad_token_id=0,
)  # fmt: skip
VISION = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=2.5, image_size=9, patch_size=3,
    projection_dim=32, num_image_tokens=9,
)  # fmt: skip
CODES = dict(
    base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1, embed_dim=5, num_embeddings=19, latent_channels=6,
    projection_dim=32, image_token_embed_dim=32,
)  # fmt: skip


def build(**text):
    config = transformers.JanusConfig(
        vision_config=VISION, vq_config=CODES, text_config={**TEXT, **text}, image_token_id=PLACEHOLDER
    )
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    return transformers.JanusForConditionalGeneration(config)


def test_what_it_sees(system, padded_rows):
    ids, mask = padded_rows([[(PLACEHOLDER, 9)], [(PLACEHOLDER, 9), (PLACEHOLDER, 9)]])
    pixels = np.random.default_rng(1).normal(size=(3, 3, 9, 9)).astype(np.float32)
    system.check(build(), {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels})


@pytest.fixture(scope="module")
def drawn(module_weights):
    """Theirs and ours, with weights at random; what follows the prompts' last token is an image."""
    theirs = module_weights.randomised(build())
    theirs.generation_config.update(bos_token_id=1, pad_token_id=0, eos_token_id=2)
    theirs.generation_config.generation_kwargs = {"boi_token_id": BEGIN}
    theirs.save_pretrained(module_weights.place / "theirs")
    return theirs, module_weights.model()


def prompts():
    ids = np.random.default_rng(2).integers(3, 79, (2, 6))
    ids[:, 0], ids[:, -1] = 1, BEGIN
    mask = np.ones_like(ids)
    ids[1, :3], mask[1, :2] = (0, 0, 1), 0
    return ids, mask


def test_what_it_draws(drawn):
    theirs, model = drawn
    ids, mask = prompts()
    with torch.no_grad():
        wanted = theirs.generate(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), generation_mode="image",
            do_sample=False, guidance_scale=3.0,
        )  # fmt: skip
        pixels = theirs.decode_image_tokens(wanted).numpy()
    out = model.generate(ids, mask, generation_mode="image", guidance_scale=3.0)
    np.testing.assert_array_equal([row[0].reshape(-1) for row in out.image_codes], wanted.numpy())
    assert len(np.unique(wanted.numpy())) > 2 and (out.lengths == 9).all()
    np.testing.assert_array_equal(out.tokens, 83 + wanted.numpy())
    for image, found in zip(pixels, out.images, strict=True):
        assert found[0].shape == (6, 6, 3)
        assert (np.abs(image) < 1).mean() > 0.05
        np.testing.assert_allclose(2 * found[0] - 1, np.clip(image, -1, 1), atol=1e-4)


def test_guidance_is_data(drawn):
    _, model = drawn
    ids, mask = prompts()
    drawings = {}
    for scale in (3.0, 7.5):
        drawings[scale] = model.generate(ids, mask, generation_mode="image", guidance_scale=scale).tokens
    compiled = dict(model.programs.compilations)
    model.generate(ids, mask, generation_mode="image", guidance_scale=4.25)
    assert dict(model.programs.compilations) == compiled
    assert (drawings[3.0] != drawings[7.5]).any()


def test_draws_again_after_the_way_out_and_back(drawn, tmp_path):
    theirs, model = drawn
    ids, mask = prompts()
    model.save_pretrained(tmp_path / "ours")
    again = mmjax.from_pretrained(tmp_path / "ours")
    assert again.config == model.config
    options = dict(generation_mode="image", do_sample=False, guidance_scale=3.0)
    back, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    # Their reader drops what only Janus has in it.
    back.generation_config = theirs.generation_config
    with torch.no_grad():
        given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        wanted = theirs.generate(**given, **options)
        np.testing.assert_array_equal(back.eval().generate(**given, **options), wanted)
    out = again.generate(ids, mask, generation_mode="image", guidance_scale=3.0)
    np.testing.assert_array_equal(out.tokens - 83, wanted.numpy())


def test_text_stays_text(drawn):
    _, model = drawn
    ids, mask = prompts()
    out = model.generate(ids, mask, max_new_tokens=4, eos_token_id=())
    assert (out.tokens < 83).all() and out.image_codes == [[], []]
    with pytest.raises(ValueError, match='guidance_scale: generation_mode "text" writes no images'):
        model.generate(ids, mask, guidance_scale=2.0)


WORDS = ["<pad>", "<s>", "</s>", *(f"word{number}" for number in range(3, 80)), "<image_placeholder>"]
WORDS += ["<begin_of_image>", "<end_of_image>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}word79{% endif %}"
)


@pytest.fixture(scope="module")
def spoken(drawn, module_weights):
    """The directory of the same checkpoint with a tokenizer and a template, and transformers' tokenizer of it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    place = module_weights.place / "theirs"
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens([*WORDS[:3], *WORDS[80:]])
    words.save(str(place / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "boi_token": "<begin_of_image>"}
    (place / "tokenizer_config.json").write_text(json.dumps({**named, "chat_template": TEMPLATE}))
    return place, transformers.PreTrainedTokenizerFast(tokenizer_object=words)


QUESTIONS = ["word5 word7 word40", "word3", "word30 word31 word32 word33 word9"]


@pytest.fixture(scope="module")
def theirs_of_words(drawn, spoken):
    """Codes [3, 9] and pixels from -1 to 1 [3, 6, 6, 3] that transformers draws of the questions."""
    theirs, (_, tokenizer) = drawn[0], spoken
    codes = []
    with torch.no_grad():
        for question in QUESTIONS:
            ids = tokenizer(f"<s>{question} word79<begin_of_image>", return_tensors="pt").input_ids
            assert ids[0, 0] == 1 and ids[0, -1] == BEGIN
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            codes.append(theirs.generate(**given, generation_mode="image", do_sample=False, guidance_scale=3.0))
        pixels = theirs.decode_image_tokens(torch.cat(codes)).numpy()
    return torch.cat(codes).numpy(), np.clip(pixels, -1, 1)


def test_the_command_line_draws_the_same(spoken, theirs_of_words, tmp_path, capsys):
    place, (_, pixels) = spoken[0], theirs_of_words
    records = [{"id": f"q{n}", "messages": [{"role": "user", "content": text}]} for n, text in enumerate(QUESTIONS)]
    source, output = tmp_path / "in.jsonl", tmp_path / "drawn.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    command = ["generate", str(place), "-i", str(source), "-o", str(output), "--batch-size", "2"]
    asked = ["--generation-mode", "image", "--guidance-scale", "3"]
    assert cli.main([*command, *asked]) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["q0", "q1", "q2"]
    for number, line in enumerate(lines):
        assert line["text"] == "" and line["num_tokens"] == 9
        assert line["images"] == [f"{tmp_path}/drawn/{number:06d}_0.png"]
        wanted = (pixels[number] / 2 + 0.5) * 255
        assert np.abs(np.asarray(Image.open(line["images"][0]), np.float32) - wanted).max() <= 0.51
    capsys.readouterr()
    assert cli.main([*command, *asked, "--steps", "3"]) == 2
    assert "num_inference_steps: this model has no generator that draws" in capsys.readouterr().err


def test_what_is_seen_stands_in_a_conversation_as_theirs(spoken, drawn, tmp_path):
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(spoken[0] / "tokenizer.json"), bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens={
            "image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>",
        },
    )  # fmt: skip
    template = TEMPLATE.replace(
        "{{ p['text'] }} ", "{% if p['type'] == 'image' %}<image_placeholder>{% else %}{{ p['text'] }} {% endif %}"
    )
    images = transformers.JanusImageProcessorPil(size={"height": 9, "width": 9}, min_size=2)
    theirs = transformers.JanusProcessor(images, tokenizer, chat_template=template, num_image_tokens=9)
    theirs.save_pretrained(tmp_path)
    config = drawn[1].config
    ours = load_processor(
        tmp_path, config.num_tokens, media_tokens=dict(config.media_tokens), **config.processor_options
    )
    recipe, random = ours.images["image"], np.random.default_rng(0)
    for sides in ((40, 3), (8, 21), (9, 9)):
        one = Image.fromarray(random.integers(0, 256, (*sides, 3), dtype=np.uint8))
        found = np.asarray(images(one, return_tensors="np")["pixel_values"])[0].transpose(1, 2, 0)
        for same in (recipe, recipe_from_hf(recipe.to_hf())):
            assert np.abs(same(one) - found).max() <= 1e-5, sides
    picture = Image.fromarray(random.integers(0, 256, (11, 7, 3), dtype=np.uint8))
    content = [{"type": "text", "text": word} for word in ("word9", "word4")]
    content.insert(1, {"type": "image", "image": picture})
    messages = [{"role": "user", "content": content}]
    text = theirs.apply_chat_template(messages, add_generation_prompt=True)
    wanted = theirs(text=text, images=[picture], return_tensors="np", add_special_tokens=False)
    sample = ours.sample(parse_record({"messages": messages}, "one"), add_generation_prompt=True)
    np.testing.assert_array_equal(sample.tokens, wanted["input_ids"][0])
    assert (sample.media_index >= 0).sum() == 9 and {BEGIN, BEGIN + 1} < set(sample.tokens.tolist())
    pixels = np.asarray(wanted["pixel_values"])[0].transpose(1, 2, 0)
    assert np.abs(sample.media["image"][0] - pixels).max() <= 1e-5


@pytest.mark.slow
def test_a_conversation_says_where_it_saved_a_picture(spoken, theirs_of_words, tmp_path, capsys, monkeypatch):
    place, (_, pixels) = spoken[0], theirs_of_words
    common = ["chat", str(place), "--media-dir", str(tmp_path), "--guidance-scale", "3"]
    for number in range(2):
        assert cli.main([*common, "--generation-mode", "image", "-m", QUESTIONS[2]]) == 0
        path = tmp_path / f"reply_{number:03d}_0.png"
        assert capsys.readouterr().out.splitlines()[-1] == f"saved {path}"
        assert np.abs(np.asarray(Image.open(path), np.float32) - (pixels[2] / 2 + 0.5) * 255).max() <= 0.51
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/draw {QUESTIONS[2]}\n/draw\nword4\n/quit\n"))
    assert cli.main([*common, "--max-new-tokens", "3"]) == 0
    out = capsys.readouterr().out
    assert np.abs(np.asarray(Image.open(tmp_path / "reply_002_0.png")) - (pixels[2] / 2 + 0.5) * 255).max() <= 0.51
    assert out.count("saved ") == 1 and f"saved {tmp_path / 'reply_002_0.png'}" in out and "nothing said" in out


def test_chat_and_negative_prompts(spoken, theirs_of_words):
    model, (codes, pixels) = mmjax.from_pretrained(spoken[0]), theirs_of_words
    with pytest.raises(ValueError, match='guidance_scale: generation_mode "text" writes no images'):
        model.chat([], guidance_scale=3.0)
    with pytest.raises(ValueError, match="max_new_tokens is 8; an image is of 9 tokens"):
        model.chat([], generation_mode="image", max_new_tokens=8)
    messages = [{"role": "user", "content": QUESTIONS[1]}]
    reply = model.chat(messages, generation_mode="image", guidance_scale=3.0)
    np.testing.assert_array_equal(reply.image_codes[0].reshape(-1), codes[1])
    assert reply == "" and np.abs(2 * reply.images[0] - 1 - pixels[1]).max() <= 1e-4
    # What is asked for, negated, is what is asked for: guidance between equals leaves all as it is.
    plain = model.chat(messages, generation_mode="image", guidance_scale=1.0)
    options = dict(generation_mode="image", guidance_scale=4.0)
    same = model.chat(messages, negative_prompt=QUESTIONS[1], **options)
    np.testing.assert_array_equal(same.image_codes[0], plain.image_codes[0])
    other = model.chat(messages, negative_prompt="word8", **options)
    assert (other.image_codes[0] != plain.image_codes[0]).any()
    with pytest.raises(ValueError, match="negative_prompt: wanted is .* it is 'text'"):
        model.chat(messages, negative_prompt="word8")


def test_what_is_not_supported_is_named():
    hf = build().config.to_dict()
    for part, key, value, message in (
        ("vision_config", "use_qk_norm", True, "use_qk_norm True"),
        ("vision_config", "depth", 3, "depth 3"),
        ("vision_config", "num_image_tokens", 8, "num_image_tokens 8; an image is of 3 x 3 codes"),
        ("vq_config", "num_hidden_layers", 1, "num_hidden_layers 1"),
        ("vq_config", "image_token_embed_dim", 16, "image_token_embed_dim must be the LLM's width 32"),
    ):
        with pytest.raises(ConfigError, match=message):
            FAMILY.config_from_hf({**hf, part: {**hf[part], key: value}})
