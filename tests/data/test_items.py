"""Items of several entries and packed patches: what the data pipeline gives is what arrays of a processor give."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.data.chat_template import MediaSpan, TextSpan
from mmjax.data.collate import collate
from mmjax.data.items import Item, Layout, MediaSize, Room, TokenPlanError, room_for, stack_items
from mmjax.data.samples import SampleTooLong
from mmjax.data.token_plan import TokenPlan
from mmjax.encoders.vit import ViTConfig
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.projectors.linear import LinearProjectorConfig
from mmjax.projectors.tiles import TilesConfig

TEXT = DecoderConfig(40, 12, 1, 2, 1, 6, 20)
VIT = ViTConfig(
    image_size=6, patch_size=2, width=8, num_layers=1, num_heads=2, mlp_width=12, feature_strategy="patches"
)
TILES = TilesConfig(LinearProjectorConfig(8, 12), 6, 3, ((6, 12), (12, 6), (12, 12)), most_tiles=2)
CONFIG = MultimodalLMConfig(TEXT, {"image": VIT}, {"image": TILES}, {"image": 39})


def plan_of(config, **options):
    return TokenPlan(config.num_tokens, config.media_tokens, **config.plan_options, **options)


def sample_of(plan, sizes, arrays, name="s"):
    spans = [TextSpan([1, 2], 0)]
    for item in range(len(sizes)):
        spans += [MediaSpan("image", item), TextSpan([3 + item, 4], 1)]
    sample = plan.plan_sample(spans, {"image": [MediaSize(None, size) for size in sizes]}, name)
    return sample.with_media({"image": arrays})


@pytest.mark.slow
def test_tiles_through_the_plan_give_the_same_hidden_states_as_one_sample_alone():
    rng = np.random.default_rng(0)
    plan = plan_of(CONFIG, lengths=(96,))
    sizes = [[(5, 9)], [(11, 11), (20, 7)], []]
    arrays = [
        [rng.normal(size=(TILES.num_tiles(size), 6, 6, 3)).astype(np.float32) for size in row] for row in sizes
    ]
    samples = [sample_of(plan, *row) for row in zip(sizes, arrays, strict=True)]
    model = MultimodalLM(CONFIG)
    params = jax.jit(model.init)(jax.random.key(1))
    run = jax.jit(lambda batch: model(params, batch).logits)
    batch = collate(samples, plan)
    assert batch.media["image"].order_weights is not None  # (11, 11) has more tiles than most_tiles
    together = np.asarray(run(batch))
    for row, sample in enumerate(samples):
        alone = run(collate([sample], plan))
        np.testing.assert_allclose(together[row, : len(sample)], alone[0, : len(sample)], atol=2e-5)
    assert plan.bucket(samples).entries == (("image", 8),)
    with pytest.raises(TokenPlanError, match=r"^s: image item of shape \[2, 6, 6, 3\]; planned was \[3, 6, 6, 3\]"):
        collate([sample_of(plan, [(5, 9)], [arrays[0][0][:2]])], plan)
    with pytest.raises(SampleTooLong, match="^s: 8 entries of image items, more than the largest bucket of 4"):
        sample_of(dataclasses.replace(plan, entries={"image": (0, 4)}), *(part[1] for part in (sizes, arrays)))


def test_stacking_keeps_entries_and_orders_apart():
    layout = Layout((2,), tokens=lambda n: 1 + 3 * n, arrange=lambda grid, size: None, leading=1)
    a = Item(np.ones((2, 2)), 2, MediaSize(None, (4, 5)), np.array([[0], [5]]))
    b = Item(np.full((1, 2), 7.0), 3, MediaSize(None, (1, 1)), np.array([[2], [1], [-1]]))
    media = stack_items([[a, b], [], [b]], Room(4, 2, 6), layout)
    assert media.segment_ids.tolist() == [[1, 1, 2, 0], [0] * 4, [1, 0, 0, 0]]
    # A row's first projected token is the learned one; a's two entries are tokens 1 to 6, b's one 7 to 9.
    assert media.order.tolist() == [[1, 6, 9, 8, 0, -1], [-1] * 6, [3, 2, 0, -1, -1, -1]]
    assert media.original_size[0].tolist() == [[4, 5], [1, 1]] and media.grid is None
    assert room_for([[a, b], []]) == Room(3, 2, 5)
    with pytest.raises(TokenPlanError, match="row 0: 2 items with 3 entries do not fit 2 and 2"):
        stack_items([[a, b]], Room(2, 2, 6), layout)
