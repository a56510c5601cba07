"""Vocoders and VQ tokenizers by `from_pretrained`: transformers' numbers in and out, both formats of directories."""

import numpy as np
import pytest
import torch
import transformers

import mmjax
from mmjax.media_model import CodecModel, VocoderModel


def test_a_vocoder_speaks(tmp_path):
    torch.manual_seed(0)
    config = transformers.SpeechT5HifiGanConfig(
        model_in_dim=6, upsample_initial_channel=8, upsample_rates=[2, 3], upsample_kernel_sizes=[4, 6],
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 2]],
    )  # fmt: skip
    theirs = transformers.SpeechT5HifiGan(config)
    theirs.save_pretrained(tmp_path / "theirs")
    model = mmjax.from_pretrained(tmp_path / "theirs")
    assert isinstance(model, VocoderModel)
    mels = np.random.default_rng(0).normal(size=(2, 7, 6)).astype(np.float32)
    wanted = theirs(torch.tensor(mels)).detach().numpy()
    np.testing.assert_allclose(model(mels), wanted, atol=1e-4)
    np.testing.assert_allclose(model(mels[1]), wanted[1], atol=1e-4)
    with pytest.raises(ValueError, match="wanted"):
        model(mels[..., :5])
    model.save_pretrained(tmp_path / "ours", "mmjax")
    np.testing.assert_allclose(mmjax.from_pretrained(tmp_path / "ours")(mels), wanted, atol=1e-4)


def test_a_codec_gives_codes_and_images(tmp_path):
    torch.manual_seed(0)
    config = transformers.JanusVQVAEConfig(
        embed_dim=4, num_embeddings=10, latent_channels=6, base_channels=32, channel_multiplier=[1, 1],
        num_res_blocks=1, num_patches=4,
    )  # fmt: skip
    theirs = transformers.JanusVQVAE(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    model = mmjax.from_pretrained(tmp_path / "theirs")
    assert isinstance(model, CodecModel)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs.encode(torch.tensor(images).permute(0, 3, 1, 2)).image_tokens.numpy()
        decoded = theirs.decode(torch.tensor(wanted).reshape(2, -1)).permute(0, 2, 3, 1).numpy()
    codes = np.asarray(model.encode(images))
    np.testing.assert_array_equal(codes.reshape(wanted.shape), wanted)
    np.testing.assert_allclose(model.decode(codes), decoded, atol=1e-4)
