"""Text to sound against diffusers' AudioLDMPipeline: the same latents, steps and prompts, the same waveform."""

import dataclasses
import json

import diffusers
import numpy as np
import pytest
import torch
import transformers

import mmjax
from mmjax.config import ConfigError
from mmjax.pipelines import load_pipeline
from mmjax.pipelines.text_to_audio import AudioDiffusion

PIECES = ["<s>", "<pad>", "</s>", "<unk>", *"abcdginort,", "Ġ", "Ġd", "og", "Ġdog", "at", "cat", "ra", "in"]
MERGES = ["Ġ d", "o g", "Ġd og", "a t", "c at", "r a", "i n"]
PROMPTS = ["rain, dog", "a cat and a cat"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    place = tmp_path_factory.mktemp("audio")
    (place / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(PIECES)}))
    (place / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    tokenizer = transformers.RobertaTokenizer.from_pretrained(place, model_max_length=14)
    torch.manual_seed(0)
    text = transformers.ClapTextModelWithProjection(transformers.ClapTextConfig(
        vocab_size=len(PIECES), hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=13, initializer_factor=10.0,
    ))  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=6, in_channels=4, out_channels=4, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=(8,), attention_head_dim=4, class_embed_type="simple_projection",
        class_embeddings_concat=True, projection_class_embeddings_input_dim=13,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    vocoder = transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig(
        model_in_dim=8, upsample_initial_channel=8, upsample_rates=[4, 2], upsample_kernel_sizes=[8, 4],
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]], normalize_before=False, sampling_rate=1600,
    ))  # fmt: skip
    with torch.no_grad():
        for parameter in vocoder.parameters():
            parameter.normal_(0, 0.3)
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    made = diffusers.AudioLDMPipeline(vae.eval(), text.eval(), tokenizer, unet.eval(), scheduler, vocoder.eval())
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(place / "saved")
    return made, mmjax.from_pretrained(place / "saved"), place / "saved"


def test_waveforms_equal_diffusers(pipeline):
    made, ours, _ = pipeline
    assert isinstance(ours, AudioDiffusion)
    noise = np.random.default_rng(0).normal(size=(2, 5, 4, 4)).astype(np.float32)
    # 0.0485 seconds are 9 frames, of which latents have two each: the last one is cut off.
    for steps, scale, negative in ((4, 2.5, None), (2, 5.0, ["dog", "in, rain"])):
        got = ours(PROMPTS, negative, steps, scale, audio_length_in_s=0.0485, latents=noise)
        wanted = made(
            PROMPTS, audio_length_in_s=0.0485, num_inference_steps=steps, guidance_scale=scale,
            negative_prompt=negative, latents=torch.tensor(noise.transpose(0, 3, 1, 2)),
        ).audios  # fmt: skip
        assert got.audios.shape == wanted.shape == (2, 77) and got.sampling_rate == 1600
        assert np.std(wanted, axis=1).min() > 0.02 and np.abs(wanted[0] - wanted[1]).max() > 0.02
        assert np.abs(got.audios - wanted).max() <= 1e-3 * max(1.0, np.sqrt(np.mean(wanted**2)))
    assert ours._draw._cache_size() == 1


def test_tokens_equal_theirs(pipeline):
    made, ours = pipeline[0], pipeline[1].prompts
    texts = [*PROMPTS, "", "dog"]
    wanted = made.tokenizer(texts, padding="max_length", max_length=14)["input_ids"]
    np.testing.assert_array_equal(ours.tokens(texts), wanted)
    with pytest.warns(UserWarning, match="read are 12; cut off is"):
        long = ours.tokens(["a cat and a cat and a cat and a cat"])
    wanted = made.tokenizer("a cat and a cat and a cat and a cat", truncation=True, max_length=14)["input_ids"]
    np.testing.assert_array_equal(long[0], wanted)


def test_bad_requests_and_parts_are_named(pipeline, tmp_path):
    _, ours, place = pipeline
    with pytest.raises(ValueError, match="audio_length_in_s must be at least 0.01, got 0.005"):
        ours("dog", audio_length_in_s=0.005)
    with pytest.raises(ValueError, match=r"latents are \(1, 2, 2, 4\); wanted \(1, 6, 4, 4\)"):
        ours("dog", latents=np.zeros((1, 2, 2, 4)))
    with pytest.raises(ValueError, match="no tokenizer: give prompt_ids"):
        dataclasses.replace(ours, tokenizer=None)("dog")
    for part, options, message in (
        ("unet", {"pooled_width": 5}, "the UNet reads a vector of 5 and a sequence of None"),
        ("autoencoder", {"latent_channels": 3}, "reads 4 channels and gives 4, latents have 3"),
        ("vocoder", {"num_mels": 7}, "the vocoder's 7 mel bins are no multiple of 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(ours, **{part: dataclasses.replace(getattr(ours, part), **options)})
    for name in ("model_index.json", "text_encoder", "tokenizer", "unet", "vae", "scheduler"):
        (tmp_path / name).symlink_to(place / name)
    (tmp_path / "vocoder").symlink_to(place / "text_encoder")
    with pytest.raises(ConfigError, match="vocoder holds a BidirectionalTextConfig, not a vocoder"):
        load_pipeline(tmp_path)
