"""The demo's model before training: two pretrained parts, and a projector that starts from regressions."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import from_dict
from mmjax.data.gguf_tokenizer import tokenizer_from_gguf
from mmjax.data.image import ImageProcessor
from mmjax.data.processor import Processor
from mmjax.data.tokenizer import Tokenizer
from mmjax.encoders.efficientnet import EfficientNetConfig
from mmjax.interop.efficientnet import load_efficientnet
from mmjax.interop.gguf import load_gguf
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.projectors.pooled import PooledProjectorConfig
from mmjax.recipes.demo.evaluate import FILLERS
from mmjax.recipes.demo.weights import BACKBONE, ENCODER, fetch
from mmjax.train.ridge import fit_ridge

PORT = "image"


@dataclasses.dataclass(frozen=True)
class System:
    """A model with its params and what prepares its input.

    Attributes:
        model, params: as everywhere.
        processor: takes pictures.
    """

    model: MultimodalLM
    params: dict[str, Any]
    processor: Processor

    @property
    def for_features(self) -> Processor:
        """The processor for records that hold features [N, D] where others hold pictures."""
        return dataclasses.replace(self.processor, images={})


def build(config: Mapping[str, Any]) -> System:
    """Fetches and reads the pretrained parts; the projector is random but for its constants.

    Args:
        config: the demo's, see `configs/demo.py`.
    """
    backbone, params, metadata = load_gguf(fetch(BACKBONE))
    tokenizer = tokenizer_from_gguf(metadata)
    tokenizer.chat_template = config["processor"]["template"]
    encoder = from_dict(EfficientNetConfig, config["encoder"], "config.encoder")
    embedding = np.asarray(params["backbone"]["embed"]["embedding"])
    widths = {"in_width": encoder.feature_width, "width": backbone.backbone.width}
    projector = from_dict(
        PooledProjectorConfig,
        {**config["projector"], **widths, "scale": float(embedding.std())},
        "config.projector",
    )
    media_token = tokenizer.token_id(config["processor"]["media_token"])
    model = MultimodalLM(
        MultimodalLMConfig(backbone.backbone, {PORT: encoder}, {PORT: projector}, {PORT: media_token})
    )
    # Under jit, what is not asked for is not computed: no second set of random weights for the backbone.
    projectors = jax.jit(lambda rng: model.init(rng)["projectors"])(jax.random.key(config["seed"]))
    encoders = {PORT: jax.tree.map(jnp.asarray, load_efficientnet(fetch(ENCODER), encoder))}
    images = ImageProcessor(
        size={"height": encoder.image_size, "width": encoder.image_size},
        do_center_crop=False,
        image_mean=tuple(config["processor"]["image_mean"]),
        image_std=tuple(config["processor"]["image_std"]),
    )
    processor = Processor(
        tokenizer=tokenizer,
        images={PORT: images},
        template=None,
        placeholders={},
        media_tokens={PORT: media_token},
        count=model.num_tokens,
        lengths=tuple(config["processor"]["lengths"]),
    )
    return System(model, {**params, "encoders": encoders, "projectors": projectors}, processor)


def start_from_ridge(
    system: System, features: np.ndarray, labels: Sequence[str], penalty: float
) -> dict[str, Any]:
    """Params whose projector puts each picture near the embedding of its label's words.

    The first global token starts from the regression to the first word of the label, the last one to its last
    word (a colour and an object, where there are two), any between and the local tokens to the mean of all.

    Args:
        features: [n, N, D] of the training pictures.
        labels: [n] what they show.
        penalty: see `fit_ridge`.
    """
    embedding = np.asarray(system.params["backbone"]["embed"]["embedding"], np.float32)
    projector = dict(system.params["projectors"][PORT])
    mean, std = features.mean((0, 1)), features.std((0, 1)) + 1e-3
    inputs = (features[:, 0] - mean) / std
    unit = float(projector["scale"])
    heads = system.model.config.projectors[PORT].global_heads

    def fitted(pick) -> dict[str, Any]:
        targets = word_embeddings([pick(content_words(label)) for label in labels], system, embedding)
        ridge = fit_ridge(inputs, targets, penalty, unit)
        return {"kernel": jnp.asarray(ridge.kernel), "bias": jnp.asarray(ridge.bias)}

    whole = fitted(lambda words: words)
    maps = {f"global_{head}": whole for head in range(heads)}
    if heads > 1:
        maps["global_0"] = fitted(lambda words: words[:1])
        maps[f"global_{heads - 1}"] = fitted(lambda words: words[-1:])
    projector |= {"mean": jnp.asarray(mean), "std": jnp.asarray(std), "local": whole, **maps}
    return {**system.params, "projectors": {PORT: projector}}


def content_words(label: str) -> list[str]:
    """The words of a label that say what it shows, or the label itself where there is none."""
    found = [word for word in re.findall(r"[a-z]+", label.lower()) if word not in FILLERS]
    return found or [label]


def word_embeddings(phrases: Sequence[list[str]], system: System, embedding: np.ndarray) -> np.ndarray:
    """The mean embedding of each phrase's tokens, float32 [n, D]."""
    return np.stack([embedding[token_ids(system.processor.tokenizer, words)].mean(0) for words in phrases])


def token_ids(tokenizer: Tokenizer, words: list[str]) -> list[int]:
    """Tokens of the words in the middle of a sentence."""
    return tokenizer.encode(" " + " ".join(words), continued=True)
