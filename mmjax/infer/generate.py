"""Generation: media encoded once, one prefill, then one compiled loop that decodes until all rows are done.

Prompts may be padded on the left, on the right, or both: a token counts where its `segment_ids` is
positive, and its place in the text is its entry of `positions`. Row b's prompt lies in the cache at slots 0
to T-1, padding included, and its i-th new token at slot T+i, so all rows share one scalar slot; the mask
leaves padding out.

An encoder-decoder reads the stream "query" once, into keys of the cross-attention; its prompt is the stream
"decoder", or where that is missing its start token alone.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from mmjax.backbones import BackboneConfig
from mmjax.data.contracts import Batch, TextStream
from mmjax.infer.cache import State, empty_cache, is_unstacked, unstack
from mmjax.infer.constrained import ImageRules, advance, first_place
from mmjax.infer.sampling import NO_STOP_ID, Branches, Numbers, row_keys, sample
from mmjax.model import MultimodalLM
from mmjax.nn.masks import attention_mask


@dataclass(frozen=True)
class GenerateOptions:
    """How to generate. The names and meanings are those of transformers.

    Attributes:
        max_new_tokens: at most this many tokens a row, the stop token included.
        min_new_tokens: no stop token before this many.
        do_sample: draw from the distribution instead of taking the likeliest token.
        temperature: divides the logits when drawing.
        top_k: draw from the k likeliest only; 0 is no limit.
        top_p: draw from the likeliest that together have this probability; 1 is no limit.
        repetition_penalty: above 1, makes tokens of the prompt and of the answer less likely; 1 is none.
        stop_ids: a row is done after any of these, which is its last token.
        pad_id: what follows a row's last token.
        seed: of the draws, 0 to 2**32 - 1.
        follow: (token, next token) pairs: behind the first of these tokens, wherever a row has written it, comes the
            second, whatever the model says.
        images: of a model that writes images as tokens, where codes may stand and where they must; None: codes are
            tokens as all others. With guidance the second half of the rows are those that it leads away from.

    Raises:
        ValueError: a value that cannot work, named with what would.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop_ids: tuple[int, ...] = ()
    pad_id: int = 0
    seed: int = 0
    follow: tuple[tuple[int, int], ...] = ()
    images: ImageRules | None = None

    def __post_init__(self):
        object.__setattr__(self, "stop_ids", tuple(int(i) for i in self.stop_ids))
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens must lie between 0 and max_new_tokens {self.max_new_tokens}, got {self.min_new_tokens}"
            )
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be a positive number, got {self.temperature}; "
                "for the likeliest token every time use do_sample=False"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (no limit) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie above 0 and at most at 1, got {self.top_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty must be a positive number, got {self.repetition_penalty}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie between 0 and {2**32 - 1}, got {self.seed}")

    def split(self) -> tuple[Branches, Numbers]:
        """What is compiled in, and what the compiled program reads."""
        branches = Branches(
            do_sample=self.do_sample,
            top_k=self.top_k if self.do_sample else 0,
            top_p=self.do_sample and self.top_p < 1,
            min_new_tokens=self.min_new_tokens > 0 and bool(self.stop_ids),
            repetition_penalty=self.repetition_penalty != 1,
            follow=bool(self.follow),
            guidance=self.images is not None and float(self.images.guidance) != 1,
        )
        stop_ids = np.full(-(-max(len(self.stop_ids), 1) // 4) * 4, NO_STOP_ID, np.int32)
        stop_ids[: len(self.stop_ids)] = self.stop_ids
        numbers = Numbers(
            temperature=np.float32(self.temperature),
            top_p=np.float32(self.top_p),
            min_new_tokens=np.int32(self.min_new_tokens),
            repetition_penalty=np.float32(self.repetition_penalty),
            stop_ids=stop_ids,
            pad_id=np.int32(self.pad_id),
            follow=np.array(self.follow, np.int32).reshape(-1, 2),
            images=self.images,
        )
        return branches, numbers


@dataclass(frozen=True)
class Generation:
    """tokens int32 [B, max_new_tokens]: each row's new tokens with its stop token, then pad_id.
    lengths int32 [B]: how many of them were generated, the stop token included."""

    tokens: np.ndarray
    lengths: np.ndarray


def program_length(length: int) -> int:
    """The length that programs are compiled for: `length` and at most a sixteenth of it, or 7, more.

    Sixteen lengths an octave, so that prompts of all lengths share a few programs and little is computed in vain.
    """
    grain = max(8, (1 << (length.bit_length() - 1)) // 16)
    return -(-length // grain) * grain


class Programs:
    """The compiled programs of one model, kept between calls: encode, prefill and decode.

    `compilations` counts, by name, how often each was compiled: once per combination of shapes and
    branches. With `unstack` (the default), `view` keeps the unstacked parameters of the last tree it was
    given: a second copy of the blocks, see `mmjax.infer.cache.unstack`; without it decoding scans the
    stacked ones, slower and without the copy.
    """

    def __init__(self, model: MultimodalLM, unstack: bool = True):
        self.model = model
        self.unstack = unstack
        self.compilations: Counter[str] = Counter()
        self._seen_leaves: list = []
        self._view: Any = None
        self._encode = jax.jit(self._trace_encode)
        self._codes = jax.jit(self._trace_codes)
        self._prefill = jax.jit(self._trace_prefill, static_argnames=("branches", "room"))
        self._decode = jax.jit(self._trace_decode, static_argnames=("branches",), donate_argnames=("state",))

    def view(self, params: dict) -> dict:
        """The tree to decode with: `params` itself, or its unstacked view, made once per tree and kept."""
        if not self.unstack or is_unstacked(params):
            return params
        leaves = jax.tree.leaves(params)
        same = len(leaves) == len(self._seen_leaves) and all(
            a is b for a, b in zip(leaves, self._seen_leaves, strict=True)
        )
        if not same:
            self._view = None  # before the new one is made: never three copies at once
            self._view = unstack(params)
            self._seen_leaves = leaves
        return self._view

    def with_codes(self, params: dict, batch: Batch) -> Batch:
        """`MultimodalLM.with_codes`, compiled."""
        codes = self.model.config.codes
        if codes is None or codes.port not in (batch.targets or {}):
            return batch
        return self._codes({"codes": params["codes"]}, batch.replace(media={})).replace(media=batch.media)

    def encode(self, params: dict, media: dict) -> dict:
        """Media by port, raw or encoded -> Media by port, projected into the backbone's width."""
        return self._encode(params, media) if media else {}

    def prefill(
        self,
        params: dict,
        text: TextStream,
        media: dict,
        media_owner: Any,
        options: GenerateOptions,
        rows: np.ndarray | None = None,
        query: TextStream | None = None,
    ) -> State:
        """Reads the prompts and chooses each row's first token.

        text [B, T] padded on any side; media projected, as `encode` gives it; `rows` int32 [B] are the
        numbers that the rows' random keys are made of (0 to B-1 if None); `query` is what an encoder-decoder
        reads, and where its media are.
        """
        branches, numbers = options.split()
        rows = np.arange(text.tokens.shape[0], dtype=np.int32) if rows is None else np.asarray(rows, np.int32)
        room = program_length(options.max_new_tokens)
        seed = np.uint32(options.seed)
        arrays = text, media, media_owner, numbers, seed, rows, query
        return self._prefill(params, *arrays, branches=branches, room=room)

    def decode(self, params: dict, state: State, options: GenerateOptions, until: int | None = None) -> State:
        """Goes on until `until` tokens a row (default all), or until every row is done. `state` is used
        up."""
        branches, numbers = options.split()
        until = np.int32(min(until or options.max_new_tokens, options.max_new_tokens))
        return self._decode(params, state, numbers, until, branches=branches)

    def _trace_encode(self, params, media):
        self.compilations["encode"] += 1
        return self.model.encode_media(params, media)

    def _trace_codes(self, params, batch):
        self.compilations["codes"] += 1
        return self.model.with_codes(params, batch)

    def _trace_prefill(self, params, text, media, media_owner, numbers, seed, rows, query, *, branches, room):
        self.compilations["prefill"] += 1
        model = self.model
        config = model.config.backbone
        batch, length = text.tokens.shape
        valid = jnp.asarray(text.segment_ids) > 0
        positions = jnp.asarray(text.positions)
        cache = empty_cache(config, batch, length + room, jnp.dtype(model.dtype), not is_unstacked(params))
        memory = None
        if query is not None:
            keys = model.cross_keys(params, model.read(params, query, media, media_owner))
            memory, media = (keys, jnp.asarray(query.segment_ids) > 0), None
        elif (inside := model.inside(text, media, media_owner)) is not None:
            memory = model.cross_keys(params, inside[0]), inside[1]
        embeddings = model.embed(params, text, media, media_owner)
        where = attention_mask(text), cache, 0, memory, model.is_media(text)
        hidden, cache = model.step(params, embeddings, positions, *where)
        last = jnp.max(jnp.where(valid, jnp.arange(length), 0), axis=1)
        if memory is not None and memory[1].ndim == 3:
            memory = memory[0], jnp.take_along_axis(memory[1], last[:, None, None], axis=1)[:, 0]
        logits = _next_logits(model, params, jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], numbers)

        seen = None
        if branches.repetition_penalty:
            is_text = valid if text.media_index is None else valid & (text.media_index < 0)
            seen = jnp.zeros(logits.shape, bool).at[jnp.arange(batch)[:, None], text.tokens].max(is_text)
        flat = positions if positions.ndim == 2 else positions.max(axis=-1)
        keys = row_keys(seed, rows)
        place = None if numbers.images is None else first_place(numbers.images, text)
        if branches.guidance:
            place = jnp.tile(place[: batch // 2], 2)
        token = sample(logits, keys, branches, numbers, 0, seen, place=place)
        state = State(
            tokens=jnp.full((batch, room), numbers.pad_id, jnp.int32),
            lengths=jnp.zeros(batch, jnp.int32),
            done=jnp.zeros(batch, bool),
            step=jnp.int32(0),
            cache=cache,
            keys=keys,
            prompt_valid=valid,
            next_position=jnp.max(jnp.where(valid, flat, -1), axis=1) + 1,
            seen=seen,
            memory=memory,
            place=place,
        )
        return _readable(_append(state, token, numbers))

    def _trace_decode(self, params, state, numbers, until, *, branches):
        self.compilations["decode"] += 1
        model = self.model
        batch, room = state.tokens.shape
        length = state.prompt_valid.shape[1]

        def go_on(state):
            return (state.step < until) & ~jnp.all(state.done)

        def body(state):
            newest = state.step - 1
            token = lax.dynamic_slice_in_dim(state.tokens, newest, 1, axis=1)
            text = TextStream(token, state.next_position[:, None] + newest, jnp.ones_like(token))
            new_valid = jnp.broadcast_to(jnp.arange(room) <= newest, (batch, room))
            mask = jnp.concatenate([state.prompt_valid, new_valid], axis=1)[:, None]
            embeddings = model.embed(params, text, {})
            where = state.cache, length + newest, state.memory
            hidden, cache = model.step(params, embeddings, text.positions, mask, *where)
            logits = _next_logits(model, params, hidden[:, 0], numbers)
            token = sample(logits, state.keys, branches, numbers, state.step, state.seen, token[:, 0], state.place)
            return _append(replace(state, cache=cache), token, numbers)

        return _readable(lax.while_loop(go_on, body, state))


def generate(
    model: MultimodalLM,
    params: dict,
    batch: Batch,
    options: GenerateOptions = GenerateOptions(),  # noqa: B008 (frozen)
    programs: Programs | None = None,
    on_tokens: Callable[[np.ndarray, np.ndarray], None] | None = None,
    stream_every: int = 1,
    rows: np.ndarray | None = None,
) -> Generation:
    """Generates from every row of the stream "text" of `batch`, or for an encoder-decoder of "query" and "decoder".

    Args:
        model: the model; its `dtype` is also the cache's.
        params: its parameters, stacked or unstacked, on one device or sharded over a mesh.
        batch: prompts [B, T] padded on any side, and their media.
        options: how to generate.
        programs: `Programs(model)` of an earlier call, so that nothing compiles or is unstacked twice.
        on_tokens: called with (tokens int32 [B, n], counts int32 [B]), the newest n columns and how many of
            them each row really generated, every `stream_every` tokens. Without it the host waits once, at
            the end.
        stream_every: n.
        rows: int32 [B], numbers that stand for the rows in the random keys, so that a row draws the same
            tokens in whatever batch it is put; 0 to B-1 if None.

    Returns:
        Generation of numpy arrays.

    Raises:
        ValueError: before anything compiles, for a prompt without a token, one that leaves no room for
            max_new_tokens, several packed texts in one row, ids outside the vocabulary, or `programs` of
            another model.
    """
    if programs is None:
        programs = Programs(model)
    elif programs.model != model:
        raise ValueError("programs were made for another model: pass Programs(model)")
    batch = programs.with_codes(params, batch)
    check_request(model, batch, options)
    params = programs.view(params)
    media = programs.encode(params, batch.media)
    batch = with_start(model, batch)
    *read, written = [prompt_stream(batch, name) for name in model.config.streams]
    state = programs.prefill(params, written, media, batch.media_owner, options, rows, *read)
    if on_tokens is None:
        state = programs.decode(params, state, options)
    else:
        state = _stream(programs, params, state, options, on_tokens, stream_every)
    return Generation(np.asarray(state.tokens)[:, : options.max_new_tokens], np.asarray(state.lengths))


def check_request(model: MultimodalLM, batch: Batch, options: GenerateOptions) -> None:
    """Raises ValueError where `generate` would; reads arrays on the host and compiles nothing."""
    config, streams, codes = model.config.backbone, model.config.streams, model.config.codes
    # Images whose codes are yet to be filled in: a blank may be the number behind all words.
    words = model.config.words + (codes is not None and codes.port in (batch.targets or {}))
    if streams[0] not in batch.texts:
        raise ValueError(f'generation needs the stream "{streams[0]}"; the batch has {sorted(batch.texts)}')
    for name in streams:
        new = options.max_new_tokens if name == streams[-1] else 0
        if name in batch.texts:
            _check_prompt(config, batch.texts[name], new, words)
        else:
            check_room(1, new, config.max_positions, "the start token")
    rows = {name: np.asarray(batch.texts[name].tokens).shape[0] for name in streams if name in batch.texts}
    if options.images is not None and float(options.images.guidance) != 1 and rows[streams[-1]] % 2:
        raise ValueError(f"guidance needs rows in two halves, there are {rows[streams[-1]]}")
    if len(set(rows.values())) > 1:
        raise ValueError("streams of one batch have as many rows each, got " + str(rows))
    for name, ids in (("stop_ids", options.stop_ids), ("pad_id", (options.pad_id,))):
        bad = [i for i in ids if not 0 <= i < config.vocab_size]
        if bad:
            raise ValueError(f"{name}: {bad[0]} is outside the vocabulary of {config.vocab_size}")


def _check_prompt(config: BackboneConfig, text: TextStream, new: int, words: int) -> None:
    """Raises ValueError for a stream of prompts, of tokens below `words`, that `new` tokens cannot follow."""
    tokens, segments = np.asarray(text.tokens), np.asarray(text.segment_ids)
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError(f"prompt tokens must be [B, T] with at least one row and one token, got {tokens.shape}")
    valid = segments > 0
    empty = np.flatnonzero(~valid.any(axis=1))
    if empty.size:
        raise ValueError(f"empty prompt: row {empty[0]} of the batch has no token (all of it is padding)")
    for name in ("segment_ids", "attend_group"):
        ids = getattr(text, name)
        ids = np.zeros_like(tokens) if ids is None else np.where(valid, np.asarray(ids), 0)
        most = ids.max(axis=1, keepdims=True)
        mixed = np.flatnonzero(((ids > 0) & (ids != most)).any(axis=1))
        if mixed.size:
            found = sorted(set(ids[mixed[0]].tolist()) - {0})
            raise ValueError(
                f"row {mixed[0]} of the batch holds several texts ({name} {found}): a prompt to go on "
                "from must be one text a row"
            )
    positions = np.asarray(text.positions)
    if positions.ndim == 3:
        positions = positions.max(axis=-1)
    ends = np.where(valid, positions, -1).max(axis=1) + 1
    longest = int(ends.argmax())
    check_room(int(ends[longest]), new, config.max_positions, f"row {longest} of the batch")
    is_text = valid if text.media_index is None else valid & (np.asarray(text.media_index) < 0)
    outside = is_text & ((tokens < 0) | (tokens >= words))
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise ValueError(
            f"row {row} of the batch: token {tokens[row, column]} at position {column} is outside the "
            f"vocabulary of {words}"
        )


def check_room(prompt: int, new: int, positions: int, name: str) -> None:
    """Raises ValueError, naming the numbers, if `prompt` tokens and `new` ones exceed the model's
    positions."""
    if prompt + new > positions:
        raise ValueError(
            f"{name}: a prompt of {prompt} tokens and max_new_tokens {new} make {prompt + new}, more than "
            f"the model's {positions} positions; shorten the prompt or ask for at most "
            f"{max(positions - prompt, 0)} new tokens"
        )


def with_start(model: MultimodalLM, batch: Batch) -> Batch:
    """`batch`, where an encoder-decoder has no stream "decoder" yet with one of its start token, [B, 1]."""
    if model.config.streams[-1] in batch.texts:
        return batch
    tokens = np.full((batch.texts["query"].tokens.shape[0], 1), model.config.backbone.start_token, np.int32)
    text = TextStream(tokens, np.zeros_like(tokens), np.ones_like(tokens))
    return batch.replace(texts={**batch.texts, "decoder": text})


def prompt_stream(batch: Batch, name: str = "text") -> TextStream:
    """The stream `name` of `batch` as the programs take it: no losses, int32, T rounded up to
    `program_length`."""
    text = batch.texts[name]
    length = text.tokens.shape[1]
    extra = program_length(length) - length

    def padded(leaf, fill=0):
        if leaf is None:
            return None
        leaf = np.asarray(leaf)
        leaf = leaf if leaf.dtype == bool else leaf.astype(np.int32)
        widths = [(0, 0), (0, extra)] + [(0, 0)] * (leaf.ndim - 2)
        return np.pad(leaf, widths, constant_values=fill)

    return TextStream(
        tokens=padded(text.tokens),
        positions=padded(text.positions),
        segment_ids=padded(text.segment_ids),
        media_index=padded(text.media_index, -1) if batch.media and name != "decoder" else None,
        attend_group=padded(text.attend_group),
        bidirectional_group=padded(text.bidirectional_group),
        media_attention=padded(text.media_attention),
    )


def _append(state: State, token: jax.Array, numbers: Numbers) -> State:
    """The state with one more column: `token` int32 [B], or pad_id in rows that were done."""
    token = jnp.where(state.done, numbers.pad_id, token)
    place = None if state.place is None else advance(numbers.images, state.place, token)
    seen = state.seen
    if seen is not None:
        seen = seen.at[jnp.arange(token.shape[0]), token].max(~state.done)
    return replace(
        state,
        tokens=lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.step, axis=1),
        lengths=state.lengths + ~state.done,
        done=state.done | jnp.any(token[:, None] == numbers.stop_ids, axis=1),
        step=state.step + 1,
        seen=seen,
        place=place,
    )


def _next_logits(model: MultimodalLM, params: dict, hidden: jax.Array, numbers: Numbers) -> jax.Array:
    """Logits of all that a row may write; codes with an output layer of their own only where images are written."""
    return model.logits(params, hidden) if numbers.images is None else model.next_logits(params, hidden)


def _readable(state: State) -> State:
    """What the host reads, whole on every device: with several processes it could not be read otherwise."""
    if jax.sharding.get_abstract_mesh().empty:
        return state
    whole = {
        name: lax.with_sharding_constraint(getattr(state, name), PartitionSpec())
        for name in ("tokens", "lengths", "done", "step")
    }
    return replace(state, **whole)


def _stream(programs, params, state, options, on_tokens, stream_every) -> State:
    if stream_every < 1:
        raise ValueError(f"stream_every must be at least 1, got {stream_every}")
    told = 0
    lengths_told = np.zeros(state.tokens.shape[0], np.int32)
    while True:
        step, lengths = int(state.step), np.asarray(state.lengths)
        on_tokens(np.asarray(state.tokens)[:, told:step], lengths - lengths_told)
        told, lengths_told = step, lengths
        if step >= options.max_new_tokens or np.asarray(state.done).all():
            return state
        state = programs.decode(params, state, options, step + stream_every)
