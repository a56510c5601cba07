"""What flows between the data pipeline, the five parts, training and decoding.

All are frozen dataclasses registered as pytrees, so one `Batch` crosses `jit` whole. Leaves are numpy
arrays on the host and jax arrays on a device; a field that a system does not need is None.

Letters: B batch, T sequence, N media tokens, I media items, M targets, D width.
"""

import dataclasses
from typing import Any

import jax


def _pytree(*static: str):
    """Registers the decorated frozen dataclass as a pytree whose fields are data, except those in `static`."""

    def register(cls):
        names = [field.name for field in dataclasses.fields(cls)]
        return jax.tree_util.register_dataclass(
            cls, data_fields=[name for name in names if name not in static], meta_fields=list(static)
        )

    return register


@_pytree("stage")
@dataclasses.dataclass(frozen=True)
class Media:
    """Media of one port on their way from pixels (or samples, points) to tokens in the LLM's width.

    Attributes:
        values: stage "raw": what the encoder takes, for images float32 [B, I, H, W, 3] (normalised), for
            packed native-resolution patches [B, N, patch features]. Stages "encoded" and "projected":
            [B, N, D].
        segment_ids: int32 number of the item that each position belongs to, from 1; 0 is padding. [B, I]
            when `values` has an item axis, else [B, N]. None means that nothing is padding. An item of several
            tiles or frames is several places of that axis with one number.
        grid: int32 [B, I, 3], the (time, height, width) of each item in patches.
        original_size: int32 [B, I, 2], height and width of each item in pixels before processing.
        text: a TextStream that the projector reads (InstructBLIP's Q-Former).
        extra_features: mapping of name -> features of other layers, or of a second view, or pooled.
        order: int32 [B, M] or [B, M, K], which of the N projected tokens each of the M tokens for the LLM is made
            of (tiles put together, padding left out, rows ended by a learned token); -1 is padding. None: all N
            as they come.
        order_weights: float32 [B, M, K], how much of each; None with [B, M].
        parent: int32 [B, I], which item of another port, from 1, each item is a part of: the image of a region. 0 is
            padding.
        stage: "raw", "encoded" (has been through the encoder) or "projected" (is in the LLM's width).
    """

    values: Any
    segment_ids: Any = None
    grid: Any = None
    original_size: Any = None
    text: Any = None
    extra_features: Any = None
    order: Any = None
    order_weights: Any = None
    parent: Any = None
    stage: str = "raw"

    def replace(self, **changes) -> "Media":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@_pytree()
@dataclasses.dataclass(frozen=True)
class TextStream:
    """One sequence of tokens a row, with everything that says how its tokens see each other and the media.

    Attributes:
        tokens: int32 [B, T].
        positions: int32 [B, T], or [B, T, 3] where rotary positions have a time, height and width axis.
        segment_ids: int32 [B, T]; tokens see their own segment only (packing); 0 is padding.
        loss_weights: float32 [B, T], the weight of token t as a TARGET, predicted from position t - 1.
        media_index: int32 [B, T], -1 for text, else the row of the projected media (all ports one after the
            other, in the config's order) of this batch row's owner that stands here.
        attend_group: int32 [B, T]; 0 is a prefix that all groups see; a token of group g sees 0 and g.
        bidirectional_group: int32 [B, T]; tokens of the same non-zero group also see what comes later in it.
        media_attention: bool [B, T, I], which items a token may see inside the backbone.
        loss_positions: int32 [B, M], the t whose loss weight is not zero, padded with -1, so that logits
            are computed there only.
    """

    tokens: Any
    positions: Any
    segment_ids: Any
    loss_weights: Any = None
    media_index: Any = None
    attend_group: Any = None
    bidirectional_group: Any = None
    media_attention: Any = None
    loss_positions: Any = None

    def replace(self, **changes) -> "TextStream":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@_pytree()
@dataclasses.dataclass(frozen=True)
class Batch:
    """One step's input: token streams, media by port, and targets for generators.

    Attributes:
        texts: mapping stream -> TextStream. Decoder-only models have the one stream "text"; others add
            "query" or "decoder".
        media: mapping port -> Media.
        media_owner: int32 [B], the media row that each text row uses; None is row b for row b. Preference
            pairs and rollouts share one encoded row this way.
        targets: mapping port -> arrays that a generator's loss compares with.
    """

    texts: Any
    media: Any = dataclasses.field(default_factory=dict)
    media_owner: Any = None
    targets: Any = None

    def replace(self, **changes) -> "Batch":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def text(self) -> TextStream:
        """The stream "text" of a decoder-only model."""
        return self.texts["text"]


@_pytree()
@dataclasses.dataclass(frozen=True)
class Condition:
    """What an output projector hands to a generator.

    Attributes:
        sequence: float [B, N, D] conditioning tokens.
        mask: bool [B, N], which of them count.
        pooled: float [B, D] a global vector, where the generator wants one.
        extras: mapping of further arrays (sizes, a previous image's latents, ...).
    """

    sequence: Any
    mask: Any = None
    pooled: Any = None
    extras: Any = None
