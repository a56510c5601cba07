"""Model FLOPs of a training step's texts in an encoder-decoder; `mmjax.train.flops` has what all models share."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from mmjax.backbones.encoder_decoder import EncoderDecoderConfig
from mmjax.data.contracts import Batch
from mmjax.train.losses import target_weights

_INPUTS = ("backbone/embed/", "projectors/", "encoders/", "backbone/encoder/")
_BLOCKS = ("backbone/encoder/blocks/", "backbone/decoder/blocks/")


class TwoSidedFlops:
    """Products of maps and of attention on either side, of the cross-attention, and of the output layer.

    The keys and values of the cross-attention are made of what was read: they count by tokens of the query.

    Attributes:
        per_read, per_written: FLOPs of the maps for a token of "query" and of "decoder".
        per_target: of the output layer for a target.

    Args:
        config: of the backbone.
        leaves: path -> shape of every parameter.
        trained: the trained paths.
    """

    def __init__(self, config: EncoderDecoderConfig, leaves: Mapping[str, Any], trained: Collection[str]):
        reads = any(path.startswith(_INPUTS) for path in trained)
        writes = reads or any(path.startswith("backbone/decoder/") for path in trained)
        self.per_read = self.per_written = 0.0
        for path, leaf in leaves.items():
            if not path.endswith("/kernel") or not path.startswith(_BLOCKS):
                continue
            of_query = path.startswith("backbone/encoder/") or "/cross_attn/k/" in path or "/cross_attn/v/" in path
            flops = 2 * math.prod(leaf.shape) * (1 + (path in trained) + (reads if of_query else writes))
            if of_query:
                self.per_read += flops
            else:
                self.per_written += flops
        width = 4 * config.num_heads * config.head_dim
        self._read_pair = width * config.depth(False) * (1 + 2 * reads)
        self._written_pair = width * config.depth(True) * (1 + 2 * writes)
        head = "backbone/embed/embedding" if config.tie_embeddings else "backbone/lm_head/kernel"
        self.per_target = 2 * config.width * config.vocab_size * (1 + (head in trained) + writes)

    def of(self, batch: Batch, causal: bool = True) -> float:
        """FLOPs of the texts of one batch (host arrays); with `causal` False, the decoder's attention as a square."""
        read, text = tokens_a_row(batch.texts["query"]), batch.texts["decoder"]
        written = tokens_a_row(text)
        own = written * (written + 1) / 2 if causal else written**2
        targets = int(np.count_nonzero(np.asarray(target_weights(text))))
        pairs = self._read_pair * (read**2).sum() + self._written_pair * (own + read * written).sum()
        maps = self.per_read * read.sum() + self.per_written * written.sum()
        return float(pairs + maps + self.per_target * targets)


def tokens_a_row(text: Any) -> np.ndarray:
    """int [B]: tokens of each row that are not padding."""
    return np.count_nonzero(np.asarray(text.segment_ids) > 0, axis=1)
