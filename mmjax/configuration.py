"""Config files: a Python file with `get_config(arg)`, overrides from the command line, and the resolved JSON.

A config is named three ways, each with an optional `:arg` that `get_config` is called with:

    llava_1_5:7b               a name in `configs.SYSTEMS`
    configs/llava_1_5.py:7b    a path
    runs/a/config.json         what an earlier run saved (no arg: it is resolved already)

`get_config` returns a plain nested dict, whose order is kept (stages run in the order they stand in), or
an `ml_collections.ConfigDict`. An override `--config.a.b=value` must name a key that exists, and its value
is read as the type that stands there.
"""

import ast
import importlib.util
import inspect
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import configs
from mmjax.config import ConfigError, nearest


def load_config(spec: str | os.PathLike, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads the config that `spec` names and applies `overrides`.

    Args:
        spec: name or path, with `:arg` behind it where the config takes one.
        overrides: "--config.a.b=value" or "a.b=value".

    Returns:
        A locked ConfigDict in the order of the file; sequences are tuples.

    Raises:
        FileNotFoundError: there is no such file or name; the message says what there is.
        ConfigError: the file, an override's key or its value does not fit.
    """
    path, arg = _locate(os.fspath(spec))
    if path.suffix == ".json":
        config = load_resolved(path)
    else:
        values = _call_get_config(path, arg)
        _check_order(values, path.name)
        config = _ordered(_plain(values, path.name))
    apply_overrides(config, overrides)
    return config.lock()


def apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Sets each "--config.a.b=value" in `config`, in place; the last of several wins.

    Raises:
        ConfigError: unknown key (named, with the nearest right one), or a value of another type than the one
            that stands there.
    """
    for override in overrides:
        key, equals, text = override.removeprefix("--").partition("=")
        key = key.removeprefix("config.")
        if not equals or not key:
            raise ConfigError(f"override {override!r} is not of the form --config.key=value")
        *parents, last = key.split(".")
        section = config
        for depth, name in enumerate(parents):
            section = _child(section, name, ".".join(parents[:depth]))
            if not isinstance(section, ConfigDict):
                where = ".".join(parents[: depth + 1])
                raise ConfigError(f"config.{key}: config.{where} is {section!r}, which has no keys")
        present = _child(section, last, ".".join(parents))
        section[last] = parse_value(text, present, f"config.{key}")


def parse_value(text: str, present: Any, where: str) -> Any:
    """Reads `text` as the type of `present`, the value that it replaces.

    Where `present` is None any Python literal is taken, and what is none is a string. A sequence is written
    `1,2,3` or `(1, 2, 3)`, its items typed like the present first one.

    Raises:
        ConfigError: naming `where`, the value, and the type that would be right.
    """
    if isinstance(present, ConfigDict):
        raise ConfigError(f"{where} is a section; set one of its keys: {', '.join(present)}")
    if present is None:
        value = _literal(text)
        _check_finite(value, where)
        return _ordered(_plain(value, where)) if isinstance(value, dict) else _plain(value, where)
    if isinstance(present, bool):
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.strip().lower() not in words:
            raise ConfigError(f"{where}: expected true or false, got {text!r} (it is {present} now)")
        return words[text.strip().lower()]
    if isinstance(present, (int, float)):
        kind = type(present)
        try:
            value = kind(text.strip())
        except ValueError:
            raise ConfigError(f"{where}: expected {_a(kind)}, got {text!r} (it is {present!r} now)") from None
        _check_finite(value, where)
        return value
    if isinstance(present, str):
        return text
    return _parse_sequence(text, present, where)


def save_resolved(config: ConfigDict | Mapping[str, Any], path: str | os.PathLike) -> None:
    """Writes `config` as JSON, keys in the config's own order, making the folder where it is missing.

    Raises:
        ConfigError: a value that JSON cannot hold, named by its key.
    """
    text = json.dumps(_plain(config, "config"), indent=2, allow_nan=False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def load_resolved(path: str | os.PathLike) -> ConfigDict:
    """Reads what `save_resolved` wrote; equal to the config that was saved.

    Raises:
        FileNotFoundError: no such file.
        ConfigError: not a JSON object, or a value that is not finite.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return _ordered(_plain(values, str(path))).lock()


def to_plain(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The config as nested dicts and tuples, in its own order."""
    return _plain(config, "config")


def _locate(spec: str) -> tuple[Path, str | None]:
    """Splits a spec into the file and the argument of its `get_config`."""
    if Path(spec).is_file():
        return Path(spec), None
    name, colon, arg = spec.rpartition(":")
    if not colon:
        name, arg = spec, None
    if Path(name).is_file():
        return Path(name), arg
    if name in configs.SYSTEMS:
        return Path(configs.__file__).with_name(f"{name}.py"), arg
    known = ", ".join(configs.SYSTEMS)
    hint = nearest(Path(name).stem, configs.SYSTEMS)
    if name.endswith((".py", ".json")) or os.sep in name:
        raise FileNotFoundError(f"config file {name!r} does not exist.{hint} Names without a path: {known}")
    raise FileNotFoundError(f"no config is named {name!r}.{hint} There are: {known}; or give a path")


def _call_get_config(path: Path, arg: str | None) -> Any:
    if path.suffix != ".py":
        raise ConfigError(f"{path}: a config is a .py file with get_config(arg), or a .json that a run saved")
    loader = importlib.util.spec_from_file_location(f"mmjax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise ConfigError(f"{path}: has no function get_config(arg)")
    if arg is None:
        return get_config()
    if not inspect.signature(get_config).parameters:
        raise ConfigError(f"{path}: its get_config takes no argument, got {arg!r}")
    return get_config(arg)


def _check_order(values: Any, where: str) -> None:
    """Raises ConfigError where a file's stages may not stand in the order in which they were written."""
    stages = values.get("stages") if isinstance(values, Mapping | ConfigDict) else None
    if isinstance(stages, ConfigDict) and len(stages) > 1 and list(stages) == sorted(stages):
        # ConfigDict sorts its keys unless told not to, and their order says what is trained first.
        raise ConfigError(
            f"{where}.stages: a ConfigDict forgets the order its keys were written in, and stages run in "
            "order; return a plain dict from get_config"
        )


def _plain(value: Any, where: str) -> Any:
    """Nested dicts, tuples and scalars; raises ConfigError for what JSON cannot hold."""
    if isinstance(value, Mapping | ConfigDict):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item, f"{where}.{index}") for index, item in enumerate(value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise ConfigError(
            f"{where}: a config holds numbers, strings, booleans, None, sequences and sections, "
            f"got {type(value).__name__} {value!r}"
        )
    _check_finite(value, where)
    return value


def _ordered(values: Mapping[str, Any]) -> ConfigDict:
    """A ConfigDict that keeps the order of `values` at every depth."""
    config = ConfigDict(sort_keys=False, convert_dict=False)
    for key, value in values.items():
        config[key] = _ordered(value) if isinstance(value, Mapping) else value
    return config


def _child(section: ConfigDict, name: str, where: str) -> Any:
    if name not in section:
        place = f"config.{where}" if where else "config"
        known = ", ".join(section)
        raise ConfigError(f"{place} has no key {name!r}.{nearest(name, section)} Its keys: {known}")
    return section[name]


def _parse_sequence(text: str, present: tuple, where: str) -> tuple:
    value = _literal(text)
    if isinstance(value, str):
        value = tuple(item.strip() for item in value.split(",") if item.strip())
    elif not isinstance(value, (list, tuple)):
        value = (value,)
    if not present:
        return _plain(value, where)
    if not isinstance(present[0], (bool, int, float, str)):
        kind = type(present[0])
        for index, item in enumerate(value):
            if not isinstance(item, (list, tuple) if kind is tuple else kind):
                raise ConfigError(f"{where}.{index}: expected {kind.__name__}, got {item!r}")
        return _plain(value, where)
    return tuple(
        parse_value(item if isinstance(item, str) else repr(item), present[0], f"{where}.{index}")
        for index, item in enumerate(value)
    )


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text


def _check_finite(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: must be finite, got {value!r}")


def _a(kind: type) -> str:
    return "an integer" if kind is int else "a number"
