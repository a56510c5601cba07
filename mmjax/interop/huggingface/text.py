"""What a family of plain LLMs is: names of weights and of options, walked in both directions.

A family's file holds one TextFamily. Which family a decoder is written as is found by asking: the first whose
config.json, read again, gives the same decoder.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.interop.huggingface.experts import split_experts
from mmjax.interop.huggingface.spelling import (
    ACTIVATIONS,
    ACTIVATIONS_TO_HF,
    Json,
    activation_from_hf,
    fresh,
    rope_from_hf,
    rope_to_hf,
    rotary_fraction_from_hf,
)
from mmjax.interop.table import FLAT, IDENTITY, LINEAR, Linear, Matrix, Part, Rewrite, Row
from mmjax.interop.tensors import Tensors
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.paths import flatten

# Buffers that older versions saved and that follow from the config.
IGNORE = (r".*\.rotary_emb\.inv_freq", r".*\.position_ids", r".*\.(attn|attention)\.(bias|masked_bias)")
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True, eq=False)
class TextFamily:
    """One family: what its config.json and its tensors are called.

    Attributes:
        kind, architecture: `model_type`, and the class that loads it.
        keys: option of DecoderConfig -> their key, where the value is the same.
        defaults: their key -> what their config class assumes where config.json is silent; every key that has
            no default of None.
        options: options of DecoderConfig that all models of the family have.
        only: their key -> the one value that is supported here.
        aliases: other keys of theirs -> the key that stands for the same here.
        activation: their key of the activation, or None where `options` fixes it.
        rope: "full", "partial" (they may rotate a part of the head), or "" (no keys of their own kind for it).
        read, write: what is left of the options, from config.json and to it.
        names: our module -> theirs, e.g. "attn/q": "layers.{i}.self_attn.q_proj". Modules of one name are
            pieces of one tensor, in the order in which they stand here.
        model: the prefix of all names but the output layer's.
        head: the output layer's weight.
        by_head: whether a fused tensor holds q, k and v of one key/value head, then those of the next.
        conv1d: whether the kernels of blocks are [in, out].
        spellings: other spellings of names, see `mmjax.interop.table.rename`.
    """

    kind: str
    architecture: str
    names: Mapping[str, str]
    keys: Mapping[str, str]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    only: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    activation: str | None = "hidden_act"
    rope: str = "full"
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda hf: {}
    write: Callable[[DecoderConfig], Json] = lambda config: {}
    model: str = "model."
    head: str = "lm_head.weight"
    by_head: bool = False
    conv1d: bool = False
    spellings: Sequence[Rewrite] = ()

    IGNORE = IGNORE

    def decoder_from_hf(self, hf: Mapping[str, Any]) -> DecoderConfig:
        """A config.json -> DecoderConfig.

        Raises:
            ConfigError: an option that is not supported.
        """
        hf = {**self.defaults, **{self.aliases.get(key, key): value for key, value in hf.items()}}
        for key, value in self.only.items():
            if hf.get(key) is not None and hf[key] != value:
                raise ConfigError(f"config.json: {key} {hf[key]!r} is not supported, only {value!r}")
        found = {ours: hf.get(theirs) for ours, theirs in self.keys.items()}
        found["num_kv_heads"] = found.get("num_kv_heads") or found["num_heads"]
        found["head_dim"] = found.get("head_dim") or found["width"] // found["num_heads"]
        found["mlp_width"] = found.get("mlp_width") or 4 * found["width"]
        if self.activation:
            found["activation"] = activation_from_hf(hf, self.activation, "")
        if self.rope:
            partial = self.rope == "partial"
            theta, scaling = rope_from_hf(hf, found["max_positions"], partial)
            found |= {"rope_theta": theta, "rope_scaling": scaling}
            found |= {"rotary_fraction": rotary_fraction_from_hf(hf)} if partial else {}
        return DecoderConfig(**{**found, **self.options, **self.read(hf)})

    def decoder_to_hf(self, config: DecoderConfig, template: Mapping[str, Any] | None = None) -> Json:
        """DecoderConfig -> config.json, over the other keys of `template`.

        Options that the family does not have are left out: `text_family` finds the family that has them all.
        """
        out = {"bos_token_id": None, "eos_token_id": None, **fresh(template)}
        out = {key: value for key, value in out.items() if key not in self.aliases}
        out |= {key: value for key, value in self.only.items() if out.get(key, value) is not None}
        out |= {theirs: getattr(config, ours) for ours, theirs in self.keys.items()}
        if self.activation and ACTIVATIONS.get(out.get(self.activation)) != config.activation:
            out[self.activation] = ACTIVATIONS_TO_HF.get(config.activation, config.activation)
        if self.rope:
            fraction = config.rotary_fraction if self.rope == "partial" else None
            out |= rope_to_hf(config.rope_theta, config.rope_scaling, fraction)
        return {**out, **self.write(config), "model_type": self.kind, "architectures": [self.architecture]}

    def rows(self, config: DecoderConfig, model: str | None = None, head: str | None = None) -> list[Row]:
        """The table of a decoder; `model` and `head` where names have another prefix than a plain LLM's.

        Raises:
            ConfigError: the family has no name for a part of the decoder.
        """
        model, head = self.model if model is None else model, head or self.head
        leaves = _leaves(dataclasses.replace(config, lora=None))
        rows = []
        for path in leaves:
            module, leaf = path.removeprefix("blocks/").rsplit("/", 1)
            if module == "lm_head":
                theirs = head.removesuffix(".weight")
            elif module in self.names:
                theirs = model + self.names[module]
            else:
                raise ConfigError(f"transformers' {self.architecture} has nothing like our backbone/{path}")
            rows.append(Row(f"backbone/{path}", f"{theirs}.{LEAVES[leaf]}", self._layout(config, path, leaves)))
        return rows

    def _layout(self, config: DecoderConfig, path: str, leaves: Mapping[str, Sequence[int]]) -> Any:
        """The transform of one leaf."""
        block, leaf = path.startswith("blocks/"), path.rsplit("/", 1)[1]
        in_dims = 2 if "/attn/o/" in path else 1
        if leaf == "kernel":
            inner = Matrix(in_dims) if self.conv1d and block else LINEAR if in_dims == 1 else Linear(in_dims)
        else:
            inner = FLAT if leaf == "bias" else IDENTITY
        module = path.removeprefix("blocks/").rsplit("/", 1)[0]
        if module.endswith("_norm"):
            inner = IDENTITY  # also where every head has its own
        pieces = [name for name in self.names if self.names[name] == self.names.get(module)]
        if len(pieces) < 2:
            return inner
        axis = 1 if leaf == "kernel" and self.conv1d else 0
        sizes = tuple(inner.theirs_shape(leaves[f"blocks/{name}/{leaf}"][1:])[axis] for name in pieces)
        groups = config.num_kv_heads if self.by_head else 1
        return Part(pieces.index(module), sizes, inner, axis, groups)

    # What every family has, see `mmjax.interop.huggingface`.

    def rewrites(self, config: Any = None) -> list[Rewrite]:
        """Brings the names of the model without its output layer to those of the whole."""
        tops = "|".join(sorted({name.split(".")[0] for name in self.names.values()}))
        return [(rf"^({tops})\.", rf"{self.model}\1."), *self.spellings]

    def config_from_hf(self, hf: Mapping[str, Any]) -> MultimodalLMConfig:
        """config.json -> our config of a plain LLM."""
        return MultimodalLMConfig(self.decoder_from_hf(hf))

    def config_to_hf(self, config: MultimodalLMConfig, template: Mapping[str, Any] | None = None) -> Json:
        """Our config -> config.json, over the other keys of `template`."""
        return self.decoder_to_hf(config.backbone, template)

    def table(self, config: MultimodalLMConfig) -> list[Row]:
        """The rows of the whole model."""
        return self.rows(config.backbone)

    def settle(self, config: MultimodalLMConfig, tensors: Tensors) -> tuple[MultimodalLMConfig, dict[str, Any]]:
        """Lets the tensors correct what the config says, see `settle_head`; fused experts are split."""
        if config.backbone.moe is not None:
            parts = (self.names[f"mlp/experts/{part}"].rsplit(".", 1)[1] for part in ("gate", "up", "down"))
            tensors = split_experts(tensors, *parts)
        embedding = f"{self.model}{self.names['embed']}.weight"
        backbone, tensors = settle_head(config.backbone, tensors, embedding, self.head)
        return dataclasses.replace(config, backbone=backbone), tensors


def settle_head(
    config: DecoderConfig, tensors: Tensors, embedding: str, head: str
) -> tuple[DecoderConfig, dict[str, Any]]:
    """Agrees config and file about a tied output layer.

    A file of a tied model may hold the matrix under either name or both. Where both are there and differ,
    the model is not tied after all, whatever its config says (transformers 5 decides so too).

    Returns:
        The config, and the tensors with the one name or both that the table then asks for.
    """
    tensors = dict(tensors)
    if not config.tie_embeddings or head not in tensors:
        return config, tensors
    if embedding not in tensors:
        tensors[embedding] = tensors[head]
    elif not np.array_equal(np.asarray(tensors[embedding]), np.asarray(tensors[head])):
        return dataclasses.replace(config, tie_embeddings=False), tensors
    del tensors[head]
    return config, tensors


def text_family(
    config: DecoderConfig, families: Mapping[str, TextFamily], preferred: str | None = None
) -> TextFamily:
    """The first of `families`, `preferred` before all, that can say every option of a decoder but LoRA.

    Raises:
        ConfigError: none can; the message names the options that no family has, and what the nearest lacks.
    """
    if not isinstance(config, DecoderConfig):
        raise ConfigError(f"this takes a decoder as its LLM, not a backbone of kind {config.kind!r}")
    lost = {}
    for kind in sorted(families, key=lambda kind: kind != preferred):
        lost[kind] = _lost(config, families[kind])
        if not lost[kind]:
            return families[kind]

    def said(names):
        return ", ".join(f"backbone.{name} {getattr(config, name)!r}" for name in sorted(names))

    never = set.intersection(*lost.values())
    nearest = min(lost, key=lambda kind: len(lost[kind]))
    message = f"no family of LLMs that transformers has can be written with {said(never)}" if never else (
        "no family of LLMs that transformers has can be written with these options together"
    )  # fmt: skip
    raise ConfigError(f"{message}; the nearest, {nearest}, would lose {said(lost[nearest])}")


def _lost(config: DecoderConfig, family: TextFamily) -> set[str]:
    """The options whose value does not come back from the family's config.json."""
    config = _plain(config)
    names = {field.name for field in dataclasses.fields(config)}
    try:
        back = _plain(family.decoder_from_hf(family.decoder_to_hf(config)))
    except ConfigError:
        return names
    return {name for name in names if getattr(back, name) != getattr(config, name)}


def _plain(config: DecoderConfig) -> DecoderConfig:
    """The same decoder without what says nothing about its tensors or its text alone.

    There is no LoRA, its windows are spelt in the one shortest way and hold for all, its experts computed in the usual.
    """
    if config.moe is not None:
        usual = dataclasses.replace(config.moe, routing="auto")
        config = dataclasses.replace(config, moe=usual, mlp_width=usual.width)  # of no layer
    windowed = windows(config.sliding_window, config.window_layers)
    return dataclasses.replace(config, lora=None, window_pairs=True, **windowed)


def windows(size: int | None, kinds: Sequence[bool]) -> dict[str, Any]:
    """The options of DecoderConfig for windows of `size` in the layers that `kinds` says, one of all layers each."""
    if size is None or not any(kinds):
        return {"sliding_window": None, "window_pattern": (True,)}
    period = next(n for n in range(1, len(kinds) + 1) if all(k == kinds[i % n] for i, k in enumerate(kinds)))
    return {"sliding_window": size, "window_pattern": tuple(map(bool, kinds[:period]))}


def layer_types(config: DecoderConfig) -> list[str]:
    """What transformers' configs call the layers of a decoder."""
    return ["sliding_attention" if windowed else "full_attention" for windowed in config.window_layers]


def windowed_layers(hf: Mapping[str, Any], default: Callable[[int], bool]) -> list[bool]:
    """For each layer of a config.json whether it is windowed; `default` tells where there is no layer_types."""
    count = hf["num_hidden_layers"]
    kinds = hf.get("layer_types")
    if kinds is None:
        return [default(layer) for layer in range(count)]
    unknown = set(kinds) - {"sliding_attention", "full_attention"}
    if unknown or len(kinds) != count:
        raise ConfigError(
            f"config.json: layer_types must name sliding_attention or full_attention for each of {count} layers, "
            f"got {len(kinds)} with {sorted(set(kinds))}"
        )
    return [kind == "sliding_attention" for kind in kinds]


@functools.cache
def _leaves(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Path and shape of every leaf of a decoder."""
    shapes = MultimodalLM(MultimodalLMConfig(config)).param_shapes()["backbone"]
    return {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
