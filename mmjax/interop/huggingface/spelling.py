"""How transformers spells options that several families share: activations, rotary positions, biases.

Both spellings of rotary options are read: `rope_theta` with `rope_scaling` (to transformers 4) and
`rope_parameters` (transformers 5); both are written.
"""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError, nearest
from mmjax.nn.rotary import TYPES, RopeScaling

Json = dict[str, Any]

ACTIVATIONS: dict[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
}
ACTIVATIONS_TO_HF: dict[str, str] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
}

# Keys of RopeScaling and theirs.
_ROPE_KEYS = {
    "factor": "factor",
    "original_max_positions": "original_max_position_embeddings",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "truncate": "truncate",
    "short_factor": "short_factor",
    "long_factor": "long_factor",
}
_ROPE_KEYS_OF_TYPE = {
    "linear": ("factor",),
    "llama3": ("factor", "original_max_positions", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        "original_max_positions",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
    "longrope": ("factor", "original_max_positions", "attention_factor", "short_factor", "long_factor"),
}

# What a config.json of an earlier conversion may hold and a new one must not repeat.
STALE = (
    "_name_or_path",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
)


def activation_from_hf(hf: Mapping[str, Any], key: str, default: str) -> str:
    """Our name of the activation under `key`.

    Raises:
        ConfigError: it is not known here.
    """
    name = hf.get(key) or default
    if name not in ACTIVATIONS:
        raise ConfigError(f"config.json: {key} {name!r} is not supported.{nearest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def rotary_fraction_from_hf(hf: Mapping[str, Any]) -> float:
    """Which part of each head's channels a config lets rotate."""
    given = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    return float(given.get("partial_rotary_factor") or hf.get("partial_rotary_factor") or 1.0)


def rope_from_hf(
    hf: Mapping[str, Any], max_positions: int, partial: bool = False
) -> tuple[float, RopeScaling | None]:
    """(rotary base, scaling or None) of a config; `partial` where a part of the head may be all that rotates.

    Raises:
        ConfigError: a type that is not supported, or rotary positions on a part of the head or by layer.
    """
    # transformers 5 lets an old rope_scaling override; files with both hold the same values.
    given = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in given.values()):
        raise ConfigError(
            f"config.json: rotary parameters that differ by layer are not supported: {sorted(given)}"
        )
    theta = float(given.get("rope_theta") or hf.get("rope_theta") or 10000.0)
    fraction = rotary_fraction_from_hf(hf)
    if fraction != 1.0 and not partial:
        raise ConfigError(f"config.json: partial_rotary_factor {fraction} is not supported, only 1.0")
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind == "su" or "short_factor" in given:
        kind = "longrope"  # what the first files of Phi-3 call "su" or "yarn"
    if kind not in TYPES:
        known = ", ".join(("default", *TYPES))
        raise ConfigError(f"config.json: rope type {kind!r} is not supported; supported are {known}")
    options = {ours: given[theirs] for ours, theirs in _ROPE_KEYS.items() if given.get(theirs) is not None}
    options = {key: value for key, value in options.items() if key in _ROPE_KEYS_OF_TYPE[kind]}
    if kind != "linear":
        original = hf.get("original_max_position_embeddings") or options.get("original_max_positions")
        options["original_max_positions"] = int(original or max_positions)
        options.setdefault("factor", max_positions / options["original_max_positions"])
    for key in {"short_factor", "long_factor"} & set(options):
        options[key] = tuple(map(float, options[key]))
    if "factor" not in options:
        raise ConfigError(f"config.json: rope scaling of type {kind!r} needs a factor")
    return theta, RopeScaling(type=kind, **options)


def rope_to_hf(theta: float, scaling: RopeScaling | None, fraction: float | None = None) -> Json:
    """The keys `rope_theta`, `rope_scaling`, `rope_parameters` and, with a `fraction`, `partial_rotary_factor`."""
    options: Json = {"rope_type": "default"}
    if scaling is not None:
        options = {"rope_type": scaling.type}
        for ours in _ROPE_KEYS_OF_TYPE[scaling.type]:
            value = getattr(scaling, ours)
            # transformers wants every option of llama3 written out, and has our defaults for those of yarn.
            if scaling.type == "llama3" or value != getattr(RopeScaling, ours, None):
                options[_ROPE_KEYS[ours]] = list(value) if isinstance(value, tuple) else value
    partial = {} if fraction is None else {"partial_rotary_factor": fraction}
    options |= partial
    old = None if scaling is None else dict(options)
    new = {**options, "rope_theta": theta}
    return {"rope_theta": theta, "rope_scaling": old, "rope_parameters": new, **partial}


def square(hf: Mapping[str, Any], key: str, default: int) -> int:
    """A side in pixels that may be written as an int or as [height, width].

    Raises:
        ConfigError: height and width differ.
    """
    value = hf.get(key, default)
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1:
        raise ConfigError(f"config.json: {key} {value} is not square, which is not supported")
    return int(sides.pop())


def fresh(template: Mapping[str, Any] | None) -> Json:
    """A copy of a config.json to write our values over, without what would be stale in it."""
    return {key: value for key, value in (template or {}).items() if key not in STALE}
