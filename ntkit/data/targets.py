"""Regression targets from class labels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit._checks import check_flag, check_integer
from ntkit.data.checks import check_labels


def one_hot(labels: Int[ArrayLike, " n"], num_classes: int, *, centred: bool = True) -> Float[Array, "n classes"]:
    """One-hot regression targets, with the mean over classes taken off unless told otherwise.

    Centred targets are those of the KIP papers (Nguyen, Chen & Lee 2021, arXiv:2011.00050): a kernel predictor
    that knows nothing answers 0, which should be a guess in favour of no class.

    **Arguments:**

    - `labels`: integer classes (n,) in [0, num_classes). Under `jit` their values cannot be checked; there a label
      out of range gives a row with no class.
    - `num_classes`: the number of classes C, at least 1.
    - `centred`: True for 1 − 1/C and −1/C, False for 1 and 0.

    **Returns:** float32 targets (n, num_classes).

    **Raises:** `ValueError` if `num_classes` is not a positive integer, or `labels` are not such classes.
    """
    classes = check_integer("num_classes", num_classes)
    check_flag("centred", centred)
    check_labels("labels", labels, None, classes)
    targets = jax.nn.one_hot(jnp.asarray(labels), classes, dtype=jnp.float32)
    return targets - 1.0 / classes if centred else targets
