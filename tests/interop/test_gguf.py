"""GGUF files written by the gguf package from transformers' models, read back, and run."""

import os

import gguf
import numpy as np
import pytest
import torch
import transformers

from mmjax.config import ConfigError
from mmjax.interop.gguf import ROPE_FACTORS, load_gguf, read_gguf
from mmjax.interop.tensors import WeightsError

F32 = gguf.GGMLQuantizationType.F32
SIZES = dict(
    vocab_size=75,
    hidden_size=96,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    rms_norm_eps=3e-6,
    max_position_embeddings=96,
)
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def build(kind, **options):
    torch.manual_seed(1)
    config = getattr(transformers, kind + "Config")(**{**SIZES, **options})
    model = getattr(transformers, kind + "ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model


def their_name(name):
    for old, new in NAMES.items():
        name = name.replace(old, new)
    for old, new in (
        ("model.layers", "blk"),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
    ):
        name = name.replace(old, new)
    return name.replace("lm_head", "output")


def write(path, model, kind=F32, extra=None, **metadata):
    """Writes a model as llama.cpp's converter does; rounds the model itself to what `kind` can hold."""
    config = model.config
    arch = config.model_type
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_token_list(["a", "b"])
    for key, value in metadata.items():
        getattr(writer, "add_" + key)(value)
    tied = config.tie_word_embeddings
    for name, parameter in model.named_parameters():
        if tied and name == "lm_head.weight":
            continue
        array = parameter.detach().numpy()
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            array = array.reshape(-1, 2, head_dim // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        stored = kind if array.ndim == 2 else F32
        data = gguf.quantize(array, stored)
        writer.add_tensor(their_name(name), data, raw_dtype=stored)
        held = gguf.dequantize(data, stored)
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            held = held.reshape(-1, head_dim // 2, 2, *held.shape[1:]).swapaxes(1, 2).reshape(held.shape)
        parameter.data = torch.tensor(np.ascontiguousarray(held))
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    model.tie_weights()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check(path, model, parity, length=40):
    config, params, metadata = load_gguf(path)
    ids = np.random.default_rng(0).integers(0, 75, (2, length))
    with torch.no_grad():
        parity.close(parity.lm(config, params, ids), model(input_ids=torch.tensor(ids)).logits)
    return config, metadata


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_llama_in_every_stored_type(tmp_path, parity, kind):
    model = build(
        "Llama",
        tie_word_embeddings=kind == "Q4_1",
        rope_parameters={"rope_type": "default", "rope_theta": 4e4},
    )
    write(tmp_path / "m.gguf", model, gguf.GGMLQuantizationType[kind])
    config, metadata = check(tmp_path / "m.gguf", model, parity)
    assert config.backbone.tie_embeddings == (kind == "Q4_1")
    assert metadata["tokenizer.ggml.tokens"] == ["a", "b"] and metadata["llama.block_count"] == 2
    assert not any(key.startswith("GGUF.") for key in metadata)


@pytest.mark.parametrize(
    "kind, options",
    [
        ("Qwen2", dict(tie_word_embeddings=True)),
        ("Qwen2", dict(num_key_value_heads=6)),
        ("Llama", dict(attention_bias=True, mlp_bias=True)),
        ("Llama", dict(head_dim=32, num_key_value_heads=1)),
    ],
)
def test_other_architectures_and_biases(tmp_path, parity, kind, options):
    model = build(kind, **options)
    write(tmp_path / "m.gguf", model)
    check(tmp_path / "m.gguf", model, parity)


def test_rotary_scalings_of_the_metadata(tmp_path, parity):
    path = tmp_path / "m.gguf"
    model = build("Llama", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4})
    write(path, model, rope_scaling_type=gguf.RopeScalingType.LINEAR, rope_scaling_factor=4.0)
    check(path, model, parity)
    yarn = {"rope_type": "yarn", "factor": 3.0, "rope_theta": 1e4, "original_max_position_embeddings": 32}
    model = build("Qwen2", rope_parameters=yarn)
    options = dict(rope_scaling_factor=3.0, rope_scaling_orig_ctx_len=32)
    write(path, model, rope_scaling_type=gguf.RopeScalingType.YARN, **options)
    check(path, model, parity)
    write(path, model, rope_scaling_type=gguf.RopeScalingType.LONGROPE, rope_scaling_factor=3.0)
    with pytest.raises(ConfigError, match="m.gguf: rope scaling 'longrope'"):
        load_gguf(path)


def test_rotary_divisors_of_llama_3(tmp_path, parity):
    path = tmp_path / "m.gguf"
    options = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500000.0}
    rope = {"rope_type": "llama3", "original_max_position_embeddings": 8192, **options}
    model = build("Llama", max_position_embeddings=131072, head_dim=32, rope_parameters=rope)
    plain = 1 / 500000.0 ** (np.arange(0, 32, 2) / 32)
    divisors = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    assert np.isclose(divisors.min(), 1) and np.isclose(divisors.max(), 8)
    write(path, model, extra={ROPE_FACTORS: divisors})
    config, _ = check(path, model, parity)
    assert config.backbone.rope_scaling.type == "llama3"
    write(path, model, extra={ROPE_FACTORS: np.linspace(1, 8, 16, dtype=np.float32)})
    with pytest.raises(ConfigError, match="m.gguf: rope_freqs.weight .* not as Llama 3"):
        load_gguf(path)


def test_tensors_are_lazy_and_in_numpys_order(tmp_path):
    model = build("Llama")
    write(tmp_path / "m.gguf", model, gguf.GGMLQuantizationType.Q8_0)
    _, tensors = read_gguf(tmp_path / "m.gguf")
    up = tensors["blk.1.ffn_up.weight"]
    assert up.shape == (64, 96) and up.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(up), model.model.layers[1].mlp.up_proj.weight.detach().numpy())


def test_what_is_not_supported_is_named(tmp_path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "gemma")
    writer.add_tensor("x", np.zeros(3, np.float32))
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    with pytest.raises(ConfigError, match="m.gguf: GGUF architecture 'gemma'"):
        load_gguf(path)
    write(path, build("Llama"), expert_count=4)
    with pytest.raises(ConfigError, match="expert_count 4"):
        load_gguf(path)
    write(path, build("Llama"), extra={"blk.0.attn_sinks": np.zeros(6, np.float32)})
    with pytest.raises(WeightsError, match=r"1 left over:\n  blk.0.attn_sinks \(6,\)"):
        load_gguf(path)


@pytest.mark.parametrize("keep", [0, 3, 100, 500, 5000, -40])
def test_damaged_files(tmp_path, keep):
    path = tmp_path / "m.gguf"
    write(path, build("Llama"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="m.gguf .* is not a whole GGUF file"):
        read_gguf(path)
    with pytest.raises(FileNotFoundError, match="absent.gguf"):
        read_gguf(tmp_path / "absent.gguf")


@pytest.mark.skipif("MMJAX_TEST_GGUF" not in os.environ, reason="MMJAX_TEST_GGUF names no file")
def test_a_real_file_knows_the_capital_of_france(parity):
    """A published instruction-tuned model, its tokenizer from the file: the greedy answer holds "Paris"."""
    config, params, metadata = load_gguf(os.environ["MMJAX_TEST_GGUF"])
    pieces = metadata["tokenizer.ggml.tokens"]
    known = {piece: number for number, piece in enumerate(pieces)}
    ids = [known[piece] for piece in ("The", "Ġcapital", "Ġof", "ĠFrance", "Ġis")]
    padded = np.zeros((1, 16), int)
    for _ in range(6):
        padded[0, : len(ids)] = ids
        mask = (np.arange(16) < len(ids))[None].astype(int)
        ids.append(int(parity.lm(config, params, padded, mask)[0, len(ids) - 1].argmax()))
    assert "ĠParis" in [pieces[number] for number in ids[5:]]
