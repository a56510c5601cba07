"""Editing by an instruction against diffusers' StableDiffusionInstructPix2PixPipeline."""

import dataclasses

import diffusers
import numpy as np
import pytest

from mmjax.pipelines import load_pipeline
from mmjax.pipelines.edit import draw

PROMPTS = ["a red cat, 1", "  A  DOG", ""]


@pytest.fixture(scope="module")
def made(theirs):
    unet = theirs.unet(in_channels=8)
    return theirs.pipeline(diffusers.StableDiffusionInstructPix2PixPipeline, "edit", unet=unet)


@pytest.fixture(scope="module")
def ours(made):
    return load_pipeline(made[1])


@pytest.mark.quick("euler")
@pytest.mark.parametrize("name", ["euler", "pndm", "ddim", "dpm_solver"])
def test_images_equal_diffusers(name, theirs, made, ours):
    made, place = made
    ours = dataclasses.replace(ours, schedule=theirs.schedule(made, place, name))
    image, noise = theirs.uniform(0, 3, 16, 24, 3), theirs.normal(2, 3, 8, 12, 4)
    runs = [(7, 7.5, 1.5, None), (3, 2.0, 1.0, ["a dog", "cat", "a"])]
    if name != "euler":
        # Without guidance; another program.
        runs += [(3, 2.0, 0.5, None), (4, 1.0, 2.0, None)]
    for steps, scale, image_scale, negative in runs:
        wanted = made(
            PROMPTS, theirs.first(image), num_inference_steps=steps, guidance_scale=scale,
            image_guidance_scale=image_scale, negative_prompt=negative, latents=theirs.first(noise), output_type="np",
        ).images  # fmt: skip
        got = ours(PROMPTS, image, steps, scale, image_scale, negative, latents=noise).images
        assert got.shape == wanted.shape == (3, 16, 24, 3) and np.ptp(wanted) > 0.05
        assert np.abs(got - wanted).max() <= 1e-3, (steps, scale, image_scale)
    assert ours.parts.compiled(draw)._cache_size() <= 2, "one program with guidance and one without"
