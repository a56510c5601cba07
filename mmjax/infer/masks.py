"""Text with masks: a model writes, and a mask is drawn for every signal in what it wrote (Lai et al., 2024, "LISA")."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mmjax.data.contracts import Batch
from mmjax.data.conversation import Conversation
from mmjax.data.mask_targets import MaskTargets
from mmjax.data.processor import Processor
from mmjax.generators.mask_decoder import MaskDecoderConfig, Masks, original_masks
from mmjax.infer.generate import GenerateOptions, Generation, Programs, generate, prompt_stream
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


class Scene(NamedTuple):
    """The image that the masks of an answer are of.

    Attributes:
        pixels: float32 [S, S, 3], as the generator's encoder takes it, the image at its upper left.
        inner_size, size: (height, width) of the image there, and of itself.
    """

    pixels: np.ndarray
    inner_size: tuple[int, int]
    size: tuple[int, int]


def mask_port(model: MultimodalLM) -> str | None:
    """The port that masks come out of; None where there is none."""
    return next((port for port, c in model.config.generators.items() if isinstance(c, MaskDecoderConfig)), None)


def scene_of(model: MultimodalLM, processor: Processor, conversation: Conversation) -> Scene | None:
    """The latest image of a conversation; None without one, or where nothing says how masks are drawn.

    Raises:
        FileNotFoundError, ImageError: naming the image.
    """
    recipe = processor.images.get(mask_port(model) or "")
    parts = conversation.media(recipe.images) if isinstance(recipe, MaskTargets) else ()
    if not parts:
        return None
    name = f"{conversation.name}: {recipe.images} {len(parts) - 1}"
    image = processor.images[recipe.images].open(parts[-1].source, name)
    size = image.height, image.width
    return Scene(recipe.image(image), recipe.inner_size(size), size)


def masks_of(
    drawing: "Drawing", params: dict[str, Any], batch: Batch, out: Generation, scenes: Sequence[Scene | None]
) -> list[list[np.ndarray]]:
    """For each of the first rows of a batch bool [height, width] for each signal of its answer, of its scene.

    Args:
        drawing: of the model's port of masks.
        params: stacked.
        batch, out: the prompts and what was generated behind them.
        scenes: of the first rows; a row without one has no masks.

    Raises:
        ValueError: media that are read inside the backbone.
    """
    made: list[list[np.ndarray]] = [[] for _ in scenes]
    text = prompt_stream(batch)
    whole, start = continued(text, out), text.tokens.shape[1]
    counts = count_signals(drawing.model, drawing.port, whole, start)[: len(scenes)]
    counts = np.where([scene is not None for scene in scenes], counts, 0)
    if not counts.any():
        return made
    if text.media_attention is not None:
        raise ValueError("masks are not drawn by models that read media inside the backbone")
    blank = np.zeros_like(next(scene.pixels for scene in scenes if scene is not None))
    rows = [*scenes, *[None] * (len(text.tokens) - len(scenes))]
    images = np.stack([blank if scene is None else scene.pixels for scene in rows])
    given = batch.replace(texts={**batch.texts, "text": whole}), images, start, power_of_two(int(counts.max()))
    logits, _ = drawing(params, *given)
    for row, scene in enumerate(scenes):
        if counts[row]:
            drawn = original_masks(logits[row, : counts[row]], len(blank), scene.inner_size, scene.size)
            made[row] = list(np.asarray(drawn) > 0)
    return made


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
    """The compiled programs that draw the masks of a model's answers; `compilations` counts them.

    Args:
        model: with a mask decoder at `port`.
        port: of the masks.
    """

    def __init__(self, model: MultimodalLM, port: str = "mask"):
        self.model, self.port, self.compilations = model, port, 0
        self._run = jax.jit(self._masks, static_argnums=(3, 4))

    def __call__(
        self, params: dict[str, Any], batch: Batch, images: np.ndarray, start: int, most: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits [B, most, h, w] and overlaps [B, most] of the first signals from token `start` on."""
        masks, iou = self._run(params, batch, images, start, most)
        return np.asarray(masks), np.asarray(iou)

    def _masks(self, params: dict[str, Any], batch: Batch, images: jax.Array, start: int, most: int) -> Masks:
        self.compilations += 1
        media = self.model.encode_media(params, batch.media)
        hidden = self.model.forward(params, batch.texts, media, batch.media_owner)
        states, _ = signal_states(self.model, self.port, answers_only(batch.text, start), hidden, most)
        features = generator_features(self.model, params, self.port, images)
        return draw_masks(self.model, params, self.port, states, features)
