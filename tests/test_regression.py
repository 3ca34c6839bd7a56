import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit import _neural_tangents as nt
from ntkit import data, regression
from tests.precision import in_double
from tests.solvers.gaussian import Gaussian

ERF = ntkit.ntk(ntkit.fc(1, activation="erf"))
RELU = ntkit.ntk(ntkit.fc(1))
LINEAR = ntkit.nngp(ntkit.fc(0, W_std=1.0, b_std=None))
RNG = np.random.default_rng(0)
X, Y, TEST = RNG.normal(size=(6, 3)), RNG.normal(size=(6, 2)), RNG.normal(size=(4, 3))
COPIES = X[[0, 0, 1, 2, 3, 3]]
# More inputs than dimensions: a linear kernel's matrix has rank 3.
DEFICIENT, TARGETS = RNG.normal(size=(12, 3)), RNG.normal(size=(12, 2))


def float32(*arrays):
    return (jnp.asarray(array, jnp.float32) for array in arrays)


# Ridge regression.


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 2.0])
def test_fit_equals_numpy(ridge: float, x64: None) -> None:
    gram, cross = np.asarray(ERF(X)), np.asarray(ERF(TEST, X))
    expected = np.linalg.solve(gram + ridge * np.trace(gram) / 6 * np.eye(6), Y)
    predictor = regression.fit(ERF, X, Y, ridge)
    assert predictor.ridge == ridge
    np.testing.assert_allclose(predictor.weights, expected, rtol=1e-9)
    np.testing.assert_allclose(predictor(TEST), cross @ expected, rtol=1e-9)


def test_the_ridge_is_relative() -> None:
    x, y = float32(X, Y)
    one, thousand = (regression.fit(scale * ERF, x, y, 0.1)(x) for scale in (1.0, 1000.0))
    np.testing.assert_allclose(one, thousand, rtol=1e-4)


def test_float32_stays_float32() -> None:
    x, y = float32(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor = regression.fit(RELU, x, y)
    assert {leaf.dtype for leaf in (predictor.weights, predictor.ridge, predictor(x))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(predictor(x), y, atol=1e-3)


def test_a_failed_factorization_is_retried_and_warned_of() -> None:
    x, y = float32(DEFICIENT, TARGETS)
    with pytest.warns(regression.RidgeWarning, match="could not be factorized with 0; .* was used instead") as caught:
        predictor = regression.fit(LINEAR, x, y, 0.0)
    assert caught[0].filename == __file__
    assert 1e-8 < float(predictor.ridge) < 1e-4
    assert np.isfinite(predictor.weights).all()
    # The solution at that ridge, as exactly as float32 can tell it: its residual is rounding beside K times weights.
    gram, weights = np.asarray(LINEAR(x), np.float64), np.asarray(predictor.weights, np.float64)
    residual = gram @ weights + float(predictor.ridge) * np.trace(gram) / 12 * weights - y
    assert np.abs(residual).max() < 1e-5 * (np.abs(gram) @ np.abs(weights)).max()

    compiled = jax.jit(lambda ridge: regression.fit(LINEAR, x, y, ridge))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        traced = compiled(0.0)
        assert traced.ridge == predictor.ridge
        assert compiled(0.5).ridge == 0.5
        gradient = jax.jit(jax.grad(lambda x: jnp.sum(regression.fit(LINEAR, x, y, 0.0)(x) ** 2)))(x)
    assert np.isfinite(gradient).all()


def test_a_ridge_too_small_for_the_precision_is_multiplied_by_ten() -> None:
    matrix = jnp.diag(jnp.array([3.0, -1e-4, 1.0]))  # indefinite by 1e-4 / (4/3) of its mean diagonal
    _, used = jax.jit(regression.solve)(matrix, jnp.ones((3, 1)), 1e-6)
    np.testing.assert_allclose(used, 1e-4, rtol=1e-5)
    weights, used = jax.jit(regression.solve)(-1e9 * jnp.eye(3), jnp.ones((3, 1)), 1e-6)
    assert not np.isfinite(weights).any()  # no Gram matrix at all


def test_vmap_over_the_ridge() -> None:
    x, y = float32(DEFICIENT, TARGETS)
    ridges = jnp.array([0.0, 1e-2, 1.0])
    predictors = jax.jit(jax.vmap(lambda ridge: regression.fit(LINEAR, x, y, ridge)))(ridges)
    assert predictors.ridge[0] > 0
    np.testing.assert_array_equal(predictors.ridge[1:], ridges[1:])
    for i in (1, 2):
        expected = regression.fit(LINEAR, x, y, float(ridges[i]))
        np.testing.assert_allclose(predictors.weights[i], expected.weights, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("solve", [regression.fit, functools.partial(regression.flow, time=1.0)])
@pytest.mark.parametrize("which", ["x", "y"])
def test_never_a_silent_nan(solve, which: str) -> None:
    arrays = dict(zip("xy", float32(X, Y), strict=True))
    for bad in (np.nan, np.inf):
        broken = arrays | {which: arrays[which].at[2, 1].set(bad)}
        with pytest.raises(FloatingPointError, match="not finite"):
            solve(ERF, broken["x"], broken["y"])


# Gradient flow.


@pytest.mark.parametrize("time", [0.0, 0.3, 30.0, 1e4, np.inf])
def test_flow_equals_neural_tangents(time: float, x64: None) -> None:
    pytest.importorskip("neural_tangents")
    gram, cross = ERF(X), ERF(TEST, X)
    predict = nt.predict.gradient_descent_mse(gram, jnp.asarray(Y), learning_rate=0.7)
    _, expected = predict(None if np.isinf(time) else time, jnp.zeros((6, 2)), jnp.zeros((4, 2)), cross)
    predictor = regression.flow(ERF, X, Y, time, learning_rate=0.7)
    assert predictor.ridge == 0
    # neural-tangents adds 1e-12 of its own to the diagonal.
    np.testing.assert_allclose(predictor(TEST), expected, rtol=1e-6, atol=1e-9)


def test_flow_equals_numpy(x64: None) -> None:
    gram = np.asarray(ERF(COPIES))
    eigenvalues, vectors = np.linalg.eigh(gram)
    positive = eigenvalues > 1e-10
    for time in (0.3, 1e4):
        phi = np.where(positive, -np.expm1(-eigenvalues * time / 12) / np.where(positive, eigenvalues, 1), time / 12)
        expected = gram @ vectors @ (phi[:, None] * (vectors.T @ Y))
        np.testing.assert_allclose(regression.flow(ERF, COPIES, Y, time)(COPIES), expected, rtol=1e-8)
    # Two copies with two targets: in the limit, their mean.
    np.testing.assert_allclose(regression.flow(ERF, COPIES, Y, np.inf)(COPIES)[0], Y[:2].mean(0), rtol=1e-6)


def test_flow_ends_where_the_ridge_vanishes(x64: None) -> None:
    limit, interpolant = regression.flow(ERF, X, Y, jnp.inf), regression.fit(ERF, X, Y, 0.0)
    np.testing.assert_allclose(limit.weights, interpolant.weights, rtol=1e-7)


@pytest.mark.parametrize("x", [X, COPIES, np.eye(6, 3)], ids=["generic", "copies", "orthogonal and zero"])
def test_flow_in_float32_at_all_times(x: np.ndarray) -> None:
    x, y = float32(x, Y)

    @jax.jit
    def loss(x, time):
        return jnp.sum(regression.flow(RELU, x, y, time)(x) ** 2)

    both = jax.jit(jax.value_and_grad(loss, (0, 1)))
    for time in (0.0, 1e-6, 1.0, 1e6, 1e15, 1e20, 1e30, 3e38, np.inf):
        value, gradient = both(x, jnp.float32(time))
        assert np.isfinite(value), time
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)), time
        assert value <= 1.1 * jnp.sum(y**2), time


# Derivatives, in float64, in both modes.


def value_and_derivatives(f):
    """Compile f(parameters) with its derivative along a direction, in forward and in reverse mode."""

    def compiled(at, along):
        value, forward = jax.jvp(f, (at,), (along,))
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), jax.grad(f)(at), along)
        return value, forward, sum(jax.tree.leaves(products))

    return jax.jit(compiled)


@value_and_derivatives
def fitted(p):
    return jnp.sum(jnp.sin(regression.fit(p["kernel"], p["x"], p["y"], p["ridge"])(jnp.asarray(TEST))))


@value_and_derivatives
def flowed(p):
    return jnp.sum(jnp.sin(regression.flow(p["kernel"], p["x"], p["y"], p["time"])(jnp.asarray(TEST))))


def check_derivatives(compiled, parameters, step=1e-5) -> None:
    """Compare with central differences along one random direction for each leaf."""
    rng = np.random.default_rng(1)
    # A dtype asked for: weakly typed scalars would become others when moved, and compile again.
    parameters = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), parameters)
    leaves, tree = jax.tree.flatten(parameters)
    for i in range(len(leaves)):
        along = [jnp.zeros_like(leaf) for leaf in leaves]
        along[i] = jnp.asarray(rng.normal(size=leaves[i].shape))
        along = jax.tree.unflatten(tree, along)
        plus, minus = (
            compiled(jax.tree.map(lambda a, b, by=by: a + by * b, parameters, along), along)[0] for by in (step, -step)
        )
        _, forward, reverse = compiled(parameters, along)
        np.testing.assert_allclose(reverse, (plus - minus) / (2 * step), rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(forward, reverse, rtol=1e-8, atol=1e-12)


OCTAHEDRON = np.concatenate([np.eye(3), -np.eye(3)])


@pytest.mark.parametrize(
    "kernel", [Gaussian(0.3), pytest.param(RELU, marks=pytest.mark.slow)], ids=["gaussian", "relu"]
)
def test_derivatives_of_fit(kernel, x64: None) -> None:
    """In the support inputs, the targets, the ridge, and the hyper-parameters of the kernel."""
    check_derivatives(fitted, {"kernel": kernel, "x": X, "y": Y, "ridge": 0.05})


@pytest.mark.slow
def test_derivatives_of_flow_in_the_layers_of_a_network(x64: None) -> None:
    check_derivatives(flowed, {"kernel": ERF, "x": X, "y": Y, "time": 5.0})


@pytest.mark.parametrize(
    ("x", "time"),
    [(X, 0.5), (X, 3e3), (OCTAHEDRON, 20.0), (OCTAHEDRON, 1e-3), (COPIES, 0.1), (COPIES, 5.0)],
    ids=["early", "late", "equal eigenvalues", "all of phi alike", "copies", "copies, later"],
)
def test_derivatives_of_flow(x: np.ndarray, time: float, x64: None) -> None:
    """Where the eigenvectors themselves have no derivative, too."""
    check_derivatives(flowed, {"kernel": Gaussian(0.3), "x": x, "y": Y, "time": time})


def test_derivatives_of_the_limit(x64: None) -> None:
    def limit(p):
        return fitted_sum(regression.flow(p["kernel"], p["x"], p["y"], jnp.inf))

    def interpolant(p):
        return fitted_sum(regression.fit(p["kernel"], p["x"], p["y"], 0.0))

    def fitted_sum(predictor):
        return jnp.sum(jnp.sin(predictor(jnp.asarray(TEST))))

    parameters = {"kernel": Gaussian(0.3), "x": jnp.asarray(X), "y": jnp.asarray(Y)}
    found, expected = jax.jit(jax.grad(limit))(parameters), jax.jit(jax.grad(interpolant))(parameters)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


# Accuracy.


def test_accuracy_of_classes() -> None:
    x = np.arange(23, dtype=np.float32)[:, None] % 3
    labels = np.arange(23) % 3
    labels[[4, 20, 22]] = (labels[[4, 20, 22]] + 1) % 3
    sizes = []

    def model(x):
        sizes.append(len(x))
        return -((x - jnp.arange(3.0)) ** 2)

    for batch_size in (1, 5, 23, 100):
        assert data.accuracy(model, x, labels, batch_size=batch_size) == 20 / 23
        assert len(set(sizes)) == 1  # one shape, one compilation, the partial last batch included
        sizes.clear()


def test_accuracy_of_one_output() -> None:
    x = np.array([[-2.0], [-1.0], [1.0], [2.0]], np.float32)
    assert data.accuracy(lambda x: x, x, np.array([-1, -1, 1, 1])) == 1
    assert data.accuracy(lambda x: x, x, np.array([-1, 1, 1, 1]), batch_size=3) == 0.75


def test_a_predictor_is_a_pytree() -> None:
    x, y = float32(X, Y)
    predictor = regression.fit(ERF, x, y)
    np.testing.assert_allclose(jax.jit(lambda model, x: model(x))(predictor, x), predictor(x), atol=1e-5)
    assert predictor(x[:1]).shape == (1, 2)
    with pytest.raises(ValueError, match=r"x: got inputs of shape \(2,\), expected \(3,\) as in the support"):
        predictor(x[:, :2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: regression.fit(ERF, X, Y[:5]), r"y: got shape \(5, 2\), expected \(6, outputs\)"),
        (lambda: regression.fit(ERF, X, Y[:, 0]), r"y: got shape \(6,\), expected"),
        (lambda: regression.fit(ERF, X, Y[:, :0]), r"y: got shape \(6, 0\), expected"),
        (lambda: regression.fit(ERF, X, np.ones((6, 2), int)), "y: got dtype int64, expected floats"),
        (lambda: regression.fit(ERF, X.astype(int), Y), "x: got dtype int64, expected floats"),
        (lambda: regression.fit(ERF, X[0], Y), r"x: got shape \(3,\), expected"),
        (lambda: regression.fit(ntkit.fc(1), X, Y), "kernel: got Architecture, expected an ntkit"),
        (lambda: regression.fit(ERF, X, Y, -1e-6), "ridge: got -1e-06, expected a finite number of at least 0"),
        (lambda: regression.fit(ERF, X, Y, np.nan), "ridge: got nan"),
        (lambda: regression.fit(ERF, X, Y, None), "ridge: got None"),
        (lambda: regression.flow(ERF, X, Y, "late"), "time: got 'late'"),
        (lambda: regression.fit(ERF, X, Y, np.ones(2)), "ridge: got float64 of shape"),
        (lambda: regression.flow(ERF, X, Y[:5], 1.0), "y: got shape"),
        (lambda: regression.flow(ERF, X, Y, -1.0), "time: got -1.0, expected a number of at least 0"),
        (lambda: regression.flow(ERF, X, Y, np.nan), "time: got nan"),
        (lambda: regression.flow(ERF, X, Y, 1.0, learning_rate=-1), "learning_rate: got -1"),
        (lambda: data.accuracy(ERF, X, Y), r"labels: got float64 of shape \(6, 2\), expected integers"),
        (lambda: data.accuracy(ERF, X, np.zeros(5, int)), r"labels: got int64 of shape \(5,\)"),
        (lambda: data.accuracy(ERF, X[:0], np.zeros(0, int)), "x: got no inputs"),
        (lambda: data.accuracy(ERF, X, np.zeros(6, int), batch_size=0), "batch_size: got 0"),
        (lambda: data.accuracy(lambda x: x[:, 0], X, np.zeros(6, int)), r"model: got outputs of shape \(6,\)"),
        (lambda: data.accuracy(lambda x: x, X, np.full(6, 3)), "labels: got 3 to 3, expected 0 to 2"),
        (lambda: data.accuracy(lambda x: x[:, :1], X, np.arange(6) % 2), "one output expects labels −1 and"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_accuracy_of_a_broken_model() -> None:
    with pytest.raises(FloatingPointError, match="the model's outputs: not finite"):
        data.accuracy(lambda x: jnp.nan * x, X, np.zeros(6, int))


@pytest.mark.parametrize("n", [4, 12])
def test_infinite_gram_matrices_are_no_fit(n: int) -> None:
    x = np.full((n, 3), 1e19, np.float32) * np.arange(1, n + 1, dtype=np.float32)[:, None]
    kernel, y = ntkit.ntk(ntkit.fc(1)), np.eye(n, dtype=np.float32)
    one = np.eye(n, dtype=np.float32)
    one[0, 1] = one[1, 0] = np.inf
    with pytest.raises(FloatingPointError):
        regression.fit(kernel, x, y)
    with pytest.raises(FloatingPointError):
        regression.fit(kernel, x / 1e19, y, gram=one)
    with pytest.raises(FloatingPointError):
        regression.flow(kernel, x, y, np.inf)
    assert np.isnan(regression.solve(one, y, 1e-3)[0]).all()


def test_a_gram_matrix_is_symmetric() -> None:
    with pytest.raises(ValueError, match=r"gram: got one that is not symmetric, expected the Gram matrix of x"):
        regression.fit(ntkit.ntk(ntkit.fc(1)), np.eye(2), np.eye(2), gram=np.array([[1.0, 0.5], [0.1, 1.0]]))


@pytest.mark.parametrize("n", [10, 50])
@pytest.mark.parametrize("first", [0.0, 20.0, 1950.0])
def test_fits_on_lines_are_right_to_a_percent_or_warn(n: int, first: float) -> None:
    t = np.linspace(0, 1, n)[:, None]
    x, y = (first + 10 * t).astype(np.float32), np.sin(6 * t)
    kernel = ntkit.ntk(ntkit.fc(1))
    between = ((x[1:] + x[:-1]) / 2).astype(np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = regression.fit(kernel, x, y.astype(np.float32), 1e-4)(between)
    with in_double():
        exact = np.asarray(regression.fit(kernel, x.astype(np.float64), y, 1e-4)(between.astype(np.float64)))
    assert np.abs(np.asarray(found) - exact).max() < 0.01 or any(
        w.category is regression.RoundingWarning for w in caught
    )


def test_a_line_that_float32_resolves_gives_no_warning() -> None:
    x, y = np.float32([[20], [21]]), np.float32([[1], [-1]])
    kernel = ntkit.ntk(ntkit.fc(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = regression.fit(kernel, x, y, 1e-6)(x)
        late = regression.flow(kernel, x, y, np.inf)(x)
    # To 40 digits.
    np.testing.assert_allclose(found, [[0.963], [-0.965]], atol=0.01)
    np.testing.assert_allclose(late, y, atol=0.01)


def test_what_float32_hides_from_a_flow_is_said() -> None:
    x, y = np.float32([[20.0], [20.001], [20.002]]), np.float32([[1], [-1], [1]])
    with pytest.warns(regression.RoundingWarning, match=r"flow: float32 does not resolve .*jax_enable_x64"):
        regression.flow(ntkit.ntk(ntkit.fc(1)), x, y, np.inf)
    with pytest.warns(regression.RoundingWarning, match="fit: float32 does not resolve"):
        regression.fit(ntkit.ntk(ntkit.fc(1)), x, y, 1e-6)


@pytest.mark.parametrize("size", [1e-2, 1e-4])
def test_a_pooling_network_tells_near_images_apart_or_says_that_it_cannot(size: float) -> None:
    base, change = np.random.default_rng(0).normal(size=(2, 4, 4, 1))

    def images(t: np.ndarray) -> np.ndarray:
        return (base + size * t[:, None, None, None] * change).astype(np.float32)

    t, between = np.linspace(0, 1, 10), np.linspace(0.05, 0.95, 10)
    x, y, new = images(t), np.sin(6 * t)[:, None].astype(np.float32), images(between)
    kernel = ntkit.ntk(ntkit.convnet(1))
    if not hasattr(jax, "enable_x64"):
        with pytest.warns(regression.RoundingWarning):
            regression.fit(kernel, x, y, 1e-4)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error", regression.RoundingWarning)
        found = regression.fit(kernel, x, y, 1e-4)(new)
    with in_double():
        expected = regression.fit(kernel, *(a.astype(np.float64) for a in (x, y)), 1e-4)(new.astype(np.float64))
    assert np.abs(found - expected).max() < 0.01
