"""What a pipeline gives."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class PipelineOutput:
    """Media, of the kinds that the pipeline makes; the others are None.

    Attributes:
        images: float32 [B, H, W, 3] from 0 to 1.
        videos: float32 [B, T, H, W, 3] from 0 to 1.
        audios: float32 [B, samples], about -1 to 1.
        sampling_rate: of `audios`, samples a second.
    """

    images: np.ndarray | None = None
    videos: np.ndarray | None = None
    audios: np.ndarray | None = None
    sampling_rate: int | None = None
