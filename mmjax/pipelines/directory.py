"""The directory of a diffusers pipeline: model_index.json, and a folder for each part."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.config import ConfigError
from mmjax.data.tokenizer import Tokenizer, load_tokenizer

INDEX = "model_index.json"
# What only prepares images for a part that is not here goes with it.
PREPARES = {"feature_extractor": ("safety_checker", "image_encoder")}


def read_index(directory: str | os.PathLike) -> dict[str, Any]:
    """What model_index.json says.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(directory) / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{directory} has no {INDEX}")
    return json.loads(path.read_text(encoding="utf-8"))


def check_parts(directory: Path, index: Mapping[str, Any], parts: Sequence[str], skip: Sequence[str]) -> None:
    """Whether a pipeline needs no more than `parts` and what `skip` does without.

    Raises:
        ConfigError: it does; what is not here is named.
    """
    there = {name for name, kind in index.items() if isinstance(kind, list) and kind[0] is not None}
    idle = {name for name, served in PREPARES.items() if {*served} & {*skip} and not {*served} & there - {*skip}}
    unknown = sorted(there - {*parts, *skip} - idle)
    if unknown:
        raise ConfigError(f"{directory}: mmjax has no {', '.join(unknown)}; give skip={tuple(unknown)} to do without")


def read_tokenizer(directory: Path) -> tuple[Tokenizer | None, int]:
    """The tokenizer of a folder and the id that fills prompts up; (None, 0) where there is no such folder."""
    if not directory.is_dir():
        return None, 0
    tokenizer = load_tokenizer(str(directory))
    return tokenizer, tokenizer.pad_id or 0
