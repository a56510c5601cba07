"""BART against transformers: logits, loss, generation, both directions, spellings, refusals."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import mmjax
from mmjax.config import ConfigError
from mmjax.interop.huggingface import family_of, load
from mmjax.model import MultimodalLMConfig

V = 83
SIZES = dict(vocab_size=V, d_model=36, max_position_embeddings=48, encoder_layers=2, decoder_layers=2,
             encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=58, decoder_ffn_dim=58,
             pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2,
             forced_eos_token_id=None)  # fmt: skip
VARIANTS = {
    "plain": dict(SIZES),
    "scaled, sides differ": dict(SIZES, scale_embedding=True, encoder_layers=3, encoder_attention_heads=4,
                                 encoder_ffn_dim=50, activation_function="relu", decoder_start_token_id=0),  # fmt: skip
}


def build(options, seed=0):
    torch.manual_seed(seed)
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scales = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(1.0 if scales else 0.0, 0.3)
        model.final_logits_bias.normal_(0.0, 0.5)
    return model


@pytest.fixture(scope="module", params=["scaled, sides differ", pytest.param("plain", marks=pytest.mark.slow)])
def pair(request, tmp_path_factory):
    """(their model, ours loaded from what theirs saved, the directory)."""
    theirs = build(VARIANTS[request.param])
    directory = tmp_path_factory.mktemp("bart")
    theirs.save_pretrained(directory)
    return theirs, mmjax.from_pretrained(directory), directory


def query(*lengths, side="right", seed=0):
    """Ids and mask of queries of these lengths."""
    rng = np.random.default_rng(seed)
    ids, mask = np.ones((len(lengths), max(lengths)), int), np.zeros((len(lengths), max(lengths)), int)
    for row, length in enumerate(lengths):
        at = slice(max(lengths) - length, None) if side == "left" else slice(length)
        ids[row, at], mask[row, at] = rng.integers(3, V, length), 1
    return ids, mask


def run(model, ids, mask, **extra):
    extra = {name: torch.tensor(value) for name, value in extra.items()}
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), **extra)


def places(ids, side):
    """Where transformers' BART says the tokens stand: it counts padding on the left."""
    return dict(position_ids=np.broadcast_to(np.arange(ids.shape[1]), ids.shape)) if side == "left" else {}


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_loss_equal_transformers(pair, parity, side):
    theirs, ours, _ = pair
    ids, mask = query(13, 1, 26, side=side)
    labels = query(5, 7, 2, seed=1)[0]
    labels[labels == 1] = -100
    reference = run(theirs, ids, mask, labels=labels)
    mine = ours(input_ids=ids, attention_mask=mask, labels=labels, **places(ids, side))
    parity.close(mine.logits, reference.logits)
    parity.close(mine.loss, reference.loss)


@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_generation_equals_transformers(pair, side):
    theirs, ours, _ = pair
    ids, mask = query(9, 1, 14, side=side, seed=3)
    given = query(3, 3, 3, seed=4)[0]
    given[:, 0] = ours.config.backbone.start_token
    options = dict(max_new_tokens=17, min_new_tokens=17, do_sample=False)
    for extra in ({}, {"decoder_input_ids": given}):
        tensors = {name: torch.tensor(value) for name, value in extra.items()}
        reference = theirs.generate(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), **tensors, **options
        ).numpy()
        mine = ours.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=17, min_new_tokens=17, **extra, **places(ids, side)
        )
        np.testing.assert_array_equal(mine.sequences, reference)
    assert len({tuple(row) for row in mine.tokens.tolist()}) > 1


def test_export_gives_the_same_outputs_and_the_same_names(pair, parity, tmp_path):
    theirs, ours, directory = pair
    ours.save_pretrained(tmp_path)
    again = transformers.BartForConditionalGeneration.from_pretrained(tmp_path).eval()
    ids, mask = query(6, 9)
    given = query(4, 4, seed=2)[0]
    parity.close(
        run(again, ids, mask, decoder_input_ids=given).logits.numpy(),
        run(theirs, ids, mask, decoder_input_ids=given).logits,
    )
    assert set(load_file(tmp_path / "model.safetensors")) == set(load_file(directory / "model.safetensors"))
    drop = {"transformers_version", "architectures", "dtype", "_name_or_path"}
    said = [{k: v for k, v in model.config.to_dict().items() if k not in drop} for model in (again, theirs)]
    assert said[0] == said[1]


def test_names_in_memory_and_of_the_bare_model_load(tmp_path):
    theirs = build(VARIANTS["plain"])
    theirs.save_pretrained(tmp_path)
    expected = load(tmp_path).params["backbone"]
    state = {name: np.array(tensor.detach().numpy()) for name, tensor in theirs.state_dict().items()}
    assert {"model.encoder.embed_tokens.weight", "lm_head.weight"} <= set(state)
    save_file(state, tmp_path / "model.safetensors")
    found = load(tmp_path).params["backbone"]
    np.testing.assert_array_equal(found["embed"]["embedding"], expected["embed"]["embedding"])
    np.testing.assert_array_equal(found["lm_head"]["bias"], expected["lm_head"]["bias"])
    bare = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    save_file(bare, tmp_path / "model.safetensors")
    found = load(tmp_path).params["backbone"]
    np.testing.assert_array_equal(found["embed"]["embedding"], expected["embed"]["embedding"])
    assert not np.any(found["lm_head"]["bias"])


def test_what_bart_cannot_say_is_refused(tmp_path):
    build(VARIANTS["plain"]).save_pretrained(tmp_path)
    backbone = load(tmp_path).config.backbone
    for change in ({"post_norm": False}, {"norm_eps": 1e-6}, {"embedding_scale": 2.0}, {"tie_embeddings": False}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            family_of(MultimodalLMConfig(dataclasses.replace(backbone, **change)))
    hf = json.loads((tmp_path / "config.json").read_text())
    for key, value in (("normalize_before", True), ("tie_word_embeddings", False)):
        (tmp_path / "config.json").write_text(json.dumps({**hf, key: value}))
        with pytest.raises(ConfigError, match=f"{key} {value} is not supported, only {not value}"):
            load(tmp_path)
