"""Stable Diffusion XL against diffusers' StableDiffusionXLPipeline: two towers, a pooled vector, sizes."""

import dataclasses

import diffusers
import numpy as np
import pytest
import torch
import transformers

from mmjax.config import ConfigError
from mmjax.pipelines import ImageToImage, Inpainting, load_pipeline
from mmjax.pipelines.text_to_image import draw

PROMPTS = ["a red cat, 1", "  A  DOG", ""]
XL = dict(
    cross_attention_dim=28, addition_embed_type="text_time", addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=24 + 10,
)  # fmt: skip


@pytest.fixture(scope="module")
def made(theirs):
    unet = theirs.unet(**XL)
    torch.manual_seed(3)
    second = transformers.CLIPTextModelWithProjection(theirs.text_config(16, 2, projection_dim=10, hidden_act="gelu"))
    other = transformers.CLIPTokenizer.from_pretrained(theirs.words, model_max_length=9, pad_token="b")
    return theirs.pipeline(
        diffusers.StableDiffusionXLPipeline, "xl", unet=unet, text_encoder_2=second, tokenizer_2=other,
        add_watermarker=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ours(made):
    return load_pipeline(made[1])


@pytest.mark.quick("euler")
@pytest.mark.parametrize("name", ["euler", "ddim", "dpm_solver"])
def test_images_equal_diffusers(name, theirs, made, ours):
    made, place = made
    ours = dataclasses.replace(ours, schedule=theirs.schedule(made, place, name))
    noise = theirs.normal(2, 3, 8, 12, 4)
    assert ours.parts.tokenizer_2.pad_id != ours.parts.tokenizer.pad_id and ours.parts.zeros
    for steps, scale, negative in ((7, None, None), (3, 2.0, ["a dog", "cat", "a"])):
        wanted = made(
            PROMPTS, negative_prompt=negative, num_inference_steps=steps, guidance_scale=scale or 5.0, height=16,
            width=24, latents=theirs.first(noise), output_type="np",
        ).images  # fmt: skip
        got = ours(PROMPTS, negative, steps, scale, 16, 24, latents=noise).images
        assert got.shape == wanted.shape == (3, 16, 24, 3) and np.ptp(wanted) > 0.05
        assert np.abs(got - wanted).max() <= 1e-3, (steps, scale)
    assert ours.parts.compiled(draw)._cache_size() == 1


def test_a_directory_that_changes_images_loads_by_its_name(theirs, made, ours):
    kind = diffusers.StableDiffusionXLImg2ImgPipeline
    whole, place = theirs.pipeline(kind, "xl_change", **made[0].components, add_watermarker=False)
    image, generator = theirs.uniform(0, 3, 16, 24, 3), torch.manual_seed(5)
    noise = [torch.randn(3, 4, 8, 12, generator=generator) for _ in range(2)][1].numpy()
    theirs.schedule(whole, place, "ddim")
    model = load_pipeline(place)
    assert isinstance(model, ImageToImage)
    # Without saying: theirs is changed by .3 with guidance 5.
    for told in ({}, {"strength": 0.5, "guidance_scale": 3.0}):
        wanted = whole(
            PROMPTS, image=theirs.first(image), num_inference_steps=6, generator=torch.manual_seed(5),
            output_type="np", **told,
        ).images  # fmt: skip
        got = model(PROMPTS, image, num_inference_steps=6, latents=np.moveaxis(noise, 1, -1), **told).images
        assert np.abs(got - wanted).max() <= 1e-3, told
    # The same of the parts of another pipeline.
    parts = ImageToImage(ours.parts, model.schedule)
    again = parts(PROMPTS, image, 0.5, 6, 3.0, latents=np.moveaxis(noise, 1, -1)).images
    assert np.abs(again - got).max() <= 1e-6


@pytest.mark.parametrize("channels", [4, pytest.param(9, marks=pytest.mark.slow)])
def test_a_directory_that_fills_masks_loads_by_its_name(channels, theirs, made):
    kind, parts = diffusers.StableDiffusionXLInpaintPipeline, dict(made[0].components)
    if channels == 9:
        parts["unet"] = theirs.unet(in_channels=9, **XL)
    whole, place = theirs.pipeline(kind, f"xl_fill_{channels}", **parts, add_watermarker=False)
    theirs.schedule(whole, place, "euler")
    model = load_pipeline(place)
    assert isinstance(model, Inpainting)
    image, mask = theirs.uniform(0, 3, 16, 24, 3), theirs.uniform(1, 3, 16, 24, 1)
    for told in ({}, {"strength": 1.0, "guidance_scale": 3.0, "negative_prompt": ["a dog", "cat", "a"]}):
        noise = theirs.normal(2, 3, 8, 12, 4)
        given = {"latents": theirs.first(noise)}
        if not told:
            # Less than everything, .9999: their noise is what their generator draws behind the encoder's.
            drawn = [torch.randn(3, 4, 8, 12, generator=made_of) for made_of in [torch.manual_seed(5)] * 2]
            noise, given = np.moveaxis(drawn[1].numpy(), 1, -1), {"generator": torch.manual_seed(5)}
        wanted = whole(
            PROMPTS, image=theirs.first(image), mask_image=theirs.first(mask), height=16, width=24,
            num_inference_steps=7, output_type="np", **told, **given,
        ).images  # fmt: skip
        got = model(PROMPTS, image, mask, num_inference_steps=7, latents=noise, **told).images
        assert got.shape == wanted.shape == (3, 16, 24, 3) and np.ptp(wanted) > 0.05
        assert np.abs(got - wanted).max() <= 1e-3, told


def test_parts_that_do_not_fit_are_named(ours):
    narrow = dataclasses.replace(ours.parts.unet, context_width=27)
    with pytest.raises(ConfigError, match="tokens of 27 channels and a vector of 10; the text towers have 12 and 16"):
        dataclasses.replace(ours.parts, unet=narrow)
