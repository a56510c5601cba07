"""BLIP-2 (transformers' Blip2ForConditionalGeneration), and what the families with a Q-Former share.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/blip_2
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.backbones import BackboneConfig
from mmjax.backbones.encoder_decoder import EncoderDecoderConfig
from mmjax.config import ConfigError
from mmjax.encoders.frames import FramesConfig
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface import blip2_vision, t5
from mmjax.interop.huggingface.decoders import TEXT
from mmjax.interop.huggingface.encoder_decoders import encoder_decoder_family
from mmjax.interop.huggingface.qformer import (
    around_rows,
    blip2_rows,
    instructblip_rows,
    qformer_from_hf,
    qformer_to_hf,
)
from mmjax.interop.huggingface.spelling import Json, fresh
from mmjax.interop.huggingface.text import TextFamily, settle_head, text_family
from mmjax.interop.table import Rewrite, Row
from mmjax.interop.tensors import Tensors
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.qformer import QFormerConfig

LLM = "language_model."


@dataclasses.dataclass(frozen=True, eq=False)
class QFormerFamily:
    """One family: EVA-CLIP's tower, a Q-Former with a map behind it, an LLM that is a decoder or a T5.

    Attributes:
        kind, architecture: `model_type`, and the class that loads it.
        part: what the `model_type` of tower and Q-Former begin with.
        instructed: whether the Q-Former reads the instruction too.
        frames: of a video, each of which goes through tower and Q-Former by itself; None: the family takes images.
    """

    kind: str
    architecture: str
    part: str
    instructed: bool = False
    frames: int | None = None

    IGNORE = (*TextFamily.IGNORE, *t5.IGNORE)

    @property
    def port(self) -> str:
        """The one port."""
        return "image" if self.frames is None else "video"

    def config_from_hf(self, hf: Mapping[str, Any]) -> MultimodalLMConfig:
        """config.json -> our config.

        Raises:
            ConfigError: parts or options that are not supported, or no id of the placeholder.
        """
        port, tower = self.port, blip2_vision.vision_from_hf(hf.get("vision_config") or {})
        backbone = _llm_from_hf(hf.get("text_config") or {})
        qformer = {**(hf.get("qformer_config") or {}), "encoder_hidden_size": tower.width}
        if not self.instructed and qformer.get("use_qformer_text_input"):
            raise ConfigError(
                "config.json: qformer_config.use_qformer_text_input is true, as in models for retrieval; only models "
                "that generate text, whose Q-Former reads none, are supported"
            )
        token = hf.get(f"{port}_token_index", hf.get(f"{port}_token_id"))
        if token is None:
            raise ConfigError(
                f"config.json: {port}_token_index is missing, the id that stands in input_ids for each token of "
                f"the {port}; files from before there were placeholders need it written in"
            )
        queries, features = hf.get("num_query_tokens", 32), tower.num_tokens()
        encoder = tower if self.frames is None else FramesConfig(tower, self.frames)
        projector = qformer_from_hf(qformer, backbone.width, queries, self.instructed, features)
        return MultimodalLMConfig(backbone, {port: encoder}, {port: projector}, {port: token})

    def config_to_hf(self, config: MultimodalLMConfig, template: Mapping[str, Any] | None = None) -> Json:
        """Our config -> config.json, over the other keys of `template`.

        Raises:
            ConfigError: the model is not one that the family can express.
        """
        tower, qformer = self._parts(config)
        out, port = fresh(template), self.port
        part = lambda key: fresh(out.get(key))
        vision = {**part("vision_config"), **blip2_vision.vision_to_hf(tower)}
        return {
            **out,
            "model_type": self.kind,
            "architectures": [self.architecture],
            "vision_config": {**vision, "model_type": f"{self.part}_vision_model"},
            "qformer_config": {
                **part("qformer_config"),
                **qformer_to_hf(qformer),
                "model_type": f"{self.part}_qformer",
            },
            "text_config": _llm_to_hf(config.backbone, out.get("text_config")),
            "num_query_tokens": qformer.num_queries,
            f"{port}_token_index": config.media_tokens[port],
            f"{port}_token_id": config.media_tokens[port],
            "use_decoder_only_language_model": not isinstance(config.backbone, EncoderDecoderConfig),
        }

    def _parts(self, config: MultimodalLMConfig) -> tuple[ViTConfig, QFormerConfig]:
        """Tower and Q-Former of a model of this family."""
        encoder, projector = config.encoders.get(self.port), config.projectors.get(self.port)
        tower = encoder.encoder if self.frames and isinstance(encoder, FramesConfig) else encoder
        if list(config.encoders) != [self.port] or not isinstance(tower, ViTConfig):
            raise ConfigError(
                f"transformers' {self.architecture} has a vision transformer at the port {self.port!r} alone; this "
                f"model has { {port: type(part).__name__ for port, part in config.encoders.items()} }"
            )
        if self.frames and (tower is encoder or encoder.num_frames != self.frames):
            raise ConfigError(
                f"transformers' {self.architecture} takes videos of {self.frames} frames; this model has {encoder}"
            )
        if not isinstance(projector, QFormerConfig) or (projector.vocab_size is not None) != self.instructed:
            reads = "reads the instruction" if self.instructed else "reads no text"
            raise ConfigError(
                f"transformers' {self.architecture} has a Q-Former that {reads}; this model has {projector}"
            )
        return tower, projector

    def rewrites(self, config: MultimodalLMConfig) -> list[Rewrite]:
        """Brings the names of an LLM without its output layer to those of the whole."""
        if isinstance(config.backbone, EncoderDecoderConfig):
            return []
        text = text_family(config.backbone, TEXT)
        tops = "|".join(sorted({name.split(".")[0] for name in text.names.values()}))
        return [(rf"^language_model\.({tops})\.", rf"{LLM}{text.model}\1.")]

    def table(self, config: MultimodalLMConfig) -> list[Row]:
        """The rows of the whole model."""
        tower, qformer = self._parts(config)
        encoder, projector = f"encoders/{self.port}/", f"projectors/{self.port}/"
        encoder += "frame/" if self.frames else ""
        qformer_rows = instructblip_rows if self.instructed else blip2_rows
        return [
            *blip2_vision.tower_rows(tower, encoder, "vision_model."),
            *qformer_rows(qformer, f"{projector}qformer/"),
            *around_rows(projector),
            *_llm_rows(config.backbone),
        ]

    def settle(self, config: MultimodalLMConfig, tensors: Tensors) -> tuple[MultimodalLMConfig, dict[str, Any]]:
        """Lets the tensors correct what the config says about a tied output layer."""
        if isinstance(config.backbone, EncoderDecoderConfig):
            backbone, tensors = t5.settle_backbone(config.backbone, tensors, LLM)
        else:
            text = text_family(config.backbone, TEXT)
            embedding = f"{LLM}{text.model}{text.names['embed']}.weight"
            backbone, tensors = settle_head(config.backbone, tensors, embedding, LLM + text.head)
        return dataclasses.replace(config, backbone=backbone), tensors


def _llm_from_hf(text: Mapping[str, Any]) -> BackboneConfig:
    """The LLM of a `text_config`."""
    kind = text.get("model_type", "opt")
    if kind == "t5":
        return t5.backbone_from_hf(text)
    if kind not in TEXT:
        known = ", ".join(("t5", *TEXT))
        raise ConfigError(f"config.json: text_config.model_type {kind!r} is not supported; supported are {known}")
    return TEXT[kind].decoder_from_hf(text)


def _llm_to_hf(backbone: BackboneConfig, template: Mapping[str, Any] | None) -> Json:
    """The LLM's `text_config`, over the other keys of `template`."""
    if not isinstance(backbone, EncoderDecoderConfig):
        return text_family(backbone, TEXT, (template or {}).get("model_type")).decoder_to_hf(backbone, template)
    if encoder_decoder_family(backbone) is not t5:
        raise ConfigError("of the encoder-decoders, transformers' systems with a Q-Former are supported with T5 alone")
    return t5.backbone_to_hf(backbone, template)


def _llm_rows(backbone: BackboneConfig) -> list[Row]:
    """The rows of the LLM."""
    if isinstance(backbone, EncoderDecoderConfig):
        return t5.rows(backbone, LLM)
    text = text_family(backbone, TEXT)
    return text.rows(backbone, LLM + text.model, LLM + text.head)


FAMILY = QFormerFamily(kind="blip-2", architecture="Blip2ForConditionalGeneration", part="blip_2")
