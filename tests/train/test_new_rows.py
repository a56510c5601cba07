"""Rows for new tokens beside scipy's minimiser with torch's gradients; what is refused."""

import numpy as np
import pytest
import scipy.optimize

from mmjax.train.new_rows import fit_new_rows

torch = pytest.importorskip("torch")


def problem(n, width, count, seed=0):
    random = np.random.default_rng(seed)
    states = (3 * random.normal(size=(n, width)) + 0.5).astype(np.float32)
    targets = np.concatenate([np.arange(count), random.integers(-1, count, n - count)])
    return states, random.normal(2, 1, n).astype(np.float32), targets


def cost(kernel, states, others, targets, penalty):
    """With torch in float64: one class stands for all old tokens, its logit is `others`."""
    logits = torch.cat([torch.tensor(others, dtype=torch.float64)[:, None], torch.tensor(states).double() @ kernel], 1)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets + 1))
    power = float(np.mean(np.square(states, dtype=np.float64)))
    return loss + penalty / 2 * power * kernel.square().sum()


@pytest.mark.parametrize("sizes", [(60, 7, 3), (200, 30, 1), (25, 40, 4)])
@pytest.mark.parametrize("penalty", [1e-2, 0.3])
def test_equals_scipys_minimum(sizes, penalty):
    data = problem(*sizes)
    shape = (sizes[1], sizes[2])

    def both(flat):
        kernel = torch.tensor(flat.reshape(shape), requires_grad=True)
        value = cost(kernel, *data, penalty)
        value.backward()
        return value.item(), kernel.grad.numpy().ravel()

    wanted = scipy.optimize.minimize(both, np.zeros(np.prod(shape)), jac=True, method="L-BFGS-B", tol=1e-12)
    found = fit_new_rows(*data, sizes[2], penalty)
    assert found.shape == shape and found.dtype == np.float32
    assert both(found.astype(np.float64).ravel())[0] == pytest.approx(wanted.fun, rel=1e-5)
    np.testing.assert_allclose(found, wanted.x.reshape(shape), atol=2e-3 * np.abs(wanted.x).max())


def test_no_matter_of_scale():
    states, others, targets = problem(50, 6, 2)
    one, other = fit_new_rows(states, others, targets, 2, 0.1), fit_new_rows(states * 100, others, targets, 2, 0.1)
    np.testing.assert_allclose(other * 100, one, atol=1e-4)


def test_what_can_be_told_apart_is():
    random = np.random.default_rng(1)
    targets = np.repeat([-1, 0, 1], 30)
    states = (random.normal(size=(3, 12))[targets + 1] + 0.1 * random.normal(size=(90, 12))).astype(np.float32)
    others = np.full(90, 25.0, np.float32)
    logits = np.concatenate([others[:, None], states @ fit_new_rows(states, others, targets, 2)], axis=1)
    np.testing.assert_array_equal(logits.argmax(1) - 1, targets)


def test_bad_input():
    states, others, targets = problem(20, 5, 2)
    with pytest.raises(ValueError, match=r"states \(20, 5\), 19 others and 20 targets"):
        fit_new_rows(states, others[:-1], targets, 2)
    with pytest.raises(ValueError, match=r"targets are .*wanted each of 0 to 2"):
        fit_new_rows(states, others, targets, 3)
    with pytest.raises(ValueError, match=r"wanted each of 0 to 0"):
        fit_new_rows(states, others, targets, 1)
    with pytest.raises(ValueError, match="penalty must be above 0"):
        fit_new_rows(states, others, targets, 2, 0.0)
    with pytest.raises(ValueError, match="finite"):
        fit_new_rows(np.where(states > 3, np.nan, states), others, targets, 2)
