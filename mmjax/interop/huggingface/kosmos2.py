"""KOSMOS-2 (transformers' Kosmos2ForConditionalGeneration): CLIP, latents that read it, a decoder with inner norms.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/kosmos2

Where an image stands is said by a mask beside the text and by no token, see `MARK` in inputs.py. So the placeholder
here is the first id behind the vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface import clip
from mmjax.interop.huggingface.spelling import Json, fresh
from mmjax.interop.huggingface.text import TextFamily, settle_head
from mmjax.interop.table import FLAT, LINEAR, Linear, Rewrite, Row
from mmjax.interop.tensors import Tensors
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.latent_attention import LatentAttentionConfig

PORT, LLM, TOWER, BETWEEN = "image", "text_model.", "vision_model.model.", "image_to_text_projection."
# What Kosmos2VisionConfig assumes where config.json is silent.
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
LAYER = "layers.{i}."


def _read(hf: Mapping[str, Any]) -> dict[str, Any]:
    return {"embedding_scale": hf["embed_dim"] ** 0.5 if hf["scale_embedding"] else 1.0}


def _write(config: DecoderConfig) -> Json:
    return {"scale_embedding": config.embedding_scale != 1}


TEXT = TextFamily(
    kind="kosmos_2_text_model",
    architecture="Kosmos2TextForCausalLM",
    names={
        "embed": "embed_tokens",
        "norm": "layer_norm",
        "attn_norm": LAYER + "self_attn_layer_norm",
        "attn/q": LAYER + "self_attn.q_proj",
        "attn/k": LAYER + "self_attn.k_proj",
        "attn/v": LAYER + "self_attn.v_proj",
        "attn/sub_norm": LAYER + "self_attn.inner_attn_ln",
        "attn/o": LAYER + "self_attn.out_proj",
        "mlp_norm": LAYER + "final_layer_norm",
        "mlp/up": LAYER + "ffn.fc1",
        "mlp/sub_norm": LAYER + "ffn.ffn_layernorm",
        "mlp/down": LAYER + "ffn.fc2",
    },
    keys={
        "vocab_size": "vocab_size",
        "width": "embed_dim",
        "mlp_width": "ffn_dim",
        "num_layers": "layers",
        "num_heads": "attention_heads",
        "max_positions": "max_position_embeddings",
        "norm_eps": "layer_norm_eps",
        "tie_embeddings": "tie_word_embeddings",
    },
    defaults={
        "vocab_size": 65037,
        "embed_dim": 2048,
        "ffn_dim": 8192,
        "layers": 24,
        "attention_heads": 32,
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "activation_function": "gelu",
        "scale_embedding": True,
        "tie_word_embeddings": True,
    },
    options={
        "norm": "layer",
        "gated": False,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "sub_norm": True,
        "position": "sinusoidal",
        "position_offset": 2,
    },
    only={"add_cross_attention": False},
    activation="activation_function",
    rope="",
    read=_read,
    write=_write,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Kosmos2Family:
    """The one family whose images a mask places, see `mmjax.interop.huggingface` for what a family has."""

    kind: str = "kosmos-2"
    architecture: str = "Kosmos2ForConditionalGeneration"

    IGNORE = (*TextFamily.IGNORE, *clip.IGNORE, r".*\.embed_positions\.weights")

    def config_from_hf(self, hf: Mapping[str, Any]) -> MultimodalLMConfig:
        """config.json -> our config.

        Raises:
            ConfigError: options that are not supported.
        """
        tied = hf.get("tie_word_embeddings", True)
        backbone = TEXT.decoder_from_hf({**(hf.get("text_config") or {}), "tie_word_embeddings": tied})
        tower = clip.vision_from_hf({**VISION, **(hf.get("vision_config") or {})})
        tower = dataclasses.replace(tower, feature_norm=True)
        projector = LatentAttentionConfig(
            in_width=tower.feature_width,
            width=backbone.width,
            num_latents=hf.get("latent_query_num", 64),
            num_heads=backbone.num_heads,
            output_scale=backbone.embedding_scale,
            num_features=tower.num_tokens(),
        )
        return MultimodalLMConfig(backbone, {PORT: tower}, {PORT: projector}, {PORT: backbone.vocab_size})

    def config_to_hf(self, config: MultimodalLMConfig, template: Mapping[str, Any] | None = None) -> Json:
        """Our config -> config.json, over the other keys of `template`.

        Raises:
            ConfigError: the model is not one that the family can express.
        """
        tower, projector = config.encoders.get(PORT), config.projectors.get(PORT)
        if not isinstance(tower, ViTConfig) or not isinstance(projector, LatentAttentionConfig):
            raise ConfigError(
                f"transformers' {self.architecture} has a vision transformer and a latent_attention projector at the "
                f"port {PORT!r}; this model has {sorted(config.encoders)} with "
                f"{ {port: part.kind for port, part in config.projectors.items()} }"
            )
        if not isinstance(config.backbone, DecoderConfig):
            raise ConfigError(f"transformers' {self.architecture} has a decoder, not {config.backbone.kind!r}")
        out = fresh(template)
        vision = {**fresh(out.get("vision_config")), **clip.vision_to_hf(tower)}
        return {
            **out,
            "model_type": self.kind,
            "architectures": [self.architecture],
            "text_config": TEXT.decoder_to_hf(config.backbone, out.get("text_config")),
            "vision_config": {**vision, "model_type": "kosmos_2_vision_model"},
            "latent_query_num": projector.num_latents,
            "tie_word_embeddings": config.backbone.tie_embeddings,
        }

    def rewrites(self, config: MultimodalLMConfig) -> list[Rewrite]:
        """There is but one spelling."""
        return []

    def table(self, config: MultimodalLMConfig) -> list[Row]:
        """The rows of the whole model."""
        ours = f"projectors/{PORT}/"
        rows = TEXT.rows(config.backbone, f"{LLM}model.", f"{LLM}lm_head.weight")
        rows += clip.tower_rows(config.encoders[PORT], f"encoders/{PORT}/", TOWER)
        rows.append(Row(f"{ours}latents", f"{BETWEEN}latent_query"))
        maps = {"input": "dense", **{f"attn/{name}": f"x_attn.{name}_proj" for name in "qkv"}}
        for mine, theirs in {**maps, "attn/o": "x_attn.out_proj"}.items():
            kernel = Linear(2) if mine == "attn/o" else LINEAR
            rows.append(Row(f"{ours}{mine}/kernel", f"{BETWEEN}{theirs}.weight", kernel))
            rows.append(Row(f"{ours}{mine}/bias", f"{BETWEEN}{theirs}.bias", FLAT))
        return rows

    def settle(self, config: MultimodalLMConfig, tensors: Tensors) -> tuple[MultimodalLMConfig, dict[str, Any]]:
        """Lets the tensors correct what the config says about a tied output layer, see `settle_head`."""
        embedding = f"{LLM}model.{TEXT.names['embed']}.weight"
        backbone, tensors = settle_head(config.backbone, tensors, embedding, f"{LLM}lm_head.weight")
        return dataclasses.replace(config, backbone=backbone), tensors


FAMILY = Kosmos2Family()
