"""Log-mel spectrograms: one mechanism, whose options make those of Whisper, CLAP and Kaldi.

Stevens, Volkmann & Newman, 1937 (the mel scale); its three usual formulas are those of O'Shaughnessy, 1987, as HTK
and Kaldi write it, and of Slaney, 1998, "Auditory Toolbox". Everything is computed in float64, as transformers'
`audio_utils` does, and given out in float32.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from mmjax.config import ConfigError, check_choice

# Logarithms of power.
LOGARITHMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "natural": np.log,
    "decimal": np.log10,
    "decibel": lambda power: 10.0 * np.log10(power),
}
# Frames that are transformed at a time, so that an hour of sound does not stand in memory window by window.
BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class MelConfig:
    """What a log-mel spectrogram is made of.

    Attributes:
        sampling_rate: samples a second.
        frame_length, hop_length, fft_length: samples of a window, from one window to the next, and of the Fourier
            transform, to which a window is filled up with zeros.
        num_mels: M, bands.
        min_frequency, max_frequency: in Hz, where the lowest band starts and the highest ends.
        scale: formula of the mel scale: "htk", "kaldi" (the same curve in natural logarithms) or "slaney" (linear
            to 1000 Hz, logarithmic above).
        equal_area: whether every band is divided by its width in Hz (Slaney), not one at its peak.
        mel_triangles: whether the sides of a band are straight in mels (Kaldi), not in Hz.
        periodic: whether the Hann window is one period of the cosine, not symmetric.
        center: whether frame t lies around sample t * hop_length, with the ends mirrored, not behind it.
        remove_mean: whether every frame's mean is taken off it.
        preemphasis: share of the sample before that is taken off each sample, within a frame.
        offset: added to the power of every frequency.
        power: exponent of the magnitudes that are added up in a band: 2 is power, 1 leaves them as they are.
        floor: what the logarithm does not go below.
        logarithm: a key of LOGARITHMS.
    """

    sampling_rate: int
    frame_length: int
    hop_length: int
    fft_length: int
    num_mels: int
    min_frequency: float
    max_frequency: float
    scale: str = "slaney"
    equal_area: bool = False
    mel_triangles: bool = False
    periodic: bool = True
    center: bool = True
    remove_mean: bool = False
    preemphasis: float = 0.0
    offset: float = 0.0
    power: float = 2.0
    floor: float = 1e-10
    logarithm: str = "decimal"

    def __post_init__(self):
        check_choice("mel.scale", self.scale, ("htk", "kaldi", "slaney"))
        check_choice("mel.logarithm", self.logarithm, tuple(LOGARITHMS))
        for name in ("sampling_rate", "frame_length", "hop_length", "num_mels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"mel.{name} must be at least 1, got {getattr(self, name)}")
        if self.fft_length < self.frame_length:
            raise ConfigError(f"mel.fft_length {self.fft_length} is shorter than frame_length {self.frame_length}")
        if not 0 <= self.min_frequency < self.max_frequency <= self.sampling_rate / 2:
            raise ConfigError(
                f"mel.min_frequency {self.min_frequency} and max_frequency {self.max_frequency} must rise within "
                f"0 .. {self.sampling_rate / 2}, half the sampling rate"
            )

    def num_frames(self, samples: int) -> int:
        """Frames of so many samples."""
        samples += 2 * (self.frame_length // 2) if self.center else 0
        return max(0, 1 + (samples - self.frame_length) // self.hop_length)


def hertz_to_mel(hertz: np.ndarray, scale: str) -> np.ndarray:
    """Frequencies in Hz to mels; float64 of the same shape."""
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hertz / 700.0)
    if scale == "kaldi":
        return 1127.0 * np.log(1.0 + hertz / 700.0)
    above = 15.0 + np.log(np.maximum(hertz, 1000.0) / 1000.0) * (27.0 / np.log(6.4))
    return np.where(hertz < 1000.0, hertz * (3.0 / 200.0), above)


def mel_to_hertz(mels: np.ndarray, scale: str) -> np.ndarray:
    """The inverse of `hertz_to_mel`."""
    if scale == "htk":
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    if scale == "kaldi":
        return 700.0 * (np.exp(mels / 1127.0) - 1.0)
    above = 1000.0 * np.exp((np.maximum(mels, 15.0) - 15.0) * (np.log(6.4) / 27.0))
    return np.where(mels < 15.0, mels * (200.0 / 3.0), above)


@functools.lru_cache(maxsize=16)
def mel_filters(config: MelConfig) -> np.ndarray:
    """float64 [fft_length // 2 + 1, M]: how much each frequency of the transform counts in each band.

    Bands are triangles over neighbouring edges, which lie at equal distances on the mel scale.
    """
    limits = np.array([config.min_frequency, config.max_frequency], np.float64)
    edges = np.linspace(*hertz_to_mel(limits, config.scale), config.num_mels + 2)
    edges_hertz = mel_to_hertz(edges, config.scale)
    bins = config.fft_length // 2 + 1
    if config.mel_triangles:
        width = config.sampling_rate / (2 * (bins - 1))
        places = hertz_to_mel(width * np.arange(bins), config.scale)
    else:
        places, edges = np.linspace(0, config.sampling_rate // 2, bins), edges_hertz
    rising = (places[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - places[:, None]) / np.diff(edges)[1:]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    if config.equal_area:
        filters *= 2.0 / (edges_hertz[2:] - edges_hertz[:-2])
    filters.flags.writeable = False
    return filters


def log_mel(samples: np.ndarray, config: MelConfig) -> np.ndarray:
    """Samples [S] -> the logarithm of their power in each band, float32 [frames, M].

    Raises:
        ValueError: samples that are not of one dimension, or fewer than one frame needs.
    """
    if samples.ndim != 1:
        raise ValueError(f"samples must have one dimension, got the shape {samples.shape}")
    count, length = config.num_frames(len(samples)), config.frame_length
    if not count or not len(samples):
        raise ValueError(f"{len(samples)} samples are fewer than one frame, {length} samples")
    samples = samples.astype(np.float64)
    if config.center:
        samples = np.pad(samples, length // 2, mode="reflect")
    # A window of one sample more, without its last, is one whole period.
    window = np.hanning(length + 1)[:-1] if config.periodic else np.hanning(length)
    windows = np.lib.stride_tricks.sliding_window_view(samples, length)[:: config.hop_length]
    filters, out = mel_filters(config), np.empty((count, config.num_mels), np.float32)
    for start in range(0, count, BLOCK):
        frames = windows[start : start + BLOCK].copy()
        if config.remove_mean:
            frames -= frames.mean(axis=1, keepdims=True)
        if config.preemphasis:
            before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
            frames -= config.preemphasis * before
        power = np.abs(np.fft.rfft(frames * window, config.fft_length)) ** 2
        power = (power + config.offset) ** (config.power / 2)
        out[start : start + BLOCK] = LOGARITHMS[config.logarithm](np.maximum(config.floor, power @ filters))
    return out
