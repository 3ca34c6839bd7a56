import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit import regression
from ntkit.regression import CG, ConvergenceWarning
from tests.solvers.gaussian import Gaussian

SMOOTH = Gaussian(0.3)
RNG = np.random.default_rng(0)
N = 61
X, TEST = RNG.normal(size=(N, 3)), RNG.normal(size=(7, 3))
# Scales whose squares float32 could not hold, and an output that is nothing at all.
Y = RNG.normal(size=(N, 4)) * np.array([1.0, 1e25, 1e-25, 0.0])


def on_disk(path, gram):
    np.asarray(gram).tofile(path)
    return np.memmap(path, np.asarray(gram).dtype, "r", shape=gram.shape)


def relative_residual(gram, predictor, y, ridge):
    """In float64, whatever the fit was in."""
    gram, weights, y = (np.asarray(array, np.float64) for array in (gram, predictor.weights, y))
    image = gram @ weights + ridge * np.mean(np.diag(gram)) * weights
    return np.linalg.norm(image - y, axis=0) / np.maximum(np.linalg.norm(y, axis=0), 1e-300)


@pytest.fixture(params=["array", "numpy", "disk", "recomputed", "recomputed at once"])
def source(request, tmp_path):
    """How K comes to `fit`: 61 rows are no multiple of a block of 8."""
    return lambda gram: {
        "array": {"gram": gram},
        "numpy": {"gram": np.asarray(gram)},
        "disk": {"gram": on_disk(tmp_path / "gram", gram), "block_size": 8},
        "recomputed": {"block_size": 8},
        "recomputed at once": {},
    }[request.param]


def test_equals_cholesky(source, x64: None) -> None:
    ridge = 1e-3
    expected = regression.fit(SMOOTH, X, Y, ridge)
    predictor = regression.fit(SMOOTH, X, Y, ridge, solver=CG(1e-11, 20), **source(SMOOTH(X)))
    scales = np.maximum(np.abs(Y).max(0), 1e-300)
    np.testing.assert_allclose(predictor.weights / scales, expected.weights / scales, atol=1e-7)
    np.testing.assert_allclose(predictor(TEST) / scales, expected(TEST) / scales, atol=1e-9)
    report = predictor.report
    assert predictor.ridge == ridge
    assert expected.report is None
    assert report.rank == 20
    assert report.converged.all()
    np.testing.assert_allclose(relative_residual(SMOOTH(X), predictor, Y, ridge), report.residual, atol=1e-12)
    # Nothing has to be done for the output that is 0.
    assert report.steps[3] == report.residual[3] == 0
    np.testing.assert_array_equal(predictor.weights[:, 3], 0)
    assert (report.steps[:3] > 0).all()


@pytest.mark.slow
def test_equals_cholesky_in_float32() -> None:
    kernel = ntkit.ntk(ntkit.fc(1))
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
    expected = regression.fit(kernel, x, y, 0.1)
    predictor = regression.fit(kernel, x, y, 0.1, solver=CG(1e-5, rank=20), block_size=8)
    assert predictor.weights.dtype == predictor.ridge.dtype == predictor.report.residual.dtype == jnp.float32
    assert predictor.report.converged.all()
    scales = np.maximum(np.abs(Y).max(0), 1e-30).astype(np.float32)
    np.testing.assert_allclose(predictor(TEST) / scales, expected(TEST) / scales, atol=2e-3)
    assert relative_residual(kernel(x), predictor, y, 0.1).max() < 2e-5


def test_the_preconditioner_saves_steps(x64: None) -> None:
    smoother = Gaussian(0.03)
    none, some, all_ = (
        regression.fit(smoother, X, Y, 1e-3, solver=CG(1e-8, rank)).report.steps.max() for rank in (0, 20, 10 * N)
    )
    assert none > 4 * some
    assert all_ <= 2


def test_copies_of_inputs(x64: None) -> None:
    """K is singular; the ridge makes the system regular."""
    x = X[np.arange(N) % 20]
    for ridge in (1e-2, 1e-6):
        predictor = regression.fit(SMOOTH, x, Y, ridge, solver=CG(1e-9))
        assert predictor.report.converged.all()
        assert predictor.report.rank == 20  # copies explain each other
        expected = regression.fit(SMOOTH, x, Y, ridge)
        scales = np.maximum(np.abs(Y).max(0), 1e-300)
        np.testing.assert_allclose(predictor(TEST) / scales, expected(TEST) / scales, atol=1e-5)


def test_the_precision_is_that_of_the_gram_matrix(tmp_path, x64: None) -> None:
    x, y = X.astype(np.float32), Y.astype(np.float32)
    half = on_disk(tmp_path / "half", np.asarray(SMOOTH(x), np.float16))
    assert regression.fit(SMOOTH, x, y, 0.1, solver=CG(rank=20), gram=half).weights.dtype == jnp.float32
    double = regression.fit(SMOOTH, x, y, 1e-3, solver=CG(1e-11, 20), gram=np.asarray(SMOOTH(X)))
    assert double.weights.dtype == jnp.float64
    assert double.report.converged.all()
    direct = regression.fit(SMOOTH, x, y, 1e-3, gram=on_disk(tmp_path / "double", SMOOTH(X)))
    np.testing.assert_allclose(direct.weights, double.weights, rtol=1e-5, atol=1e-5)


# Systems that cannot be solved.


def failing(message, kernel, x, y, ridge, **options):
    with pytest.warns(ConvergenceWarning, match=message) as caught:
        predictor = regression.fit(kernel, x, y, ridge, **options)
    assert caught[0].filename == __file__
    assert "\n" not in str(caught[0].message)
    return predictor


def test_too_few_steps(x64: None) -> None:
    predictor = failing(
        r"solver: CG reached a relative residual of \d\.\de[-+]\d+ in 3 steps, expected at most 1e-08 \(3 of 4 "
        r"outputs did not converge\): max_steps=3 was reached; more steps, a larger rank or a larger ridge would help",
        *(SMOOTH, X, Y, 1e-5),
        solver=CG(1e-8, rank=0, max_steps=3),
    )
    np.testing.assert_array_equal(predictor.report.steps, [3, 3, 3, 0])
    np.testing.assert_array_equal(predictor.report.converged, [False, False, False, True])
    np.testing.assert_allclose(
        relative_residual(SMOOTH(X), predictor, Y, 1e-5), predictor.report.residual, rtol=1e-9, atol=1e-14
    )


@pytest.mark.parametrize("rank", [0, 20])
def test_more_than_float32_can_tell(rank) -> None:
    """Copies with different targets and next to no ridge: weights of 1e9, and nothing of the targets is left."""
    x, y = (jnp.asarray(array, jnp.float32) for array in (X[np.arange(N) // 2], Y))
    predictor = failing(
        r"\(3 of 4 outputs did not converge\): (rounding in float32 outweighs|the Gram matrix is not positive definite)"
        ".*; a larger ridge, or x64, would help",
        *(SMOOTH, x, y, 1e-12),
        solver=CG(rank=rank),
    )
    report = predictor.report
    # It gave up when it saw that, and gives the best that it had: not worse than no weights at all.
    assert report.steps.max() < 1000
    assert ((report.residual > report.tolerance) & (report.residual <= 1))[:3].all()
    np.testing.assert_allclose(relative_residual(SMOOTH(x), predictor, y, 1e-12), report.residual, rtol=0.05)


def test_the_reported_residual_is_the_true_one() -> None:
    """The iteration's own goes on falling where float32 cannot follow, to a ten thousandth of the true one."""
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
    predictor = failing("rounding in float32 outweighs", SMOOTH, x, y, 1e-2, solver=CG(1e-9, 20))
    true = relative_residual(SMOOTH(x), predictor, y, 1e-2)[:3]
    assert ((true > 1e-9) & (true < 1e-4)).all()
    # Both are rounding, in two orders of summation: of one size, no more.
    ratio = predictor.report.residual[:3] / true
    assert ((ratio > 0.1) & (ratio < 10)).all()


def test_no_gram_matrix(x64: None) -> None:
    gram = np.asarray(SMOOTH(X)) - 0.5 * np.eye(N)
    predictor = failing(
        "the Gram matrix is not positive definite in float64 with this ridge; a larger ridge would help",
        *(SMOOTH, X, Y, 1e-6),
        solver=CG(rank=0),
        gram=gram,
    )
    assert (predictor.report.residual <= 1).all()
    zero = failing("3 of 4", SMOOTH, X, Y, 1e-6, solver=CG(), gram=np.zeros((N, N)))
    np.testing.assert_array_equal(zero.report.residual, [1, 1, 1, 0])
    assert zero.report.rank == 0


@pytest.mark.parametrize("rank", [0, 20])
@pytest.mark.parametrize("where", ["y", "diagonal", "elsewhere"])
def test_never_a_silent_nan(where: str, rank: int) -> None:
    gram, y = np.array(SMOOTH(X)), Y.copy()
    at = {"y": (y, 5, 1), "diagonal": (gram, 5, 5), "elsewhere": (gram, 5, 1)}[where]
    at[0][at[1:]] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        regression.fit(SMOOTH, X, y, 1e-3, solver=CG(rank=rank), gram=gram)


# The rest of its face.


def test_depends_on_the_key_alone() -> None:
    def weights(key):
        return np.asarray(regression.fit(SMOOTH, X, Y, 1e-2, solver=CG(1e-3, 20, key=key)).weights)

    np.testing.assert_array_equal(weights(jax.random.key(0)), weights(None))
    assert (weights(jax.random.key(1)) != weights(None)).any()
    np.testing.assert_array_equal(weights(jax.random.PRNGKey(1)), weights(jax.random.key(1)))


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    regression.fit(SMOOTH, X, Y, 1e-2, solver=CG(rank=20), progress=True)
    printed = capsys.readouterr()
    assert "solve" in printed.err
    assert not printed.out
    regression.fit(SMOOTH, X, Y, 1e-2, solver=CG(rank=20))
    assert not capsys.readouterr().err


def test_a_predictor_with_a_report_is_a_pytree() -> None:
    predictor = regression.fit(SMOOTH, X, Y, 1e-2, solver=CG(rank=20))
    through = jax.jit(lambda predictor: predictor)(predictor)
    np.testing.assert_array_equal(through.report.steps, predictor.report.steps)
    assert through.report.tolerance == 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CG(tolerance=0.0), "tolerance: got 0.0, expected a number above 0"),
        (lambda: CG(tolerance=np.nan), "tolerance: got nan"),
        (lambda: CG(tolerance="small"), "tolerance: got 'small'"),
        (lambda: CG(rank=-1), "rank: got -1, expected an integer of at least 0"),
        (lambda: CG(rank=1.0), "rank: got 1.0"),
        (lambda: CG(max_steps=0), "max_steps: got 0, expected an integer of at least 1"),
        (lambda: CG(key=0), "key: got 0, expected jax.random.key"),
        (lambda: fit(solver="cg"), r"solver: got 'cg', expected ntkit.regression.Cholesky\(\), CG\(\) or Primal"),
        (lambda: fit(solver=CG), "solver: got the class CG"),
        (lambda: fit(gram="K"), "gram: got 'K', expected an array or a memory map"),
        (lambda: fit(gram=np.zeros((N, N - 1))), r"gram: got float64 of shape \(61, 60\), expected floats of shape"),
        (lambda: fit(gram=np.zeros((N, N), int)), r"gram: got int64 of shape \(61, 61\)"),
        (lambda: fit(solver=CG(), mesh="all"), "mesh: got str, expected a jax.sharding.Mesh"),
        (lambda: fit(mesh=jax.sharding.Mesh(jax.devices()[:1], "x")), "mesh: got one for Cholesky"),
        (lambda: fit(solver=CG(), block_size=0), "block_size: got 0, expected an integer of at least 1"),
        (lambda: fit(solver=CG(), block_size=True), "block_size: got True"),
        (lambda: jax.jit(lambda y: fit(y=y, solver=CG()))(Y), "solver: got CG inside jit, grad or vmap, expected Cho"),
        (lambda: jax.grad(lambda r: fit(ridge=r, solver=CG()).weights[0, 0])(0.1), "solver: got CG inside jit"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def fit(x=X, y=Y, ridge=1e-3, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return regression.fit(SMOOTH, x, y, ridge, **options)
