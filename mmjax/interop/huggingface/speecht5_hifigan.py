"""SpeechT5HifiGan: the vocoder of SpeechT5, AudioLDM and AudioLDM 2.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/speecht5
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.generators.vocoder import VocoderConfig
from mmjax.interop.huggingface.spelling import Json, fresh
from mmjax.interop.table import CONV, Rewrite, Row, Shape
from mmjax.interop.tensors import LazyTensor, Tensors

MODEL_TYPE = "speecht5_hifigan"
IGNORE = ()
GAIN, DIRECTION = ".weight_g", ".weight_v"


def config_from_hf(hf: Mapping[str, Any]) -> VocoderConfig:
    """config.json -> our config; defaults are those of SpeechT5HifiGanConfig."""
    d = VocoderConfig
    return VocoderConfig(
        num_mels=hf.get("model_in_dim", d.num_mels),
        width=hf.get("upsample_initial_channel", d.width),
        rates=tuple(hf.get("upsample_rates", d.rates)),
        windows=tuple(hf.get("upsample_kernel_sizes", d.windows)),
        block_windows=tuple(hf.get("resblock_kernel_sizes", d.block_windows)),
        dilations=tuple(map(tuple, hf.get("resblock_dilation_sizes", d.dilations))),
        slope=hf.get("leaky_relu_slope", d.slope),
        normalize=hf.get("normalize_before", d.normalize),
        sample_rate=hf.get("sampling_rate", d.sample_rate),
    )


def config_to_hf(config: VocoderConfig, template: Mapping[str, Any] | None = None) -> Json:
    """Our config -> config.json, over the other keys of `template`."""
    return {
        **fresh(template or {}),
        "model_type": MODEL_TYPE,
        "architectures": ["SpeechT5HifiGan"],
        "model_in_dim": config.num_mels,
        "upsample_initial_channel": config.width,
        "upsample_rates": list(config.rates),
        "upsample_kernel_sizes": list(config.windows),
        "resblock_kernel_sizes": list(config.block_windows),
        "resblock_dilation_sizes": [list(each) for each in config.dilations],
        "leaky_relu_slope": config.slope,
        "normalize_before": config.normalize,
        "sampling_rate": config.sample_rate,
    }


def rewrites(config: VocoderConfig) -> list[Rewrite]:
    """Torch's second spelling of weight normalisation to its first."""
    new = r"\.parametrizations\.weight\.original"
    return [(f"{new}0$", GAIN), (f"{new}1$", DIRECTION)]


def settle(config: VocoderConfig, tensors: Tensors) -> tuple[VocoderConfig, Tensors]:
    """Kernels that training kept as a length and a direction become one tensor; they are written as such.

    Salimans & Kingma, 2016: along their first axis g v / |v|.
    """
    stems = [name.removesuffix(GAIN) for name in tensors if name.endswith(GAIN)]
    # One without the other is left where it is, and told of as left over.
    stems = [stem for stem in stems if stem + DIRECTION in tensors]
    folded = {f"{stem}.weight": _folded(tensors[stem + GAIN], tensors[stem + DIRECTION]) for stem in stems}
    done = {stem + end for stem in stems for end in (GAIN, DIRECTION)}
    return config, {**{name: tensor for name, tensor in tensors.items() if name not in done}, **folded}


def _folded(gain: Any, direction: Any) -> LazyTensor:
    def read() -> np.ndarray:
        v = np.asarray(direction).astype(np.float32)
        length = np.sqrt(np.sum(np.square(v), axis=tuple(range(1, v.ndim)), keepdims=True))
        return np.asarray(gain).astype(np.float32) * v / length

    return LazyTensor(tuple(direction.shape), np.dtype(np.float32), read)


@dataclasses.dataclass(frozen=True)
class TransposedConv:
    """Ours [*window, in, out], theirs (torch.nn.ConvTranspose1d) [in, out, *window]."""

    def theirs_shape(self, ours: Shape) -> Shape:
        return (*ours[-2:], *ours[:-2])

    def to_ours(self, theirs: np.ndarray, ours: Shape) -> np.ndarray:
        return np.moveaxis(theirs, (0, 1), (-2, -1))

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        return np.moveaxis(ours, (-2, -1), (0, 1))


def table(config: VocoderConfig) -> list[Row]:
    """Rows of all levels; their blocks are numbered through."""
    rows = [Row("mean", "mean"), Row("scale", "scale")]
    rows += _conv("conv_in", "conv_pre", CONV) + _conv("conv_out", "conv_post", CONV)
    blocks = len(config.block_windows)
    for level in range(len(config.rates)):
        rows += _conv(f"rise_{level}", f"upsampler.{level}", TransposedConv())
        for block, dilations in enumerate(config.dilations):
            there = f"resblocks.{level * blocks + block}"
            for number in range(len(dilations)):
                for name, theirs in (("wide", "convs1"), ("narrow", "convs2")):
                    rows += _conv(f"block_{level}_{block}/{name}_{number}", f"{there}.{theirs}.{number}", CONV)
    return rows


def _conv(ours: str, theirs: str, kernel: Any) -> list[Row]:
    return [Row(f"{ours}/kernel", f"{theirs}.weight", kernel), Row(f"{ours}/bias", f"{theirs}.bias")]
