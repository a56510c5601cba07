"""Which frames of a video are looked at: numbers in, numbers out.

Every policy takes how many frames there are and how many are wanted, and gives int64 indices in rising order. Where
fewer are there than wanted, some are taken several times, so that the result always fits the encoder; only those that
go by time give fewer.
"""

import dataclasses
import math

import numpy as np

from mmjax.config import ConfigError, check_choice

POLICIES = ("uniform", "ends", "starts", "random", "fps", "centres_fps", "inner_fps", "head")
# Those that go by the video's own rate.
RATED = ("fps", "centres_fps", "inner_fps")


def centres(count: int, wanted: int) -> np.ndarray:
    """The middle frame of each of `wanted` equally long segments (Wang et al., 2016, "Temporal segment networks")."""
    _check(count, wanted)
    return np.floor((np.arange(wanted) + 0.5) * count / wanted).astype(np.int64)


def ends(count: int, wanted: int) -> np.ndarray:
    """Equally far apart from the first frame to the last, both included; the first one where one is wanted."""
    _check(count, wanted)
    return np.linspace(0, count - 1, wanted).astype(np.int64)


def starts(count: int, wanted: int) -> np.ndarray:
    """The first frame of each of `wanted` equally long segments, as transformers' video processors sample."""
    _check(count, wanted)
    return np.arange(wanted) * count // wanted


def random_in_segments(count: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """One frame drawn from each of `wanted` equally long segments, for training."""
    _check(count, wanted)
    places = (np.arange(wanted) + rng.random(wanted)) * count / wanted
    return np.minimum(places.astype(np.int64), count - 1)


def at_fps(count: int, video_fps: float | None, fps: float, maximum: int) -> np.ndarray:
    """So many frames a second, but at most `maximum`, then spread over the whole video; at least one.

    Raises:
        ValueError: `video_fps` is not known or not positive.
    """
    _check(count, maximum)
    _check_rate(video_fps, fps)
    return starts(count, max(1, min(int(count / video_fps * fps), count, maximum)))


def centres_at_fps(count: int, video_fps: float | None, fps: float, maximum: int) -> np.ndarray:
    """As many frames as `at_fps`, each the middle of its segment (Chen et al., 2024, "InternVL 1.5")."""
    return centres(count, len(at_fps(count, video_fps, fps, maximum)))


def inner_at_fps(count: int, video_fps: float | None, fps: float, maximum: int, skip: float = 1.0) -> np.ndarray:
    """Equally far apart, about `fps` a second and at most `maximum` (Marafioti et al., 2025, "SmolVLM").

    Of a video that lasts more than maximum * fps seconds, `skip` seconds are left out at either end.

    Raises:
        ValueError: `video_fps` is not known or not positive.
    """
    _check(count, maximum)
    _check_rate(video_fps, fps)
    seconds = count / video_fps
    wanted = max(1, min(round(fps * seconds), maximum))
    first, last = 0, count - 1
    if seconds - 2 * skip > maximum * fps:
        first, last = int(skip * video_fps), min(int(count - skip * video_fps), count - 1)
    if first >= last:
        first, last = 0, count - 1
    return np.unique(np.linspace(first, last, wanted).astype(np.int64))


def head(count: int, wanted: int) -> np.ndarray:
    """The first frames; the last one again where there are fewer."""
    _check(count, wanted)
    return np.minimum(np.arange(wanted), count - 1)


def _check(count: int, wanted: int) -> None:
    if count < 1 or wanted < 1:
        raise ValueError(f"{wanted} frames of a video of {count}: both must be at least 1")


def _check_rate(video_fps: float | None, fps: float) -> None:
    if not video_fps or not math.isfinite(video_fps) or video_fps <= 0:
        raise ValueError(f"sampling at {fps:g} frames a second needs the video's own rate, which is {video_fps}")


@dataclasses.dataclass(frozen=True)
class FrameSampling:
    """A policy and its numbers.

    Attributes:
        policy: "uniform" (`centres`), "ends", "starts", "random" (`random_in_segments`), "fps" (`at_fps`),
            "centres_fps" (`centres_at_fps`), "inner_fps" (`inner_at_fps`) or "head".
        num_frames: how many are wanted; with RATED policies at most.
        fps: frames a second with RATED policies.
        min_frames: shorter videos are an error.
    """

    policy: str = "uniform"
    num_frames: int = 8
    fps: float | None = None
    min_frames: int = 1

    def __post_init__(self):
        check_choice("frame sampling policy", self.policy, POLICIES)
        for name in ("num_frames", "min_frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"frame sampling: {name} must be at least 1, got {getattr(self, name)}")
        if (self.fps is not None) != (self.policy in RATED):
            names = " or ".join(f'"{policy}"' for policy in RATED)
            raise ConfigError(f"frame sampling: fps goes with policy {names} and with no other, got {self.fps}")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ConfigError(f"frame sampling: fps must be positive, got {self.fps}")

    def __call__(
        self, count: int, video_fps: float | None = None, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Indices int64 of the frames of a video of `count` frames at `video_fps` frames a second.

        Raises:
            ValueError: too short; "fps" without the video's rate; "random" without `rng`.
        """
        if count < self.min_frames:
            raise ValueError(f"too short: {count} frames, at least {self.min_frames} are needed")
        if self.policy in RATED:
            rated = {"fps": at_fps, "centres_fps": centres_at_fps, "inner_fps": inner_at_fps}[self.policy]
            return rated(count, video_fps, self.fps, self.num_frames)
        if self.policy == "random":
            if rng is None:
                raise ValueError('sampling "random" needs an rng')
            return random_in_segments(count, self.num_frames, rng)
        return {"uniform": centres, "ends": ends, "starts": starts, "head": head}[self.policy](count, self.num_frames)
