"""Sound: opening it safely, and turning it into the arrays that an encoder was trained on.

WAV files are read here; whatever else libsndfile knows (flac, ogg, mp3, ...) through the optional package soundfile.
"""

import base64
import binascii
import dataclasses
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.audio_front_ends import Features, FrontEnd, WhisperFrontEnd, front_end_from_hf, front_end_to_hf
from mmjax.data.resample import resample
from mmjax.data.wav import AudioError, is_wav, read_wav

MAX_SECONDS = 3600.0
# More is a sign that the axes of an array are the other way round.
MAX_CHANNELS = 64


def open_audio(
    source: Any, sampling_rate: int, name: str = "", max_seconds: float = MAX_SECONDS
) -> np.ndarray:
    """Opens one sound as float32 samples [S] of one channel, the mean of its channels, at `sampling_rate`.

    Args:
        source: a path, `file://` URL, `data:` URL or bytes of a file; floats or int16 [S] or [S, channels] at
            `sampling_rate`; or such an array with its own rate, as a pair (array, rate) or a mapping
            {"array": ..., "sampling_rate": ...}. Whole numbers are brought to -1..1.
        sampling_rate: of the result; sound at another rate is resampled.
        name: what the error messages call the sound, for instance the sample it belongs to.
        max_seconds: longer sound is refused, files by their header.

    Raises:
        FileNotFoundError: naming the path.
        AudioError: too long, empty, truncated, corrupt, no sound, or an array of unclear meaning.
    """
    rate = sampling_rate
    if isinstance(source, Mapping):
        if not {"array", "sampling_rate"} <= set(source):
            raise AudioError(f"{_label(name, 'sound')}: expected array and sampling_rate, got {sorted(source)}")
        source, rate = source["array"], source["sampling_rate"]
    elif isinstance(source, tuple) and len(source) == 2:
        source, rate = source
    if isinstance(source, (bytes, bytearray, memoryview)):
        label = _label(name, "bytes")
        values, rate = _decode(bytes(source), label, max_seconds)
    elif isinstance(source, str) and source[:5].lower() == "data:":
        label = _label(name, "data URL")
        values, rate = _decode(_from_data_url(source, label), label, max_seconds)
    elif isinstance(source, (str, os.PathLike)):
        label = _label(name, os.fspath(source))
        values, rate = _decode(_read(os.fspath(source), label), label, max_seconds)
    elif isinstance(source, (np.ndarray, list)):
        array = np.asarray(source)
        label = _label(name, f"array {array.dtype} {list(array.shape)}")
        values = _from_array(array, label)
        if not isinstance(rate, (int, np.integer)) or rate < 1:
            raise AudioError(f"{label}: the sampling rate must be a positive whole number, got {rate!r}")
    else:
        kind = type(source).__name__
        raise AudioError(f"{_label(name, 'sound')}: expected a path, data URL, bytes or array, got {kind}")
    if not len(values):
        raise AudioError(f"{label}: empty: there is no sample")
    if len(values) > max_seconds * rate:
        raise AudioError(f"{label}: {len(values) / rate:.1f} seconds, over the limit of {max_seconds:g}")
    if not np.isfinite(values).all():
        raise AudioError(f"{label}: corrupt: some samples are not finite")
    return resample(values.mean(axis=1), int(rate), sampling_rate)


@dataclasses.dataclass(frozen=True)
class AudioProcessor:
    """The recipe from sound to encoder input; the default is Whisper's.

    Attributes:
        front_end: what is made of the samples, and at which sampling rate.
        max_seconds: see `open_audio`.
    """

    front_end: FrontEnd = WhisperFrontEnd()
    max_seconds: float = MAX_SECONDS

    @property
    def sampling_rate(self) -> int:
        """Samples a second of what the front end takes."""
        return self.front_end.sampling_rate

    @property
    def item_shape(self) -> tuple[int, ...] | None:
        """The shape of every output, or None where it depends on the sound."""
        return self.front_end.item_shape

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "AudioProcessor":
        """Reads `preprocessor_config.json`, or the `feature_extractor` inside `processor_config.json`.

        Raises:
            ConfigError: a feature extractor that is not known here, or has options that are not.
        """
        front_end = front_end_from_hf(config)
        own = config.get("feature_extractor", config).get("mmjax") or {}
        return cls(front_end, own.get("max_seconds", MAX_SECONDS))

    def to_hf(self) -> dict[str, Any]:
        """The `preprocessor_config.json` that transformers and `from_hf` read back to the same recipe."""
        config = front_end_to_hf(self.front_end)
        if self.max_seconds != MAX_SECONDS:
            config["mmjax"] = {**config.get("mmjax", {}), "max_seconds": self.max_seconds}
        return config

    def open(self, source: Any, name: str = "") -> np.ndarray:
        """`open_audio` at this recipe's rate; float32 [S], which `features` and the call take as they are."""
        return open_audio(source, self.sampling_rate, name, self.max_seconds)

    def features(self, source: Any, name: str = "", rng: np.random.Generator | None = None) -> Features:
        """Opens and processes one sound: everything that the front end gives, by transformers' names.

        Raises:
            AudioError: as `open_audio`; or the sound is shorter than what the front end needs.
        """
        samples = self.open(source, name)
        try:
            return self.front_end(samples, rng)
        except ValueError as error:
            raise AudioError(f"{_label(name, 'sound')}: {error}") from error

    def __call__(self, source: Any, name: str = "", rng: np.random.Generator | None = None) -> np.ndarray:
        """Opens and processes one sound; returns what the encoder reads, float32 of the shape `item_shape`."""
        return next(iter(self.features(source, name, rng).values()))


def _label(name: str, what: str) -> str:
    what = what if len(what) <= 200 else what[:200] + "..."
    return f"{name}: {what}" if name and name != what else what


def _read(path: str, label: str) -> bytes:
    if re.match(r"https?://", path):
        raise AudioError(f"{label}: sound is not downloaded; fetch it first and give a path")
    try:
        return Path(path.removeprefix("file://")).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{label}: no such sound file") from error
    except (OSError, ValueError) as error:
        raise AudioError(f"{label}: cannot be read ({error})") from error


def _from_data_url(url: str, label: str) -> bytes:
    header, comma, body = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise AudioError(f"{label}: expected data:audio/...;base64,..., got {header[:60]!r}")
    try:
        return base64.b64decode(re.sub(r"\s", "", body), validate=True)
    except (binascii.Error, ValueError) as error:
        raise AudioError(f"{label}: bad base64 ({error})") from error


def _from_array(array: np.ndarray, label: str) -> np.ndarray:
    """float32 [S, channels]."""
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or not 0 < array.shape[1] <= MAX_CHANNELS:
        raise AudioError(f"{label}: expected [S] or [S, channels] with at most {MAX_CHANNELS} channels")
    if array.dtype == np.int16:
        return array.astype(np.float32) / 2**15
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(f"{label}: expected floats, or int16")
    return array.astype(np.float32)


def _decode(data: bytes, label: str, max_seconds: float) -> tuple[np.ndarray, int]:
    """(float32 [S, channels], sampling rate) of the bytes of a file."""
    if is_wav(data):
        return read_wav(data, label, max_seconds)
    if not data:
        raise AudioError(f"{label}: an empty file")
    start = f"{len(data)} bytes that start with {data[:8]!r}"
    try:
        import soundfile
    except ImportError as error:
        raise AudioError(
            f"{label}: not a WAV file ({start}); other formats need the package soundfile: pip install 'mmjax[audio]'"
        ) from error
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, seconds = file.samplerate, file.frames / file.samplerate
            if seconds > max_seconds:
                raise AudioError(f"{label}: {seconds:.1f} seconds, over the limit of {max_seconds:g}")
            values, whole = file.read(dtype="float32", always_2d=True), file.frames
    except soundfile.SoundFileError as error:
        raise AudioError(f"{label}: truncated, corrupt or not a sound in a known format ({start}): {error}") from error
    if len(values) < whole:
        raise AudioError(f"{label}: truncated: {len(values)} of {whole} samples are there")
    return values, rate
