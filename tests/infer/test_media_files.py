"""Files of what was made, read back by what others wrote."""

import importlib

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from mmjax.infer.media_files import write_image, write_made, write_sound, write_video


def test_images_are_read_back(tmp_path):
    image = np.random.default_rng(0).uniform(-0.2, 1.2, (5, 7, 3)).astype(np.float32)
    write_image(tmp_path / "a.png", image)
    found = np.asarray(Image.open(tmp_path / "a.png"))
    np.testing.assert_allclose(found / 255, image.clip(0, 1), atol=0.5 / 255 + 1e-6)


def test_sounds_are_read_back(tmp_path):
    wave = np.sin(np.arange(500) / 9).astype(np.float32)
    write_sound(tmp_path / "a.wav", wave, 8000)
    found, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == 8000
    np.testing.assert_allclose(found, wave, atol=1e-4)


def test_videos_are_read_back(tmp_path):
    frames = np.zeros((6, 33, 48, 3), np.float32)
    frames[:3, :, :, 0] = frames[3:, :, :, 2] = 1
    write_video(tmp_path / "a.mp4", frames, 4)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == 4
        found = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert found.shape == (6, 32, 48, 3)
    np.testing.assert_allclose(found.mean(axis=(1, 2)) / 255, frames.mean(axis=(1, 2)), atol=0.08)


def test_names_and_numbers(tmp_path):
    images = [np.zeros((2, 2, 3)), np.ones((2, 2, 3))]
    folder = tmp_path / "answers"
    assert write_made(folder, "000007", {"image_out": [], "video_out": []}) == {} and not folder.exists()
    found = write_made(folder, "000007", {"image_out": images})
    assert found == {"images": [str(folder / f"000007_{number}.png") for number in (0, 1)]}
    assert [int(np.asarray(Image.open(path)).max()) for path in found["images"]] == [0, 255]


def test_a_missing_package_says_how_to_get_it(tmp_path, monkeypatch):


    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mmjax\[video\]'"):
        write_video(tmp_path / "a.mp4", np.zeros((1, 2, 2, 3)))
