"""A sound and a text tower in one space, without a language model: CLAP (Wu et al., 2023, "LAION-CLAP")."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.config import ConfigError
from mmjax.encoders.bidirectional_text import BidirectionalTextConfig
from mmjax.encoders.clap import CLAPConfig
from mmjax.encoders.dual import Params, Tower

# Of each direction, see `SoundText`.
SCALES = ("logit_scale_audio", "logit_scale_text")


@dataclasses.dataclass(frozen=True)
class SoundTextConfig:
    """Two towers whose projections give vectors of the same width.

    Attributes:
        audio, text: the towers.
    """

    audio: CLAPConfig
    text: BidirectionalTextConfig

    kind: ClassVar[str] = "sound_text"

    def __post_init__(self):
        audio, text = self.audio.projection_dim, self.text.projection_dim
        if not audio or audio != text:
            raise ConfigError(
                f"sound_text: projection_dim of the towers must be one number, got {audio} of audio and {text} of text"
            )


@dataclasses.dataclass(frozen=True)
class SoundText:
    """Towers of sound and text trained to agree. Params: audio/..., text/..., and both SCALES [].

    Either direction has a scale of its own: of a sound's similarities to texts, and of a text's to sounds.

    Attributes:
        config: of the two towers.
        dtype, param_dtype, remat: compute dtype, dtype of the params, rematerialisation policy.
    """

    config: SoundTextConfig
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"

    @property
    def audio(self) -> Tower:
        """The sound tower; its params are params["audio"]."""
        return Tower(self.config.audio, self.dtype, self.param_dtype, self.remat)

    @property
    def text(self) -> Tower:
        """The text tower; its params are params["text"]."""
        return Tower(self.config.text, self.dtype, self.param_dtype, self.remat)

    def init(self, rng: jax.Array) -> Params:
        """Fresh params. The scales start as published: ln(1 / 0.07)."""
        audio, text = jax.random.split(rng)
        scale = jnp.asarray(math.log(1 / 0.07), self.param_dtype)
        return {"audio": self.audio.init(audio), "text": self.text.init(text), **dict.fromkeys(SCALES, scale)}

    def param_shapes(self) -> Params:
        """The tree of `jax.ShapeDtypeStruct` that `init` would fill."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def param_axes(self) -> Params:
        """The tree of tuples of logical axis names of every leaf; () for a scalar."""
        return {"audio": self.audio.param_axes(), "text": self.text.param_axes(), **dict.fromkeys(SCALES, ())}

    def __call__(
        self,
        params: Params,
        tokens: jax.Array,
        mask: jax.Array | None,
        sounds: jax.Array,
        longer: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Compares every text with every sound.

        Args:
            params: as `init` makes them.
            tokens, mask: int and bool [B, T]; mask may be None.
            sounds: spectrograms [I, views, frames, mel], see `CLAP.run`.
            longer: bool [I], see there.

        Returns:
            "logits_per_audio" [I, B] and "logits_per_text" [B, I] in float32, and the normalised vectors
            "audio_embeds" [I, D] and "text_embeds" [B, D].
        """
        given = () if longer is None else (longer,)
        audio = self.audio(params["audio"], sounds, *given)["embeds"]
        text = self.text(params["text"], tokens, mask)["embeds"]
        audio, text = (x.astype(jnp.float32) for x in (audio, text))
        audio, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (audio, text))
        of_audio, of_text = (jnp.exp(params[name].astype(jnp.float32)) for name in SCALES)
        return {
            "logits_per_audio": audio @ text.T * of_audio,
            "logits_per_text": text @ audio.T * of_text,
            "audio_embeds": audio,
            "text_embeds": text,
        }
