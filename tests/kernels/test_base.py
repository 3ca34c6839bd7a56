"""What holds for every kernel: shapes, algebra, JAX's transformations, and being a kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax import random

import ntkit
from ntkit import _neural_tangents as nt
from ntkit.kernels import Kernel
from ntkit.kernels.closed_form import NeuralTangentsKernel

X1, X2 = random.normal(random.key(0), (4, 3)), random.normal(random.key(1), (2, 3))
FC, LINEAR = ntkit.ntk(ntkit.fc(1)), ntkit.nngp(ntkit.fc(0))


def test_shapes() -> None:
    assert FC(X1, X2).shape == (4, 2)
    assert FC(X1).shape == (4, 4)
    assert FC.diagonal(X1).shape == (4,)
    # Two explicit batches know nothing of copies: there the angle is known to sqrt(eps).
    np.testing.assert_allclose(FC(X1), FC(X1, X1), rtol=3e-4)
    np.testing.assert_allclose(FC.diagonal(X1), np.diag(FC(X1)), rtol=1e-6)
    np.testing.assert_allclose(FC(X1, X2), FC(X2, X1).T, rtol=1e-6)


def test_algebra() -> None:
    a, b = np.asarray(FC(X1)), np.asarray(LINEAR(X1))
    for kernel, expected in [
        (FC + LINEAR, a + b),
        (FC * LINEAR, a * b),
        (2.5 * FC, 2.5 * a),
        (FC * 2.5, 2.5 * a),
        (np.float32(2.5) * FC, 2.5 * a),
        (np.float64(2.5) * FC, 2.5 * a),
        (FC * jnp.float32(2.5), 2.5 * a),
        (0 * FC + 3 * (LINEAR * FC), 3 * a * b),
    ]:
        assert isinstance(kernel, Kernel)
        np.testing.assert_allclose(kernel(X1), expected, rtol=1e-5)
        np.testing.assert_allclose(kernel(X1, X2).shape, (4, 2))
        np.testing.assert_allclose(kernel.diagonal(X1), np.diag(expected), rtol=1e-5)
        assert kernel.engine == "fused"


def test_a_sum_is_never_taken_for_a_product() -> None:
    """JAX's cache of compiled functions compares these, and does not see the types of registered dataclasses."""
    total, product = FC + LINEAR, FC * LINEAR
    assert jax.tree.structure(total) != jax.tree.structure(product)
    assert jax.tree.structure(total) == jax.tree.structure(FC + LINEAR)
    for kernel in (total, product):
        again = jax.tree.unflatten(jax.tree.structure(kernel), jax.tree.leaves(kernel))
        assert again == kernel


def test_what_is_no_kernel_is_refused() -> None:
    with pytest.raises(TypeError):
        FC + 1
    for bad in (-1.0, np.nan, np.inf, np.ones(2), "2"):
        with pytest.raises(ValueError, match=r"scale: got .*, expected a finite number of at least 0"):
            bad * FC
        with pytest.raises(ValueError, match="scale: got"):
            FC * bad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 3, 3)),), r"x1: got shape \(2, 3, 3\), expected \(n, height, width, channels\) or \(n, d\)"),
        ((np.zeros(3),), r"x1: got shape \(3,\)"),
        ((np.zeros((2, 3), int),), "x1: got dtype int64, expected floats"),
        ((np.zeros((2, 3), bool),), "x1: got dtype bool, expected floats"),
        ((np.zeros((0, 3)),), r"x1: got shape \(0, 3\), expected at least one"),
        ((np.zeros((2, 3)), np.zeros((2, 0))), r"x2: got shape \(2, 0\), expected at least one"),
        ((np.zeros((2, 3)), np.zeros((2, 4))), r"x2: got inputs of shape \(4,\), expected \(3,\) as in x1"),
        ((np.zeros((2, 3)), np.zeros((2, 1, 1, 3))), r"x2: got inputs of shape \(1, 1, 3\)"),
        (("images",), "x1: got .images., expected an array"),
        (([[1.0], [1.0, 2.0]],), "x1: got .*, expected an array"),
    ],
)
def test_bad_inputs(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        FC(*arguments)
    assert "\n" not in str(caught.value)
    if len(arguments) == 1:
        with pytest.raises(ValueError, match=message.replace("x1", "x")):
            FC.diagonal(*arguments)


def test_the_inputs_decide_the_precision(x64: None) -> None:
    kernel = np.float64(2) * ntkit.nngp(ntkit.fc(0, W_std=jnp.float64(1.5)))
    x = np.ones((2, 3))
    assert kernel(x).dtype == jnp.float64
    assert kernel(x.astype("f")).dtype == kernel.diagonal(x.astype("f")).dtype == jnp.float32
    assert kernel(x.astype("f"), x).dtype == jnp.float64
    for half in (jnp.float16, jnp.bfloat16):
        assert kernel(jnp.asarray(x, half)).dtype == jnp.float32


def test_transformations() -> None:
    kernel = 2.0 * FC + LINEAR
    expected = kernel(X1, X2)
    leaves, tree = jax.tree.flatten(kernel)
    assert jax.tree.unflatten(tree, leaves) == kernel
    assert len(leaves) == 1 + 4 + 2
    np.testing.assert_allclose(jax.jit(lambda k, x1, x2: k(x1, x2))(kernel, X1, X2), expected, rtol=1e-6)
    by_row = jax.vmap(lambda x: kernel(x[None], X2)[0])(X1)
    np.testing.assert_allclose(by_row, expected, rtol=1e-5)
    scales = jnp.array([1.0, 3.0])
    family = jax.vmap(lambda scale: (scale * LINEAR)(X1, X2))(scales)
    np.testing.assert_allclose(family, scales[:, None, None] * LINEAR(X1, X2), rtol=1e-6, atol=1e-6)
    gradient = jax.grad(lambda k: k(X1).sum())(3.0 * LINEAR)
    assert isinstance(gradient, Kernel)
    np.testing.assert_allclose(gradient.scale, LINEAR(X1).sum(), rtol=1e-6)


def test_other_hyper_parameters_do_not_compile_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("neural_tangents")
    traces = []
    gram = NeuralTangentsKernel.gram

    @functools.wraps(gram)
    def counting(self, x1, x2):
        traces.append(x1.shape)
        return gram(self, x1, x2)

    monkeypatch.setattr(NeuralTangentsKernel, "gram", counting)
    x = random.normal(random.key(0), (5, 7))  # a shape that no other test has
    results = [
        (s * ntkit.nngp(ntkit.fc(0, W_std=w, b_std=b), "neural_tangents"))(x)
        for s, w, b in ((1.0, 1.0, 0.1), (2.0, 0.5, 0.0))
    ]
    assert len(traces) == 1
    assert not np.allclose(results[0], results[1])
    assert hash(FC) == hash(ntkit.ntk(ntkit.fc(1)))
    assert ntkit.ntk(ntkit.fc(1)) == FC != ntkit.nngp(ntkit.fc(1))


def test_from_stax() -> None:
    pytest.importorskip("neural_tangents")
    _, _, kernel_fn = nt.stax.serial(nt.stax.Dense(1, 1.5, 0.1), nt.stax.Erf(), nt.stax.Dense(1, 1.5, 0.1))
    architecture = ntkit.fc(1, activation="erf", W_std=1.5, b_std=0.1)
    for get, build in (("ntk", ntkit.ntk), ("nngp", ntkit.nngp)):
        kernel = ntkit.from_stax(kernel_fn, get)
        assert jax.tree.leaves(kernel) == []
        np.testing.assert_allclose(kernel(X1, X2), build(architecture)(X1, X2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kernel.diagonal(X1), np.diag(kernel(X1)), rtol=1e-5)


@pytest.mark.parametrize(
    ("get", "message"),
    [
        (
            lambda kernel_fn, *x: kernel_fn(*x, "ntk"),
            r"got float32 of shape \(2, 2, 2, 2, 2, 2\), expected real numbers",
        ),
        (lambda kernel_fn, *x: kernel_fn(*x, None), r"got Kernel, expected real numbers \(2, 2\), one for each pair"),
        (lambda kernel_fn, *x: kernel_fn(*x, ("nngp", "ntk")), "got AnalyticKernel, expected real numbers"),
        (
            lambda kernel_fn, *x: kernel_fn(*x, "ntk").mean((2, 3, 4, 5)) * 1j,
            r"got complex64 of shape \(2, 2\), expected",
        ),
        (lambda kernel_fn, *x: None, "got NoneType, expected real numbers"),
    ],
)
def test_from_stax_of_what_is_no_matrix(get, message: str) -> None:
    pytest.importorskip("neural_tangents")
    _, _, kernel_fn = nt.stax.Conv(1, (2, 2), padding="SAME")
    kernel = ntkit.from_stax(lambda x1, x2, _: get(kernel_fn, x1, x2))
    with pytest.raises(ValueError, match=f"kernel_fn: {message}") as caught:
        kernel(np.ones((2, 2, 2, 1), "f"))
    assert "\n" not in str(caught.value)


def test_a_kernel_that_is_no_pytree_is_refused() -> None:
    class Constant(Kernel):
        def gram(self, x1, x2):
            return jnp.ones((len(x1), len(x1 if x2 is None else x2)))

    message = "kernel: got a Constant, which is no pytree, expected its class to be registered"
    for kernel in (Constant(), 2.0 * Constant(), FC + Constant()):
        for call in (
            kernel,
            kernel.diagonal,
            lambda x, kernel=kernel: ntkit.gram(kernel, x),
            lambda x, kernel=kernel: ntkit.regression.fit(kernel, x, x),
        ):
            with pytest.raises(ValueError, match=message):
                call(X1)


def test_a_kernel_of_ones_own() -> None:
    @ntkit.pytree_dataclass
    class Gaussian(Kernel):
        scale: float

        def gram(self, x1, x2):
            x2 = x1 if x2 is None else x2
            return jnp.exp(-self.scale * jnp.sum((x1[:, None] - x2) ** 2, -1))

    kernel = Gaussian(0.5)
    np.testing.assert_allclose(kernel.diagonal(X1), np.ones(4))
    # Compiled in one program or in two, entries of order 1 differ by rounding, also where they nearly cancel.
    np.testing.assert_allclose((kernel * FC)(X1), kernel(X1) * FC(X1), rtol=1e-6, atol=1e-7)
    with pytest.raises(AttributeError, match="Gaussian names no engine"):
        _ = kernel.engine


STDS = st.floats(0.125, 4, width=32)
VALUES = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e4]), st.floats(-10, 10, width=32))
FAMILY = {
    "fc": lambda w, b: ntkit.ntk(ntkit.fc(1, W_std=w, b_std=b)),
    "convnet": lambda w, b: ntkit.ntk(ntkit.convnet(1, W_std=w, b_std=b)),
    "erf and linear": lambda w, b: (
        w * ntkit.nngp(ntkit.fc(1, activation="erf", b_std=b)) * ntkit.nngp(ntkit.fc(0, W_std=w, b_std=b))
    ),
}


@pytest.mark.parametrize("name", FAMILY)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    x=hnp.arrays(np.float32, (5, 2, 2, 1), elements=VALUES, fill=st.nothing()),
    copies=st.integers(0, 3),
    W_std=STDS,
    b_std=STDS,
    order=st.permutations(range(5)),
)
def test_is_a_kernel(name: str, x: np.ndarray, copies: int, W_std: float, b_std: float, order: list[int]) -> None:
    x[1 : 1 + copies] = x[0]
    kernel = FAMILY[name](W_std, b_std)
    gram = np.asarray(kernel(x), np.float64)
    scale = np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    assert np.isfinite(gram).all()
    assert (np.diag(gram) >= 0).all()
    np.testing.assert_allclose(gram / scale, gram.T / scale, atol=1e-6)
    assert np.linalg.eigvalsh(gram / scale).min() > -3e-4
    permuted = np.asarray(kernel(x[order]), np.float64)
    # Between copies, and what is as good as one, the angle is known to sqrt(eps).
    np.testing.assert_allclose(permuted / scale[np.ix_(order, order)], (gram / scale)[np.ix_(order, order)], atol=3e-4)
    np.testing.assert_allclose(kernel.diagonal(x) / np.diag(gram), 1, atol=1e-4)
