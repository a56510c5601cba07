"""The demo's model learns to draw: new signal tokens, an output projector, a small diffusion generator.

    "Draw a blue frog." -> LLM -> [IMG0] ... [IMG3] -> sketch and tokens -> denoiser over patches -> picture

The LLM stays as the seeing stages left it. Stage "signal" trains the rows of the new tokens alone: when to begin a
signal. Then the frozen LLM's states are kept, once for each training picture, and stage "draw" trains the output
projector and the generator on them.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import check_choice, from_dict
from mmjax.data.collate import collate
from mmjax.data.contracts import Batch, TextStream
from mmjax.data.conversation import parse_record
from mmjax.data.pipeline import Pipeline
from mmjax.data.processor import Processor
from mmjax.data.samples import Sample
from mmjax.generators.diffusion import DiffusionConfig
from mmjax.generators.patch_autoencoder import PatchAutoencoder, PatchAutoencoderConfig
from mmjax.generators.pixart import PixArtConfig
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.model import MultimodalLM
from mmjax.output_projectors.sketch import LIMIT, SketchOutputConfig
from mmjax.recipes.demo.assets import Assets, Picture
from mmjax.recipes.demo.questions import Asker, article, question_record
from mmjax.recipes.demo.system import System, token_ids
from mmjax.recipes.demo.training_data import endless, of_one_shape
from mmjax.train.features import cache_states
from mmjax.train.patch_basis import fit_patches
from mmjax.train.ridge import fit_ridge
from mmjax.train.stage import StageConfig

PORT = "image_out"
# The first one is asked in evaluation, and what states are kept of.
WORDINGS = ("Draw {}.", "Please draw {}.", "Paint {}.", "Show me a picture of {}.")


def draw_record(picture: Picture, wording: int = 0) -> dict[str, Any]:
    """A conversation of a user who asks for a picture and an assistant that shows it, by its name alone."""
    asked = WORDINGS[wording].format(f"{article(picture.label)} {picture.label}")
    shown = [{"type": "image", "image": f"{picture.name}.png"}]
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": shown}]}


def prompt_record(picture: Picture) -> dict[str, Any]:
    """What is asked in evaluation."""
    return {"messages": draw_record(picture)["messages"][:1]}


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
    backbone = dataclasses.replace(old.backbone, vocab_size=max(ids) + 1, new_tokens=len(ids))

    patches = from_dict(PatchAutoencoderConfig, config["patches"], "config.drawing.patches")
    patches, basis = fit_patches(patches, images)
    side = images.shape[1] // patches.patch
    wide = {"in_channels": 2 * patches.latent_channels, "out_channels": patches.latent_channels}
    denoiser = from_dict(PixArtConfig, {**config["denoiser"], **wide, "sample_size": side}, "config.drawing.denoiser")
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
    # At first nothing is added to the sketch.
    last = made["generators"][PORT]["denoiser"]["proj_out"]
    made["generators"][PORT]["denoiser"]["proj_out"] = jax.tree.map(jnp.zeros_like, last)
    grown = {**params["backbone"], "embed_new": {"embedding": jnp.asarray(rows)}}
    processor = dataclasses.replace(
        system.processor,
        tokenizer=tokenizer,
        count=model.num_tokens,
        placeholders={**system.processor.placeholders, PORT: names[0]},
        **model.config.processor_options,
    )
    return System(model, {**params, "backbone": grown, **made}, processor)


@dataclasses.dataclass(frozen=True)
class MakeSample:
    """(record, name) -> Sample of a picture that is asked for, or that a question is asked about.

    Attributes:
        processor: for records that hold features.
        pictures, features: in the same order; features [n, N, D].
        asker, seed: which question a picture gets; the same one each time it comes.
    """

    processor: Processor
    pictures: Sequence[Picture]
    features: np.ndarray
    asker: Asker
    seed: int

    def __call__(self, record: Mapping[str, Any], name: str) -> Sample:
        number = record["picture"]
        random, picture = np.random.default_rng((self.seed, number)), self.pictures[number]
        if record["draw"]:
            wanted = draw_record(picture, int(random.integers(len(WORDINGS))))
        else:
            asked = self.asker.questions(picture, random)
            wanted = question_record(asked[random.integers(len(asked))], self.features[number])
        return self.processor.from_record(wanted, name)


def signal_pipeline(
    stage: StageConfig, processor: Processor, pictures: Sequence[Picture], features: np.ndarray, asker: Asker
) -> Pipeline:
    """Endless batches of one static shape, half of them requests for pictures and half questions about them."""
    check_choice(f"stage {stage.name!r}: data.kind", stage.data["kind"], ("signals",))
    make = MakeSample(of_one_shape(stage, processor), pictures, features, asker, stage.seed)
    records = {
        name: [{"picture": number, "draw": draw} for number in range(len(pictures))]
        for draw, name in ((True, "requests"), (False, "questions"))
    }
    return endless(stage, make, records, (0.5, 0.5))


def request_states(system: System, params: Any, pictures: Sequence[Picture], batch_size: int) -> np.ndarray:
    """float32 [n, K, D]: states of the signal behind the request for each picture."""
    ids = system.model.config.signal_tokens[PORT]
    samples = []
    for picture in pictures:
        asked = parse_record(prompt_record(picture), picture.name)
        # What stands behind a signal has no part in its states.
        samples.append(system.for_features.sample(asked, add_generation_prompt=True).followed_by(ids))
    # Rows of about the same length together, in few shapes.
    order = np.argsort([len(sample) for sample in samples], kind="stable")
    plan, pad = system.processor.plan, system.processor.tokenizer.pad_id or 0

    def batches() -> Iterator[Batch]:
        for start in range(0, len(order), batch_size):
            chosen = [samples[number] for number in order[start : start + batch_size]]
            length = -(-max(map(len, chosen)) // 4) * 4
            bucket = dataclasses.replace(plan.bucket(chosen), length=length)
            yield collate(chosen, plan, pad, batch_size, bucket)

    states = cache_states(system.model, params, PORT, batches())
    out = np.empty_like(states)
    out[order] = states
    return out


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
