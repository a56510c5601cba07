"""Text with masks: a model writes, and a mask is drawn for every signal in what it wrote (Lai et al., 2024, "LISA")."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.contracts import Batch, TextStream
from mmjax.generators.mask_decoder import Masks
from mmjax.infer.generate import GenerateOptions, Generation, Programs, generate, prompt_stream
from mmjax.model import MultimodalLM
from mmjax.signals import draw_masks, find_signals, generator_features, signal_states


class Drawn(NamedTuple):
    """What `generate_masks` gives.

    Attributes:
        tokens: int32 [B, max_new_tokens], lengths: int32 [B]; see `Generation`.
        masks: for each row float32 [R, h, w] of its R signals in order, above 0 inside, of the image padded to a
            square; `mmjax.generators.mask_decoder.original_masks` brings them to the image's size.
        iou: for each row float32 [R], the predicted overlap with the truth.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    masks: list[np.ndarray]
    iou: list[np.ndarray]


def generate_masks(
    model: MultimodalLM,
    params: dict[str, Any],
    batch: Batch,
    images: np.ndarray,
    options: GenerateOptions = GenerateOptions(),  # noqa: B008 (frozen)
    drawing: "Drawing | None" = None,
    programs: Programs | None = None,
) -> Drawn:
    """Generates from every row, then reads prompt and answer once more and draws a mask for each signal of the answer.

    Args:
        model, params: with a mask decoder; its params stacked.
        batch: prompts.
        images: float [B, H, W, 3], as the generator's encoder takes them.
        options: of the text.
        drawing: compiled programs to use again; None makes them anew, for the port "mask".
        programs: of the text, as in `generate`.

    Raises:
        ValueError: as `generate`; not as many images as prompts; media that are read inside the backbone.
    """
    drawing = Drawing(model) if drawing is None else drawing
    text = prompt_stream(batch)
    if len(images) != text.tokens.shape[0]:
        raise ValueError(f"{len(images)} images for {text.tokens.shape[0]} prompts")
    if text.media_attention is not None:
        raise ValueError("masks are not drawn by models that read media inside the backbone")
    out = generate(model, params, batch, options, programs)
    whole, start = continued(text, out), text.tokens.shape[1]
    counts = drawing.count(whole, start)
    # Few programs: one for each power of two.
    most = 1 << max(int(counts.max()) - 1, 0).bit_length()
    logits, iou = drawing(params, batch.replace(texts={"text": whole}), images, start, most)
    rows = [(logits[row, :count], iou[row, :count]) for row, count in enumerate(counts)]
    return Drawn(out.tokens, out.lengths, [mask for mask, _ in rows], [overlap for _, overlap in rows])


class Drawing:
    """The compiled programs that draw the masks of a model's answers.

    Args:
        model: with a mask decoder at `port`.
        port: of the masks.
    """

    def __init__(self, model: MultimodalLM, port: str = "mask"):
        self.model, self.port = model, port
        self._run = jax.jit(self._masks, static_argnums=(3, 4))

    def count(self, text: TextStream, start: int) -> np.ndarray:
        """Signals of every row from token `start` on, int [B]."""
        ids = self.model.config.signal_tokens[self.port]
        _, real = find_signals(ids, _answers_only(text, start), text.tokens.shape[1])
        return np.asarray(real).sum(axis=1)

    def __call__(
        self, params: dict[str, Any], batch: Batch, images: np.ndarray, start: int, most: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits [B, most, h, w] and overlaps [B, most] of the first signals from token `start` on."""
        masks, iou = self._run(params, batch, images, start, most)
        return np.asarray(masks), np.asarray(iou)

    def _masks(self, params: dict[str, Any], batch: Batch, images: jax.Array, start: int, most: int) -> Masks:
        media = self.model.encode_media(params, batch.media)
        hidden = self.model.forward(params, batch.texts, media, batch.media_owner)
        states, _ = signal_states(self.model, self.port, _answers_only(batch.text, start), hidden, most)
        features = generator_features(self.model, params, self.port, images)
        return draw_masks(self.model, params, self.port, states, features)


def continued(text: TextStream, out: Generation) -> TextStream:
    """A prompt and what was generated behind it as one stream, [B, T + N]."""
    tokens, segments = np.asarray(text.tokens), np.asarray(text.segment_ids)
    new = out.tokens.shape[1]
    real = np.arange(new) < out.lengths[:, None]
    positions = np.asarray(text.positions)
    valid = segments > 0
    ends = np.where(valid if positions.ndim == 2 else valid[..., None], positions, -1).reshape(len(tokens), -1)
    after = (ends.max(axis=1)[:, None] + 1 + np.arange(new)) * real
    after = after if positions.ndim == 2 else np.repeat(after[..., None], positions.shape[2], axis=2)

    def joined(leaf: Any, behind: np.ndarray) -> Any:
        return None if leaf is None else np.concatenate([np.asarray(leaf), behind.astype(np.int32)], axis=1)

    def last(leaf: Any) -> np.ndarray:
        """The group that the prompt ends in goes on."""
        return np.zeros((len(tokens), 0)) if leaf is None else np.asarray(leaf).max(axis=1, keepdims=True) * real

    return TextStream(
        tokens=joined(tokens, out.tokens),
        positions=joined(positions, after),
        segment_ids=joined(segments, last(segments)),
        media_index=joined(text.media_index, np.full(real.shape, -1)),
        attend_group=joined(text.attend_group, last(text.attend_group)),
        bidirectional_group=joined(text.bidirectional_group, np.zeros(real.shape)),
    )


def _answers_only(text: TextStream, start: int) -> TextStream:
    """The stream with what stands before `start` marked as no text, so that its signals are none."""
    index = jnp.full(text.tokens.shape, -1) if text.media_index is None else jnp.asarray(text.media_index)
    return text.replace(media_index=jnp.where(jnp.arange(index.shape[1]) < start, 0, index))
