"""Fuyu (transformers' FuyuForCausalLM): patches of pixels, one linear map, Persimmon.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/fuyu

The patches of an image stand line by line with a token of text, `|NEWLINE|`, behind each line.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.raw_patches import RawPatchesConfig
from mmjax.interop.huggingface.decoders import TEXT
from mmjax.interop.huggingface.spelling import Json, fresh
from mmjax.interop.huggingface.text import TextFamily, settle_head, text_family
from mmjax.interop.table import LINEAR, Rewrite, Row
from mmjax.interop.tensors import Tensors
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.linear import LinearProjectorConfig

PORT, LLM = "image", "language_model."


@dataclasses.dataclass(frozen=True, eq=False)
class FuyuFamily:
    """The one family without a tower, see `mmjax.interop.huggingface` for what a family has."""

    kind: str = "fuyu"
    architecture: str = "FuyuForCausalLM"

    IGNORE = TextFamily.IGNORE

    def config_from_hf(self, hf: Mapping[str, Any]) -> MultimodalLMConfig:
        """config.json -> our config; the first files have the LLM's keys among the others.

        Raises:
            ConfigError: an LLM or options that are not supported.
        """
        text = hf.get("text_config") or {key: value for key, value in hf.items() if key != "model_type"}
        kind = text.get("model_type", "persimmon")
        if kind not in TEXT:
            raise ConfigError(
                f"config.json: text_config.model_type {kind!r} is not supported; supported are {', '.join(TEXT)}"
            )
        tied = hf.get("tie_word_embeddings", False)
        backbone = TEXT[kind].decoder_from_hf({**text, "tie_word_embeddings": tied})
        encoder = RawPatchesConfig(hf.get("patch_size", 30), hf.get("num_channels", 3))
        return MultimodalLMConfig(
            backbone,
            {PORT: encoder},
            {PORT: LinearProjectorConfig(encoder.feature_width, backbone.width)},
            {PORT: hf.get("image_token_id", 71011)},
        )

    def config_to_hf(self, config: MultimodalLMConfig, template: Mapping[str, Any] | None = None) -> Json:
        """Our config -> config.json, over the other keys of `template`.

        Raises:
            ConfigError: the model is not one that the family can express.
        """
        encoder = config.encoders.get(PORT)
        if list(config.encoders) != [PORT] or not isinstance(encoder, RawPatchesConfig):
            raise ConfigError(
                f"transformers' {self.architecture} has raw patches at the port {PORT!r} alone; this model has "
                f"{ {port: type(part).__name__ for port, part in config.encoders.items()} }"
            )
        out = fresh(template)
        inner = out.get("text_config") or {key: value for key, value in out.items() if key != "model_type"}
        text = text_family(config.backbone, TEXT, inner.get("model_type", "persimmon"))
        return {
            **out,
            "model_type": self.kind,
            "architectures": [self.architecture],
            "text_config": text.decoder_to_hf(config.backbone, inner),
            "patch_size": encoder.patch_size,
            "num_channels": encoder.channels,
            "image_token_id": config.media_tokens[PORT],
            "tie_word_embeddings": config.backbone.tie_embeddings,
        }

    def rewrites(self, config: MultimodalLMConfig) -> list[Rewrite]:
        """Brings the spellings of memory and disk to the hub's."""
        text = text_family(config.backbone, TEXT, "persimmon")
        tops = "|".join(sorted({name.split(".")[0] for name in text.names.values()}))
        return [
            (r"^model\.(vision_embed_tokens|language_model)\b", r"\1"),
            (r"^lm_head\.", f"{LLM}lm_head."),
            (rf"^language_model\.({tops})\.", rf"{LLM}{text.model}\1."),
        ]

    def table(self, config: MultimodalLMConfig) -> list[Row]:
        """The rows of the whole model, with the names that the hub uses."""
        text = text_family(config.backbone, TEXT, "persimmon")
        ours, theirs = f"projectors/{PORT}/out/", "vision_embed_tokens."
        rows = [Row(f"{ours}kernel", f"{theirs}weight", LINEAR), Row(f"{ours}bias", f"{theirs}bias")]
        return rows + text.rows(config.backbone, f"{LLM}{text.model}", f"{LLM}{text.head}")

    def settle(self, config: MultimodalLMConfig, tensors: Tensors) -> tuple[MultimodalLMConfig, dict[str, Any]]:
        """Lets the tensors correct what the config says about a tied output layer, see `settle_head`."""
        text = text_family(config.backbone, TEXT, "persimmon")
        embedding = f"{LLM}{text.model}{text.names['embed']}.weight"
        backbone, tensors = settle_head(config.backbone, tensors, embedding, f"{LLM}{text.head}")
        return dataclasses.replace(config, backbone=backbone), tensors


FAMILY = FuyuFamily()
