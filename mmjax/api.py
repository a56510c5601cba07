"""What a user holds: a model with its weights and its processor, a few lines over the pure functions.

`from_pretrained` finds out what a path is (a directory in transformers layout, an mmjax directory, a GGUF
file, a name on the hub) and gives a `Model`, or an `EncoderModel` for encoders without a language model.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import checkpoint
from mmjax.config import ConfigError, check_choice, from_dict, to_dict
from mmjax.data.collate import collate, target_positions
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.data.conversation import parse_record
from mmjax.data.gguf_tokenizer import tokenizer_from_gguf
from mmjax.data.processor import Processor, load_processor
from mmjax.data.token_plan import TokenPlanError
from mmjax.data.tokenizer import load_tokenizer
from mmjax.distributed.mesh import check_fits
from mmjax.distributed.rules import shardings
from mmjax.encoders import EncoderConfig
from mmjax.encoders.dual import DualEncoder, DualEncoderConfig, Tower
from mmjax.encoders.text import TextEncoderConfig
from mmjax.infer.batch import answer_text
from mmjax.infer.chat import TextStreamer
from mmjax.infer.generate import GenerateOptions, Programs, check_request, generate, program_length
from mmjax.interop import huggingface
from mmjax.interop.gguf import decoder_from_gguf, load_gguf, read_gguf
from mmjax.interop.locate import locate
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.paths import flatten

# The kinds of model that an mmjax directory may hold.
CONFIGS = {cls.kind: cls for cls in huggingface.MODELS}
FORMATS = ("huggingface", "mmjax")


@dataclasses.dataclass(frozen=True)
class ModelOutput:
    """logits float32 [B, T, V]; hidden [B, T, D]; loss, the mean cross-entropy of `labels`, or None."""

    logits: jax.Array
    hidden: jax.Array
    loss: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class GenerateOutput:
    """What `Model.generate` gives.

    Attributes:
        tokens: int32 [B, max_new_tokens], new tokens with each row's stop token, then padding.
        lengths: int32 [B], how many of them were generated, the stop token included.
        sequences: int32 [B, T + max_new_tokens], `input_ids` followed by `tokens`.
        text: the rows decoded, or None without a tokenizer.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    sequences: np.ndarray
    text: list[str] | None = None


class Reply(str):
    """A reply in a chat: a string that also carries the media which came with it."""

    images: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A language model that may see, with its weights.

    Attributes:
        config: the parts.
        params: nested dicts of arrays, blocks stacked.
        processor: tokenizer, image recipes and chat template, or None where the checkpoint has no tokenizer.
        dtype: compute dtype.
        generation: defaults of `generate`, in transformers' names (eos_token_id, ...).
        hf_config: config.json of the checkpoint, whose other keys an export keeps.
    """

    config: MultimodalLMConfig
    params: dict[str, Any]
    processor: Processor | None = None
    dtype: str = "float32"
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hf_config: Mapping[str, Any] | None = None

    @functools.cached_property
    def module(self) -> MultimodalLM:
        """The pure functions."""
        return MultimodalLM(self.config, self.dtype)

    @functools.cached_property
    def programs(self) -> Programs:
        """The compiled programs of generation; `programs.compilations` counts them."""
        return Programs(self.module)

    @functools.cached_property
    def _forward(self) -> Callable[..., Any]:
        return jax.jit(self.module.__call__)

    def apply(self, params: dict[str, Any], batch: Batch) -> Any:
        """The pure forward pass: (params, batch) -> `mmjax.model.Output`."""
        return self.module(params, batch)

    def batch(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        pixel_values: Any = None,
        labels: Any = None,
        position_ids: Any = None,
    ) -> Batch:
        """Arrays as a transformers processor gives them -> the `Batch` that the pure functions take.

        Args:
            input_ids: int [B, T], each image as a run of its placeholder token, one a feature.
            attention_mask: [B, T], 0 is padding, on any side.
            pixel_values: float [I, 3, H, W] or [I, H, W, 3], all images in the order of their placeholders.
            labels: int [B, T], -100 is no target.
            position_ids: int [B, T]; counted over what is no padding if not given.

        Raises:
            ValueError: wrong shapes; pixels for a model that takes none.
            TokenPlanError: placeholders and images that do not fit, with the row and both counts.
        """
        tokens = _integers("input_ids", input_ids)
        mask = np.ones_like(tokens) if attention_mask is None else _integers("attention_mask", attention_mask)
        given = {"attention_mask": mask}
        if position_ids is not None:
            given["position_ids"] = _integers("position_ids", position_ids)
        if labels is not None:
            given["labels"] = _integers("labels", labels)
        for name, array in given.items():
            if array.shape != tokens.shape:
                raise ValueError(f"{name} is {array.shape}, input_ids is {tokens.shape}")
        positions = given.get("position_ids", np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32))
        media_index, media = self._place(tokens, pixel_values)
        text = TextStream(tokens, positions, (mask > 0).astype(np.int32), media_index=media_index)
        if labels is not None:
            targets = given["labels"] != -100
            most = min(program_length(max(int(targets.sum(axis=1).max()), 1)), tokens.shape[1])
            text = text.replace(
                loss_weights=targets.astype(np.float32), loss_positions=target_positions(targets, most)
            )
        return Batch({"text": text}, media)

    def _place(self, tokens: np.ndarray, pixel_values: Any) -> tuple[np.ndarray | None, dict[str, Media]]:
        """Rows of media for placeholder tokens, and the images grouped by the row of text they belong to."""
        if not self.config.encoders:
            if pixel_values is not None:
                raise ValueError("this model takes no images: it has no encoder")
            return None, {}
        if len(self.config.encoders) > 1:
            raise ValueError(
                f"the model has ports {', '.join(self.config.encoders)}: build the Batch by hand"
            )
        port = next(iter(self.config.encoders))
        at = tokens == self.config.media_tokens[port]
        size = self.config.num_tokens(port)
        counts = at.sum(axis=1)
        images = None if pixel_values is None else _channels_last(pixel_values)
        total = 0 if images is None else len(images)
        for row, count in enumerate(counts):
            if count % size:
                raise TokenPlanError(
                    f"row {row}: {count} placeholder tokens are no whole number of images of {size} tokens each"
                )
        if counts.sum() != total * size:
            per_row = ", ".join(str(count // size) for count in counts)
            raise TokenPlanError(
                f"the placeholders are those of {per_row} images a row, but there are {total} images"
            )
        if not total:
            return None, {}
        items = counts // size
        values = np.zeros((len(tokens), max(items), *images.shape[1:]), np.float32)
        segments = np.zeros(values.shape[:2], np.int32)
        for row, first in enumerate(np.cumsum(items) - items):
            values[row, : items[row]] = images[first : first + items[row]]
            segments[row, : items[row]] = np.arange(1, items[row] + 1)
        media_index = np.where(at, np.cumsum(at, axis=1) - 1, -1).astype(np.int32)
        return media_index, {port: Media(values, segments)}

    def __call__(self, input_ids: Any, attention_mask: Any = None, pixel_values: Any = None, labels: Any = None,
                 position_ids: Any = None) -> ModelOutput:  # fmt: skip
        """Logits at every position, and with `labels` the loss; arguments as `batch`."""
        batch = self.batch(input_ids, attention_mask, pixel_values, labels, position_ids)
        out = self._forward(self.params, batch)
        loss = None if labels is None else _label_loss(out.logits, np.asarray(labels))
        return ModelOutput(out.logits, out.hidden, loss)

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        pixel_values: Any = None,
        position_ids: Any = None,
        **options: Any,
    ) -> GenerateOutput:
        """Generates from every row; arguments as `batch`, options as `options_of`."""
        chosen = self.options_of(**options)
        batch = self.batch(input_ids, attention_mask, pixel_values, position_ids=position_ids)
        out = generate(self.module, self.params, batch, chosen, self.programs)
        text = None
        if self.processor is not None:
            rows = zip(out.tokens, out.lengths, strict=True)
            text = [answer_text(self.processor.tokenizer, row[:length], chosen) for row, length in rows]
        sequences = np.concatenate([np.asarray(batch.text.tokens), out.tokens], axis=1)
        return GenerateOutput(out.tokens, out.lengths, sequences, text)

    def options_of(
        self, eos_token_id: Any = None, pad_token_id: int | None = None, **options: Any
    ) -> GenerateOptions:
        """`GenerateOptions` with the checkpoint's defaults: its stop ids, its padding, and how it samples.

        Args:
            eos_token_id: stop id or ids; () never stops early.
            pad_token_id: what follows a row's last token.
            options: any other field of `GenerateOptions`.

        Raises:
            ValueError: an unknown option, with the nearest right one, or a value that cannot work.
        """
        stop = eos_token_id if eos_token_id is not None else options.pop("stop_ids", None)
        stop = self.stop_ids if stop is None else stop
        stop = tuple(stop) if isinstance(stop, Iterable) else (stop,)
        pad = pad_token_id if pad_token_id is not None else options.pop("pad_id", None)
        if pad is None:
            pad = self.generation.get("pad_token_id")
        if pad is None:
            pad = stop[0] if stop else 0
        names = [field.name for field in dataclasses.fields(GenerateOptions)]
        for name in options:
            check_choice("option of generate", name, names)
        defaults = {
            name: self.generation[name]
            for name in ("temperature", "top_k", "top_p")
            if name in self.generation
        }
        defaults = {name: value for name, value in defaults.items() if value is not None}
        return GenerateOptions(**{**defaults, **options, "stop_ids": stop, "pad_id": int(pad)})

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a reply: of the generation defaults, else the tokenizer's end of text."""
        stop = self.generation.get("eos_token_id")
        if stop is None and self.processor is not None:
            stop = self.processor.tokenizer.eos_id
        if stop is None:
            return ()
        return tuple(stop) if isinstance(stop, Iterable) else (stop,)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Reply:
        """The reply to a conversation.

        Args:
            messages: {"role", "content"} each; contents are strings or parts, as transformers or OpenAI
                spell them: {"type": "image", "path": ...}, {"type": "text", "text": ...}.
            on_text: called with each piece of the reply as it comes.
            options: as `options_of`.

        Raises:
            ValueError: no tokenizer, or a conversation that cannot be understood.
        """
        processor = self.need_processor("chat")
        chosen = self.options_of(**options)
        conversation = parse_record({"messages": list(messages)}, "chat")
        sample = processor.sample(conversation, add_generation_prompt=True)
        batch = collate([sample], processor.plan, pad_id=chosen.pad_id)
        pieces = TextStreamer(lambda ids: answer_text(processor.tokenizer, ids, chosen))

        def receive(tokens: np.ndarray, counts: np.ndarray) -> None:
            if piece := pieces.push(tokens[0, : counts[0]].tolist()):
                on_text(piece)

        check_request(self.module, batch, chosen)
        listener = None if on_text is None else receive
        out = generate(self.module, self.params, batch, chosen, self.programs, listener)
        if on_text is not None and (rest := pieces.finish()):
            on_text(rest)
        return Reply(answer_text(processor.tokenizer, out.tokens[0, : out.lengths[0]], chosen))

    def need_processor(self, what: str) -> Processor:
        """The processor.

        Raises:
            ValueError: there is none; the message says what for.
        """
        if self.processor is None:
            raise ValueError(f"{what} needs a tokenizer, and this checkpoint has none: give arrays instead")
        return self.processor

    def save_pretrained(self, directory: str | os.PathLike, format: str = "huggingface") -> None:
        """Writes the model: "huggingface" for transformers, LoRA merged; "mmjax" with everything as it is."""
        _save(self, directory, format)


@dataclasses.dataclass(frozen=True)
class EncoderOutput:
    """Outputs of an encoder, in transformers' names; what the model does not give is None."""

    logits_per_image: jax.Array | None = None
    logits_per_text: jax.Array | None = None
    image_embeds: jax.Array | None = None
    text_embeds: jax.Array | None = None
    last_hidden_state: jax.Array | None = None
    pooler_output: jax.Array | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderModel:
    """An image tower, a text tower, or both in one space (CLIP, SigLIP), with weights.

    Attributes:
        config: of the tower or towers.
        params: nested dicts of arrays, blocks stacked.
        dtype: compute dtype.
        hf_config: config.json of the checkpoint.
    """

    config: DualEncoderConfig | EncoderConfig | TextEncoderConfig
    params: dict[str, Any]
    dtype: str = "float32"
    hf_config: Mapping[str, Any] | None = None
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    processor: None = None

    @functools.cached_property
    def module(self) -> DualEncoder | Tower:
        """The pure functions."""
        return huggingface.model_of(self.config, dtype=self.dtype)

    @functools.cached_property
    def _forward(self) -> Callable[..., Any]:
        return jax.jit(self.module.__call__)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        pixel_values: Any = None,
        pixel_attention_mask: Any = None,
        spatial_shapes: Any = None,
    ) -> EncoderOutput:
        """Runs the towers that the model has.

        Args:
            input_ids, attention_mask: int [B, T], for a text tower.
            pixel_values: float [I, 3, H, W] or [I, H, W, 3], for an image tower; for one that takes images of
                any shape (SigLIP 2), float [I, N, patch numbers] with the next two.
            pixel_attention_mask: [I, N], 0 is padding.
            spatial_shapes: int [I, 2], rows and columns of patches.

        Raises:
            ValueError: an input that the model needs is missing.
        """
        wants_image = not isinstance(self.config, TextEncoderConfig)
        wants_text = isinstance(self.config, DualEncoderConfig | TextEncoderConfig)
        if (wants_image and pixel_values is None) or (wants_text and input_ids is None):
            needed = [
                name for name, want in (("input_ids", wants_text), ("pixel_values", wants_image)) if want
            ]
            raise ValueError(f"this model needs {' and '.join(needed)}")
        tokens = _integers("input_ids", input_ids) if wants_text else None
        mask = (
            None
            if attention_mask is None or not wants_text
            else _integers("attention_mask", attention_mask) > 0
        )
        if wants_image and np.ndim(pixel_values) == 3:
            if pixel_attention_mask is None or spatial_shapes is None:
                raise ValueError("patches as pixel_values need pixel_attention_mask and spatial_shapes")
            seen = _integers("pixel_attention_mask", pixel_attention_mask) > 0
            shapes = _integers("spatial_shapes", spatial_shapes)
            out = self._forward(self.params, np.asarray(pixel_values, np.float32), seen, shapes)
            return EncoderOutput(last_hidden_state=out["last_hidden_state"], pooler_output=out.get("pooled"))
        pixels = _channels_last(pixel_values) if wants_image else None
        if isinstance(self.config, DualEncoderConfig):
            per_image, per_text, image, text = self._forward(self.params, tokens, mask, pixels)
            return EncoderOutput(per_image, per_text, image, text)
        out = self._forward(self.params, pixels) if wants_image else self._forward(self.params, tokens, mask)
        # Maps lie channels first in transformers.
        out = {name: x.transpose(0, 3, 1, 2) if x.ndim == 4 else x for name, x in out.items()}
        embeds = {("image_embeds" if wants_image else "text_embeds"): out.get("embeds")}
        return EncoderOutput(
            last_hidden_state=out["last_hidden_state"], pooler_output=out.get("pooled"), **embeds
        )

    def save_pretrained(self, directory: str | os.PathLike, format: str = "huggingface") -> None:
        """Writes the model in transformers layout, or as an mmjax directory."""
        _save(self, directory, format)


def from_pretrained(
    path: str | os.PathLike, dtype: str = "float32", param_dtype: str | None = None, mesh: Any = None
) -> Model | EncoderModel:
    """Loads a model with its weights.

    Args:
        path: a directory in transformers layout (the families of `huggingface.FAMILIES`), an mmjax directory, a
            `.gguf` file, a `gs://` directory, or the name of a repository on the hub.
        dtype: of computation, "float32" or "bfloat16".
        param_dtype: of the weights, if it is to differ from `dtype`.
        mesh: a `jax.sharding.Mesh` to place the weights on, leaf by leaf as they are read.

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
    if (place / "config.json").exists():
        return _from_huggingface(place, dtype, param_dtype, mesh)
    raise ConfigError(f"{place}: neither config.json (transformers) nor {checkpoint.METADATA} (mmjax) in it")


def _from_gguf(place: Path, dtype: str, param_dtype: str, mesh: Any) -> Model:
    put = None
    if mesh is not None:
        put = _Put(mesh, MultimodalLMConfig(decoder_from_gguf(*read_gguf(place))))
    config, params, metadata = load_gguf(place, param_dtype, put)
    tokenizer = tokenizer_from_gguf(metadata)
    processor = Processor(tokenizer, {}, tokenizer.chat_template, {}, {}, config.num_tokens)
    generation = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    return Model(config, params, processor, dtype, generation)


def _from_mmjax(place: Path, dtype: str, param_dtype: str, mesh: Any) -> Model | EncoderModel:
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
        return EncoderModel(config, params, **common)
    processor = None
    if load_tokenizer(str(place)) is not None:
        processor = load_processor(place, config.num_tokens)
    return Model(config, params, processor, **common)


def _from_huggingface(place: Path, dtype: str, param_dtype: str, mesh: Any) -> Model | EncoderModel:
    put = None if mesh is None else _Put(mesh, huggingface.read_config(place)[0])
    loaded = huggingface.load(place, param_dtype, put)
    generation = loaded.generation_config or {}
    if not isinstance(loaded.config, MultimodalLMConfig):
        return EncoderModel(loaded.config, loaded.params, dtype, loaded.hf_config)
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
        if not config.encoders or not images:
            processor = Processor(
                tokenizer, {}, tokenizer.chat_template, {}, dict(config.media_tokens), config.num_tokens
            )
        else:
            processor = load_processor(place, config.num_tokens, tokenizer, dict(config.media_tokens))
    return Model(loaded.config, loaded.params, processor, dtype, generation, loaded.hf_config)


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


def _save(model: Model | EncoderModel, directory: str | os.PathLike, format: str) -> None:
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
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        processor.save(folder)
        return {
            str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()
        }


def _integers(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers [B, T], got {array.dtype} of shape {array.shape}")
    return array.astype(np.int32)


def _channels_last(pixel_values: Any) -> np.ndarray:
    array = np.asarray(pixel_values, np.float32)
    if array.ndim != 4 or 3 not in (array.shape[1], array.shape[-1]):
        raise ValueError(f"pixel_values must be [I, 3, H, W] or [I, H, W, 3], got shape {array.shape}")
    return array.transpose(0, 2, 3, 1) if array.shape[1] == 3 else array


@jax.jit
def _label_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of labels[t] by logits[t - 1], over labels that are not -100."""
    targets = labels[:, 1:]
    counted = targets != -100
    scores = jax.nn.log_softmax(logits[:, :-1])
    picked = jnp.take_along_axis(scores, jnp.where(counted, targets, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(picked * counted) / jnp.sum(counted)
