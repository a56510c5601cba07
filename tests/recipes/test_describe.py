"""What a config describes: counts by hand, of a published size."""

import pytest

from mmjax.config import ConfigError
from mmjax.recipes.describe import describe_system


def test_llava_by_hand():
    (counts,) = describe_system("llava_1_5", "7b").values()
    width, layers, mlp, words = 4096, 32, 11008, 32064
    llm = layers * (4 * width**2 + 3 * width * mlp + 2 * width) + 2 * words * width + width
    projector = 1024 * width + width + width**2 + width
    assert counts["parameters"]["backbone"] == llm
    assert counts["parameters"]["projectors/image"] == projector
    assert counts["parameters"]["total"] == llm + projector + counts["parameters"]["encoders/image"]
    assert counts["tokens"] == {"image": 576} and counts["items"] == {"image": "image of 336 x 336 pixels"}
    assert counts["token_flops"] == 2 * (layers * (4 * width**2 + 3 * width * mlp) + words * width)
    # The features are those of block 23 of 24, of 576 patches and the class token.
    block = 2 * 577 * (4 * 1024**2 + 2 * 1024 * 4096) + 4 * 577**2 * 1024
    item = 23 * block + 2 * 576 * 3 * 14**2 * 1024 + 2 * 576 * (1024 * width + width**2)
    assert counts["item_flops"]["image"] == pytest.approx(item, rel=1e-9)


def test_an_encoder_decoder_reads_and_writes():
    (counts,) = describe_system("blip_2", "flan_t5_xl").values()
    width, inner, layers, mlp = 2048, 2048, 24, 5120
    attention, feed = 4 * width * inner, 3 * width * mlp
    keys = 2 * width * inner
    # Of the decoder's second attention, keys and values belong to what is read; one key a query is multiplied too.
    assert counts["read_flops"] == pytest.approx(2 * layers * (attention + feed + keys), rel=1e-3)
    written = 2 * layers * (2 * attention - keys + feed) + 2 * 32128 * width
    assert counts["token_flops"] == pytest.approx(written, rel=1e-3)


def test_items_of_tiles_frames_and_patches_are_said_in_words():
    (tiles,) = describe_system("llava_onevision", "0.5b").values()
    assert tiles["items"] == {"image": "image of 768 x 768 pixels", "video": "video of 8 frames"}
    # 27 x 27 of the whole; 54 rows of 54 and what ends each; 8 frames of 14 x 14 and one that ends them.
    assert tiles["tokens"] == {"image": 27**2 + 54 * 55, "video": 8 * 14**2 + 1}
    (patches,) = describe_system("qwen2_vl", "2b").values()
    assert patches["tokens"] == {"image": 256} and patches["parameters"]["total"] == 2_208_985_600


def test_what_there_is_nothing_to_count_of():
    assert describe_system("demo") == {"full": {}, "short": {}}
    with pytest.raises(ConfigError, match="no size '7'"):
        describe_system("llava", "7")
