"""Stable Diffusion 3 against diffusers' StableDiffusion3Pipeline, with T5 and without."""

import diffusers
import numpy as np
import pytest
import torch
import transformers

from mmjax.pipelines import load_pipeline

PROMPTS = ["a red cat, 1", "  A  DOG", ""]


@pytest.fixture(scope="module", params=[True, False], ids=["t5", "clip alone"])
def made(request, theirs):
    torch.manual_seed(3)
    first, second = (
        transformers.CLIPTextModelWithProjection(theirs.text_config(width, 2, projection_dim=out, hidden_act="gelu"))
        for width, out in ((8, 6), (12, 4))
    )
    third = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=theirs.vocabulary, d_model=24, d_kv=4, d_ff=16, num_layers=2, num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    ).eval()  # fmt: skip
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=6, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=3,
        joint_attention_dim=24, caption_projection_dim=12, pooled_projection_dim=10, out_channels=4,
        pos_embed_max_size=12,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, sample_size=12, up_block_types=("UpDecoderBlock2D",) * 2,
        down_block_types=("DownEncoderBlock2D",) * 2, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False,
        use_post_quant_conv=False,
    )  # fmt: skip
    parts = dict(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae,
        text_encoder=first, text_encoder_2=second, tokenizer=theirs.tokenizer, tokenizer_2=theirs.tokenizer,
        text_encoder_3=third if request.param else None, tokenizer_3=theirs.tokenizer if request.param else None,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusion3Pipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    place = theirs.place / f"sd3_{request.param}"
    pipeline.save_pretrained(place)
    return pipeline, place


@pytest.mark.quick("t5")
def test_images_equal_diffusers(theirs, made):
    made, place = made
    ours = load_pipeline(place)
    noise = theirs.normal(2, 3, 8, 12, 4)
    for steps, scale, negative in ((7, None, None), (3, 2.0, ["a dog", "cat", "a"])):
        wanted = made(
            PROMPTS, negative_prompt=negative, num_inference_steps=steps, guidance_scale=scale or 7.0, height=16,
            width=24, latents=theirs.first(noise), output_type="np",
        ).images  # fmt: skip
        got = ours(PROMPTS, negative, steps, scale, 16, 24, latents=noise).images
        assert got.shape == wanted.shape == (3, 16, 24, 3) and np.ptp(wanted) > 0.05
        assert np.abs(got - wanted).max() <= 1e-3, (steps, scale)
    if ours.parts.text_3 is not None:
        with pytest.raises(ValueError, match="several vocabularies: give prompt, not prompt_ids"):
            ours(prompt_ids=np.zeros((1, 3), int))
