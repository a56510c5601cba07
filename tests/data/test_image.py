"""Opening images and processing them, against PIL and transformers' PIL image processors."""

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from mmjax.data.image import ImageError, ImageProcessor, open_image

RNG = np.random.default_rng(0)


def picture(height, width, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def bomb(width, height):
    """A small 1-bit PNG that claims and holds width x height pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" * (1 + (width + 7) // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    image = picture(7, 5)
    data = encoded(image)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (
        path,
        str(path),
        f"file://{path}",
        data,
        url,
        image,
        np.asarray(image),
        np.asarray(image) / 255,
    ):
        opened = open_image(source)
        assert opened.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(image))


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x112] = 6
    data = encoded(picture(20, 40), "JPEG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    opened = open_image(data)
    assert opened.size == (20, 40)
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(expected))


def test_bombs_are_refused_by_their_header():
    with pytest.raises(ImageError, match=r"row 3: bytes: 9000x8000 is 72000000 pixels.*limit of 64000000"):
        open_image(bomb(9000, 8000), name="row 3")
    with pytest.raises(ImageError, match=r"400000000 pixels.*at most 64000000"):
        open_image(bomb(20000, 20000), name="row 3")
    with pytest.raises(ImageError, match="limit of 30"):
        open_image(picture(7, 5), max_pixels=30)
    with pytest.raises(ImageError, match=r"3000x1 would be resized to 672000x224"):
        ImageProcessor()(picture(1, 3000))


def test_broken_images_are_named(tmp_path):
    data = encoded(picture(64, 48), "JPEG")
    path = tmp_path / "half.jpg"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"sample 4: .*half\.jpg: truncated or corrupt"):
        open_image(path, "sample 4")
    with pytest.raises(
        ImageError, match=r"sample 5: bytes: not an image.*11 bytes that start with b'hello wo'"
    ):
        open_image(b"hello world", "sample 5")
    with pytest.raises(ImageError, match="an empty file"):
        open_image(b"", "sample 5")
    with pytest.raises(FileNotFoundError, match=r"sample 6: .*missing\.png"):
        open_image(tmp_path / "missing.png", "sample 6")
    with pytest.raises(ImageError, match="cannot be read"):
        open_image(tmp_path)
    with pytest.raises(ImageError, match="bad base64"):
        open_image("data:image/png;base64,@@@")
    with pytest.raises(ImageError, match="not downloaded"):
        open_image("https://example.com/a.png")
    with pytest.raises(ImageError, match="got int"):
        open_image(3)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damage_is_an_image_error_or_unseen(file_format):
    data = encoded(picture(13, 17), file_format)
    rng = np.random.default_rng(5)
    for _ in range(60):
        damaged = bytearray(data[: rng.integers(1, len(data) + 1)])
        for _ in range(rng.integers(0, 4)):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        try:
            opened = open_image(bytes(damaged), max_pixels=10_000)
        except ImageError:
            continue
        assert opened.mode == "RGB" and opened.width * opened.height <= 10_000


@pytest.mark.parametrize(
    "array", [np.zeros((3, 8, 9), np.uint8), np.zeros((4, 5), np.int64), np.full((4, 5), 2.0)]
)
def test_arrays_of_unclear_meaning_are_refused(array):
    with pytest.raises(ImageError, match="array"):
        open_image(array)


def test_modes():
    grey = picture(6, 9, 1)
    np.testing.assert_array_equal(np.asarray(open_image(encoded(grey)))[..., 1], np.asarray(grey))
    cmyk = picture(6, 9).convert("CMYK")
    data = encoded(cmyk, "TIFF")
    np.testing.assert_array_equal(np.asarray(open_image(data)), np.asarray(cmyk.convert("RGB")))
    palette = picture(6, 9).quantize(5)
    np.testing.assert_array_equal(
        np.asarray(open_image(encoded(palette))), np.asarray(palette.convert("RGB"))
    )
    deep = Image.fromarray(np.linspace(0, 65535, 24).reshape(4, 6).astype(np.uint16))
    for file_format in ("PNG", "TIFF"):
        opened = np.asarray(open_image(encoded(deep, file_format)))
        np.testing.assert_array_equal(opened[..., 2], np.round(np.asarray(deep) / 257).astype(np.uint8))
    with pytest.raises(ImageError, match="mode F"):
        open_image(Image.new("F", (3, 3)))


def test_alpha_is_laid_on_white_or_dropped():
    pixels = np.full((1, 3, 4), 100, np.uint8)
    pixels[0, :, 3] = (0, 128, 255)
    image = Image.fromarray(pixels)
    assert np.asarray(open_image(image))[0, :, 0].tolist() == [255, 177, 100]
    assert np.asarray(open_image(encoded(image)))[0, :, 0].tolist() == [255, 177, 100]
    assert np.asarray(open_image(image, alpha="drop"))[0, :, 0].tolist() == [100, 100, 100]
    assert ImageProcessor(alpha="drop").open(image).getpixel((0, 0)) == (100, 100, 100)
    clear = Image.new("P", (2, 2), 0)
    clear.info["transparency"] = 0
    assert open_image(clear).getpixel((0, 0)) == (255, 255, 255)


def hf_processor(family):
    pytest.importorskip("transformers")
    if family == "clip":
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as processor
    elif family == "siglip":
        from transformers.models.siglip.image_processing_pil_siglip import (
            SiglipImageProcessorPil as processor,
        )
    elif family == "llava":
        from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil as processor
    elif family == "vit":
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil as processor
    else:
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil as processor
    return processor


SMALL = {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}}
RECIPES = [
    ("clip", {}),
    ("clip", {**SMALL, "resample": 2}),
    ("clip", {"size": {"shortest_edge": 23}, "crop_size": {"height": 31, "width": 18}}),
    ("clip", {"size": {"shortest_edge": 20, "longest_edge": 33}, "do_center_crop": False}),
    ("clip", {**SMALL, "do_resize": False, "do_rescale": False}),
    ("siglip", {}),
    ("siglip", {"size": {"height": 27, "width": 41}, "do_normalize": False, "rescale_factor": 1 / 127}),
    ("llava", {**SMALL, "do_pad": True}),
    ("vit", {"size": {"height": 33, "width": 33}}),
    ("blip", {}),
]
SIZES = [(1, 1), (3, 2), (57, 34), (34, 57), (30, 30), (101, 255)]


@pytest.mark.parametrize("family, options", RECIPES)
def test_pixels_equal_transformers(family, options):
    theirs = hf_processor(family)(**options)
    written = theirs.to_dict()
    ours = ImageProcessor.from_hf(json.loads(json.dumps(written, default=list)))
    images = [picture(*size) for size in SIZES]
    if theirs.do_convert_rgb:
        images += [picture(35, 50, 1), picture(26, 19, 4)]
    if not options.get("do_resize", True):
        images = images[2:]
    for image in images:
        expected = theirs(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        got = ours(image)
        assert got.dtype == np.float32
        assert ours.output_size() in (None, got.shape[:2])
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    again = ImageProcessor.from_hf(ours.to_hf())
    image = images[-1]
    np.testing.assert_array_equal(again(image), ours(image))
    back = hf_processor("llava" if ours.pad_to_square else "clip" if ours.do_center_crop else "siglip")
    expected = back.from_dict(ours.to_hf())(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours(image), expected.transpose(1, 2, 0), rtol=0, atol=1e-6)


def test_from_hf_reads_old_spellings_and_nesting():
    old = {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "size": 336,
        "crop_size": 336,
        "do_center_crop": True,
    }
    processor = ImageProcessor.from_hf(old)
    assert processor.size == {"shortest_edge": 336} and processor.output_size() == (336, 336)
    nested = {
        "processor_class": "LlavaProcessor",
        "image_processor": {"image_processor_type": "SiglipImageProcessorFast"},
    }
    assert ImageProcessor.from_hf(nested).output_size() == (224, 224)
    assert ImageProcessor.from_hf(
        {"image_processor_type": "ViTImageProcessor", "size": 30, "image_mean": 0.5}
    ) == (ImageProcessor.from_hf({"image_processor_type": "ViTFeatureExtractor", "size": [30, 30]}))
    with pytest.raises(ImageError, match="'PixtralImageProcessor' is not among the known.*CLIP"):
        ImageProcessor.from_hf({"image_processor_type": "PixtralImageProcessor"})
    with pytest.raises(ImageError, match="do_pad"):
        ImageProcessor.from_hf({"image_processor_type": "CLIPImageProcessor", "do_pad": True})


def test_own_options_survive_saving():
    processor = ImageProcessor(alpha="drop", max_pixels=1000, pad_to_square=True)
    assert ImageProcessor.from_hf(json.loads(json.dumps(processor.to_hf()))) == processor


@pytest.mark.parametrize(
    "change", [{"size": {"width": 3}}, {"crop_size": {"edge": 3}}, {"alpha": "red"}, {"image_mean": ()}]
)
def test_a_recipe_that_cannot_work_is_refused(change):
    with pytest.raises(ImageError):
        ImageProcessor(**change)


def test_padding_to_a_square_is_centred_with_the_mean_colour():
    processor = ImageProcessor(
        pad_to_square=True, do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False
    )
    out = processor(Image.new("RGB", (7, 2), (1, 2, 3)))
    assert out.shape == (7, 7, 3)
    assert (out[2:4] == (1, 2, 3)).all()
    assert (out[:2] == (122, 116, 104)).all() and (out[4:] == (122, 116, 104)).all()
