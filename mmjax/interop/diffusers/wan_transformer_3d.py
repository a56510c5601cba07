"""WanTransformer3DModel: Wan's text-to-video models.

https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/transformers/transformer_wan.py
"""

from collections.abc import Mapping
from typing import Any

from mmjax.generators.wan import WanConfig
from mmjax.interop.diffusers.adaptive_blocks import attention, feed_forward, mlp, modulation
from mmjax.interop.diffusers.options import check_fixed
from mmjax.interop.diffusers.rows import conv, linear, norm
from mmjax.interop.table import Rewrite, Row, Squeezed

CLASS = "WanTransformer3DModel"
# A norm that some files hold and that nothing reads.
IGNORE = (r".*\.norm_added_q\.weight",)
# Options that change what is computed and are supported at these values alone: those of models that read images.
FIXED: dict[str, Any] = {
    "image_dim": None, "added_kv_proj_dim": None, "pos_embed_seq_len": None, "qk_norm": "rms_norm_across_heads",
}  # fmt: skip
KEYS = {
    "in_channels": "in_channels",
    "num_heads": "num_attention_heads",
    "head_dim": "attention_head_dim",
    "num_layers": "num_layers",
    "mlp_width": "ffn_dim",
    "context_width": "text_dim",
    "time_waves": "freq_dim",
    "reading_norm": "cross_attn_norm",
    "norm_eps": "eps",
}


def config_from_hf(hf: Mapping[str, Any]) -> WanConfig:
    """A `config.json` -> WanConfig, whose defaults are theirs.

    Raises:
        ConfigError: an option that is not supported; the message names it.
    """
    check_fixed(hf, FIXED)
    given = {ours: hf[theirs] for ours, theirs in KEYS.items() if theirs in hf}
    channels = given.get("in_channels", WanConfig.in_channels)
    return WanConfig(
        **given,
        out_channels=hf.get("out_channels", WanConfig.out_channels) or channels,
        patch=tuple(hf.get("patch_size", WanConfig.patch)),
    )


def config_to_hf(config: WanConfig, hf: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """WanConfig -> the content of config.json; other keys of `hf` are kept."""
    return {
        **(hf or {}),
        **FIXED,
        "_class_name": CLASS,
        **{theirs: getattr(config, ours) for ours, theirs in KEYS.items()},
        "out_channels": config.out_channels,
        "patch_size": list(config.patch),
    }


def rewrites(config: WanConfig) -> list[Rewrite]:
    """Names are the same everywhere."""
    return []


def table(config: WanConfig, hf: Mapping[str, Any] | None = None) -> list[Row]:
    """Rows of the blocks and of what is around them."""
    embed, there = "condition_embedder", "blocks.{i}"
    rows = conv("patches", "patch_embedding") + linear("proj_out", "proj_out")
    rows += mlp("time", f"{embed}.time_embedder") + mlp("context", f"{embed}.text_embedder")
    rows += modulation("modulation", f"{embed}.time_proj")
    # Theirs have an axis for the batch.
    one = Squeezed((0,))
    rows += [Row("table", "scale_shift_table", one), Row("blocks/table", f"{there}.scale_shift_table", one)]
    for ours, theirs in (("attn", "attn1"), ("cross", "attn2")):
        rows += attention(f"blocks/{ours}", f"{there}.{theirs}")
        for letter in "qk":
            rows.append(Row(f"blocks/{ours}/{letter}_norm/scale", f"{there}.{theirs}.norm_{letter}.weight"))
    if config.reading_norm:
        rows += norm("blocks/cross_norm", f"{there}.norm2")
    return rows + feed_forward("blocks/mlp", f"{there}.ffn")
