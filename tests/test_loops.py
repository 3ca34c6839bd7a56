"""Convolutions in the layout that XLA's CPU backend has a library call for, also inside of loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ntkit._loops import fast_in_loops, slow_in_loops

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 8, 7, 4)).astype(np.float32)
WEIGHTS = RNG.normal(size=(3, 3, 4, 6)).astype(np.float32)
CONVOLUTIONS = {
    "same": {"padding": "SAME"},
    "strides": {"window_strides": (2, 3), "padding": "VALID"},
    "padding on one side": {"padding": ((1, 0), (0, 2))},
    "dilated": {"padding": "SAME", "rhs_dilation": (2, 2)},
    "transposed": {"padding": ((2, 2), (2, 1)), "lhs_dilation": (2, 3)},
    "groups": {"padding": "SAME", "feature_group_count": 2},
    "other layout": {"padding": "SAME", "dimension_numbers": ("NCHW", "OIHW", "NHWC")},
    "a batch in groups": {"padding": "SAME", "batch_group_count": 3},
}


def convolution(images, weights, **options):
    options = {"window_strides": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC")} | options
    first, second = options["dimension_numbers"][:2]
    images = images.transpose(["NHWC".index(axis) for axis in first])
    weights = weights[:, :, : 4 // options.get("feature_group_count", 1)]
    weights = weights.transpose(["HWIO".index(axis) for axis in second])
    return lax.conv_general_dilated(images, weights, **options)


def layouts(function, *arguments):
    """The layout of each convolution in what is traced, and in what that calls."""

    def of(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "conv_general_dilated":
                yield tuple(equation.params["dimension_numbers"])
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")):
                if hasattr(inner, "eqns"):
                    yield from of(getattr(inner, "jaxpr", inner))

    return set(of(jax.make_jaxpr(function)(*arguments).jaxpr))


LIBRARY = {((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if i % 2 else []) for i, n in enumerate(CONVOLUTIONS)]
)
def test_derivatives_are_the_same_in_the_layout_of_the_library(name) -> None:
    def total(images, weights):
        return jnp.sum(jnp.tanh(convolution(images, weights, **CONVOLUTIONS[name])))

    for function in (total, jax.value_and_grad(total, (0, 1))):
        found = jax.jit(fast_in_loops(function))(IMAGES, WEIGHTS)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, function(IMAGES, WEIGHTS)
        )
        assert layouts(fast_in_loops(function), IMAGES, WEIGHTS) == LIBRARY
    assert layouts(jax.grad(total), IMAGES, WEIGHTS) != LIBRARY


@jax.custom_vjp
def with_a_rule(images, weights):
    return convolution(images, weights, padding="SAME")


with_a_rule.defvjp(
    lambda images, weights: (with_a_rule(images, weights), weights),
    lambda weights, slope: (convolution(jnp.tile(slope[..., :1], 4), weights, padding="SAME")[..., :4], None),
)


@jax.custom_jvp
def with_another(images, weights):
    return convolution(images, weights, padding="SAME")


with_another.defjvp(lambda given, slopes: (with_another(*given), 3 * with_another(slopes[0], given[1])))
CALLS = {
    "jit": jax.jit(functools.partial(convolution, padding="SAME")),
    "checkpoint": jax.checkpoint(functools.partial(convolution, padding="SAME")),
    "custom_vjp": with_a_rule,
    "custom_jvp": with_another,
}


@pytest.mark.parametrize("name", CALLS)
def test_functions_that_are_called(name) -> None:
    def total(images):
        return jnp.sum(jnp.tanh(CALLS[name](images, WEIGHTS))), {"other": images[0], "number": 2.0}

    for function in (total, jax.grad(total, has_aux=True)):
        found = jax.jit(fast_in_loops(function))(IMAGES)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, function(IMAGES))
        assert layouts(fast_in_loops(function), IMAGES) == LIBRARY


def test_inside_of_loops_with_what_is_closed_over() -> None:
    def once(scale, image):
        return jax.grad(lambda image: jnp.sum(jnp.tanh(scale * convolution(image, WEIGHTS, padding="SAME"))))(image)

    def looped(scale, images, wrap):
        return lax.fori_loop(0, 3, lambda i, image: image + wrap(functools.partial(once, scale * i))(image), images)

    found, expected = (jax.jit(looped, static_argnums=2)(0.1, IMAGES, wrap) for wrap in (fast_in_loops, lambda f: f))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_without_convolutions_it_is_the_function_itself() -> None:
    function = jax.nn.relu
    found = jax.make_jaxpr(fast_in_loops(function))(IMAGES)
    assert str(found) == str(jax.make_jaxpr(function)(IMAGES))


@pytest.mark.parametrize(("backend", "slow"), [("cpu", True), ("gpu", False), ("tpu", False)])
def test_only_a_cpu_is_slow(monkeypatch, backend, slow) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    convolve = functools.partial(convolution, padding="SAME")
    assert slow_in_loops(jax.jit(convolve), IMAGES, WEIGHTS) == slow
    assert not slow_in_loops(jnp.matmul, IMAGES[0, 0], IMAGES[0, 0].T)
    slope = jax.grad(lambda images: jnp.sum(jnp.tanh(convolve(images, WEIGHTS))))
    assert (layouts(fast_in_loops(slope), IMAGES) == LIBRARY) == slow
