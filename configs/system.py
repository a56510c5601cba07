"""What the config of every system has besides its own parts and stages: put together here, once."""

from collections.abc import Mapping
from typing import Any

from configs.parts import Part
from mmjax.config import ConfigError, nearest

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}


def five(encoder: str, projector: str, llm: str, output: str = "none", generator: str = "none") -> dict[str, str]:
    """The survey's five parts in words."""
    return {
        "modality encoder": encoder,
        "input projector": projector,
        "LLM backbone": llm,
        "output projector": output,
        "modality generator": generator,
    }


def choose(name: str, arg: str, sizes: Mapping[str, Any]) -> Any:
    """The entry of `arg` among a system's SIZES.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if arg not in sizes:
        raise ConfigError(f"{name} has no size {arg!r}.{nearest(arg, sizes)} There are: {', '.join(sizes)}")
    return sizes[arg]


def square(side: int, **options: Any) -> dict[str, Any]:
    """CLIP's image recipe at `side` pixels: the shorter edge is resized, the middle is cut out."""
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}, **options}


def squeezed(side: int, **options: Any) -> dict[str, Any]:
    """BLIP's and SigLIP's image recipe: both edges are resized to `side` pixels."""
    return {"size": {"height": side, "width": side}, "do_center_crop": False, **options}


def frames(recipe: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The recipe of a video: `number` frames from its whole length, each as `recipe` says."""
    return {
        "do_center_crop": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        **recipe,
        "video_processor_type": "VideoMAEVideoProcessor",
        "mmjax": {"sampling": {"policy": "uniform", "num_frames": number}},
    }


def system(
    name: str,
    arg: str,
    llm: Part,
    encoders: Mapping[str, Part],
    projectors: Mapping[str, Part],
    stages: Mapping[str, Mapping[str, Any]],
    images: Mapping[str, Mapping[str, Any]],
    template: str,
    lengths: tuple[int, ...],
    media_tokens: Mapping[str, tuple[str, int]] | None = None,
    unmarked: tuple[str, ...] = (),
    new_rows: bool = False,
    signals: Mapping[str, tuple[str, ...]] | None = None,
    controls: tuple[str, ...] = (),
    **model: Any,
) -> dict[str, Any]:
    """The whole of a training config, see `mmjax.recipes.assemble.TrainConfig`.

    Args:
        name, arg: of the system and its size; "tiny", and what begins with it, has random weights, the byte tokenizer,
            float32.
        llm: the backbone. Ports without a token of their own get rows behind its vocabulary, which is then filled
            up to a multiple of 64.
        encoders, projectors: by port.
        stages: by name, in the order in which they run.
        images: port -> recipe; a port without one takes arrays as they are.
        template: jinja, see `configs.templates`.
        lengths: sequence lengths that programs are compiled for.
        media_tokens: port -> (what the template prints, its id), where the tokenizer has such tokens.
        unmarked: ports that are read inside the backbone and leave no token in the text.
        new_rows: whether the rows of the ports' tokens are leaves of their own, so that they can be trained apart.
        signals: port of a generator -> the tokens that are its signal, which get rows behind those of the media. Not
            for tokenizers that have tokens for media: what stands behind those is not known here.
        controls: control tokens that the template and the recipes write; a tokenizer that lacks some gets them behind
            the placeholders.
        model: further fields of `MultimodalLMConfig`. An image that stands in the text as its `codes` is printed by the
            template as its port between angle brackets.
    """
    tiny = arg.startswith("tiny")
    # Of ports that share a signal, what a conversation shows is a part of the first.
    firsts = {tokens[0]: port for port, tokens in reversed((signals or {}).items())}
    spelt = dict.fromkeys(token for tokens in (signals or {}).values() for token in tokens)
    if tiny or media_tokens is None:
        # The byte tokenizer ends with <s> and </s>.
        first = 258 if tiny else llm["vocab_size"]
        ports = [port for port in encoders if port not in unmarked]
        printed = [f"<{port}>" if media_tokens is None else media_tokens[port][0] for port in ports]
        media_tokens = dict(zip(ports, zip(printed, range(first, first + len(printed)), strict=True), strict=True))
        llm = llm if tiny else {**llm, "vocab_size": -(-(first + len(ports) + len(spelt)) // 64) * 64}
        llm = {**llm, "new_tokens": llm["vocab_size"] - first} if new_rows else llm
    if signals:
        behind = 1 + max((number for _, number in media_tokens.values()), default=first - 1)
        rows = {token: behind + number for number, token in enumerate(spelt)}
        model["signal_tokens"] = {port: tuple(rows[token] for token in tokens) for port, tokens in signals.items()}
    own = [port for port in encoders if port not in model.get("shared", {})]
    # Images that are codes.
    written = [model["codes"]["port"]] if "codes" in model else []
    return {
        "name": f"{name}:{arg}",
        "seed": 0,
        "dtype": "float32" if tiny else "bfloat16",
        "param_dtype": "float32",
        "remat": "none" if tiny else "full",
        "model": {
            "backbone": llm,
            "encoders": dict(encoders),
            "projectors": dict(projectors),
            "media_tokens": {port: number for port, (_, number) in media_tokens.items()},
            **model,
        },
        # A checkpoint to go on from instead of the parts below.
        "from_pretrained": None,
        # Where pretrained parts come from: a directory in transformers' layout, or for the backbone a .gguf
        # file. A part with None starts from random weights.
        "init": {
            "backbone": None, "encoders": dict.fromkeys(own), "generators": dict.fromkeys(model.get("generators", ())),
        },
        "processor": {
            # None: the tokenizer of init.backbone. "bytes": one token for each byte.
            "tokenizer": "bytes" if tiny else None,
            "placeholders": {
                **{port: f"<{port}>" for port in unmarked}, **{port: text for port, (text, _) in media_tokens.items()},
                **{port: text for text, port in firsts.items()}, **{port: f"<{port}>" for port in written},
            },
            "controls": controls,
            "signals": dict(signals or {}),
            "images": {port: dict(recipe) for port, recipe in images.items()},
            "template": template,
            "lengths": (64, 128, 256, 512) if tiny else lengths,
            "items": {
                **dict.fromkeys(encoders, (0, 1)),
                **{port: (0, 1, 2, 4) for port in (*(signals or {}), *written) if port in images},
            },
            "too_long": "truncate",
            "reader": None,
        },
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
        "stages": dict(stages),
    }
