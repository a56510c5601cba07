"""SAM (transformers' SamModel) and its image encoder alone (SamVisionModel).

https://github.com/huggingface/transformers/tree/main/src/transformers/models/sam
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.sam import SamEncoderConfig
from mmjax.generators.mask_decoder import HYPER_DEPTH, MaskDecoderConfig
from mmjax.interop.huggingface.clip import norm_rows
from mmjax.interop.huggingface.spelling import ACTIVATIONS_TO_HF, Json, activation_from_hf, fresh, square
from mmjax.interop.huggingface.vit import three_channels
from mmjax.interop.segmenter import SegmenterConfig
from mmjax.interop.table import CONV, FLAT, LINEAR, Linear, Part, Rewrite, Row, Squeezed

# The positions of prompts are those of the image's map.
IGNORE = (r"prompt_encoder\.shared_embedding\.positional_embedding",)
# What transformers' blocks divide attention's width by, whatever attention_downsample_rate says, which only the last
# attention heeds.
REDUCTION = 2
# Rows of an embedding of a single token.
ALONE = Squeezed((0,))


def rewrites(config: Any = None) -> list[Rewrite]:
    """Names are the same everywhere."""
    return []


def encoder_from_hf(hf: Mapping[str, Any]) -> SamEncoderConfig:
    """A `sam_vision_model` config -> SamEncoderConfig; what it leaves out has the defaults of SamVisionConfig.

    Raises:
        ConfigError: images that are not square or do not have three channels.
    """
    three_channels(hf)
    width, num_layers = hf.get("hidden_size", 768), hf.get("num_hidden_layers", 12)
    window = hf.get("window_size", 14)
    named = hf.get("global_attn_indexes", (2, 5, 8, 11))
    return SamEncoderConfig(
        image_size=square(hf, "image_size", 1024),
        patch_size=square(hf, "patch_size", 16),
        width=width,
        num_layers=num_layers,
        num_heads=hf.get("num_attention_heads", 12),
        mlp_width=hf.get("mlp_dim") or int(width * hf.get("mlp_ratio", 4.0)),
        out_width=hf.get("output_channels", 256),
        window_size=window,
        # A window of 0 is the whole map; layers that are not there are not named.
        global_layers=tuple(layer for layer in range(num_layers) if layer in named or window == 0),
        activation=activation_from_hf(hf, "hidden_act", "gelu"),
        norm_eps=hf.get("layer_norm_eps", 1e-6),
        qkv_bias=hf.get("qkv_bias", True),
        absolute_positions=hf.get("use_abs_pos", True),
        relative_positions=hf.get("use_rel_pos", True),
    )


def encoder_to_hf(config: SamEncoderConfig) -> Json:
    """SamEncoderConfig -> the keys of a `sam_vision_model` config."""
    return {
        "model_type": "sam_vision_model",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "mlp_dim": config.mlp_width,
        "mlp_ratio": config.mlp_width / config.width,
        "output_channels": config.out_width,
        "num_pos_feats": config.out_width // 2,
        "window_size": config.window_size,
        "global_attn_indexes": list(config.global_layers),
        "hidden_act": ACTIVATIONS_TO_HF[config.activation],
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
        "use_abs_pos": config.absolute_positions,
        "use_rel_pos": config.relative_positions,
    }


def decoder_from_hf(hf: Mapping[str, Any], num_pos_feats: int) -> MaskDecoderConfig:
    """The two configs of prompts and masks in a `sam` config -> MaskDecoderConfig.

    Raises:
        ConfigError: prompts, positions and masks of different widths; other kinds of points than four; an
            attention_downsample_rate that blocks and the last attention would not share.
    """
    prompts, masks = hf.get("prompt_encoder_config") or {}, hf.get("mask_decoder_config") or {}
    width = masks.get("hidden_size", 256)
    widths = prompts.get("hidden_size", 256), 2 * num_pos_feats
    if set(widths) != {width}:
        raise ConfigError(
            f"config.json: mask_decoder_config.hidden_size is {width}, prompt_encoder_config.hidden_size {widths[0]}, "
            f"twice vision_config.num_pos_feats {widths[1]}; only equal ones are supported"
        )
    if prompts.get("num_point_embeddings", 4) != 4:
        raise ConfigError(
            f"config.json: num_point_embeddings {prompts['num_point_embeddings']} is not supported, only 4"
        )
    reduction = masks.get("attention_downsample_rate", REDUCTION)
    if reduction != REDUCTION:
        raise ConfigError(f"config.json: attention_downsample_rate {reduction} is not supported, only {REDUCTION}")
    image_size = square(prompts, "image_size", 1024)
    return MaskDecoderConfig(
        width=width,
        image_size=image_size,
        grid_size=image_size // square(prompts, "patch_size", 16),
        num_layers=masks.get("num_hidden_layers", 2),
        num_heads=masks.get("num_attention_heads", 8),
        mlp_width=masks.get("mlp_dim", 2048),
        attention_reduction=REDUCTION,
        num_masks=masks.get("num_multimask_outputs", 3),
        iou_depth=masks.get("iou_head_depth", 3),
        iou_width=masks.get("iou_head_hidden_dim", 256),
        activation=activation_from_hf(masks, "hidden_act", "relu"),
        norm_eps=masks.get("layer_norm_eps", 1e-6),
        mask_width=prompts.get("mask_input_channels", 16),
        prompt_activation=activation_from_hf(prompts, "hidden_act", "gelu"),
        prompt_norm_eps=prompts.get("layer_norm_eps", 1e-6),
    )


def config_from_hf(hf: Mapping[str, Any]) -> SegmenterConfig | SamEncoderConfig:
    """config.json -> our config."""
    if hf["model_type"] == "sam_vision_model":
        return encoder_from_hf(hf)
    vision = hf.get("vision_config") or {}
    return SegmenterConfig(encoder_from_hf(vision), decoder_from_hf(hf, vision.get("num_pos_feats", 128)))


def config_to_hf(config: SegmenterConfig | SamEncoderConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`.

    Raises:
        ConfigError: a mask decoder whose attention_reduction is not that of transformers' blocks.
    """
    out = fresh(template)
    if isinstance(config, SamEncoderConfig):
        return {**out, **encoder_to_hf(config), "architectures": ["SamVisionModel"]}
    decoder = config.decoder
    if decoder.attention_reduction != REDUCTION:
        raise ConfigError(
            f"transformers' SamModel has attention_reduction={REDUCTION}, this decoder has "
            f"{decoder.attention_reduction}"
        )
    prompts = {
        "model_type": "sam_prompt_encoder",
        "hidden_size": decoder.width,
        "image_size": decoder.image_size,
        "patch_size": config.encoder.patch_size,
        "image_embedding_size": decoder.grid_size,
        "mask_input_channels": decoder.mask_width,
        "num_point_embeddings": 4,
        "hidden_act": ACTIVATIONS_TO_HF[decoder.prompt_activation],
        "layer_norm_eps": decoder.prompt_norm_eps,
    }
    masks = {
        "model_type": "sam_mask_decoder",
        "hidden_size": decoder.width,
        "hidden_act": ACTIVATIONS_TO_HF[decoder.activation],
        "mlp_dim": decoder.mlp_width,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "attention_downsample_rate": decoder.attention_reduction,
        "num_multimask_outputs": decoder.num_masks,
        "iou_head_depth": decoder.iou_depth,
        "iou_head_hidden_dim": decoder.iou_width,
        "layer_norm_eps": decoder.norm_eps,
    }
    parts = {"vision_config": encoder_to_hf(config.encoder), "prompt_encoder_config": prompts,
             "mask_decoder_config": masks}  # fmt: skip
    parts = {key: {**fresh(out.get(key)), **part} for key, part in parts.items()}
    return {**out, **parts, "model_type": "sam", "architectures": ["SamModel"]}


def encoder_rows(config: SamEncoderConfig, ours: str = "", theirs: str = "vision_encoder.") -> list[Row]:
    """Rows of the image encoder; prefixes end in "/" and "."."""
    rows = [
        Row(f"{ours}patch_embed/kernel", f"{theirs}patch_embed.projection.weight", CONV),
        Row(f"{ours}patch_embed/bias", f"{theirs}patch_embed.projection.bias"),
    ]
    if config.absolute_positions:
        rows.append(Row(f"{ours}position_embedding", f"{theirs}pos_embed", ALONE))
    for number in (1, 2):
        rows.append(Row(f"{ours}neck_{number}/kernel", f"{theirs}neck.conv{number}.weight", CONV))
        rows += norm_rows(f"{ours}neck_{number}_norm", f"{theirs}neck.layer_norm{number}")
    if config.window_layers:
        rows += _block_rows(config, f"{ours}blocks/", theirs + "layers.{i}.", config.window_layers)
    for layer in config.global_layers:
        rows += _block_rows(config, f"{ours}global_{layer}/", f"{theirs}layers.{layer}.", None)
    return rows


def _block_rows(config: SamEncoderConfig, ours: str, theirs: str, layers: tuple[int, ...] | None) -> list[Row]:
    thirds = (config.width,) * 3
    rows = [
        Row(f"{ours}attn/o/kernel", f"{theirs}attn.proj.weight", Linear(2), layers),
        Row(f"{ours}attn/o/bias", f"{theirs}attn.proj.bias", layers=layers),
    ]
    for index, name in enumerate("qkv"):
        rows.append(Row(f"{ours}attn/{name}/kernel", f"{theirs}attn.qkv.weight", Part(index, thirds, LINEAR), layers))
        if config.qkv_bias:
            rows.append(Row(f"{ours}attn/{name}/bias", f"{theirs}attn.qkv.bias", Part(index, thirds, FLAT), layers))
    if config.relative_positions:
        rows.append(Row(f"{ours}attn/rows", f"{theirs}attn.rel_pos_h", layers=layers))
        rows.append(Row(f"{ours}attn/columns", f"{theirs}attn.rel_pos_w", layers=layers))
    for mine, number in (("attn_norm", 1), ("mlp_norm", 2)):
        rows.append(Row(f"{ours}{mine}/scale", f"{theirs}layer_norm{number}.weight", layers=layers))
        rows.append(Row(f"{ours}{mine}/bias", f"{theirs}layer_norm{number}.bias", layers=layers))
    for mine, number in (("up", 1), ("down", 2)):
        rows.append(Row(f"{ours}mlp/{mine}/kernel", f"{theirs}mlp.lin{number}.weight", LINEAR, layers))
        rows.append(Row(f"{ours}mlp/{mine}/bias", f"{theirs}mlp.lin{number}.bias", layers=layers))
    return rows


def decoder_rows(config: MaskDecoderConfig, ours: str = "decoder/") -> list[Row]:
    """Rows of prompts and masks."""
    prompts, theirs = f"{ours}prompts/", "prompt_encoder."
    rows = [
        Row(f"{prompts}positions", "shared_image_embedding.positional_embedding"),
        Row(f"{prompts}kinds", theirs + "point_embed.{i}.weight", ALONE),
        Row(f"{prompts}no_point", f"{theirs}not_a_point_embed.weight", ALONE),
        Row(f"{prompts}no_mask", f"{theirs}no_mask_embed.weight", ALONE),
        *_conv_rows(f"{prompts}mask_1", f"{theirs}mask_embed.conv1"),
        *_conv_rows(f"{prompts}mask_2", f"{theirs}mask_embed.conv2"),
        *_conv_rows(f"{prompts}mask_3", f"{theirs}mask_embed.conv3"),
        *norm_rows(f"{prompts}mask_1_norm", f"{theirs}mask_embed.layer_norm1"),
        *norm_rows(f"{prompts}mask_2_norm", f"{theirs}mask_embed.layer_norm2"),
    ]
    theirs = "mask_decoder."
    block = f"{theirs}transformer.layers." + "{i}."
    rows += [
        Row(f"{ours}iou_token", f"{theirs}iou_token.weight", ALONE),
        Row(f"{ours}mask_tokens", f"{theirs}mask_tokens.weight"),
        *_attention_rows(f"{ours}blocks/self_attn", f"{block}self_attn"),
        *_attention_rows(f"{ours}blocks/to_image", f"{block}cross_attn_token_to_image"),
        *_attention_rows(f"{ours}blocks/to_tokens", f"{block}cross_attn_image_to_token"),
        *_linear_rows(f"{ours}blocks/mlp/up", f"{block}mlp.lin1"),
        *_linear_rows(f"{ours}blocks/mlp/down", f"{block}mlp.lin2"),
        *_attention_rows(f"{ours}last_attn", f"{theirs}transformer.final_attn_token_to_image"),
        *norm_rows(f"{ours}last_norm", f"{theirs}transformer.layer_norm_final_attn"),
        *_conv_rows(f"{ours}upscale_1", f"{theirs}upscale_conv1"),
        *_conv_rows(f"{ours}upscale_2", f"{theirs}upscale_conv2"),
        *norm_rows(f"{ours}upscale_norm", f"{theirs}upscale_layer_norm"),
        *_forward_rows(HYPER_DEPTH, f"{ours}hyper", theirs + "output_hypernetworks_mlps.{i}"),
        *_forward_rows(config.iou_depth, f"{ours}iou_head", f"{theirs}iou_prediction_head"),
    ]
    for number, mine in enumerate(("self", "to_image", "mlp", "to_tokens"), start=1):
        rows += norm_rows(f"{ours}blocks/{mine}_norm", f"{block}layer_norm{number}")
    return rows


def _attention_rows(ours: str, theirs: str) -> list[Row]:
    rows = [
        Row(f"{ours}/o/kernel", f"{theirs}.out_proj.weight", Linear(2)),
        Row(f"{ours}/o/bias", f"{theirs}.out_proj.bias"),
    ]
    for name in "qkv":
        rows.append(Row(f"{ours}/{name}/kernel", f"{theirs}.{name}_proj.weight", LINEAR))
        rows.append(Row(f"{ours}/{name}/bias", f"{theirs}.{name}_proj.bias", FLAT))
    return rows


def _conv_rows(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/kernel", f"{theirs}.weight", CONV), Row(f"{ours}/bias", f"{theirs}.bias")]


def _linear_rows(ours: str, theirs: str) -> list[Row]:
    return [Row(f"{ours}/kernel", f"{theirs}.weight", LINEAR), Row(f"{ours}/bias", f"{theirs}.bias")]


def _forward_rows(depth: int, ours: str, theirs: str) -> list[Row]:
    names = [("in", "proj_in"), ("out", "proj_out")]
    names += [(f"hidden_{number}", f"layers.{number}") for number in range(depth - 2)]
    return [row for mine, name in names for row in _linear_rows(f"{ours}/{mine}", f"{theirs}.{name}")]


def table(config: SegmenterConfig | SamEncoderConfig) -> list[Row]:
    """The rows of the whole model, or of the image encoder alone."""
    if isinstance(config, SamEncoderConfig):
        return encoder_rows(config)
    return encoder_rows(config.encoder, "encoder/") + decoder_rows(config.decoder)
