"""Features of sound against transformers' feature extractors."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers

from mmjax.config import ConfigError
from mmjax.data.audio_front_ends import (
    ASTFrontEnd,
    CLAPFrontEnd,
    Wav2Vec2FrontEnd,
    WhisperFrontEnd,
    front_end_from_hf,
    front_end_to_hf,
)

SHORT_CHUNK = dict(chunk_length=2, hop_length=150, n_fft=390)
WHISPER = [{}, {"feature_size": 128}, {**SHORT_CHUNK, "feature_size": 21}]
AST = [{}, {"max_length": 33, "num_mel_bins": 40, "do_normalize": False}, {"mean": 0.5, "std": 2.0, "max_length": 90}]
CLAP_SIZES = dict(sampling_rate=8000, hop_length=100, max_length_s=1, fft_window_size=256, frequency_max=3900)
WAV2VEC2 = [{}, {"return_attention_mask": True}, {"do_normalize": False, "padding_value": -1.0}]


def sound(count, seed=0):
    """Noise whose loudness swells, on a slow sine."""
    rng = np.random.default_rng(seed)
    time = np.arange(count) / 16000
    return (0.2 * np.sin(2 * np.pi * 220 * time) + 0.1 * rng.normal(size=count) * (1 + np.sin(3 * time))).astype("f4")


def ours(theirs):
    """Our recipe from what theirs writes; its way out gives the same recipe to both."""
    front_end = front_end_from_hf(json.loads(json.dumps(theirs.to_dict(), default=np.ndarray.tolist)))
    written = json.loads(json.dumps(front_end_to_hf(front_end)))
    assert front_end_from_hf(written) == front_end
    assert front_end_from_hf(json.loads(type(theirs).from_dict(written).to_json_string())) == front_end
    return front_end


def close(mine, reference):
    reference = np.asarray(reference)
    assert mine.dtype == np.float32 and mine.shape == reference.shape
    bound = 1e-4 * max(1.0, float(np.sqrt(np.mean(np.square(reference)))))
    assert np.abs(mine - reference).max() <= bound


@pytest.mark.parametrize("options", WHISPER)
def test_whisper(options):
    theirs = transformers.WhisperFeatureExtractor(**options)
    front_end = ours(theirs)
    size = front_end.num_samples
    for count in (1, 500, size // 3 + 7, size, size + 4000):
        samples = sound(count)
        expected = theirs(samples, sampling_rate=16000, return_tensors="np", return_attention_mask=True)
        got = front_end(samples)
        assert got["input_features"].shape == front_end.item_shape
        close(got["input_features"], expected["input_features"][0].T)
        np.testing.assert_array_equal(got["attention_mask"], expected["attention_mask"][0])
        padded = np.pad(samples[:size], (0, max(0, size - count)))
        close(got["input_features"], theirs._np_extract_fbank_features(padded[None], "cpu")[0].T)


def test_whisper_of_silence():
    theirs = transformers.WhisperFeatureExtractor(**SHORT_CHUNK)
    expected = theirs(np.zeros(900, np.float32), sampling_rate=16000, return_tensors="np")["input_features"][0]
    close(ours(theirs)(np.zeros(900))["input_features"], expected.T)


@pytest.mark.parametrize("options", AST)
def test_ast(options):
    theirs = transformers.ASTFeatureExtractor(**options)
    front_end = ours(theirs)
    for count in (400, 5000, 16000):
        samples = sound(count, 2)
        got = front_end(samples)["input_values"]
        assert got.shape == front_end.item_shape
        close(got, theirs(samples, sampling_rate=16000, return_tensors="np")["input_values"][0])
    with pytest.raises(ValueError, match="399 samples are fewer than one frame"):
        front_end(sound(399))


@pytest.mark.parametrize("truncation", ["fusion", "rand_trunc"])
@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
def test_clap(truncation, padding):
    theirs = transformers.ClapFeatureExtractor(truncation=truncation, padding=padding, **CLAP_SIZES)
    front_end = ours(theirs)
    size = front_end.num_samples
    # One sample more gives no further frame, `hop_length` more one, 3.7 times as many several.
    for count in (300, 3001, size, size + 1, size + 100, size + 250, int(3.7 * size)):
        samples = sound(count, count)
        np.random.seed(7)
        features, longer = theirs._get_input_mel(samples, size, truncation, padding)
        got = front_end(samples, np.random.RandomState(7))
        assert got["input_features"].shape == front_end.item_shape
        close(got["input_features"], features)
        assert bool(got["is_longer"]) == longer


def test_clap_draws_crops_only_with_a_generator():
    whole, sizes = sound(30_000), {**CLAP_SIZES, "frequency_max": 3900.0}
    crop = CLAPFrontEnd(**sizes, truncation="rand_trunc")
    middle = crop(whole[11_000:19_000])
    assert bool(crop(whole)["is_longer"]) and not bool(middle["is_longer"])
    np.testing.assert_array_equal(crop(whole)["input_features"], middle["input_features"])
    for recipe in (crop, CLAPFrontEnd(**sizes)):
        drawn = [recipe(whole, np.random.default_rng(seed))["input_features"] for seed in (0, 0, 1, 2)]
        np.testing.assert_array_equal(drawn[0], drawn[1])
        assert len({array.tobytes() for array in drawn}) == 3
    with pytest.raises(ValueError, match="no sample"):
        crop(whole[:0])


def test_clap_as_published():
    theirs = transformers.ClapFeatureExtractor()
    front_end = ours(theirs)
    assert front_end == CLAPFrontEnd() and front_end.item_shape == (4, 1001, 64)
    samples = sound(70_000)
    expected = theirs(samples, sampling_rate=48000, return_tensors="np")["input_features"][0]
    close(front_end(samples)["input_features"], expected)


@pytest.mark.parametrize("options", WAV2VEC2)
def test_wav2vec2(options):
    theirs = transformers.Wav2Vec2FeatureExtractor(**options)
    front_end = ours(theirs)
    for count, size in ((801, None), (801, 801), (801, 1000), (1200, 1000)):
        samples = sound(count) + 0.3
        recipe = dataclasses.replace(front_end, num_samples=size)
        assert recipe.item_shape == (None if size is None else (size,))
        assert front_end_from_hf(front_end_to_hf(recipe)) == recipe
        length = {} if size is None else dict(padding="max_length", max_length=size, truncation=True)
        expected = theirs(samples, sampling_rate=16000, return_tensors="np", **length)
        got = recipe(samples)
        assert set(got) == set(expected)
        close(got["input_values"], expected["input_values"][0])
        if "attention_mask" in got:
            np.testing.assert_array_equal(got["attention_mask"], expected["attention_mask"][0])


def test_what_published_files_hold_is_read():
    whisper = {
        "chunk_length": 30,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 128,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": 480000,
        "nb_max_frames": 3000,
        "padding_side": "right",
        "processor_class": "WhisperProcessor",
        "return_attention_mask": False,
    }
    assert front_end_from_hf(whisper) == WhisperFrontEnd(feature_size=128)
    assert front_end_from_hf({"feature_extractor": whisper}) == WhisperFrontEnd(feature_size=128)
    assert front_end_from_hf({"feature_extractor_type": "ASTFeatureExtractor", "mean": None}) == ASTFrontEnd()
    own = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "mmjax": {"num_samples": 5}}
    assert front_end_from_hf(own) == Wav2Vec2FrontEnd(num_samples=5)


def test_bad_recipes_are_named():
    for config, words in (
        ({"feature_extractor_type": "WhisperFeatureExtracter"}, 'mean "WhisperFeatureExtractor"'),
        ({}, "feature_extractor_type: None"),
        ({"feature_extractor_type": "WhisperFeatureExtractor", "dither": 0.1}, "dither 0.1"),
        ({"feature_extractor_type": "Wav2Vec2FeatureExtractor", "padding_side": "left"}, "padding_side 'left'"),
        ({"feature_extractor_type": "ClapFeatureExtractor", "truncation": "fuse"}, "clap.truncation: 'fuse'"),
        ({"feature_extractor_type": "ClapFeatureExtractor", "padding": "wrap"}, "clap.padding: 'wrap'"),
    ):
        with pytest.raises(ConfigError, match=words):
            front_end_from_hf(config)


def test_shrinking_is_linear_between_frames():
    front_end = CLAPFrontEnd(**CLAP_SIZES)
    samples = sound(3 * front_end.num_samples + 77)
    mel = transformers.ClapFeatureExtractor(**CLAP_SIZES)
    whole = mel._np_extract_fbank_features(samples, mel.mel_filters)
    shape = front_end.item_shape[1:]
    wanted = torch.nn.functional.interpolate(torch.tensor(whole)[None, None], shape, mode="bilinear")[0, 0]
    close(front_end(samples)["input_features"][0], wanted)
