"""LLaVA-NeXT and LLaVA-OneVision against transformers: tiles, padding left out, ends of rows, videos."""

import numpy as np
import pytest
import transformers

from mmjax.data.items import TokenPlanError
from mmjax.interop.huggingface import FAMILIES

VISION = dict(hidden_size=30, intermediate_size=44, num_hidden_layers=3, num_attention_heads=5, patch_size=7)
TEXT = dict(
    vocab_size=83,
    hidden_size=36,
    intermediate_size=58,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=512,
)
IMAGE, VIDEO = 80, 81


def next_model():
    return transformers.LlavaNextForConditionalGeneration(
        transformers.LlavaNextConfig(
            vision_config=transformers.CLIPVisionConfig(**VISION, image_size=28),
            text_config=transformers.LlamaConfig(**TEXT),
            image_token_index=IMAGE,
            image_grid_pinpoints=[[28, 56], [56, 28], [56, 56], [84, 28]],
        )
    )


def onevision_model():
    return transformers.LlavaOnevisionForConditionalGeneration(
        transformers.LlavaOnevisionConfig(
            vision_config=transformers.SiglipVisionConfig(**VISION, image_size=21, vision_use_head=False),
            text_config=transformers.Qwen2Config(**TEXT),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[21, 42], [42, 42], [42, 21], [63, 42]],
            vision_aspect_ratio="anyres_max_2",
        )
    )


def text_of(rows, left):
    """input_ids and attention_mask: each row is a list of (port's token, how many), padded on one side."""
    rng = np.random.default_rng(5)
    bodies = []
    for items in rows:
        body = list(rng.integers(1, 79, 2))
        for token, count in items:
            body += [token] * count + list(rng.integers(1, 79, 2))
        bodies.append(body)
    length = max(map(len, bodies))
    ids, mask = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), np.int64)
    for row, body in enumerate(bodies):
        part = slice(length - len(body), None) if left else slice(len(body))
        ids[row, part], mask[row, part] = body, 1
    return ids, mask


def drawn(counts, side):
    """pixel_values [images, most tiles, 3, side, side], zeros where an image has fewer."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((len(counts), max(counts), 3, side, side), np.float32)
    for image, count in enumerate(counts):
        pixels[image, :count] = rng.normal(size=(count, 3, side, side))
    return pixels


def ours(reference):
    return FAMILIES[reference.config.model_type].config_from_hf(reference.config.to_dict())


@pytest.mark.parametrize("left", [True, False])
def test_llava_next(system, left):
    reference = next_model()
    sizes = [(40, 70), (90, 33), (50, 51)]
    config = ours(reference)
    # 4 x 4 features a tile; the ends of rows count.
    taken = [config.num_tokens("image", None, size) for size in sizes]
    assert taken[2] == 16 + 8 * 9
    ids, mask = text_of([[(IMAGE, taken[0])], [(IMAGE, taken[1]), (IMAGE, taken[2])], []], left)
    pixels = drawn([config.projectors["image"].num_tiles(size) for size in sizes], 28)
    inputs = dict(input_ids=ids, attention_mask=mask, pixel_values=pixels, image_sizes=np.array(sizes))
    model = system.check(reference, inputs, new_tokens=3 if left else 0)
    with pytest.raises(ValueError, match="image_sizes"):
        model.batch(ids, mask, pixel_values=pixels)
    with pytest.raises(ValueError, match="image 0 of 40 x 70 pixels has 5 tiles, pixel_values hold 4"):
        model.batch(ids, mask, pixel_values=pixels[:, :4], image_sizes=np.array(sizes))
    ids[1, -2] = IMAGE
    with pytest.raises(TokenPlanError, match="row 1"):
        model.batch(ids, mask, pixel_values=pixels, image_sizes=np.array(sizes))


def test_llava_onevision(system):
    """Images in tiles, two of them scaled down; a row of two whole images; a video of three frames and one of two."""
    reference = onevision_model()
    config = ours(reference)
    sizes = [(60, 50), (20, 44), (30, 31), (31, 30)]
    grids = [None, None, (1, 3, 3), (1, 3, 3)]
    taken = [config.num_tokens("image", grid, size) for grid, size in zip(grids, sizes, strict=True)]
    frames = config.num_tokens("video", (3, 3, 3))
    assert (taken[2], frames) == (10, 13)
    rows = [[(IMAGE, taken[0])], [(IMAGE, taken[1]), (VIDEO, frames)], [(IMAGE, 10), (IMAGE, 10)]]
    ids, mask = text_of(rows, left=True)
    tiles = config.projectors["image"].num_tiles
    rng = np.random.default_rng(1)
    inputs = dict(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=drawn([tiles(sizes[0]), tiles(sizes[1]), 1, 1], 21),
        image_sizes=np.array(sizes),
        batch_num_images=np.array([1, 1, 2]),
        pixel_values_videos=rng.normal(size=(1, 3, 3, 21, 21)).astype(np.float32),
    )
    model = system.check(reference, inputs)
    assert set(model.params["encoders"]) == set(model.params["projectors"]) == {"image"}
