"""SAM against transformers: image encoder, prompts of every kind, LISA's path, masks at the image's size."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

import mmjax
from mmjax.config import ConfigError
from mmjax.distributed.rules import is_axes, spec
from mmjax.generators.mask_decoder import original_masks
from mmjax.interop.huggingface import load, model_of, save
from mmjax.paths import flatten

# Maps of 5 x 5 places: windows of 2 or 3 leave a rest that is filled up.
VISION = dict(hidden_size=12, output_channels=16, num_hidden_layers=3, num_attention_heads=3, image_size=21,
              patch_size=4, window_size=3, global_attn_indexes=[1], num_pos_feats=8, mlp_dim=20)  # fmt: skip
PROMPTS = dict(hidden_size=16, image_size=21, patch_size=4, mask_input_channels=8)
MASKS = dict(hidden_size=16, mlp_dim=24, num_attention_heads=2, iou_head_hidden_dim=12)
SIZE, GRID = 21, 5


def sam(vision=None, masks=None):
    config = transformers.SamConfig(
        vision_config={**VISION, **(vision or {})},
        prompt_encoder_config=PROMPTS,
        mask_decoder_config={**MASKS, **(masks or {})},
    )
    return transformers.SamModel(config)



class Pair:
    """A model of transformers, ours of the same weights, and ours as transformers reads it again."""

    def __init__(self, weights, model):
        self.theirs = weights.randomised(model)
        loaded = weights.loaded(self.theirs)
        self.again = weights.again(loaded, type(model))
        self.config, self.params, self.weights = loaded.config, loaded.params, weights

        self.pixels = weights.pixels(2, 3, SIZE, SIZE)

    @functools.cached_property
    def maps(self):
        """Our maps of the images, on which every kind of prompt is tried."""
        run = jax.jit(model_of(self.config).encode)
        return run(self.params, self.pixels.transpose(0, 2, 3, 1))

    def ours(self, multimask=True, maps=None, **prompts):
        decoder = model_of(self.config).decoder
        run = jax.jit(lambda params, x, given: decoder(params, x, multimask=multimask, **given))
        return run(self.params["decoder"], self.maps if maps is None else maps, prompts)


@pytest.fixture(scope="module")
def pair(module_weights):
    """A pair with the options of the published models."""
    return Pair(module_weights, sam())


def prompts(kind):
    """(ours, theirs) for 2 images and 3 prompts each."""
    random = np.random.default_rng(5)
    points = random.uniform(0, SIZE, (2, 3, 2, 2)).astype(np.float32)
    labels = np.array([[[1, 0], [1, -10], [-1, 1]], [[0, 1], [1, 1], [0, -10]]])
    low = random.uniform(0, SIZE / 2, (2, 3, 2))
    boxes = np.concatenate([low, low + random.uniform(1, SIZE / 2, (2, 3, 2))], axis=-1).astype(np.float32)
    rough = random.normal(size=(2, 1, 4 * GRID, 4 * GRID)).astype(np.float32)
    given = {
        "points": ({"points": points, "labels": labels}, {"input_points": points, "input_labels": labels}),
        "boxes": ({"boxes": boxes}, {"input_boxes": boxes}),
        "masks, points without labels": (
            {"points": points, "masks": rough}, {"input_points": points, "input_masks": rough}
        ),
    }
    given["all"] = tuple({**a, **b, **c} for a, b, c in zip(*given.values(), strict=True))
    given["nothing"] = ({}, {})
    ours, theirs = given[kind]
    return ours, {name: torch.tensor(value) for name, value in theirs.items()}


SOME = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("points", "boxes", "masks, points without labels")]


@pytest.mark.parametrize("kind", [*SOME, "all", "nothing"])
def test_prompts(pair, parity, kind):
    ours, theirs = prompts(kind)
    multimask = kind != "boxes"
    mine = pair.ours(multimask, **ours)
    with torch.no_grad():
        wanted, repeated = (
            model(pixel_values=torch.tensor(pair.pixels), multimask_output=multimask, **theirs)
            for model in (pair.theirs, pair.again)
        )
    assert mine.logits.shape == (2, 1 if kind == "nothing" else 3, 3 if multimask else 1, 4 * GRID, 4 * GRID)
    parity.close(mine.logits, wanted.pred_masks)
    parity.close(mine.iou, wanted.iou_scores)
    assert torch.equal(wanted.pred_masks, repeated.pred_masks)


def test_embeddings_from_outside(pair, parity):
    """LISA: hidden states as the only prompts, one mask each."""
    embeddings = np.random.default_rng(6).normal(size=(2, 3, 16)).astype(np.float32)
    mine = pair.ours(multimask=False, embeddings=embeddings)
    model = pair.theirs
    with torch.no_grad():
        maps = model.get_image_embeddings(torch.tensor(pair.pixels))
        masks, iou = model.mask_decoder(
            image_embeddings=maps,
            image_positional_embeddings=model.get_image_wide_positional_embeddings().repeat(2, 1, 1, 1),
            sparse_prompt_embeddings=torch.tensor(embeddings)[:, :, None],
            dense_prompt_embeddings=model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1),
            multimask_output=False,
        )
    parity.close(mine.logits, masks)
    parity.close(mine.iou, iou)
    # Features as an encoder's media hold them, and K tokens a prompt, are the same thing said otherwise.
    features = pair.maps.reshape(2, GRID**2, 16)
    parity.close(features, maps.flatten(2).transpose(1, 2))
    flat = pair.ours(multimask=False, maps=features, embeddings=embeddings[:, :, None])
    np.testing.assert_array_equal(flat.logits, mine.logits)


@pytest.mark.quick("whole map")
@pytest.mark.parametrize(
    "options",
    [
        dict(window_size=0),
        dict(window_size=2, global_attn_indexes=[], use_rel_pos=False, qkv_bias=False, use_abs_pos=False),
    ],
    ids=["whole map", "windows only and no positions"],
)
def test_image_encoder(weights, parity, options):
    config = transformers.SamVisionConfig(**{**VISION, **options})
    pair = Pair(weights, transformers.SamVisionModel(config))
    pixels = weights.pixels(2, 3, SIZE, SIZE)
    with torch.no_grad():
        theirs, again = (model(torch.tensor(pixels)).last_hidden_state for model in (pair.theirs, pair.again))
    assert torch.equal(theirs, again)
    held = weights.model()
    parity.close(held(pixel_values=pixels).last_hidden_state, theirs)
    half = dataclasses.replace(held, dtype="bfloat16")(pixel_values=pixels).last_hidden_state
    assert half.dtype == jnp.bfloat16
    gap = np.asarray(half, np.float32) - theirs.numpy()
    assert 0 < np.sqrt(np.mean(gap**2)) < 0.05 * np.sqrt(np.mean(theirs.numpy() ** 2))


@pytest.mark.slow
def test_deeper_heads(weights, parity):
    vision, masks = dict(hidden_act="gelu_new"), dict(num_hidden_layers=3, iou_head_depth=4, num_multimask_outputs=2)
    pair = Pair(weights, sam(vision, masks))
    ours, theirs = prompts("boxes")
    run = jax.jit(lambda params, x, given: model_of(pair.config)(params, x, **given))
    mine = run(pair.params, pair.pixels.transpose(0, 2, 3, 1), ours)
    with torch.no_grad():
        wanted = pair.theirs(pixel_values=torch.tensor(pair.pixels), **theirs)
    parity.close(mine.logits, wanted.pred_masks)
    parity.close(mine.iou, wanted.iou_scores)


@pytest.mark.slow
def test_gradients_reach_every_param(pair):
    ours, _ = prompts("all")
    decoder = model_of(pair.config, remat="full").decoder

    def loss(params, maps, embeddings):
        out = decoder(params, maps, embeddings=embeddings, **ours)
        return jnp.sum(jnp.sin(out.logits)) + jnp.sum(out.iou)

    embeddings = np.ones((2, 3, 16), np.float32)
    slopes, *outside = jax.jit(jax.grad(loss, (0, 1, 2)))(pair.params["decoder"], pair.maps, embeddings)
    flat = {path: float(np.abs(slope).max()) for path, slope in flatten(slopes).items()}
    # With boxes no token stands for a missing point, and with masks none for a missing mask.
    assert [path for path, size in flat.items() if not size > 0] == ["prompts/no_mask"]
    assert all(np.isfinite(size) for size in flat.values()) and all(np.abs(slope).max() > 0 for slope in outside)


def test_params_and_their_axes(pair):
    segmenter = model_of(pair.config)
    shapes, axes = flatten(segmenter.param_shapes()), flatten(segmenter.param_axes())
    assert set(shapes) == set(axes) == set(flatten(pair.params))
    for path, leaf in shapes.items():
        assert is_axes(axes[path]) and len(axes[path]) == leaf.ndim, path
        spec(axes[path])


def test_an_mmjax_directory(pair, tmp_path):
    held = pair.weights.model()
    held.save_pretrained(tmp_path, format="mmjax")
    again = mmjax.from_pretrained(tmp_path)
    assert again.config == held.config
    jax.tree.map(np.testing.assert_array_equal, again.params, held.params)


@pytest.mark.parametrize("original, inner", [((30, 43), (15, 21)), ((7, 5), (21, 15)), ((21, 21), (21, 21))])
def test_masks_at_the_size_of_the_image(original, inner):
    logits = np.random.default_rng(7).normal(size=(1, 3, 20, 20)).astype(np.float32)
    processor = SamImageProcessorPil()
    (theirs,) = processor.post_process_masks(
        [torch.tensor(logits[0])[None]], [original], [inner], binarize=False, pad_size={"height": SIZE, "width": SIZE}
    )
    mine = original_masks(jnp.asarray(logits), SIZE, inner, original)
    np.testing.assert_allclose(mine, theirs, atol=1e-5)
    with pytest.raises(ValueError, match="an image of 22 x 21 is larger than its square of 21"):
        original_masks(jnp.asarray(logits), SIZE, (22, 21), original)


def test_what_does_not_fit_is_named(pair, tmp_path):
    segmenter, params = model_of(pair.config), pair.params
    maps = np.zeros((2, GRID, GRID, 16), np.float32)
    decode = lambda *args, **given: jax.eval_shape(
        lambda: segmenter.decoder(params["decoder"], jnp.asarray(args[0] if args else maps), **given)
    )
    points, boxes = np.zeros((2, 3, 1, 2)), np.zeros((2, 3, 4))
    for wrong, message in [
        (dict(points=points, labels=np.zeros((2, 3, 2), int)), r"points are \(2, 3, 1, 2\), labels \(2, 3, 2\)"),
        (dict(points=points, boxes=boxes[:, :2]), r"boxes are \(2, 2, 4\) beside points \(2, 3, 1, 2\)"),
        (dict(labels=np.zeros((2, 3, 2), int)), "labels of points need points"),
        (dict(boxes=boxes[:1]), r"prompts of \(images, prompts\) \[\(1, 3\)\] for 2 images"),
        (dict(boxes=boxes, embeddings=np.zeros((2, 2, 16))), r"\[\(2, 2\), \(2, 3\)\] for 2 images"),
        (dict(masks=np.zeros((2, 1, 20, 19))), r"masks are \(2, 1, 20, 19\); wanted \[B, R, 20, 20\]"),
        (dict(embeddings=np.zeros((2, 3, 15))), r"embeddings are \(2, 3, 15\); wanted \[B, R, 16\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            decode(**wrong)
    with pytest.raises(ValueError, match=r"map is \(2, 5, 4, 16\); wanted \[B, 5, 5, 16\]"):
        decode(maps[:, :, :4])
    with pytest.raises(ValueError, match=r"images of 20 x 21 pixels, .* 5 x 5 patches \(21 x 21 pixels\)"):
        segmenter(params, np.zeros((1, 20, 21, 3), np.float32))
    for part, key, value, message in [
        ("encoder", "global_layers", (4,), "4 is not among the 3 layers"),
        ("encoder", "global_layers", (2, 1), r"\(2, 1\) must grow"),
        ("encoder", "window_size", 0, "window_size 0: the layers that are not in global_layers"),
        ("encoder", "num_heads", 5, "width 12 is not a multiple of num_heads 5"),
        ("decoder", "num_heads", 5, "not a multiple of attention_reduction 2 times num_heads 5"),
        ("decoder", "mask_width", 6, "mask_width 6 is not a multiple of 4"),
        ("decoder", "iou_depth", 1, "iou_depth must be at least 2, got 1"),
        ("decoder", "num_masks", 0, "num_masks 0"),
        ("decoder", "activation", "reluu", 'Did you mean "relu"'),
    ]:
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(getattr(pair.config, part), **{key: value})
    other = dataclasses.replace(pair.config.decoder, grid_size=4)
    with pytest.raises(ConfigError, match=r"the encoder has .* \(21, 5, 16\), the decoder .* \(21, 4, 16\)"):
        dataclasses.replace(pair.config, decoder=other)
    save(tmp_path, pair.config, params)
    path = tmp_path / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"num_pos_feats": 8', '"num_pos_feats": 6'))
    with pytest.raises(ConfigError, match="hidden_size is 16, prompt.* 16, twice .*num_pos_feats 12"):
        load(tmp_path)
    path.write_text(text.replace('"num_point_embeddings": 4', '"num_point_embeddings": 6'))
    with pytest.raises(ConfigError, match="num_point_embeddings 6"):
        load(tmp_path)
    path.write_text(text.replace('"attention_downsample_rate": 2', '"attention_downsample_rate": 4'))
    with pytest.raises(ConfigError, match="attention_downsample_rate 4"):
        load(tmp_path)
    decoder = dataclasses.replace(pair.config.decoder, attention_reduction=4)
    other = dataclasses.replace(pair.config, decoder=decoder)
    with pytest.raises(ConfigError, match="attention_reduction=2, this decoder has 4"):
        save(tmp_path, other, model_of(other).param_shapes())
