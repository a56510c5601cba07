"""Directories in transformers' layout: read into our configs and params, and written so that it reads them.

A family is a module, or for plain LLMs a TextFamily, with the same few functions: `config_from_hf`,
`config_to_hf`, `table` (the rows that both directions walk), `rewrites` (spellings of names) and, where the
tensors may overrule the config, `settle`. FAMILIES is the one place that says which model type belongs to which.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.backbones.encoder_decoder import EncoderDecoderConfig
from mmjax.config import ConfigError, nearest
from mmjax.encoders import ENCODERS, EncoderConfig
from mmjax.encoders.ast import ASTConfig
from mmjax.encoders.bidirectional_text import BidirectionalTextConfig
from mmjax.encoders.clap import CLAPConfig
from mmjax.encoders.convnext import ConvNeXtConfig
from mmjax.encoders.dual import TEXT_TOWERS, DualEncoder, DualEncoderConfig, TextConfig, Tower
from mmjax.encoders.resnet import ResNetConfig
from mmjax.encoders.sam import SamEncoderConfig
from mmjax.encoders.sound_text import SoundText, SoundTextConfig
from mmjax.encoders.swin import SwinConfig
from mmjax.encoders.text import TextEncoderConfig
from mmjax.encoders.timesformer import TimeSformerConfig
from mmjax.encoders.video_vit import VideoViTConfig
from mmjax.encoders.vit import ViTConfig
from mmjax.encoders.wav2vec2 import Wav2Vec2Config
from mmjax.encoders.whisper import WhisperEncoderConfig
from mmjax.generators.codec_model import CodecModel
from mmjax.generators.video_vq_autoencoder import VideoVQAutoencoderConfig
from mmjax.generators.vocoder import VocoderConfig, VocoderModel
from mmjax.generators.vq_autoencoder import VQAutoencoderConfig
from mmjax.interop.huggingface import (
    ast,
    blip2,
    chameleon,
    chameleon_vqgan,
    clap,
    clap_pair,
    clap_text,
    clip,
    convnext,
    emu3,
    emu3_vqgan,
    fuyu,
    gemma3_vision,
    idefics,
    idefics2,
    idefics3,
    instructblip,
    instructblipvideo,
    internvl,
    janus,
    janus_vqgan,
    kosmos2,
    llava,
    llava_next,
    llava_next_video,
    llava_onevision,
    mistral3,
    paligemma,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
    resnet,
    sam,
    siglip,
    smolvlm,
    speecht5_hifigan,
    swin,
    t5_encoder,
    timesformer,
    video_llava,
    videomae,
    vipllava,
    vivit,
    wav2vec2,
    whisper,
)
from mmjax.interop.huggingface.blip2 import QFormerFamily
from mmjax.interop.huggingface.code_words import CodeWordsFamily
from mmjax.interop.huggingface.decoders import TEXT
from mmjax.interop.huggingface.encoder_decoders import ENCODER_DECODERS, encoder_decoder_family
from mmjax.interop.huggingface.fuyu import FuyuFamily
from mmjax.interop.huggingface.idefics import IdeficsFamily
from mmjax.interop.huggingface.kosmos2 import Kosmos2Family
from mmjax.interop.huggingface.qwen2_vl import QwenVLFamily
from mmjax.interop.huggingface.text import TextFamily, text_family
from mmjax.interop.huggingface.towers import VISION, tower_family
from mmjax.interop.huggingface.vision_text import VisionTextFamily, system_family
from mmjax.interop.segmenter import Segmenter, SegmenterConfig
from mmjax.interop.table import export_params, import_params, rename
from mmjax.interop.tensors import WeightsError, read_directory, write_directory
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.nn.lora import merge_lora
from mmjax.paths import flatten

# In the order in which they are asked whether a model that takes media can be written as one of them.
SYSTEM_MODULES = (
    llava, llava_next, llava_onevision, llava_next_video, video_llava, vipllava, qwen2_vl, qwen2_5_vl, qwen3_vl, blip2,
    instructblip, instructblipvideo, idefics2, idefics3, smolvlm, internvl, mistral3,
    paligemma, gemma3_vision, fuyu, kosmos2, idefics, janus,
    chameleon, emu3,
)  # fmt: skip
SystemFamily = (
    VisionTextFamily | QwenVLFamily | QFormerFamily | FuyuFamily | IdeficsFamily | Kosmos2Family | CodeWordsFamily
)
SYSTEMS: dict[str, SystemFamily] = {module.FAMILY.kind: module.FAMILY for module in SYSTEM_MODULES}
FAMILIES: dict[str, ModuleType | TextFamily | SystemFamily] = {
    **TEXT,
    **ENCODER_DECODERS,
    **VISION,
    **SYSTEMS,
    "clip": clip,
    "clip_text_model": clip,
    "siglip": siglip,
    "siglip_text_model": siglip,
    "convnext": convnext,
    "convnextv2": convnext,
    "resnet": resnet,
    "swin": swin,
    "sam": sam,
    "sam_vision_model": sam,
    "whisper": whisper,
    ast.MODEL_TYPE: ast,
    clap.MODEL_TYPE: clap,
    clap_pair.MODEL_TYPE: clap_pair,
    clap_text.MODEL_TYPE: clap_text,
    "wav2vec2": wav2vec2,
    "hubert": wav2vec2,
    speecht5_hifigan.MODEL_TYPE: speecht5_hifigan,
    "hifigan": speecht5_hifigan,
    chameleon_vqgan.MODEL_TYPE: chameleon_vqgan,
    janus_vqgan.MODEL_TYPE: janus_vqgan,
    emu3_vqgan.MODEL_TYPE: emu3_vqgan,
    "timesformer": timesformer,
    "videomae": videomae,
    "vivit": vivit,
}

# Classes of which the model type alone does not tell that they are half of the model.
HALVES: dict[str, ModuleType] = dict.fromkeys(t5_encoder.CLASSES.values(), t5_encoder)

# Towers whose config class says the family.
TOWERS: dict[type, ModuleType] = {
    ConvNeXtConfig: convnext,
    ResNetConfig: resnet,
    SwinConfig: swin,
    SamEncoderConfig: sam,
    SegmenterConfig: sam,
    WhisperEncoderConfig: whisper,
    ASTConfig: ast,
    TimeSformerConfig: timesformer,
    CLAPConfig: clap,
    SoundTextConfig: clap_pair,
    Wav2Vec2Config: wav2vec2,
    VocoderConfig: speecht5_hifigan,
    VideoVQAutoencoderConfig: emu3_vqgan,
}

Config = (
    MultimodalLMConfig | DualEncoderConfig | SoundTextConfig | EncoderConfig | TextConfig | SegmenterConfig
    | VocoderConfig | VQAutoencoderConfig | VideoVQAutoencoderConfig
)  # fmt: skip
MODELS: dict[type, Callable[..., Any]] = {
    MultimodalLMConfig: MultimodalLM,
    DualEncoderConfig: DualEncoder,
    SoundTextConfig: SoundText,
    SegmenterConfig: Segmenter,
    **dict.fromkeys(TEXT_TOWERS, Tower),
    VocoderConfig: VocoderModel,
    VQAutoencoderConfig: CodecModel,
    VideoVQAutoencoderConfig: CodecModel,
    **dict.fromkeys(ENCODERS, Tower),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """What a directory holds.

    Attributes:
        config: ours; its class says which model it is, see `model_of`.
        params: nested dicts, blocks stacked.
        hf_config: config.json as it stands there.
        generation_config: generation_config.json, or None.
    """

    config: Config
    params: dict[str, Any]
    hf_config: dict[str, Any]
    generation_config: dict[str, Any] | None = None


def model_of(config: Config, **options: Any) -> Any:
    """The MultimodalLM, DualEncoder, SoundText or Tower of a config; `options` are dtype, param_dtype, remat."""
    return MODELS[type(config)](config, **options)


def family_of(config: Config, hf_config: Mapping[str, Any] | None = None) -> Any:
    """The family that a config of ours is written as; of several that can say all of it, that of `hf_config`.

    Raises:
        ConfigError: no family can; the message names the options.
    """
    if isinstance(config, MultimodalLMConfig):
        find, families = (system_family, SYSTEMS) if config.encoders or config.codes else (_text_family, TEXT)
        return find(config, families, (hf_config or {}).get("model_type"))
    if isinstance(config, DualEncoderConfig):
        return siglip if config.logit_bias else clip
    if isinstance(config, ViTConfig):
        return tower_family(config)
    if isinstance(config, VideoViTConfig):
        return vivit if config.class_token else videomae
    if isinstance(config, VQAutoencoderConfig):
        return janus_vqgan if config.decodes else chameleon_vqgan
    if type(config) in TOWERS:
        return TOWERS[type(config)]
    if isinstance(config, BidirectionalTextConfig):
        return clap_text if config.position == "learned" else t5_encoder
    if isinstance(config, TextEncoderConfig):
        return clip if config.causal else siglip
    raise ConfigError(
        f"transformers has no class for an encoder of kind {config.kind!r} alone; mmjax's own format keeps it: "
        'save_pretrained(directory, format="mmjax")'
    )


def _text_family(config: MultimodalLMConfig, families: Mapping[str, TextFamily], preferred: str | None) -> Any:
    if isinstance(config.backbone, EncoderDecoderConfig):
        return encoder_decoder_family(config.backbone)
    return text_family(config.backbone, families, preferred)


def read_config(directory: str | os.PathLike) -> tuple[Config, dict[str, Any]]:
    """Our config and config.json of a directory.

    Raises:
        FileNotFoundError: there is no config.json.
        ConfigError: it is no JSON, of a family that is not supported, quantised, or has unsupported options.
    """
    hf = _json(Path(directory) / "config.json")
    if hf is None:
        raise FileNotFoundError(f"{directory} has no config.json")
    kind = hf.get("model_type")
    if kind not in FAMILIES and _half(hf) is None:
        known = ", ".join(FAMILIES)
        raise ConfigError(
            f"{directory}/config.json: model_type {kind!r} is not supported.{nearest(str(kind), FAMILIES)} "
            f"Supported are {known}"
        )
    if hf.get("quantization_config"):
        method = hf["quantization_config"].get("quant_method", "unknown")
        raise ConfigError(f"{directory}/config.json: weights quantised with {method!r} are not supported")
    return (_half(hf) or FAMILIES[kind]).config_from_hf(hf), hf


def _half(hf: Mapping[str, Any]) -> ModuleType | None:
    """The family of a model that is half of what its model type says, or None."""
    return next((HALVES[name] for name in hf.get("architectures") or () if name in HALVES), None)


def load(
    directory: str | os.PathLike, dtype: str = "float32", put: Callable[[str, np.ndarray], Any] | None = None
) -> Loaded:
    """Reads a directory that transformers' `save_pretrained` wrote, or one from the hub, without torch.

    Args:
        directory: holds config.json and weights (safetensors or pytorch_model.bin, sharded or not), in any of
            the spellings of names that transformers has had.
        dtype: of the params, "float32" or "bfloat16"; values are cast to it.
        put: (path, array [numpy]) -> what stands in params, e.g. the array placed on a mesh; a jax array on
            the default device unless told. Called for one finished leaf at a time.

    Raises:
        FileNotFoundError: no config.json or no weights.
        ConfigError: an unsupported family or option.
        WeightsError: damaged files; or one list of every missing, left-over and misshapen tensor.
    """
    config, hf = read_config(directory)
    family = _half(hf) or FAMILIES[hf["model_type"]]
    tensors = rename(read_directory(directory), family.rewrites(config))
    if hasattr(family, "settle"):
        config, tensors = family.settle(config, tensors)
    shapes = model_of(config, param_dtype=dtype).param_shapes()
    put = put or (lambda path, array: jnp.array(array))
    try:
        params = import_params(family.table(config), tensors, shapes, put, family.IGNORE)
    except WeightsError as error:
        raise WeightsError(f"{directory}: {error}") from error
    return Loaded(config, params, hf, _json(Path(directory) / "generation_config.json"))


def save(
    directory: str | os.PathLike,
    config: Config,
    params: Mapping[str, Any],
    hf_config: Mapping[str, Any] | None = None,
    generation_config: Mapping[str, Any] | None = None,
    max_shard_size: int = 5 * 10**9,
) -> list[Path]:
    """Writes a directory that transformers' `from_pretrained` loads, with the same outputs.

    LoRA leaves are merged into the kernels they adapt.

    Args:
        directory: made if need be.
        config, params: ours.
        hf_config: a config.json whose other keys (token ids, initialisation, ...) are kept.
        generation_config: content of generation_config.json; language models get one in any case.
        max_shard_size: bytes of a weights file, see `write_directory`.

    Returns:
        The files written.

    Raises:
        ConfigError: no family can express this config.
        WeightsError: the params do not fit the config.
    """
    family = family_of(config, hf_config)
    if isinstance(config, MultimodalLMConfig) and config.backbone.lora is not None:
        params = {**params, "backbone": merge_lora(params["backbone"], config.backbone.lora)}
        config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, lora=None))
    leaves = flatten(params)
    expected = flatten(model_of(config).param_shapes())
    wrong = [
        f"{path}: {tuple(leaves[path].shape)}, the config says {tuple(spec.shape)}"
        for path, spec in expected.items()
        if path in leaves and tuple(leaves[path].shape) != tuple(spec.shape)
    ]
    if wrong:
        raise WeightsError("params that do not fit the config:\n  " + "\n  ".join(wrong))
    out = family.config_to_hf(config, hf_config)
    out["dtype"] = str(np.dtype(next(iter(leaves.values())).dtype))
    directory = Path(directory)
    written = write_directory(directory, export_params(family.table(config), params), max_shard_size)
    written.append(_write_json(directory / "config.json", out))
    if isinstance(config, MultimodalLMConfig):
        text = {**out, **out.get("text_config", {})}
        ends = {key: text.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        ends = {key: value for key, value in ends.items() if value is not None}
        ends = dict(generation_config or ends)
        if isinstance(config.backbone, EncoderDecoderConfig):
            ends.setdefault("decoder_start_token_id", config.backbone.start_token)
        written.append(_write_json(directory / "generation_config.json", ends))
    return written


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return path
