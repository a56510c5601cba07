"""Encoders as a user holds them: the processor's own names and axes, for sounds and videos as for images."""

import numpy as np
import pytest
import torch
import transformers

import mmjax

SIZES = dict(hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=4)


def whisper():
    config = transformers.WhisperConfig(
        d_model=24,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=36,
        num_mel_bins=10,
        max_source_positions=9,
    )
    model = transformers.models.whisper.modeling_whisper.WhisperEncoder(config)
    return model, "input_features", (2, 10, 18)


def ast():
    config = transformers.ASTConfig(
        **SIZES, patch_size=4, frequency_stride=3, time_stride=2, max_length=15, num_mel_bins=13
    )
    return transformers.ASTModel(config), "input_values", (2, 15, 13)


def videomae():
    config = transformers.VideoMAEConfig(**SIZES, image_size=12, patch_size=4, num_frames=4, tubelet_size=2)
    return transformers.VideoMAEModel(config), "pixel_values", (2, 4, 3, 12, 12)


def test_masks_without_a_language_model(tmp_path):
    torch.manual_seed(0)
    vision = dict(SIZES, image_size=32, patch_size=4, output_channels=16, mlp_dim=36, window_size=3)
    vision |= dict(global_attn_indexes=[1], num_pos_feats=8)
    reference = transformers.SamModel(
        transformers.SamConfig(
            vision_config=vision,
            prompt_encoder_config=dict(hidden_size=16, image_size=32, patch_size=4, mask_input_channels=8),
            mask_decoder_config=dict(hidden_size=16, mlp_dim=24, num_attention_heads=2, iou_head_hidden_dim=16),
        )
    ).eval()
    reference.save_pretrained(tmp_path)
    random = np.random.default_rng(0)
    inputs = dict(
        pixel_values=random.normal(size=(1, 3, 32, 32)).astype(np.float32),
        input_points=random.uniform(0, 32, (1, 2, 3, 2)).astype(np.float32),
        input_labels=np.array([[[1, 0, 1], [1, 1, 0]]]),
    )
    with torch.no_grad():
        theirs = reference(**{name: torch.tensor(value) for name, value in inputs.items()})
    mine = mmjax.from_pretrained(tmp_path)(**inputs)
    np.testing.assert_allclose(mine.pred_masks, theirs.pred_masks, atol=1e-4)
    np.testing.assert_allclose(mine.iou_scores, theirs.iou_scores, atol=1e-4)


def test_sounds_of_several_lengths_and_clap(tmp_path):
    torch.manual_seed(0)
    sizes = dict(conv_dim=[7, 9], conv_kernel=[7, 3], conv_stride=[4, 2], num_conv_pos_embeddings=6)
    config = transformers.HubertConfig(**SIZES, **sizes, num_conv_pos_embedding_groups=3)
    reference = transformers.HubertModel(config).eval()
    reference.save_pretrained(tmp_path / "hubert")
    mask = (np.arange(90) < np.array([[90], [61]])).astype(np.int64)
    sound = (np.random.default_rng(0).normal(size=mask.shape) * mask).astype(np.float32)
    with torch.no_grad():
        theirs = reference(torch.tensor(sound), torch.tensor(mask)).last_hidden_state
    mine = mmjax.from_pretrained(tmp_path / "hubert")(input_values=sound, attention_mask=mask).last_hidden_state
    seen = (61 - 7) // 4 // 2
    np.testing.assert_allclose(mine[0], theirs[0], atol=1e-4)
    np.testing.assert_allclose(mine[1, :seen], theirs[1, :seen], atol=1e-4)

    config = transformers.ClapAudioConfig(
        patch_embeds_hidden_size=8, depths=[1, 1], num_attention_heads=[2, 2], num_mel_bins=16, spec_size=32,
        window_size=2, patch_size=4, patch_stride=[4, 4], projection_dim=10, hidden_size=16, num_hidden_layers=2,
        enable_fusion=True, aff_block_r=2,
    )  # fmt: skip
    config.num_frames = 53
    reference = transformers.ClapAudioModelWithProjection(config).eval()
    reference.save_pretrained(tmp_path / "clap")
    values = np.random.default_rng(1).normal(size=(2, 4, 53, 16)).astype(np.float32)
    longer = np.array([[True], [False]])
    with torch.no_grad():
        theirs = reference(input_features=torch.tensor(values), is_longer=torch.tensor(longer)).audio_embeds
    mine = mmjax.from_pretrained(tmp_path / "clap")(input_features=values, is_longer=longer).audio_embeds
    np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize("make", [whisper, ast, videomae])
def test_names_and_axes_are_the_processors(tmp_path, make):
    torch.manual_seed(0)
    reference, name, shape = make()
    reference.eval().save_pretrained(tmp_path)
    model = mmjax.from_pretrained(tmp_path)
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        theirs = reference(**{name: torch.tensor(values)}).last_hidden_state
    mine = model(**{name: values}).last_hidden_state
    np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-4)
    model.save_pretrained(tmp_path / "own", format="mmjax")
    again = mmjax.from_pretrained(tmp_path / "own")(**{name: values})
    np.testing.assert_array_equal(again.last_hidden_state, mine)
    with pytest.raises(ValueError, match="one of pixel_values, input_features, input_values"):
        model()
    with pytest.raises(ValueError, match=f"{name}.*got shape"):
        model(**{name: values[..., 0]})
    with pytest.raises(ValueError, match="pixel_valeus.*pixel_values"):
        model(pixel_valeus=values)
