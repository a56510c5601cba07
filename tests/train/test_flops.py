"""FLOPs against hand counts and brute force, the peaks, and the cache of encoder features."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.backbones.fusion.adapter_prompts import AdapterPromptsConfig
from mmjax.backbones.fusion.gated_cross_attention import GatedCrossAttentionConfig
from mmjax.backbones.fusion.modality_experts import ModalityExpertsConfig
from mmjax.backbones.fusion.visual_expert import VisualExpertConfig
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.encoders.vit import ViTConfig
from mmjax.generators.image_codes import ImageCodesConfig
from mmjax.generators.vq_autoencoder import VQAutoencoderConfig
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.nn.masks import attention_mask, windowed
from mmjax.nn.moe import MixtureConfig
from mmjax.paths import flatten
from mmjax.projectors.mlp import MLPProjectorConfig
from mmjax.train.features import cache_features
from mmjax.train.flops import StepFlops, attended_pairs, peak_flops, traced_flops

D, F, L, V, H, K, C = 12, 20, 3, 31, 6, 2, 4
VIT = ViTConfig(
    image_size=6, patch_size=3, width=8, num_layers=2, num_heads=2, mlp_width=10, feature_strategy="patches"
)
MODEL = MultimodalLM(
    MultimodalLMConfig(
        DecoderConfig(V, D, L, H, K, C, F), {"image": VIT}, {"image": MLPProjectorConfig(8, 16, D)}, {"image": 0}
    )
)
PATHS = list(flatten(MODEL.param_shapes()))
BLOCKS = L * (D * H * C * 2 + D * K * C * 2 + 3 * D * F)
# 5 tokens in the ViT (a class token); forward FLOPs of one image, and of its 4 tokens in the projector.
ENCODER = 2 * 4 * (3 * 3 * 3 * 8) + 2 * (2 * 5 * (4 * 8 * 8 + 2 * 8 * 10) + 4 * 5 * 5 * 8)
PROJECTOR = 2 * 4 * (8 * 16 + 16 * D)


def make_batch(stage="raw"):
    segments = np.array([[1] * 7, [1] * 5 + [0] * 2], np.int32)
    weights = np.zeros((2, 7), np.float32)
    weights[0, 3:] = 1
    weights[1, 4:] = 1  # two of them padding
    tokens = np.zeros((2, 7), np.int32)
    text = TextStream(tokens, np.tile(np.arange(7, dtype=np.int32), (2, 1)), segments, weights)
    shape = {"raw": (2, 1, 6, 6, 3), "encoded": (2, 4, 8), "projected": (2, 4, D)}[stage]
    return Batch({"text": text}, {"image": Media(np.zeros(shape, np.float32), stage=stage)})


def parts(blocks, attention, head, encoder, projector):
    pairs, tokens, targets = 28 + 15, 12, 5
    return (
        blocks * 2 * BLOCKS * tokens
        + attention * 4 * H * C * L * pairs
        + head * 2 * D * V * targets
        + encoder * 2 * ENCODER
        + projector * 2 * PROJECTOR
    )


@pytest.mark.parametrize(
    "prefixes, expected",
    [
        ([""], parts(3, 3, 3, 3, 3)),
        (["backbone", "projectors"], parts(3, 3, 3, 1, 3)),
        (["projectors"], parts(2, 3, 2, 1, 3)),
        (["backbone/lm_head"], parts(1, 1, 2, 1, 1)),
        (["encoders"], parts(2, 3, 2, 3, 2)),
    ],
)
def test_6n_4n_2n_by_hand(prefixes, expected):
    trained = [path for path in PATHS if path.startswith(tuple(prefixes))]
    flops = StepFlops(MODEL, trained)
    assert flops.of(make_batch()) == expected
    encoder_share = 3 if prefixes in ([""], ["encoders"]) else 1
    assert flops.of(make_batch("encoded")) == pytest.approx(expected - encoder_share * 2 * ENCODER)


def test_full_attention_counts_the_whole_square():
    flops = StepFlops(MODEL, [path for path in PATHS if path.startswith("projectors")])
    more = flops.of(make_batch(), causal=False) - flops.of(make_batch())
    assert more == 3 * 4 * H * C * L * (49 + 25 - 28 - 15)


@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_those_of_the_attention_mask(seed):
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.integers(0, 4, (3, 17)), axis=1)[:, ::-1].astype(np.int32).copy()
    group = rng.integers(0, 3, (3, 17)).astype(np.int32)
    group = np.sort(group, axis=1)
    text = TextStream(segments, segments, segments)
    assert attended_pairs(text) == int(attention_mask(text).sum())
    one = np.ones_like(segments)
    grouped = TextStream(one, one, one, attend_group=group)
    assert attended_pairs(grouped) == int(attention_mask(grouped).sum())
    for size in (1, 3, 4, 50):
        assert attended_pairs(text, window=size) == int(windowed(attention_mask(text), size).sum())
        assert attended_pairs(grouped, window=size) == int(windowed(attention_mask(grouped), size).sum())


def test_windows_learned_positions_and_plain_mlps():
    backbone = DecoderConfig(
        V, D, L, H, K, C, F, max_positions=9, gated=False, norm="layer", position="learned", sliding_window=3,
        window_pattern=(True, True, False),
    )  # fmt: skip
    model = MultimodalLM(MultimodalLMConfig(backbone))
    paths = list(flatten(model.param_shapes()))
    text = make_batch().texts["text"]
    blocks, near = BLOCKS - L * D * F, 1 + 2 + 3 * 5 + 1 + 2 + 3 * 3
    forward = {"tokens": 2 * blocks * 12, "pairs": 4 * H * C * (2 * near + 28 + 15), "targets": 2 * D * V * 5}
    assert StepFlops(model, paths).of(Batch({"text": text}, {})) == 3 * sum(forward.values())
    assert StepFlops(model, []).of(Batch({"text": text}, {})) == sum(forward.values())
    # Only the table of positions: no weight in the blocks has a gradient, but one passes through all of them.
    expected = 2 * forward["tokens"] + 3 * forward["pairs"] + 2 * forward["targets"]
    assert StepFlops(model, ["backbone/positions/embedding"]).of(Batch({"text": text}, {})) == expected


@pytest.mark.parametrize("routing", ["dense", "grouped"])
def test_experts_that_a_token_does_not_go_to_are_not_counted(routing):
    moe = MixtureConfig(6, 2, 7, shared_width=5, shared_gate=True, routing=routing)
    model = MultimodalLM(MultimodalLMConfig(DecoderConfig(V, D, L, H, K, C, F, moe=moe)))
    batch = Batch({"text": make_batch().texts["text"]}, {})
    attention, router = D * H * C * 2 + D * K * C * 2, D * 6
    expert, shared = 3 * D * 7, 3 * D * 5 + D
    leaves = flatten(model.param_shapes())
    sizes = {path: math.prod(leaf.shape) for path, leaf in leaves.items() if "/mlp/" in path}
    assert sum(sizes.values()) == L * (6 * expert + router + shared)  # all there, and all counted as parameters
    blocks = L * (attention + router + 2 * expert + shared)
    forward = 2 * blocks * 12 + 4 * H * C * L * (28 + 15) + 2 * D * V * 5
    assert StepFlops(model, []).of(batch) == pytest.approx(forward)
    assert StepFlops(model, list(leaves)).of(batch) == pytest.approx(3 * forward)
    only = [path for path in leaves if path.startswith("backbone/blocks/mlp/experts/")]
    expected = 2 * forward + 4 * H * C * L * (28 + 15) + 2 * L * 2 * expert * 12
    assert StepFlops(model, only).of(batch) == pytest.approx(expected)


def test_traced_flops_counts_convolutions_loops_and_branches():
    x, kernel = jnp.zeros((2, 9, 8, 3)), jnp.zeros((3, 2, 3, 5))

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (2, 1), "VALID", dimension_numbers=numbers)

    assert traced_flops(convolve, x, kernel) == 2 * (2 * 4 * 7 * 5) * (3 * 2 * 3)
    a = jnp.zeros((4, 4))
    scanned = lambda a: jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, a), None), a, length=6)  # noqa: E731
    assert traced_flops(scanned, a) == 6 * 2 * 4**3
    branch = lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, a)  # noqa: E731
    assert traced_flops(branch, a) == 2 * 2 * 4**3


def test_peaks():
    class Chip:
        platform, process_index = "tpu", 0

        def __init__(self, kind, index):
            self.device_kind, self.id = kind, index

    peak, source = peak_flops([Chip("TPU v5 lite", i) for i in range(4)])
    assert peak == 4 * 197e12 and "data sheet" in source
    assert peak_flops([Chip("TPU v5p", 0)])[0] == 459e12
    assert peak_flops([Chip("NVIDIA H100 80GB HBM3", 0)])[0] == 989e12
    assert peak_flops([Chip("abacus", 0)])[0] is None
    peak, source = peak_flops(jax.devices())
    assert 1e8 < peak < 1e14 and "timed" in source


def test_cached_features_are_those_of_the_encoder():
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), jnp.float32), MODEL.param_shapes())
    images = rng.normal(size=(7, 6, 6, 3)).astype(np.float32)
    features = cache_features(MODEL, params, "image", iter(images), batch_size=3)
    assert features.shape == (7, 4, 8)
    expected = jax.jit(lambda media: MODEL.encode(params, "image", media).values)(Media(images[:, None]))
    np.testing.assert_allclose(features, expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"image 4 has shape \(6, 5, 3\)"):
        cache_features(MODEL, params, "image", [*images[:4], images[4, :, :5]], batch_size=3)
    with pytest.raises(ValueError, match="no image to encode for port 'image'"):
        cache_features(MODEL, params, "image", [])


def with_fusion(fusion, **options):
    backbone = dataclasses.replace(MODEL.config.backbone, fusion=fusion)
    return MultimodalLM(dataclasses.replace(MODEL.config, backbone=backbone, **options))


def test_fusion_inside_the_backbone_by_hand():
    """Only what is inside is trained: products of frozen maps count twice, of trained ones three times."""
    plain = StepFlops(MODEL, ["backbone/blocks/attn_norm/scale"]).of(make_batch("projected"))

    def extra(model, batch):
        trained = [path for path in flatten(model.param_shapes()) if path.startswith("backbone/fusion/")]
        return StepFlops(model, trained).of(batch) - plain

    tokens, prompts = 12, AdapterPromptsConfig(num_prompts=5, layers=2)
    assert extra(with_fusion(prompts), make_batch("projected")) == 3 * 5 * 2 * 4 * H * C * tokens
    # Two experts of three: the frozen MLP once more, two thirds of the low-rank paths, the router.
    mixed = with_fusion(ModalityExpertsConfig(3, 2, 1.0, top_k=2))
    layers = mixed.config.backbone.num_layers
    low = 3 * (D + F) * 2
    wanted = 2 * 2 * 3 * D * F + 3 * 2 * (2 * low + 3 * D)
    assert extra(mixed, make_batch("projected")) == pytest.approx(wanted * layers * tokens)
    # Tokens of media go through trained maps instead of frozen ones.
    batch = make_batch("projected")
    index = np.full((2, 7), -1, np.int32)
    index[0, 1:5] = range(4)
    batch = batch.replace(texts={"text": batch.text.replace(media_index=index)})
    assert extra(with_fusion(VisualExpertConfig()), batch) == (3 - 2) * 2 * BLOCKS * 4
    # Row 0 has two images of four tokens, row 1 one and padding; the first four tokens see the first alone.
    gated = with_fusion(GatedCrossAttentionConfig(D, every=3), inside=("image",), media_tokens={})
    seen = np.zeros((2, 7, 2), bool)
    seen[:, :, 0], seen[:, 4:, 1] = True, True
    text = make_batch().text.replace(media_attention=seen)
    media = Media(np.zeros((2, 8, D), np.float32), np.repeat([[1, 2], [1, 0]], 4, axis=1), stage="projected")
    pairs = 4 * (7 + 3 + 5)
    maps = 3 * 2 * ((2 * D * H * C + 3 * D * F) * tokens + 2 * D * K * C * 4 * 3)
    assert extra(gated, Batch({"text": text}, {"image": media})) == maps + 3 * 4 * H * C * pairs


def test_images_as_codes_by_hand():
    """Codes are said by their own two maps, words by the LLM's output layer; images that are padding cost nothing."""
    autoencoder = VQAutoencoderConfig(
        codes=7, latent_channels=3, widths=(8,), blocks=1, groups=4, inner_channels=4, middle_attention=False
    )
    codes = ImageCodesConfig(autoencoder, D, (1, 2), first=V, own=True, port="image_out")
    model = MultimodalLM(MultimodalLMConfig(MODEL.config.backbone, codes=codes))
    paths = [path for path in flatten(model.param_shapes()) if not path.startswith("codes/autoencoder")]
    text = make_batch().text
    tokens = text.tokens.copy()
    tokens[0, 4:6] = codes.blank
    batch = Batch({"text": text.replace(tokens=tokens)})
    maps = 2 * (D * D + D * 7)
    for trained, times in ((paths, 3), ([path for path in paths if path.startswith("backbone")], 2)):
        counts = StepFlops(model, trained)
        words = counts.of(Batch({"text": text}))
        assert counts.of(batch) == pytest.approx(words + 2 * (times * maps - 3 * 2 * D * V))
    images = {"media": np.zeros((2, 2, 3, 5, 3), np.float32), "weights": np.array([[1, 1], [1, 0]], np.float32)}
    shapes, image = model.param_shapes(), jax.ShapeDtypeStruct((1, 3, 5, 3), jnp.float32)
    encode = traced_flops(lambda params, image: model.codes(params, "encode", image), shapes, image)
    whole = counts.of(batch.replace(targets={"image_out": images}))
    assert encode > 15 * 2 * 3 * 7 and whole == pytest.approx(counts.of(batch) + 3 * encode)
