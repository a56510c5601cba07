"""Reading videos, and processing their frames as transformers' processors do."""

import io
import json
import sys
import types
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil
from transformers.models.vivit.image_processing_vivit import VivitImageProcessor

from mmjax.data.frames import FrameSampling
from mmjax.data.image import ImageError, ImageProcessor
from mmjax.data.video import VideoProcessor
from mmjax.data.video_files import VideoError, read_frames

ALL = lambda count, fps: np.arange(count)


def film(count=5, height=9, width=7):
    """Frames whose grey says which one it is."""
    return np.stack([np.full((height, width, 3), 20 * index, np.uint8) for index in range(count)])


def noise(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def animation(frames, file_format, duration=100):
    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    options = {"lossless": True} if file_format == "WEBP" else {}
    images[0].save(buffer, file_format, save_all=True, append_images=images[1:], duration=duration, **options)
    return buffer.getvalue()


def pixels(frames):
    return np.stack([np.asarray(ImageProcessor().open(frame)) for frame in frames])


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_animations(tmp_path, file_format):
    data, seen = animation(film(), file_format), []
    path = tmp_path / f"a.{file_format.lower()}"
    path.write_bytes(data)

    def choose(count, fps):
        seen.append((count, fps))
        return np.array([3, 0, 3])

    for source in (path, str(path), f"file://{path}", data):
        np.testing.assert_array_equal(pixels(read_frames(source, choose)), film()[[3, 0, 3]])
    assert seen == [(5, 10.0)] * 4


def test_folder_array_and_list(tmp_path):
    frames = film(12, 4, 5)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"frame_{index}.png")
    (tmp_path / "notes.txt").write_text("no image")
    last = lambda count, fps: np.array([2, count - 1])
    for source in (tmp_path, frames, list(frames), [Image.fromarray(frame) for frame in frames]):
        np.testing.assert_array_equal(pixels(read_frames(source, last)), frames[[2, 11]])
    grey = frames[..., 0]
    np.testing.assert_array_equal(pixels(read_frames(grey, last)), frames[[2, 11]])


def test_errors_name_the_video(tmp_path, monkeypatch):
    empty = tmp_path / "empty.gif"
    empty.touch()
    (tmp_path / "folder").mkdir()
    cut = tmp_path / "cut.gif"
    data = animation(noise(5, 30, 30), "GIF")
    cut.write_bytes(data[: len(data) // 2])
    sampling = FrameSampling(num_frames=4, min_frames=6)
    for source, words in (
        (empty, "empty.gif: an empty file"),
        (b"", "row 3: bytes: an empty file"),
        (tmp_path / "folder", "folder.*: there is no frame"),
        (cut, "cut.gif: truncated, corrupt"),
        (film(5), r"row 3: array uint8 \[5, 9, 7, 3\]: too short: 5 frames, at least 6"),
        (animation(film(), "GIF"), "row 3: bytes: too short: 5 frames, at least 6"),
        ([], "row 3: list of frames: there is no frame"),
        (np.zeros(3), r"array float64 \[3\]: expected"),
        (7, "row 3: video: expected a path.*got int"),
        ("https://a.b/c.mp4", "not downloaded"),
    ):
        with pytest.raises(VideoError, match=words):
            read_frames(source, sampling, name="row 3")
    with pytest.raises(FileNotFoundError, match="row 3: nowhere.mp4: no such video file"):
        read_frames("nowhere.mp4", ALL, name="row 3")
    with pytest.raises(VideoError, match="7x9 pixels, over the limit of 60"):
        read_frames(animation(film(), "GIF"), ALL, max_pixels=60)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match=r"row 3: bytes: neither GIF.*pip install 'mmjax\[video\]'"):
        read_frames(b"\0\0\0\x20ftypisom", ALL, name="row 3")


class Film:
    """What PyAV gives of a file whose header claims more frames than `frames` has."""

    def __init__(self, frames, packets=None, rotation=0, pictures=True):
        self.frames, self.packets, self.rotation = frames, packets or len(frames), rotation
        size = types.SimpleNamespace(width=7, height=9, average_rate=Fraction(25, 2))
        self.streams = types.SimpleNamespace(video=[size] if pictures else [])
        self.decoded = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def demux(self, stream):
        # The last packet is empty: it flushes the decoder.
        return [types.SimpleNamespace(size=size) for size in [11] * self.packets + [0]]

    def decode(self, stream):
        for frame in self.frames:
            self.decoded += 1
            yield types.SimpleNamespace(rotation=self.rotation, to_ndarray=lambda format, frame=frame: frame)


def test_films_through_pyav(monkeypatch):
    """PyAV is optional and not here; a stand-in shows what is asked of it."""

    def opened(film):
        monkeypatch.setitem(sys.modules, "av", types.SimpleNamespace(open=lambda file: film))
        return b"\0\0\0\x20ftypisom"

    seen, source = [], Film(film(6))

    def choose(count, fps):
        seen.append((count, fps))
        return np.array([3, 1, 3])

    frames = read_frames(opened(source), choose)
    np.testing.assert_array_equal(np.stack(frames), film(6)[[3, 1, 3]])
    assert seen == [(6, 12.5)] and source.decoded == 4, "nothing behind the last wanted frame is decoded"

    upright = read_frames(opened(Film(noise(2, 9, 7), rotation=-90)), ALL)
    np.testing.assert_array_equal(upright[1], np.rot90(noise(2, 9, 7)[1], 3))
    with pytest.raises(VideoError, match="row 3: bytes: truncated or corrupt: 4 of 6 frames can be decoded"):
        read_frames(opened(Film(film(4), packets=6)), ALL, name="row 3")
    with pytest.raises(VideoError, match="no picture in it"):
        read_frames(opened(Film(film(4), pictures=False)), ALL)
    with pytest.raises(VideoError, match="7x9 pixels, over the limit of 60"):
        read_frames(opened(Film(film(4))), ALL, max_pixels=60)


PROCESSORS = {
    "videomae": lambda: VideoMAEImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 18, "width": 16}),
    "videomae without crop": lambda: VideoMAEImageProcessorPil(
        do_center_crop=False, size={"height": 11, "width": 13}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
    ),
    "vivit": lambda: VivitImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 18, "width": 18}),
    "vivit, not normalised": lambda: VivitImageProcessor(size={"shortest_edge": 19}, do_normalize=False,
                                                         crop_size={"height": 18, "width": 18}),
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_equals_transformers_on_given_frames(name):
    theirs = PROCESSORS[name]()
    config = json.loads(theirs.to_json_string())
    mine = VideoProcessor.from_hf(config, FrameSampling("ends", 3))
    again = VideoProcessor.from_hf(json.loads(json.dumps(mine.to_hf())))
    assert again == mine
    video = noise(5, 31, 43)
    chosen = [Image.fromarray(frame) for frame in video[[0, 2, 4]]]
    wanted = np.asarray(theirs(chosen, return_tensors="np")["pixel_values"])[0].transpose(0, 2, 3, 1)
    assert mine.item_shape == wanted.shape
    for processor in (mine, again):
        np.testing.assert_allclose(processor(video), wanted, rtol=0, atol=2e-6)
    back = type(theirs)(**{key: value for key, value in mine.to_hf().items() if key != "image_processor_type"})
    np.testing.assert_array_equal(back(chosen, return_tensors="np")["pixel_values"], theirs(chosen)["pixel_values"])


def test_families_and_their_sampling():
    llava = VideoProcessor.from_hf({"video_processor_type": "LlavaNextVideoVideoProcessor", "num_frames": 8})
    assert llava.image == ImageProcessor() and llava.sampling == FrameSampling("uniform", 8)
    rate = VideoProcessor.from_hf(
        {"video_processor": {"video_processor_type": "VideoLlavaVideoProcessor", "do_sample_frames": True, "fps": 2}}
    )
    assert (rate.sampling.policy, rate.sampling.fps, rate.item_shape) == ("fps", 2.0, None)
    few = {"video_processor_type": "TimesformerVideoProcessor", "do_sample_frames": True, "num_frames": 4}
    few = VideoProcessor.from_hf(few)
    assert few.image.image_mean[0] == 0.485
    with pytest.raises(VideoError, match="too short: 3 frames, at least 4"):
        few(film(3))
    with pytest.raises(VideoError, match="Qwen2VLVideoProcessor.*VideoMAE"):
        VideoProcessor.from_hf({"video_processor_type": "Qwen2VLVideoProcessor"})
    with pytest.raises(VideoError, match="pad_to_square"):
        VideoProcessor(ImageProcessor(pad_to_square=True)).to_hf()


def test_random_frames_and_frames_that_differ():
    plain = ImageProcessor(do_resize=False, do_center_crop=False, do_normalize=False, do_rescale=False)
    draw = VideoProcessor(plain, FrameSampling("random", 3))
    values = draw(film(6), rng=np.random.default_rng(0))
    grey = FrameSampling("random", 3)(6, rng=np.random.default_rng(0)) * 20
    np.testing.assert_array_equal(values[:, 0, 0, 0], grey)
    assert values.dtype == np.float32
    sizes = [film(1, 3, 4)[0], film(1, 4, 3)[0]]
    with pytest.raises(VideoError, match="row 3: video: its frames differ in size: 3 x 4, 4 x 3"):
        VideoProcessor(plain)(sizes, "row 3")
    with pytest.raises(ImageError, match="row 3: video, frame 1 of 2: bytes: not an image"):
        VideoProcessor(plain, FrameSampling("ends", 2))([film(1)[0], b"nothing"], "row 3")
