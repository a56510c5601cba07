"""What a config describes, counted from its shapes: parameters, tokens of an item, FLOPs.

Nothing is typed in and nothing computed: parameters are shapes, FLOPs are read from traced programs.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import configs
from mmjax.config import from_dict
from mmjax.configuration import load_config, to_plain
from mmjax.data.contracts import Media, TextStream
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.paths import flatten
from mmjax.projectors.tiles import TilesConfig
from mmjax.recipes.assemble import TrainConfig
from mmjax.train.flops import StepFlops, traced_flops


def describe_system(name: str, size: str | None = None) -> dict[str, dict[str, Any]]:
    """Size -> `describe_model` of a system of `configs`; {} for one whose config names no model, such as the demo.

    Args:
        name: of the system.
        size: one of its sizes; None counts all.

    Raises:
        ConfigError: no such size.
    """
    counted = {}
    for one in configs.SYSTEMS[name]["sizes"] if size is None else (size,):
        plain = to_plain(load_config(f"{name}:{one}"))
        known = plain.get("model") is not None
        counted[one] = describe_model(from_dict(TrainConfig, plain, "config").model) if known else {}
    return counted


def describe_model(config: MultimodalLMConfig) -> dict[str, Any]:
    """Counts of one model.

    Returns:
        "parameters": part ("backbone", "encoders/image", ...) -> number, and "total"; "tokens": port -> LLM tokens of
        the item that "items" says in words; "item_flops": port -> forward FLOPs of encoder and projector for it;
        "token_flops": forward FLOPs of one token in the LLM without attention's products, which grow with the
        context; of an encoder-decoder "read_flops" of a token that is read besides it.
    """
    model = MultimodalLM(config)
    shapes = model.param_shapes()
    parameters: dict[str, int] = {}
    for path, leaf in flatten(shapes).items():
        part = "backbone" if path.startswith("backbone/") else "/".join(path.split("/")[:2])
        parameters[part] = parameters.get(part, 0) + math.prod(leaf.shape)
    counts: dict[str, Any] = {"parameters": {**parameters, "total": sum(parameters.values())}}
    examples = {port: _example(config, port) for port in config.encoders}
    counts["items"] = {port: words for port, (words, *_) in examples.items()}
    counts["tokens"] = {port: tokens for port, (_, tokens, _) in examples.items()}
    media = {port: item for port, (*_, item) in examples.items()}

    def forward(*ports: str) -> float:
        return traced_flops(model.encode_media, shapes, {port: media[port] for port in ports})

    # A region is read from the features of its image.
    counts["item_flops"] = {
        port: forward(config.regions[port], port) - forward(config.regions[port])
        if port in config.regions
        else forward(port)
        for port in examples
    }
    if config.codes is not None:
        codes, (height, width) = config.codes, config.codes.grid
        side = codes.maps.downsampling
        image = jax.ShapeDtypeStruct((1, height * side, width * side, codes.maps.image_channels), jnp.float32)
        encode = lambda params, image: model.codes(params, "encode", image)
        counts["items"][codes.port] = f"image of {height} x {width} codes"
        counts["tokens"][codes.port] = codes.length()
        counts["item_flops"][codes.port] = traced_flops(encode, shapes, image)
    return counts | _token_flops(model, shapes)


def _example(config: MultimodalLMConfig, port: str) -> tuple[str, int, Media]:
    """An item in words, its LLM tokens, and what its encoder takes of it, as shapes."""
    encoder, projector = config.encoders[port], config.projectors.get(port)
    packed, entries, grid, size = getattr(encoder, "packed", False), 1, None, None
    words = " x ".join(map(str, encoder.item_shape))
    if isinstance(projector, TilesConfig):
        side = projector.tile_size
        if projector.frames == "none":
            size = (2 * side, 2 * side)
            entries, words = projector.num_entries(None, size), f"image of {size[0]} x {size[1]} pixels"
        else:
            entries = 8
            grid, words = (entries, 1, 1), f"video of {entries} frames"
    elif port in config.regions:
        words = "box" if encoder.mask_size is None else f"mask of {words} pixels"
    elif packed:
        grid = (1, 32, 32)
        words = "image of 32 x 32 patches"
    elif len(encoder.item_shape) == 3 and encoder.item_shape[-1] == 3:
        words = f"image of {encoder.item_shape[0]} x {encoder.item_shape[1]} pixels"
    tokens = config.num_tokens(port, grid, size)
    shape = (math.prod(grid), *encoder.item_shape[1:]) if packed else (entries, *encoder.item_shape)
    values = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    segments = jax.ShapeDtypeStruct((1, shape[0]), jnp.int32)
    grids = np.array([[grid]], np.int32) if packed else None
    return words, tokens, Media(values, segments, grids, text=_instruction(projector))


def _instruction(projector: Any) -> Any:
    """The words that a Q-Former reads: one, where it reads any."""
    if getattr(projector, "vocab_size", None) is None:
        return None
    one = np.ones((1, 1), np.int32)
    return TextStream(one, one, one)


def _token_flops(model: MultimodalLM, shapes: Any) -> dict[str, float]:
    if model.config.streams == ("text",):
        step = StepFlops(model, ())
        return {"token_flops": step.per_token + step.per_target}
    one, mask = np.ones((1, 1), np.int32), np.ones((1, 1, 1), bool)
    embedding = jax.ShapeDtypeStruct((1, 1, model.config.backbone.width), jnp.float32)
    keys = jax.eval_shape(model.cross_keys, shapes, embedding)

    def write(params, x, keys):
        hidden, _ = model.step(params, x, one, mask, memory=(keys, mask))
        return model.logits(params, hidden)

    read = lambda params: model.cross_keys(params, model.read(params, TextStream(one, one, one)))
    return {"token_flops": traced_flops(write, shapes, embedding, keys), "read_flops": traced_flops(read, shapes)}
