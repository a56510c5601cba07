"""Images as tokens, on the host: what is asked for, which images stand in an answer, codes to pixels and back."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import check_choice
from mmjax.data.contracts import Batch, TextStream
from mmjax.data.items import TokenPlanError
from mmjax.generators.image_codes import ImageCodesConfig
from mmjax.infer.constrained import NOWHERE, ImageRules, first_place, image_rules
from mmjax.infer.generate import GenerateOptions, Generation, Programs, generate, prompt_stream
from mmjax.infer.signals import power_of_two
from mmjax.model import MultimodalLM

MODES = ("text", "interleaved", "image")
_first_place = jax.jit(first_place)
# Of classifier-free guidance, where codes have an output layer of their own: as Janus was published.
GUIDANCE = 5.0


@dataclasses.dataclass(frozen=True, eq=False)
class WriteOptions:
    """How images are written.

    Attributes:
        mode: "text" only; "interleaved": an image wherever the model begins one; "image": every row is one, at once.
        guidance_scale: of classifier-free guidance over codes; 1 is none.
        grid: (height, width) in codes, or one a row [B, 2]; None: as the model was trained.
        without: what guidance leads away from, a stream of as many rows, or of one for all; None: `without_request`.
    """

    mode: str
    guidance_scale: float = 1.0
    grid: Any = None
    without: TextStream | None = None


@dataclasses.dataclass(frozen=True)
class Written:
    """The whole images of each row, in order: their codes int32 [h, w], and float32 [H, W, 3] from 0 to 1, or None
    where no decoder of codes is known."""

    codes: list[list[np.ndarray]]
    images: list[list[np.ndarray]] | None


def asked_options(model: MultimodalLM, options: dict[str, Any], read: Callable[..., Batch]) -> WriteOptions:
    """`WriteOptions` of those of `options` that only they know, which are taken out.

    Args:
        model: one that writes images as codes.
        options: read are generation_mode, one of `MODES` ("interleaved", or "text" where no token begins an image,
            unless given); guidance_scale; image_grid, (height, width) in codes or one a row;
            negative_prompt_ids and negative_prompt_attention_mask, int [B, T], what guidance leads away from. With
            "image" max_new_tokens is the image's length unless given.
        read: (ids, mask) -> Batch.

    Raises:
        ConfigError: an unknown mode.
        ValueError: text alone with options of images; fewer new tokens than an image has.
    """
    codes = model.config.codes
    mode = options.pop("generation_mode", None) or ("text" if codes.begin is None else "interleaved")
    check_choice("generation_mode", mode, MODES)
    names = ("guidance_scale", "image_grid", "negative_prompt_ids", "negative_prompt_attention_mask")
    given = {name: options.pop(name, None) for name in names}
    if mode == "text":
        named = [name for name, value in given.items() if value is not None]
        if named:
            raise ValueError(f'{", ".join(named)}: generation_mode "text" writes no images')
        return WriteOptions(mode)
    scale, grid, negative, mask = given.values()
    if scale is None:
        scale = GUIDANCE if codes.own else 1.0
    without = None if negative is None else read(negative, mask).text
    write = WriteOptions(mode, float(scale), grid, without)
    if mode == "image":
        length = image_length(model, write)
        if options.setdefault("max_new_tokens", length) < length:
            raise ValueError(f"max_new_tokens is {options['max_new_tokens']}; an image is of {length} tokens")
    return write


def image_length(model: MultimodalLM, write: WriteOptions) -> int:
    """How many tokens an image is, the largest where rows have images of several sizes."""
    codes = model.config.codes
    sides = np.reshape(codes.grid if write.grid is None else write.grid, (-1, 2)).tolist()
    return max(codes.length(tuple(side)) for side in sides)


def rules_of(model: MultimodalLM, write: WriteOptions, rows: int = 1) -> ImageRules | None:
    """The rules of the compiled loop; None where nothing can go wrong: codes behind the vocabulary, and text alone."""
    codes, config = model.config.codes, model.config
    if write.mode == "text" and codes.own:
        return None
    grid = write.grid
    if grid is not None and np.ndim(grid) == 2:
        if np.shape(grid) != (rows, 2):
            raise ValueError(f"image_grid is {np.shape(grid)}; wanted (height, width), or [{rows}, 2], one a row")
        grid = np.tile(grid, (1 if write.guidance_scale == 1 else 2, 1))
    image = write.mode == "image"
    return image_rules(codes, config.words, grid, write.guidance_scale, image, write.mode == "interleaved")


def without_request(model: MultimodalLM, text: TextStream, generation: Mapping[str, Any], pad_id: int) -> TextStream:
    """A prompt [B, T] with what it asks for taken out.

    Of codes with an embedding of their own (Janus), all but the first token of a text and the one that begins an image
    become padding tokens that are read; else (Emu3) the last token stands alone.
    """
    tokens, valid = np.asarray(text.tokens), np.asarray(text.segment_ids) > 0
    last = valid & (np.cumsum(valid, axis=1) == valid.sum(axis=1, keepdims=True))
    if model.config.codes.own:
        begins = (generation.get("generation_kwargs") or {}).get("boi_token_id")
        kept = last if begins is None else tokens == begins
        kept = kept | (tokens == generation.get("bos_token_id", NOWHERE))
        return text.replace(tokens=np.where(kept, tokens, pad_id).astype(np.int32), media_index=_nowhere(text))
    positions = np.zeros_like(np.asarray(text.positions))
    return text.replace(segment_ids=last.astype(np.int32), positions=positions, media_index=_nowhere(text))


def _nowhere(text: TextStream) -> np.ndarray | None:
    return None if text.media_index is None else np.full(np.shape(text.media_index), NOWHERE, np.int32)


def beside(batch: Batch, without: TextStream) -> Batch:
    """`batch` [B] with the rows of `without` behind its own, which see the same media if any; padded on the right.

    Of `without` there are as many rows, or one for all.

    Raises:
        ValueError: another number of rows.
    """
    text = batch.text
    rows, others = (np.shape(stream.tokens)[0] for stream in (text, without))
    if others == 1:
        without, others = jax.tree.map(lambda leaf: np.repeat(leaf, rows, axis=0), without), rows
    if rows != others:
        raise ValueError(f"negative_prompt_ids has {others} rows, input_ids has {rows}")
    length = max(np.shape(stream.tokens)[1] for stream in (text, without))

    def joined(name: str, fill: int = 0) -> np.ndarray | None:
        leaves = [getattr(stream, name) for stream in (text, without)]
        if leaves[0] is None:
            return None
        missing = np.full(np.shape(without.tokens), fill, np.int32)
        leaves = [np.asarray(leaf if leaf is not None else missing) for leaf in leaves]
        padded = [
            np.pad(leaf, [(0, 0), (0, length - leaf.shape[1])] + [(0, 0)] * (leaf.ndim - 2), constant_values=fill)
            for leaf in leaves
        ]
        return np.concatenate(padded)

    stream = TextStream(
        joined("tokens"), joined("positions"), joined("segment_ids"), media_index=joined("media_index", NOWHERE)
    )
    owner = np.arange(rows) if batch.media_owner is None else np.asarray(batch.media_owner)
    owner = np.tile(owner, 2).astype(np.int32) if batch.media else None
    return batch.replace(texts={**batch.texts, "text": stream}, media_owner=owner)


class CodePrograms:
    """The compiled programs between codes and pixels; `compilations` counts them."""

    def __init__(self, model: MultimodalLM):
        self.model, self.compilations = model, 0
        self._run = jax.jit(self._trace, static_argnums=1)

    def _trace(self, params: dict[str, Any], method: str, values: Any) -> Any:
        self.compilations += 1
        made = self.model.codes(params, method, values)
        return made if method == "encode" else jnp.clip(made.astype(jnp.float32) / 2 + 0.5, 0, 1)

    def _each(self, params: dict[str, Any], method: str, values: np.ndarray) -> np.ndarray:
        room = power_of_two(len(values)) - len(values)
        padded = np.pad(values, [(0, room)] + [(0, 0)] * (values.ndim - 1))
        return np.asarray(self._run({"codes": params["codes"]}, method, padded))[: len(values)]

    def encode(self, params: dict[str, Any], images: np.ndarray) -> np.ndarray:
        """Images float32 [I, H, W, 3] as the autoencoder takes them -> codes int32 [I, h, w]."""
        return self._each(params, "encode", np.asarray(images, np.float32))

    def decode(self, params: dict[str, Any], codes: np.ndarray) -> np.ndarray:
        """Codes int32 [I, h, w] -> images float32 [I, H, W, 3] from 0 to 1."""
        return self._each(params, "decode", np.asarray(codes, np.int32))


def find_images(config: ImageCodesConfig, grid: Sequence[int], tokens: np.ndarray, place: int) -> list[np.ndarray]:
    """The whole images among new tokens, codes int32 [h, w] each.

    Args:
        config: which tokens are codes.
        grid: (height, width) of them.
        tokens: int [n], of one row.
        place: of the first of them, as `mmjax.infer.constrained` counts; NOWHERE in text.
    """
    numbers = {int(token): code for code, token in enumerate(config.tokens())}
    height, width = (int(side) for side in grid)
    length, found, codes = config.length((height, width)), [], []
    for token in tokens.tolist():
        if place == NOWHERE:
            place, codes = (0 if token == config.begin else NOWHERE), []
            continue
        if token in numbers:
            codes.append(numbers[token])
            if len(codes) == height * width:
                found.append(np.asarray(codes, np.int32).reshape(height, width))
        place = place + 1 if place + 1 < length else NOWHERE
        if place == NOWHERE:
            codes = []
    return found


def text_only(model: MultimodalLM, out: Generation) -> Generation:
    """What was generated without its codes, for a tokenizer."""
    return Generation(*_words(model, out.tokens, out.lengths))


def _words(model: MultimodalLM, tokens: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first `counts` [B] of each row of tokens [B, n] without codes, moved to the front; and how many they are."""
    kept = (np.arange(tokens.shape[1]) < counts[:, None]) & ~np.isin(tokens, model.config.codes.tokens())
    order = np.argsort(~kept, axis=1, kind="stable")
    return np.take_along_axis(tokens, order, axis=1), kept.sum(axis=1)


def place_codes(
    model: MultimodalLM,
    params: dict[str, Any],
    programs: CodePrograms,
    tokens: np.ndarray,
    media: dict[str, Any],
) -> np.ndarray:
    """Tokens [B, T] with the codes of the images that are read instead of their placeholders.

    Args:
        model, params, programs: with `config.codes`; without its `placeholder` nothing is done.
        tokens: a placeholder for each code, and each end of a row, of every image.
        media: pixel_values float [I, 3, H, W] and image_sizes [I, 2] of what is no padding are taken out.

    Raises:
        TokenPlanError: other placeholders than the images have codes.
    """
    config = model.config.codes
    if config.placeholder is None or media.get("pixel_values") is None:
        return tokens
    pixels = np.asarray(media.pop("pixel_values"), np.float32)
    pixels = pixels.transpose(0, 2, 3, 1) if pixels.shape[1] == 3 else pixels
    sizes = media.pop("image_sizes", None)
    sides = np.asarray([pixels.shape[1:3]] * len(pixels) if sizes is None else sizes) // config.maps.downsampling
    found = programs.encode(params, pixels)
    ids, words = config.tokens(), []
    for image, (height, width) in zip(found, sides.tolist(), strict=True):
        rows = ids[image[:height, :width]]
        if config.row_end is not None:
            rows = np.pad(rows, ((0, 0), (0, 1)), constant_values=config.row_end)
        words.append(rows.reshape(-1))
    at, words = tokens == config.placeholder, np.concatenate(words)
    if at.sum() != len(words):
        raise TokenPlanError(
            f"{len(pixels)} images become {len(words)} tokens, but there are {int(at.sum())} placeholders: "
            f"{', '.join(map(str, at.sum(axis=1).tolist()))} in the rows"
        )
    placed = tokens.copy()
    placed[at] = words
    return placed


def generate_images(
    model: MultimodalLM,
    params: dict[str, Any],
    batch: Batch,
    options: GenerateOptions,
    write: WriteOptions,
    programs: Programs | None = None,
    codes: CodePrograms | None = None,
    generation: Mapping[str, Any] | None = None,
    on_tokens: Callable[[np.ndarray, np.ndarray], None] | None = None,
    numbers: Sequence[int] | None = None,
    count: int | None = None,
) -> tuple[Generation, Written]:
    """Generates from every row, and decodes the images that it wrote.

    Args:
        model, params: with `config.codes`; its params stacked.
        batch, options, programs: of the text, as in `generate`.
        write: how images are written.
        codes: compiled programs to use again.
        generation: transformers' generation config, of which the tokens that begin a text or an image are read.
        on_tokens: as in `generate`, told of all but codes.
        numbers: `rows` of `generate`.
        count: of how many rows, the first ones, images are wanted; all if None.

    Raises:
        ValueError: as `generate`, and for a grid or a negative prompt of another number of rows.
    """
    programs = Programs(model) if programs is None else programs
    batch, rows = programs.with_codes(params, batch), len(batch.text.tokens)
    rules = rules_of(model, write, rows)
    options = dataclasses.replace(options, images=rules)
    whole = batch
    if rules is not None and float(rules.guidance) != 1:
        without = write.without or without_request(model, batch.text, generation or {}, options.pad_id)
        whole = beside(batch, without)
    copies = 1 if whole is batch else 2
    numbers = None if numbers is None else np.tile(np.asarray(numbers, np.int32), copies)
    listener = None
    if on_tokens is not None:
        listener = lambda tokens, counts: on_tokens(*_words(model, tokens[:rows], counts[:rows]))
    out = generate(model, params, whole, options, programs, listener, rows=numbers)
    out = Generation(out.tokens[:rows], out.lengths[:rows])
    count = rows if count is None else count
    if rules is None:
        return out, Written([[] for _ in range(count)], [[] for _ in range(count)])
    found = _found(model, prompt_stream(batch), rules, out)[:count]
    if not model.config.codes.decodes:
        return out, Written(found, None)
    codes = CodePrograms(model) if codes is None else codes
    images: list[list[Any]] = [[None] * len(row) for row in found]
    for shape in {image.shape for row in found for image in row}:
        at = [(r, n) for r, row in enumerate(found) for n, image in enumerate(row) if image.shape == shape]
        drawn = codes.decode(params, np.stack([found[r][n] for r, n in at]))
        for (r, n), image in zip(at, drawn, strict=True):
            images[r][n] = image
    return out, Written(found, images)


def _found(model: MultimodalLM, text: TextStream, rules: ImageRules, out: Generation) -> list[list[np.ndarray]]:
    """The images of each row; one that the prompt began is whole with what stood there."""
    rows = len(out.tokens)
    single = dataclasses.replace(rules, grid=rules.grid[:rows])
    places = np.asarray(_first_place(single, text)).tolist()
    grids = np.broadcast_to(single.grid, (rows, 2))
    found = []
    for row, place in enumerate(places):
        said = np.asarray(text.tokens)[row][np.asarray(text.segment_ids)[row] > 0]
        said = said[len(said) - place :] if place > 0 else said[:0]
        tokens = np.concatenate([said, out.tokens[row, : out.lengths[row]]])
        found.append(find_images(model.config.codes, grids[row], tokens, 0 if place >= 0 else NOWHERE))
    return found
