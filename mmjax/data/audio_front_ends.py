"""What audio encoders were trained on, made of samples: four recipes of transformers' feature extractors.

| recipe | transformers' class | gives |
|---|---|---|
| WhisperFrontEnd | WhisperFeatureExtractor | input_features [frames, mel], attention_mask [frames] |
| ASTFrontEnd | ASTFeatureExtractor (without torchaudio) | input_values [frames, mel] |
| CLAPFrontEnd | ClapFeatureExtractor | input_features [4 or 1, frames, mel], is_longer [] |
| Wav2Vec2FrontEnd | Wav2Vec2FeatureExtractor | input_values [S], and attention_mask [S] where it is asked for |

Each is called with float samples [S] of one channel at its `sampling_rate`, and with a random generator where it may
draw, and gives a dict of arrays, floats in float32 and masks in int32; the first one is what the encoder reads. Fields
carry the names and meanings of `preprocessor_config.json`.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from mmjax.config import ConfigError, check_choice
from mmjax.data.spectrogram import MelConfig, log_mel

Features = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class WhisperFrontEnd:
    """Log-mel of exactly `chunk_length` seconds: longer sound is cut, shorter filled up (Radford et al., 2022).

    What lies more than 80 dB under the loudest place is raised to that.
    """

    feature_size: int = 80
    sampling_rate: int = 16000
    hop_length: int = 160
    chunk_length: int = 30
    n_fft: int = 400
    padding_value: float = 0.0

    kind: ClassVar[str] = "Whisper"

    @property
    def num_samples(self) -> int:
        """Samples of a chunk."""
        return self.chunk_length * self.sampling_rate

    @property
    def item_shape(self) -> tuple[int, ...]:
        """(frames, mel)."""
        return (self.num_samples // self.hop_length, self.feature_size)

    @property
    def mel(self) -> MelConfig:
        """The spectrogram's config."""
        return MelConfig(
            self.sampling_rate, self.n_fft, self.hop_length, self.n_fft, self.feature_size, 0.0, 8000.0, equal_area=True
        )

    def __call__(self, samples: np.ndarray, rng: np.random.Generator | None = None) -> Features:
        """Nothing is drawn. The mask tells the frames that begin within the sound."""
        samples, length = _cut_or_pad(samples.astype(np.float32), self.num_samples, self.padding_value)
        # The last frame of all lies around the end; Whisper leaves it out.
        features = log_mel(samples, self.mel)[: self.item_shape[0]]
        features = (np.maximum(features, features.max() - 8.0) + 4.0) / 4.0
        mask = np.arange(self.item_shape[0]) * self.hop_length < length
        return {"input_features": features.astype(np.float32), "attention_mask": mask.astype(np.int32)}


@dataclasses.dataclass(frozen=True)
class ASTFrontEnd:
    """Kaldi's filter banks of `max_length` frames, cut or filled up, then normalised (Gong et al., 2021)."""

    sampling_rate: int = 16000
    num_mel_bins: int = 128
    max_length: int = 1024
    do_normalize: bool = True
    mean: float = -4.2677393
    std: float = 4.5689974

    kind: ClassVar[str] = "AST"

    @property
    def item_shape(self) -> tuple[int, ...]:
        """(frames, mel)."""
        return (self.max_length, self.num_mel_bins)

    @property
    def mel(self) -> MelConfig:
        """The spectrogram's config; windows are 400 samples whatever the rate, as in transformers."""
        return MelConfig(
            self.sampling_rate, 400, 160, 512, self.num_mel_bins, 20.0, self.sampling_rate // 2, scale="kaldi",
            mel_triangles=True, periodic=False, center=False, remove_mean=True, preemphasis=0.97,
            floor=float(np.finfo(np.float32).eps), logarithm="natural",
        )  # fmt: skip

    def __call__(self, samples: np.ndarray, rng: np.random.Generator | None = None) -> Features:
        """Nothing is drawn.

        Raises:
            ValueError: fewer samples than one window.
        """
        frames = log_mel(samples.astype(np.float32), self.mel)[: self.max_length]
        frames = np.pad(frames, ((0, self.max_length - len(frames)), (0, 0)))
        if self.do_normalize:
            frames = (frames - np.float32(self.mean)) / np.float32(self.std * 2)
        return {"input_values": frames}


@dataclasses.dataclass(frozen=True)
class CLAPFrontEnd:
    """Decibels in mel bands of `max_length_s` seconds (Wu et al., 2023, "LAION-CLAP").

    Attributes:
        truncation: of longer sound. "rand_trunc": one crop drawn at random. "fusion": four views, the whole
            spectrogram shrunk to the length of one crop, then a crop of each third; sound that is not longer gives
            four times the same.
        padding: of shorter sound. "repeatpad": repeated whole as often as it fits, then silence; "repeat": repeated
            and cut; "pad": silence.
    """

    feature_size: int = 64
    sampling_rate: int = 48000
    hop_length: int = 480
    max_length_s: int = 10
    fft_window_size: int = 1024
    frequency_min: float = 0.0
    frequency_max: float = 14000.0
    truncation: str = "fusion"
    padding: str = "repeatpad"

    kind: ClassVar[str] = "Clap"

    def __post_init__(self):
        check_choice("clap.truncation", self.truncation, ("fusion", "rand_trunc"))
        check_choice("clap.padding", self.padding, ("repeatpad", "repeat", "pad"))

    @property
    def num_samples(self) -> int:
        """Samples of the longest sound that is taken whole."""
        return self.max_length_s * self.sampling_rate

    @property
    def item_shape(self) -> tuple[int, ...]:
        """(views, frames, mel)."""
        views = 4 if self.truncation == "fusion" else 1
        return (views, self.num_samples // self.hop_length + 1, self.feature_size)

    @property
    def mel(self) -> MelConfig:
        """The spectrogram's config: bands as in torchaudio for "fusion", else as in librosa."""
        fusion, size = self.truncation == "fusion", self.fft_window_size
        return MelConfig(
            self.sampling_rate, size, self.hop_length, size, self.feature_size, self.frequency_min, self.frequency_max,
            scale="htk" if fusion else "slaney", equal_area=not fusion, logarithm="decibel",
        )  # fmt: skip

    def __call__(self, samples: np.ndarray, rng: np.random.Generator | np.random.RandomState | None = None) -> Features:
        """`rng` draws the crops of longer sound; without it they are taken from the middle of what they may be.

        `is_longer` says of this sound alone whether it was longer. transformers besides marks one sound of every
        batch in which none is; that is left to who makes batches.

        Raises:
            ValueError: no sample at all.
        """
        views, frames, _ = self.item_shape
        longer = len(samples) > self.num_samples
        if not longer:
            samples = self._filled(samples)
        elif views == 1:
            start = _choose(len(samples) - self.num_samples + 1, rng)
            samples = samples[start : start + self.num_samples]
        mel = log_mel(samples, self.mel)
        if len(mel) > frames:
            thirds = np.array_split(np.arange(len(mel) - frames + 1), 3)
            # With one or two places to start at, a third has none: it starts at the first, and draws all the same.
            starts = [int(third[_choose(len(third), rng)]) if len(third) else _choose(1, rng) for third in thirds]
            crops = [mel[start : start + frames] for start in starts]
            return {"input_features": np.stack([_shrunk(mel, frames), *crops]), "is_longer": np.array(True)}
        # A whole spectrogram of longer sound that has no frame too many is no longer one.
        return {"input_features": np.stack([mel] * views), "is_longer": np.array(longer and views == 1)}

    def _filled(self, samples: np.ndarray) -> np.ndarray:
        if not len(samples):
            raise ValueError("there is no sample to repeat or pad")
        if self.padding != "pad":
            times = self.num_samples // len(samples)
            samples = np.tile(samples, times + (self.padding == "repeat" and len(samples) < self.num_samples))
        return _cut_or_pad(samples, self.num_samples, 0.0)[0]


@dataclasses.dataclass(frozen=True)
class Wav2Vec2FrontEnd:
    """The samples themselves, brought to mean 0 and variance 1 (Baevski et al., 2020).

    Attributes:
        return_attention_mask: whether padding is masked; it then does not count in mean and variance, and otherwise
            it does, as the checkpoints without a mask were trained.
        num_samples: what sound is cut or filled up to, or None: it keeps its length. No key of transformers, whose
            extractor is told in every call.
    """

    sampling_rate: int = 16000
    padding_value: float = 0.0
    do_normalize: bool = True
    return_attention_mask: bool = False
    num_samples: int | None = None

    kind: ClassVar[str] = "Wav2Vec2"

    @property
    def item_shape(self) -> tuple[int, ...] | None:
        """(samples,), or None where it depends on the sound."""
        return None if self.num_samples is None else (self.num_samples,)

    def __call__(self, samples: np.ndarray, rng: np.random.Generator | None = None) -> Features:
        """Nothing is drawn."""
        values, length = samples.astype(np.float32), len(samples)
        if self.num_samples is not None:
            values, length = _cut_or_pad(values, self.num_samples, self.padding_value)
        if self.do_normalize:
            counted = values[:length] if self.return_attention_mask else values
            values = (values - counted.mean()) / np.sqrt(counted.var() + 1e-7)
            if self.return_attention_mask:
                values[length:] = self.padding_value
        out = {"input_values": values.astype(np.float32)}
        if self.return_attention_mask:
            out["attention_mask"] = (np.arange(len(values)) < length).astype(np.int32)
        return out


FrontEnd = WhisperFrontEnd | ASTFrontEnd | CLAPFrontEnd | Wav2Vec2FrontEnd
# The one place where transformers' names meet the recipes.
FRONT_ENDS: dict[str, type] = {
    f"{cls.kind}FeatureExtractor": cls for cls in (WhisperFrontEnd, ASTFrontEnd, CLAPFrontEnd, Wav2Vec2FrontEnd)
}


def front_end_from_hf(config: dict[str, Any]) -> FrontEnd:
    """`preprocessor_config.json`, or the `feature_extractor` inside `processor_config.json` -> the recipe.

    Raises:
        ConfigError: an extractor that is not among FRONT_ENDS, or one of its options that is not known here.
    """
    config = config.get("feature_extractor", config)
    name = config.get("feature_extractor_type")
    check_choice("feature_extractor_type", name, tuple(FRONT_ENDS))
    if config.get("dither"):
        raise ConfigError(f"{name} with dither {config['dither']} is not supported: noise is added nowhere here")
    if config.get("padding_side", "right") != "right":
        raise ConfigError(f"{name} with padding_side {config['padding_side']!r} is not supported, only 'right'")
    cls = FRONT_ENDS[name]
    values = {**config, **(config.get("mmjax") or {})}
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{key: value for key, value in values.items() if key in names and value is not None})


def front_end_to_hf(front_end: FrontEnd) -> dict[str, Any]:
    """The `preprocessor_config.json` that transformers and `front_end_from_hf` read back to the same recipe."""
    config = dataclasses.asdict(front_end)
    own = {"num_samples": config.pop("num_samples", None)}
    if own["num_samples"] is not None:
        config["mmjax"] = own
    if isinstance(front_end, ASTFrontEnd | Wav2Vec2FrontEnd):
        config["feature_size"] = 1
    return {"feature_extractor_type": f"{front_end.kind}FeatureExtractor", **config}


def _cut_or_pad(samples: np.ndarray, length: int, value: float) -> tuple[np.ndarray, int]:
    """Exactly `length` samples, and how many of them are sound."""
    samples = samples[:length]
    return np.pad(samples, (0, length - len(samples)), constant_values=value), len(samples)


def _choose(count: int, rng: np.random.Generator | np.random.RandomState | None) -> int:
    return count // 2 if rng is None else int(rng.choice(count))


def _shrunk(mel: np.ndarray, frames: int) -> np.ndarray:
    """[T, M] -> [frames, M], linear between frames, which are not averaged; places in float32, as in torch."""
    scale, half = np.float32(len(mel) / frames), np.float32(0.5)
    places = np.maximum((np.arange(frames, dtype=np.float32) + half) * scale - half, np.float32(0))
    first = places.astype(int)
    part = (places - first.astype(np.float32))[:, None]
    return mel[first] * (1 - part) + mel[np.minimum(first + 1, len(mel) - 1)] * part
