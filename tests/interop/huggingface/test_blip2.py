"""BLIP-2 and InstructBLIP against transformers: OPT, Llama and T5, several images a row, padding anywhere, refusals."""

import numpy as np
import pytest
import transformers
from safetensors.numpy import save_file

from mmjax.config import ConfigError
from mmjax.data.items import TokenPlanError
from mmjax.interop.huggingface import FAMILIES, family_of, load, t5
from mmjax.interop.huggingface.decoders import TEXT
from mmjax.interop.huggingface.text import text_family
from mmjax.interop.tensors import WeightsError
from mmjax.paths import flatten

VISION = dict(hidden_size=28, intermediate_size=39, num_hidden_layers=2, num_attention_heads=4, image_size=15,
              patch_size=5)  # fmt: skip
QFORMER = dict(vocab_size=41, hidden_size=25, num_hidden_layers=2, num_attention_heads=5, intermediate_size=33,
               max_position_embeddings=11)  # fmt: skip
QUERIES, IMAGE, V = 3, 80, 83
OPT = transformers.OPTConfig(vocab_size=V, hidden_size=36, ffn_dim=58, num_hidden_layers=2, num_attention_heads=6,
                             max_position_embeddings=64, word_embed_proj_dim=36)  # fmt: skip
LLAMA = transformers.LlamaConfig(vocab_size=V, hidden_size=36, intermediate_size=58, num_hidden_layers=2,
                                 num_attention_heads=6, num_key_value_heads=2)  # fmt: skip
T5 = transformers.T5Config(vocab_size=V, d_model=36, d_ff=58, d_kv=10, num_layers=2, num_heads=3,
                           relative_attention_num_buckets=8, relative_attention_max_distance=11,
                           feed_forward_proj="gated-gelu", tie_word_embeddings=False,
                           decoder_start_token_id=0)  # fmt: skip


def build(name, text, **qformer):
    config = getattr(transformers, f"{name}Config")
    token = "video_token_index" if name.endswith("Video") else "image_token_index"
    options = dict(vision_config=VISION, qformer_config={**QFORMER, **qformer}, text_config=text)
    options |= {"num_query_tokens": QUERIES, token: IMAGE}
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config(**options))
    # Their generate asks the LLM alone.
    model.language_model.generation_config.eos_token_id = None
    return model


def text_of(counts, lengths, *sides):
    """Ids and mask: each row's placeholders first, as their processors put them, then `lengths` tokens of text.

    `sides` say for each row whether padding is on the "left" or "right", or "between" placeholders and text.
    """
    rng = np.random.default_rng(5)
    whole = max(map(sum, zip(counts, lengths, strict=True)))
    ids, mask = np.zeros((len(counts), whole), np.int64), np.zeros((len(counts), whole), np.int64)
    for row, (count, length, side) in enumerate(zip(counts, lengths, sides, strict=True)):
        media, text = [IMAGE] * count, list(rng.integers(2, 79, length))
        gap = whole - count - length
        cut = {"left": 0, "between": count, "right": count + length}[side]
        body = media + text
        ids[row] = body[:cut] + [0] * gap + body[cut:]
        mask[row] = [1] * cut + [0] * gap + [1] * (count + length - cut)
    return dict(input_ids=ids, attention_mask=mask)


def pixels(*shape):
    return np.random.default_rng(0).normal(size=(*shape, 3, 15, 15)).astype(np.float32)


def instruction(*lengths, left=False):
    """What the Q-Former reads, one row for each row of text."""
    ids = np.random.default_rng(2).integers(1, 41, (len(lengths), max(lengths)))
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    mask = mask[:, ::-1] if left else mask
    return dict(qformer_input_ids=ids, qformer_attention_mask=mask.astype(np.int64))


def answers(rows):
    """What a T5 has written so far."""
    return dict(decoder_input_ids=np.random.default_rng(3).integers(0, V, (rows, 4)))


def test_blip2_opt(system):
    """Two images, one, none; with padding on the left, or between images and text as their processor leaves it."""
    inputs = text_of([2 * QUERIES, QUERIES, 0], [4, 3, 5], "left", "between", "left")
    inputs["pixel_values"] = pixels(3)
    model = system.check(build("Blip2", OPT, hidden_dropout_prob=0.05), inputs)
    assert model.config.projectors["image"].dropout == 0.05
    assert "lm_head" not in model.params["backbone"]
    inputs["input_ids"][2, -1] = IMAGE
    with pytest.raises(TokenPlanError, match="row 2: 1 placeholder tokens are no whole number of images of 3"):
        model.batch(**inputs)
    with pytest.raises(ValueError, match="no Q-Former that reads an instruction"):
        model.batch(inputs["input_ids"], **instruction(2, 3, 4))


@pytest.mark.slow
def test_blip2_t5(whole_system):
    """The media are in what the encoder reads."""
    inputs = dict(text_of([2 * QUERIES, QUERIES], [3, 4], "right", "right"), pixel_values=pixels(3))
    reference = build("Blip2", T5, cross_attention_frequency=1)
    model = whole_system.check(reference, inputs, rows=dict(inputs, **answers(2)))
    assert family_of(model.config).kind == "blip-2"


def test_instructblip_llama(system):
    """The instruction of each row's Q-Former differs in length; what can be wrong with it is said."""
    inputs = dict(text_of([QUERIES] * 3, [4, 2, 3], *["left"] * 3), pixel_values=pixels(3), **instruction(6, 2, 4))
    model = system.check(build("InstructBlip", LLAMA), inputs)
    text = model.batch(**inputs).media["image"].text
    np.testing.assert_array_equal(text.segment_ids, inputs["qformer_attention_mask"])
    whole = {name: value for name, value in inputs.items() if name != "qformer_attention_mask"}
    assert model.batch(**whole).media["image"].text.segment_ids.all()
    refused = {
        "give qformer_input_ids": None,
        "one row for each of the 3 of input_ids": np.ones((2, 6), int),
        "has 12 tokens, the Q-Former takes 11 at most": np.ones((3, 12), int),
        "41 is outside the Q-Former's vocabulary of 41": np.full((3, 6), 41),
    }
    for message, ids in refused.items():
        with pytest.raises(ValueError, match=message):
            model.batch(**{**whole, "qformer_input_ids": ids})


@pytest.mark.slow
def test_instructblip_t5(system):
    """Instructions padded on the left."""
    inputs = text_of([QUERIES] * 2, [3, 5], "right", "right")
    inputs |= dict(pixel_values=pixels(2), **instruction(2, 5, left=True))
    reference = build("InstructBlip", T5)
    system.check(reference, inputs, rows=dict(inputs, **answers(2)))


def test_instructblipvideo(system):
    """Every frame by itself, with the instruction of its row; values in either order of axes."""
    frames = pixels(2, 4)
    inputs = dict(text_of([4 * QUERIES] * 2, [4, 2], "left", "left"), pixel_values=frames, **instruction(3, 6))
    model = system.check(build("InstructBlipVideo", LLAMA), inputs)
    batch = model.batch(**inputs)
    assert batch.media["video"].values.shape == (2, 1, 4, 15, 15, 3)
    inputs["pixel_values"] = frames.transpose(0, 1, 3, 4, 2)
    np.testing.assert_array_equal(model.batch(**inputs).media["video"].values, batch.media["video"].values)
    inputs["pixel_values"] = frames[:, :3]
    with pytest.raises(ValueError, match="hold 3 frames a video, the encoder takes 4"):
        model.batch(**inputs)


@pytest.mark.parametrize("text", [OPT, T5], ids=["opt", "t5"])
def test_spellings(tmp_path, text):
    """The names in memory, which hold tied matrices twice, those on disk, and an LLM without its output layer."""
    reference = build("Blip2", text)
    if text is T5:
        reference.language_model.lm_head.weight.data.normal_()
    reference.save_pretrained(tmp_path)
    config, params, *_ = vars(load(tmp_path)).values()
    state = {name: tensor.contiguous().numpy().copy() for name, tensor in reference.state_dict().items()}
    spelt = [state]
    if text is OPT:
        bare = {name.replace("language_model.model.", "language_model."): state[name] for name in state}
        spelt.append({name: array for name, array in bare.items() if "lm_head" not in name})
    for tensors in spelt:
        save_file(tensors, tmp_path / "model.safetensors")
        again = load(tmp_path)
        assert again.config == config
        ours, wanted = flatten(again.params), flatten(params)
        assert ours.keys() == wanted.keys()
        for path, leaf in wanted.items():
            np.testing.assert_array_equal(ours[path], leaf, err_msg=path)
    del tensors["query_tokens"]
    save_file({**tensors, "qformer.more": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"(?s)1 missing:\n  query_tokens.*1 left over:\n  qformer.more"):
        load(tmp_path)


def test_what_is_not_supported_is_refused():
    family = FAMILIES["blip-2"]
    hf = build("Blip2", OPT).config.to_dict()
    config = family.config_from_hf(hf)
    assert family_of(config) is family
    for key, value, message in (
        ("image_token_index", None, "image_token_index is missing"),
        ("qformer_config", {**hf["qformer_config"], "use_qformer_text_input": True}, "as in models for retrieval"),
        ("text_config", {"model_type": "blenderbot"}, "'blenderbot' is not supported; supported are t5, "),
    ):
        with pytest.raises(ConfigError, match=message):
            family.config_from_hf({**hf, key: value})
    with pytest.raises(ConfigError, match="has a Q-Former that reads the instruction"):
        FAMILIES["instructblip"].config_to_hf(config)
    with pytest.raises(ConfigError, match="at the port 'video' alone"):
        FAMILIES["instructblipvideo"].config_to_hf(config)
    theirs = dict(hf, text_config=T5.to_dict())
    with_t5 = family.config_from_hf(theirs)
    assert with_t5.backbone == t5.backbone_from_hf(theirs["text_config"]) and family_of(with_t5) is family
    with pytest.raises(ConfigError, match="not a backbone of kind 'encoder_decoder'"):
        text_family(with_t5.backbone, TEXT)
