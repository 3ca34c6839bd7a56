"""NTGA: neural tangent generalization attacks, Yuan & Wu 2021 (ICML, PMLR 139)."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit import regression
from ntkit._checks import check_array, check_integer, check_key, check_number, check_positive, wrong
from ntkit._pytrees import pytree_dataclass, static_field
from ntkit.attacks.balls import Ball, check_ball
from ntkit.data import Preprocessing, check_labels, one_hot
from ntkit.data.preprocess import check_preprocessing
from ntkit.data.targets import LOSSES, Loss, check_loss
from ntkit.distill.batches import ClassIndex
from ntkit.distill.support import check_data_set, in_jax_precision
from ntkit.kernels import Kernel
from ntkit.kernels.base import check_kernel
from ntkit.runs import Method, Session, iterate
from ntkit.runs.session import check_session


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
    loss: str | Loss = "mse",
    target_batch: int | None = 5000,
    preprocessing: Preprocessing | None = None,
    session: Session | None = None,
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
    - `loss`: `"mse"`, `"cross_entropy"`, or a function of predictions and targets (both (m, classes)) that gives a
      scalar to be maximized.
    - `target_batch`: validation images of each step, a random class-balanced batch, the same ones for every block;
      `None`, or at least m: all.
    - `preprocessing`: what the kernel's inputs are made with, of pixels: the ball is one of pixels whatever the kernel
      is fed. Not a kernel of pixels, which would preprocess the validation images at every step.
    - `session`: records, checkpoints and progress, an `ntkit.runs.Session`; a record at every step, unless it says
      otherwise. Its `evaluate` is called with all images, as far as they are poisoned.

    **Returns:** the poisoned images, in the order of `images` and the precision that JAX computes with (float32 unless
    x64 is on): each of them inside its ball and the bounds.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if a loss or gradient is not finite, or a
    gradient is zero at all images of a block; `Interrupted` (a `KeyboardInterrupt`) on Ctrl-C or SIGTERM, after the
    step was finished and, with a `run`, saved.
    """
    check_kernel("kernel", kernel)
    check_ball("ball", ball)
    images, labels, num_classes = check_data_set(images, labels)
    images = ball.check_pixels("images", images)
    check_key("key", key)
    block_size, steps = check_integer("block_size", block_size), check_integer("steps", steps)
    time = check_number("time", time, above=0, infinite=True)
    step_size = 1.1 * ball.radius / steps if step_size is None else check_positive("step_size", step_size)
    if target_batch is not None:
        target_batch = check_integer("target_batch", target_batch)
    session = Session() if session is None else check_session(session)
    if preprocessing is not None:
        check_preprocessing("preprocessing", preprocessing, images.shape[1:])
    clean, classes = images, labels
    if validation is not None:
        clean, classes = _check_validation(validation, images, num_classes, ball)
    key_blocks, key_steps = jax.random.split(key)
    dtype = images.dtype
    blocks = _blocks(labels, num_classes, block_size, key_blocks)
    method = _NTGA(
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
        ball=ball,
        loss=check_loss(loss, LOSSES, num_classes, dtype),
        target_batch=None if target_batch is None or target_batch >= len(clean) else target_batch,
    )
    state, _ = iterate(method, len(blocks) * steps, session)
    return np.asarray(state.images)


@pytree_dataclass
class _State:
    """All images, as far as they are poisoned, and the steps so far."""

    images: Array
    step: Array


@pytree_dataclass(eq=False)
class _NTGA(Method[_State]):
    """Steps of the attack, each with one block.

    `images` and `targets` are the training set, `rows` the indices of each block's images, and `validation_images` as
    fed to the kernel.
    """

    what: ClassVar[str] = "poison"
    log_every: ClassVar[int] = 1
    diverged: ClassVar[str] = "poisoning failed"
    advice: ClassVar[str] = (
        "that, or its gradient, was not finite, or the gradient was zero; try another time, a loss with a gradient, or "
        "x64"
    )

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
    ball: Ball = static_field()
    loss: Loss = static_field()
    target_batch: int | None = static_field()

    @property
    def one_by_one(self) -> bool:
        return True

    def init(self) -> _State:
        return _State(self.images, jnp.zeros((), jnp.int32))

    def step(self, state: _State) -> tuple[_State, dict[str, Array]]:
        block, step = jnp.divmod(state.step, self.steps)
        rows = self.rows[block]
        current, own = state.images[rows], self.targets[rows]
        images, targets = self.validation_images, self.validation_targets
        if self.target_batch is not None:
            # The same in all blocks, which then work toward one end.
            chosen = self.by_class.draw(jax.random.fold_in(self.key, step), self.target_batch)
            images, targets = images[chosen], targets[chosen]

        def objective(support: Array) -> Array:
            if self.preprocessing is not None:
                support = self.preprocessing.transform(support)
            return self.loss(regression.flow(self.kernel, support, own, self.time)(images), targets)

        loss, gradient = jax.value_and_grad(objective)(current)
        moved = self.ball.project(self.images[rows], current + self.step_size * self.ball.steepest(gradient))
        # Without a gradient nothing would be poisoned, and nobody would know.
        good = jnp.all(jnp.isfinite(gradient)) & jnp.any(gradient != 0)
        return _State(state.images.at[rows].set(moved), state.step + 1), {"loss": jnp.where(good, loss, jnp.nan)}

    def model(self, state: _State) -> Array:
        return state.images


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
    validation: object, images: np.ndarray, num_classes: int, ball: Ball
) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(validation, tuple | list) or len(validation) != 2:
        raise wrong("validation", validation, "(images, labels)")
    clean, classes = in_jax_precision("validation", validation[0]), check_array("validation", validation[1], "labels")
    if clean.shape[1:] != images.shape[1:]:
        raise ValueError(f"validation: got images of shape {clean.shape[1:]}, expected {images.shape[1:]} as in images")
    clean = ball.check_pixels("validation", clean)
    check_labels("validation", classes, len(clean), num_classes)
    classes = np.asarray(classes)
    if len(absent := np.setdiff1d(np.arange(num_classes), classes)):
        raise ValueError(
            f"validation: got no examples of class {absent[0]} of {num_classes}, expected some of each class"
        )
    return clean.astype(images.dtype, copy=False), classes
