"""Text to images after pictures against diffusers' StableDiffusionControlNetPipeline, with one and two ControlNets."""

import dataclasses

import diffusers
import numpy as np
import pytest
import torch

from mmjax.config import ConfigError
from mmjax.pipelines import ControlledDiffusion, load_pipeline
from mmjax.pipelines.control import draw

PROMPTS = ["a red cat, 1", "  A  DOG", ""]


def control(unet, seed):
    made = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    torch.manual_seed(seed)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


@pytest.fixture(scope="module", params=[1, 2], ids=["one", "two"])
def made(request, theirs):
    unet = theirs.unet()
    nets = [control(unet, seed) for seed in range(request.param)]
    kind, name = diffusers.StableDiffusionControlNetPipeline, f"control_{request.param}"
    return theirs.pipeline(kind, name, unet=unet, controlnet=nets if len(nets) > 1 else nets[0])


@pytest.fixture(scope="module")
def ours(made):
    return load_pipeline(made[1])


@pytest.mark.quick("two-euler")
@pytest.mark.parametrize("name", ["euler", "pndm", "ddim", "unipc"])
def test_images_equal_diffusers(name, theirs, made, ours):
    made, place = made
    ours = dataclasses.replace(ours, schedule=theirs.schedule(made, place, name))
    count = len(ours.controls)
    pictures = [theirs.uniform(seed, 3, 16, 24, 3) for seed in range(count)]
    noise = theirs.normal(2, 3, 8, 12, 4)
    scales = [0.4, 1.3][:count]
    for steps, scale, strength, negative in ((7, 7.5, scales, None), (3, 2.0, [0.9] * count, ["a dog", "cat", "a"])):
        image, strength = (pictures, strength) if count > 1 else (pictures[0], strength[0])
        wanted = made(
            PROMPTS, [theirs.first(one) for one in pictures] if count > 1 else theirs.first(image),
            num_inference_steps=steps, guidance_scale=scale, controlnet_conditioning_scale=strength,
            negative_prompt=negative, latents=theirs.first(noise), output_type="np",
        ).images  # fmt: skip
        got = ours(PROMPTS, image, steps, scale, negative, strength, latents=noise).images
        assert got.shape == wanted.shape == (3, 16, 24, 3) and np.ptp(wanted) > 0.05
        assert np.abs(got - wanted).max() <= 1e-3, (steps, scale)
        # Guessing, also without guidance.
        for told in (scale, 1.0) if name == "euler" else ():
            wanted = made(
                PROMPTS, [theirs.first(one) for one in pictures] if count > 1 else theirs.first(image),
                num_inference_steps=3, guidance_scale=told, controlnet_conditioning_scale=strength, guess_mode=True,
                latents=theirs.first(noise), output_type="np",
            ).images  # fmt: skip
            guessed = ours(PROMPTS, image, 3, told, None, strength, latents=noise, guess_mode=True).images
            assert np.abs(guessed - wanted).max() <= 1e-3, told
            plain = ours(PROMPTS, image, 3, told, None, strength, latents=noise).images
            assert np.abs(guessed - plain).max() > 1e-2
    without = ours(PROMPTS, image, 3, 2.0, negative, 0.0, latents=noise).images
    assert np.abs(got - without).max() > 1e-2, "the pictures count"
    program = ours.parts.compiled(draw, tuple(control.config for control in ours.controls))
    # One with guidance, and for guessing one without.
    assert program._cache_size() == 1 + (name == "euler")


def test_bad_requests_are_named(theirs, ours):
    pictures = [theirs.uniform(0, 1, 16, 24, 3)] * len(ours.controls)
    if len(ours.controls) == 1:
        with pytest.raises(ValueError, match="sides must be multiples of 2"):
            ours("cat", pictures[0][:, :15])
    else:
        with pytest.raises(ValueError, match="1 pictures for 2 ControlNets"):
            ours("cat", pictures[:1])
        with pytest.raises(ValueError, match="pictures of several shapes"):
            ours("cat", [pictures[0], pictures[1][:, :8]])
    narrow = dataclasses.replace(ours.controls[0].config, widths=(8, 16), num_heads=(2, 2))
    with pytest.raises(ConfigError, match="the ControlNet has"):
        ControlledDiffusion(ours.parts, ours.schedule, (dataclasses.replace(ours.controls[0], config=narrow),))
