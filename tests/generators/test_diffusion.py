"""A generator whole: videos frame by frame, sounds through a vocoder, denoisers that read sizes or say variances."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import ConfigError
from mmjax.data.contracts import Condition
from mmjax.generators.autoencoder import AutoencoderConfig, scaled, unscaled
from mmjax.generators.diffusion import AUTOENCODERS, DENOISERS, Diffusion, DiffusionConfig, draw_noise
from mmjax.generators.noise import NoiseConfig
from mmjax.generators.pixart import PixArtConfig
from mmjax.generators.schedules.config import ScheduleConfig
from mmjax.generators.unet import UNetConfig
from mmjax.generators.unet3d import UNet3DConfig
from mmjax.generators.vocoder import Vocoder, VocoderConfig

IMAGES = AutoencoderConfig(widths=(4, 4), blocks=1, groups=2)
UNET = UNetConfig(widths=(4, 4), blocks=1, layers=(0, 0), middle_layers=0, num_heads=(1, 1), groups=2, context_width=6)
VIDEO = DiffusionConfig(
    UNet3DConfig(widths=(4,), blocks=1, attends=(False,), head_dim=2, context_width=6, groups=2),
    IMAGES,
    size=(8, 12),
    frames=3,
)
SOUND = DiffusionConfig(
    dataclasses.replace(UNET, in_channels=8, out_channels=8, context_width=None, pooled="beside", pooled_width=6),
    AutoencoderConfig(widths=(4, 4), blocks=1, groups=2, latent_channels=8, image_channels=1, scale=0.9),
    size=(16, 8),
    vocoder=VocoderConfig(8, 8, (2, 2), (4, 4), (3,), ((1,),), normalize=False),
)
PIXART = DiffusionConfig(PixArtConfig(width=12, num_heads=2, num_layers=1, context_width=6, sample_size=4), IMAGES)


def made(config, seed=0):
    """A module, and params of its shapes."""
    module = Diffusion(config)
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, *config.feature_shape)), method="create")["params"]
    )
    random = np.random.default_rng(seed)
    is_box = lambda leaf: hasattr(leaf, "names")
    leaf = lambda box: jnp.asarray(random.normal(0, 0.3, getattr(box, "value", box).shape), jnp.float32)
    return module, jax.tree.map(leaf, shapes, is_leaf=is_box)


def test_frames_are_encoded_and_decoded_each_for_itself():
    module, params = made(VIDEO)
    assert VIDEO.latent_shape == (3, 4, 6, 4)
    frames = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 12, 3)), jnp.float32)
    alone = AUTOENCODERS[AutoencoderConfig](IMAGES)

    @jax.jit
    def run(params):
        own = {"params": params["autoencoder"]}
        latents = module.apply({"params": params}, frames, method="encode")
        one = scaled(IMAGES, alone.apply(own, frames[1], method="encode").mean)
        video = module.apply({"params": params}, latents, method="decode")
        return latents, one, video, alone.apply(own, unscaled(IMAGES, one), method="decode")

    latents, one, video, pixels = run(params)
    assert latents.shape == (2, *VIDEO.latent_shape) and video.shape == (2, 3, 8, 12, 3)
    np.testing.assert_allclose(latents[1], one, atol=1e-5)
    np.testing.assert_allclose(video[1], jnp.clip(pixels / 2 + 0.5, 0, 1), atol=1e-4)


def test_sounds_are_spectrograms_through_the_vocoder():
    module, params = made(SOUND)
    latents = jnp.asarray(np.random.default_rng(0).normal(size=(2, *SOUND.latent_shape)), jnp.float32)
    assert SOUND.condition_width == 6 and SOUND.latent_shape == (8, 4, 8)

    @jax.jit
    def run(params):
        condition = Condition(None, pooled=jnp.ones((2, 6)))
        said = module.apply({"params": params}, latents, jnp.array([3, 5]), condition)
        sound = module.apply({"params": params}, latents, method="decode")
        alone = AUTOENCODERS[AutoencoderConfig](SOUND.autoencoder)
        mels = alone.apply({"params": params["autoencoder"]}, unscaled(SOUND.autoencoder, latents), method="decode")
        return said, sound, Vocoder(SOUND.vocoder).apply({"params": params["vocoder"]}, mels[..., 0])

    said, sound, wanted = run(params)
    assert said.shape == latents.shape and sound.shape == (2, SOUND.vocoder.num_samples(16))
    np.testing.assert_allclose(sound, wanted, atol=1e-5)


def test_sizes_are_told_and_variances_left_out():
    module, params = made(PIXART)
    noisy = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 4)), jnp.float32)
    extras = {"resolution": jnp.array([[8.0, 12.0]] * 2), "aspect_ratio": jnp.array([[8 / 12]] * 2)}

    @jax.jit
    def run(params):
        run = lambda condition: module.apply({"params": params}, noisy, jnp.array([3, 5]), condition)
        sequence = jnp.ones((2, 3, 6))
        other = {**extras, "resolution": 5 * extras["resolution"]}
        return run(Condition(sequence)), run(Condition(sequence, extras=extras)), run(Condition(sequence, extras=other))

    told, given, other = run(params)
    assert told.shape == noisy.shape
    np.testing.assert_allclose(told, given, atol=1e-5)
    assert np.abs(told - other).max() > 1e-4


@pytest.mark.parametrize("prediction", ["sample", "v"])
def test_a_sketch_is_seen_beside_the_noisy_latent(prediction):
    denoiser = dataclasses.replace(PIXART.denoiser, in_channels=8, out_channels=4, reads_size=False)
    schedule = ScheduleConfig(noise=NoiseConfig(prediction=prediction))
    module, params = made(DiffusionConfig(denoiser, IMAGES, schedule, sketched=True))
    random = np.random.default_rng(0)
    noisy, sketch = (jnp.asarray(random.normal(size=(2, 4, 6, 4)), jnp.float32) for _ in range(2))
    times, sequence = jnp.array([3, 5]), jnp.ones((2, 3, 6))

    @jax.jit
    def run(params):
        said = module.apply({"params": params}, noisy, times, Condition(sequence, extras={"sketch": sketch}))
        alone = DENOISERS[PixArtConfig](denoiser)
        both = jnp.concatenate([noisy, sketch], axis=-1)
        return said, alone.apply({"params": params["denoiser"]}, both, times, Condition(sequence))

    said, alone = run(params)
    np.testing.assert_allclose(said, alone, atol=1e-5)
    for extras in (None, {"sketch": sketch[:, :2]}):
        with pytest.raises(ValueError, match="the condition's sketch is"):
            module.apply({"params": params}, noisy, times, Condition(sequence, extras=extras))


def test_times_are_those_of_training():
    noise, times = draw_noise(PIXART, jax.random.key(0), (4000, 2))
    assert times.dtype == jnp.int32 and 0 <= times.min() < 20 and 980 < times.max() <= 999
    assert abs(float(noise.mean())) < 0.05 and abs(float(noise.std()) - 1) < 0.05
    straight = ScheduleConfig("flow_euler", NoiseConfig(prediction="flow"))
    _, times = draw_noise(dataclasses.replace(PIXART, schedule=straight), jax.random.key(0), (4000, 2))
    assert times.dtype == jnp.float32 and 0 <= times.min() < 20 and 980 < times.max() < 1000


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        (VIDEO, {"frames": None}, "diffusion.frames"),
        (VIDEO, {"frames": 0}, "at least 1"),
        (PIXART, {"frames": 2}, "diffusion.frames"),
        (SOUND, {"size": (16, 16)}, "reads one map of 8 channels"),
        (SOUND, {"autoencoder": IMAGES}, "latents have 4"),
        (PIXART, {"sketched": True}, "and a sketch 4 more"),
    ],
)
def test_parts_that_do_not_fit(config, change, said):
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(config, **change)
