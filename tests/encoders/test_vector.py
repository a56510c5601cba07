"""Vectors as items of their own: a robot's state among the words (PaLM-E), and how they are told apart."""

import jax
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError
from mmjax.data.chat_template import MediaSpan, TextSpan
from mmjax.data.collate import collate
from mmjax.data.contracts import Media
from mmjax.data.items import MediaSize, TokenPlanError
from mmjax.data.token_plan import TokenPlan
from mmjax.encoders.vector import Vector, VectorConfig
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.projectors.mlp import MLPProjectorConfig

CONFIG = MultimodalLMConfig(
    DecoderConfig(40, 12, 1, 2, 1, 6, 20),
    {"state": VectorConfig(5)},
    {"state": MLPProjectorConfig(5, 7, 12)},
    {"state": 39},
)


def planned(plan, spans, states):
    sample = plan.plan_sample(spans, {"state": [MediaSize()] * len(states)}, "s")
    return sample.with_media({"state": states})


@pytest.mark.slow
def test_states_stand_where_they_are_among_the_words():
    model, words = MultimodalLM(CONFIG), lambda *ids: TextSpan(ids, (False,) * len(ids))
    params = model.init(jax.random.key(0))
    plan = TokenPlan(CONFIG.num_tokens, CONFIG.media_tokens, lengths=(8,), layouts=CONFIG.layouts)
    states = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    spans = [words(1), MediaSpan("state", 0), words(2, 3), MediaSpan("state", 1), words(4)]
    samples = [planned(plan, spans, list(states[:2])), planned(plan, [MediaSpan("state", 0), words(5)], [states[2]])]
    batch = collate(samples, plan)
    assert batch.media["state"].values.shape == (2, 2, 5)
    embedded = model.embed(params, batch.text, model.encode_media(params, batch.media))
    table = np.asarray(params["backbone"]["embed"]["embedding"])
    weights = params["projectors"]["state"]
    maps = [weights[name] for name in sorted(weights) if "kernel" in weights[name]]

    def token(state):
        """The MLP of one state, in numpy."""
        inner, outer = sorted(maps, key=lambda leaf: leaf["kernel"].shape != (5, 7))
        x = np.asarray(jax.nn.gelu(state @ inner["kernel"] + inner["bias"], approximate=False))
        return x @ outer["kernel"] + outer["bias"]

    wanted = [table[1], token(states[0]), table[2], table[3], token(states[1]), table[4]]
    np.testing.assert_allclose(embedded[0, :6], wanted, atol=1e-5)
    np.testing.assert_allclose(embedded[1, :2], [token(states[2]), table[5]], atol=1e-5)
    assert "encoders" not in params


def test_other_sizes_are_refused():
    with pytest.raises(ConfigError, match="size must be at least 1, got 0"):
        VectorConfig(0)
    with pytest.raises(ValueError, match="vectors have 4 numbers each; wanted 5"):
        Vector(VectorConfig(5)).apply({}, Media(np.zeros((1, 1, 4), np.float32)))
    plan = TokenPlan(CONFIG.num_tokens, CONFIG.media_tokens, lengths=(8,), layouts=CONFIG.layouts)
    sample = planned(plan, [MediaSpan("state", 0)], [np.zeros(4, np.float32)])
    with pytest.raises(TokenPlanError, match=r"s: state item is float32 \[4\]"):
        collate([sample], plan)
