"""Inpainting against diffusers' StableDiffusionInpaintPipeline, by UNets that read masks and by those that do not."""

import dataclasses

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from mmjax.pipelines import load_pipeline
from mmjax.pipelines.inpaint import draw

PROMPTS = ["a red cat, 1", "  A  DOG", ""]


@pytest.fixture(scope="module", params=[4, 9], ids=["latents alone", "mask beside"])
def made(request, theirs):
    unet, name = theirs.unet(in_channels=request.param), f"inpaint_{request.param}"
    return theirs.pipeline(diffusers.StableDiffusionInpaintPipeline, name, unet=unet)


@pytest.fixture(scope="module")
def ours(made):
    return load_pipeline(made[1])


@pytest.mark.quick("latents alone-euler", "mask beside-euler")
@pytest.mark.parametrize("name", ["euler", "pndm", "ddim", "heun", "dpm_solver", "unipc"])
def test_images_equal_diffusers(name, theirs, made, ours):
    made, place = made
    ours = dataclasses.replace(ours, schedule=theirs.schedule(made, place, name))
    image, mask = theirs.uniform(0, 3, 16, 24, 3), theirs.uniform(1, 3, 16, 24, 1)
    noise = theirs.normal(2, 3, 8, 12, 4)
    options = dict(height=16, width=24, output_type="np")
    for steps, scale, negative in ((7, 7.5, None), (3, 2.0, ["a dog", "cat", "a"])):
        wanted = made(
            PROMPTS, theirs.first(image), theirs.first(mask), num_inference_steps=steps, guidance_scale=scale,
            negative_prompt=negative, latents=theirs.first(noise), **options,
        ).images  # fmt: skip
        got = ours(PROMPTS, image, mask, 1.0, steps, scale, negative, latents=noise).images
        assert got.shape == wanted.shape == (3, 16, 24, 3) and np.ptp(wanted) > 0.05
        assert np.abs(got - wanted).max() <= 1e-3, steps
    # Less than everything: their noise is what their generator draws behind the encoder's.
    noise = [torch.randn(3, 4, 8, 12, generator=made_of) for made_of in [torch.manual_seed(5)] * 2][1].numpy()
    wanted = made(
        PROMPTS, theirs.first(image), theirs.first(mask), strength=0.5, num_inference_steps=8, guidance_scale=3.0,
        generator=torch.manual_seed(5), **options,
    ).images  # fmt: skip
    got = ours(PROMPTS, image, mask, 0.5, 8, 3.0, latents=np.moveaxis(noise, 1, -1)).images
    assert np.abs(got - wanted).max() <= 1e-3
    assert ours.parts.compiled(draw)._cache_size() == 1


@pytest.mark.slow
def test_what_is_known_stays(theirs):
    unet = theirs.unet()
    _, place = theirs.pipeline(diffusers.StableDiffusionInpaintPipeline, "inpaint_known", unet=unet)
    ours, image = load_pipeline(place), theirs.uniform(0, 1, 16, 24, 3)
    options = dict(num_inference_steps=2, guidance_scale=1)
    nothing, all_of_it = (ours("cat", image, np.full((16, 24), level), **options).images for level in (False, True))
    kept = theirs.vae.decode(theirs.vae.encode(theirs.first(2 * image - 1)).latent_dist.mean).sample
    assert np.abs(nothing - np.clip(np.moveaxis(kept.detach().numpy(), 1, -1) / 2 + 0.5, 0, 1)).max() <= 1e-3
    assert np.abs(all_of_it - nothing).max() > 1e-2
    white = Image.fromarray(np.full((16, 24), 255, np.uint8))
    assert (ours("cat", image, white, **options).images == all_of_it).all()
    with pytest.raises(ValueError, match=r"mask_image is \(1, 8, 24, 1\); wanted \[B, 16, 24, 1\]"):
        ours("cat", image, np.zeros((8, 24)))
    with pytest.raises(ValueError, match="mask_image: 2 for 1 prompts"):
        ours("cat", image, np.zeros((2, 16, 24)))
