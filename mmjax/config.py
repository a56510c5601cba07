"""Strict construction of frozen dataclass configs from plain mappings, and back.

Every part of a model is described by a frozen dataclass. A config file, a checkpoint's JSON and a
command line all arrive here as nested mappings; whatever does not fit is an error that names the key,
where it stands and the nearest right one, so that a typo never silently becomes a default.
"""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Union


class ConfigError(ValueError):
    """A config key or value that does not fit; the message names it and what would be right."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns ' Did you mean "x"?' for the closest of `names`, or '' when none is close."""
    close = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.5)
    return f' Did you mean "{close[0]}"?' if close else ""


def from_dict(cls: type, mapping: Mapping[str, Any], where: str = "") -> Any:
    """Builds the dataclass `cls` from a mapping, strictly.

    Nested dataclasses, `X | None`, tuples and mappings of dataclasses are built by annotation. A union of
    dataclasses is told apart by the key `kind`, which must equal the class variable `kind` of one of them.

    Raises:
        ConfigError: unknown, missing or ill-typed key; the message holds its full path.
    """
    if isinstance(mapping, cls):
        return mapping
    place = where or cls.__name__
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            f"{place}: expected a mapping for {cls.__name__}, got {type(mapping).__name__} {mapping!r}"
        )
    hints = _hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    given = dict(mapping)
    kind = getattr(cls, "kind", None)
    if kind is not None and "kind" not in fields:
        found = given.pop("kind", kind)
        if found != kind:
            raise ConfigError(f"{place}.kind: {found!r} does not fit {cls.__name__}, whose kind is {kind!r}")
    for key in given:
        if key not in fields:
            known = ", ".join(fields)
            raise ConfigError(f"{place}: unknown key {key!r}.{nearest(key, fields)} Known keys: {known}")
    missing = [
        name
        for name, field in fields.items()
        if name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{place}: missing key(s) {', '.join(map(repr, missing))}")
    values = {key: _coerce(hints[key], value, f"{place}.{key}") for key, value in given.items()}
    try:
        return cls(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{place}: {error}") from error


def to_dict(config: Any) -> Any:
    """The JSON-able mapping that `from_dict` turns back into `config`; `kind` is written where a class has one."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        out = {}
        if isinstance(getattr(type(config), "kind", None), str):
            out["kind"] = type(config).kind
        for field in dataclasses.fields(config):
            out[field.name] = to_dict(getattr(config, field.name))
        return out
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_dict(value) for value in config]
    return config


def check_choice(where: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises ConfigError unless `value` is one of `choices`."""
    if value not in choices:
        names = ", ".join(repr(c) for c in choices)
        raise ConfigError(
            f"{where}: {value!r} is not one of {names}.{nearest(str(value), map(str, choices))}"
        )


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(typing.get_args(hint), value, where)
    if origin is Literal:
        check_choice(where, value, typing.get_args(hint))
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if origin is tuple:
        if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a sequence, got {value!r}")
        args = typing.get_args(hint)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_coerce(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(args) != len(value):
            raise ConfigError(f"{where}: expected {len(args)} items, got {len(value)}: {value!r}")
        return tuple(
            _coerce(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True))
        )
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a mapping, got {value!r}")
        item_hint = typing.get_args(hint)[1]
        return {str(key): _coerce(item_hint, item, f"{where}.{key}") for key, item in value.items()}
    if hint is type(None):
        if value is not None:
            raise ConfigError(f"{where}: expected null, got {value!r}")
        return None
    return _scalar(hint, value, where)


def _coerce_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:
        return _coerce(options[0], value, where)
    classes = {option.kind: option for option in options if dataclasses.is_dataclass(option)}
    if any(isinstance(value, cls) for cls in classes.values()):
        return value
    if classes and isinstance(value, Mapping):
        if "kind" not in value:
            raise ConfigError(f"{where}: needs the key 'kind', one of {', '.join(map(repr, classes))}")
        check_choice(f"{where}.kind", value["kind"], tuple(classes))
        return from_dict(classes[value["kind"]], value, where)
    errors = []
    for option in options:
        try:
            return _coerce(option, value, where)
        except ConfigError as error:
            errors.append(str(error))
    raise ConfigError("; or ".join(errors))


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    wrong_bool = isinstance(value, bool) and hint is not bool
    if wrong_bool or not isinstance(value, hint):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {type(value).__name__} {value!r}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{where}: must be finite, got {value!r}")
    return value
