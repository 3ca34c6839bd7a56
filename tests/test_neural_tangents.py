import functools
import importlib
import operator
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from ntkit import _neural_tangents as nt

KEY = random.key(0)
IMPLEMENTATIONS = ["JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS", "STRUCTURED_DERIVATIVES"]


@pytest.fixture(autouse=True, scope="module")
def fast_compilation() -> Iterator[None]:
    """What is tested is what is computed: nearly all of the time would be LLVM's, for programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter, where nothing has been imported yet, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# The door.


@pytest.mark.slow
def test_nothing_else_in_the_process_notices() -> None:
    python(
        """
        import sys
        import jax, jax.core, jax.interpreters.ad, jax.extend.core, jax.extend.linear_util, jax.example_libraries.stax
        import jax.experimental.ode, scipy, scipy.linalg, scipy.special

        modules = [jax, jax.core, jax.interpreters, jax.interpreters.ad, jax.numpy, jax.lax, scipy, scipy.linalg]
        snapshot = lambda: [{name: id(value) for name, value in vars(module).items()} for module in modules]
        before = snapshot()
        had_util = "jax.util" in sys.modules  # it is a module of the oldest JAX

        import ntkit
        assert "neural_tangents" not in sys.modules, "ntkit imports neural-tangents before anybody asks for it"
        import neural_tangents
        neural_tangents.stax, neural_tangents.batch, neural_tangents.predict

        assert snapshot() == before
        assert not hasattr(jax, "tree_map")
        assert ("jax.util" in sys.modules) == had_util
        assert not {"tensorflow", "tf2jax"} & {name.partition(".")[0] for name in sys.modules}
        """
    )


@pytest.mark.slow
def test_works_where_tensorflow_is_not_installed() -> None:
    python(
        """
        import sys
        sys.modules["tensorflow"] = sys.modules["tf2jax"] = None  # importing them raises ImportError

        import ntkit
        import neural_tangents as nt
        nt.stax.serial(nt.stax.Dense(1))
        assert not hasattr(nt, "no such name")
        for attempt in (lambda: nt.experimental, lambda: __import__("neural_tangents.experimental")):
            try:
                attempt()
            except ImportError as error:
                assert "tensorflow" in str(error) or "tf2jax" in str(error), error
            else:
                raise AssertionError("imported without TensorFlow")
        """
    )


@pytest.mark.slow
def test_import_is_fast() -> None:
    code = """
        import time
        import jax
        start = time.perf_counter()
        import ntkit._neural_tangents
        print(time.perf_counter() - start)
    """
    assert any(float(python(code)) < 1.0 for _ in range(5))


@pytest.mark.slow
def test_import_repairs_after_a_failed_import() -> None:
    python(
        """
        import sys, types
        sys.modules["tensorflow"] = None  # fail sooner
        try:
            import neural_tangents
        except Exception:
            pass
        else:
            raise AssertionError("it works without us now")
        sys.modules["neural_tangents._src.utils"] = types.ModuleType("left over")
        import ntkit
        import neural_tangents
        neural_tangents.stax.serial(neural_tangents.stax.Dense(1))
        """
    )


@pytest.mark.slow
def test_says_when_somebody_else_imported_it_first() -> None:
    python(
        """
        import importlib.machinery, sys, types
        other = types.ModuleType("neural_tangents")
        other.__loader__ = importlib.machinery.SourceFileLoader("neural_tangents", "elsewhere.py")
        sys.modules["neural_tangents"] = other
        try:
            import ntkit._neural_tangents
        except ImportError as error:
            assert "import ntkit" in str(error)
        else:
            raise AssertionError("accepted")
        """
    )


@pytest.mark.parametrize("version", ["0.4.38", "0.5.3"])
def test_too_old_a_jax_is_refused_by_name(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "__version__", version)
    expected = rf"jax>=0\.6, and this is jax {re.escape(version)}\. .*pip install 'jax>=0\.6'"
    with pytest.raises(ImportError, match=expected):
        importlib.reload(sys.modules["ntkit._neural_tangents"])


@pytest.mark.parametrize("version", ["0.6.0", "0.10.2", "0.12.0.1", "0.12.1.dev20261101", "0.13.0", "1.0", "2.0rc1"])
def test_any_other_jax_is_accepted(version: str) -> None:
    nt._check_jax_version(version)


def test_pyproject_states_the_same_versions() -> None:
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    dependencies = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    oldest = ".".join(map(str, nt.OLDEST_JAX))
    for requirement in (f"jax>={oldest}.0", f"jaxlib>={oldest}.0", f"neural-tangents=={nt.RELEASE}"):
        assert requirement in dependencies


# Where JAX has moved on, and where neural-tangents is not installed.


def test_a_newer_jax_is_fine_and_neural_tangents_says_that_it_is_untried() -> None:
    python(
        """
        import warnings
        import jax
        jax.__version__ = "1.0.1"
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing is said before it matters
            import ntkit
            ntkit.ntk(ntkit.fc(1))(jax.numpy.eye(3))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ntkit.fc(1).stax()
            ntkit.ntk(ntkit.fc(1, activation="gelu"))
        [warning] = [str(one.message) for one in caught if "neural-tangents" in str(one.message)]
        assert "tried up to jax 0.12" in warning and "jax 1.0.1" in warning, warning
        """
    )


def test_a_newer_jax_that_lacks_a_name_costs_neural_tangents_alone() -> None:
    python(
        """
        import warnings
        import jax.extend.core
        jax.__version__ = "1.0.1"
        del jax.extend.core.Literal
        import ntkit
        assert ntkit.ntk(ntkit.fc(1))(jax.numpy.eye(3)).shape == (3, 3)
        gelu = ntkit.fc(1, activation="gelu")
        for use in (gelu.stax, lambda: ntkit.ntk(gelu), lambda: __import__("neural_tangents")):
            try:
                use()
            except ImportError as error:
                for part in ("'Literal'", "repaired for jax 0.6 to 0.12, and this is jax 1.0.1", "All of ntkit works"):
                    assert part in str(error), error
            else:
                raise AssertionError("imported")
        """
    )


def test_a_name_that_a_call_needs_is_said_by_the_call() -> None:
    with pytest.raises(AttributeError, match=r"jax\.numpy has no 'trapz' in jax .*, which neural-tangents 0\.6\.5"):
        operator.attrgetter("trapz")(nt._views()["jax.numpy"])
    assert not hasattr(nt._views()["jax.util"], "unzip2")


# A finder before all others that has none of these packages.
WITHOUT = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Without())
"""
NEEDS_INSTALLING = """
def needs(use, message):
    try:
        use()
    except ImportError as error:
        assert message in str(error), error
    else:
        raise AssertionError("imported")
"""


def without(packages: tuple[str, ...], code: str) -> str:
    return python(WITHOUT.format(packages=packages) + NEEDS_INSTALLING + textwrap.dedent(code))


def test_every_module_imports_without_neural_tangents() -> None:
    without(
        ("neural_tangents", "tensorflow", "tf2jax", "frozendict"),
        """
        import importlib, pkgutil
        import jax.numpy as jnp
        import ntkit
        for module in pkgutil.walk_packages(ntkit.__path__, "ntkit."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        assert ntkit.ntk(ntkit.fc(1, activation="erf"))(jnp.eye(3)).shape == (3, 3)

        install = "pip install 'neural-tangents==0.6.5'"
        needs(lambda: ntkit.ntk(ntkit.fc(1, activation="gelu")), install)
        needs(lambda: ntkit.nngp(ntkit.fc(1), "neural_tangents"), install)
        needs(lambda: ntkit.fc(1).stax(), install)
        """,
    )


def test_a_module_that_is_not_to_be_imported_is_absent() -> None:
    python(
        NEEDS_INSTALLING
        + textwrap.dedent(
            """
            import sys
            sys.modules["neural_tangents"] = None
            import ntkit
            needs(lambda: ntkit.fc(1).stax(), "pip install 'neural-tangents==0.6.5'")
            """
        )
    )


def test_a_package_that_neural_tangents_needs_is_named() -> None:
    without(("frozendict",), "import ntkit; needs(lambda: ntkit.fc(1).stax(), 'pip install frozendict')")


def test_the_command_line_says_in_one_line_what_to_install(tmp_path: Path) -> None:
    printed = without(
        ("neural_tangents",),
        f"""
        import contextlib, io
        from ntkit.cli import main
        for arguments in (["info"], ["distill", "--activation", "gelu", "--out", {str(tmp_path / "run")!r}]):
            errors, output = io.StringIO(), io.StringIO()
            try:
                with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
                    main(arguments)
            except SystemExit as stopped:
                print(stopped.code, errors.getvalue(), end="")
            else:
                print(*(line.split("  ")[-1] for line in output.getvalue().splitlines() if "engines" in line))
        """,
    )
    engines, error = printed.splitlines()
    assert "fused" in engines
    assert "neural_tangents" not in engines
    assert error.startswith("2 ntkit distill: neural-tangents is not installed")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_tests_of_neural_tangents_see_the_views_and_nobody_else_s(tmp_path: Path) -> None:
    package = tmp_path / "tests" / "inner"
    package.mkdir(parents=True)
    for directory in (package, package.parent):
        (directory / "__init__.py").touch()
    draws = "bool((jax.random.normal(key, (4,))[:2] == jax.random.normal(key, (2,))).all())"
    code = f"import jax\nkey = jax.random.key(0)\nseen = hasattr(jax, 'tree_map'), {draws}\n"
    (package / "a_test.py").write_text(code)
    upstream = Path(__file__).parent / "upstream"
    for plugin, seen in (("upstream_views", "(True, False)"), ("ntkit._neural_tangents", "(False, True)")):
        # With a safe path the tests in the current directory stay out of the way.
        found = python(
            f"import {plugin}; from tests.inner import a_test; print(a_test.seen)",
            PYTHONPATH=os.pathsep.join([str(tmp_path), str(upstream), str(Path(__file__).parents[1])]),
            PYTHONSAFEPATH="1",
        )
        assert found.strip() == seen


# Closed-form kernels.


def arc_cosine_kernels(x1: np.ndarray, x2: np.ndarray, depth: int, W_std: float, b_std: float):
    """NNGP and NTK of a fully connected ReLU network, from Cho & Saul (2009) and Jacot et al. (2018)."""

    def affine(kernel: np.ndarray) -> np.ndarray:
        return W_std**2 * kernel + b_std**2

    nngp = affine(x1 @ x2.T / x1.shape[1])
    variance1, variance2 = (affine((x**2).mean(1)) for x in (x1, x2))
    ntk = nngp
    for _ in range(depth):
        scale = np.sqrt(np.outer(variance1, variance2))
        angle = np.arccos(np.clip(nngp / scale, -1, 1))
        derivative = (np.pi - angle) / (2 * np.pi)
        nngp = affine(scale * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi))
        ntk = nngp + W_std**2 * ntk * derivative
        variance1, variance2 = affine(variance1 / 2), affine(variance2 / 2)
    return nngp, ntk


def fully_connected(depth: int = 2, width: int = 64, outputs: int = 1):
    hidden = [nt.stax.Dense(width, W_std=1.3, b_std=0.2), nt.stax.Relu()] * depth
    return nt.stax.serial(*hidden, nt.stax.Dense(outputs, W_std=1.3, b_std=0.2))


@pytest.mark.slow
def test_relu_kernel_in_closed_form() -> None:
    x1, x2 = (random.normal(key, (n, 7)) for n, key in zip((5, 4), random.split(KEY), strict=True))
    kernel = fully_connected()[2](x1, x2, ("nngp", "ntk"))
    nngp, ntk = arc_cosine_kernels(np.asarray(x1, np.float64), np.asarray(x2, np.float64), 2, 1.3, 0.2)
    np.testing.assert_allclose(kernel.nngp, nngp, rtol=1e-5)
    np.testing.assert_allclose(kernel.ntk, ntk, rtol=1e-5)


@pytest.mark.slow
def test_monte_carlo_kernel_approaches_the_closed_form() -> None:
    x = random.normal(KEY, (4, 7))
    init_fn, apply_fn, kernel_fn = fully_connected(depth=1, width=256)
    sampled = nt.monte_carlo_kernel_fn(init_fn, apply_fn, KEY, n_samples=64, vmap_axes=0)(x, None, ("nngp", "ntk"))
    exact = kernel_fn(x, None, ("nngp", "ntk"))
    for name in ("nngp", "ntk"):
        expected = getattr(exact, name)
        assert jnp.linalg.norm(getattr(sampled, name) - expected) < 0.2 * jnp.linalg.norm(expected)


@pytest.mark.slow
def test_batch_on_one_device() -> None:
    x1, x2 = random.normal(KEY, (6, 7)), random.normal(random.key(1), (4, 7))
    kernel_fn = fully_connected()[2]
    batched = nt.batch(kernel_fn, batch_size=2)
    np.testing.assert_allclose(batched(x1, x2, "ntk"), kernel_fn(x1, x2, "ntk"), rtol=1e-6)


@pytest.mark.slow
def test_batch_on_several_devices() -> None:
    python(
        """
        import jax, numpy as np
        from ntkit import _neural_tangents as nt

        assert jax.device_count() == 3
        x1, x2 = (jax.random.normal(jax.random.key(n), (n, 7)) for n in (12, 6))
        init_fn, apply_fn, kernel_fn = nt.stax.serial(nt.stax.Dense(8), nt.stax.Relu(), nt.stax.Dense(1))
        expected = kernel_fn(x1, x2, ("nngp", "ntk"))
        for store_on_device in (True, False):
            batched = nt.batch(kernel_fn, batch_size=2, store_on_device=store_on_device)
            for name, value in batched(x1, x2, ("nngp", "ntk"))._asdict().items():
                np.testing.assert_allclose(value, getattr(expected, name), rtol=1e-5)

        params = init_fn(jax.random.key(0), x1.shape)[1]
        empirical = nt.empirical_ntk_fn(apply_fn)
        np.testing.assert_allclose(nt.batch(empirical, 2)(x1, x2, params), empirical(x1, x2, params), rtol=1e-4)
        """,
        XLA_FLAGS="--xla_force_host_platform_device_count=3",
    )


# Predictions.


def regression_problem():
    x = random.normal(KEY, (6, 4))
    kernel = jnp.exp(-0.5 * ((x[:, None] - x) ** 2).sum(-1))
    return kernel[:4, :4], kernel[4:, :4], random.normal(random.key(1), (4, 2))


@pytest.mark.slow
@pytest.mark.parametrize("time", [None, 0.7])
def test_gradient_descent_mse(time: float | None) -> None:
    k_dd, k_td, y = (np.asarray(a, np.float64) for a in regression_problem())
    eigenvalues, vectors = np.linalg.eigh(k_dd)
    decay = 0.0 if time is None else np.exp(-eigenvalues * time / y.size)
    expected = k_td @ vectors @ np.diag((1 - decay) / eigenvalues) @ vectors.T @ y

    k_dd, k_td, y = regression_problem()
    predict = nt.predict.gradient_descent_mse(k_dd, y)
    np.testing.assert_allclose(predict(time, 0.0, 0.0, k_td)[1], expected, rtol=1e-4, atol=1e-6)

    # Traced kernels, and a solver cached inside a `jit` and used outside of it.
    def from_kernel(k_dd):
        return nt.predict.gradient_descent_mse(k_dd, y)(time, 0.0, 0.0, k_td)[1]

    np.testing.assert_allclose(jax.jit(from_kernel)(k_dd), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(from_kernel)(k_dd[None])[0], expected, rtol=1e-4, atol=1e-6)
    predict = nt.predict.gradient_descent_mse(k_dd, y)
    jax.jit(lambda k_td: predict(time, 0.0, 0.0, k_td))(k_td)
    np.testing.assert_allclose(predict(time, 0.0, 0.0, k_td)[1], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_gradient_descent_integrates_the_flow() -> None:
    k_dd, k_td, y = regression_problem()
    closed = nt.predict.gradient_descent_mse(k_dd, y)(0.7, 0.0, 0.0, k_td)
    integrate = nt.predict.gradient_descent(lambda fx, y: 0.5 * jnp.mean((fx - y) ** 2), k_dd, y)
    numerical = integrate(jnp.array([0.0, 0.7]), jnp.zeros((4, 2)), jnp.zeros((2, 2)), k_td)
    for expected, found in zip(closed, numerical, strict=True):
        np.testing.assert_allclose(found[-1], expected, atol=1e-4)


def test_max_learning_rate() -> None:
    k_dd, _, y = regression_problem()
    largest = np.linalg.eigvalsh(np.asarray(k_dd, np.float64))[-1]
    found = nt.predict.max_learning_rate(k_dd, y_train_size=y.size)
    np.testing.assert_allclose(found, 2 * y.size / (largest + 1e-12), rtol=1e-5)


# Kernels of finite networks, against the plain definition.


def contracted_jacobians(apply_fn, x1, x2, params, trace: bool):
    def jacobian(x):
        out = apply_fn(params, x)
        leaves = jax.tree.leaves(jax.jacobian(apply_fn)(params, x))
        return jnp.concatenate([leaf.reshape(*out.shape, -1) for leaf in leaves], -1)

    ntk = jnp.einsum("iap,jbp->ijab", jacobian(x1), jacobian(x2))
    return jnp.trace(ntk, axis1=2, axis2=3) / ntk.shape[-1] if trace else ntk


def stax_network(*layers):
    def build(shape):
        init_fn, apply_fn, _ = nt.stax.serial(*layers)
        return apply_fn, init_fn(random.key(2), shape)[1]

    return build


def network(apply_fn, **shapes):
    def build(_):
        keys = random.split(random.key(2), len(shapes))
        params = {name: random.normal(key, shape) / 2 for key, (name, shape) in zip(keys, shapes.items(), strict=True)}
        return apply_fn, params

    return build


def convolve(x, filters, **options):
    return jax.lax.conv_general_dilated(
        x, filters, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def recurrent(params, x):
    def step(state, row):
        return jnp.tanh(row @ params["w"] + state @ params["u"]), None

    rows = x.reshape(x.shape[0], 4, -1).swapaxes(0, 1)
    return jax.lax.scan(step, jnp.zeros((x.shape[0], 3)), rows)[0]


def gated(params, x):
    value, gate = jnp.split(x.reshape(x.shape[0], -1) @ params["w"], 2, axis=1)
    return value * jax.nn.sigmoid(gate)


NETWORKS = {
    "fc": stax_network(nt.stax.Flatten(), nt.stax.Dense(6, b_std=1.0), nt.stax.Erf(), nt.stax.Dense(3, b_std=1.0)),
    "cnn": stax_network(
        nt.stax.Conv(4, (3, 3), padding="SAME", b_std=1.0),
        nt.stax.Relu(),
        nt.stax.AvgPool((2, 2)),
        nt.stax.Conv(4, (2, 2)),
        nt.stax.Gelu(),
        nt.stax.Flatten(),
        nt.stax.LayerNorm(),
        nt.stax.Dense(3),
    ),
    "residual": stax_network(
        nt.stax.Conv(3, (3, 3), padding="SAME"),
        nt.stax.FanOut(2),
        nt.stax.parallel(nt.stax.Identity(), nt.stax.Conv(3, (3, 3), padding="SAME")),
        nt.stax.FanInSum(),
        nt.stax.GlobalAvgPool(),
    ),
    "shared weights": network(
        lambda p, x: jnp.tanh(jnp.tanh(x[:, 0, 0] @ p["w"]) @ p["w"].T + x[:, 1, 1] @ p["w"]) + p["b"], w=(3, 3), b=(3,)
    ),
    "grouped convolution": network(
        lambda p, x: jnp.tanh(convolve(x, p["w"], feature_group_count=3)).mean((1, 2)), w=(3, 3, 1, 6)
    ),
    "max pooling": network(lambda p, x: convolve(x, p["w"]).reshape(x.shape[0], 4, 4, 2).max(1).sum(1), w=(3, 3, 3, 2)),
    "checkpoint": network(
        jax.checkpoint(lambda p, x: jnp.sin(jnp.tanh(x[:, 0].reshape(x.shape[0], -1) @ p["w"]) @ p["v"])),
        w=(12, 5),
        v=(5, 2),
    ),
    "batch norm": network(
        lambda p, x: jax.nn.standardize(x.reshape(x.shape[0], -1) @ p["w"], axis=0) * p["scale"] + p["b"],
        w=(48, 3),
        scale=(3,),
        b=(3,),
    ),
    "recurrent": network(recurrent, w=(12, 3), u=(3, 3)),
    "gated": network(gated, w=(48, 6)),
    "unused parameter": network(lambda p, x: x[:, 0, 0] @ p["used"], used=(3, 2), unused=(4,)),
}


@functools.cache
def problem(name: str):
    """Inputs, a network of that name, and its kernel by definition."""
    x1, x2 = random.normal(KEY, (3, 4, 4, 3)), random.normal(random.key(1), (3, 4, 4, 3))
    apply_fn, params = NETWORKS[name](x1.shape)
    return x1, x2, apply_fn, params, contracted_jacobians(apply_fn, x1, x2, params, trace=False)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_empirical_ntk(name: str, implementation: str) -> None:
    x1, x2, apply_fn, params, expected = problem(name)
    kernel_fn = nt.empirical_ntk_fn(apply_fn, trace_axes=(), implementation=nt.NtkImplementation[implementation])
    found = jax.jit(kernel_fn)(x1, x2, params)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * jnp.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "AUTO"])
@pytest.mark.parametrize("name", ["fc", "cnn"])
def test_empirical_ntk_traced_and_vmapped(name: str, implementation: str) -> None:
    x1, x2, apply_fn, params, expected = problem(name)
    expected = jnp.trace(expected, axis1=2, axis2=3) / expected.shape[-1]
    implementation = nt.NtkImplementation[implementation]
    kernel_fn = nt.empirical_ntk_fn(apply_fn, trace_axes=(-1,), vmap_axes=0, implementation=implementation)
    np.testing.assert_allclose(jax.jit(kernel_fn)(x1, x2, params), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_empirical_ntk_vector_product() -> None:
    x = random.normal(KEY, (3, 4, 4, 3))
    apply_fn, params = NETWORKS["fc"](x.shape)
    vector = random.normal(random.key(3), (3, 3))
    expected = jnp.einsum("ijab,jb->ia", contracted_jacobians(apply_fn, x, x, params, trace=False), vector)
    product = nt.empirical_ntk_vp_fn(apply_fn, x, None, params)(vector)
    np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_what_structured_derivatives_cannot_do_names_what_can() -> None:
    x = random.normal(KEY, (3, 4, 4, 3))

    @jax.custom_vjp
    def both(x):
        return jnp.sin(x), jnp.cos(x)

    both.defvjp(lambda x: (both(x), both(x)), lambda both, cts: (cts[0] * both[1] - cts[1] * both[0],))
    apply_fn, params = network(lambda p, x: sum(both(x[:, 0, 0] @ p["w"])), w=(3, 4))(x.shape)
    expected = contracted_jacobians(apply_fn, x, x, params, trace=True)
    structured = nt.empirical_ntk_fn(apply_fn, implementation=nt.NtkImplementation.STRUCTURED_DERIVATIVES)
    with pytest.raises(ValueError, match="JACOBIAN_CONTRACTION"):
        structured(x, None, params)
    auto = nt.empirical_ntk_fn(apply_fn, implementation=nt.NtkImplementation.AUTO)
    np.testing.assert_allclose(auto(x, None, params), expected, rtol=1e-4)
