"""Nested and flat trees are each other's inverse."""

import jax
import numpy as np
import pytest

from mmjax.paths import flatten, unflatten

TREE = {"b": {"z": 1, "a": {"k": 2}}, "a": 3, "c": {"t": (4, 5)}}


def test_paths_are_those_of_jax_and_sorted():
    flat = flatten({key: TREE[key] for key in "ba"})
    theirs = jax.tree_util.tree_leaves_with_path({key: TREE[key] for key in "ba"})
    assert list(flat.items()) == [(jax.tree_util.keystr(p, simple=True, separator="/"), leaf) for p, leaf in theirs]


def test_unflatten_undoes_flatten_and_joins_parts():
    assert unflatten(flatten(TREE)) == TREE
    flat = flatten(TREE)
    halves = dict(list(flat.items())[:2]), dict(list(flat.items())[2:])
    assert unflatten(*halves) == TREE
    assert flatten({}) == {} and unflatten() == {}


def test_a_path_in_two_parts_is_an_error():
    with pytest.raises(ValueError, match="b/a/k"):
        unflatten(flatten(TREE), {"b/a/k": np.zeros(1)})
