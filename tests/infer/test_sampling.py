"""Sampling against transformers' logits processors, and draws against the distribution they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.infer import sampling
from mmjax.infer.generate import GenerateOptions

VOCAB = 37


def logits(batch: int, seed: int = 0, vocab: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, vocab)).astype(np.float32) * 3


def theirs(processor, values: np.ndarray, tokens=None) -> np.ndarray:
    torch = pytest.importorskip("torch")
    tokens = torch.zeros((len(values), 1), dtype=torch.long) if tokens is None else torch.tensor(tokens)
    return processor(tokens, torch.tensor(values)).numpy()


@pytest.mark.parametrize("k", [1, 5, VOCAB, 1000])
def test_top_k_keeps_what_transformers_keeps(k):
    warpers = pytest.importorskip("transformers.generation.logits_process")
    values = logits(4)
    values[1] = np.round(values[1])  # ties
    np.testing.assert_array_equal(sampling.keep_top_k(values, k), theirs(warpers.TopKLogitsWarper(k), values))


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_what_transformers_keeps(p):
    warpers = pytest.importorskip("transformers.generation.logits_process")
    values = logits(6, seed=1, vocab=211)
    np.testing.assert_array_equal(sampling.keep_top_p(values, p), theirs(warpers.TopPLogitsWarper(p), values))


def test_top_p_after_top_k_counts_what_top_k_left():
    warpers = pytest.importorskip("transformers.generation.logits_process")
    values = logits(5, seed=2)
    expected = theirs(warpers.TopPLogitsWarper(0.7), theirs(warpers.TopKLogitsWarper(7), values))
    np.testing.assert_array_equal(sampling.keep_top_p(sampling.keep_top_k(values, 7), 0.7), expected)


def test_top_p_keeps_every_token_that_ties_with_the_last_one():
    values = np.log(np.array([[0.4, 0.2, 0.2, 0.1, 0.1]], np.float32))
    assert np.isfinite(sampling.keep_top_p(values, 0.5)).tolist() == [[True, True, True, False, False]]


def test_repetition_penalty_is_that_of_transformers():
    warpers = pytest.importorskip("transformers.generation.logits_process")
    values, tokens = logits(3, seed=3), np.array([[1, 5, 5], [0, 36, 2], [7, 8, 9]])
    seen = np.zeros(values.shape, bool)
    seen[np.arange(3)[:, None], tokens] = True
    expected = theirs(warpers.RepetitionPenaltyLogitsProcessor(1.7), values, tokens)
    np.testing.assert_allclose(sampling.penalise_repeats(values, seen, 1.7), expected, rtol=1e-6)


def test_stop_ids_are_forbidden_until_the_minimum_length_and_filler_ids_touch_nothing():
    values = jnp.zeros((2, VOCAB))
    ids = np.array([3, 9, sampling.NO_STOP_ID], np.int32)
    forbidden = np.asarray(sampling.forbid(values, ids, jnp.bool_(True)))
    assert np.flatnonzero(np.isinf(forbidden[0])).tolist() == [3, 9]
    np.testing.assert_array_equal(sampling.forbid(values, ids, jnp.bool_(False)), values)


def draws(options: GenerateOptions, values: np.ndarray, count: int) -> np.ndarray:
    """`count` independent draws from one row of logits: each with the key of another row."""
    branches, numbers = options.split()
    keys = sampling.row_keys(np.uint32(options.seed), np.arange(count, dtype=np.int32))
    wide = jnp.broadcast_to(jnp.asarray(values), (count, values.shape[-1]))
    return np.asarray(jax.jit(sampling.sample, static_argnums=2)(wide, keys, branches, numbers, 3))


def chi_square(tokens: np.ndarray, probabilities: np.ndarray) -> tuple[float, int]:
    counts = np.bincount(tokens, minlength=len(probabilities))
    assert counts[probabilities == 0].sum() == 0, "drew a token that was cut off"
    kept = probabilities > 0
    expected = probabilities[kept] * len(tokens)
    return float(((counts[kept] - expected) ** 2 / expected).sum()), int(kept.sum()) - 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 4},
        {"top_p": 0.8},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.6},
    ],
)
def test_draws_follow_the_distribution(changes):
    values = np.linspace(-1.0, 2.0, 9, dtype=np.float32)[None, [4, 0, 8, 2, 6, 1, 7, 3, 5]]
    scaled = values[0].astype(np.float64) / changes.get("temperature", 1.0)
    order = np.argsort(-scaled)
    order = order[: changes.get("top_k", 9)]
    probabilities = np.zeros(9)
    probabilities[order] = np.exp(scaled[order]) / np.exp(scaled[order]).sum()
    if "top_p" in changes:
        before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[before >= changes["top_p"]]] = 0
        probabilities /= probabilities.sum()
    tokens = draws(GenerateOptions(do_sample=True, seed=11, **changes), values, 4000)
    statistic, freedom = chi_square(tokens, probabilities)
    # Six standard deviations of the chi-square distribution: a right sampler with this seed stays far below.
    assert statistic < freedom + 6 * np.sqrt(2 * freedom)


def test_draws_from_a_large_vocabulary_follow_the_distribution():
    values = np.random.default_rng(7).normal(size=(1, 700)).astype(np.float32)
    values[0, 500:] = -np.inf
    values[0, :3] = -np.inf
    probabilities = np.exp(values[0].astype(np.float64))
    probabilities /= probabilities.sum()
    tokens = draws(GenerateOptions(do_sample=True, seed=3), values, 20000)
    statistic, freedom = chi_square(tokens, probabilities)
    assert abs(statistic - freedom) < 6 * np.sqrt(2 * freedom)


def test_one_likely_token_among_impossible_ones_is_always_drawn():
    for place in (0, 255, 256, 699):
        values = np.full((1, 700), -np.inf, np.float32)
        values[0, place] = -50.0
        assert set(draws(GenerateOptions(do_sample=True), values, 200).tolist()) == {place}


def test_the_chi_square_bound_sees_a_wrong_temperature():
    values = np.linspace(-1.0, 2.0, 9, dtype=np.float32)[None]
    right = np.exp(values[0].astype(np.float64))
    tokens = draws(GenerateOptions(do_sample=True, temperature=1.2, seed=11), values, 4000)
    statistic, freedom = chi_square(tokens, right / right.sum())
    assert statistic > freedom + 6 * np.sqrt(2 * freedom)


def test_another_seed_or_step_draws_other_tokens_and_the_same_draws_the_same():
    values = np.zeros((1, VOCAB), np.float32)
    first = draws(GenerateOptions(do_sample=True, seed=1), values, 64)
    np.testing.assert_array_equal(first, draws(GenerateOptions(do_sample=True, seed=1), values, 64))
    assert (first != draws(GenerateOptions(do_sample=True, seed=2), values, 64)).mean() > 0.8


@pytest.mark.slow
def test_a_row_draws_the_same_whatever_stands_beside_it():
    values = logits(5, seed=4)
    branches, numbers = GenerateOptions(do_sample=True, top_p=0.95).split()
    keys = sampling.row_keys(np.uint32(9), np.arange(5, dtype=np.int32))
    together = sampling.sample(values, keys, branches, numbers, 2)
    for row in range(5):
        alone = sampling.sample(values[row : row + 1], keys[row : row + 1], branches, numbers, 2)
        assert alone[0] == together[row]


def test_greedy_takes_the_first_of_equal_logits():
    assert sampling.greedy(jnp.array([[0.0, 2.0, 2.0], [-1.0, -3.0, -2.0]])).tolist() == [1, 0]
