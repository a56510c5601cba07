"""FLOPs of an encoder-decoder's texts against what is counted in traced programs of single tokens and pairs."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.backbones.encoder_decoder import EncoderDecoderConfig
from mmjax.data.contracts import Batch, TextStream
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.paths import flatten
from mmjax.train.flops import StepFlops, traced_flops

D, H, C, F, V = 12, 2, 5, 20, 31
CONFIG = EncoderDecoderConfig(V, D, 2, H, C, F, encoder_layers=3, tie_embeddings=False)
MODEL = MultimodalLM(MultimodalLMConfig(CONFIG))
PATHS = list(flatten(MODEL.param_shapes()))


def stream(*lengths, size=7, targets=False):
    segments = (np.arange(size) < np.array(lengths)[:, None]).astype(np.int32)
    tokens = np.zeros_like(segments)
    weights = segments.astype(np.float32) if targets else None
    return TextStream(tokens, np.zeros_like(tokens), segments, loss_weights=weights)


def forward(read, written):
    """By hand: maps of either side, pairs of three kinds of attention, the output layer."""
    attention, mlp = 4 * D * H * C, 3 * D * F
    keys = 2 * D * H * C
    maps = 3 * (attention + mlp) * read + 2 * (2 * attention - keys + mlp) * written + 2 * keys * read
    pairs = 3 * read**2 + 2 * (written * (written + 1) / 2 + read * written)
    return 2 * maps + 4 * H * C * pairs + 2 * D * V * (written - 1)


def test_counts_by_hand():
    batch = Batch({"query": stream(7, 3), "decoder": stream(4, 2, targets=True)})
    whole = forward(7, 4) + forward(3, 2)
    assert StepFlops(MODEL, []).of(batch) == whole
    assert StepFlops(MODEL, PATHS).of(batch) == 3 * whole
    # The decoder alone: what is read has no gradient, the maps of its keys and values do.
    decoder = [path for path in PATHS if path.startswith("backbone/decoder/")]
    some = StepFlops(MODEL, decoder).of(batch)
    assert whole < some < 3 * whole
    head = StepFlops(MODEL, [path for path in PATHS if "lm_head" in path]).of(batch)
    assert head == whole + 2 * D * V * 4


def test_the_count_is_that_of_the_traced_program():
    """One token each: then there is one pair of each kind, and none is left out."""
    batch = Batch({"query": stream(1, size=1), "decoder": stream(2, size=2, targets=True)})

    def run(params):
        hidden = MODEL.forward(params, jax.tree.map(jnp.asarray, batch.texts))
        return MODEL.logits(params, hidden[:, :1])

    traced = traced_flops(run, MODEL.param_shapes())
    # The trace has the whole square of the decoder's pairs.
    assert StepFlops(MODEL, []).of(batch, causal=False) == traced
