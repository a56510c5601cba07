"""Opening sound in every form, and recipes applied to it."""

import base64
import io
import json
import struct
import sys
import types
import wave

import numpy as np
import pytest

from mmjax.config import ConfigError
from mmjax.data.audio import AudioProcessor, open_audio
from mmjax.data.audio_front_ends import ASTFrontEnd, CLAPFrontEnd, Wav2Vec2FrontEnd, WhisperFrontEnd
from mmjax.data.resample import resample
from mmjax.data.wav import AudioError

RATE = 8000
SAMPLES = (np.random.default_rng(0).uniform(-1, 1, size=(501, 2)) * 0.9).astype(np.float32)


def pcm(samples, bits, rate=RATE):
    """A WAV file of whole numbers as Python's own writer makes it."""
    scaled = np.round(samples.astype(np.float64) * 2 ** (bits - 1)).astype(np.int64)
    raw = (scaled + 128 * (bits == 8)).astype("<i8").reshape(-1, 1).view(np.uint8)[:, : bits // 8].tobytes()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(bits // 8)
        file.setframerate(rate)
        file.writeframes(raw)
    return buffer.getvalue()


def riff(encoding, samples, bits, *, extensible=False, before=b"", length=None):
    """A WAV file written chunk by chunk."""
    channels, raw = samples.shape[1], samples.tobytes()
    step = channels * bits // 8
    kind = struct.pack("<HHIIHH", 0xFFFE if extensible else encoding, channels, RATE, RATE * step, step, bits)
    if extensible:
        kind += struct.pack("<HHIH", 22, bits, 0, encoding) + b"\0" * 14
    body = b"fmt " + struct.pack("<I", len(kind)) + kind + before
    body += b"data" + struct.pack("<I", len(raw) if length is None else length) + raw
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("channels", [1, 2])
def test_whole_numbers(bits, channels):
    samples = SAMPLES[:, :channels]
    got = open_audio(pcm(samples, bits), RATE)
    assert got.dtype == np.float32 and got.shape == (501,)
    np.testing.assert_allclose(got, samples.mean(axis=1), rtol=0, atol=max(2.0**-bits, 1e-7))


def test_extremes_and_signs_of_24_bits():
    values = np.array([[-(2**23)], [2**23 - 1], [-1], [0], [1]]) / 2**23
    np.testing.assert_array_equal(open_audio(pcm(values, 24), RATE), values[:, 0].astype(np.float32))


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize("extensible", [False, True])
def test_floats_and_chunks_that_are_passed_over(dtype, extensible):
    odd = b"LIST" + struct.pack("<I", 5) + b"hello\0"
    data = riff(3, SAMPLES.astype(dtype), 8 * np.dtype(dtype).itemsize, extensible=extensible, before=odd)
    np.testing.assert_array_equal(open_audio(data, RATE), SAMPLES.mean(axis=1))
    stream = riff(3, SAMPLES, 32, length=0xFFFFFFFF)
    np.testing.assert_array_equal(open_audio(stream, RATE), SAMPLES.mean(axis=1))


def test_every_kind_of_source_gives_the_same_samples(tmp_path):
    data, mono = riff(3, SAMPLES, 32), SAMPLES.mean(axis=1)
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    url = "data:audio/wav;base64," + base64.b64encode(data).decode()
    mapping = {"array": mono, "sampling_rate": RATE}
    for source in (path, str(path), f"file://{path}", data, bytearray(data), url, mono, SAMPLES, (mono, RATE), mapping):
        np.testing.assert_array_equal(open_audio(source, RATE), mono)
    whole = (mono * 2**15).astype(np.int16)
    np.testing.assert_allclose(open_audio(whole, RATE), mono, atol=2**-14)
    np.testing.assert_allclose(open_audio(mono.tolist(), RATE), mono)


def test_other_rates_are_resampled():
    mono = SAMPLES.mean(axis=1)
    for source in (riff(3, SAMPLES, 32), (mono, RATE), {"array": SAMPLES, "sampling_rate": np.int64(RATE)}):
        np.testing.assert_array_equal(open_audio(source, 11025), resample(mono, RATE, 11025))


def test_broken_sound_is_named(tmp_path):
    data = pcm(SAMPLES, 16)
    path = tmp_path / "half.wav"
    path.write_bytes(data[:1000])
    for source, words in (
        (path, r"row 4: .*half\.wav: truncated WAV file: 956 of 2004 bytes"),
        (data[:30], "row 4: bytes: truncated WAV file: it ends after 30 bytes"),
        (data[:22], "row 4: bytes: .*"),
        (riff(1, SAMPLES, 12), "encoding 1 with 12 bits"),
        (riff(17, SAMPLES, 16), "encoding 17 with 16 bits"),
        (data[:12] + data[36:], "samples come before their format"),
        (riff(1, SAMPLES[:0], 16), "row 4: bytes: empty: there is no sample"),
        (np.zeros(0), "empty"),
        (b"", "row 4: bytes: an empty file"),
        (SAMPLES.T.astype(np.float64), r"array float64 \[2, 501\]: expected \[S\] or \[S, channels\]"),
        (np.zeros((2, 2, 2)), "expected"),
        (np.array([1, 2]), "array int64.*expected floats, or int16"),
        (np.array([0.1, np.nan]), "not finite"),
        ((np.zeros(4), 0), "positive whole number, got 0"),
        ({"array": np.zeros(4)}, r"expected array and sampling_rate, got \['array'\]"),
        ("https://example.com/a.wav", "not downloaded"),
        ("data:audio/wav;base64,@@@", "bad base64"),
        ("data:audio/wav,abc", "expected data:audio"),
        (tmp_path, "cannot be read"),
        (3, "expected a path, data URL, bytes or array, got int"),
    ):
        with pytest.raises(AudioError, match=words):
            open_audio(source, RATE, "row 4")
    with pytest.raises(FileNotFoundError, match=r"row 4: .*missing\.wav"):
        open_audio(tmp_path / "missing.wav", RATE, "row 4")


def test_too_long_sound_is_refused_by_its_header():
    for source in (pcm(SAMPLES, 16), SAMPLES, (SAMPLES[:, 0], RATE)):
        assert len(open_audio(source, RATE, max_seconds=501 / RATE)) == 501
        with pytest.raises(AudioError, match=r"row 4: .*: 0.1 seconds, over the limit of 0.05"):
            open_audio(source, RATE, "row 4", max_seconds=0.05)


def test_damage_is_an_audio_error_or_unseen(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    rng = np.random.default_rng(5)
    for data in (pcm(SAMPLES, 24), riff(3, SAMPLES, 32, extensible=True)):
        for _ in range(150):
            damaged = bytearray(data[: rng.integers(1, len(data) + 1)])
            for _ in range(rng.integers(0, 6)):
                damaged[rng.integers(min(len(damaged), 80))] = rng.integers(256)
            try:
                opened = open_audio(bytes(damaged), 16000, max_seconds=60)
            except AudioError:
                continue
            assert np.isfinite(opened).all() and len(opened) <= 60 * 16000


class Library(types.ModuleType):
    """What is used of the package soundfile, which is not installed where these tests must pass."""

    class SoundFileError(Exception):
        pass

    class SoundFile:
        samplerate, frames = 2 * RATE, 501

        def __init__(self, file):
            self.data = file.read()
            if self.data[:4] != b"fLaC":
                raise Library.SoundFileError("Format not recognised")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def read(self, dtype, always_2d):
            assert dtype == "float32" and always_2d
            return SAMPLES[: 501 if self.data[4:] == b"whole" else 77]


def test_other_formats_go_through_soundfile(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", Library("soundfile"))
    got = open_audio(b"fLaCwhole", RATE)
    np.testing.assert_array_equal(got, resample(SAMPLES.mean(axis=1), 2 * RATE, RATE))
    for data, words in (
        (b"fLaChalf", "row 1: bytes: truncated: 77 of 501 samples"),
        (b"hello world", "row 1: bytes: .*11 bytes that start with b'hello wo'.*Format not recognised"),
    ):
        with pytest.raises(AudioError, match=words):
            open_audio(data, RATE, "row 1")
    with pytest.raises(AudioError, match="0.0 seconds, over the limit of 0.01"):
        open_audio(b"fLaCwhole", RATE, max_seconds=0.01)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(AudioError, match=r"need the package soundfile: pip install 'mmjax\[audio\]'"):
        open_audio(b"fLaCwhole", RATE)


def test_a_real_flac_file():
    soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
    buffer = io.BytesIO()
    soundfile.write(buffer, SAMPLES, RATE, format="FLAC", subtype="PCM_24")
    data = buffer.getvalue()
    np.testing.assert_allclose(open_audio(data, RATE), SAMPLES.mean(axis=1), atol=1e-6)
    with pytest.raises(AudioError, match="row 2: bytes: truncated"):
        open_audio(data[: len(data) // 2], RATE, "row 2")


RECIPES = [
    AudioProcessor(WhisperFrontEnd(feature_size=20, chunk_length=1)),
    AudioProcessor(ASTFrontEnd(max_length=9, num_mel_bins=30), max_seconds=2.0),
    AudioProcessor(CLAPFrontEnd(32, 8000, 100, 1, 256, 0.0, 4000.0)),
    AudioProcessor(Wav2Vec2FrontEnd(return_attention_mask=True, num_samples=333), max_seconds=5.0),
]


@pytest.mark.parametrize("processor", RECIPES, ids=lambda processor: processor.front_end.kind)
def test_processor(processor):
    assert AudioProcessor.from_hf(json.loads(json.dumps(processor.to_hf()))) == processor
    samples = processor.open(pcm(SAMPLES, 16))
    np.testing.assert_array_equal(samples, open_audio(pcm(SAMPLES, 16), processor.sampling_rate))
    values = processor(pcm(SAMPLES, 16), "row 3")
    assert values.dtype == np.float32 and values.shape == processor.item_shape
    np.testing.assert_array_equal(values, processor(samples)), "what is opened is taken as it is"
    features = processor.features(samples)
    name = next(iter(features))
    assert name in ("input_features", "input_values")
    np.testing.assert_array_equal(features[name], values)
    with pytest.raises(AudioError, match="row 3: .*over the limit"):
        AudioProcessor(processor.front_end, max_seconds=0.01)(samples, "row 3")


def test_processor_names_what_does_not_fit():
    with pytest.raises(AudioError, match="row 3: sound: 10 samples are fewer than one frame, 400 samples"):
        AudioProcessor(ASTFrontEnd())(np.zeros(10), "row 3")
    with pytest.raises(ConfigError, match="'EncodecFeatureExtractor' is not one of 'WhisperFeatureExtractor'"):
        AudioProcessor.from_hf({"feature_extractor_type": "EncodecFeatureExtractor"})
    whisper = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 128}
    assert AudioProcessor.from_hf({"feature_extractor": whisper}).item_shape == (3000, 128)
    assert AudioProcessor().item_shape == (3000, 80)
