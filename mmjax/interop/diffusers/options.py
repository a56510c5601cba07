"""Options of a component's config.json that are supported at one value alone."""

from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError


def check_fixed(hf: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Raises ConfigError, naming the option, where `hf` has another value than `fixed`; what it lacks is fine."""
    for name, value in fixed.items():
        if hf.get(name, value) != value:
            raise ConfigError(f"{name}: {hf[name]!r} is not supported, only {value!r}")
