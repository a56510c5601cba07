"""The instruction that a Q-Former reads beside the media (InstructBLIP), from what a processor gives."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.data.contracts import TextStream
from mmjax.interop.huggingface.input_items import integers
from mmjax.model import MultimodalLMConfig
from mmjax.projectors.qformer import QFormerConfig

# What a Q-Former reads beside the media of any port.
INSTRUCTION = ("qformer_input_ids", "qformer_attention_mask")


def reads_text(config: MultimodalLMConfig, port: str) -> bool:
    """Whether the projector of a port reads a text beside the media."""
    projector = config.projectors.get(port)
    return isinstance(projector, QFormerConfig) and projector.vocab_size is not None


def read_instruction(config: QFormerConfig, rows: int, given: Mapping[str, Any]) -> TextStream:
    """What a Q-Former reads beside the media of each row, in the tokens of its own tokenizer.

    Args:
        config: of the Q-Former.
        rows: B.
        given: qformer_input_ids int [B, T], and qformer_attention_mask [B, T] where not all are seen.

    Raises:
        ValueError: there is none, or not one a row, or one that the Q-Former has no room or no rows for.
    """
    ids_name, mask_name = INSTRUCTION
    if ids_name not in given:
        raise ValueError(f"the Q-Former reads an instruction beside the media: give {ids_name}, int [B, T]")
    tokens = integers(ids_name, given[ids_name])
    mask = integers(mask_name, given.get(mask_name, np.ones_like(tokens)))
    if len(tokens) != rows or mask.shape != tokens.shape:
        raise ValueError(
            f"{ids_name} is {tokens.shape} and {mask_name} {mask.shape}: both must be [B, T], one row for each of the "
            f"{rows} of input_ids"
        )
    if tokens.shape[1] > config.max_positions:
        raise ValueError(f"{ids_name} has {tokens.shape[1]} tokens, the Q-Former takes {config.max_positions} at most")
    outside = tokens[(tokens < 0) | (tokens >= config.vocab_size)]
    if outside.size:
        raise ValueError(f"{ids_name}: {outside[0]} is outside the Q-Former's vocabulary of {config.vocab_size}")
    # Places are counted from the first column on, padding or not.
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return TextStream(tokens, positions, (mask > 0).astype(np.int32))
