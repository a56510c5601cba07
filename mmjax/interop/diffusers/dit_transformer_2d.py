"""DiTTransformer2DModel: DiT-XL/2 for ImageNet's classes.

https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/transformers/dit_transformer_2d.py
"""

from collections.abc import Mapping
from typing import Any

from mmjax.generators.dit import DiTConfig
from mmjax.interop.diffusers.adaptive_blocks import halves, mlp, modulation
from mmjax.interop.diffusers.options import check_fixed
from mmjax.interop.diffusers.rows import conv, linear
from mmjax.interop.table import Rewrite, Row

CLASS = "DiTTransformer2DModel"
IGNORE = ()
# Options that change what is computed and are supported at these values alone.
FIXED: dict[str, Any] = {
    "activation_fn": "gelu-approximate", "norm_type": "ada_norm_zero", "norm_elementwise_affine": False,
    "upcast_attention": False,
}  # fmt: skip


def config_from_hf(hf: Mapping[str, Any]) -> DiTConfig:
    """A `config.json` -> DiTConfig.

    Raises:
        ConfigError: an option that is not supported; the message names it.
    """
    check_fixed(hf, FIXED)
    heads, channels = hf.get("num_attention_heads", 16), hf.get("in_channels", 4)
    return DiTConfig(
        in_channels=channels,
        out_channels=hf.get("out_channels") or channels,
        patch=hf.get("patch_size", 2),
        width=heads * hf.get("attention_head_dim", 72),
        num_heads=heads,
        num_layers=hf.get("num_layers", 28),
        num_classes=hf.get("num_embeds_ada_norm", 1000),
        mlp_eps=hf.get("norm_eps", 1e-5),
        qkv_bias=hf.get("attention_bias", True),
        sample_size=hf.get("sample_size", 32),
    )


def config_to_hf(config: DiTConfig, hf: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """DiTConfig -> the content of config.json; other keys of `hf` are kept."""
    return {
        **(hf or {}),
        **FIXED,
        "_class_name": CLASS,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "patch_size": config.patch,
        "attention_head_dim": config.width // config.num_heads,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
        "num_embeds_ada_norm": config.num_classes,
        "norm_eps": config.mlp_eps,
        "attention_bias": config.qkv_bias,
        "sample_size": config.sample_size,
    }


def rewrites(config: DiTConfig) -> list[Rewrite]:
    """Names are the same everywhere."""
    return []


def table(config: DiTConfig, hf: Mapping[str, Any] | None = None) -> list[Row]:
    """Rows of the blocks and of what is around them."""
    ours, theirs = "blocks", "transformer_blocks.{i}"
    rows = conv("patches/proj", "pos_embed.proj")
    rows += mlp(f"{ours}/embed/time", f"{theirs}.norm1.emb.timestep_embedder")
    rows += [Row(f"{ours}/embed/classes", f"{theirs}.norm1.emb.class_embedder.embedding_table.weight")]
    rows += modulation(f"{ours}/modulation", f"{theirs}.norm1.linear")
    rows += halves(f"{ours}/halves", theirs, config.qkv_bias)
    return rows + modulation("modulation", "proj_out_1") + linear("proj_out", "proj_out_2")
