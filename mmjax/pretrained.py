"""Finding out what a path is and reading it: a directory of transformers, diffusers or mmjax, a .gguf, a hub's name."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax import checkpoint
from mmjax.api import Model
from mmjax.config import ConfigError, check_choice, from_dict
from mmjax.data.gguf_tokenizer import tokenizer_from_gguf
from mmjax.data.processor import Processor, load_processor
from mmjax.data.tokenizer import load_tokenizer
from mmjax.distributed.mesh import check_fits
from mmjax.distributed.rules import shardings
from mmjax.encoder_model import EncoderModel
from mmjax.generators.part_model import PartModel
from mmjax.interop import huggingface
from mmjax.interop.gguf import decoder_from_gguf, load_gguf, read_gguf
from mmjax.interop.locate import locate
from mmjax.interop.segmenter import SegmenterConfig
from mmjax.media_model import MediaModel, media_model
from mmjax.model import MultimodalLMConfig
from mmjax.paths import flatten
from mmjax.pipelines import INDEX, Pipeline, load_pipeline
from mmjax.pipelines.component_model import ComponentModel, is_component, load_component
from mmjax.segmenter_model import SegmenterModel

# The kinds of model that an mmjax directory may hold.
CONFIGS = {cls.kind: cls for cls in huggingface.MODELS}
# What the directory of one model may hold.
Loaded = Model | EncoderModel | SegmenterModel | MediaModel


def from_pretrained(
    path: str | os.PathLike,
    dtype: str = "float32",
    param_dtype: str | None = None,
    mesh: Any = None,
    skip: Sequence[str] = (),
) -> Loaded | Pipeline | ComponentModel:
    """Loads a model with its weights.

    Args:
        path: a directory in transformers layout (the families of `huggingface.FAMILIES`), one of diffusers'
            pipelines (`mmjax.pipelines.PIPELINES`) or components, an mmjax directory, a `.gguf` file, a `gs://`
            directory, or the name of a repository on the hub.
        dtype: of computation, "float32" or "bfloat16".
        param_dtype: of the weights, if it is to differ from `dtype`.
        mesh: a `jax.sharding.Mesh` to place the weights on, leaf by leaf as they are read; those of a pipeline
            once all are read. Not of a single component of a pipeline.
        skip: parts of a pipeline to leave out, such as "safety_checker".

    Raises:
        FileNotFoundError: no such path, and no such repository that can be reached.
        ConfigError: a family or option that is not supported.
        WeightsError: damaged weights, or a list of every tensor that is missing, left over or misshapen.
        CheckpointError: a damaged mmjax directory.
    """
    for name, value in (("dtype", dtype), ("param_dtype", param_dtype or dtype)):
        check_choice(name, value, ("float32", "bfloat16"))
    param_dtype = param_dtype or dtype
    place = locate(path)
    if place.suffix == ".gguf":
        return _from_gguf(place, dtype, param_dtype, mesh)
    if (place / checkpoint.METADATA).exists():
        return _from_mmjax(place, dtype, param_dtype, mesh)
    if (place / INDEX).exists():
        return load_pipeline(place, dtype, param_dtype, skip, mesh)
    if is_component(place):
        if mesh is not None:
            raise ValueError(f"{place}: a diffusion component's weights are not placed on a mesh here")
        return load_component(place, dtype, param_dtype)
    if (place / "config.json").exists():
        return _from_huggingface(place, dtype, param_dtype, mesh)
    raise ConfigError(
        f"{place}: neither config.json (transformers), {INDEX} (diffusers) nor {checkpoint.METADATA} (mmjax) in it"
    )


def _from_gguf(place: Path, dtype: str, param_dtype: str, mesh: Any) -> Model:
    put = None
    if mesh is not None:
        put = _Put(mesh, MultimodalLMConfig(decoder_from_gguf(*read_gguf(place))))
    config, params, metadata = load_gguf(place, param_dtype, put)
    tokenizer = tokenizer_from_gguf(metadata)
    processor = Processor(tokenizer, {}, tokenizer.chat_template, {}, {}, config.num_tokens)
    generation = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    return Model(config, params, processor, dtype, generation)


def _from_mmjax(place: Path, dtype: str, param_dtype: str, mesh: Any) -> Loaded:
    metadata = checkpoint.read_metadata(place)
    kind = metadata.get("config", {}).get("kind")
    if kind not in CONFIGS:
        raise ConfigError(
            f"{place}/{checkpoint.METADATA}: unknown kind of model {kind!r}; known: {', '.join(CONFIGS)}"
        )
    config = from_dict(CONFIGS[kind], metadata["config"], f"{place}: config")
    module = huggingface.model_of(config, param_dtype=metadata.get("param_dtype", "float32"))
    like = module.param_shapes()
    if mesh is not None:
        check_fits(like, module.param_axes(), mesh)
        places = shardings(module.param_axes(), mesh)
        like = jax.tree.map(
            lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), like, places
        )
    params = checkpoint.load_params(place, like)
    if metadata.get("param_dtype", "float32") != param_dtype:
        params = jax.tree.map(lambda leaf: leaf.astype(param_dtype), params)
    common = {
        "dtype": dtype,
        "generation": metadata.get("generation") or {},
        "hf_config": metadata.get("hf_config"),
    }
    if kind != MultimodalLMConfig.kind:
        return _without_text(config)(config, params, **common)
    processor = None
    if load_tokenizer(str(place)) is not None:
        processor = load_processor(place, config.num_tokens, **config.processor_options)
    return Model(config, params, processor, **common)


def _from_huggingface(place: Path, dtype: str, param_dtype: str, mesh: Any) -> Loaded:
    put = None if mesh is None else _Put(mesh, huggingface.read_config(place)[0])
    loaded = huggingface.load(place, param_dtype, put)
    generation = loaded.generation_config or {}
    if not isinstance(loaded.config, MultimodalLMConfig):
        return _without_text(loaded.config)(loaded.config, loaded.params, dtype, loaded.hf_config)
    text = {**loaded.hf_config, **loaded.hf_config.get("text_config", {})}
    for name in ("eos_token_id", "pad_token_id"):
        if generation.get(name) is None and text.get(name) is not None:
            generation = {**generation, name: text[name]}
    processor, tokenizer = None, load_tokenizer(str(place))
    if tokenizer is not None:
        config = loaded.config
        images = any(
            (place / name).exists() for name in ("preprocessor_config.json", "processor_config.json")
        )
        if not images or not (config.encoders or config.codes):
            processor = Processor(
                tokenizer,
                {},
                tokenizer.chat_template,
                {},
                dict(config.media_tokens),
                config.num_tokens,
                bidirectional=config.bidirectional,
            )
        else:
            processor = load_processor(
                place, config.num_tokens, tokenizer, dict(config.media_tokens), **config.processor_options
            )
    return Model(loaded.config, loaded.params, processor, dtype, generation, loaded.hf_config)


def _without_text(config: Any) -> type:
    """The class of a model that is no language model."""
    if isinstance(config, SegmenterConfig):
        return SegmenterModel
    return media_model(config) if issubclass(huggingface.MODELS[type(config)], PartModel) else EncoderModel


class _Put:
    """Places one finished leaf on its shards, so that no device holds the whole model."""

    def __init__(self, mesh: Any, config: Any):
        self.mesh = mesh
        self.config = config

    @functools.cached_property
    def places(self) -> dict[str, Any]:
        """path -> sharding."""
        module = huggingface.model_of(self.config)
        check_fits(module.param_shapes(), module.param_axes(), self.mesh)
        return flatten(shardings(module.param_axes(), self.mesh))

    def __call__(self, path: str, array: np.ndarray) -> jax.Array:
        return jax.device_put(array, self.places[path])
