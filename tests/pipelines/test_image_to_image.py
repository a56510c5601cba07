"""Image to image against diffusers' StableDiffusionImg2ImgPipeline: the same image, noise, steps and strength."""

import dataclasses

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from mmjax.config import ConfigError
from mmjax.pipelines import ImageToImage, load_pipeline
from mmjax.pipelines.image_to_image import draw

PROMPTS = ["a red cat, 1", "  A  DOG", ""]


@pytest.fixture(scope="module")
def made(theirs):
    made, place = theirs.pipeline(diffusers.StableDiffusionImg2ImgPipeline, "image_to_image", unet=theirs.unet())
    return made, place


@pytest.fixture(scope="module")
def ours(made):
    return load_pipeline(made[1])


@pytest.mark.quick("pndm")
@pytest.mark.parametrize("name", ["pndm", "ddim", "euler", "heun", "dpm_solver", "unipc"])
def test_images_equal_diffusers(name, theirs, made, ours):
    made, place = made
    ours = dataclasses.replace(ours, schedule=theirs.schedule(made, place, name))
    image = theirs.uniform(0, 3, 16, 24, 3)
    for steps, strength, scale, negative in ((11, 0.6, 7.5, None), (4, 1.0, 2.0, ["a dog", "cat", "a"])):
        generator = torch.manual_seed(steps)
        # Drawn from the encoder's distribution, which has no width here; then the noise.
        noise = [torch.randn(3, 4, 8, 12, generator=generator) for _ in range(2)][1].numpy()
        wanted = made(
            PROMPTS, theirs.first(image), strength, steps, guidance_scale=scale, negative_prompt=negative,
            generator=torch.manual_seed(steps), output_type="np",
        ).images  # fmt: skip
        got = ours(PROMPTS, image, strength, steps, scale, negative, latents=np.moveaxis(noise, 1, -1)).images
        assert got.shape == wanted.shape == (3, 16, 24, 3) and np.ptp(wanted) > 0.05
        assert np.abs(got - wanted).max() <= 1e-3, (steps, strength)
    assert ours.parts.compiled(draw)._cache_size() == 1, "steps, strength, sampler and prompts are data"


@pytest.mark.slow
def test_latents_and_pictures_are_taken_too(theirs, ours):
    options = dict(num_inference_steps=2, guidance_scale=1, strength=0.5)
    found = np.random.default_rng(0).integers(0, 256, (12, 8, 3), np.uint8)
    whole, as_float = (ours("cat", image, **options).images for image in (found, found / np.float32(255)))
    assert (whole == as_float).all() and (whole == ours("cat", Image.fromarray(found), **options).images).all()
    pair = ours(["cat", "cat"], [Image.fromarray(found)] * 2, **options).images
    assert pair.shape == (2, 12, 8, 3)
    latents = theirs.normal(0, 1, 6, 4, 4)
    assert np.abs(ours("cat", latents, **options).images - ours("cat", 2 * latents, **options).images).max() > 1e-3


def test_bad_requests_are_named(theirs, ours):
    image = theirs.uniform(0, 2, 8, 8, 3)
    with pytest.raises(ValueError, match="strength is 1.5"):
        ours(["cat", "dog"], image, strength=1.5)
    with pytest.raises(ValueError, match="strength 0.1 leaves none of 5 steps"):
        ours(["cat", "dog"], image, strength=0.1, num_inference_steps=5)
    with pytest.raises(ValueError, match="image: 2 for 3 prompts"):
        ours(PROMPTS, image)
    with pytest.raises(ValueError, match=r"image is \(1, 2, 8, 8\); wanted"):
        ours("cat", image[..., 0])
    with pytest.raises(ValueError, match="image has values from 0 to 255; wanted 0 to 1, or uint8"):
        ours("cat", np.asarray([[[0.0, 128, 255]] * 8] * 8))
    with pytest.raises(ValueError, match="images of 8 x 7 pixels; sides must be multiples of 2"):
        ours("cat", image[:1, :, :7])
    with pytest.raises(ValueError, match="steps must be from 1 to 1000, got 0"):
        ours("cat", image[:1], num_inference_steps=0)
    wide = dataclasses.replace(ours.parts, unet=dataclasses.replace(ours.parts.unet, in_channels=9))
    with pytest.raises(ConfigError, match="the UNet reads 9 channels; for latents of 4, 4 fit"):
        ImageToImage(wide, ours.schedule)
