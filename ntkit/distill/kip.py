"""KIP: kernel inducing points, Algorithm 1 of Nguyen, Chen, Lee 2021 (arXiv:2011.00050)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit import attacks, regression
from ntkit._checks import (
    MOST,
    changed,
    check_callable,
    check_flag,
    check_integer,
    check_key,
    check_number,
    check_optimizer,
    wrong,
)
from ntkit._pytrees import as_pytree, static, told_apart
from ntkit.data import Preprocessing, one_hot
from ntkit.data.preprocess import check_preprocessing
from ntkit.distill.batches import ClassIndex
from ntkit.distill.devices import Devices
from ntkit.distill.distilled import Distilled
from ntkit.distill.losses import Loss, check_loss
from ntkit.distill.support import Init, check_data_set, initial_support
from ntkit.kernels import Kernel
from ntkit.kernels.base import check_kernel
from ntkit.runs import Loop, Run, columns
from ntkit.runs.loop import check_record, check_session

if TYPE_CHECKING:
    import optax

Model: TypeAlias = Callable[[Array], Array]
Adversary: TypeAlias = Callable[[Model, Array, Array, Array], Array]
Augment: TypeAlias = Callable[[Array, Array], Array]

LEARNING_RATE = 0.01

# Images that are preprocessed at once before the first step.
_PART = 4096


def kip(
    kernel: Kernel | Sequence[Kernel],
    images: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    *,
    per_class: int,
    steps: int,
    key: Array,
    num_classes: int | None = None,
    init: Init = "real",
    learn_labels: bool = True,
    learn_kernel: bool = False,
    optimizer: optax.GradientTransformation | None = None,
    target_batch: int | None = 5000,
    support_batch: int | None = None,
    augment: Augment | None = None,
    adversary: Adversary | None = None,
    preprocessing: Preprocessing | None = None,
    loss: str | Loss = "mse",
    ridge: float = 1e-6,
    log_every: int = 10,
    evaluate: Callable[[Model], Mapping[str, float]] | None = None,
    run: Run | None = None,
    checkpoint_every: float = 60.0,
    show_progress: bool = False,
    mesh: jax.sharding.Mesh | None = None,
) -> Distilled:
    """Distil a data set: learn a small support set on which kernel ridge regression predicts the data set.

    The whole step is compiled and many steps run per dispatch; the data go to the device once, and batches are drawn
    there. The result depends on the arguments alone: the same key on the same device gives the same bits, however
    often the run was interrupted and resumed.

    **Arguments:**

    - `kernel`: the kernel, or a family of kernels of which each step samples one.
    - `images`: the data set to distil, as fed to the kernel: (n, height, width, channels) or (n, d). With
      `preprocessing`, pixels.
    - `labels`: its classes, integers from 0.
    - `per_class`: support images of each class.
    - `steps`: gradient steps in all.
    - `key`: a `jax.random` key.
    - `num_classes`: number of classes (default: the largest label plus one).
    - `init`: `"real"` images, `"noise"`, or an array (per_class · num_classes, …) sorted by class.
    - `learn_labels`: whether the support targets are learned; they start as centred one-hot vectors.
    - `learn_kernel`: whether the kernel's hyper-parameters (all its leaves: `W_std`, `b_std`, scales) are learned.
    - `optimizer`: any optax optimizer (default: Adam with a learning rate of 0.01).
    - `target_batch`: images of each step's random, class-balanced target batch; `None`, or at least n: all.
    - `support_batch`: images of each step's random, class-balanced subset of the support set, on which alone the
      step is fitted and which alone it updates; `None`: all.
    - `augment`: `augment(key, images) -> images`, applied to each target batch, for example an
      `ntkit.data.Augmentation`.
    - `adversary`: `adversary(model, images, labels, key) -> images`, applied to each target batch with the predictor
      of the current support set: adv-KIP (Tsilivis, Su, Kempe 2022, arXiv:2207.11727). An `ntkit.attacks.Adversary`, or
      any function. Over a mesh, to each device's part of the batch, with another key on each.
    - `preprocessing`: applied to each target batch after `augment` and `adversary`, which then work on pixels, with a
      predictor of pixels: a ball is one of pixels whatever the kernel is fed. The support set is of preprocessed
      images, from the beginning on. Without an adversary it is cheaper to preprocess the data set once.
    - `loss`: `"mse"`, `"cross_entropy"`, or a function of predictions and targets (both (n, classes)).
    - `ridge`: relative to tr(K)/n, of the support set's Gram matrix.
    - `log_every`: steps between two records of the history, each of which is the mean over these steps.
    - `evaluate`: called with the current predictor (of the first kernel of a family) at each record; the numbers that
      it returns are added to the record.
    - `run`: a run directory to log and checkpoint to. If it has a checkpoint, the run goes on from there.
    - `checkpoint_every`: seconds between checkpoints.
    - `show_progress`: whether to show a progress bar on stderr.
    - `mesh`: divide each target batch among all devices of this mesh, whatever its axes; each of them holds the data
      and the support set. Losses, gradients and draws are those of one device, but for rounding and the adversary's
      draws. If the devices belong to several processes, all of these must make the same call, with the same data and
      key; only the first process uses its `run` (the others may leave it out) and shows progress. `evaluate` is called
      in each.

    **Returns:** the distilled set, with the history and, if learned, the kernel.

    **Raises:** `ValueError` that names the argument, what came and what was expected; `FloatingPointError` if the loss
    became infinite or NaN; `Interrupted` (a `KeyboardInterrupt`) on Ctrl-C or SIGTERM, after the step was finished and,
    with a `run`, saved. With several processes each of these is raised in all, or a `RuntimeError` that names the
    process that failed.
    """
    family = (kernel,) if isinstance(kernel, Kernel) else kernel
    if not isinstance(family, list | tuple) or not family or not all(isinstance(each, Kernel) for each in family):
        raise wrong("kernel", kernel, "an ntkit.Kernel such as ntkit.ntk(ntkit.fc(1)), or several in a list")
    family = tuple(check_kernel("kernel", each) for each in family)
    images, labels, num_classes = check_data_set(images, labels, num_classes)
    if preprocessing is not None:
        check_preprocessing("preprocessing", preprocessing, images.shape[1:])
    for name, function in (("augment", augment), ("adversary", adversary), ("evaluate", evaluate)):
        if function is not None:
            check_callable(name, function, "a function, or None")
    if isinstance(adversary, attacks.Adversary):
        adversary.check_pixels(images)
    per_class = check_integer("per_class", per_class, 1, MOST // num_classes)
    steps = check_integer("steps", steps, 0)
    check_key("key", key)
    check_flag("learn_labels", learn_labels)
    check_flag("learn_kernel", learn_kernel)
    ridge = check_number("ridge", ridge, least=0)
    check_session(log_every, run, checkpoint_every, show_progress)
    devices = Devices.of(mesh)
    devices.group.check_same(
        kernel=jax.tree.leaves(family),
        images=images,
        labels=labels,
        per_class=per_class,
        steps=steps,
        key=key,
        num_classes=num_classes,
        init=init,
        learn_labels=learn_labels,
        learn_kernel=learn_kernel,
        target_batch=target_batch,
        support_batch=support_batch,
        ridge=float(ridge),
        log_every=log_every,
    )
    support_size = per_class * num_classes
    algorithm = _Algorithm(
        optimizer=_optimizer(optimizer),
        loss=check_loss(loss, num_classes, images.dtype),
        target_batch=_batch_size("target_batch", target_batch, len(images)),
        support_batch=_batch_size("support_batch", support_batch, support_size),
        augment=None if augment is None else static(augment),
        ridge=ridge,
        devices=devices,
    )
    key_support, key_steps = jax.random.split(key)
    seen = images if preprocessing is None else _preprocessed(preprocessing, images)
    support = initial_support(init, seen, labels, num_classes, per_class, key_support)
    del seen
    targets = np.asarray(one_hot(labels, num_classes), images.dtype)
    place = devices.place
    fixed = _Fixed(
        key=place(key_steps),
        images=place(images),
        targets=place(targets),
        labels=place(labels.astype(np.int32)),
        by_class=place(ClassIndex.of(labels, num_classes)),
        support_by_class=place(ClassIndex.of(support.classes, num_classes)),
        adversary=None if adversary is None else place(as_pytree(adversary)),
        preprocessing=None if preprocessing is None else place(preprocessing),
    )
    learned = {"images": jnp.asarray(support.images)}
    constant: dict[str, Any] = {}
    (learned if learn_labels else constant)["labels"] = jnp.asarray(support.targets, images.dtype)
    leaves_as_arrays = jax.tree.map(lambda leaf: jnp.asarray(leaf, images.dtype), family)
    (learned if learn_kernel else constant)["kernels"] = leaves_as_arrays
    fixed = dataclasses.replace(fixed, constant=place(constant))
    state = _State(
        learned=learned,
        optimizer=algorithm.optimizer.init(learned),
        step=jnp.zeros((), jnp.int32),
        totals=_Totals.zero(images.dtype),
    )
    # An array of its own for each leaf: some optimizers begin with the parameters themselves in their state, and a
    # dispatch gives the memory of every leaf away. And none of a weak type, which only the first state would have: the
    # second dispatch would be compiled anew.
    state = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.result_type(leaf)), state)
    loop = Loop(
        advance=lambda state, count: _advance(algorithm, fixed, state, np.int32(count)),
        record=_Records(algorithm, fixed, evaluate),
        steps=steps,
        log_every=log_every,
        what="distil",
        hidden=("ridge",),
        run=run,
        checkpoint_every=checkpoint_every,
        from_argument={"learned": "kernel or support"},
        show_progress=show_progress,
        group=devices.group,
        place=devices.place,
        on_host=devices.on_host,
    )
    state, records = loop(state)
    parameters = constant | devices.on_host(state.learned)
    kernels = parameters["kernels"]
    return Distilled(
        images=np.asarray(parameters["images"]),
        labels=np.asarray(parameters["labels"]),
        history=columns(records),
        kernel=kernels[0] if isinstance(kernel, Kernel) else kernels,
    )


def _preprocessed(preprocessing: Preprocessing, images: np.ndarray) -> np.ndarray:
    """Preprocess a data set in parts, of which one at a time is on the device."""
    parts = [preprocessing.transform(images[i : i + _PART]) for i in range(0, len(images), _PART)]
    return np.concatenate([np.asarray(part, images.dtype) for part in parts])


@dataclasses.dataclass(frozen=True)
class _Algorithm:
    """What a step does: static, so that two runs that differ in data alone share one compilation."""

    optimizer: optax.GradientTransformation
    loss: Loss
    target_batch: int | None
    support_batch: int | None
    augment: Augment | None
    ridge: float
    devices: Devices


@told_apart
@dataclasses.dataclass(frozen=True)
class _Fixed:
    """What no step changes: data, the adversary and the preprocessing with their arrays, and what is not learned."""

    key: Array
    images: Array
    targets: Array
    labels: Array
    by_class: ClassIndex
    support_by_class: ClassIndex
    adversary: Any
    preprocessing: Preprocessing | None
    constant: dict[str, Any] = dataclasses.field(default_factory=dict)


@told_apart
@dataclasses.dataclass(frozen=True)
class _Totals:
    """Sums over the steps since the last record, and the largest ridge that any of them used."""

    loss: Array
    accuracy: Array
    ridge: Array
    count: Array

    @classmethod
    def zero(cls, dtype: np.dtype) -> _Totals:
        # Three arrays, not one thrice: a dispatch gives the memory of each of them away.
        return cls(jnp.zeros((), dtype), jnp.zeros((), dtype), jnp.zeros((), dtype), jnp.zeros((), jnp.int32))

    def add(self, loss: Array, accuracy: Array, ridge: Array) -> _Totals:
        return _Totals(self.loss + loss, self.accuracy + accuracy, jnp.maximum(self.ridge, ridge), self.count + 1)


@told_apart
@dataclasses.dataclass(frozen=True)
class _State:
    """All that a step changes; what a checkpoint holds."""

    learned: dict[str, Any]
    optimizer: Any
    step: Array
    totals: _Totals


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _advance(algorithm: _Algorithm, fixed: _Fixed, state: _State, count: Array) -> _State:
    """Take `count` steps. The count is traced: one compilation serves every length of dispatch."""

    def steps(fixed: _Fixed, state: _State, count: Array) -> _State:
        return lax.fori_loop(0, count, lambda _, current: _step(algorithm, fixed, current), state)

    return algorithm.devices.everywhere(steps)(fixed, state, count)


def _step(algorithm: _Algorithm, fixed: _Fixed, state: _State) -> _State:
    keys = jax.random.split(jax.random.fold_in(fixed.key, state.step), 5)
    images, targets, labels = fixed.images, fixed.targets, fixed.labels
    if algorithm.target_batch is not None:
        chosen = fixed.by_class.draw(keys[0], algorithm.target_batch)
        images, targets, labels = images[chosen], targets[chosen], labels[chosen]
    if algorithm.augment is not None:
        images = changed("augment", algorithm.augment, images, keys[1], images)
    parameters, optimizer_state, constant = state.learned, state.optimizer, fixed.constant
    if algorithm.support_batch is not None:
        rows = fixed.support_by_class.draw(keys[2], algorithm.support_batch)
        axes = _row_axes(algorithm.optimizer, state.learned, algorithm.support_batch)
        parameters, optimizer_state = _take_rows(axes, rows, (parameters, optimizer_state))
        constant = {name: tree[rows] if name == "labels" else tree for name, tree in constant.items()}
    num_kernels = len((constant | parameters)["kernels"])
    which = jax.random.randint(keys[3], (), 0, num_kernels)

    def predictor(parameters: dict[str, Any], index: int) -> regression.Predictor:
        return regression.fit(parameters["kernels"][index], parameters["images"], parameters["labels"], algorithm.ridge)

    def objective(parameters: dict[str, Any], index: int) -> tuple[Array, tuple[Array, Array]]:
        parameters = constant | parameters
        batch, classes = algorithm.devices.own((images, labels))
        if fixed.adversary is not None:
            model: Model = predictor(lax.stop_gradient(parameters), index)
            if fixed.preprocessing is not None:
                model = attacks.Preprocessed(model, fixed.preprocessing)
            key = algorithm.devices.own_key(keys[4])
            batch = lax.stop_gradient(changed("adversary", fixed.adversary, batch, model, batch, classes, key))
        if fixed.preprocessing is not None:
            batch = fixed.preprocessing.transform(batch)
        fitted = predictor(parameters, index)
        predictions = algorithm.devices.together(fitted(batch), len(images))
        accuracy = jnp.mean(jnp.argmax(predictions, axis=1) == labels, dtype=predictions.dtype)
        return algorithm.loss(predictions, targets), (accuracy, fitted.ridge)

    objectives = [algorithm.devices.averaged(functools.partial(objective, index=index)) for index in range(num_kernels)]
    slopes = [jax.value_and_grad(one, has_aux=True) for one in objectives]
    (loss, (accuracy, ridge)), gradient = lax.switch(which, slopes, parameters)
    updates, optimizer_state = _update(
        algorithm.optimizer, gradient, optimizer_state, parameters, loss, lambda p: lax.switch(which, objectives, p)[0]
    )
    parameters = jax.tree.map(lambda value, update: (value + update).astype(value.dtype), parameters, updates)
    if algorithm.support_batch is not None:
        parameters, optimizer_state = _put_rows(
            axes, rows, (state.learned, state.optimizer), (parameters, optimizer_state)
        )
    totals = state.totals.add(loss, accuracy, ridge)
    return _State(parameters, optimizer_state, state.step + 1, totals)


def _update(
    optimizer: optax.GradientTransformation,
    gradient: Any,
    state: Any,
    parameters: Any,
    loss: Array,
    objective: Callable[[Any], Array],
) -> tuple[Any, Any]:
    """Update with what some optimizers ask for beside the gradient: step sizes from the loss, line searches."""
    import optax

    update = optax.with_extra_args_support(optimizer).update
    return update(gradient, state, parameters, value=loss, grad=gradient, value_fn=objective)


def _row_axes(optimizer: optax.GradientTransformation, learned: dict[str, Any], batch: int) -> tuple[Any, Any]:
    """Find the axis of each learned array, and of each array of the optimizer's state, that counts support images.

    It is the axis that is shorter for a smaller support set: this holds for whatever an optimizer keeps, moments,
    factored moments or a memory of past updates. −1 where there is none.
    """

    size = learned["images"].shape[0]

    def axis(whole: Array | jax.ShapeDtypeStruct, part: jax.ShapeDtypeStruct) -> int:
        if len(whole.shape) == len(part.shape):
            differing = [at for at in range(len(whole.shape)) if whole.shape[at] != part.shape[at]]
            if not differing:
                return -1
            if len(differing) == 1 and (whole.shape[differing[0]], part.shape[differing[0]]) == (size, batch):
                return differing[0]
        raise ValueError(
            f"optimizer: got one that keeps an array of shape {whole.shape} for the whole support set and "
            f"{part.shape} for a batch of it, expected one row per support image (with support_batch={batch})"
        )

    def first(learned: dict[str, Any]) -> dict[str, Any]:
        return {name: tree if name == "kernels" else tree[:batch] for name, tree in learned.items()}

    part = jax.eval_shape(first, learned)
    states = (jax.eval_shape(optimizer.init, learned), jax.eval_shape(optimizer.init, part))
    structures: list[Any] = [jax.tree.structure(state) for state in states]
    if structures[0] != structures[1]:
        raise ValueError(f"optimizer: got one whose state depends on the size of the support set ({batch} or more)")
    return jax.tree.map(axis, learned, part), jax.tree.map(axis, *states)


def _take_rows(axes: Any, rows: Array, tree: Any) -> Any:
    return jax.tree.map(lambda axis, leaf: leaf if axis < 0 else jnp.take(leaf, rows, axis=axis), axes, tree)


def _put_rows(axes: Any, rows: Array, whole: Any, part: Any) -> Any:
    def put(axis: int, old: Array, new: Array) -> Array:
        return new if axis < 0 else old.at[(slice(None),) * axis + (rows,)].set(new)

    return jax.tree.map(put, axes, whole, part)


class _Records:
    """What a distillation records, from its state and from the caller's `evaluate`."""

    def __init__(
        self, algorithm: _Algorithm, fixed: _Fixed, evaluate: Callable[[Model], Mapping[str, float]] | None
    ) -> None:
        self.algorithm, self.fixed, self.evaluate = algorithm, fixed, evaluate
        self.warned = False

    def __call__(self, step: int, state: _State) -> tuple[dict[str, Any], _State]:
        devices, totals = self.algorithm.devices, state.totals
        count = int(totals.count)
        record = {
            "step": step,
            "loss": float(totals.loss) / count,
            "accuracy": float(totals.accuracy) / count,
            "ridge": float(totals.ridge),
        }
        if not (np.isfinite(record["loss"]) and np.isfinite(record["ridge"])):
            raise FloatingPointError(
                f"distillation diverged: the loss is {record['loss']} by step {step}; "
                "try a smaller learning rate, a larger ridge or x64"
            )
        if self.evaluate is not None:
            parameters = devices.on_host(self.fixed.constant | state.learned)
            model = regression.fit(
                parameters["kernels"][0], parameters["images"], parameters["labels"], self.algorithm.ridge
            )
            record |= check_record("evaluate", self.evaluate, model)
        if not self.warned and record["ridge"] > self.algorithm.ridge * (1 + 1e-5):
            regression.warn_of_ridge(self.algorithm.ridge, record["ridge"])
            self.warned = True
        return record, dataclasses.replace(state, totals=devices.place(_Totals.zero(totals.loss.dtype)))


def _optimizer(optimizer: optax.GradientTransformation | None) -> optax.GradientTransformation:
    return _default_optimizer() if optimizer is None else check_optimizer("optimizer", optimizer)


@functools.cache
def _default_optimizer() -> optax.GradientTransformation:
    # Cached: a new object would be a new static argument, and so a new compilation.
    import optax

    return optax.adam(LEARNING_RATE)


def _batch_size(name: str, size: int | None, whole: int) -> int | None:
    """Give the size of a batch, or None where it is everything."""
    if size is None:
        return None
    size = check_integer(name, size)
    return None if size >= whole else size
