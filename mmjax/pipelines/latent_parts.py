"""The parts that Stable Diffusion's pipelines share, and what each of them does within a compiled program."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.data.tokenizer import Tokenizer
from mmjax.encoders.text import TextEncoderConfig
from mmjax.generators.autoencoder import AutoencoderConfig, Moments, scaled, unscaled
from mmjax.generators.mmdit import MMDiTConfig
from mmjax.generators.tiny_autoencoder import TinyAutoencoderConfig
from mmjax.generators.unet import UNetConfig
from mmjax.generators.unet3d import UNet3DConfig
from mmjax.interop import diffusers, huggingface
from mmjax.pipelines.directory import read_tokenizer
from mmjax.pipelines.latents import latent_sides
from mmjax.pipelines.placing import split_rows
from mmjax.pipelines.prompts import PromptReader

# Folders of a pipeline's directory.
PARTS = ("text_encoder", "tokenizer", "unet", "vae", "scheduler")


@dataclasses.dataclass(frozen=True, eq=False)
class LatentParts:
    """A text tower, a UNet that reads it, and the autoencoder of its latents, with their weights.

    Attributes:
        text, unet, autoencoder: configs; the UNet's condition is as wide as the text tower.
        params: {"text": ..., "unet": ..., "autoencoder": ...}, nested dicts.
        tokenizer: None takes token ids alone.
        pad_id: what fills a prompt up to the tower's window.
        dtype: compute dtype of the text tower and the UNet; the autoencoder computes in float32.
        mesh: what the weights lie on, see `on_mesh`; None: one device.
    """

    text: TextEncoderConfig
    unet: UNetConfig | UNet3DConfig | MMDiTConfig
    autoencoder: AutoencoderConfig | TinyAutoencoderConfig
    params: dict[str, Any]
    tokenizer: Tokenizer | None = None
    pad_id: int = 0
    dtype: str = "float32"
    mesh: Mesh | None = None

    def __post_init__(self):
        if self.unet.context_width != self.text.width:
            raise ConfigError(
                f"the UNet reads {self.unet.context_width} channels, the text tower has {self.text.width}"
            )
        if self.unet.out_channels != self.autoencoder.latent_channels:
            raise ConfigError(
                f"the UNet gives {self.unet.out_channels} channels, latents have {self.autoencoder.latent_channels}"
            )

    @property
    def prompts(self) -> PromptReader:
        """Prompts to the token ids of the tower."""
        return PromptReader(self.tokenizer, self.text.max_positions, self.pad_id)

    @functools.cached_property
    def _modules(self) -> tuple[Any, Any, Any]:
        tower = huggingface.model_of(self.text, dtype=self.dtype)
        unet = diffusers.MODULES[type(self.unet)](self.unet, jnp.dtype(self.dtype))
        return tower, unet, diffusers.MODULES[type(self.autoencoder)](self.autoencoder)

    @functools.cached_property
    def _programs(self) -> dict[tuple[Any, ...], Any]:
        return {}

    def compiled(self, draw: Callable[..., Any], *static: Any) -> Any:
        """`draw(self, *static, ...)` as a program, compiled once for each shape: schedules are data, and share it.

        `static` are configs, or whatever else can be hashed and is no array.
        """
        if (draw, *static) not in self._programs:
            self._programs[draw, *static] = jax.jit(functools.partial(draw, self, *static))
        return self._programs[draw, *static]

    def rows(self, *arrays: Any) -> tuple[Any, ...]:
        """Arrays [B, ...] with their rows split over the mesh, if there is one; see `split_rows`."""
        return split_rows(self.mesh, *arrays)

    def condition(self, params: dict[str, Any], ids: jax.Array, latents: jax.Array | None = None) -> Condition:
        """Token ids int [B, window] -> what the UNet reads; `latents` [.., h, w, C] are of the size that is drawn."""
        return Condition(self._modules[0](params["text"], ids)["last_hidden_state"])

    def denoise(self, params: dict[str, Any], x: jax.Array, time: jax.Array, condition: Condition) -> jax.Array:
        """x [B, h, w, in] or [B, T, h, w, in], time -> the UNet's prediction with C channels."""
        return self._modules[1].apply({"params": params["unet"]}, x, time, condition)

    def encode(self, params: dict[str, Any], pixels: jax.Array, rng: jax.Array | None) -> jax.Array:
        """Images [B, H, W, 3] from -1 to 1 -> latents [B, h, w, C], not scaled: drawn, or the mean without `rng`."""
        found = self._modules[2].apply({"params": params["autoencoder"]}, pixels, method="encode")
        if not isinstance(found, Moments):
            return found
        return found.mean if rng is None else found.sample(rng)

    def given(self, params: dict[str, Any], image: jax.Array, rng: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] from -1 to 1 -> the UNet's latents [B, h, w, C], drawn; latents stay as they are."""
        if image.shape[-1] == self.autoencoder.latent_channels:
            return image
        return scaled(self.autoencoder, self.encode(params, image, rng))

    def latent_shape(self, image: Any) -> tuple[int, ...]:
        """Shape of the latents of images [B, H, W, 3], or of latents."""
        if image.shape[-1] == self.autoencoder.latent_channels:
            return image.shape
        sides = latent_sides(image.shape[1:3], self.unet.sample_size, self.autoencoder.downsampling)
        return (len(image), *sides, self.autoencoder.latent_channels)

    def decode(self, params: dict[str, Any], latents: jax.Array) -> jax.Array:
        """The UNet's latents [B, h, w, C] -> images [B, H, W, 3] from 0 to 1."""
        latents = unscaled(self.autoencoder, latents)
        images = self._modules[2].apply({"params": params["autoencoder"]}, latents, method="decode")
        return jnp.clip(images / 2 + 0.5, 0, 1)


def check_channels(parts: LatentParts, *wanted: int) -> None:
    """Whether the UNet reads one of these numbers of channels.

    Raises:
        ConfigError: it does not.
    """
    if parts.unet.in_channels not in wanted:
        numbers, latents = " or ".join(map(str, wanted)), parts.autoencoder.latent_channels
        raise ConfigError(f"the UNet reads {parts.unet.in_channels} channels; for latents of {latents}, {numbers} fit")


def load_latent_parts(
    directory: Path,
    dtype: str,
    param_dtype: str,
    kind: Callable[..., LatentParts] = LatentParts,
    params: Mapping[str, Any] = MappingProxyType({}),
    more: Mapping[str, Any] = MappingProxyType({}),
    denoiser: str = "unet",
) -> LatentParts:
    """Reads text_encoder, tokenizer, unet and vae of a pipeline's directory; the autoencoder's weights stay float32.

    Args:
        directory, dtype, param_dtype: as in `load_pipeline`.
        kind: LatentParts, or what has fields `more` and further weights `params`.
        denoiser: its folder.

    Raises:
        FileNotFoundError: a part's files are not there.
        ConfigError: a text tower of another kind, or an option that is not supported.
        WeightsError: see `diffusers.load`.
    """
    text = load_text_tower(directory / "text_encoder", param_dtype)
    unet = diffusers.load(directory / denoiser, param_dtype)
    autoencoder = diffusers.load(directory / "vae")
    params = {"text": text.params, "unet": unet.params, "autoencoder": autoencoder.params, **params}
    tokenizer, pad = read_tokenizer(directory / "tokenizer")
    return kind(text.config, unet.config, autoencoder.config, params, tokenizer, pad, dtype, **more)


def load_text_tower(directory: Path, param_dtype: str) -> huggingface.Loaded:
    """A text tower of CLIP.

    Raises:
        ConfigError: the directory holds something else.
    """
    found = huggingface.load(directory, param_dtype)
    if not isinstance(found.config, TextEncoderConfig):
        raise ConfigError(f"{directory} holds a {type(found.config).__name__}, not a text tower of CLIP")
    return found
