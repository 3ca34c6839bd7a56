"""Distillation: a small support set is changed until what is fitted on it predicts the whole data set."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from ntkit import regression
from ntkit._checks import MOST, check_instance, check_integer, check_key, check_optimizer, wrong
from ntkit._pytrees import pytree_dataclass, static_field
from ntkit.attacks.balls import like
from ntkit.attacks.pipeline import Adversary, Augment, Pipeline
from ntkit.data import Preprocessing, one_hot
from ntkit.data.targets import LOSSES, TEMPERATURE, Loss, check_loss, cross_entropy
from ntkit.distill.batches import ClassIndex
from ntkit.distill.distilled import Distilled
from ntkit.distill.learner import Learner, check_learner
from ntkit.distill.support import Init, check_data_set, initial_support
from ntkit.networks.optimizers import adam, updated
from ntkit.runs import Method, Session, iterate
from ntkit.runs.devices import Devices
from ntkit.runs.session import check_session

if TYPE_CHECKING:
    import optax

LEARNING_RATE = 0.01
LEARNED = ("images", "labels", "kernel", "temperature")

# What has a row for each support image.
_OF_IMAGES = ("images", "labels")
# Of the learner's own key: no step has this number.
_CARRIED = 2**31 - 1
# Images that are preprocessed at once before the first step.
_PART = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Support:
    """What is learned, and from where.

    **Fields:**

    - `init`: `"real"` images, `"noise"`, an array (per_class · num_classes, …) sorted by class, or a distilled set, to
      go on from its images and labels.
    - `learn`: what of it is learned: `"images"`, always; `"labels"`, the support targets, which start as centred
      one-hot vectors; `"kernel"`, the hyper-parameters of the learner's kernels (all their leaves: `W_std`, `b_std`,
      scales); `"temperature"`, that of the loss `"cross_entropy"`, by its logarithm.
    - `batch`: images of each step's random, class-balanced subset of the support set, on which alone the step is fitted
      and which alone it updates; `None`: all.
    - `fixed`: images of each class, the first ones, that stay as they are, and so do their labels.

    **Raises:** `ValueError` that names the field.
    """

    init: Init = "real"
    learn: Collection[str] = ("images", "labels")
    batch: int | None = None
    fixed: int = 0

    def __post_init__(self) -> None:
        expected = "'images', with 'labels', 'kernel' and 'temperature' or without"
        several = isinstance(self.learn, tuple | list | set | frozenset)
        if not several or not all(isinstance(name, str) for name in self.learn):
            raise wrong("learn", self.learn, expected)
        if not {"images"} <= {*self.learn} <= {*LEARNED}:
            raise wrong("learn", self.learn, expected)
        check_integer("fixed", self.fixed, 0)
        if self.batch is not None:
            check_integer("batch", self.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets:
    """What a support set is judged by: batches of the data set, and what happens to them.

    **Fields:**

    - `batch`: images of each step's random, class-balanced batch; `None`, or at least n: all.
    - `augment`: `augment(key, images) -> images`, applied to each batch, for example an `ntkit.data.Augmentation`.
    - `preprocessing`: applied to each batch after the augmentation and the adversary, which then work on pixels, with a
      predictor of pixels: a ball is one of pixels whatever the kernel is fed. It is here, and not a kernel of pixels,
      since the support set is of preprocessed images, from the beginning on. Without an adversary it is cheaper to
      preprocess the data set once.
    - `loss`: `"mse"`, `"cross_entropy"`, or a function of predictions and targets (both (n, classes)).

    **Raises:** `ValueError` that names the field.
    """

    batch: int | None = 5000
    augment: Augment | None = None
    preprocessing: Preprocessing | None = None
    loss: str | Loss = "mse"

    def __post_init__(self) -> None:
        if self.batch is not None:
            check_integer("batch", self.batch)


def distill(
    learner: Learner,
    images: Float[ArrayLike, "n ..."],
    labels: Int[ArrayLike, " n"],
    *,
    per_class: int,
    steps: int,
    key: Array,
    support: Support | None = None,
    targets: Targets | None = None,
    adversary: Adversary | None = None,
    optimizer: optax.GradientTransformation | None = None,
    session: Session | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Distilled:
    """Distil a data set: learn a small support set on which a learner predicts the data set.

    The whole step is compiled and many steps run per dispatch; the data go to the device once, and batches are drawn
    there. The result depends on the arguments alone: the same key on the same device gives the same bits, however
    often the run was interrupted and resumed.

    **Arguments:**

    - `learner`: what is fitted on the support set: [`KIP`][ntkit.distill.KIP] of a kernel,
      [`RFAD`][ntkit.distill.RFAD] of an architecture, or your own [`Learner`][ntkit.distill.Learner].
    - `images`: the data set to distil, as fed to the learner: (n, height, width, channels) or (n, d). With
      `preprocessing`, pixels.
    - `labels`: its classes, integers from 0.
    - `per_class`: support images of each class.
    - `steps`: gradient steps in all.
    - `key`: a `jax.random` key.
    - `support`: what is learned, and from where: a [`Support`][ntkit.distill.Support] (default: images and labels, from
      real images).
    - `targets`: what it is judged by: a [`Targets`][ntkit.distill.Targets] (default: batches of 5,000 images by the
      squared error).
    - `adversary`: `adversary(model, images, labels, key=key) -> images`, applied to each target batch with the
      model of the current support set: adv-KIP (Tsilivis, Su, Kempe 2022, arXiv:2207.11727). An
      `ntkit.attacks.Attack`, or any function. Over a mesh, to each device's part of the batch, with another key on
      each.
    - `optimizer`: any optax optimizer (default: Adam with a learning rate of 0.01).
    - `session`: records, checkpoints and progress, an `ntkit.runs.Session`. Its `evaluate` is called with the current
      model (of the first kernel of a family); a record every ten steps, unless it says otherwise.
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
    learner = check_learner(learner)
    images, labels, num_classes = check_data_set(images, labels)
    support = Support() if support is None else check_instance("support", support, Support, "a ntkit.distill.Support")
    targets = Targets() if targets is None else check_instance("targets", targets, Targets, "a ntkit.distill.Targets")
    pipeline = Pipeline.of(targets.augment, adversary, targets.preprocessing, images)
    per_class = check_integer("per_class", per_class, 1, MOST // num_classes)
    steps = check_integer("steps", steps, 0)
    check_integer("fixed", support.fixed, 0, per_class)
    check_key("key", key)
    session = Session() if session is None else check_session(session)
    devices = Devices.of(mesh)
    devices.group.check_same(
        learner=jax.tree.leaves(learner),
        images=images,
        labels=labels,
        per_class=per_class,
        steps=steps,
        key=key,
        init=(support.init.images, support.init.labels) if isinstance(support.init, Distilled) else support.init,
        learn=sorted(support.learn),
        support_batch=support.batch,
        fixed=support.fixed,
        target_batch=targets.batch,
        ridge=float(learner.ridge),
        log_every=session.log_every,
    )
    if "kernel" in support.learn and not learner.kernels:
        raise wrong("learn", support.learn, f"no 'kernel': {type(learner).__name__} has none to learn")
    if "temperature" in support.learn and targets.loss != "cross_entropy":
        raise ValueError(f"learn: got 'temperature' with the loss {targets.loss!r}, expected the loss 'cross_entropy'")
    key_support, key_steps = jax.random.split(key)
    seen = images if targets.preprocessing is None else _preprocessed(targets.preprocessing, images)
    start = initial_support(support.init, seen, labels, num_classes, per_class, key_support)
    del seen
    dtype = images.dtype
    parts = {
        "images": jnp.asarray(start.images),
        "labels": jnp.asarray(start.targets, dtype),
        "kernels": _in_precision(dtype, learner.kernels),
        "temperature": jnp.asarray(np.log(TEMPERATURE), dtype),
    }
    learned = {"kernels" if name == "kernel" else name for name in support.learn}
    method = _Distillation(
        key=key_steps,
        images=jnp.asarray(images),
        targets=jnp.asarray(one_hot(labels, num_classes), dtype),
        labels=jnp.asarray(labels, jnp.int32),
        by_class=ClassIndex.of(labels, num_classes),
        support_by_class=ClassIndex.of(start.classes, num_classes),
        learner=_in_precision(dtype, learner),
        pipeline=pipeline,
        start={name: part for name, part in parts.items() if name in learned},
        constant={name: part for name, part in parts.items() if name not in learned},
        optimizer=adam(LEARNING_RATE) if optimizer is None else check_optimizer("optimizer", optimizer),
        loss=check_loss(targets.loss, LOSSES, num_classes, dtype),
        target_batch=_batch_size(targets.batch, len(images)),
        support_batch=_batch_size(support.batch, per_class * num_classes),
        fixed=(support.fixed, per_class),
        slow_in_loops=learner.slow_in_loops(jnp.asarray(start.images[:1])),
        on=devices,
    )
    state, history = iterate(method, steps, session)
    parameters = method.constant | state.learned
    return Distilled(
        images=np.asarray(parameters["images"]),
        labels=np.asarray(parameters["labels"]),
        history=history,
        kernel=learner.kept(parameters["kernels"]),
    )


def _preprocessed(preprocessing: Preprocessing, images: np.ndarray) -> np.ndarray:
    """Preprocess a data set in parts, of which one at a time is on the device."""
    parts = [preprocessing.transform(images[i : i + _PART]) for i in range(0, len(images), _PART)]
    return np.concatenate([np.asarray(part, images.dtype) for part in parts])


def _in_precision(dtype: np.dtype, tree: Any) -> Any:
    """Give hyper-parameters in the precision of the images, and bits of keys and the like as they are."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else None), tree
    )


@pytree_dataclass
class _State:
    """All that a step changes. `carried`: the learner's own."""

    learned: dict[str, Any]
    optimizer: Any
    step: Array
    carried: Any


@pytree_dataclass(eq=False)
class _Distillation(Method[_State]):
    """Steps of a distillation. Two runs that differ in data alone share one compilation.

    `start`: what is learned, by name, as it is at first. `constant`: what is not. `fixed`: how many images of each
    class stay as they are, of how many.
    """

    what: ClassVar[str] = "distil"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "ridge")
    largest: ClassVar[tuple[str, ...]] = ("ridge",)
    hidden: ClassVar[tuple[str, ...]] = ("ridge",)
    diverged: ClassVar[str] = "distillation diverged"
    advice: ClassVar[str] = "try a smaller learning rate, a larger ridge or x64"
    from_argument: ClassVar[Mapping[str, str]] = {"learned": "kernel or support"}

    key: Array
    images: Array
    targets: Array
    labels: Array
    by_class: ClassIndex
    support_by_class: ClassIndex
    learner: Learner
    pipeline: Pipeline
    start: dict[str, Any]
    constant: dict[str, Any]
    optimizer: optax.GradientTransformation = static_field()
    loss: Loss = static_field()
    target_batch: int | None = static_field()
    support_batch: int | None = static_field()
    fixed: tuple[int, int] = static_field()
    slow_in_loops: bool = static_field()
    on: Devices = static_field()

    @property
    def devices(self) -> Devices:
        return self.on

    @property
    def one_by_one(self) -> bool:
        return self.slow_in_loops

    def init(self) -> _State:
        parameters = self.constant | self.start
        key = jax.random.fold_in(self.key, _CARRIED)
        carried = self.learner.begin(key, parameters["images"], parameters["labels"])
        return _State(self.start, self.optimizer.init(self.start), jnp.zeros((), jnp.int32), carried)

    def step(self, state: _State) -> tuple[_State, dict[str, Array]]:
        keys = jax.random.split(jax.random.fold_in(self.key, state.step), 5)
        images, targets, labels = self.images, self.targets, self.labels
        if self.target_batch is not None:
            chosen = self.by_class.draw(keys[0], self.target_batch)
            images, targets, labels = images[chosen], targets[chosen], labels[chosen]
        images = self.pipeline.augmented(keys[1], images)
        parameters, optimizer_state, constant = state.learned, state.optimizer, self.constant
        if self.support_batch is not None:
            rows = self.support_by_class.draw(keys[2], self.support_batch)
            axes = _row_axes(self.optimizer, state.learned, self.support_batch)
            parameters, optimizer_state = _take_rows(axes, rows, (parameters, optimizer_state))
            constant = {name: tree[rows] if name == "labels" else tree for name, tree in constant.items()}
        which = jax.random.randint(keys[3], (), 0, self.learner.variants)

        def objective(parameters: dict[str, Any], index: int) -> tuple[Array, tuple[Array, Array]]:
            parameters = constant | parameters
            batch, classes = self.devices.own((images, labels))
            batch = self.pipeline.attacked(
                lambda: self._model(lax.stop_gradient(parameters), state.carried, index),
                batch,
                classes,
                self.devices.own_key(keys[4]),
            )
            fitted = self._model(parameters, state.carried, index)
            predictions = self.devices.together(fitted(batch), len(images))
            accuracy = jnp.mean(jnp.argmax(predictions, axis=1) == labels, dtype=predictions.dtype)
            ridge = jnp.asarray(getattr(fitted, "ridge", 0.0), predictions.dtype)
            return self._loss(parameters, predictions, targets), (accuracy, ridge)

        objectives = [
            self.devices.averaged(functools.partial(objective, index=index)) for index in range(self.learner.variants)
        ]
        slopes = [jax.value_and_grad(one, has_aux=True) for one in objectives]
        (loss, (accuracy, ridge)), gradient = lax.switch(which, slopes, parameters)
        updates, optimizer_state = updated(
            *(self.optimizer, gradient, optimizer_state, parameters, loss),
            lambda p: lax.switch(which, objectives, p)[0],
        )
        parameters = jax.tree.map(lambda value, update: (value + update).astype(value.dtype), parameters, updates)
        if self.support_batch is not None:
            parameters, optimizer_state = _put_rows(
                axes, rows, (state.learned, state.optimizer), (parameters, optimizer_state)
            )
        parameters = self._kept(state.learned, parameters)
        metrics = {"loss": loss, "accuracy": accuracy, "ridge": ridge}
        now = self.constant | parameters
        carried = self.learner.after(state.carried, now["images"], now["labels"])
        return _State(parameters, optimizer_state, state.step + 1, carried), metrics

    def model(self, state: _State) -> Any:
        return self._model(self.constant | state.learned, state.carried, 0)

    def look(self, records: Sequence[Mapping[str, Any]]) -> None:
        *before, last = (record["ridge"] for record in records)
        asked = self.learner.ridge
        if all(ridge <= asked * (1 + 1e-5) for ridge in before):
            regression.warn_of_ridge(asked, last)

    def _kept(self, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        """Put the rows of fixed images back."""
        count, per_class = self.fixed
        if count == 0:
            return new
        stays = jnp.arange(len(old["images"])) % per_class < count
        rows = {name: jnp.where(like(stays, new[name]), old[name], new[name]) for name in new if name in _OF_IMAGES}
        return new | rows

    def _model(self, parameters: dict[str, Any], carried: Any, variant: int) -> Any:
        return self.learner.fitted(parameters["kernels"], parameters["images"], parameters["labels"], carried, variant)

    def _loss(self, parameters: dict[str, Any], predictions: Array, targets: Array) -> Array:
        if "temperature" not in self.start:
            return self.loss(predictions, targets)
        return cross_entropy(predictions, targets, temperature=jnp.exp(parameters["temperature"]))


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
        return {name: tree[:batch] if name in _OF_IMAGES else tree for name, tree in learned.items()}

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


def _batch_size(size: int | None, whole: int) -> int | None:
    """Give the size of a batch, or None where it is everything."""
    return None if size is None or size >= whole else size
