"""T5 in all its versions against transformers: logits, loss, generation, both directions, spellings, refusals."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import mmjax
from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.interop.huggingface import family_of, load, save, t5
from mmjax.interop.huggingface.spelling import ACTIVATIONS
from mmjax.interop.tensors import WeightsError
from mmjax.model import MultimodalLMConfig

V = 83
ENDS = dict(pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
SIZES = dict(ENDS, vocab_size=V, d_model=36, d_ff=58, d_kv=10, num_layers=2, num_heads=3,
             relative_attention_num_buckets=8, relative_attention_max_distance=11)  # fmt: skip
VARIANTS = {
    "1.0": dict(SIZES),
    "flan": dict(SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_layers=3, num_decoder_layers=2),
    "flan, untied": dict(SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}


def build(options, untied=False, seed=0):
    torch.manual_seed(seed)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms start at one and relative positions small, which would hide a mistake. Attention's logits are
            # not scaled: with much larger weights float32 itself would be the error.
            large = 1.0 if "relative" in name else 0.3 if "EncDec" in name else 0.15
            parameter.normal_(*((1.0, 0.3) if parameter.ndim == 1 else (0.0, large)))
    if untied:
        model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn(V, options["d_model"]))
    return model


@pytest.fixture(scope="module", params=["1.0", "flan", pytest.param("flan, untied", marks=pytest.mark.slow)])
def pair(request, tmp_path_factory):
    """(their model, ours loaded from what theirs saved, the directory)."""
    theirs = build(VARIANTS[request.param], untied="untied" in request.param)
    directory = tmp_path_factory.mktemp("t5")
    theirs.save_pretrained(directory)
    return theirs, mmjax.from_pretrained(directory), directory


def query(*lengths, side="right", seed=0):
    """Ids and mask of queries of these lengths."""
    rng = np.random.default_rng(seed)
    ids, mask = np.zeros((len(lengths), max(lengths)), int), np.zeros((len(lengths), max(lengths)), int)
    for row, length in enumerate(lengths):
        at = slice(max(lengths) - length, None) if side == "left" else slice(length)
        ids[row, at], mask[row, at] = rng.integers(2, V, length), 1
    return ids, mask


def run(model, ids, mask, **extra):
    extra = {name: torch.tensor(value) for name, value in extra.items()}
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), **extra)


@pytest.mark.quick("1.0-left", "flan-right")
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_loss_equal_transformers(pair, parity, side):
    theirs, ours, _ = pair
    ids, mask = query(13, 1, 26, side=side)
    labels = query(5, 7, 2, seed=1)[0]
    labels[labels == 0] = -100
    reference = run(theirs, ids, mask, labels=labels)
    mine = ours(input_ids=ids, attention_mask=mask, labels=labels)
    parity.close(mine.logits, reference.logits)
    parity.close(mine.loss, reference.loss)
    given = theirs.prepare_decoder_input_ids_from_labels(torch.tensor(labels)).numpy()
    parity.close(ours(input_ids=ids, attention_mask=mask, decoder_input_ids=given).logits, reference.logits)


@pytest.mark.quick("1.0-left")
@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_generation_equals_transformers(pair, side):
    theirs, ours, _ = pair
    ids, mask = query(9, 1, 14, side=side, seed=3)
    options = dict(max_new_tokens=17, min_new_tokens=17, do_sample=False)
    reference = theirs.generate(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), **options).numpy()
    mine = ours.generate(input_ids=ids, attention_mask=mask, max_new_tokens=17, min_new_tokens=17)
    np.testing.assert_array_equal(mine.sequences, reference)
    assert len({tuple(row) for row in mine.tokens.tolist()}) > 1  # answers depend on the query


def test_export_gives_the_same_outputs_and_the_same_names(pair, parity, tmp_path):
    theirs, ours, directory = pair
    ours.save_pretrained(tmp_path)
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    ids, mask = query(6, 9, side="left")
    given = query(4, 4, seed=2)[0]
    parity.close(
        run(again, ids, mask, decoder_input_ids=given).logits.numpy(),
        run(theirs, ids, mask, decoder_input_ids=given).logits,
    )
    assert set(load_file(tmp_path / "model.safetensors")) == set(load_file(directory / "model.safetensors"))
    assert again.generation_config.decoder_start_token_id == 0
    drop = {"transformers_version", "architectures", "dtype", "_name_or_path", "tie_word_embeddings"}
    said = [{k: v for k, v in model.config.to_dict().items() if k not in drop} for model in (again, theirs)]
    assert said[0] == said[1]


def test_every_variant_goes_through_an_mmjax_directory(pair, tmp_path):
    _, ours, _ = pair
    assert from_dict(MultimodalLMConfig, to_dict(ours.config)) == ours.config
    ours.save_pretrained(tmp_path, format="mmjax")
    again = mmjax.from_pretrained(tmp_path)
    assert again.config == ours.config
    jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)


@pytest.mark.parametrize("feed", ["relu", "gelu", "gelu_new", "gated-gelu", "gated-silu", "gated-relu"])
def test_feed_forward_layers_come_back_under_their_names(feed):
    config = t5.backbone_from_hf(dict(SIZES, feed_forward_proj=feed))
    said = t5.backbone_to_hf(config)
    assert t5.backbone_from_hf(said) == config
    theirs, back = transformers.T5Config(feed_forward_proj=feed), transformers.T5Config(**said)
    assert back.is_gated_act == theirs.is_gated_act == config.gated
    # "gelu_new" has a second name.
    assert ACTIVATIONS[back.dense_act_fn] == ACTIVATIONS[theirs.dense_act_fn] == config.activation


def test_names_in_memory_and_old_extra_tables_load(tmp_path):
    theirs = build(VARIANTS["1.0"])
    theirs.save_pretrained(tmp_path)
    expected = load(tmp_path)
    state = {name: np.array(tensor.detach().numpy()) for name, tensor in theirs.state_dict().items()}
    assert {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"} <= set(state)
    state["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = np.ones((8, 3), np.float32)
    save_file(state, tmp_path / "model.safetensors")
    found = load(tmp_path)
    assert found.config == expected.config
    np.testing.assert_array_equal(
        found.params["backbone"]["embed"]["embedding"], expected.params["backbone"]["embed"]["embedding"]
    )
    del state["shared.weight"]
    save_file(state, tmp_path / "model.safetensors")
    assert load(tmp_path).config == expected.config
    state["decoder.embed_tokens.weight"] = state["decoder.embed_tokens.weight"] + 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="separate embeddings"):
        load(tmp_path)


def test_a_head_of_its_own_is_found_whatever_the_config_says(tmp_path):
    theirs = build(VARIANTS["flan, untied"], untied=True)
    theirs.save_pretrained(tmp_path)
    hf = json.loads((tmp_path / "config.json").read_text())
    for tied in (True, False):
        (tmp_path / "config.json").write_text(json.dumps({**hf, "tie_word_embeddings": tied}))
        assert not load(tmp_path).config.backbone.tie_embeddings


def test_what_t5_cannot_say_is_refused(tmp_path):
    build(VARIANTS["1.0"]).save_pretrained(tmp_path)
    loaded = load(tmp_path)
    for change, words in (
        ({"activation": "gelu", "gated": True}, "gelu"),
        ({"norm_eps": 1e-4, "position_offset": 3}, "position_offset"),
    ):
        backbone = dataclasses.replace(loaded.config.backbone, **change)
        with pytest.raises(ConfigError, match=words):
            family_of(MultimodalLMConfig(backbone))
        with pytest.raises(ConfigError, match=words):
            save(tmp_path / "out", MultimodalLMConfig(backbone), loaded.params)
    hf = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**hf, "feed_forward_proj": "gated-gleu"}))
    with pytest.raises(ConfigError, match='feed_forward_proj .*Did you mean "gelu"'):
        load(tmp_path)


def test_answers_without_a_start_are_refused(tmp_path):
    build(VARIANTS["1.0"]).save_pretrained(tmp_path)
    model = mmjax.from_pretrained(tmp_path)
    ids, _ = query(4, 4)
    with pytest.raises(ValueError, match="labels or decoder_input_ids"):
        model(input_ids=ids)
    with pytest.raises(ValueError, match="not both"):
        model(input_ids=ids, labels=ids, decoder_input_ids=ids)
    with pytest.raises(ValueError, match="decoder_input_ids has 3 rows, input_ids has 2"):
        model(input_ids=ids, decoder_input_ids=query(2, 2, 2)[0])
