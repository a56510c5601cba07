"""From a training config to the model it starts from: pretrained parts, fresh parts, and the processor.

Each part comes from a checkpoint of its own, or from random weights. What a checkpoint says about itself
must agree with the config; only the vocabulary may be larger here: its new rows start from the mean of the
others.
"""

import dataclasses
import json
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mmjax.backbones.fusion.visual_expert import expert_of_text
from mmjax.config import ConfigError
from mmjax.data.gguf_tokenizer import tokenizer_from_gguf
from mmjax.data.image import ImageProcessor
from mmjax.data.processor import Processor
from mmjax.data.recipes import Recipe, recipe_from_hf
from mmjax.data.tokenizer import Tokenizer, load_tokenizer
from mmjax.distributed.mesh import MeshConfig, check_fits
from mmjax.distributed.rules import shardings
from mmjax.encoders import EncoderConfig
from mmjax.encoders.dual import DualEncoderConfig, TextConfig
from mmjax.encoders.frames import FramesConfig
from mmjax.encoders.sound_text import SoundTextConfig
from mmjax.encoders.tile_adapters import TileAdaptersConfig
from mmjax.generators.diffusion import DiffusionConfig
from mmjax.generators.retrieval import RetrievalConfig
from mmjax.interop import diffusers, gguf, huggingface
from mmjax.interop.locate import locate
from mmjax.interop.segmenter import SegmenterConfig
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.paths import flatten, unflatten


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Where pretrained parts come from; None is random weights.

    Attributes:
        backbone: a directory in transformers' layout (of a language model, or of a LLaVA), or a .gguf file.
        encoders: port -> a directory in transformers' layout (of a vision tower, or of CLIP or SigLIP whole); where
            an encoder takes frames, of the tower of one frame.
            Names on the hub will do as well.
        generators: port -> a directory in transformers' layout of a generator with its encoder (SAM), or in
            diffusers' of a pipeline, whose unet, vae, text_encoder and vocoder are taken; of retrieval, of the vision
            tower alone.
    """

    backbone: str | None = None
    encoders: dict[str, str | None] = dataclasses.field(default_factory=dict)
    generators: dict[str, str | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ProcessorConfig:
    """How conversations become samples; see `mmjax.data.processor.Processor`.

    Attributes:
        tokenizer: a directory, a .gguf file, "bytes" (one token a byte, then <s> and </s>), or None: that of
            `init.backbone`.
        placeholders: port -> what the template prints for an item; becomes a control token, unless its port is read
            inside the backbone without a token of its own.
        images: port -> fields of `mmjax.data.image.ImageProcessor`; or, where they name the class of a processor of
            transformers (image_processor_type, video_processor_type or feature_extractor_type), of its
            preprocessor_config.json. A port without any takes float arrays as they are.
        signals: port of a generator -> the tokens that are its signal, as they are written; the first is also its
            placeholder.
        template: jinja source, or None: the tokenizer's own.
        lengths, items, targets, too_long: see `TokenPlan`.
        controls: further control tokens that the template or a recipe writes; those that the tokenizer lacks get ids
            behind the placeholders.
        reader: the tokenizer of a Q-Former that reads the instruction, as `tokenizer`; None: there is none.
    """

    tokenizer: str | None = None
    placeholders: dict[str, str] = dataclasses.field(default_factory=dict)
    images: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    signals: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    template: str | None = None
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    items: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    targets: tuple[int, ...] = ()
    too_long: str = "error"
    controls: tuple[str, ...] = ()
    reader: str | None = None


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The whole of a training config file; a file in `configs/` returns the mapping of one.

    Attributes:
        name: shown and saved.
        stages: name -> `mmjax.train.stage.StageConfig` without its name, in the order in which they run.
        model: the parts; needed unless `from_pretrained` is given.
        from_pretrained: a checkpoint to go on from, as `mmjax.from_pretrained` takes it.
        init, processor: see there; not used with `from_pretrained`, which has all of it, but for images that are to be
            learned as codes, see `with_code_images`.
        mesh: see `MeshConfig`.
        dtype, param_dtype, remat: see `MultimodalLM`.
        seed: of fresh parameters.
    """

    name: str
    stages: dict[str, dict[str, Any]]
    model: MultimodalLMConfig | None = None
    from_pretrained: str | None = None
    init: InitConfig = dataclasses.field(default_factory=InitConfig)
    processor: ProcessorConfig = dataclasses.field(default_factory=ProcessorConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    seed: int = 0


def assemble(config: TrainConfig, mesh: Mesh) -> tuple[MultimodalLM, dict[str, Any], Processor]:
    """The model, its params (pretrained leaves numpy on the host, fresh ones on `mesh`), and the processor.

    Raises:
        FileNotFoundError: a checkpoint that does not exist.
        ConfigError: no model, parts that do not fit the config, or a tokenizer that does not fit the model.
        WeightsError: a checkpoint whose tensors do not fit its own config.
    """
    if config.model is None:
        raise ConfigError("the config names neither a model nor from_pretrained")
    model = MultimodalLM(config.model, config.dtype, config.param_dtype, config.remat)
    check_fits(model.param_shapes(), model.param_axes(), mesh)
    loaded = _pretrained(config)
    shapes = flatten(model.param_shapes())
    wrong = [
        f"  {path}: {tuple(array.shape)}, the config says {tuple(shapes[path].shape)}"
        for path, array in loaded.items()
        if array.shape != shapes[path].shape
    ]
    if wrong:
        raise ConfigError("\n".join(["pretrained parts do not fit the config:", *wrong]))
    fresh = fresh_params(model, shapes.keys() - loaded.keys(), config.seed, mesh)
    return model, unflatten(loaded, fresh), make_processor(config)


def fresh_params(model: MultimodalLM, paths: Collection[str], seed: int, mesh: Mesh) -> dict[str, jax.Array]:
    """Random values of the leaves at `paths`, made where they belong on the mesh, and of no others."""
    if not paths:
        return {}
    places = flatten(shardings(model.param_axes(), mesh))

    def chosen(key: jax.Array) -> dict[str, jax.Array]:
        leaves = flatten(model.init(key))
        return {path: leaves[path] for path in sorted(paths)}

    where = {path: places[path] for path in sorted(paths)}
    # It runs once: on a CPU, compiling the generator of every leaf with optimisation takes longer than it saves.
    quick = mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 0} if quick else None
    return jax.jit(chosen, out_shardings=where, compiler_options=options)(jax.random.key(seed))


def _pretrained(config: TrainConfig) -> dict[str, np.ndarray]:
    """path -> array of every part that `init` names."""
    leaves = {}
    if config.init.backbone is not None:
        leaves |= _flat("backbone", _backbone(config))
    for port, source in config.init.encoders.items():
        if port not in config.model.encoders:
            raise ConfigError(f"init.encoders: no port {port!r}; the model has {list(config.model.encoders)}")
        if source is not None:
            leaves |= _flat(f"encoders/{port}", _encoder(config, port, source))
    for port, source in config.init.generators.items():
        if port not in config.model.generators:
            raise ConfigError(f"init.generators: no port {port!r}; the model has {list(config.model.generators)}")
        if source is not None:
            leaves |= _generator(config, port, source)
    return leaves


# Where the parts of a diffusion generator lie in a pipeline's directory of diffusers.
_PIPELINE = {"denoiser": "unet", "autoencoder": "vae", "vocoder": "vocoder"}


def _pipeline(config: TrainConfig, port: str, source: str) -> dict[str, Any]:
    """The leaves of a diffusion generator, and of its text encoder where the model has one."""
    wanted, leaves = config.model.generators[port], {}
    for field, folder in _PIPELINE.items():
        part = getattr(wanted, field)
        if part is None:
            continue
        load = huggingface.load if field == "vocoder" else diffusers.load
        found = load(f"{source}/{folder}", put=_on_host)
        _check_same(part, found.config, f"model.generators.{port}.{field}", source, ())
        leaves |= _flat(f"generators/{port}/{field}", found.params)
    if port in config.model.generator_encoders:
        found = huggingface.load(f"{source}/text_encoder", config.param_dtype, _on_host)
        wanted = config.model.generator_encoders[port]
        _check_same(wanted, found.config, f"model.generator_encoders.{port}", source, ())
        leaves |= _flat(f"generator_encoders/{port}", found.params)
    return leaves


def _generator(config: TrainConfig, port: str, source: str) -> dict[str, Any]:
    """The leaves of a generator and of its encoder."""
    source = str(locate(source))
    if isinstance(config.model.generators[port], DiffusionConfig):
        return _pipeline(config, port, source)
    if isinstance(config.model.generators[port], RetrievalConfig) and port in config.model.generator_encoders:
        tower = _tower(config, port, source, config.model.generator_encoders[port], "generator_encoders")
        return _flat(f"generator_encoders/{port}", tower)
    loaded = huggingface.load(source, config.param_dtype, _on_host)
    if not isinstance(loaded.config, SegmenterConfig):
        raise ConfigError(f"init.generators.{port}: {source} holds a {type(loaded.config).__name__}, no segmenter")
    model, found = config.model, loaded.config
    _check_same(model.generators[port], found.decoder, f"model.generators.{port}", source, ())
    _check_same(model.generator_encoders[port], found.encoder, f"model.generator_encoders.{port}", source, ())
    parts = {"generators": "decoder", "generator_encoders": "encoder"}
    found = [_flat(f"{name}/{port}", loaded.params[part]) for name, part in parts.items()]
    return {path: leaf for leaves in found for path, leaf in leaves.items()}


def _backbone(config: TrainConfig) -> dict[str, Any]:
    source, wanted = str(locate(config.init.backbone)), config.model.backbone
    if source.endswith(".gguf"):
        found, params, _ = gguf.load_gguf(source, config.param_dtype, _on_host)
    else:
        loaded = huggingface.load(source, config.param_dtype, _on_host)
        found, params = loaded.config, loaded.params
        if not isinstance(found, MultimodalLMConfig):
            raise ConfigError(f"init.backbone: {source} holds a {type(found).__name__}, no language model")
    # A longer context, more words, adapters and what reads media inside are this config's own affair.
    free = ("vocab_size", "max_positions", "lora", "new_tokens", "fusion")
    _check_same(wanted, found.backbone, "model.backbone", source, free)
    backbone = _grow_vocabulary(params["backbone"], wanted.vocab_size - getattr(wanted, "new_tokens", 0), source)
    if getattr(getattr(wanted, "fusion", None), "of_media", False):
        backbone = {**backbone, "fusion": expert_of_text(backbone)}
    return backbone


def _encoder(config: TrainConfig, port: str, source: str) -> dict[str, Any]:
    source, wanted = str(locate(source)), config.model.encoders[port]
    if isinstance(wanted, FramesConfig):
        return {"frame": _tower(config, port, source, wanted.encoder)}
    if isinstance(wanted, TileAdaptersConfig):
        return {"tower": _tower(config, port, source, wanted.encoder)}
    return _tower(config, port, source, wanted)


def _tower(
    config: TrainConfig, port: str, source: str, wanted: EncoderConfig, field: str = "encoders"
) -> dict[str, Any]:
    loaded = huggingface.load(source, config.param_dtype, _on_host)
    found, params = loaded.config, loaded.params
    if isinstance(found, DualEncoderConfig):
        found, params = found.image, params["image"]
    elif isinstance(found, SoundTextConfig):
        tower = "text" if isinstance(wanted, TextConfig) else "audio"
        found, params = getattr(found, tower), params[tower]
    elif isinstance(found, MultimodalLMConfig) and port in found.encoders:
        found, params = found.encoders[port], params["encoders"][port]
    if type(found) is not type(wanted):
        named = "encoders" if field == "encoders" else "generators"
        raise ConfigError(f"init.{named}.{port}: {source} holds a {type(found).__name__}, no {wanted.kind}")
    # Which features are taken is this config's choice; so is leaving out the map into the shared space.
    free = ("feature_layers", "feature_strategy", "feature_norm", "extra_layers", "feature_stages", "projection_dim")
    _check_same(wanted, found, f"model.{field}.{port}", source, free)
    if getattr(wanted, "projection_dim", None) is None:
        params = {name: leaf for name, leaf in params.items() if not name.startswith("projection")}
    return params


def _check_same(wanted: Any, found: Any, where: str, source: str, free: Collection[str]) -> None:
    names = [field.name for field in dataclasses.fields(wanted) if field.name not in free]
    differ = [
        f"{name} (here {getattr(wanted, name)!r}, there {getattr(found, name)!r})"
        for name in names
        if getattr(wanted, name) != getattr(found, name)
    ]
    if differ:
        raise ConfigError(f"{where} and {source} differ: {', '.join(differ)}")


def _grow_vocabulary(backbone: dict[str, Any], size: int, source: str) -> dict[str, Any]:
    """The backbone with rows up to `size`, the new ones the mean of those there were."""
    have = backbone["embed"]["embedding"].shape[0]
    if have > size:
        raise ConfigError(f"model.backbone.vocab_size is {size}, but {source} has {have} tokens")
    if have == size:
        return backbone

    def grown(table: np.ndarray, axis: int) -> np.ndarray:
        mean = table.astype(np.float32).mean(axis, keepdims=True).astype(table.dtype)
        return np.concatenate([table, np.repeat(mean, size - have, axis)], axis)

    out = {**backbone, "embed": {"embedding": grown(backbone["embed"]["embedding"], 0)}}
    if "lm_head" in backbone:
        out["lm_head"] = {**backbone["lm_head"], "kernel": grown(backbone["lm_head"]["kernel"], 1)}
    return out


def make_processor(config: TrainConfig) -> Processor:
    """The processor that `config.processor` describes.

    Raises:
        ConfigError: no tokenizer, one with more tokens than the model, or whose id for a placeholder is not
            the model's media token.
    """
    spec, model = config.processor, config.model
    tokenizer = _tokenizer(spec.tokenizer or config.init.backbone)
    marks = {port: text for port, text in spec.placeholders.items() if port not in model.unmarked}
    spelt = [token for tokens in spec.signals.values() for token in tokens]
    media = [text for port, text in marks.items() if port not in spec.signals]
    tokenizer = tokenizer.with_tokens(dict.fromkeys([*media, *spelt, *spec.controls]))
    if tokenizer.vocab_size > model.backbone.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, model.backbone.vocab_size is "
            f"{model.backbone.vocab_size}"
        )
    for port, printed in marks.items():
        field, ids = "media_tokens", model.media_tokens
        if port in model.generators:
            # What a template prints for a signal of several tokens is the first of them.
            field, ids = "signal_tokens", {name: signal[0] for name, signal in model.signal_tokens.items()}
        elif model.codes is not None and port == model.codes.port:
            # Where codes are numbered behind the vocabulary, only the template knows what it prints.
            own = tokenizer.token_id(printed)
            field, ids = "codes", {port: own if model.codes.placeholder is None else model.codes.placeholder}
        if tokenizer.token_id(printed) != ids.get(port):
            raise ConfigError(
                f"model.{field}.{port} is {ids.get(port)}, but the tokenizer's id of {printed!r} is "
                f"{tokenizer.token_id(printed)}"
            )
    for port, tokens in spec.signals.items():
        ids = tuple(tokenizer.token_id(token) for token in tokens)
        if ids != tuple(model.signal_tokens.get(port, ())):
            raise ConfigError(
                f"model.signal_tokens.{port} is {model.signal_tokens.get(port)}, but the tokenizer's ids of "
                f"{' '.join(tokens)} are {ids}"
            )
    try:
        images = {port: _recipe(port, fields) for port, fields in spec.images.items()}
    except (ValueError, TypeError) as error:
        raise ConfigError(f"processor.images: {error}") from error
    return Processor(
        tokenizer,
        images,
        spec.template,
        spec.placeholders,
        model.media_tokens,
        model.num_tokens,
        lengths=spec.lengths,
        items=spec.items,
        targets=spec.targets,
        too_long=spec.too_long,
        reader=None if spec.reader is None else _tokenizer(spec.reader),
        **model.processor_options,
    )


def with_code_images(processor: Processor, model: MultimodalLMConfig, spec: ProcessorConfig) -> Processor:
    """A checkpoint's processor with what `spec` says of images as codes: recipe, words, template, lengths.

    Checkpoints of transformers say nothing of it. As it is where the model has no codes, the spec no recipe of them, or
    the processor one of its own.

    Raises:
        ConfigError: words beyond the model's vocabulary.
    """
    layout = None if model.codes is None else model.codes.layout
    if layout is None or layout.port not in spec.images or layout.port in processor.images:
        return processor
    port = layout.port
    tokenizer = processor.tokenizer.with_tokens([spec.placeholders[port], *spec.controls])
    if tokenizer.vocab_size > model.backbone.vocab_size:
        raise ConfigError(
            f"with processor.controls the tokenizer has {tokenizer.vocab_size} tokens, model.backbone.vocab_size is "
            f"{model.backbone.vocab_size}"
        )
    items = {port: spec.items[port]} if port in spec.items else {}
    return dataclasses.replace(
        processor,
        tokenizer=tokenizer,
        images={**processor.images, port: _recipe(port, spec.images[port])},
        placeholders={**processor.placeholders, port: spec.placeholders[port]},
        # The template has the words around an item too.
        template=spec.template,
        wording=None,
        codes=layout,
        items={**processor.items, **items},
        lengths=spec.lengths,
        too_long=spec.too_long,
    )


def _recipe(port: str, fields: Mapping[str, Any]) -> Recipe:
    """The recipe of a port's media, see `ProcessorConfig.images`."""
    named = any(name.endswith(("_processor_type", "_extractor_type")) for name in fields)
    return recipe_from_hf(fields, port) if named else ImageProcessor(**fields)


def _tokenizer(source: str | None) -> Tokenizer:
    if source is None:
        raise ConfigError('processor.tokenizer: give a directory, a .gguf file or "bytes"')
    if source == "bytes":
        return byte_tokenizer()
    source = str(locate(source))
    if source.endswith(".gguf"):
        return tokenizer_from_gguf(gguf.read_gguf(source)[0])
    tokenizer = load_tokenizer(source)
    if tokenizer is None:
        raise ConfigError(f"{source} has no tokenizer files; set processor.tokenizer")
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """One token for each of the 256 bytes, in the order of their values as printed, then <s> and </s>."""
    from tokenizers import Tokenizer as Raw
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Raw(models.BPE({character: number for number, character in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<s>", "</s>"])
    with tempfile.TemporaryDirectory() as folder:
        raw.save(str(Path(folder) / "tokenizer.json"))
        named = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
        return load_tokenizer(folder)


def _flat(prefix: str, params: Mapping[str, Any]) -> dict[str, Any]:
    return flatten(params, prefix + "/")


def _on_host(path: str, array: np.ndarray) -> np.ndarray:
    return np.array(array)
