"""Square Attack: a search at random that asks for nothing but the model's outputs."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ntkit._checks import check_integer, check_number
from ntkit._loops import fast_in_loops
from ntkit.attacks.attack import Attack
from ntkit.attacks.balls import Linf, check_norm
from ntkit.attacks.problem import Model
from ntkit.attacks.shrinking import shrinking_loop
from ntkit.attacks.task import Task

# The share of pixels in a square is halved after these queries of 10,000 (Andriushchenko et al. 2020, section 5.1).
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
OF_QUERIES = 10_000


@dataclasses.dataclass(frozen=True)
class Square(Attack):
    """Change one random square after the other to the ball's corners, and keep what makes the model worse: Square.

    Andriushchenko et al. 2020 (arXiv:1912.00049), algorithms 1 to 3. It needs no gradient and no derivative rule, so it
    shows whether a model that resists gradients is robust or only hides them. The model may also be a function of NumPy
    arrays.

    **Fields:**

    - `ball`: [`Linf`][ntkit.attacks.Linf] or [`L2`][ntkit.attacks.L2]. Of vectors (n, d) the squares are segments.
    - `queries`: evaluations of the model for each image, at most: none once the model is wrong about it.
    - `share`: the share of pixels in the first squares; it falls as in the paper.

    Of each image the one of the largest margin is kept.

    **Raises:** `ValueError` that names the field.
    """

    queries: int = dataclasses.field(default=5000, kw_only=True)
    share: float = dataclasses.field(default=0.8, kw_only=True)
    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_norm("ball", self.ball)
        object.__setattr__(self, "queries", check_integer("queries", self.queries))
        object.__setattr__(self, "share", check_number("share", self.share, above=0, most=1))

    def perturb(self, model: Model, task: Task) -> tuple[Array, Array]:
        shape = task.x.shape
        if len(shape) == 2:
            # A vector is an image of one column.
            mask = None if task.mask is None else task.mask[:, :, None, None]
            task = dataclasses.replace(task, x=task.x[:, :, None, None], mask=mask)
        sizes = jnp.asarray(sides(self.queries, self.share, task.x.shape[1:3]))
        start, propose = (_linf, _change_linf) if isinstance(self.ball, Linf) else (_l2, _change_l2)
        own = 0 if task.radii is not None else None

        def evaluate(task: Task, candidate: Array) -> tuple[Array, Array]:
            outputs = fast_in_loops(model)(candidate.reshape(-1, *shape[1:]))
            return task.goal.margin(outputs), task.reached(outputs)

        def step(i: Array, task: Task, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            current, worst, done = state
            change = jax.vmap(propose, (own, None, 0, 0, 0))
            candidate = task.project(change(task.radius_each, sizes[i], task.own_keys(i), task.x, current))
            margins, wrong = evaluate(task, candidate)
            better = ~done & (wrong | (margins > worst))
            return task.keep(~better, current, candidate), jnp.maximum(margins, worst), done | wrong

        begin = task.project(jax.vmap(start, (own, 0, 0))(task.radius_each, task.keys, task.x))
        worst, wrong = evaluate(task, begin)
        state = (task.keep(task.done, task.x, begin), worst, task.done | wrong)
        found, _, done = shrinking_loop(step, lambda state: state[2], task, state, self.queries, first=1)
        return found.reshape(shape), done


def shares(queries: int, share: float) -> np.ndarray:
    """Give the share of pixels in the square of each query."""
    scaled = np.arange(queries) / queries * OF_QUERIES
    return share / 2.0 ** np.searchsorted(HALVED_AFTER, scaled, side="left")


def sides(queries: int, share: float, shape: tuple[int, ...]) -> np.ndarray:
    """Give the height and width of the square of each query, (queries, 2)."""
    height, width = shape
    area = shares(queries, share) * height * width
    if 1 in shape:
        return np.maximum(1, np.minimum(np.rint(area)[:, None], shape)).astype(np.int32)
    side = np.maximum(1, np.minimum(np.rint(np.sqrt(area)), min(shape)))
    return np.stack([side, side], axis=1).astype(np.int32)


def _linf(radius: float, key: Array, x: Array) -> Array:
    """Begin with vertical stripes (section 3.2 of the paper); of a vector every value is one."""
    height, width, channels = x.shape
    stripes = (height, 1, channels) if width == 1 else (1, width, channels)
    return x + radius * jax.random.rademacher(key, stripes, x.dtype)


def _change_linf(radius: float, size: Array, key: Array, x: Array, current: Array) -> Array:
    """Algorithm 2: one square, of one sign in each channel."""
    key_place, key_sign = jax.random.split(key)
    inside = _window(_place(key_place, size, x), size, x)
    return jnp.where(inside, x + radius * jax.random.rademacher(key_sign, (1, 1, x.shape[2]), x.dtype), current)


def _place(key: Array, size: Array, x: Array) -> Array:
    """Draw the upper left corner of a window."""
    room = jnp.array(x.shape[:2]) - size + 1
    drawn = jax.random.uniform(key, (2,), x.dtype)
    return jnp.minimum((drawn * room).astype(jnp.int32), room - 1)


def _window(place: Array, size: Array, x: Array) -> Array:
    """Whether each pixel is in a window, (height, width, 1)."""
    rows, columns = (jnp.arange(n) for n in x.shape[:2])
    down = (rows >= place[0]) & (rows < place[0] + size[0])
    right = (columns >= place[1]) & (columns < place[1] + size[1])
    return (down[:, None] & right[None])[:, :, None]


def _l2(radius: float, key: Array, x: Array) -> Array:
    """Begin with a bump of random sign in each of 5 × 5 tiles (section 3.4 of the paper); of a vector 5 segments."""
    height, width, channels = x.shape
    size = [max(n // 5, min(n, 3)) for n in (height, width)]
    change = jnp.zeros_like(x)
    for i in range(height // size[0]):
        for j in range(width // size[1]):
            key, key_sign, key_turn = jax.random.split(key, 3)
            place = jnp.array([i * size[0], j * size[1]])
            signs = jax.random.rademacher(key_sign, (1, 1, channels), x.dtype)
            change += signs * _bumps(key_turn, jnp.array(size), place, x)
    return x + radius * change / jnp.sqrt(jnp.sum(change**2))


def _change_l2(radius: float, size: Array, key: Array, x: Array, current: Array) -> Array:
    """Algorithm 3: what two windows hold of the perturbation, and what is left of the radius, goes to a bump in one."""
    key_one, key_other, key_sign, key_turn = jax.random.split(key, 4)
    # A bump has no middle in less than 3 pixels.
    size = jnp.minimum(jnp.maximum(size, 3), jnp.array(x.shape[:2]))
    place = _place(key_one, size, x)
    one, other = _window(place, size, x), _window(_place(key_other, size, x), size, x)
    change = current - x

    def squares(part: Array) -> Array:
        return jnp.sum(part**2, axis=(0, 1), keepdims=True)

    unused = jnp.maximum(radius**2 - jnp.sum(change**2), 0)
    available = jnp.sqrt(squares(jnp.where(one | other, change, 0)) + unused / x.shape[2])
    old = jnp.where(one, change, 0)
    signs = jax.random.rademacher(key_sign, (1, 1, x.shape[2]), x.dtype)
    new = signs * _bumps(key_turn, size, place, x) + _scaled(old, jnp.sqrt(squares(old)))
    new = available * _scaled(new, jnp.sqrt(squares(new)))
    return x + jnp.where(one, new, jnp.where(other, 0, change))


def _scaled(a: Array, norm: Array) -> Array:
    return a / jnp.where(norm > 0, norm, 1)


def _bumps(key: Array, size: Array, place: Array, x: Array) -> Array:
    """Give a window's two bumps, one above the other or side by side, of opposite sign: (height, width, 1), norm 1."""
    above = _halves(size, place, x.shape[:2])
    if 1 in x.shape[:2]:
        found = above
    else:
        beside = _halves(size[::-1], place[::-1], x.shape[1::-1]).T
        found = jnp.where(jax.random.bernoulli(key), above, beside)
    norm = jnp.sqrt(jnp.sum(found**2))
    return _scaled(found, norm)[:, :, None].astype(x.dtype)


def _halves(size: Array, place: Array, shape: tuple[int, ...]) -> Array:
    """Give a bump in the upper half of a window and its negative in the lower one, (height, width).

    A bump is a pile of centred squares, of 1, 3, 5, … pixels a side, of which the i-th counts 1 / i².
    """
    rows, columns = (jnp.arange(n) - start for n, start in zip(shape, place, strict=True))
    piled = jnp.asarray(np.concatenate([[0], np.cumsum(1 / np.arange(1, max(shape) + 2) ** 2)]))
    half = size[0] // 2

    def bump(first: Array | int, height: Array) -> Array:
        centre = (first + height // 2, size[1] // 2)
        distance = jnp.maximum(jnp.abs(rows - centre[0])[:, None], jnp.abs(columns - centre[1])[None])
        most = jnp.maximum(height, size[1]) // 2 + 1
        inside = (rows >= first) & (rows < first + height)
        inside = inside[:, None] & ((columns >= 0) & (columns < size[1]))[None]
        return jnp.where(inside & (distance < most), piled[most] - piled[jnp.minimum(distance, most)], 0)

    upper, lower = bump(0, half), bump(half, size[0] - half)
    return _scaled(upper, jnp.sqrt(jnp.sum(upper**2))) - _scaled(lower, jnp.sqrt(jnp.sum(lower**2)))
