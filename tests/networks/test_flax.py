"""The flax reading of an architecture against the stax reading, and against the closed form as the width grows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit.architectures import Activation, Architecture, AveragePool, Conv, Dense, Flatten


def from_stax_parameters(params):
    """Put the parameters of a stax network, a tuple for each layer, where the flax module has them."""
    pairs = [layer for layer in params if layer]
    return {
        f"Affine_{i}": {"linear": {"kernel": kernel}} | ({} if bias is None else {"bias": bias.reshape(-1)})
        for i, (kernel, bias) in enumerate((pair[0], pair[1] if len(pair) > 1 else None) for pair in pairs)
    }


CIRCULAR = (
    Conv(1.3, 0.2, padding="CIRCULAR"),
    Conv(1.1, 0.1, (3, 4), (2, 3), "CIRCULAR"),
    Conv(1.3, None, (2, 3), (2, 1), "VALID"),
    AveragePool((1, 2)),
)


@pytest.mark.parametrize(
    "architecture",
    [
        ntkit.fc(2, activation="erf"),
        ntkit.fc(1, b_std=None),
        ntkit.convnet(1, W_std=1.3, b_std=0.5),
        ntkit.convnet(1, parameterization="standard", b_std=0.5),
        ntkit.myrtle(5, activation="gelu"),
        Architecture((*CIRCULAR, Activation("relu"), Flatten(), Dense(1.0, 0.5)), "by hand"),
    ],
    ids=lambda architecture: f"{architecture.name}-{architecture.parameterization}",
)
def test_same_parameters_same_outputs(architecture: Architecture) -> None:
    pytest.importorskip("neural_tangents")
    x = jax.random.normal(jax.random.key(0), (2, 6, 14, 2))
    init_fn, apply_fn, _ = architecture.stax(3, 4)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda key: init_fn(key, x.shape)[1], jax.random.key(1))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)
    module = architecture.flax(3, 4)
    moved = {"params": from_stax_parameters(params)}
    expected_shapes = jax.tree.map(jnp.shape, jax.eval_shape(module.init, jax.random.key(0), x))
    assert jax.tree.map(jnp.shape, moved) == expected_shapes
    np.testing.assert_allclose(jax.jit(module.apply)(moved, x), jax.jit(apply_fn)(params, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
def test_scales_at_initialization(parameterization: str) -> None:
    module = ntkit.fc(1, W_std=1.5, b_std=0.5, parameterization=parameterization).flax(200, 400)
    layer = jax.jit(module.init)(jax.random.key(0), jnp.ones((1, 100)))["params"]["Affine_0"]
    expected = (1.0, 1.0) if parameterization == "ntk" else (1.5 / 10, 0.5)
    np.testing.assert_allclose((layer["linear"]["kernel"].std(), layer["bias"].std()), expected, rtol=0.1)


def test_what_has_no_closed_form_is_a_network_all_the_same() -> None:
    relu, dense = Activation("relu"), Dense(1.0, None)
    twice, once = (Architecture((Flatten(), dense, *(relu,) * count, dense), "relu").flax(2, 3) for count in (2, 1))
    x = jax.random.normal(jax.random.key(0), (4, 5))
    variables = twice.init(jax.random.key(1), x)
    np.testing.assert_array_equal(twice.apply(variables, x), once.apply(variables, x))


def test_inputs_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x: got inputs of shape \(5,\), expected \(height, width, channels\): conv1"):
        ntkit.conv(1).flax().init(jax.random.key(0), jnp.ones((2, 5)))
    dense = Architecture((Dense(1.0, None),), "pixels").flax()
    with pytest.raises(ValueError, match=r"architecture: got pixels without Flatten\(\)"):
        dense.init(jax.random.key(0), jnp.ones((2, 3, 3, 1)))


def empirical_ntks(module, x, keys):
    """The contraction of plain Jacobians, for networks initialized with each of some keys."""

    def one(key):
        variables = module.init(key, x)
        jacobian = jax.jacobian(lambda variables: module.apply(variables, x)[:, 0])(variables)
        return sum(jnp.einsum("ip,jp->ij", j, j) for j in (v.reshape(len(x), -1) for v in jax.tree.leaves(jacobian)))

    return jax.jit(functools.partial(jax.lax.map, one))(keys)


@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
@pytest.mark.parametrize("name", ["fc", pytest.param("convnet", marks=pytest.mark.slow)])
def test_the_empirical_ntk_converges_to_the_closed_form(name: str, parameterization: str) -> None:
    depth, widths, samples = {"fc": (2, (64, 320), 40), "convnet": (1, (32, 512), 40)}[name]
    factory = functools.partial(getattr(ntkit, name), depth, b_std=0.5, parameterization=parameterization)
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
    keys = jax.random.split(jax.random.key(1), samples)
    errors = []
    # One rate is enough: both parameterizations are the same random function.
    for width in widths if parameterization == "ntk" else widths[1:]:
        architecture = factory(width=width)
        expected = np.asarray(ntkit.ntk(architecture)(x))
        found = np.asarray(empirical_ntks(architecture.flax(), x, keys))
        errors.append(np.sqrt(np.mean((found / expected - 1) ** 2)))
    # The mean over networks has a bias of 1/width, and a spread that falls with their number.
    np.testing.assert_allclose(found.mean(0), expected, rtol=0.08)
    assert errors[-1] < 0.2
    if len(errors) == 2:
        rate = np.log(errors[0] / errors[1]) / np.log(widths[1] / widths[0])
        assert 0.35 < rate < 0.65, errors  # 1 / sqrt(width)
