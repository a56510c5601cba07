"""Qwen2-VL (transformers' Qwen2VLForConditionalGeneration), and what the later Qwen-VL families share with it.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/qwen2_vl
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mmjax.backbones.decoder import DecoderConfig
from mmjax.backbones.fusion import FusionConfig
from mmjax.config import ConfigError
from mmjax.encoders.qwen2_vision import Qwen2VisionConfig
from mmjax.interop.huggingface import qwen2
from mmjax.interop.huggingface.clip import norm_rows
from mmjax.interop.huggingface.spelling import (
    ACTIVATIONS_TO_HF,
    Json,
    activation_from_hf,
    fresh,
    rope_to_hf,
    square,
)
from mmjax.interop.huggingface.text import TextFamily, settle_head
from mmjax.interop.table import CONV, FLAT, LINEAR, Linear, Part, Rewrite, Row
from mmjax.interop.tensors import Tensors
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.downsample import MergeConfig

IMAGE, VIDEO = "image", "video"
SECTIONS = (16, 24, 24)
DEFAULTS = {
    **qwen2.DEFAULTS,
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "max_window_layers": 80,
}
# What the first files, which have the LLM's keys beside the tower, hold at the top that is not the LLM's.
TOP = (
    "architectures", "image_token_id", "model_type", "video_token_id", "vision_config", "vision_end_token_id",
    "vision_start_token_id", "vision_token_id",
)  # fmt: skip


def read_text(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Windows as Qwen2 has them, and which channels the axes of a position turn."""
    rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    return {**qwen2.read(hf), "rope_sections": tuple(rope.get("mrope_section") or SECTIONS)}


def write_text(config: DecoderConfig) -> Json:
    """The keys that `read_text` reads."""
    return {**qwen2.write(config), **rope_with_sections(config, {})}


def rope_with_sections(config: DecoderConfig, more: Json) -> Json:
    """The keys of rotary positions that have axes; `more` stands beside `mrope_section`."""
    rope = rope_to_hf(config.rope_theta, config.rope_scaling)
    own = {"mrope_section": list(config.rope_sections), **more}
    return {
        "rope_scaling": {**(rope["rope_scaling"] or {"rope_type": "default"}), **own},
        "rope_parameters": {**rope["rope_parameters"], **own},
    }


TEXT = TextFamily(
    kind="qwen2_vl_text",
    architecture="Qwen2VLTextModel",
    names=qwen2.FAMILY.names,
    keys={ours: theirs for ours, theirs in qwen2.FAMILY.keys.items() if ours != "head_dim"},
    defaults=DEFAULTS,
    options=qwen2.FAMILY.options,
    read=read_text,
    write=write_text,
)


@dataclasses.dataclass(frozen=True, eq=False)
class QwenVLFamily:
    """One family: a tower over packed patches, a merger, an LLM whose positions have three axes.

    Attributes:
        kind, architecture: `model_type`, and the class that loads it.
        text: the LLM.
        read: the tower's config.json -> (tower, the LLM's width, positions_per_second).
        write: (tower, the LLM's width, positions_per_second) -> the tower's config.json; raises ConfigError.
        visual, model: what the names of the tower's tensors, and of the LLM's, begin with.
        projector: (tower, the LLM's width) -> projector.
        projector_rows: (tower, our prefix, their prefix) -> rows of the projector.
        fusion: tower -> what reads media inside the LLM.
        frames_apart: see `MultimodalLMConfig`.
    """

    kind: str
    architecture: str
    text: TextFamily
    read: Callable[[Mapping[str, Any]], tuple[Qwen2VisionConfig, int, float | None]]
    write: Callable[[Qwen2VisionConfig, int, float | None], Json]
    visual: str = "visual."
    model: str = "model."
    projector: Callable[[Qwen2VisionConfig, int], Any] = lambda tower, width: merger_of(tower, width)
    projector_rows: Callable[[Qwen2VisionConfig, str, str], list[Row]] = lambda *given: merger_rows(*given)
    fusion: Callable[[Qwen2VisionConfig], FusionConfig | None] = lambda tower: None
    frames_apart: bool = False

    IGNORE = (*TextFamily.IGNORE, r".*\.rotary_pos_emb\.inv_freq")

    def config_from_hf(self, hf: Mapping[str, Any]) -> MultimodalLMConfig:
        """config.json, of a file with `text_config` or of one that has the LLM's keys at the top -> our config.

        Raises:
            ConfigError: options that are not supported.
        """
        text = hf.get("text_config") or hf
        tied = hf.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False)
        rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
        if (rope.get("rope_type") or rope.get("type")) == "mrope":
            text = {**text, "rope_scaling": {**rope, "rope_type": "default"}}
        backbone = self.text.decoder_from_hf({**text, "tie_word_embeddings": tied})
        tower, width, per_second = self.read(hf.get("vision_config") or {})
        return MultimodalLMConfig(
            dataclasses.replace(backbone, fusion=self.fusion(tower)),
            encoders={IMAGE: tower, VIDEO: tower},
            projectors=dict.fromkeys((IMAGE, VIDEO), self.projector(tower, width)),
            media_tokens={IMAGE: hf.get("image_token_id", 151655), VIDEO: hf.get("video_token_id", 151656)},
            shared={VIDEO: IMAGE},
            positions_per_second=per_second,
            frames_apart=self.frames_apart,
        )

    def config_to_hf(self, config: MultimodalLMConfig, template: Mapping[str, Any] | None = None) -> Json:
        """Our config -> config.json, over the other keys of `template`.

        Raises:
            ConfigError: the model is not one that the family can express.
        """
        towers = set(map(type, config.encoders.values()))
        if list(config.encoders) != [IMAGE, VIDEO] or towers != {Qwen2VisionConfig} or config.shared != {VIDEO: IMAGE}:
            kinds = {port: type(part).__name__ for port, part in config.encoders.items()}
            raise ConfigError(
                f"transformers' {self.architecture} has the ports image and video with the same parameters of a "
                f"Qwen2Vision; this model has {kinds}, of which shared: {config.shared}"
            )
        out, backbone = fresh(template), config.backbone
        before = out.get("text_config") or {key: value for key, value in out.items() if key not in TOP}
        text = self.text.decoder_to_hf(backbone, before)
        vision = self.write(config.encoders[IMAGE], backbone.width, config.positions_per_second)
        return {
            **{key: value for key, value in out.items() if key not in text},
            "model_type": self.kind,
            "architectures": [self.architecture],
            "text_config": text,
            "vision_config": {**fresh(out.get("vision_config")), **vision},
            "image_token_id": config.media_tokens[IMAGE],
            "video_token_id": config.media_tokens[VIDEO],
            "tie_word_embeddings": backbone.tie_embeddings,
        }

    def rewrites(self, config: MultimodalLMConfig) -> list[Rewrite]:
        """Brings the spellings of memory, and of files without the output layer, to the hub's."""
        return [(r"^(model\.)?visual\.", self.visual), (r"^(model\.)?language_model\.", self.model)]

    def table(self, config: MultimodalLMConfig) -> list[Row]:
        """The rows of the whole model, with the names that the hub uses."""
        tower = config.encoders[IMAGE]
        return [
            *self.text.rows(config.backbone, self.model),
            *tower_rows(tower, f"encoders/{IMAGE}/", self.visual),
            *self.projector_rows(tower, f"projectors/{IMAGE}/", self.visual),
        ]

    def settle(self, config: MultimodalLMConfig, tensors: Tensors) -> tuple[MultimodalLMConfig, dict[str, Any]]:
        """Lets the tensors correct what the config says about a tied output layer, see `settle_head`."""
        backbone, tensors = settle_head(config.backbone, tensors, f"{self.model}embed_tokens.weight", "lm_head.weight")
        return dataclasses.replace(config, backbone=backbone), tensors


def merger_of(tower: Qwen2VisionConfig, width: int) -> MergeConfig:
    """The projector of a tower: its norm, squares in a row, two maps to the LLM's width."""
    return MergeConfig(
        in_width=tower.width,
        width=width,
        factor=tower.merge_size,
        order="blocks",
        norm=tower.norm,
        norm_at="before",
        norm_eps=tower.norm_eps,
        hidden=tower.width * tower.merge_size**2,
    )


def tower_rows(tower: Qwen2VisionConfig, ours: str, theirs: str) -> list[Row]:
    """Rows of a tower without its merger; prefixes end in "/" and "."."""
    block, name = f"{ours}blocks/", theirs + "blocks.{i}."
    thirds = (tower.width,) * 3
    rows = [
        Row(f"{ours}patch_embed/kernel", f"{theirs}patch_embed.proj.weight", CONV),
        Row(f"{block}attn/o/kernel", f"{name}attn.proj.weight", Linear(2)),
        Row(f"{block}attn/o/bias", f"{name}attn.proj.bias"),
        *norms(tower, f"{block}attn_norm", f"{name}norm1"),
        *norms(tower, f"{block}mlp_norm", f"{name}norm2"),
    ]
    for index, part in enumerate("qkv"):
        rows.append(Row(f"{block}attn/{part}/kernel", f"{name}attn.qkv.weight", Part(index, thirds, LINEAR)))
        rows.append(Row(f"{block}attn/{part}/bias", f"{name}attn.qkv.bias", Part(index, thirds, FLAT)))
    maps = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"} if tower.gated else {"up": "fc1", "down": "fc2"}
    if tower.position_grid:
        maps = {mine: f"linear_{other}" for mine, other in maps.items()}
        rows.append(Row(f"{ours}position_embedding", f"{theirs}pos_embed.weight"))
        rows.append(Row(f"{ours}patch_embed/bias", f"{theirs}patch_embed.proj.bias"))
    for mine, other in maps.items():
        rows += linear_rows(f"{block}mlp/{mine}", f"{name}mlp.{other}")
    return rows


def merger_rows(tower: Qwen2VisionConfig, ours: str, theirs: str) -> list[Row]:
    """Rows of a merger; prefixes end in "/" and "."."""
    return [
        *norms(tower, f"{ours}norm", f"{theirs}merger.ln_q"),
        *linear_rows(f"{ours}fc1", f"{theirs}merger.mlp.0"),
        *linear_rows(f"{ours}fc2", f"{theirs}merger.mlp.2"),
    ]


def norms(tower: Qwen2VisionConfig, ours: str, theirs: str) -> list[Row]:
    """Rows of a norm of the tower's kind."""
    rows = norm_rows(ours, theirs)
    return rows if tower.norm == "layer" else rows[:1]


def linear_rows(ours: str, theirs: str) -> list[Row]:
    """Rows of a linear map with bias."""
    return [Row(f"{ours}/kernel", f"{theirs}.weight", LINEAR), Row(f"{ours}/bias", f"{theirs}.bias")]


def tower_sizes(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a tower that all families spell alike.

    Raises:
        ConfigError: images that do not have three channels, patches that are not square.
    """
    channels = hf.get("in_channels", hf.get("in_chans", 3))
    if channels != 3:
        raise ConfigError(f"config.json: vision_config.in_channels {channels} is not supported, only 3")
    return {
        "num_layers": hf.get("depth", 32),
        "num_heads": hf.get("num_heads", 16),
        "patch_size": square(hf, "patch_size", 14),
        "temporal_patch_size": square(hf, "temporal_patch_size", 2),
        "merge_size": hf.get("spatial_merge_size", 2),
        "rope_theta": float((hf.get("rope_parameters") or {}).get("rope_theta", 10000.0)),
    }


def sizes_to_hf(tower: Qwen2VisionConfig) -> Json:
    """The keys that `tower_sizes` reads, and the activation.

    Raises:
        ConfigError: the tower has another epsilon than all that transformers has.
    """
    if tower.norm_eps != 1e-6:
        raise ConfigError(f"transformers' Qwen-VL towers have norms with epsilon 1e-6, this has {tower.norm_eps}")
    return {
        "depth": tower.num_layers,
        "num_heads": tower.num_heads,
        "in_channels": 3,
        "patch_size": tower.patch_size,
        "temporal_patch_size": tower.temporal_patch_size,
        "spatial_merge_size": tower.merge_size,
        "rope_parameters": {"rope_type": "axial", "rope_theta": tower.rope_theta},
        "hidden_act": ACTIVATIONS_TO_HF[tower.activation],
    }


def _read(hf: Mapping[str, Any]) -> tuple[Qwen2VisionConfig, int, None]:
    width = hf.get("embed_dim", 1280)
    tower = Qwen2VisionConfig(
        width=width,
        mlp_width=int(width * hf.get("mlp_ratio", 4)),
        activation=activation_from_hf(hf, "hidden_act", "quick_gelu"),
        **tower_sizes(hf),
    )
    return tower, hf.get("hidden_size", 3584), None


def _write(tower: Qwen2VisionConfig, width: int, per_second: float | None) -> Json:
    ratio, rest = divmod(tower.mlp_width, tower.width)
    if rest or tower.gated or tower.norm != "layer" or tower.window is not None or per_second is not None:
        raise ConfigError(
            "transformers' Qwen2VL has a tower with layer norms, without gates and windows, whose mlp_width is a "
            f"multiple of its width, and no positions_per_second; this has norm={tower.norm!r}, gated={tower.gated}, "
            f"window={tower.window}, mlp_width={tower.mlp_width}, width={tower.width}, "
            f"positions_per_second={per_second}"
        )
    return {
        **sizes_to_hf(tower),
        "model_type": "qwen2_vl_vision",
        "embed_dim": tower.width,
        "hidden_size": width,
        "mlp_ratio": ratio,
    }


FAMILY = QwenVLFamily("qwen2_vl", "Qwen2VLForConditionalGeneration", TEXT, _read, _write)
