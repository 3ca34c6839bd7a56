"""NTGA: neural tangent generalization attacks, Yuan & Wu 2021 (ICML, PMLR 139)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit import regression
from ntkit._checks import check_array, check_integer, check_key, check_number, check_positive, wrong
from ntkit._pytrees import told_apart
from ntkit.attacks.balls import Ball, check_ball, into_bounds
from ntkit.attacks.problem import Bounds
from ntkit.data import Preprocessing, check_labels, one_hot
from ntkit.data.preprocess import check_preprocessing
from ntkit.distill.batches import ClassIndex
from ntkit.distill.losses import Loss, check_loss
from ntkit.distill.support import check_data_set, in_jax_precision
from ntkit.kernels import Kernel
from ntkit.kernels.base import check_kernel
from ntkit.runs import Loop, Run
from ntkit.runs.loop import check_session

PREPROCESSED = "; give the kernel's preprocessing as preprocessing="


def ntga(
    kernel: Kernel,
    images: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    ball: Ball,
    *,
    key: Array,
    time: float,
    validation: tuple[Float[ArrayLike, "m ..."], Int[ArrayLike, " m"]] | None = None,
    block_size: int = 512,
    steps: int = 10,
    step_size: float | None = None,
    bounds: Bounds = (0, 1),
    loss: str | Loss = "mse",
    num_classes: int | None = None,
    target_batch: int | None = 5000,
    preprocessing: Preprocessing | None = None,
    run: Run | None = None,
    checkpoint_every: float = 60.0,
    show_progress: bool = False,
) -> Float[np.ndarray, "n ..."]:
    """Poison a training set: change every image a little, so that networks trained on the set fail on clean test data.

    Neural tangent generalization attacks, algorithm 1 of Yuan & Wu 2021 (ICML) in blocks. The set is divided into
    random blocks of the same classes. A block's images take projected steps of steepest ascent of L(f_t(X), Y), where
    (X, Y) are clean validation images, and f_t is the infinitely wide network that gradient flow trains on the block to
    time t, in closed form ([`ntkit.regression.flow`][]). The labels stay as they are.

    **Arguments:**

    - `kernel`: of the surrogate network, its NTK. The networks that are to fail need not be the same.
    - `images`: the training set, pixels within the bounds: (n, height, width, channels) or (n, d).
    - `labels`: its classes, integers from 0.
    - `ball`: [`ntkit.attacks.Linf`][] or [`L2`][ntkit.attacks.L2], in the units of the pixels.
    - `key`: a `jax.random` key, of the blocks and batches.
    - `time`: t of [`ntkit.regression.flow`][], above 0: the flow on ½ · mean((f − y)²) over all n · outputs targets.
      The same as the paper's t. As the loss is a mean, it does not depend on the size of a block, but on the number of
      classes and the scale of the kernel.
    - `validation`: clean images and labels, on which the networks are to fail: best of the kind of the training set,
      but not in it (default: the training set itself).
    - `block_size`: images of a block at most. All blocks have one size: the last is filled up with images of the first,
      which then take its steps too. Larger blocks poison better; a step takes the third power of it.
    - `steps`: gradient steps of each block.
    - `step_size`: in the units of the radius (default: 1.1 · radius / steps, as in the authors' code).
    - `bounds`: (lowest, highest) of the pixels.
    - `loss`: `"mse"`, `"cross_entropy"`, or a function of predictions and targets (both (m, classes)) that gives a
      scalar to be maximized.
    - `num_classes`: number of classes (default: the largest label plus one).
    - `target_batch`: validation images of each step, a random class-balanced batch, the same ones for every block;
      `None`, or at least m: all.
    - `preprocessing`: what the kernel's inputs are made with, of pixels: the ball is one of pixels whatever the kernel
      is fed.
    - `run`: a run directory to log the losses and to checkpoint to. If it has a checkpoint, the run goes on from there.
    - `checkpoint_every`: seconds between checkpoints.
    - `show_progress`: whether to show a progress bar on stderr.

    **Returns:** the poisoned images, in the order of `images` and the precision that JAX computes with (float32 unless
    x64 is on): each of them inside its ball and the bounds.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if a loss or gradient is not finite, or a
    gradient is zero at all images of a block; `Interrupted` (a `KeyboardInterrupt`) on Ctrl-C or SIGTERM, after the
    step was finished and, with a `run`, saved.
    """
    check_kernel("kernel", kernel)
    bounds = check_ball(ball, bounds)
    images, labels, num_classes = check_data_set(images, labels, num_classes)
    images = into_bounds("images", images, bounds, hint=PREPROCESSED)
    check_key("key", key)
    block_size, steps = check_integer("block_size", block_size), check_integer("steps", steps)
    time = check_number("time", time, above=0, infinite=True)
    step_size = 1.1 * ball.radius / steps if step_size is None else check_positive("step_size", step_size)
    if target_batch is not None:
        target_batch = check_integer("target_batch", target_batch)
    check_session(1, run, checkpoint_every, show_progress)
    if preprocessing is not None:
        check_preprocessing("preprocessing", preprocessing, images.shape[1:])
    clean, classes = images, labels
    if validation is not None:
        clean, classes = _check_validation(validation, images, num_classes, bounds)
    how = _How(
        ball=ball,
        bounds=bounds,
        loss=check_loss(loss, num_classes, images.dtype),
        target_batch=None if target_batch is None or target_batch >= len(clean) else target_batch,
    )
    key_blocks, key_steps = jax.random.split(key)
    dtype = images.dtype
    blocks = _blocks(labels, num_classes, block_size, key_blocks)
    fixed = _Fixed(
        key=key_steps,
        kernel=jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), kernel),
        time=np.asarray(time, dtype),
        step_size=jnp.asarray(step_size, dtype),
        preprocessing=preprocessing,
        images=jnp.asarray(images),
        targets=jnp.asarray(one_hot(labels, num_classes), dtype),
        rows=jnp.asarray(blocks, jnp.int32),
        steps=jnp.asarray(steps, jnp.int32),
        validation_images=jnp.asarray(clean if preprocessing is None else preprocessing.transform(clean), dtype),
        validation_targets=jnp.asarray(one_hot(classes, num_classes), dtype),
        by_class=ClassIndex.of(classes, num_classes),
    )
    state = _State(jnp.array(images), jnp.zeros((), jnp.int32), jnp.zeros((), dtype))
    loop = Loop(
        advance=lambda state, _: _step(how, fixed, state),
        record=_record,
        steps=len(blocks) * steps,
        log_every=1,
        what="poison",
        run=run,
        checkpoint_every=checkpoint_every,
        show_progress=show_progress,
        one_by_one=True,
    )
    state, _ = loop(state)
    return np.asarray(state.images)


class _How(NamedTuple):
    """What a step is compiled for."""

    ball: Ball
    bounds: Bounds
    loss: Loss
    target_batch: int | None


@told_apart
@dataclasses.dataclass(frozen=True)
class _Fixed:
    """What no step changes.

    `images` and `targets` are the training set, `rows` the indices of each block's images, and `validation_images` as
    fed to the kernel.
    """

    key: Array
    kernel: Kernel
    time: Array | np.ndarray  # NumPy's, since it may be infinite, which jax_debug_infs finds in JAX's
    step_size: Array
    preprocessing: Preprocessing | None
    images: Array
    targets: Array
    rows: Int[Array, "blocks size"]
    steps: Array
    validation_images: Array
    validation_targets: Array
    by_class: ClassIndex


@told_apart
@dataclasses.dataclass(frozen=True)
class _State:
    """All images, as far as they are poisoned, the steps so far, and the loss before the last, NaN if it failed."""

    images: Array
    step: Array
    loss: Array


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _step(how: _How, fixed: _Fixed, state: _State) -> _State:
    """Take one step with one block."""
    block, step = jnp.divmod(state.step, fixed.steps)
    rows = fixed.rows[block]
    current, own = state.images[rows], fixed.targets[rows]
    images, targets = fixed.validation_images, fixed.validation_targets
    if how.target_batch is not None:
        # The same in all blocks, which then work toward one end.
        chosen = fixed.by_class.draw(jax.random.fold_in(fixed.key, step), how.target_batch)
        images, targets = images[chosen], targets[chosen]

    def objective(support: Array) -> Array:
        if fixed.preprocessing is not None:
            support = fixed.preprocessing.transform(support)
        return how.loss(regression.flow(fixed.kernel, support, own, fixed.time)(images), targets)

    loss, gradient = jax.value_and_grad(objective)(current)
    moved = how.ball.project(fixed.images[rows], current + fixed.step_size * how.ball.steepest(gradient), how.bounds)
    # Without a gradient nothing would be poisoned, and nobody would know.
    good = jnp.all(jnp.isfinite(gradient)) & jnp.any(gradient != 0)
    return _State(
        state.images.at[rows].set(moved), state.step + 1, jnp.where(good, loss, jnp.nan).astype(state.loss.dtype)
    )


def _record(step: int, state: _State) -> tuple[dict[str, Any], _State]:
    loss = float(state.loss)
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"poisoning failed: at step {step} of all blocks the loss or its gradient was not finite, or the gradient "
            "was zero; try another time, a loss with a gradient, or x64"
        )
    return {"step": step, "loss": loss}, state


def _blocks(labels: np.ndarray, num_classes: int, block_size: int, key: Array) -> Int[np.ndarray, "blocks size"]:
    """Divide images into random blocks of one size, each with about its share of every class.

    **Returns:** indices of each block's images. The last block is filled up with images of the first.
    """
    order = np.asarray(jax.random.permutation(key, len(labels)))
    # Where in its class an image is, from 0 to 1: sorted by that, every stretch has its share of each class.
    place = np.empty(len(labels))
    for label in range(num_classes):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = order[np.argsort(place[order], kind="stable")]
    count = -(-len(labels) // block_size)
    return np.resize(order, (count, -(-len(labels) // count)))


def _check_validation(
    validation: object, images: np.ndarray, num_classes: int, bounds: Bounds
) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(validation, tuple | list) or len(validation) != 2:
        raise wrong("validation", validation, "(images, labels)")
    clean, classes = in_jax_precision("validation", validation[0]), check_array("validation", validation[1], "labels")
    if clean.shape[1:] != images.shape[1:]:
        raise ValueError(f"validation: got images of shape {clean.shape[1:]}, expected {images.shape[1:]} as in images")
    clean = into_bounds("validation", clean, bounds, hint=PREPROCESSED)
    check_labels("validation", classes, len(clean), num_classes)
    classes = np.asarray(classes)
    if len(absent := np.setdiff1d(np.arange(num_classes), classes)):
        raise ValueError(
            f"validation: got no examples of class {absent[0]} of {num_classes}, expected some of each class"
        )
    return clean.astype(images.dtype, copy=False), classes
