"""Models to directories: in transformers' layout, or as mmjax directories with everything as it is."""

import os
import tempfile
from pathlib import Path
from typing import Any

import jax

from mmjax import checkpoint
from mmjax.config import check_choice, to_dict
from mmjax.data.processor import Processor
from mmjax.interop import huggingface

FORMATS = ("huggingface", "mmjax")


def save(model: Any, directory: str | os.PathLike, format: str) -> None:
    """Writes a `Model` or an `EncoderModel`.

    Raises:
        ConfigError: an unknown format, or a model that transformers has no class for.
    """
    check_choice("format", format, FORMATS)
    directory = Path(directory)
    if format == "huggingface":
        generation = dict(model.generation) or None
        huggingface.save(directory, model.config, model.params, model.hf_config, generation)
        if model.processor is not None:
            model.processor.save(directory)
        return
    leaf = jax.tree.leaves(model.params)[0]
    metadata = {
        "config": to_dict(model.config),
        "param_dtype": str(leaf.dtype),
        "generation": dict(model.generation),
        "hf_config": None if model.hf_config is None else dict(model.hf_config),
    }
    files = {} if model.processor is None else _files_of(model.processor)
    checkpoint.save_params(directory, model.params, metadata, files)


def _files_of(processor: Processor) -> dict[str, bytes]:
    """What `Processor.save` writes, as bytes by name."""
    with tempfile.TemporaryDirectory() as folder:
        processor.save(folder)
        return {
            str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()
        }


