"""WAV files: whole numbers of 8 to 32 bits and floats, of any number of channels.

Microsoft & IBM, 1991, "Multimedia Programming Interface and Data Specifications 1.0" (RIFF, WAVE), and Microsoft's
WAVE_FORMAT_EXTENSIBLE.
"""

import struct

import numpy as np

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
# Written by programs that did not know the length when they began.
UNKNOWN_LENGTH = (0, 0xFFFFFFFF)


class AudioError(ValueError):
    """Sound that cannot or should not be decoded, or a recipe of features that is not understood."""


def is_wav(data: bytes) -> bool:
    """Whether bytes begin as a WAV file does."""
    return data[:4] == b"RIFF" and data[8:12] == b"WAVE"


def read_wav(data: bytes, label: str, max_seconds: float) -> tuple[np.ndarray, int]:
    """Bytes of a WAV file -> (float32 [S, channels] in -1..1, sampling rate).

    Args:
        data: the whole file.
        label: what error messages call it.
        max_seconds: longer sound is refused by its header.

    Raises:
        AudioError: truncated, an encoding that is not known here, or too long.
    """
    kind, at = None, 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if name != b"data" and at + size > len(data):
            break
        if name == b"fmt ":
            kind = _format(data[at : at + size], label)
        elif name == b"data":
            if kind is None:
                raise AudioError(f"{label}: corrupt WAV file: samples come before their format")
            return _samples(data, at, size, kind, label, max_seconds)
        at += size + size % 2
    raise AudioError(f"{label}: truncated WAV file: it ends after {len(data)} bytes, before its samples")


def _format(chunk: bytes, label: str) -> tuple[int, int, int, int]:
    """(encoding, channels, sampling rate, bits of a sample) of the chunk "fmt "."""
    if len(chunk) < 16:
        raise AudioError(f"{label}: corrupt WAV file: its format takes {len(chunk)} bytes, at least 16 are needed")
    encoding, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if encoding == EXTENSIBLE and len(chunk) >= 26:
        (encoding,) = struct.unpack_from("<H", chunk, 24)
    known = {PCM: (8, 16, 24, 32), FLOAT: (32, 64)}
    if bits not in known.get(encoding, ()):
        raise AudioError(
            f"{label}: WAV encoding {encoding} with {bits} bits is not supported, only whole numbers (1) of 8, 16, 24 "
            "or 32 bits and floats (3) of 32 or 64"
        )
    if not channels or not rate:
        raise AudioError(f"{label}: corrupt WAV file: {channels} channels at {rate} Hz")
    return encoding, channels, rate, bits


def _samples(
    data: bytes, at: int, size: int, kind: tuple[int, int, int, int], label: str, max_seconds: float
) -> tuple[np.ndarray, int]:
    encoding, channels, rate, bits = kind
    there = len(data) - at
    if size in UNKNOWN_LENGTH:
        size = there
    if size > there:
        raise AudioError(f"{label}: truncated WAV file: {there} of {size} bytes of samples are there")
    step = channels * bits // 8
    count = size // step
    if count > max_seconds * rate:
        raise AudioError(f"{label}: {count / rate:.1f} seconds, over the limit of {max_seconds:g}")
    raw = np.frombuffer(data, np.uint8, count * step, at)
    if encoding == FLOAT:
        values = raw.view(f"<f{bits // 8}").astype(np.float32)
    elif bits == 8:
        values = (raw.astype(np.float32) - 128) / 128
    else:
        # 24 bits become the upper three bytes of 32, which keeps their sign.
        if bits == 24:
            raw = np.pad(raw.reshape(-1, 3), ((0, 0), (1, 0))).reshape(-1)
        whole = raw.view(f"<i{2 if bits == 16 else 4}")
        values = (whole / 2.0 ** (8 * whole.itemsize - 1)).astype(np.float32)
    return values.reshape(count, channels), rate
