"""What a user holds: a model with its weights and its processor, a few lines over the pure functions.

`mmjax.pretrained` makes it of a path.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import check_choice
from mmjax.data.collate import collate, target_positions
from mmjax.data.contracts import Batch, TextStream
from mmjax.data.conversation import parse_record
from mmjax.data.processor import Processor
from mmjax.infer.answers import Makers, Making, answer, begun, read_making
from mmjax.infer.batch import answer_text
from mmjax.infer.chat import Reply, TextStreamer
from mmjax.infer.gallery import open_gallery
from mmjax.infer.generate import GenerateOptions, Programs, check_request, program_length, with_start
from mmjax.infer.image_codes import WriteOptions, place_codes, rules_of
from mmjax.infer.masks import scene_of
from mmjax.infer.media_files import WITHOUT_SCENES, by_kind
from mmjax.infer.retrieve import Gallery, Retrieved
from mmjax.interop.huggingface.input_items import integers
from mmjax.interop.huggingface.inputs import MEDIA_NAMES, TOKEN_TYPES, counted_positions, read_media
from mmjax.interop.huggingface.token_types import bidirectional_groups
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.save import save


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
        sequences: int32 [B, T + max_new_tokens], `input_ids` (of an encoder-decoder `decoder_input_ids`, or its start
            token) followed by `tokens`.
        text: the rows decoded, or None without a tokenizer.
        images: of each row what it signalled, in order, float32 [H, W, 3] from 0 to 1; None without such a generator.
        videos: likewise, [T, H, W, 3].
        audios: likewise, [samples].
        image_codes: of a model that writes images as tokens the codes of each row's images, int32 [h, w]; else None.
        retrieved: port of a gallery -> for each row what was found for its signals; None without galleries.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    sequences: np.ndarray
    text: list[str] | None = None
    images: list[list[np.ndarray]] | None = None
    videos: list[list[np.ndarray]] | None = None
    audios: list[list[np.ndarray]] | None = None
    image_codes: list[list[np.ndarray]] | None = None
    retrieved: dict[str, list[list[Retrieved]]] | None = None


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
    def makers(self) -> Makers:
        """The compiled programs that make media; `makers.compilations` counts them."""
        return Makers(self.module, self.generation)

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
        labels: Any = None,
        position_ids: Any = None,
        decoder_input_ids: Any = None,
        **media: Any,
    ) -> Batch:
        """Arrays as a transformers processor gives them -> the `Batch` that the pure functions take.

        Args:
            input_ids: int [B, T], each media item as a run of its placeholder token, one a feature.
            attention_mask: [B, T], 0 is padding, on any side.
            labels: int [B, T], -100 is no target. Of an encoder-decoder as long as the answers, which the decoder
                then reads one place later, behind its start token.
            position_ids: int [B, T]; counted over what is no padding if not given.
            decoder_input_ids: int [B, T], what an encoder-decoder has written so far, its start token first.
            media: what the processor gives for them, in its names; all items in the order of their placeholders.
                For images of one size, pixel_values float [I, 3, H, W] or [I, H, W, 3]; see
                `mmjax.interop.huggingface.inputs` for the others, and token_types.py there for token_type_ids.

        Raises:
            ValueError: wrong shapes; media that the model does not take.
            TokenPlanError: placeholders and items that do not fit, with the row and both counts.
        """
        tokens = integers("input_ids", input_ids)
        mask = np.ones_like(tokens) if attention_mask is None else integers("attention_mask", attention_mask)
        given = {"attention_mask": mask}
        if position_ids is not None:
            given["position_ids"] = integers("position_ids", position_ids)
        two_sided = "query" in self.config.streams
        if labels is not None and not two_sided:
            given["labels"] = integers("labels", labels)
        for name, array in given.items():
            if array.shape != tokens.shape:
                raise ValueError(f"{name} is {array.shape}, input_ids is {tokens.shape}")
        types = media.pop(TOKEN_TYPES, None)
        if self.config.codes is not None:
            tokens = place_codes(self.module, self.params, self.makers.codes, tokens, media)
        placed = read_media(self.config, tokens, media)
        positions = given.get("position_ids")
        if positions is None:
            positions = counted_positions(self.config, mask > 0, placed.runs)
        targets = given["labels"] != -100 if "labels" in given else None
        text = TextStream(
            tokens,
            positions,
            (mask > 0).astype(np.int32),
            media_index=placed.index,
            media_attention=placed.attention,
            bidirectional_group=bidirectional_groups(self.config, mask > 0, placed.runs, types, targets),
        )
        if two_sided:
            return Batch({"query": text, **self._answers(len(tokens), labels, decoder_input_ids)}, placed.media)
        if decoder_input_ids is not None:
            raise ValueError("decoder_input_ids: this model is no encoder-decoder, its answers follow input_ids")
        if targets is not None:
            most = min(program_length(max(int(targets.sum(axis=1).max()), 1)), tokens.shape[1])
            text = text.replace(
                loss_weights=targets.astype(np.float32), loss_positions=target_positions(targets, most)
            )
        return Batch({"text": text}, placed.media)

    def _answers(self, rows: int, labels: Any, decoder_input_ids: Any) -> dict[str, TextStream]:
        """The stream "decoder" of an encoder-decoder's batch, if there is anything to put in it."""
        if labels is None and decoder_input_ids is None:
            return {}
        if labels is not None and decoder_input_ids is not None:
            raise ValueError("labels or decoder_input_ids, not both: the decoder reads the labels one place later")
        name = "decoder_input_ids" if labels is None else "labels"
        tokens = integers(name, decoder_input_ids if labels is None else labels)
        if len(tokens) != rows:
            raise ValueError(f"{name} has {len(tokens)} rows, input_ids has {rows}")
        extra = {}
        if labels is not None:
            tokens, wanted = (np.pad(a, ((0, 0), (1, 0))) for a in (tokens, tokens != -100))
            tokens = np.where(wanted, tokens, self.generation.get("pad_token_id") or 0).astype(np.int32)
            tokens[:, 0] = self.config.backbone.start_token
            most = min(program_length(max(int(wanted.sum(axis=1).max()), 1)), tokens.shape[1])
            extra = {"loss_weights": wanted.astype(np.float32), "loss_positions": target_positions(wanted, most)}
        positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        return {"decoder": TextStream(tokens, positions, np.ones_like(tokens), **extra)}

    def __call__(self, input_ids: Any, attention_mask: Any = None, labels: Any = None, position_ids: Any = None,
                 decoder_input_ids: Any = None, **media: Any) -> ModelOutput:  # fmt: skip
        """Logits at every position, and with `labels` the loss; arguments as `batch`."""
        batch = self.batch(input_ids, attention_mask, labels, position_ids, decoder_input_ids, **media)
        if self.config.streams[-1] not in batch.texts:
            raise ValueError("an encoder-decoder needs labels or decoder_input_ids beside input_ids")
        out = self._forward(self.params, batch)
        if "query" in self.config.streams and labels is not None:
            # The decoder read a start token more than there are labels: label t is the target of logits t.
            loss = _label_loss(out.logits, np.pad(np.asarray(labels), ((0, 0), (1, 0)), constant_values=-100))
            return ModelOutput(out.logits[:, :-1], out.hidden[:, :-1], loss)
        loss = None if labels is None else _label_loss(out.logits, np.asarray(labels))
        return ModelOutput(out.logits, out.hidden, loss)

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        decoder_input_ids: Any = None,
        **options: Any,
    ) -> GenerateOutput:
        """Generates from every row; text and media as in `batch`, all else as `options_of` and `making`."""
        making = self.making(options)
        media = {name: options.pop(name) for name in MEDIA_NAMES if name in options}
        chosen = self.options_of(**options)
        batch = self.batch(input_ids, attention_mask, None, position_ids, decoder_input_ids, **media)
        batch = with_start(self.module, batch)
        found = answer(self.module, self.params, batch, chosen, making, self.programs, self.makers)
        text = None
        if self.processor is not None:
            rows = zip(found.spoken.tokens, found.spoken.lengths, strict=True)
            text = [answer_text(self.processor.tokenizer, row[:length], chosen) for row, length in rows]
        written = batch.texts[self.config.streams[-1]]
        sequences = np.concatenate([np.asarray(written.tokens), found.out.tokens], axis=1)
        media, retrieved = by_kind(found.made, making.galleries)
        media = {name: media.get(name) for name in WITHOUT_SCENES}
        rest = {"image_codes": found.codes, "retrieved": retrieved or None}
        return GenerateOutput(found.out.tokens, found.out.lengths, sequences, text, **media, **rest)

    def making(self, options: dict[str, Any]) -> Making:
        """How media are made: those of `options` that only this reads are taken out.

        Args:
            options: num_inference_steps and guidance_scale of generators (with the seed that is there); galleries, port
                of retrieval -> `Gallery`, and num_retrieved; of a model that writes images as tokens generation_mode,
                guidance_scale, image_grid, negative_prompt or negative_prompt_ids (see `asked_options`).

        Raises:
            ValueError: options that the model knows nothing of, or that cannot work.
        """
        return read_making(self.module, options, self.batch, self.processor, self.generation)

    def gallery(
        self, port: str, images: str | os.PathLike | Sequence[str | os.PathLike], batch_size: int = 64
    ) -> Gallery:
        """A gallery for the option `galleries` of `generate`, embedded batch after batch with progress on stderr.

        Args:
            port: of retrieval.
            images: a directory, or paths of images.
            batch_size: images at a time.

        Raises:
            FileNotFoundError: no such directory, or no images in it.
            ValueError: a port that retrieves nothing; no image that can be read. Some that cannot are a warning.
        """
        return open_gallery(self.module, self.params, self.need_processor("a gallery"), port, images, batch_size)

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
        if self.config.codes is not None:
            defaults["images"] = rules_of(self.module, WriteOptions("text"))
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
            options: as `options_of` and `making`.

        Raises:
            ValueError: no tokenizer, or a conversation that cannot be understood.
        """
        processor = self.need_processor("chat")
        making = self.making(options)
        chosen = self.options_of(**options)
        conversation = parse_record({"messages": list(messages)}, "chat")
        sample = processor.sample(conversation, add_generation_prompt=True)
        sample = begun(self.module, sample, making, processor, self.generation)
        batch = collate([sample], processor.plan, pad_id=chosen.pad_id)
        pieces = TextStreamer(lambda ids: answer_text(processor.tokenizer, ids, chosen))

        def receive(tokens: np.ndarray, counts: np.ndarray) -> None:
            if piece := pieces.push(tokens[0, : counts[0]].tolist()):
                on_text(piece)

        check_request(self.module, batch, chosen)
        listener = None if on_text is None else receive
        programs = self.programs, self.makers
        given = self.module, self.params, batch, chosen, making, *programs
        found = answer(*given, on_tokens=listener, scenes=[scene_of(self.module, processor, conversation)])
        if on_text is not None and (rest := pieces.finish()):
            on_text(rest)
        return Reply.of(found, making, processor.tokenizer, chosen)

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
        save(self, directory, format)


@jax.jit
def _label_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of labels[t] by logits[t - 1], over labels that are not -100."""
    targets = labels[:, 1:]
    counted = targets != -100
    scores = jax.nn.log_softmax(logits[:, :-1])
    picked = jnp.take_along_axis(scores, jnp.where(counted, targets, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(picked * counted) / jnp.sum(counted)
