"""Text with masks: a model writes, and a mask is drawn for every signal in what it wrote (Lai et al., 2024, "LISA")."""

from typing import Any, NamedTuple

import jax
import numpy as np

from mmjax.data.contracts import Batch
from mmjax.generators.mask_decoder import Masks
from mmjax.infer.generate import GenerateOptions, Programs, generate, prompt_stream
from mmjax.infer.signals import answers_only, continued, count_signals, power_of_two
from mmjax.model import MultimodalLM
from mmjax.signals import draw_masks, generator_features, signal_states


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
    counts = count_signals(model, drawing.port, whole, start)
    most = power_of_two(int(counts.max()))
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

    def __call__(
        self, params: dict[str, Any], batch: Batch, images: np.ndarray, start: int, most: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits [B, most, h, w] and overlaps [B, most] of the first signals from token `start` on."""
        masks, iou = self._run(params, batch, images, start, most)
        return np.asarray(masks), np.asarray(iou)

    def _masks(self, params: dict[str, Any], batch: Batch, images: jax.Array, start: int, most: int) -> Masks:
        media = self.model.encode_media(params, batch.media)
        hidden = self.model.forward(params, batch.texts, media, batch.media_owner)
        states, _ = signal_states(self.model, self.port, answers_only(batch.text, start), hidden, most)
        features = generator_features(self.model, params, self.port, images)
        return draw_masks(self.model, params, self.port, states, features)
