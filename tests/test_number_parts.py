"""Parts of a record that are numbers: the state of a robot and clouds of points, from the record to the model."""

import json

import jax
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import from_dict
from mmjax.configuration import load_config, to_plain
from mmjax.data.collate import collate
from mmjax.data.conversation import parse_record
from mmjax.data.point_files import PointError
from mmjax.data.points import PointProcessor
from mmjax.data.processor import Processor, load_processor
from mmjax.data.recipes import recipe_from_hf
from mmjax.data.vectors import VectorError, VectorProcessor
from mmjax.encoders.point_cloud import PointCloudConfig
from mmjax.encoders.vector import VectorConfig
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.projectors.linear import LinearProjectorConfig
from mmjax.projectors.mlp import MLPProjectorConfig
from mmjax.recipes.assemble import TrainConfig, byte_tokenizer, make_processor

CONFIG = MultimodalLMConfig(
    DecoderConfig(272, 12, 1, 2, 1, 6, 20),
    {
        "points": PointCloudConfig(
            19, 6, 5, 4, 12, 1, 3, 16, group_width=10, point_widths=(6, 7), position_width=8, feature_strategy="patches"
        ),
        "state": VectorConfig(5),
    },
    {"points": LinearProjectorConfig(12, 12), "state": MLPProjectorConfig(5, 7, 12)},
    {"points": 258, "state": 259},
)
RECIPES = {
    "points": {"point_processor_type": "PointProcessor", "num_points": 19, "features": ["rgb"], "fill": 0.4},
    "state": {"vector_processor_type": "VectorProcessor", "size": 5},
}
TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'text' %}{{ p['text'] }}{% else %}<{{ p['type'] }}>{% endif %}{% endfor %}{% endif %}"
    "{% endfor %}"
)


@pytest.fixture(scope="module")
def processor():
    tokenizer = byte_tokenizer().with_tokens(["<points>", "<state>"])
    recipes = {port: recipe_from_hf(recipe, port) for port, recipe in RECIPES.items()}
    places = {port: f"<{port}>" for port in RECIPES}
    return Processor(
        tokenizer, recipes, TEMPLATE, places, CONFIG.media_tokens, CONFIG.num_tokens, lengths=(64,),
        **CONFIG.processor_options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """Points with colours as text, some more than the model takes."""
    values = np.random.default_rng(0).normal(size=(23, 6)).round(3)
    values[:, 3:] = np.abs(values[:, 3:]) % 1
    path = tmp_path_factory.mktemp("clouds") / "chair.xyz"
    np.savetxt(path, values, fmt="%.3f")
    return path, values


STATE = [0.5, -1, 2.25, 0, 3]


def user(*parts, **more):
    return {"messages": [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": "go"}], **more}


def test_from_the_record_to_the_model(processor, cloud):
    """Each item's tokens stand where its part does, and are what the model makes of the very numbers."""
    path, values = cloud
    record = user(
        {"type": "text", "text": "at "}, {"type": "state", "state": STATE}, {"type": "points", "path": path.name},
        {"type": "text", "text": " then "}, {"type": "state", "state": [1.0] * 5},
    )  # fmt: skip
    sample = processor.sample(parse_record(json.loads(json.dumps(record)), "row 7", str(path.parent)))
    assert sample.tokens.tolist().count(259) == 2 and sample.tokens.tolist().count(258) == 5
    batch = collate([sample], processor.plan)
    wanted = PointProcessor(19, ("rgb",))(values)
    np.testing.assert_allclose(batch.media["points"].values[0, 0], wanted, atol=1e-6)
    np.testing.assert_array_equal(batch.media["state"].values[0, :2], [STATE, [1.0] * 5])

    model = MultimodalLM(CONFIG)
    params = jax.jit(model.init)(jax.random.key(0))

    @jax.jit
    def run(params, batch):
        media = model.encode_media(params, batch.media)
        return media, model.embed(params, batch.text, media)

    media, embedded = run(params, batch)
    tokens = np.asarray(batch.text.tokens[0])
    states, points = np.flatnonzero(tokens == 259), np.flatnonzero(tokens == 258)
    np.testing.assert_array_equal(embedded[0, states], media["state"].values[0, :2])
    np.testing.assert_array_equal(embedded[0, points], media["points"].values[0, :5])
    assert states[0] < points[0] and points[-1] < states[1]
    changed = batch.replace(
        media={**batch.media, "state": batch.media["state"].replace(values=batch.media["state"].values + 1)}
    )
    moved = np.flatnonzero(np.any(run(params, changed)[1][0] != embedded[0], axis=-1))
    assert set(states) <= set(moved.tolist()) and not set(points) & set(moved.tolist())


def test_records_may_list_them(processor, cloud):
    """Marks in strings, whole vectors in lists, arrays, and files of numbers."""
    path, values = cloud
    np.save(path.parent / "s.npy", np.array(STATE))
    spelt = {"messages": [{"role": "user", "content": "<state> and <state> of <points>"}]}
    for states in ({"states": [STATE, "s.npy"]}, {"state": [np.array(STATE), STATE]}):
        sample = processor.sample(parse_record({**spelt, **states, "points": ["chair.xyz"]}, "r", str(path.parent)))
        np.testing.assert_array_equal(np.stack(sample.media["state"]), [STATE, STATE])
    one = {"conversations": [{"from": "human", "value": "<state>?"}, {"from": "gpt", "value": "go"}], "state": STATE}
    np.testing.assert_array_equal(processor.sample(parse_record(one, "r")).media["state"], [STATE])
    given = processor.sample(parse_record(user({"type": "points", "points": values.tolist()}), "r"))
    np.testing.assert_array_equal(given.media["points"][0], PointProcessor(19, ("rgb",))(values))
    bare = processor.sample(parse_record(user({"type": "points", "points": values[:, :3]}), "r")).media["points"][0]
    np.testing.assert_allclose(bare[:, 3:], 0.4)


@pytest.mark.parametrize(
    "part, error, words",
    [
        ({"type": "state", "state": STATE[:4]}, VectorError, r"row 7: state 1: expected 5 numbers .*shape \[4\]"),
        ({"type": "state", "state": [*STATE[:3], float("nan"), 1]}, VectorError, "state 1: number 3 of 5 is nan"),
        ({"type": "state", "state": ["a"] * 5}, VectorError, "row 7: state 1: expected 5 numbers, got list"),
        ({"type": "state", "state": [[1.0], [2.0, 3.0]]}, VectorError, "row 7: state 1: expected 5 numbers"),
        ({"type": "state", "path": "gone.npy"}, FileNotFoundError, r"row 7: state 1: gone\.npy: no such file"),
        ({"type": "state", "state": []}, VectorError, r"row 7: state 1: expected 5 numbers"),
        ({"type": "points", "points": [[1.0, 2.0]]}, PointError, r"row 7: points 0: .*\[N, 3 \| 6\].*\[1, 2\]"),
        (
            {"type": "points", "points": [[1.0, 2.0, float("inf")], [1, 2, 3]]},
            PointError,
            "row 7: points 0: .*1 of 2 points have xyz that are not finite",
        ),
        ({"type": "points", "path": "gone.ply"}, FileNotFoundError, r"row 7: points 0: gone\.ply: no such file"),
        ({"type": "points", "points": b"ply"}, PointError, "row 7: points 0: .*got bytes"),
        ({"type": "states"}, ValueError, 'sample "row 7".*unknown part type \'states\'.*Did you mean "state"'),
        ({"type": "state"}, ValueError, r'sample "row 7": 1 state placeholder\(s\) in the text but 0 state\(s\)'),
    ],
)
def test_bad_numbers_name_the_sample_and_the_field(processor, part, error, words):
    with pytest.raises(error, match=words):
        processor.sample(parse_record(user({"type": "state", "state": STATE}, part), "row 7"))


def test_recipes_are_written_and_read(processor, tmp_path):
    processor.save(tmp_path)
    again = load_processor(
        tmp_path, CONFIG.num_tokens, media_tokens=CONFIG.media_tokens, **CONFIG.processor_options
    )
    assert again.images == processor.images
    record = user({"type": "state", "state": STATE}, {"type": "text", "text": "on"})
    first, second = (made.sample(parse_record(record, "r")) for made in (processor, again))
    np.testing.assert_array_equal(first.tokens, second.tokens)
    with pytest.raises(PointError, match='has no \'sampled\'.* Did you mean "sampling"'):
        PointProcessor.from_hf({"num_points": 3, "sampled": "first"})
    for recipe, error in (({}, PointError), ({"num_points": 0}, PointError)):
        with pytest.raises(error, match="num_points"):
            PointProcessor.from_hf(recipe)
    for recipe in ({}, {"size": 0}):
        with pytest.raises(VectorError, match="size"):
            VectorProcessor.from_hf(recipe)


@pytest.mark.parametrize("spec, port, wrong", [("palm_e:tiny", "state", [1.0]), ("x_instructblip:tiny", "points", [])])
def test_systems_that_take_them(spec, port, wrong):
    config = from_dict(TrainConfig, to_plain(load_config(spec)))
    made, shape = make_processor(config), config.model.encoders[port].item_shape
    values = np.random.default_rng(0).random(shape)
    sample = made.sample(parse_record(user({"type": port, port: values.tolist()}, {"type": "text", "text": "?"}), "r"))
    assert sample.media[port][0].shape == shape
    with pytest.raises(ValueError, match=f"r: {port} 0: "):
        made.sample(parse_record(user({"type": port, port: wrong}), "r"))
