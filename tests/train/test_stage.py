"""Stages: rules over paths, the split and its inverse, the table, the hashes."""

import hashlib

import numpy as np
import pytest

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.paths import unflatten
from mmjax.train.stage import (
    StageConfig,
    certificate,
    fingerprint,
    flatten,
    freeze_rows,
    freeze_table,
    multipliers,
    split,
)


def params():
    rng = np.random.default_rng(0)

    def leaf(*shape):
        return rng.normal(size=shape).astype(np.float32)

    q = {"kernel": leaf(3, 5, 2, 4), "lora_a": leaf(3, 5, 2), "lora_b": leaf(3, 2, 2, 4)}
    return {
        "backbone": {"blocks": {"attn": {"q": q}, "norm": {"scale": leaf(3, 5)}}, "embed": {"embedding": leaf(7, 5)}},
        "encoders": {"image": {"patch": {"kernel": leaf(2, 2, 3, 6)}}},
        "projectors": {"image": {"out": {"kernel": leaf(6, 5), "bias": leaf(5)}}},
    }


def stage(*rules, **options):
    return StageConfig(name="s", steps=3, batch_size=4, trainable=rules, **options)


def test_first_match_decides_and_no_match_is_frozen():
    rules = ("backbone/.*/q/kernel", "freeze", 1.0), ("backbone/blocks/.*", "train", 0.5), ("proj.*", "train")
    assert multipliers(params(), stage(*rules)) == {
        "backbone/blocks/attn/q/lora_a": 0.5,
        "backbone/blocks/attn/q/lora_b": 0.5,
        "backbone/blocks/norm/scale": 0.5,
        "projectors/image/out/bias": 1.0,
        "projectors/image/out/kernel": 1.0,
    }


def test_split_and_combine_are_inverse():
    tree = params()
    trainable, frozen = split(tree, stage(("projectors/.*", "train")))
    assert set(trainable) == {"projectors/image/out/bias", "projectors/image/out/kernel"}
    assert not set(trainable) & set(frozen)
    back = unflatten(trainable, frozen)
    assert flatten(back).keys() == flatten(tree).keys()
    assert all(flatten(back)[path] is leaf for path, leaf in flatten(tree).items())
    with pytest.raises(ValueError, match="projectors/image/out/bias"):
        unflatten(trainable, trainable)


@pytest.mark.parametrize(
    "rules, message",
    [
        ([("projectors/imag/.*", "train")], "projectors/imag/.*projectors/image/out"),
        ([("projectors/image", "train")], 'a part of 2, such as .*write ".\\*"'),
        ([(".*", "freeze"), ("projectors/.*", "train")], "earlier rules have taken all 2 paths"),
        ([(".*", "freeze")], "trains nothing"),
        ([], "trains nothing"),
    ],
)
def test_rules_that_do_nothing_are_errors(rules, message):
    with pytest.raises(ConfigError, match=message):
        split(params(), stage(*rules))


def test_unstacked_blocks_are_an_error():
    tree = {"backbone": {"blocks": ({"w": np.ones(3)},), "norm": {"scale": np.ones(3)}}}
    with pytest.raises(ConfigError, match="backbone/blocks is a tuple of 1 layers"):
        split(tree, stage((".*", "train")))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"trainable": [["(", "train"]]}, "no regular expression"),
        ({"trainable": [["a", "learn", 1.0]]}, "'learn' is not one of"),
        ({"trainable": [["a", "train", 0.0]]}, "multiplier must be positive"),
        ({"schedule": "cosin"}, 'Did you mean "cosine"'),
        ({"batch_size": 6, "accumulate": 4}, "accumulate 4 does not divide batch_size 6"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"warmup_steps": 4}, "warmup_steps 4 is more than its 3 steps"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"name": "a/b"}, "folder"),
        ({"lerning_rate": 1.0}, 'Did you mean "learning_rate"'),
    ],
)
def test_a_config_that_does_not_fit_says_why(changes, message):
    base = {"name": "s", "steps": 3, "batch_size": 4, "trainable": [["a", "train"]]}
    with pytest.raises(ConfigError, match=message):
        from_dict(StageConfig, {**base, **changes})


def test_a_config_survives_json():
    lora = {"rank": 4, "alpha": 8.0}
    first = from_dict(
        StageConfig, {"name": "s", "steps": 3, "batch_size": 4, "trainable": [["a", "train"]], "lora": lora}
    )
    assert first.trainable == (("a", "train", 1.0),)
    assert from_dict(StageConfig, to_dict(first)) == first


def test_table_counts_every_parameter_once():
    config = stage((".*lora_[ab]", "train", 1.0), ("projectors/.*", "train", 0.5))
    rows = freeze_rows(params(), config)
    total = sum(leaf.size for leaf in flatten(params()).values())
    assert sum(row["parameters"] for row in rows) == total
    assert {(row["group"], row["state"], row["multiplier"]) for row in rows} == {
        ("backbone/blocks", "frozen", None),
        ("backbone/blocks (LoRA)", "trained", 1.0),
        ("backbone/embed", "frozen", None),
        ("encoders/image", "frozen", None),
        ("projectors/image", "trained", 0.5),
    }
    table = freeze_table(params(), config)
    trained = 3 * 5 * 2 + 3 * 2 * 2 * 4 + 6 * 5 + 5
    assert [line.split() for line in table.splitlines()][-2:] == [
        ["total", "trained", "4", str(trained)],
        ["total", "frozen", "4", str(total - trained)],
    ]


def test_fingerprint_is_sha256_over_paths_and_bytes():
    flat = {"a/b/y": np.arange(6, dtype=np.int32).reshape(2, 3).T, "a/b/x": np.float32([1.5])}
    digest = hashlib.sha256()
    digest.update(b"a/b/x float32 (1,)\n" + flat["a/b/x"].tobytes())
    digest.update(b"a/b/y int32 (3, 2)\n" + flat["a/b/y"].tobytes())
    assert fingerprint(flat) == {"a/b": digest.hexdigest()}


def test_certificate_names_what_moved():
    _, frozen = split(params(), stage(("projectors/.*", "train")))
    before = fingerprint(frozen)
    text = certificate(before, fingerprint(frozen))
    assert all(group in text for group in ("backbone/embed", "encoders/image"))
    changed = dict(frozen)
    changed["encoders/image/patch/kernel"] = np.nextafter(changed["encoders/image/patch/kernel"], 9)
    with pytest.raises(RuntimeError, match="changed while training: encoders/image$"):
        certificate(before, fingerprint(changed))
