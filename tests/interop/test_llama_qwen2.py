"""Llama and Qwen2 against transformers: logits, export, spellings, and what is refused."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.interop.huggingface import load, save
from mmjax.interop.tensors import WeightsError
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.nn.lora import LoRAConfig, add_lora
from mmjax.paths import flatten

SIZES = dict(
    vocab_size=83,
    hidden_size=36,
    intermediate_size=58,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
)
ORIGINAL = {"original_max_position_embeddings": 24}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0, **ORIGINAL}
VARIANTS = {
    "llama1": ("Llama", dict(num_key_value_heads=6, rms_norm_eps=1e-5)),
    "wide heads, tied": ("Llama", dict(head_dim=10, tie_word_embeddings=True)),
    "all biases": ("Llama", dict(attention_bias=True, mlp_bias=True, num_key_value_heads=1)),
    "mlp bias, gelu": ("Llama", dict(mlp_bias=True, hidden_act="gelu_pytorch_tanh")),
    "linear": ("Llama", dict(rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0})),
    "llama3": ("Llama", dict(rope_parameters={**LLAMA3, "rope_theta": 5000.0})),
    "yarn": (
        "Llama",
        dict(rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 300.0, **ORIGINAL}),
    ),
    "yarn full": (
        "Llama",
        dict(
            rope_parameters={
                "rope_type": "yarn",
                "factor": 2.5,
                "rope_theta": 300.0,
                "beta_fast": 20.0,
                "beta_slow": 2.0,
                "mscale": 0.7,
                "mscale_all_dim": 0.4,
                "truncate": False,
                **ORIGINAL,
            }
        ),
    ),
    "qwen2": ("Qwen2", dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
    "qwen2 tied yarn": (
        "Qwen2",
        dict(
            tie_word_embeddings=True,
            num_key_value_heads=3,
            rope_parameters={
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 1e4,
                "attention_factor": 1.2,
                **ORIGINAL,
            },
        ),
    ),
    "qwen2 head_dim": ("Qwen2", dict(head_dim=8)),
}


def build(kind, seed=0, **options):
    torch.manual_seed(seed)
    config = getattr(transformers, kind + "Config")(**{**SIZES, **options})
    model = getattr(transformers, kind + "ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Biases start at zero and norms at one, which would hide a mistake.
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return model


def drawn(config):
    """Params at random by numpy: compiling the model's initialiser takes longer than a test."""
    rng = np.random.default_rng(0)
    draw = lambda shape: (0.3 * rng.normal(size=shape.shape)).astype(np.float32)
    return jax.tree.map(draw, MultimodalLM(config).param_shapes())


def tokens(batch, length, seed=0):
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], (batch, length))


def logits(model, ids, mask=None):
    mask = None if mask is None else torch.tensor(mask)
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids), attention_mask=mask).logits


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_export_and_round_trip(tmp_path, parity, name):
    kind, options = VARIANTS[name]
    model = build(kind, **options)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    ids = tokens(2, 41)
    parity.close(parity.lm(loaded.config, loaded.params, ids), logits(model, ids))
    assert from_dict(MultimodalLMConfig, json.loads(json.dumps(to_dict(loaded.config)))) == loaded.config

    save(tmp_path / "ours", loaded.config, loaded.params, loaded.hf_config, loaded.generation_config)
    theirs, ours = (load_file(tmp_path / d / "model.safetensors") for d in ("theirs", "ours"))
    assert set(theirs) == set(ours)
    for key, array in theirs.items():
        np.testing.assert_array_equal(ours[key], array)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert type(again) is type(model) and again.dtype == torch.float32
    assert torch.equal(logits(again, ids), logits(model, ids))
    assert load(tmp_path / "ours").config == loaded.config
    drop = {"transformers_version", "_name_or_path", "architectures", "rope_theta", "rope_scaling"}
    mine, reference = again.config.to_dict(), model.config.to_dict()
    assert {k: mine[k] for k in reference if k not in drop} == {
        k: v for k, v in reference.items() if k not in drop
    }


def test_batch_of_one_and_padding(tmp_path, parity):
    model = build("Llama")
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    parity.close(parity.lm(loaded.config, loaded.params, tokens(1, 1)), logits(model, tokens(1, 1)))
    ids, mask = tokens(3, 9), np.ones((3, 9), int)
    mask[1, 6:] = mask[2, 1:] = 0
    mine, reference = parity.lm(loaded.config, loaded.params, ids, mask), logits(model, ids, mask)
    parity.close(mine[mask > 0], reference[torch.tensor(mask) > 0])


@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
def test_shards_old_rope_keys_and_names_of_the_bare_model(tmp_path, parity, kind):
    model = build(kind, tie_word_embeddings=True, rope_parameters={**LLAMA3, "rope_theta": 700.0})
    model.save_pretrained(tmp_path, max_shard_size=9000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    for path in tmp_path.glob("*.safetensors"):
        save_file({k.removeprefix("model."): v for k, v in load_file(path).items()}, path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"] = {k.removeprefix("model."): v for k, v in index["weight_map"].items()}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {**rope, "type": rope.pop("rope_type")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load(tmp_path)
    parity.close(parity.lm(loaded.config, loaded.params, tokens(2, 30)), logits(model, tokens(2, 30)))


def test_export_in_shards_is_loaded_by_transformers(tmp_path):
    model = build("Llama")
    model.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    save(tmp_path / "ours", loaded.config, loaded.params, max_shard_size=9000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 3
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(logits(again, tokens(1, 5)), logits(model, tokens(1, 5)))
    assert again.config.eos_token_id is None


def test_pytorch_bin_directory(tmp_path, parity):
    model = build("Qwen2", tie_word_embeddings=True)
    model.config.save_pretrained(tmp_path)
    # torch.save keeps both names of the tied matrix.
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = load(tmp_path)
    assert loaded.config.backbone.tie_embeddings
    parity.close(parity.lm(loaded.config, loaded.params, tokens(2, 7)), logits(model, tokens(2, 7)))


@pytest.mark.parametrize("what", ["only the head", "both, different", "inv_freq"])
def test_tied_heads_as_files_have_them(tmp_path, parity, what):
    model = build("Llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    if what == "only the head":
        weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    elif what == "both, different":
        weights["lm_head.weight"] = embedding[::-1].copy()
    else:
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.config.backbone.tie_embeddings == (what != "both, different")
    parity.close(parity.lm(loaded.config, loaded.params, tokens(2, 7)), logits(reference, tokens(2, 7)))


def test_bfloat16_both_ways(tmp_path):
    model = build("Llama").bfloat16()
    model.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype(ml_dtypes.bfloat16)}
    save(tmp_path / "ours", loaded.config, loaded.params, loaded.hf_config)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert again.dtype == torch.bfloat16
    for (name, mine), theirs in zip(again.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_put_places_every_leaf_and_fresh_params_export(tmp_path):
    config = MultimodalLMConfig(DecoderConfig(50, 12, 2, 2, 1, 6, 20, qkv_bias=True))
    params = drawn(config)
    save(tmp_path, config, params)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen2"
    placed = {}
    loaded = load(tmp_path, put=lambda path, array: placed.setdefault(path, array))
    assert flatten(loaded.params) == placed
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


@pytest.mark.slow
def test_lora_is_merged_on_export(tmp_path, parity):
    lora = LoRAConfig(rank=3, alpha=5.0)
    config = MultimodalLMConfig(DecoderConfig(50, 12, 2, 2, 1, 6, 20, lora=lora))
    params = drawn(MultimodalLMConfig(dataclasses.replace(config.backbone, lora=None)))
    backbone = add_lora(params["backbone"], lora, jax.random.key(1))
    backbone = jax.tree.map(lambda leaf: leaf + 0.05 if leaf.ndim > 2 else leaf, backbone)
    params = {"backbone": backbone}
    save(tmp_path, config, params)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tokens(2, 6) % 50
    parity.close(parity.lm(config, params, ids), logits(model, ids))


def edit(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        ("Qwen2", dict(layer_types=["full_attention", "sliding_attention"] * 2), "each of 3 layers, got 4"),
        ("Qwen2", dict(layer_types=["full_attention", "chunked_attention"] * 2), "chunked_attention"),
        ("Llama", dict(model_type="llamma"), 'Did you mean "llama"'),
        ("Llama", dict(hidden_act="mish"), "hidden_act 'mish'"),
        ("Llama", dict(rope_parameters={"rope_type": "dynamic", "factor": 2.0}), "rope type 'dynamic'"),
        (
            "Llama",
            dict(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
            "partial_rotary",
        ),
        ("Llama", dict(rope_parameters=None, rope_scaling={"type": "linear"}), "needs a factor"),
        ("Llama", dict(quantization_config={"quant_method": "awq"}), "quantised with 'awq'"),
    ],
)
def test_unsupported_configs_are_named(tmp_path, kind, changes, message):
    build(kind).save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


def test_missing_left_over_and_misshapen_in_one_message(tmp_path):
    build("Llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"], weights["model.layers.2.mlp.up_proj.weight"]
    weights["model.layers.1.self_attn.q_proj.weight"] = np.zeros((36, 35), np.float32)
    weights["model.layers.3.mlp.up_proj.weight"] = weights["visual.x"] = np.zeros(2, np.float32)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "2 missing" in message and "2 left over" in message and "1 misshapen" in message
    for name in (
        "model.norm.weight",
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.3.mlp.up_proj",
        "visual.x",
    ):
        assert name in message
    assert "model.layers.1.self_attn.q_proj.weight is (36, 35), should be (36, 36)" in message


def test_params_of_another_size_are_not_exported(tmp_path):
    config = MultimodalLMConfig(DecoderConfig(50, 12, 2, 2, 1, 6, 20))
    params = drawn(config)
    other = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, mlp_width=24))
    with pytest.raises(WeightsError, match=r"mlp/up/kernel: \(2, 12, 20\), the config says \(2, 12, 24\)"):
        save(tmp_path, other, params)
    biased = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, out_bias=True))
    with pytest.raises(ConfigError, match="nearest, llama, would lose backbone.out_bias True"):
        save(tmp_path, biased, MultimodalLM(biased).param_shapes())


def test_no_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json is not JSON"):
        load(tmp_path)
