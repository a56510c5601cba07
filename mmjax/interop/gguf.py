"""GGUF files (llama.cpp): metadata, dequantised tensors, and whole models of architecture llama or qwen2.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.interop.table import FLAT, LINEAR, HalfSplitRotary, Linear, Row, import_params
from mmjax.interop.tensors import LazyTensor, WeightsError
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.nn.rotary import RopeScaling, frequencies

ARCHITECTURES = ("llama", "qwen2")
# Divisors of the rotary frequencies, [C / 2], which converters write for Llama 3.1 and later.
ROPE_FACTORS = "rope_freqs.weight"


def read_gguf(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """Opens a GGUF file.

    Returns:
        Metadata (key -> str, number, bool or list), and the tensors by name, in the order of axes of numpy
        and torch (a matrix is [out, in]); each is read and dequantised to float32 when asked for.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file is truncated or no GGUF; or, once a tensor is asked for, it is stored in a way
            that the gguf package cannot dequantise.
    """
    import gguf

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such GGUF file")
    try:
        reader = gguf.GGUFReader(path)
        metadata = {
            key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")
        }
    except Exception as error:
        # On a damaged file the reader fails in many ways, depending on where its numbers lead it.
        size = path.stat().st_size
        raise WeightsError(f"{path} ({size:,} bytes) is not a whole GGUF file: {error}") from error
    return metadata, {item.name: _lazy(path, item) for item in reader.tensors}


def _lazy(path: Path, item: Any) -> LazyTensor:
    import gguf

    shape = tuple(int(size) for size in reversed(item.shape))

    def read() -> np.ndarray:
        try:
            values = gguf.dequantize(item.data, item.tensor_type)
        except NotImplementedError as error:
            kind = item.tensor_type.name
            raise WeightsError(
                f"{path}: tensor {item.name!r} is stored as {kind}, which cannot be read"
            ) from error
        return np.asarray(values, np.float32).reshape(shape)

    return LazyTensor(shape, np.dtype(np.float32), read)


def load_gguf(
    path: str | os.PathLike, dtype: str = "float32", put: Callable[[str, np.ndarray], Any] | None = None
) -> tuple[MultimodalLMConfig, dict[str, Any], dict[str, Any]]:
    """Reads a language model from a GGUF file of architecture llama or qwen2.

    Args:
        path: the file.
        dtype: of the params, "float32" or "bfloat16".
        put: (path, array [numpy]) -> what stands in params; a jax array on the default device unless told.

    Returns:
        Config, params and metadata (which holds the tokenizer and the chat template).

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: an architecture or option that is not supported.
        WeightsError: a damaged file; or one list of every missing, left-over and misshapen tensor.
    """
    metadata, tensors = read_gguf(path)
    try:
        config = decoder_from_gguf(metadata, tensors)
        tensors.pop(ROPE_FACTORS, None)
        model_config = MultimodalLMConfig(config)
        shapes = MultimodalLM(model_config, param_dtype=dtype).param_shapes()
        put = put or (lambda path, array: jnp.array(array))
        params = import_params(rows(config, metadata["general.architecture"]), tensors, shapes, put)
    except (ConfigError, WeightsError) as error:
        raise type(error)(f"{path}: {error}") from error
    return model_config, params, metadata


def decoder_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that metadata and tensor names describe.

    Raises:
        ConfigError: an architecture or option that is not supported, or a missing key.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ConfigError(f"GGUF architecture {architecture!r} is not supported; supported are {known}")

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{key}", default)
        if value is None:
            raise ConfigError(f"the metadata lack {architecture}.{key}")
        return value

    if "token_embd.weight" not in tensors:
        raise WeightsError("the file has no tensor 'token_embd.weight'")
    if get("expert_count", 0):
        count = get("expert_count")
        raise ConfigError(f"{architecture}.expert_count {count}: mixtures of experts are not supported")
    heads, width = get("attention.head_count"), get("embedding_length")
    kv_heads = get("attention.head_count_kv", heads)
    for name, value in (("head_count", heads), ("head_count_kv", kv_heads)):
        if not isinstance(value, int):
            raise ConfigError(
                f"{architecture}.attention.{name} that differs by layer is not supported: {value}"
            )
    head_dim = get("attention.key_length", width // heads)
    rotated = get("rope.dimension_count", head_dim)
    if rotated != head_dim or get("attention.value_length", head_dim) != head_dim:
        raise ConfigError(
            f"heads of {head_dim} channels with {rotated} of them rotated and values of "
            f"{get('attention.value_length', head_dim)}: supported is only one width for all"
        )
    theta, context = get("rope.freq_base", 10000.0), get("context_length")
    return DecoderConfig(
        vocab_size=tensors["token_embd.weight"].shape[0],
        width=width,
        num_layers=get("block_count"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=get("feed_forward_length"),
        max_positions=context,
        norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_theta=float(theta),
        rope_scaling=_scaling(metadata, tensors, architecture, head_dim, float(theta), context),
        qkv_bias="blk.0.attn_q.bias" in tensors,
        out_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        tie_embeddings="output.weight" not in tensors,
    )


def _scaling(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Any],
    architecture: str,
    head_dim: int,
    theta: float,
    context: int,
) -> RopeScaling | None:
    prefix = f"{architecture}.rope.scaling."
    kind = metadata.get(prefix + "type", "none")
    factor = metadata.get(prefix + "factor", metadata.get(f"{architecture}.rope.scale_linear"))
    if ROPE_FACTORS in tensors:
        if kind not in ("none", ""):
            raise ConfigError(f"{ROPE_FACTORS} together with rope scaling of type {kind!r} is not supported")
        return _llama3_scaling(np.asarray(tensors[ROPE_FACTORS]), head_dim, theta)
    if kind == "linear" or (f"{prefix}type" not in metadata and factor):
        return None if not factor or factor == 1 else RopeScaling("linear", float(factor))
    if kind in ("none", ""):
        return None
    if kind != "yarn" or not factor:
        raise ConfigError(f"rope scaling {kind!r} with factor {factor} is not supported; linear and yarn are")
    original = int(metadata.get(prefix + "original_context_length", context))
    # llama.cpp derives the magnitude from the factor and multiplies it by this.
    attention = metadata.get(prefix + "attn_factor")
    if attention is not None and attention != 1:
        attention = float(attention) * (1 + 0.1 * float(np.log(factor)))
    else:
        attention = None
    return RopeScaling("yarn", float(factor), original_max_positions=original, attention_factor=attention)


def _llama3_scaling(divisors: np.ndarray, head_dim: int, theta: float) -> RopeScaling:
    """The llama3 scaling whose divisors of the plain frequencies these are.

    The converter keeps only the divisors. Those that are published come from one rule with bounds 1 and 4
    and an original context of 8192, whose factor is the largest divisor; the rule is applied and compared.
    """
    if divisors.shape != (head_dim // 2,):
        raise ConfigError(f"{ROPE_FACTORS} has shape {divisors.shape}, expected {(head_dim // 2,)}")
    scaling = RopeScaling("llama3", float(divisors.max()), original_max_positions=8192)
    plain, _ = frequencies(head_dim, theta)
    scaled, _ = frequencies(head_dim, theta, scaling)
    if not np.allclose(plain / scaled, divisors, rtol=1e-4):
        raise ConfigError(
            f"{ROPE_FACTORS} divides rotary frequencies by up to {divisors.max():.4g}, but not as "
            "Llama 3 does (bounds 1 and 4, original context 8192); other rules are not supported"
        )
    return scaling


def rows(config: DecoderConfig, architecture: str) -> list[Row]:
    """The table of a GGUF decoder; in architecture llama, q and k have their rotary pairs side by side."""
    ours, theirs = "backbone/blocks/", "blk.{i}."
    table = [
        Row("backbone/embed/embedding", "token_embd.weight"),
        Row(ours + "attn_norm/scale", theirs + "attn_norm.weight"),
        Row(ours + "mlp_norm/scale", theirs + "ffn_norm.weight"),
        Row(ours + "attn/o/kernel", theirs + "attn_output.weight", Linear(2)),
        Row("backbone/norm/scale", "output_norm.weight"),
    ]
    for name in "qkv":
        paired = architecture == "llama" and name in "qk"
        kernel = HalfSplitRotary(config.head_dim, LINEAR) if paired else LINEAR
        bias = HalfSplitRotary(config.head_dim, FLAT) if paired else FLAT
        table.append(Row(f"{ours}attn/{name}/kernel", f"{theirs}attn_{name}.weight", kernel))
        if config.qkv_bias:
            table.append(Row(f"{ours}attn/{name}/bias", f"{theirs}attn_{name}.bias", bias))
    if config.out_bias:
        table.append(Row(ours + "attn/o/bias", theirs + "attn_output.bias"))
    for name in ("gate", "up", "down"):
        table.append(Row(f"{ours}mlp/{name}/kernel", f"{theirs}ffn_{name}.weight", LINEAR))
        if config.mlp_bias:
            table.append(Row(f"{ours}mlp/{name}/bias", f"{theirs}ffn_{name}.bias"))
    if not config.tie_embeddings:
        table.append(Row("backbone/lm_head/kernel", "output.weight", LINEAR))
    return table
