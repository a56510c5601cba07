"""The families that are options of one decoder, against transformers: logits, generation, export, refusals."""

import dataclasses
import inspect
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import mmjax
from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.interop.huggingface import TEXT, family_of, load, save
from mmjax.interop.tensors import WeightsError
from mmjax.model import MultimodalLMConfig
from mmjax.nn.moe import MixtureConfig

V = 83
NO_ENDS = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
SIZES = dict(NO_ENDS, vocab_size=V, hidden_size=36, num_hidden_layers=2, num_attention_heads=6,
             max_position_embeddings=70)  # fmt: skip
GATED = dict(SIZES, intermediate_size=58, num_key_value_heads=2)
# Torch's grouped products want rows of 16 bytes.
GROUPS = dict(GATED, intermediate_size=40)
LONGROPE = dict(rope_type="longrope", factor=2.5, rope_theta=500.0,
                short_factor=[1.0, 1.5, 2.0], long_factor=[2.0, 4.5, 9.0])  # fmt: skip

GPT_NAMES = dict(NO_ENDS, vocab_size=V, n_layer=2, n_head=6)
GPT = dict(GPT_NAMES, n_embd=36)
MPT = dict(NO_ENDS, vocab_size=V, d_model=36, n_layers=2, n_heads=6, max_seq_len=70)

VARIANTS = {
    "mistral": ("Mistral", dict(GATED, sliding_window=5, head_dim=10)),
    "mistral, no window": ("Mistral", dict(GATED, sliding_window=None)),
    "qwen2, windows": ("Qwen2", dict(GATED, use_sliding_window=True, sliding_window=4, max_window_layers=1)),
    "qwen3": ("Qwen3", dict(GATED, head_dim=8)),
    "qwen3, windows, biases": (
        "Qwen3",
        dict(GATED, head_dim=8, attention_bias=True, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    ),
    "phi3": ("Phi3", dict(GATED, sliding_window=7)),
    "phi3, partial": ("Phi3", dict(GATED, rope_parameters=dict(rope_type="default", partial_rotary_factor=0.7))),
    "phi3, longrope": (
        "Phi3",
        dict(GATED, original_max_position_embeddings=30, num_key_value_heads=6, rope_parameters=LONGROPE),
    ),
    "gemma": ("Gemma", dict(GATED, head_dim=8, num_key_value_heads=1)),
    "gemma, biases": ("Gemma", dict(GATED, head_dim=6, attention_bias=True, tie_word_embeddings=False)),
    "gemma2": (
        "Gemma2",
        dict(GATED, head_dim=8, sliding_window=5, query_pre_attn_scalar=6, attn_logit_softcapping=2.0,
             final_logit_softcapping=3.0),
    ),
    "gemma2, no caps": (
        "Gemma2",
        dict(GATED, head_dim=8, sliding_window=4, query_pre_attn_scalar=8, attn_logit_softcapping=None,
             final_logit_softcapping=None, layer_types=["full_attention", "sliding_attention"]),
    ),
    "gemma3": (
        "Gemma3Text",
        dict(GATED, head_dim=8, num_hidden_layers=3, sliding_window=4, sliding_window_pattern=3,
             query_pre_attn_scalar=7, rope_parameters=dict(
                 full_attention=dict(rope_type="linear", factor=3.0, rope_theta=900.0),
                 sliding_attention=dict(rope_type="default", rope_theta=60.0))),
    ),
    "gemma3, capped": (
        "Gemma3Text",
        dict(GATED, head_dim=8, num_hidden_layers=3, sliding_window=6, final_logit_softcapping=4.0,
             layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    ),
    "opt": ("OPT", dict(SIZES, ffn_dim=58)),
    "opt, no biases": (
        "OPT",
        dict(SIZES, ffn_dim=34, enable_bias=False, tie_word_embeddings=False, activation_function="gelu"),
    ),
    "gpt2": ("GPT2", dict(GPT, n_positions=70, n_inner=58)),
    "gpt2, unscaled": ("GPT2", dict(GPT, n_positions=70, n_inner=50, scale_attn_weights=False)),
    "gpt_neox": (
        "GPTNeoX",
        dict(SIZES, intermediate_size=58,
             rope_parameters=dict(rope_type="default", rope_theta=300.0, partial_rotary_factor=0.7)),
    ),
    "gpt_neox, in a row": (
        "GPTNeoX",
        dict(SIZES, intermediate_size=58, rotary_pct=1.0, use_parallel_residual=False, attention_bias=False),
    ),
    "gptj": ("GPTJ", dict(GPT, n_positions=70, n_inner=58, rotary_dim=4)),
    "gptj, tied": ("GPTJ", dict(GPT, n_positions=70, n_inner=40, rotary_dim=6, tie_word_embeddings=True)),
    "phi": ("Phi", dict(GATED, partial_rotary_factor=0.7)),
    "phi, normed heads": ("Phi", dict(GATED, qk_layernorm=True, num_key_value_heads=6, partial_rotary_factor=1.0)),
    "mpt": ("Mpt", dict(MPT)),
    "mpt, clipped": ("Mpt", dict(MPT, n_heads=4, attn_config=dict(clip_qkv=0.8, softmax_scale=0.3))),
    "bloom": ("Bloom", dict(GPT_NAMES, hidden_size=36)),
    "mixtral": ("Mixtral", dict(GROUPS, head_dim=10, num_local_experts=5, num_experts_per_tok=2)),
    "mixtral, window, tied": (
        "Mixtral",
        dict(GROUPS, head_dim=6, sliding_window=4, num_local_experts=3, num_experts_per_tok=1,
             tie_word_embeddings=True),
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        dict(GROUPS, num_experts=5, num_experts_per_tok=3, moe_intermediate_size=12,
             shared_expert_intermediate_size=22),
    ),
    "qwen2_moe, windows": (
        "Qwen2Moe",
        dict(GROUPS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=20, norm_topk_prob=True,
             shared_expert_intermediate_size=8, qkv_bias=False, use_sliding_window=True, sliding_window=5,
             max_window_layers=2),
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        dict(GROUPS, head_dim=8, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=12, norm_topk_prob=True),
    ),
    "qwen3_moe, window, biases": (
        "Qwen3Moe",
        dict(GROUPS, head_dim=10, num_experts=4, num_experts_per_tok=4, moe_intermediate_size=16,
             attention_bias=True, use_sliding_window=True, sliding_window=6),
    ),
    "persimmon": ("Persimmon", dict(SIZES, intermediate_size=58, partial_rotary_factor=0.7)),
    "persimmon, plain heads": (
        "Persimmon",
        dict(SIZES, num_attention_heads=9, intermediate_size=40, qk_layernorm=False, hidden_act="gelu",
             tie_word_embeddings=True),
    ),
    "bloom, untied": ("Bloom", dict(GPT_NAMES, hidden_size=40, n_head=5, tie_word_embeddings=False)),
}


def build(kind, options, seed=0):
    torch.manual_seed(seed)
    config = getattr(transformers, kind + "Config")(**options)
    names = [kind.removesuffix("Text") + ending for ending in ("ForCausalLM", "LMHeadModel")]
    # The caps of Gemma 2 and 3 are not in torch's fused attention.
    config._attn_implementation = "eager"
    model = next(getattr(transformers, name) for name in names if hasattr(transformers, name))(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Biases start at zero and norms at one, which would hide a mistake.
            scales = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(1.0 if scales else 0.0, 0.3)
    return model


def tokens(batch, length, seed=0):
    return np.random.default_rng(seed).integers(1, V, (batch, length))


def left_padded(*lengths):
    """Ids and mask of prompts of these lengths, padded on the left."""
    ids, mask = tokens(len(lengths), max(lengths), seed=3), np.zeros((len(lengths), max(lengths)), int)
    for row, length in enumerate(lengths):
        mask[row, max(lengths) - length :] = 1
    return np.where(mask > 0, ids, 0), mask


def logits(model, ids, mask=None):
    mask = torch.ones(ids.shape, dtype=torch.long) if mask is None else torch.tensor(mask)
    options = {}
    # Some classes count positions from the start of the row, padding included, unless told.
    if "position_ids" in inspect.signature(model.forward).parameters:
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids), attention_mask=mask, use_cache=False, **options).logits


def said(config):
    """A config of theirs without what says nothing about the model."""
    drop = {"transformers_version", "_name_or_path", "architectures", "rope_theta", "rope_scaling", "dtype"}

    def kept(value):
        return {k: kept(v) for k, v in value.items() if k not in drop} if isinstance(value, dict) else value

    return kept(config.to_dict())


def same(config, reference):
    """Whether every key of a reference's config has its value in another."""
    mine, theirs = said(config), said(reference)
    return {key: mine[key] for key in theirs} == theirs


# Those that every option of the decoder is in; the others run with the grids.
@pytest.mark.quick("phi3, partial", "gemma3", "gptj", "bloom", "mixtral")
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_generation_and_export(tmp_path, parity, name):
    kind, options = VARIANTS[name]
    reference = build(kind, options)
    reference.save_pretrained(tmp_path / "theirs")
    model = mmjax.from_pretrained(tmp_path / "theirs")
    assert from_dict(MultimodalLMConfig, json.loads(json.dumps(to_dict(model.config)))) == model.config

    ids, mask = left_padded(4, 17, 1)
    mine, theirs = model(input_ids=ids, attention_mask=mask).logits, logits(reference, ids, mask)
    parity.close(np.asarray(mine)[mask > 0], theirs[torch.tensor(mask) > 0])
    with torch.no_grad():
        wanted = reference.generate(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False,
                                    max_new_tokens=9, eos_token_id=10**6, pad_token_id=0)  # fmt: skip
    got = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=9, eos_token_id=(), pad_token_id=0)
    np.testing.assert_array_equal(got.tokens, wanted[:, ids.shape[1] :].numpy())

    loaded = load(tmp_path / "theirs")
    save(tmp_path / "ours", loaded.config, loaded.params, loaded.hf_config)
    before, after = (load_file(tmp_path / d / "model.safetensors") for d in ("theirs", "ours"))
    assert set(before) == set(after)
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array, err_msg=key)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert type(again) is type(reference) and same(again.config, reference.config)
    assert torch.equal(logits(again, ids[1:2]), logits(reference, ids[1:2]))
    assert load(tmp_path / "ours").config == loaded.config
    family = family_of(loaded.config)  # without their config.json, perhaps a simpler one
    assert family.config_from_hf(family.config_to_hf(loaded.config)) == loaded.config


@pytest.mark.slow
def test_longrope_beyond_the_original_context(tmp_path, parity):
    kind, options = VARIANTS["phi3, longrope"]
    reference = build(kind, options)
    reference.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    for length in (30, 31, 45):
        ids = tokens(2, length)
        parity.close(parity.lm(loaded.config, loaded.params, ids), logits(reference, ids))


@pytest.mark.parametrize("name", ["opt", "gpt2", "gpt_neox", "bloom"])
def test_names_of_the_bare_model_and_old_buffers(tmp_path, name):
    build(*VARIANTS[name]).save_pretrained(tmp_path)
    expected = load(tmp_path)
    family = TEXT[expected.hf_config["model_type"]]
    path = tmp_path / "model.safetensors"
    weights = {key.removeprefix(family.model): array for key, array in load_file(path).items()}
    if name == "gpt2":
        weights |= {f"h.{layer}.attn.bias": np.ones((1, 1, 70, 70), np.float32) for layer in range(2)}
    save_file(weights, path)
    loaded = load(tmp_path)
    assert loaded.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_in_one_tensor_as_in_memory(tmp_path, name):
    reference = build(*VARIANTS[name])
    reference.save_pretrained(tmp_path)
    expected = load(tmp_path)
    fused = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
    assert "model.layers.0.mlp.experts.gate_up_proj" in fused
    for prefix in ("model.", ""):
        named = {key.replace("model.", prefix): array for key, array in fused.items()}
        save_file(named, tmp_path / "model.safetensors")
        loaded = load(tmp_path)
        assert loaded.config == expected.config
        jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
    key = "layers.1.mlp.experts.gate_up_proj"
    odd = {key.replace("model.", ""): array for key, array in fused.items()}
    save_file({**odd, key: np.ascontiguousarray(odd[key][:, 1:])}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"experts.gate_up_proj has shape \(\d, \d+, 36\)"):
        load(tmp_path)
    lost = {name: array for name, array in odd.items() if not name.endswith("1.mlp.experts.down_proj")}
    save_file(lost, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"(?s)missing.*layers.1.*experts.0.*layers.1.*experts.4"):
        load(tmp_path)


EIGHT = dict(SIZES, hidden_size=64, num_attention_heads=8)


@pytest.mark.parametrize(
    "kind, old",
    [
        ("gemma3_text", dict(EIGHT, rope_theta=700.0, rope_local_base_freq=50.0,
                             rope_scaling=dict(rope_type="linear", factor=2.0))),
        ("gpt_neox", dict(EIGHT, rotary_pct=0.75, rotary_emb_base=400)),
        ("phi", dict(EIGHT, partial_rotary_factor=0.75, rope_theta=400.0)),
        ("phi3", dict(EIGHT, original_max_position_embeddings=30, rope_theta=300.0, rope_scaling=dict(
            type="su", original_max_position_embeddings=30, short_factor=[1.0, 2.0, 3.0, 4.0],
            long_factor=[2.0, 3.0, 4.0, 5.0]))),
        ("bloom", dict(NO_ENDS, vocab_size=V, n_embed=40, num_attention_heads=5, num_hidden_layers=3)),
    ],
)  # fmt: skip
def test_old_spellings_of_options(kind, old):
    config = transformers.AutoConfig.for_model(kind, **json.loads(json.dumps(old)))
    assert TEXT[kind].decoder_from_hf(old) == TEXT[kind].decoder_from_hf(config.to_dict())
    assert TEXT[kind].decoder_from_hf(old) != TEXT[kind].decoder_from_hf(EIGHT)


def edit(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("opt", dict(word_embed_proj_dim=24), "word_embed_proj_dim 24 is not supported, only hidden_size 36"),
        ("opt", dict(do_layer_norm_before=False), "do_layer_norm_before False is not supported, only True"),
        ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx True"),
        ("gptj", dict(rotary_dim=None), "rotary_dim must be a number"),
        ("mpt", dict(attn_config=dict(alibi=False)), "attn_config.alibi False"),
        ("mpt", dict(expansion_ratio=3), "expansion_ratio 3 is not supported, only 4"),
        ("bloom", dict(apply_residual_connection_post_layernorm=True), "post_layernorm True is not supported"),
        ("mixtral", dict(router_jitter_noise=0.1), "router_jitter_noise 0.1 is not supported, only 0.0"),
        ("qwen3_moe", dict(decoder_sparse_step=2), r"decoder_sparse_step 2 .* layers \[0\] of 2 without experts"),
        ("qwen2_moe", dict(mlp_only_layers=[1]), r"mlp_only_layers \[1\].* layers \[1\] of 2 without experts"),
        ("gemma", dict(use_bidirectional_attention=True), "use_bidirectional_attention True"),
        ("phi3", dict(rope_parameters=dict(LONGROPE, short_factor=[1.0])), "one number a channel pair"),
        ("gemma3", dict(attn_logit_softcapping=50.0), "attn_logit_softcapping 50.0 is not supported, only None"),
        ("gemma3", dict(rope_parameters=dict(sliding_attention=dict(rope_type="yarn"))), "yarn.* of sliding_attention"),
    ],
)
def test_unsupported_configs_are_named(tmp_path, name, changes, message):
    kind, options = VARIANTS[name]
    getattr(transformers, kind + "Config")(**options).save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


def test_files_that_say_little_have_the_defaults_of_their_class(tmp_path):
    kinds = {"gemma3_text": "Gemma3Text", "gpt2": "GPT2", "gpt_neox": "GPTNeoX", "gptj": "GPTJ", "opt": "OPT",
             "qwen2_moe": "Qwen2Moe", "qwen3_moe": "Qwen3Moe"}  # fmt: skip
    for kind, family in TEXT.items():
        config = getattr(transformers, kinds.get(kind, kind.capitalize()) + "Config")()
        config.save_pretrained(tmp_path)
        bare = family.decoder_from_hf({"model_type": kind})
        assert bare == family.decoder_from_hf(json.loads((tmp_path / "config.json").read_text())), kind


def test_which_family_a_decoder_is_written_as():
    plain = DecoderConfig(50, 12, 2, 2, 1, 6, 20)
    for kind, changes in {
        "llama": dict(mlp_bias=True),
        "qwen2": dict(qkv_bias=True),
        "mistral": dict(sliding_window=9, window_pattern=(True, True)),
        "qwen3": dict(qk_norm=True, sliding_window=4, window_pattern=(False, True)),
        "phi3": dict(rotary_fraction=0.34),
    }.items():
        assert family_of(MultimodalLMConfig(dataclasses.replace(plain, **changes))).kind == kind
    assert family_of(MultimodalLMConfig(plain), {"model_type": "phi3"}).kind == "phi3"
    experts = MixtureConfig(4, 2, 9, routing="dense")  # how they are computed is no part of what is written
    shared = dataclasses.replace(experts, shared_width=6, shared_gate=True)
    for kind, changes in {
        "mixtral": dict(moe=experts, sliding_window=7),
        "qwen2_moe": dict(moe=shared, qkv_bias=True),
        "qwen3_moe": dict(moe=dataclasses.replace(experts, normalize=False), qk_norm=True),
    }.items():
        assert family_of(MultimodalLMConfig(dataclasses.replace(plain, **changes))).kind == kind
    ungated = dataclasses.replace(plain, moe=dataclasses.replace(shared, shared_gate=False))
    with pytest.raises(ConfigError, match="no family .* backbone.moe"):
        family_of(MultimodalLMConfig(ungated))
    biased = MultimodalLMConfig(dataclasses.replace(plain, qkv_bias=True))
    assert family_of(biased, {"model_type": "phi3"}).kind == "qwen2"
    unheard = dataclasses.replace(plain, position_offset=3)
    with pytest.raises(ConfigError, match="no family .* backbone.position_offset 3"):
        family_of(MultimodalLMConfig(unheard))
    together = dataclasses.replace(plain, qk_norm=True, attention_cap=2.0)
    with pytest.raises(ConfigError, match="together; the nearest, qwen3, would lose backbone.attention_cap 2.0"):
        family_of(MultimodalLMConfig(together))
