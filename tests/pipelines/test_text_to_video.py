"""Text to videos against diffusers' TextToVideoSDPipeline: the same latents, steps and prompts, the same video."""

import dataclasses

import diffusers
import numpy as np
import pytest
import torch

import mmjax
from mmjax.config import ConfigError
from mmjax.generators.unet import UNetConfig
from mmjax.pipelines.text_to_video import VideoDiffusion

PROMPTS = ["a red cat, 1", "  A  DOG"]


@pytest.fixture(scope="module")
def pipeline(theirs):
    torch.manual_seed(1)
    unet = diffusers.UNet3DConditionModel(
        sample_size=6, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock3D",), up_block_types=("CrossAttnUpBlock3D",),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    made = diffusers.TextToVideoSDPipeline(theirs.vae, theirs.text, theirs.tokenizer, unet.eval(), scheduler)
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(theirs.place / "text_to_video")
    return made, mmjax.from_pretrained(theirs.place / "text_to_video")


def test_videos_equal_diffusers(theirs, pipeline):
    made, ours = pipeline
    assert isinstance(ours, VideoDiffusion)
    noise = theirs.normal(0, 2, 3, 4, 8, 4)
    for steps, scale, negative in ((4, 6.0, None), (2, 2.0, ["a dog", "cat"])):
        got = ours(PROMPTS, negative, steps, scale, height=8, width=16, num_frames=3, latents=noise).videos
        wanted = made(
            PROMPTS, negative_prompt=negative, height=8, width=16, num_frames=3, num_inference_steps=steps,
            guidance_scale=scale, latents=theirs.first(noise), output_type="np",
        ).frames  # fmt: skip
        assert got.shape == wanted.shape == (2, 3, 8, 16, 3) and np.ptp(wanted) > 0.05
        assert np.abs(got - wanted).max() <= 1e-3, (steps, scale)
    assert ours._draw._cache_size() == 1


def test_bad_requests_are_named(pipeline):
    _, ours = pipeline
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        ours("cat", num_frames=0)
    with pytest.raises(ValueError, match=r"latents are \(1, 6, 6, 4\); wanted \(1, 2, 6, 6, 4\)"):
        ours("cat", num_frames=2, latents=np.zeros((1, 6, 6, 4)))
    with pytest.raises(ConfigError, match="the UNet is of kind 'unet', wanted is 'unet3d'"):
        dataclasses.replace(ours, parts=dataclasses.replace(ours.parts, unet=UNetConfig(context_width=12)))
