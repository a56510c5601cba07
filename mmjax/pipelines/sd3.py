"""Stable Diffusion 3: two towers of CLIP and one of T5, a transformer along straight lines (Esser et al., 2024)."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.data.tokenizer import Tokenizer
from mmjax.encoders.bidirectional_text import BidirectionalTextConfig
from mmjax.encoders.text import TextEncoderConfig
from mmjax.interop import huggingface
from mmjax.interop.diffusers.scheduler import load_schedule
from mmjax.pipelines import latent_parts
from mmjax.pipelines.directory import read_tokenizer
from mmjax.pipelines.latent_parts import LatentParts, load_latent_parts, load_text_tower
from mmjax.pipelines.prompts import PromptReader, SeveralReaders
from mmjax.pipelines.text_to_image import LatentDiffusion
from mmjax.pipelines.xl import deep_states

PIPELINE = "StableDiffusion3Pipeline"
PARTS = (
    *(part for part in latent_parts.PARTS if part != "unet"), "transformer", "text_encoder_2", "tokenizer_2",
    "text_encoder_3", "tokenizer_3",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class SD3Parts(LatentParts):
    """The parts of Stable Diffusion 3; `unet` is the transformer's config.

    Attributes:
        params: has "text_2" too, and "text_3" where there is that tower.
        text_2, tokenizer_2, pad_id_2: of the second tower, CLIP's.
        text_3, tokenizer_3, pad_id_3: of the third, T5's; without it its states are zeros.
        window_3: tokens that the third reads.
    """

    text_2: TextEncoderConfig | None = None
    tokenizer_2: Tokenizer | None = None
    pad_id_2: int = 0
    text_3: BidirectionalTextConfig | None = None
    tokenizer_3: Tokenizer | None = None
    pad_id_3: int = 0
    window_3: int = 256

    def __post_init__(self):
        wide, pooled = self.unet.context_width, self.text.projection_dim + self.text_2.projection_dim
        if self.text.width + self.text_2.width > wide or self.unet.pooled_width != pooled:
            raise ConfigError(
                f"the transformer reads tokens of {wide} channels and a vector of {self.unet.pooled_width}; the "
                f"towers of CLIP have {self.text.width} and {self.text_2.width}, and vectors of {pooled} together"
            )
        if self.text_3 is not None and self.text_3.width != wide:
            raise ConfigError(f"the transformer reads tokens of {wide} channels; T5's tower has {self.text_3.width}")

    @property
    def prompts(self) -> SeveralReaders:
        """Prompts to the token ids of the towers."""
        readers = [super().prompts, PromptReader(self.tokenizer_2, self.text_2.max_positions, self.pad_id_2)]
        if self.text_3 is not None:
            readers.append(PromptReader(self.tokenizer_3, self.window_3, self.pad_id_3))
        return SeveralReaders(tuple(readers), False, self.text_3 is None)

    def condition(self, params: dict[str, Any], ids: jax.Array, latents: jax.Array | None = None) -> Condition:
        """Token ids int [B, all windows] -> what the transformer reads.

        The tokens of CLIP's towers stand beside each other, filled up with zeros to T5's width, and T5's behind them.
        """
        first = self.text.max_positions
        windows = jnp.split(ids, [first, first + self.text_2.max_positions], axis=1)
        towers = zip((self.text, self.text_2), ("text", "text_2"), windows[:2], strict=True)
        found = [deep_states(config, self.dtype, params[name], window) for config, name, window in towers]
        clip = jnp.concatenate([out["penultimate"] for out in found], axis=-1)
        wide = self.unet.context_width
        clip = jnp.pad(clip, ((0, 0), (0, 0), (0, wide - clip.shape[-1])))
        if self.text_3 is None:
            further = jnp.zeros((ids.shape[0], self.window_3, wide), clip.dtype)
        else:
            # Padding counts: so it was trained.
            tower = huggingface.model_of(self.text_3, dtype=self.dtype)
            further = tower(params["text_3"], windows[2])["last_hidden_state"]
        pooled = jnp.concatenate([out["embeds"] for out in found], axis=-1)
        return Condition(jnp.concatenate([clip, further], axis=1), None, pooled)


def load(directory: Path, dtype: str, param_dtype: str) -> LatentDiffusion:
    """Reads the directory of a diffusers StableDiffusion3Pipeline, with or without T5; see `load_latent_parts`."""
    second = load_text_tower(directory / "text_encoder_2", param_dtype)
    tokenizer, pad = read_tokenizer(directory / "tokenizer_2")
    params, more = {"text_2": second.params}, {"text_2": second.config, "tokenizer_2": tokenizer, "pad_id_2": pad}
    if (directory / "text_encoder_3").is_dir():
        third = huggingface.load(directory / "text_encoder_3", param_dtype)
        if not isinstance(third.config, BidirectionalTextConfig):
            raise ConfigError(f"{directory}/text_encoder_3 holds a {type(third.config).__name__}, not T5's encoder")
        tokenizer, pad = read_tokenizer(directory / "tokenizer_3")
        params["text_3"] = third.params
        more |= {"text_3": third.config, "tokenizer_3": tokenizer, "pad_id_3": pad}
    parts = load_latent_parts(directory, dtype, param_dtype, SD3Parts, params, more, "transformer")
    return LatentDiffusion(parts, load_schedule(directory / "scheduler"), guidance_scale=7.0)
