"""SpeechT5HifiGan against transformers: waveforms, and the way out and back, with weight normalisation and without."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.generators.vocoder import VocoderConfig
from mmjax.interop.huggingface import load, model_of, save
from mmjax.interop.tensors import WeightsError

SIZES = {
    "whole factors": dict(
        model_in_dim=5, upsample_initial_channel=12, upsample_rates=[3, 2], upsample_kernel_sizes=[7, 4],
        resblock_kernel_sizes=[3, 5], resblock_dilation_sizes=[[1, 3], [2]], normalize_before=False,
    ),
    "windows that leave a sample over": dict(
        model_in_dim=8, upsample_initial_channel=9, upsample_rates=[2, 5, 1], upsample_kernel_sizes=[5, 8, 2],
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 2, 1]], leaky_relu_slope=0.2, sampling_rate=8000,
    ),
}  # fmt: skip


def build(weights, name):
    model = weights.randomised(transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig(**SIZES[name])))
    with torch.no_grad():
        model.mean.normal_()
        model.scale.uniform_(0.5, 2.0)
    return model


def theirs(model, values):
    with torch.no_grad():
        return model(torch.tensor(values)).numpy()


@pytest.mark.parametrize("name", SIZES)
def test_waveforms_and_export(weights, parity, name):
    model = build(weights, name)
    loaded = weights.loaded(model)
    run = jax.jit(model_of(loaded.config))
    again = weights.again(loaded, type(model))
    for batch, frames in ((2, 9), (1, 1)):
        values = weights.pixels(batch, frames, loaded.config.num_mels)
        wanted = theirs(model, values)
        parity.close(run(loaded.params, values), wanted)
        assert wanted.shape == (batch, loaded.config.num_samples(frames)) and np.std(wanted) > 0.01
        np.testing.assert_array_equal(theirs(again, values), wanted)


@pytest.mark.parametrize("spelling", ["{}.weight_{}", "{}.parametrizations.weight.original{}"])
def test_weight_normalisation_is_folded(weights, parity, spelling):
    model = build(weights, "whole factors")
    values = weights.pixels(2, 6, 5)
    model.apply_weight_norm()
    with torch.no_grad():
        for tensor_name, parameter in model.named_parameters():
            if tensor_name.endswith("original0"):
                parameter.uniform_(0.5, 3.0)
    wanted = theirs(model, values)
    model.save_pretrained(weights.place)
    path = weights.place / "model.safetensors"
    letters = ("g", "v") if "_" in spelling else ("0", "1")
    spelt = {}
    for tensor_name, array in load_file(path).items():
        stem, found, number = tensor_name.partition(".parametrizations.weight.original")
        spelt[spelling.format(stem, letters[int(number)]) if found else tensor_name] = array
    save_file(spelt, path, {"format": "pt"})
    loaded = load(weights.place)
    parity.close(jax.jit(model_of(loaded.config))(loaded.params, values), wanted)
    save(weights.place / "ours", loaded.config, loaded.params, loaded.hf_config)
    again, info = type(model).from_pretrained(weights.place / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    parity.close(theirs(again.eval(), values), wanted)

    gain = spelling.format("conv_pre", letters[0])
    save_file({key: array for key, array in spelt.items() if key != gain}, path, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"conv_pre.weight \(12, 5, 7\)[\s\S]*left over[\s\S]*conv_pre.weight_v"):
        load(weights.place)


def test_the_former_name_of_its_kind(weights):
    loaded = weights.loaded(build(weights, "whole factors"))
    path = weights.place / "theirs" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "hifigan"}))
    assert load(path.parent).config == loaded.config


def test_what_does_not_fit_is_named():
    config = VocoderConfig(num_mels=4, width=8, rates=(2,), windows=(4,), block_windows=(3,), dilations=((1,),))
    assert from_dict(VocoderConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert config.hop == 2 and config.num_samples(5) == 10
    with pytest.raises(ValueError, match=r"spectrograms are \(1, 6, 5\); wanted \[B, T, 4\]"):
        model_of(config)({}, np.zeros((1, 6, 5), np.float32))
    for options, message in (
        ({"windows": (4, 4)}, "vocoder.windows has 2 entries, rates has 1"),
        ({"windows": (1,)}, "vocoder.windows: 1 is less than its rate 2"),
        ({"block_windows": (4,)}, "vocoder.block_windows: 4 is not odd"),
        ({"dilations": ()}, "vocoder.dilations has 0 entries"),
        ({"width": 1}, "vocoder.width 1 cannot be halved 1 times"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(config, **options)
