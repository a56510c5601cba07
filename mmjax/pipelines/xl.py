"""Stable Diffusion XL: two text towers, a pooled vector, and the image's sizes as numbers (Podell et al., 2023).

`XLParts` take the place of `LatentParts` in the other pipelines too: `ImageToImage(model.parts, model.schedule)`. Their
directories are read by xl_image_to_image.py and xl_inpaint.py.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.data.tokenizer import Tokenizer
from mmjax.encoders.text import TextEncoder, TextEncoderConfig
from mmjax.interop.diffusers.scheduler import load_schedule
from mmjax.pipelines import latent_parts
from mmjax.pipelines.directory import INDEX, read_tokenizer
from mmjax.pipelines.latent_parts import LatentParts, load_latent_parts, load_text_tower
from mmjax.pipelines.prompts import NOTHING, PromptReader, SeveralReaders
from mmjax.pipelines.text_to_image import LatentDiffusion

PIPELINE = "StableDiffusionXLPipeline"
PARTS = (*latent_parts.PARTS, "text_encoder_2", "tokenizer_2")


@dataclasses.dataclass(frozen=True, eq=False)
class XLParts(LatentParts):
    """The parts of Stable Diffusion XL.

    Attributes:
        params: has "text_2" too.
        text_2: the second tower, whose projected vector the UNet reads too; its tokens stand beside the first's.
        tokenizer_2, pad_id_2: as those of the first tower.
        zeros: see `SeveralReaders`.
    """

    text_2: TextEncoderConfig | None = None
    tokenizer_2: Tokenizer | None = None
    pad_id_2: int = 0
    zeros: bool = True

    def __post_init__(self):
        widths, unet = (self.text.width, self.text_2.width), self.unet
        if unet.context_width != sum(widths) or unet.pooled_width != self.text_2.projection_dim:
            raise ConfigError(
                f"the UNet reads tokens of {unet.context_width} channels and a vector of {unet.pooled_width}; the text "
                f"towers have {widths[0]} and {widths[1]}, and the vector {self.text_2.projection_dim}"
            )
        if unet.pooled != "sizes" or unet.num_sizes != 6:
            raise ConfigError(f"the UNet reads {unet.num_sizes} sizes as {unet.pooled!r}; wanted 6 as 'sizes'")

    @property
    def prompts(self) -> SeveralReaders:
        """Prompts to the token ids of the towers."""
        second = PromptReader(self.tokenizer_2, self.text_2.max_positions, self.pad_id_2)
        return SeveralReaders((super().prompts, second), self.zeros)

    def condition(self, params: dict[str, Any], ids: jax.Array, latents: jax.Array | None = None) -> Condition:
        """Token ids int [B, both windows] -> what the UNet reads, told of an image that is neither scaled nor cropped.

        Of each tower that is what its last block reads.
        """
        windows = jnp.split(jnp.maximum(ids, 0), [self.text.max_positions], axis=1)
        towers = zip((self.text, self.text_2), ("text", "text_2"), windows, strict=True)
        found = [deep_states(config, self.dtype, params[name], window) for config, name, window in towers]
        counts = ids[:, :1] != NOTHING
        sequence = jnp.concatenate([out["penultimate"] for out in found], axis=-1) * counts[:, :, None]
        sides = [side * self.autoencoder.downsampling for side in latents.shape[-3:-1]]
        sizes = jnp.broadcast_to(jnp.asarray([*sides, 0, 0, *sides], jnp.float32), (ids.shape[0], 6))
        return Condition(sequence, None, found[1]["embeds"] * counts, {"sizes": sizes})


def deep_states(config: TextEncoderConfig, dtype: str, params: dict[str, Any], ids: jax.Array) -> dict[str, jax.Array]:
    """What `TextEncoder` gives of token ids int [B, window], "penultimate" among it."""
    return TextEncoder(config, jnp.dtype(dtype), penultimate=True).apply({"params": params}, ids)


def load_xl_parts(directory: Path, dtype: str, param_dtype: str) -> XLParts:
    """Reads the parts of the directory of one of diffusers' pipelines of XL; see `load_latent_parts`."""
    text = load_text_tower(directory / "text_encoder_2", param_dtype)
    tokenizer, pad = read_tokenizer(directory / "tokenizer_2")
    index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
    more = {
        "text_2": text.config,
        "tokenizer_2": tokenizer,
        "pad_id_2": pad,
        "zeros": index.get("force_zeros_for_empty_prompt", True),
    }
    return load_latent_parts(directory, dtype, param_dtype, XLParts, {"text_2": text.params}, more)


def load(directory: Path, dtype: str, param_dtype: str) -> LatentDiffusion:
    """Reads the directory of a diffusers StableDiffusionXLPipeline; see `load_latent_parts`."""
    parts = load_xl_parts(directory, dtype, param_dtype)
    return LatentDiffusion(parts, load_schedule(directory / "scheduler"), guidance_scale=5.0)
