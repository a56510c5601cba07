"""What generators made, as files that anything opens: .png, .mp4 and .wav."""

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Of video and sound, where nothing says otherwise.
FRAMES_PER_SECOND = 8
SAMPLES_PER_SECOND = 16_000


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """float [H, W, 3] from 0 to 1 -> a .png."""
    Image.fromarray(_bytes(image)).save(path)


def write_video(path: str | os.PathLike, frames: np.ndarray, rate: int = FRAMES_PER_SECOND) -> None:
    """float [T, H, W, 3] from 0 to 1 -> an .mp4 (H.264). Odd sides lose a pixel: the format has none.

    Raises:
        ModuleNotFoundError: PyAV is not installed; it says how.
    """
    av = _needs("av", "video")
    height, width = (side - side % 2 for side in frames.shape[1:3])
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in _bytes(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def write_sound(path: str | os.PathLike, samples: np.ndarray, rate: int = SAMPLES_PER_SECOND) -> None:
    """float [samples] or [samples, channels] from -1 to 1 -> a .wav of 16 bits.

    Raises:
        ModuleNotFoundError: soundfile is not installed; it says how.
    """
    _needs("soundfile", "audio").write(os.fspath(path), np.clip(samples, -1, 1), rate, subtype="PCM_16")


def write_mask(path: str | os.PathLike, mask: np.ndarray) -> None:
    """bool [H, W] -> a .png of one channel, white inside."""
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(path)


# The one place where a port meets its kind of file, and what a line of answers calls its files.
WRITERS = {
    "image_out": ("images", ".png", write_image),
    "video_out": ("videos", ".mp4", write_video),
    "audio_out": ("audios", ".wav", write_sound),
    "mask": ("masks", "_mask.png", write_mask),
}


# What the media of a port are called in what `Model.generate` gives.
OUTPUTS = {port: name for port, (name, _, _) in WRITERS.items()}
# Of prompts that are ids, nobody knows the image that a mask would be of: masks come with those that are words.
WITHOUT_SCENES = tuple(name for name in OUTPUTS.values() if name != "masks")


def by_kind(
    made: Mapping[str, Sequence[Any]], galleries: Mapping[str, Any]
) -> tuple[dict[str, Sequence[Any]], dict[str, Sequence[Any]]]:
    """What was made, port -> rows: "images", "videos", "audios" -> rows; and port of a gallery -> rows."""
    found = {port: rows for port, rows in made.items() if port in galleries}
    return {OUTPUTS[port]: rows for port, rows in made.items() if port in OUTPUTS and port not in found}, found


def write_made(
    directory: str | os.PathLike, stem: str, made: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, list[str]]:
    """Writes what was made for one row.

    Args:
        directory: made where it is not there.
        stem: what the files' names begin with; a number follows.
        made: port -> its media in order.

    Returns:
        "images", "videos", "audios" and "masks" -> paths, only of what there is.
    """
    out = {}
    for port, media in made.items():
        name, ending, write = WRITERS[port]
        paths = [Path(directory) / f"{stem}_{number}{ending}" for number in range(len(media))]
        if paths:
            Path(directory).mkdir(parents=True, exist_ok=True)
        for path, one in zip(paths, media, strict=True):
            write(path, one)
        if paths:
            out[name] = [str(path) for path in paths]
    return out


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(pixels, 0, 1) * 255 + 0.5, np.uint8)


def _needs(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{module} is not installed: pip install 'mmjax[{extra}]'") from error
