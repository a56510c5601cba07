"""Text with media: a model writes, and its generators make what its answer signals (Wu et al., 2024, "NExT-GPT").

Or it is looked up in a gallery; where a model decides which of the two, either is done (Koh et al., 2023, "GILL").
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from mmjax.data.contracts import Batch
from mmjax.generators.diffusion import DiffusionConfig
from mmjax.generators.schedules import make_steps
from mmjax.infer.generate import GenerateOptions, Generation, Programs, generate, prompt_stream
from mmjax.infer.retrieve import Gallery, Retrieved, rank, retrieval_ports, rivals, takes
from mmjax.infer.signals import answers_only, continued, count_signals, power_of_two
from mmjax.model import MultimodalLM
from mmjax.signals import draw_media, signal_states


@dataclasses.dataclass(frozen=True)
class DrawOptions:
    """How generators draw, and how much is looked up.

    Attributes:
        num_inference_steps: of the schedule.
        guidance_scale: of classifier-free guidance; at 1 there is none.
        seed: of the noise; what a row's signal gives does not depend on the rows beside it.
        num_retrieved: images of a gallery that a signal gives.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    seed: int = 0
    num_retrieved: int = 1

    def __post_init__(self):
        for name in ("num_inference_steps", "num_retrieved"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie between 0 and {2**32 - 1}, got {self.seed}")


def draw_options(
    model: MultimodalLM,
    options: dict[str, Any],
    galleries: Mapping[str, Gallery] = MappingProxyType({}),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> "DrawOptions | None":
    """`DrawOptions` of those of `options` that only it knows, which are taken out, and its seed.

    Where they say nothing it is as `defaults` say, a checkpoint's generation config, in which num_inference_steps and
    guidance_scale count. None where nothing is drawn or looked up.

    Raises:
        ValueError: such an option for a model that draws nothing, or looks nothing up.
    """
    names = ("num_inference_steps", "guidance_scale")
    own = {name: options.pop(name) for name in names if name in options}
    if own and not media_ports(model):
        raise ValueError(f"{', '.join(own)}: this model has no generator that draws")
    if "num_retrieved" in options:
        own["num_retrieved"] = options.pop("num_retrieved")
        if not galleries:
            raise ValueError(f"num_retrieved: no gallery is given; ports that retrieve: {list(retrieval_ports(model))}")
    if not media_ports(model) and not galleries:
        return None
    if media_ports(model):
        own = {name: defaults[name] for name in names if name in defaults} | own
    return DrawOptions(**own, seed=options.get("seed", 0))


# port -> for each row what its signals gave, in order: images float32 [H, W, 3] from 0 to 1, or what was found.
Made = dict[str, list[list[np.ndarray | Retrieved]]]


def media_ports(model: MultimodalLM) -> tuple[str, ...]:
    """The ports that media come out of."""
    return tuple(port for port, config in model.config.generators.items() if isinstance(config, DiffusionConfig))


def follow(model: MultimodalLM) -> tuple[tuple[int, int], ...]:
    """For `GenerateOptions.follow`: once a model has begun a signal of several tokens, it goes on with it.

    Tokens that several signals go on from in different ways are the model's own affair.
    """
    ways: dict[int, set[int]] = {}
    for ids in model.config.signal_tokens.values():
        for one, other in zip(ids, ids[1:], strict=False):
            ways.setdefault(one, set()).add(other)
    return tuple((one, next(iter(others))) for one, others in ways.items() if len(others) == 1)


class MediaPrograms:
    """The compiled programs that read a model's signals and draw what they ask for; `compilations` counts them.

    Args:
        model: with generators.
    """

    def __init__(self, model: MultimodalLM):
        self.model, self.compilations = model, 0
        self._states = jax.jit(self._trace_states, static_argnums=(2, 3))
        self._draw = jax.jit(self._trace_draw, static_argnums=1)
        self._rank = jax.jit(self._trace_rank, static_argnums=(1, 4))
        self._takes = jax.jit(self._trace_takes, static_argnums=1)

    def _trace_states(self, params: dict[str, Any], batch: Batch, start: int, most: tuple[tuple[str, int], ...]) -> Any:
        self.compilations += 1
        media = self.model.encode_media(params, batch.media)
        hidden = self.model.forward(params, batch.texts, media, batch.media_owner)
        text = answers_only(batch.text, start)
        return {port: signal_states(self.model, port, text, hidden, count) for port, count in most}

    def _trace_draw(self, params: dict[str, Any], port: str, states: Any, steps: Any, scale: Any, keys: Any) -> Any:
        self.compilations += 1
        return draw_media(self.model, params, port, states[:, None], steps, scale, keys[:, None])[:, 0]

    def _trace_rank(self, params: dict[str, Any], port: str, states: Any, embeddings: Any, k: int) -> Any:
        self.compilations += 1
        return tuple(part[:, 0] for part in rank(self.model, params, port, states[:, None], Gallery(embeddings), k))

    def _trace_takes(self, params: dict[str, Any], port: str, states: Any) -> Any:
        self.compilations += 1
        return takes(self.model, params, port, states[:, None])[:, 0]

    def __call__(
        self,
        params: dict[str, Any],
        batch: Batch,
        out: Generation,
        options: DrawOptions,
        rows: Sequence[int],
        galleries: Mapping[str, Gallery] = MappingProxyType({}),
    ) -> Made:
        """What the answers `out` to the prompts `batch` ask for, in its first rows, whose numbers `rows` are."""
        text, ports = prompt_stream(batch), (*media_ports(self.model), *galleries)
        whole, start = continued(text, out), text.tokens.shape[1]
        counts = {port: count_signals(self.model, port, whole, start)[: len(rows)] for port in ports}
        made: Made = {port: [[] for _ in rows] for port in ports}
        most = tuple((port, power_of_two(int(count.max()))) for port, count in counts.items() if count.any())
        if not most:
            return made
        found = self._states(params, batch.replace(texts={**batch.texts, "text": whole}), start, most)
        found = {port: [np.array(part)[: len(rows)] for part in both] for port, both in found.items()}
        self._share_out(params, found, galleries)
        for port, _ in most:
            states, real = found[port]
            at = np.argwhere(real)
            if not len(at):
                continue
            padded = filled(states[real])
            if port in galleries:
                embeddings, names = galleries[port].embeddings, galleries[port].names
                numbers, scores = self._rank(params, port, padded, embeddings, options.num_retrieved)
                for (row, signal), best, score in zip(at, np.asarray(numbers), np.asarray(scores), strict=False):
                    named = tuple(names[number] for number in best) if names else ()
                    made[port][row].append(Retrieved(int(signal), best, score, named))
                continue
            seeds = [(rows[row], number) for row, number in at]
            keys = signal_keys(options.seed, seeds + [(0, 0)] * (len(padded) - len(at)))
            schedule = self.model.config.generators[port].schedule
            steps = make_steps(schedule, options.num_inference_steps, capacity=2 * schedule.noise.train_steps)
            scale = None if options.guidance_scale == 1 else np.float32(options.guidance_scale)
            drawn = np.asarray(self._draw(params, port, padded, steps, scale, keys))
            for (row, _), one in zip(at, drawn, strict=False):
                made[port][row].append(one)
        return made

    def _share_out(self, params: dict[str, Any], found: dict[str, Any], galleries: Mapping[str, Gallery]) -> None:
        """Takes signals that shall be drawn from the ports of galleries, and those that shall be found from others."""
        for port in galleries:
            decision, drawing = rivals(self.model, port)
            if decision is None or port not in found:
                continue
            states, real = found[port]
            retrieved = np.zeros_like(real)
            retrieved[real] = np.asarray(self._takes(params, decision, filled(states[real])))[: real.sum()]
            found[port][1] = retrieved
            for other in drawing:
                found[other][1] = found[other][1] & ~retrieved


def filled(states: np.ndarray) -> np.ndarray:
    """States of signals [n, K, D] that are there, filled up so that few programs serve all numbers of them."""
    return np.pad(states, ((0, power_of_two(len(states)) - len(states)), (0, 0), (0, 0)))


def signal_keys(seed: int, signals: Sequence[tuple[int, int]]) -> jax.Array:
    """Random keys [n], one of each (number of a row, number of a signal in it)."""
    first = jax.random.key(np.uint32(seed))
    return jax.vmap(lambda pair: jax.random.fold_in(jax.random.fold_in(first, pair[0]), pair[1]))(
        np.asarray(signals, np.int32).reshape(-1, 2)
    )


def generate_media(
    model: MultimodalLM,
    params: dict[str, Any],
    batch: Batch,
    options: GenerateOptions = GenerateOptions(),  # noqa: B008 (frozen)
    draw: DrawOptions = DrawOptions(),  # noqa: B008 (frozen)
    programs: Programs | None = None,
    drawing: MediaPrograms | None = None,
    rows: Sequence[int] | None = None,
    count: int | None = None,
    galleries: Mapping[str, Gallery] = MappingProxyType({}),
    on_tokens: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> tuple[Generation, Mapping[str, list[list[np.ndarray | Retrieved]]]]:
    """Generates from every row, reads prompt and answer once more, and draws what the answer's signals ask for.

    Whether and how often something is drawn is up to the model: it is what it signals. A signal that it has begun is
    finished for it.

    Args:
        model, params: with generators of media; its params stacked.
        batch, options, programs, rows, on_tokens: of the text, as in `generate`.
        draw: of the media.
        drawing: compiled programs to use again.
        count: how many of the rows, the first ones, anything is drawn for; all if None.
        galleries: port of retrieval -> where its signals are looked up; a port without one looks nothing up. Where a
            port of decisions has the signal of a port that draws and of one that has a gallery, each signal is drawn or
            looked up, as that port says; without a port of decisions it is both.

    Returns:
        The text, and by port what was made for each row: media, or `Retrieved` of a gallery, which says which of the
        row's signals it was found for.

    Raises:
        ValueError: as `generate`; media that are read inside the backbone; an encoder-decoder; a gallery of a port that
            retrieves nothing, or of fewer images than are to be retrieved.
    """
    if prompt_stream(batch).media_attention is not None:
        raise ValueError("media are not drawn by models that read media inside the backbone")
    for port, gallery in galleries.items():
        if port not in retrieval_ports(model):
            raise ValueError(f"galleries: port {port!r} retrieves nothing")
        size = len(gallery.embeddings)
        if size < draw.num_retrieved:
            raise ValueError(f"galleries.{port}: {size} images, {draw.num_retrieved} to be retrieved")
    drawing = MediaPrograms(model) if drawing is None else drawing
    options = dataclasses.replace(options, follow=follow(model))
    told = None if rows is None else np.asarray(rows, np.int32)
    out = generate(model, params, batch, options, programs, on_tokens, rows=told)
    numbers = range(len(out.tokens)) if rows is None else rows
    return out, drawing(params, batch, out, draw, numbers[:count], galleries)
