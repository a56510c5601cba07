"""The demo's model learns to draw: new signal tokens, an output projector, a small diffusion generator.

    "Draw a blue frog." -> LLM -> [IMG0] ... [IMG3] -> sketch and tokens -> denoiser over patches -> picture

The LLM stays as the seeing stages left it, and reads a request for each training picture once. The rows that say the
new tokens are fitted to what it has in mind then, see `mmjax.recipes.demo.requests`; stage "draw" trains the output
projector and the generator on the states behind the requests.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import from_dict
from mmjax.data.contracts import Batch, TextStream
from mmjax.generators.diffusion import DiffusionConfig
from mmjax.generators.mlp_denoiser import MLPDenoiserConfig
from mmjax.generators.patch_autoencoder import PatchAutoencoder, PatchAutoencoderConfig
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.model import MultimodalLM
from mmjax.output_projectors.sketch import LIMIT, SketchOutputConfig
from mmjax.recipes.demo.assets import Assets, Picture
from mmjax.recipes.demo.requests import PORT
from mmjax.recipes.demo.system import System, token_ids
from mmjax.train.patch_basis import fit_patches
from mmjax.train.ridge import fit_ridge


def pixels(assets: Assets, pictures: Sequence[Picture]) -> np.ndarray:
    """float32 [n, H, W, 3] from -1 to 1."""
    return np.stack([assets.pixels(picture) for picture in pictures]).astype(np.float32) / 127.5 - 1


def with_drawing(system: System, params: Mapping[str, Any], config: Mapping[str, Any], images: np.ndarray) -> System:
    """The system with signal tokens, an output projector and a generator, whose patches are fitted already.

    Args:
        system: as it was built.
        params: its, after the seeing stages.
        config: the demo's "drawing".
        images: float32 [n, H, W, 3] from -1 to 1, the training pictures.
    """
    old, words = system.model.config, config["words"]
    embedding = np.asarray(params["backbone"]["embed"]["embedding"])
    # Each signal token starts as a word that stands for what it is to gather.
    rows = embedding[[token_ids(system.processor.tokenizer, [word])[0] for word in words]]
    names = [f"[IMG{number}]" for number in range(len(words))]
    tokenizer = system.processor.tokenizer.with_tokens(names)
    ids = tuple(tokenizer.token_id(name) for name in names)
    backbone = dataclasses.replace(
        old.backbone, vocab_size=max(ids) + 1, new_tokens=len(ids), untied_new_tokens=True
    )

    patches = from_dict(PatchAutoencoderConfig, config["patches"], "config.drawing.patches")
    patches, basis = fit_patches(patches, images)
    side = images.shape[1] // patches.patch
    given = {
        "in_channels": 2 * patches.latent_channels,
        "out_channels": patches.latent_channels,
        "sample_size": side,
        "context_tokens": len(ids),
    }
    denoiser = from_dict(MLPDenoiserConfig, {**config["denoiser"], **given}, "config.drawing.denoiser")
    schedule = from_dict(ScheduleConfig, config["schedule"], "config.drawing.schedule")
    projector = SketchOutputConfig(
        backbone.width, denoiser.context_width, len(ids), (side, side, patches.latent_channels)
    )
    generator = DiffusionConfig(denoiser, patches, schedule, sketched=True)
    model = MultimodalLM(
        dataclasses.replace(
            old,
            backbone=backbone,
            generators={PORT: generator},
            output_projectors={PORT: projector},
            signal_tokens={PORT: ids},
        )
    )

    def fresh(rng: jax.Array) -> dict[str, Any]:
        made = model.init(rng)
        return {name: made[name] for name in ("generators", "output_projectors")}

    made = jax.jit(fresh)(jax.random.key(config["seed"]))
    made["generators"][PORT]["autoencoder"] = jax.tree.map(jnp.asarray, basis)
    # The first guess is the average picture.
    last = made["generators"][PORT]["denoiser"]["proj_out"]
    made["generators"][PORT]["denoiser"]["proj_out"] = jax.tree.map(jnp.zeros_like, last)
    never = {"kernel": jnp.zeros_like(rows.T)}
    grown = {**params["backbone"], "embed_new": {"embedding": jnp.asarray(rows)}, "lm_head_new": never}
    processor = dataclasses.replace(
        system.processor,
        tokenizer=tokenizer,
        count=model.num_tokens,
        placeholders={**system.processor.placeholders, PORT: names[0]},
        **model.config.processor_options,
    )
    return System(model, {**params, "backbone": grown, **made}, processor)


def latents_of(system: System, params: Any, images: np.ndarray) -> np.ndarray:
    """float32 [n, h, w, C] of images [n, H, W, 3], as the denoiser knows them."""
    config = system.model.config.generators[PORT].autoencoder
    variables = {"params": params["generators"][PORT]["autoencoder"]}
    encoded = jax.jit(lambda images: PatchAutoencoder(config).apply(variables, images, method="encode"))(images)
    return np.asarray((encoded - config.shift) * config.scale)


def start_projector(params: Mapping[str, Any], states: np.ndarray, latents: np.ndarray, penalty: float) -> Any:
    """Params whose output projector's sketch starts as a regression from the signals' states to the latents.

    Args:
        params: of the drawing system.
        states, latents: [n, K, D] and [n, h, w, C] of the training pictures.
        penalty: see `fit_ridge`.
    """
    mean, std = states.mean(0), states.std(0) + 1e-3
    inputs = np.clip((states - mean) / std, -LIMIT, LIMIT).reshape(len(states), -1)
    ridge = fit_ridge(inputs, latents.reshape(len(latents), -1), penalty, stretch=False)
    projector = params["output_projectors"][PORT]
    projector = {
        **projector,
        "mean": jnp.asarray(mean),
        "std": jnp.asarray(std),
        "sketch": {"kernel": jnp.asarray(ridge.kernel), "bias": jnp.asarray(ridge.bias)},
    }
    return {**params, "output_projectors": {PORT: projector}}


@dataclasses.dataclass(frozen=True)
class DrawBatches:
    """Endless batches of kept states and latents; step n is made of the seed and n alone.

    Attributes:
        states, latents: [n, K, D] and [n, h, w, C].
        groups: numbers of the pictures that are as they are, and of those that are recoloured.
        recoloured: share of the second in a batch.
        batch_size, seed: of the stage.
    """

    states: np.ndarray
    latents: np.ndarray
    groups: tuple[np.ndarray, np.ndarray]
    recoloured: float
    batch_size: int
    seed: int

    def iterator(self, start_step: int = 0) -> Iterator[Batch]:
        """The batches from a step on."""
        step = start_step
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> Batch:
        """One batch, without any text to be read."""
        random = np.random.default_rng((self.seed, step))
        second = round(self.batch_size * self.recoloured) if len(self.groups[1]) else 0
        counts = (self.batch_size - second, second)
        chosen = np.concatenate(
            [random.choice(group, count) for group, count in zip(self.groups, counts, strict=True) if count]
        )
        nothing = np.zeros((self.batch_size, 1), np.int32)
        targets = {
            "states": self.states[chosen][:, None],
            "latents": self.latents[chosen][:, None],
            "weights": np.ones((self.batch_size, 1), np.float32),
        }
        return Batch({"text": TextStream(nothing, nothing, nothing)}, targets={PORT: targets})
