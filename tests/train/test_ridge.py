"""The closed-form start of a projector, against plain gradient descent on the same objective."""

import numpy as np
import pytest

from mmjax.train.ridge import fit_ridge


def data(n=41, inputs=7, outputs=5, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, inputs)) * random.uniform(0.5, 3, inputs) + random.normal(size=inputs)
    return x, x @ random.normal(size=(inputs, outputs)) + random.normal(size=(n, outputs)) + 2


def descend(x, y, penalty):
    """Minimises the objective step by step, bias included."""
    n, inputs = x.shape
    weight = penalty * n * x.var(0).mean()
    kernel, bias = np.zeros((inputs, y.shape[1])), np.zeros(y.shape[1])
    rate = 0.4 / (np.linalg.norm(np.c_[x, np.ones(n)], 2) ** 2 + weight)
    for _ in range(60_000):
        error = x @ kernel + bias - y
        kernel -= rate * (x.T @ error + weight * kernel)
        bias -= rate * error.sum(0)
    return kernel, bias


@pytest.mark.parametrize("penalty", [0.03, 0.7])
def test_direction_is_the_minimum_and_spread_is_the_targets(penalty):
    x, y = data()
    kernel, bias = descend(x, y, penalty)
    ours = fit_ridge(x, y, penalty)
    stretch = y_spread(y) / y_spread(x @ kernel)
    np.testing.assert_allclose(ours.kernel, kernel * stretch, rtol=1e-4, atol=1e-5)
    prediction = x @ ours.kernel + ours.bias
    np.testing.assert_allclose(prediction.mean(0), y.mean(0), atol=1e-5)
    np.testing.assert_allclose(y_spread(prediction), y_spread(y), rtol=1e-5)
    # Before it is stretched, the prediction at the mean feature is the mean target, as with descent.
    np.testing.assert_allclose(x.mean(0) @ kernel + bias, y.mean(0), atol=1e-6)


def y_spread(y):
    return (y - y.mean(0)).std()


def test_unit_divides_and_scale_of_features_does_not_matter():
    x, y = data(seed=1)
    ours, scaled, by_unit = fit_ridge(x, y, 0.2), fit_ridge(100 * x, y, 0.2), fit_ridge(x, y, 0.2, unit=0.04)
    np.testing.assert_allclose(scaled.kernel * 100, ours.kernel, rtol=1e-4)
    np.testing.assert_allclose(by_unit.kernel * 0.04, ours.kernel, rtol=1e-5)
    np.testing.assert_allclose(by_unit.bias * 0.04, ours.bias, rtol=1e-5)


def test_more_features_than_rows():
    x, y = data(n=5, inputs=30, outputs=3)
    assert np.isfinite(fit_ridge(x, y, 0.1).kernel).all()


def test_wrong_input_is_named():
    x, y = data()
    with pytest.raises(ValueError, match="41 features for 40 targets"):
        fit_ridge(x, y[1:], 0.1)
    with pytest.raises(ValueError, match="penalty"):
        fit_ridge(x, y, 0.0)
