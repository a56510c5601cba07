"""Segmenters with their weights, for users who want masks without a language model (SAM)."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mmjax.interop.huggingface.input_items import raw_values
from mmjax.interop.segmenter import Segmenter, SegmenterConfig
from mmjax.save import save


class SegmenterOutput(NamedTuple):
    """In transformers' names: pred_masks [B, R, M, h, w], above 0 inside; iou_scores [B, R, M]."""

    pred_masks: jax.Array
    iou_scores: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class SegmenterModel:
    """An image encoder and a mask decoder with weights.

    Attributes:
        config: of the two parts.
        params: nested dicts of arrays, blocks stacked.
        dtype: compute dtype.
        hf_config: config.json of the checkpoint.
    """

    config: SegmenterConfig
    params: dict[str, Any]
    dtype: str = "float32"
    hf_config: Mapping[str, Any] | None = None
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    processor: None = None

    @functools.cached_property
    def module(self) -> Segmenter:
        """The pure functions."""
        return Segmenter(self.config, self.dtype)

    @functools.cached_property
    def _forward(self) -> Callable[..., Any]:
        return jax.jit(self.module.__call__, static_argnames=("multimask",))

    def __call__(
        self,
        pixel_values: Any,
        input_points: Any = None,
        input_labels: Any = None,
        input_boxes: Any = None,
        input_masks: Any = None,
        multimask_output: bool = True,
    ) -> SegmenterOutput:
        """Masks for R prompts of each image, in the names and axes of transformers' processor.

        Args:
            pixel_values: float [B, 3, H, W] or [B, H, W, 3], padded to squares of the encoder's size.
            input_points: [B, R, points, 2] in its pixels. input_labels: int [B, R, points], 1 is inside, 0 outside.
            input_boxes: [B, R, 4] corners.
            input_masks: [B, 1, h, w] rough masks of each image.
            multimask_output: three masks a prompt, from part to whole; else one.

        Raises:
            ValueError: images of another size; labels without points.
        """
        if input_labels is not None and input_points is None:
            raise ValueError("input_labels without input_points")
        given = {"points": input_points, "boxes": input_boxes, "masks": input_masks}
        prompts = {name: np.asarray(value, np.float32) for name, value in given.items() if value is not None}
        if input_labels is not None:
            prompts["labels"] = np.asarray(input_labels, np.int32)
        images = raw_values("pixel_values", pixel_values, self.config.encoder)
        out = self._forward(self.params, images, multimask=multimask_output, **prompts)
        return SegmenterOutput(out.logits, out.iou)

    def save_pretrained(self, directory: str | os.PathLike, format: str = "huggingface") -> None:
        """Writes the model in transformers layout, or as an mmjax directory."""
        save(self, directory, format)
