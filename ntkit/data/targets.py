"""Class labels as targets, the losses on them, and the accuracy of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit._checks import (
    calling,
    check_array,
    check_call,
    check_callable,
    check_flag,
    check_integer,
    check_option,
    told,
    wrong,
)
from ntkit.data.checks import check_labels

# Of outputs and targets, each (n, outputs); a scalar.
Loss: TypeAlias = Callable[[Array, Array], Array]
# Makes a gap of 1 between two classes a likelihood ratio of e¹⁰.
TEMPERATURE = 0.1


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


def classes_of(targets: Float[Array, "n outputs"]) -> Int[Array, " n"]:
    """Give the class that each target names, from 0: that of the largest, or the sign of a single one."""
    return jnp.argmax(targets, axis=1) if targets.shape[1] > 1 else (targets[:, 0] > 0).astype(jnp.int32)


def targets_of(classes: Int[Array, " n"], outputs: int) -> Float[Array, "n outputs"]:
    """Give centred one-hot targets of classes from 0; −1 and +1 of the classes 0 and 1 for one output."""
    if outputs == 1:
        return 2.0 * classes[:, None] - 1
    return jax.nn.one_hot(classes, outputs) - 1 / outputs


def squared_errors(outputs: Float[Array, "n outputs"], targets: Float[Array, "n outputs"]) -> Float[Array, " n"]:
    """Give the squared error of each output, summed over its entries."""
    return jnp.sum((outputs - targets) ** 2, axis=1)


def cross_entropies(
    outputs: Float[Array, "n outputs"], classes: Int[Array, " n"], *, temperature: ArrayLike = 1.0
) -> Float[Array, " n"]:
    """Give −log softmax(z / temperature)_y of each output; of a single output f, which stands for (−f, f), too."""
    logits = jnp.concatenate([-outputs, outputs], axis=1) if outputs.shape[1] == 1 else outputs
    given = not (isinstance(temperature, float) and temperature == 1)
    log_likelihood = jax.nn.log_softmax(logits / temperature if given else logits)
    return -jnp.take_along_axis(log_likelihood, classes[:, None], axis=1)[:, 0]


def mse(outputs: Float[Array, "n outputs"], targets: Float[Array, "n outputs"]) -> Float[Array, ""]:
    """Give half the squared error, summed over outputs and averaged over inputs.

    The loss of KIP, eq. 7 of Nguyen, Chen, Lee 2021 (arXiv:2011.00050), per target.
    """
    return 0.5 * jnp.mean(squared_errors(outputs, targets))


def cross_entropy(
    predictions: Float[Array, "n classes"], targets: Float[Array, "n classes"], *, temperature: ArrayLike = TEMPERATURE
) -> Float[Array, ""]:
    """Softmax cross-entropy of predictions / temperature against the class with the largest target.

    **Arguments:**

    - `predictions`: outputs of a kernel predictor, on the scale of the targets (about 1 from class to class).
    - `targets`: one-hot targets, centred or not.
    - `temperature`: above 0; 0.1 makes a gap of 1 between two classes a likelihood ratio of e¹⁰. It may be traced.
    """
    return jnp.mean(cross_entropies(predictions, classes_of(targets), temperature=temperature))


# Of kernel predictors.
LOSSES: dict[str, Loss] = {"mse": mse, "cross_entropy": cross_entropy}


def check_loss(loss: str | Loss, losses: Mapping[str, Loss], outputs: int, dtype: np.dtype) -> Loss:
    """Give the loss of a name, or a function as it is if it gives a scalar; `ValueError` for anything else."""
    chosen = check_option("loss", loss, losses, "a function of outputs and targets")
    shape = jax.ShapeDtypeStruct((2, outputs), dtype)
    found = check_call("loss", chosen, shape, shape)
    if getattr(found, "shape", None) != ():
        raise ValueError(f"loss: got one that gives {told(found)}, expected a scalar")
    return chosen


def accuracy(
    model: Callable[[Array], Array],
    x: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    *,
    batch_size: int = 500,
) -> float:
    """Give the fraction of inputs that a model classifies as labelled, in [0, 1].

    **Arguments:** `model`: any callable from images to outputs (n, classes), or (n, 1). `labels`: int classes, or −1
    and +1 for a model with one output. `batch_size`: inputs per call of the model.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the model's outputs are not finite.
    """
    x, labels = np.asarray(check_array("x", x)), np.asarray(check_array("labels", labels, "integer classes (n,)"))
    if x.ndim == 0:
        raise wrong("x", x, "inputs (n, …)")
    if labels.shape != (len(x),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: got {labels.dtype} of shape {labels.shape}, expected integers of shape ({len(x)},)")
    if len(x) == 0:
        raise ValueError("x: got no inputs, expected at least one")
    batch_size = check_integer("batch_size", batch_size)
    check_callable("model", model, "a callable from inputs to outputs")
    correct = 0
    for start in range(0, len(x), batch_size):
        batch = x[start : start + batch_size]
        count = len(batch)
        if start > 0 and count < batch_size:
            # One shape, one compilation: the last batch is filled up with the first inputs.
            batch = np.concatenate([batch, x[: batch_size - count]])
        with calling("model"):
            found = model(jnp.asarray(batch))
        outputs = np.asarray(check_array("model", found, f"an array ({len(batch)}, classes)"))
        if outputs.ndim != 2 or len(outputs) != len(batch):
            raise ValueError(f"model: got outputs of shape {outputs.shape}, expected ({len(batch)}, classes)")
        outputs = outputs[:count]
        if not np.isfinite(outputs).all():
            raise FloatingPointError("accuracy: the model's outputs: not finite")
        correct += int(np.sum(_classes(outputs, labels) == labels[start : start + count]))
    return correct / len(x)


def _classes(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    classes = outputs.shape[1]
    if classes > 1:
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(
                f"labels: got {labels.min()} to {labels.max()}, expected 0 to {classes - 1} for {classes} outputs"
            )
        return outputs.argmax(axis=1)
    if not np.all(np.abs(labels) == 1):
        raise ValueError("labels: a model with one output expects labels −1 and +1")
    return np.where(outputs[:, 0] >= 0, 1, -1)
