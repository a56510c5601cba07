"""Images that a language model writes as it writes words: one code of a VQ autoencoder a token.

Codes are words of the vocabulary (Chameleon Team, 2024, "Chameleon"; Wang et al., 2024, "Emu3"), or have an embedding
and an output layer of their own (Wu et al., 2024, "Janus"): then they are numbered behind the vocabulary.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import ConfigError
from mmjax.data.code_images import CodeLayout
from mmjax.generators.codec_model import CODECS
from mmjax.generators.video_vq_autoencoder import VideoVQAutoencoderConfig
from mmjax.generators.vq_autoencoder import VQAutoencoderConfig
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import ACTIVATIONS, check_activation


@dataclasses.dataclass(frozen=True)
class ImageCodesConfig:
    """Which codes, and how an image stands in the text.

    Attributes:
        autoencoder: images to codes and back.
        width: D of the LLM.
        grid: (height, width) in codes of the images that are written, unless told otherwise.
        first: token id of code 0, which the others follow.
        ids: token ids of all codes, where they do not follow one another; `first` is not read then.
        own: whether codes have an embedding and an output layer of their own; `first` is the vocabulary's size then.
        activation: between the maps of those.
        begin: the token behind which an image is written; None: none is unless it is asked for.
        row_end: the token behind each row of codes; None: rows follow one another.
        tail: the tokens that end an image.
        placeholder: the token that stands in a prompt for each code of an image that is read, and for each `row_end`;
            None: images are not read as codes.
        port: the part of a conversation that such images are: "image" where all images are, "image_out" where those are
            that the model makes.
    """

    autoencoder: VQAutoencoderConfig | VideoVQAutoencoderConfig
    width: int
    grid: tuple[int, int]
    first: int = 0
    ids: tuple[int, ...] = ()
    own: bool = False
    activation: str = "gelu"
    begin: int | None = None
    row_end: int | None = None
    tail: tuple[int, ...] = ()
    placeholder: int | None = None
    port: str = "image"

    kind: ClassVar[str] = "image_codes"

    def __post_init__(self):
        check_activation("image_codes.activation", self.activation)
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise ConfigError(f"image_codes.grid {self.grid} must be (height, width), both at least 1")
        if self.ids and (self.own or len(set(self.ids)) != self.maps.codes):
            raise ConfigError(
                f"image_codes.ids: {len(set(self.ids))} different ids of {self.maps.codes} codes, own {self.own}; "
                "there must be one a code, and none where codes are numbered behind the vocabulary"
            )
        clash = {self.begin, self.row_end, *self.tail} & set(self.tokens().tolist())
        if clash:
            raise ConfigError(f"image_codes: token {min(clash)} is a code, it cannot begin, part or end an image")

    @property
    def maps(self) -> VQAutoencoderConfig:
        """The autoencoder of single images."""
        return getattr(self.autoencoder, "maps", self.autoencoder)

    @property
    def decodes(self) -> bool:
        """Whether codes can be made into images."""
        return self.maps.decodes

    @property
    def blank(self) -> int | None:
        """The token that stands in a text for a code which is not known yet, and never for anything else.

        The `placeholder`, or where codes are numbered behind the vocabulary the number behind theirs; None: there is
        none, so that images cannot be learned.
        """
        if self.placeholder is None and self.own:
            return self.first + self.maps.codes
        return self.placeholder

    @property
    def layout(self) -> CodeLayout | None:
        """What a processor must know to write images into texts; None where it cannot."""
        if self.blank is None:
            return None
        return CodeLayout(self.port, self.blank, self.row_end, self.maps.downsampling, self.begin, self.tail)

    def tokens(self) -> np.ndarray:
        """int32 [codes], the token id of every code."""
        if self.ids:
            return np.asarray(self.ids, np.int32)
        return self.first + np.arange(self.maps.codes, dtype=np.int32)

    def length(self, grid: tuple[int, int] | None = None) -> int:
        """How many tokens an image of (height, width) codes is, those that end it included."""
        height, width = grid or self.grid
        return height * (width + (self.row_end is not None)) + len(self.tail)


class ImageCodes(nn.Module):
    """Parameters autoencoder; where codes are their `own`: embedding, in_fc1, in_fc2, out_fc1, out_fc2.

    Attributes:
        config: which codes.
        dtype: compute dtype.
        remat: not used.
    """

    config: ImageCodesConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def setup(self):
        c = self.config
        self.autoencoder = CODECS[type(c.autoencoder)](c.autoencoder, self.dtype)
        if not c.own:
            return
        normal = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "feature"))
        self.embedding = self.param("embedding", normal, (c.maps.codes, c.maps.latent_channels))
        linear = lambda width, *axes: Linear((width,), axes, use_bias=True, dtype=self.dtype)
        self.in_fc1, self.in_fc2 = linear(c.width, "feature", "mlp"), linear(c.width, "mlp", "embed")
        self.out_fc1, self.out_fc2 = linear(c.width, "embed", "feature"), linear(c.maps.codes, "embed", "vocab")

    def embed(self, codes: jax.Array) -> jax.Array:
        """Codes int [...] -> what the LLM reads of them, [..., D]."""
        values = jnp.asarray(self.embedding, self.dtype)[codes]
        return self.in_fc2(ACTIVATIONS[self.config.activation](self.in_fc1(values)))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., D] -> float32 logits [..., codes]."""
        return self.out_fc2(ACTIVATIONS[self.config.activation](self.out_fc1(hidden))).astype(jnp.float32)

    def encode(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] as the autoencoder takes them -> codes int32 [B, h, w]."""
        return self.autoencoder.quantize(self.autoencoder.encode(images)).codes

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes int32 [B, h, w] -> images [B, H, W, 3], about -1 to 1.

        Raises:
            ValueError: an autoencoder without a decoder.
        """
        return self.autoencoder.decode(codes)

    def create(self, images: jax.Array) -> jax.Array:
        """Touches every parameter once: what `init` runs. images [B, H, W, 3]."""
        made = self.autoencoder.create(images)
        if not self.config.own:
            return made
        return self.logits(self.embed(jnp.zeros((1,), jnp.int32)))
