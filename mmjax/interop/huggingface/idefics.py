"""IDEFICS (transformers' IdeficsForVisionText2Text): a CLIP tower, a Perceiver, a Llama that reads it inside.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/idefics
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.backbones.decoder import DecoderConfig
from mmjax.backbones.fusion.gated_cross_attention import GatedCrossAttentionConfig
from mmjax.config import ConfigError, check_choice
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface import clip, llama
from mmjax.interop.huggingface.spelling import Json, fresh
from mmjax.interop.huggingface.text import TextFamily, settle_head
from mmjax.interop.table import LINEAR, Linear, Rewrite, Row, Squeezed
from mmjax.interop.tensors import Tensors
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.perceiver import PerceiverConfig

PORT = "image"
GATES = {"float": "scalar", "vector": "vector"}
# What the tower's config.json calls otherwise than CLIP's, and what it assumes where it is silent.
TOWER_KEYS = {"embed_dim": "hidden_size"}
TOWER_DEFAULTS = {
    "hidden_size": 768,
    "image_size": 224,
    "intermediate_size": 5120,
    "patch_size": 14,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
# Options of our decoder that a plain Llama's config.json says and this family's does not.
UNSAID = ("num_key_value_heads", "head_dim", "attention_bias", "mlp_bias")
CROSS = "model.gated_cross_attn_layers.{i}."


@dataclasses.dataclass(frozen=True, eq=False)
class IdeficsFamily:
    """The one family whose images are read inside the LLM."""

    kind: str = "idefics"
    architecture: str = "IdeficsForVisionText2Text"

    IGNORE = TextFamily.IGNORE

    def config_from_hf(self, hf: Mapping[str, Any]) -> MultimodalLMConfig:
        """config.json -> our config.

        Raises:
            ConfigError: options that are not supported.
        """
        vision = {TOWER_KEYS.get(key, key): value for key, value in (hf.get("vision_config") or {}).items()}
        tower = clip.vision_from_hf({**TOWER_DEFAULTS, **vision})
        alpha, plain = hf.get("alpha_type", "float"), llama.FAMILY.decoder_from_hf(hf)
        check_choice("config.json: alpha_type", alpha, tuple(GATES))
        backbone = dataclasses.replace(
            plain,
            vocab_size=plain.vocab_size + hf.get("additional_vocab_size", 0),
            new_tokens=hf.get("additional_vocab_size", 0),
            fusion=GatedCrossAttentionConfig(
                media_width=tower.width,
                every=hf.get("cross_layer_interval", 1),
                qk_norm=hf.get("qk_layer_norms", False),
                gate=GATES[alpha],
            ),
        )
        projectors = {}
        if hf.get("use_resampler", False):
            projectors[PORT] = _perceiver(tower, hf.get("perceiver_config") or {})
        return MultimodalLMConfig(backbone, {PORT: tower}, projectors, inside=(PORT,), inside_sees="latest")

    def config_to_hf(self, config: MultimodalLMConfig, template: Mapping[str, Any] | None = None) -> Json:
        """Our config -> config.json, over the other keys of `template`.

        Raises:
            ConfigError: the model is not one that the family can express.
        """
        backbone, tower = config.backbone, config.encoders.get(PORT)
        fusion = getattr(backbone, "fusion", None)
        if not isinstance(fusion, GatedCrossAttentionConfig) or list(config.inside) != [PORT]:
            raise ConfigError(
                f"transformers' {self.architecture} reads one image port inside; inside is {list(config.inside)}"
            )
        if not isinstance(tower, ViTConfig):
            raise ConfigError(f"transformers' {self.architecture} has a vision transformer, not {type(tower).__name__}")
        projector = config.projectors.get(PORT)
        if projector is not None and not isinstance(projector, PerceiverConfig):
            raise ConfigError(f"transformers' {self.architecture} has a Perceiver or no projector, not {projector}")
        out = fresh(template)
        vision = clip.vision_to_hf(tower)
        theirs = {ours: name for name, ours in TOWER_KEYS.items()}
        vision = {theirs.get(key, key): value for key, value in vision.items()}
        text = llama.FAMILY.decoder_to_hf(_plain(backbone), out)
        out = {key: value for key, value in text.items() if key not in UNSAID}
        if projector is not None:
            out["perceiver_config"] = {
                **fresh(out.get("perceiver_config")),
                "use_resampler": True,
                "resampler_n_latents": projector.num_latents,
                "resampler_depth": projector.num_layers,
                "resampler_n_heads": projector.num_heads,
                "resampler_head_dim": projector.head_dim,
                "qk_layer_norms_perceiver": projector.qk_norm,
            }
        return {
            **out,
            "model_type": self.kind,
            "architectures": [self.architecture],
            "additional_vocab_size": backbone.new_tokens,
            "cross_layer_interval": fusion.every,
            "qk_layer_norms": fusion.qk_norm,
            "alpha_type": next(theirs for theirs, ours in GATES.items() if ours == fusion.gate),
            "use_resampler": projector is not None,
            "vision_config": {**fresh(out.get("vision_config")), **vision, "model_type": "idefics_vision"},
        }

    def rewrites(self, config: MultimodalLMConfig) -> list[Rewrite]:
        """Brings the names of the model without its output layer to those of the whole."""
        tops = "embed_tokens|vision_model|perceiver_resampler|layers|gated_cross_attn_layers|norm"
        return [(rf"^({tops})\.", r"model.\1.")]

    def table(self, config: MultimodalLMConfig) -> list[Row]:
        """The rows of the whole model."""
        backbone = config.backbone
        rows = llama.FAMILY.rows(_plain(backbone))
        if backbone.new_tokens:
            rows.append(Row("backbone/embed_new/embedding", "model.embed_tokens.additional_embedding.weight"))
            if not backbone.tie_embeddings:
                rows.append(Row("backbone/lm_head_new/kernel", "lm_head.additional_fc.weight", LINEAR))
        rows += _cross_rows(backbone.fusion)
        rows += clip.tower_rows(config.encoders[PORT], f"encoders/{PORT}/", "model.vision_model.")
        if PORT in config.projectors:
            rows += _perceiver_rows(config.projectors[PORT], f"projectors/{PORT}/", "model.perceiver_resampler.")
        return rows

    def settle(self, config: MultimodalLMConfig, tensors: Tensors) -> tuple[MultimodalLMConfig, dict[str, Any]]:
        """Lets the tensors correct what the config says about a tied output layer, see `settle_head`."""
        backbone, tensors = settle_head(config.backbone, tensors, "model.embed_tokens.weight", llama.FAMILY.head)
        if backbone.tie_embeddings:
            tensors.pop("lm_head.additional_fc.weight", None)
        return dataclasses.replace(config, backbone=backbone), tensors


def _plain(backbone: DecoderConfig) -> DecoderConfig:
    """The Llama without what was added to it."""
    return dataclasses.replace(
        backbone, fusion=None, new_tokens=0, vocab_size=backbone.vocab_size - backbone.new_tokens
    )


def _perceiver(tower: ViTConfig, hf: Mapping[str, Any]) -> PerceiverConfig:
    heads = hf.get("resampler_n_heads", 16)
    return PerceiverConfig(
        in_width=tower.width,
        width=tower.width,
        num_latents=hf.get("resampler_n_latents", 64),
        latent_width=tower.width,
        num_layers=hf.get("resampler_depth", 6),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hf.get("resampler_head_dim", 96),
        mlp_width=4 * tower.width,
        qk_norm=hf.get("qk_layer_norms_perceiver", False),
        num_features=tower.num_tokens(),
    )


def _perceiver_rows(projector: PerceiverConfig, ours: str, theirs: str) -> list[Row]:
    attention, mlp = theirs + "blocks.{i}.0.", theirs + "blocks.{i}.1."
    rows = [
        Row(f"{ours}latents", f"{theirs}latents"),
        *clip.norm_rows(f"{ours}norm", f"{theirs}layer_norm"),
        *clip.norm_rows(f"{ours}blocks/attn_norm", f"{attention}latents_layer_norm"),
        *clip.norm_rows(f"{ours}blocks/context_norm", f"{attention}context_layer_norm"),
        *clip.norm_rows(f"{ours}blocks/mlp_norm", f"{mlp}ln"),
        *(Row(f"{ours}blocks/attn/{name}/kernel", f"{attention}{name}_proj.weight", LINEAR) for name in "qkv"),
        Row(f"{ours}blocks/attn/o/kernel", f"{attention}output_proj.weight", Linear(2)),
        Row(f"{ours}blocks/mlp/up/kernel", f"{mlp}fc.weight", LINEAR),
        Row(f"{ours}blocks/mlp/down/kernel", f"{mlp}c_proj.weight", LINEAR),
    ]
    if projector.qk_norm:
        for name in "qk":
            rows += clip.norm_rows(f"{ours}blocks/attn/{name}_norm", f"{attention}{name}_layer_norm")
    return rows


def _cross_rows(fusion: GatedCrossAttentionConfig) -> list[Row]:
    ours, gate = "backbone/fusion/blocks/", Squeezed((0, 1))
    rows = [
        *(Row(f"{ours}attn/{name}/kernel", f"{CROSS}cross_attn.{name}_proj.weight", LINEAR) for name in "qkv"),
        Row(f"{ours}attn/o/kernel", f"{CROSS}cross_attn.o_proj.weight", Linear(2)),
        *(Row(f"{ours}mlp/{name}/kernel", f"{CROSS}mlp.{name}_proj.weight", LINEAR) for name in ("gate", "up", "down")),
        Row(f"{ours}attn_norm/scale", f"{CROSS}input_layernorm.weight"),
        Row(f"{ours}mlp_norm/scale", f"{CROSS}post_attention_layernorm.weight"),
    ]
    for mine, name in (("attn_gate", "alpha_cross_attn"), ("mlp_gate", "alpha_dense")):
        row = Row(ours + mine, CROSS + name)
        rows.append(row if fusion.gate == "scalar" else dataclasses.replace(row, transform=gate))
    if fusion.qk_norm:
        rows += [Row(f"{ours}attn/{name}_norm/scale", f"{CROSS}cross_attn.{name}_layer_norm.weight") for name in "qk"]
    return rows


FAMILY = IdeficsFamily()
