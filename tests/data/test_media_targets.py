"""Media to make: which of a record's they are, their signals, arrays and captions, and batches of them."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.audio_utils import mel_filter_bank

from mmjax.data.collate import collate
from mmjax.data.conversation import parse_record
from mmjax.data.image import ImageError, ImageProcessor
from mmjax.data.items import Layout, TokenPlanError
from mmjax.data.media_targets import ImageTargets, SoundTargets, VideoTargets
from mmjax.data.processor import Processor
from mmjax.data.recipes import recipe_from_hf
from mmjax.data.samples import SampleTooLong
from mmjax.recipes.assemble import byte_tokenizer

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '[IMG0]' if part['type'] == 'image_out' else '<image>' }}"
    "{% endfor %}{{ eos_token }}{% endfor %}"
)


@pytest.fixture
def captions(tmp_path):
    """The directory of a tokenizer that reads captions."""
    byte_tokenizer().save(str(tmp_path / "captions"))
    return str(tmp_path / "captions")


def processor(**options):
    tokenizer = byte_tokenizer().with_tokens(["<image>", "[IMG0]", "[IMG1]"])
    return Processor(
        tokenizer,
        {
            "image": ImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False),
            "image_out": ImageTargets(**options, height=8, width=12),
        },
        TEMPLATE,
        {"image": "<image>", "image_out": "[IMG0]"},
        {"image": tokenizer.token_id("<image>")},
        lambda port, grid, size: 4,
        layouts={"image": Layout((16, 16, 3), tokens=lambda n: 4 * n)},
        items={"image_out": (0, 1, 2)},
        signals={"image_out": tuple(map(tokenizer.token_id, ("[IMG0]", "[IMG1]")))},
    )


def picture(height, width):
    left = np.zeros((height, width, 3), np.uint8)
    left[:, width // 2 :] = 255
    return Image.fromarray(left)


def record(*answers, name="one"):
    """A user who shows an image, and an assistant who makes others."""
    user = {"role": "user", "content": [{"type": "image", "image": picture(5, 5)}, {"type": "text", "text": "Wider?"}]}
    said = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in answers]
    return parse_record({"messages": [user, {"role": "assistant", "content": said}]}, name)


def made(height, width, **options):
    return {"type": "image", "image": picture(height, width), **options}


def test_what_an_assistant_shows_is_made_and_what_a_user_shows_is_read():
    model = processor()
    first, second = model.signals["image_out"]
    sample = model.sample(record("Here: ", made(10, 30), made(24, 12), "."))
    places = np.flatnonzero(sample.tokens == first)
    assert len(places) == 2 and (sample.tokens[places + 1] == second).all()
    assert (sample.loss_weights[[*places, *(places + 1)]] == 1).all() and (sample.media_index[places] == -1).all()
    assert sample.item_tokens["image"] == (4,)
    media = sample.targets["image_out"]["media"]
    assert media.shape == (2, 8, 12, 3) and media.min() == -1 and media.max() == 1
    # The longer side of either is cut evenly: the edge of black and white stays in the middle.
    np.testing.assert_array_equal(media[:, :, :4], -1)
    np.testing.assert_array_equal(media[:, :, 8:], 1)
    pixels = np.asarray(picture(24, 12).crop((0, 8, 12, 16)), np.float32) / 127.5 - 1
    np.testing.assert_allclose(media[1], pixels, atol=1e-6)


@pytest.mark.parametrize("answer", [("Here: ", made(8, 12)), (made(8, 12), "!"), (made(8, 12),)])
def test_the_end_of_an_answer_is_learned_whatever_stands_before_it(answer):
    model = processor()
    sample = model.sample(record(*answer))
    ends = np.flatnonzero(sample.tokens == model.tokenizer.eos_id)
    assert sample.loss_weights[ends].tolist() == [0, 1] and ends[1] == len(sample.tokens) - 1
    # Of an answer that is not learned it is none either.
    message = {"role": "assistant", "content": [made(8, 12)], "train": False}
    sample = model.sample(parse_record({"messages": [{"role": "user", "content": "Wide?"}, message]}, "quiet"))
    assert not sample.loss_weights.any()


def test_batches_hold_media_captions_and_which_are_padding(captions):
    model = processor(captions=captions, window=6)
    one = model.sample(record(made(8, 12, caption="a dog that is long"), "!"))
    none = model.sample(record("No.", name="none"))
    two = model.sample(record(made(8, 12, caption="ab"), made(8, 12, caption="c"), "!", name="two"))
    target = collate([one, none, two], model.plan).targets["image_out"]
    np.testing.assert_array_equal(target["weights"], [[1, 0], [0, 0], [1, 1]])
    assert target["media"].shape == (3, 2, 8, 12, 3) and target["captions"].dtype == np.int32
    tokenizer = byte_tokenizer()
    before, behind = tokenizer.frame
    framed = [*before, *tokenizer.encode("ab"), *behind]
    assert target["captions"][2, 0].tolist() == [*framed, *[tokenizer.pad_id or 0] * (6 - len(framed))]
    assert len(before) + len(behind) + len(tokenizer.encode("a dog that is long")) > 6
    assert not target["captions"][1].any()
    alone = collate([none], model.plan)
    assert alone.targets is None
    with pytest.raises(SampleTooLong, match="three: 3 image_out items"):
        model.sample(record(*[made(8, 12, caption="x")] * 3, "!", name="three"))


def test_bad_records_are_named(captions, tmp_path):
    model = processor(captions=captions)
    with pytest.raises(TokenPlanError, match="one: image_out 1 has no caption"):
        model.sample(record(made(8, 12, caption="x"), made(8, 12), "!"))
    with pytest.raises(ValueError, match=r"content\[0\]\.caption must be a text"):
        record(made(8, 12, caption=3))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        model.sample(record({"type": "image", "path": "nowhere.png", "caption": "x"}, "!"))
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ImageError, match="one: image_out 0"):
        model.sample(record({"type": "image", "path": str(tmp_path / "half.png"), "caption": "x"}, "!"))


def test_frames_of_a_video_are_spread_over_it():
    frames = np.stack([np.full((10, 20, 3), value, np.uint8) for value in range(0, 200, 20)])
    made = VideoTargets(frames=3, height=4, width=4).open(frames)
    assert made.shape == (3, 4, 4, 3)
    # The middle of each third of ten frames.
    np.testing.assert_allclose(made[:, 0, 0, 0], np.array([20, 100, 160]) / 127.5 - 1, atol=1e-6)


def test_sounds_are_the_spectrograms_of_hifi_gan():
    recipe = SoundTargets(
        frames=20, num_mels=16, frame_length=256, hop_length=64, sampling_rate=8000, max_frequency=3500.0
    )
    samples = np.random.default_rng(0).normal(size=1000).astype(np.float32) / 5
    # Its published code: padded by half of what windows overlap, magnitudes, bands of equal area, natural logarithm.
    whole = torch.nn.functional.pad(torch.tensor(samples), (0, 280))
    padded = torch.nn.functional.pad(whole[None, None], (96, 96), mode="reflect")[0, 0]
    spectrum = torch.stft(padded, 256, 64, 256, torch.hann_window(256), center=False, return_complex=True)
    magnitudes = torch.sqrt(spectrum.abs() ** 2 + 1e-9)
    bands = mel_filter_bank(129, 16, 0.0, 3500.0, 8000, norm="slaney", mel_scale="slaney")
    wanted = torch.log(torch.clamp(torch.tensor(bands.T, dtype=torch.float32) @ magnitudes, min=1e-5)).T
    found = recipe.open(samples)
    assert found.shape == recipe.shape == (20, 16, 1)
    np.testing.assert_allclose(found[..., 0], wanted.numpy(), atol=1e-3)
    longer = recipe.open(np.concatenate([samples, np.zeros(280, np.float32), samples]))
    np.testing.assert_allclose(longer, found, atol=1e-6)


@pytest.mark.parametrize(
    "recipe",
    [
        ImageTargets(height=24, width=16, captions="/models/captions", window=9),
        VideoTargets(frames=3),
        SoundTargets(num_mels=8),
    ],
    ids=lambda recipe: type(recipe).__name__,
)
def test_recipes_go_through_their_files(recipe):
    assert recipe_from_hf(recipe.to_hf(), "image_out") == recipe
    assert set(recipe.specs) == ({"media", "captions"} if recipe.captions else {"media"})
    with pytest.raises(ValueError, match="there are ImageTargets"):
        recipe_from_hf({"target_processor_type": "SmellTargets"})
