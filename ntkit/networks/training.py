"""Training a finite network, on clean or attacked images, in a compiled loop that can be killed and resumed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from ntkit import attacks
from ntkit._checks import (
    changed,
    check_batch,
    check_call,
    check_callable,
    check_choice,
    check_finite,
    check_flag,
    check_instance,
    check_integer,
    check_key,
    check_optimizer,
    check_option,
    check_outputs,
    check_positive,
    check_targets,
    told,
    wrong,
)
from ntkit._loops import slow_in_loops
from ntkit._pytrees import ByValue, as_pytree, static, told_apart
from ntkit.attacks.losses import cross_entropy, fooled
from ntkit.data import Preprocessing, check_images
from ntkit.data.preprocess import check_preprocessing
from ntkit.runs import Loop, Run, columns
from ntkit.runs.loop import check_record, check_session

if TYPE_CHECKING:
    import optax

Loss: TypeAlias = Callable[[Array, Array], Array]
Adversary: TypeAlias = Callable[[Any, Array, Array, Array], Array]
Augment: TypeAlias = Callable[[Array, Array], Array]
Schedule: TypeAlias = Literal["cosine", "constant"]

LEARNING_RATE = 1e-3
OPTIMIZERS = ("adam", "sgd")
# The loss of each is kept.
MAX_STEPS = 10**8
SCHEDULES = ("cosine", "constant")


class Module(Protocol):
    """What a network is before it is trained: a flax module, a [`Linearized`][] one, or anything with these two."""

    def init(self, key: Array, x: Array, /) -> Any:
        """Give the variables, a mapping whose `"params"` are trained."""

    def apply(self, variables: Any, x: Array, /) -> Any:
        """Give the outputs (n, outputs) for images."""


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network with its parameters: a model, and a JAX pytree. [`train`][] makes it.

    Its past is not part of the pytree, and is not there inside `jit`: an attack is compiled once for all networks of
    one module, however long they were trained.

    **Fields:** `variables`: what `module.apply` takes. `module`: the flax module. `initial`: the variables at
    initialization, of which the output is subtracted; `None` if it was not trained `centred`. `losses`: the loss
    (steps,) before each step. `history`: for each record its `step`, the mean `loss` and `accuracy` on the batches
    since the last one, and what `evaluate` gave; one array for each name.
    """

    variables: Any
    module: Module
    initial: Any = None
    losses: Float[np.ndarray, " steps"] = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    history: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __call__(self, x: Float[ArrayLike, "m ..."]) -> Float[Array, "m outputs"]:
        """Predict the outputs (m, outputs) for a batch of inputs."""
        x = jnp.asarray(check_batch("x", x))
        try:
            return _apply(ByValue(self.module), self.variables, self.initial, x)
        except Exception as error:
            if not type(error).__module__.startswith("flax"):
                raise
            raise ValueError(
                f"x: got inputs of shape {x.shape[1:]}, expected those that the network takes ({type(error).__name__})"
            ) from error

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], ByValue]:
        """Take apart what JAX sees of it."""
        key = jax.tree_util.GetAttrKey
        return ((key("variables"), self.variables), (key("initial"), self.initial)), ByValue(self.module)

    @classmethod
    def tree_unflatten(cls, module: ByValue, children: tuple[Any, Any]) -> TrainedNetwork:
        """Put it together again, without its past."""
        variables, initial = children
        return cls(variables, module.function, initial)


def initialize(
    module: Module,
    images: Float[ArrayLike, "n ..."],
    *,
    key: Array,
    centred: bool = False,
    preprocessing: Preprocessing | None = None,
) -> TrainedNetwork:
    """Give a network before its training: the one that [`train`][] starts from with the same arguments."""
    first = jnp.asarray(check_batch("images", images)[:1])
    check_key("key", key)
    if preprocessing is not None:
        check_preprocessing("preprocessing", preprocessing, first.shape[1:])
    first = first if preprocessing is None else preprocessing.transform(first)
    centred = check_flag("centred", centred)
    key_init = jax.random.split(key)[0]
    _outputs(module, key_init, first)
    return _initialized(module, key_init, first, centred)


def train(
    module: Module | TrainedNetwork,
    images: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, "n outputs"],
    *,
    key: Array,
    steps: int = 1000,
    loss: str | Loss = "mse",
    optimizer: str | optax.GradientTransformation = "adam",
    learning_rate: float | None = None,
    schedule: Schedule = "cosine",
    batch_size: int | None = None,
    centred: bool = False,
    augment: Augment | None = None,
    adversary: Adversary | None = None,
    preprocessing: Preprocessing | None = None,
    log_every: int = 100,
    evaluate: Callable[[TrainedNetwork], Mapping[str, float]] | None = None,
    run: Run | None = None,
    checkpoint_every: float = 60.0,
    show_progress: bool = False,
) -> TrainedNetwork:
    """Train a network.

    The data go to the device once, and many steps run per dispatch; on a CPU, a network with convolutions is trained
    step by step, which XLA runs faster there. The result depends on the arguments alone: the same key on the same
    device gives the same bits, however often the run was interrupted and resumed.

    **Arguments:**

    - `module`: a flax module, for example `ntkit.fc(1).flax(num_outputs=10, width=1024)` or
      [`ntkit.networks.vgg11`][]`(10)`. Or a trained network, to go on from: with the parameters that it has, a new
      optimizer, and `centred` if it is.
    - `images`: (n, height, width, channels) or (n, d), as the network shall see them. With `preprocessing`, pixels.
    - `targets`: (n, outputs), soft labels of a distilled set or `ntkit.data.one_hot(labels, classes)`; (n, 1) with the
      signs of the classes for a network with one output.
    - `key`: for the initialization, the batches, the augmentation and the adversary.
    - `steps`: gradient steps.
    - `loss`: `"mse"`, ½ · mean over images of ‖f(x) − y‖²; `"cross_entropy"` of the softmax against the class with the
      largest target (of one output, of (−f, f) against its sign); or a function of outputs and targets.
    - `optimizer`: `"adam"`, `"sgd"` without momentum, or any optax optimizer; the line search of one such as
      `optax.lbfgs()` is on the batch.
    - `learning_rate`: of Adam or SGD (default: 0.001). `schedule`: `"cosine"`, which falls to 0, or `"constant"`.
    - `batch_size`: images of each step; `None`, or at least n: all. Each image comes once in an epoch, in a new order;
      what does not fill a batch at its end is left out.
    - `centred`: subtract the network's output at initialization, so that training starts from f_0 = 0 as in the
      closed forms ([`ntkit.regression.flow`][] and [`ntkit.regression.fit`][]). SGD on the squared error with a small
      constant learning rate η is then at step s where `flow` is at time η · s · outputs, in the limit of infinite
      width.
    - `augment`: `augment(key, images) -> images`, applied to each batch.
    - `adversary`: `adversary(model, images, classes, key) -> images`, applied to each batch with the current network:
      adversarial training (Madry et al. 2018, arXiv:1706.06083, eq. 2.1). An `ntkit.attacks.Adversary`, best with
      `stop_early=False`, or any function. The classes are those of the largest targets, or −1 and +1.
    - `preprocessing`: applied to each batch after `augment` and `adversary`, which then work on pixels, with a model of
      pixels: a ball is one of pixels whatever the network is fed. The network itself still takes preprocessed images.
    - `log_every`: steps between two records of the history.
    - `evaluate`: called with the network as it is at each record; the numbers that it returns are added to the record.
    - `run`: a run directory to log and checkpoint to. If it has a checkpoint, the run goes on from there, to as many
      `steps` as it was begun for; to take more, train the network that it gave.
    - `checkpoint_every`: seconds between checkpoints.
    - `show_progress`: whether to show a progress bar on stderr.

    **Returns:** a [`TrainedNetwork`][].

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the loss became infinite or NaN;
    `Interrupted` (a `KeyboardInterrupt`) on Ctrl-C or SIGTERM, after the step was finished and, with a `run`, saved.
    """
    images = check_images("images", images)
    check_key("key", key)
    images = jnp.asarray(images)
    targets = jnp.asarray(check_targets("targets", targets, len(images)))
    check_finite("targets", targets, "finite values")
    steps = check_integer("steps", steps, 1, MAX_STEPS)
    batch_size = None if batch_size is None else check_integer("batch_size", batch_size)
    centred = check_flag("centred", centred)
    check_session(log_every, run, checkpoint_every, show_progress)
    for name, function in (("augment", augment), ("adversary", adversary), ("evaluate", evaluate)):
        if function is not None:
            check_callable(name, function, "a function, or None")
    if isinstance(adversary, attacks.Adversary):
        adversary.check_pixels(np.asarray(images))
    if preprocessing is not None:
        check_preprocessing("preprocessing", preprocessing, images.shape[1:])
    key_init, key_steps = jax.random.split(key)
    first = images[:1] if preprocessing is None else preprocessing.transform(images[:1])
    if isinstance(module, TrainedNetwork):
        if centred:
            raise ValueError("centred: got True for a trained network, expected it as that network was trained")
        outputs = _outputs(module.module, key_init, first)
        start = module
    else:
        outputs = _outputs(module, key_init, first)
        start = _initialized(module, key_init, first, centred)
    if targets.shape[1] != outputs:
        expected = (len(images), outputs)
        raise ValueError(f"targets: got shape {targets.shape}, expected {expected} as the network's outputs")
    plan = _Plan(
        module=ByValue(start.module),
        loss=_loss(loss, targets),
        optimizer=_optimizer(optimizer, learning_rate, schedule, steps),
        batch_size=None if batch_size is None or batch_size >= len(images) else batch_size,
        augment=None if augment is None else static(augment),
    )
    fixed = _Fixed(
        key=key_steps,
        images=images,
        targets=targets,
        others={name: values for name, values in start.variables.items() if name != "params"},
        initial=start.initial,
        adversary=None if adversary is None else as_pytree(adversary),
        preprocessing=preprocessing,
    )
    params = start.variables["params"]
    state = _State(
        params=params,
        optimizer=plan.optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
        losses=jnp.zeros(steps),
        total=jnp.zeros(()),
        right=jnp.zeros(()),
        count=jnp.zeros(()),
    )
    # Memory of its own for each leaf, since a dispatch gives all of it away; and none of a weak type.
    state = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.result_type(leaf)), state)
    one_by_one = slow_in_loops(start.module.apply, start.variables, first)

    def network(state: _State) -> TrainedNetwork:
        # A copy: the next dispatch gives this memory away, and who is shown a network may keep it.
        copied = jax.tree.map(jnp.copy, state.params)
        return TrainedNetwork(fixed.others | {"params": copied}, start.module, start.initial)

    def record(step: int, state: _State) -> tuple[dict[str, Any], _State]:
        count = float(state.count)
        found = {"step": step, "loss": float(state.total) / count, "accuracy": float(state.right) / count}
        if not np.isfinite(found["loss"]):
            raise FloatingPointError(
                f"training diverged: the loss is {found['loss']} by step {step}; try a smaller learning rate"
            )
        if evaluate is not None:
            found |= check_record("evaluate", evaluate, network(state))
        return found, dataclasses.replace(state, total=jnp.zeros(()), right=jnp.zeros(()), count=jnp.zeros(()))

    def advance(state: _State, count: int) -> _State:
        return _step(plan, fixed, state) if one_by_one else _steps(plan, fixed, state, np.int32(count))

    loop = Loop(
        advance=advance,
        record=record,
        steps=steps,
        log_every=log_every,
        what="train",
        run=run,
        checkpoint_every=checkpoint_every,
        from_argument={"params": "module", "losses": "number of steps"},
        show_progress=show_progress,
        one_by_one=one_by_one,
    )
    state, records = loop(state)
    # A loss is of the parameters before its step.
    if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)):
        raise FloatingPointError("training diverged: parameters are not finite at its end; try a smaller learning rate")
    return dataclasses.replace(network(state), losses=np.asarray(state.losses), history=columns(records))


def _initialized(module: Module, key: Array, x: Array, centred: bool) -> TrainedNetwork:
    variables = dict(_init(ByValue(module), key, x))
    return TrainedNetwork(variables, module, variables if centred else None)


@functools.partial(jax.jit, static_argnums=0)
def _init(module: ByValue, key: Array, x: Array) -> Any:
    return module.function.init(key, x)


@functools.partial(jax.jit, static_argnums=0)
def _apply(module: ByValue, variables: Any, initial: Any, x: Array) -> Array:
    outputs = module.function.apply(variables, x)
    return outputs if initial is None else outputs - module.function.apply(initial, x)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What a step does: static, so that two trainings that differ in data alone share one compilation."""

    module: ByValue
    loss: Loss
    optimizer: optax.GradientTransformation
    batch_size: int | None
    augment: Augment | None


@told_apart
@dataclasses.dataclass(frozen=True)
class _Fixed:
    """What no step changes. `others`: the variables that are not trained."""

    key: Array
    images: Array
    targets: Array
    others: dict[str, Any]
    initial: Any
    adversary: Any
    preprocessing: Preprocessing | None


@told_apart
@dataclasses.dataclass(frozen=True)
class _State:
    """All that a step changes; what a checkpoint holds. `total`, `right`, `count`: sums since the last record."""

    params: Any
    optimizer: Any
    step: Array
    losses: Array
    total: Array
    right: Array
    count: Array


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _steps(plan: _Plan, fixed: _Fixed, state: _State, count: Array) -> _State:
    """Take `count` steps. The count is traced: one compilation serves every length of dispatch."""
    return lax.fori_loop(0, count, lambda _, current: _take(plan, fixed, current), state)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _step(plan: _Plan, fixed: _Fixed, state: _State) -> _State:
    """Take one step, outside of any loop."""
    return _take(plan, fixed, state)


def _take(plan: _Plan, fixed: _Fixed, state: _State) -> _State:
    import optax

    key_augment, key_adversary = jax.random.split(jax.random.fold_in(fixed.key, state.step))
    x, y = fixed.images, fixed.targets
    if plan.batch_size is not None:
        rows = _batch(fixed.key, state.step, len(x), plan.batch_size)
        x, y = x[rows], y[rows]
    if plan.augment is not None:
        x = changed("augment", plan.augment, x, key_augment, x)
    if fixed.adversary is not None:
        model: Any = TrainedNetwork(fixed.others | {"params": state.params}, plan.module.function, fixed.initial)
        if fixed.preprocessing is not None:
            model = attacks.Preprocessed(model, fixed.preprocessing)
        labels = _classes(y) if y.shape[1] > 1 else 2 * _classes(y) - 1
        x = lax.stop_gradient(changed("adversary", fixed.adversary, x, model, x, labels, key_adversary))
    if fixed.preprocessing is not None:
        x = fixed.preprocessing.transform(x)

    def objective(params: Any) -> tuple[Array, Array]:
        outputs = _apply(plan.module, fixed.others | {"params": params}, fixed.initial, x)
        return plan.loss(outputs, y), jnp.mean(~fooled(outputs, _classes(y)), dtype=jnp.float32)

    (loss, right), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    # Some optimizers ask for more than the gradient: line searches, step sizes from the loss.
    update = optax.with_extra_args_support(plan.optimizer).update
    updates, optimizer = update(
        gradient,
        state.optimizer,
        state.params,
        value=loss,
        grad=gradient,
        value_fn=lambda params: objective(params)[0],
    )
    return _State(
        optax.apply_updates(state.params, updates),
        optimizer,
        state.step + 1,
        state.losses.at[state.step].set(loss),
        state.total + loss,
        state.right + right,
        state.count + 1,
    )


def _batch(key: Array, step: Array, n: int, size: int) -> Array:
    """Give the rows of a step's batch: a part of the epoch's permutation."""
    batches = n // size
    order = jax.random.permutation(jax.random.fold_in(key, step // batches), n)
    return lax.dynamic_slice(order, (step % batches * size,), (size,))


def _classes(targets: Array) -> Array:
    """Give the class that each target names, from 0."""
    return jnp.argmax(targets, axis=1) if targets.shape[1] > 1 else (targets[:, 0] > 0).astype(jnp.int32)


def _mse(outputs: Array, targets: Array) -> Array:
    return 0.5 * jnp.mean(jnp.sum((outputs - targets) ** 2, axis=1))


def _cross_entropy(outputs: Array, targets: Array) -> Array:
    return jnp.mean(cross_entropy(outputs, _classes(targets)))


_LOSSES: dict[str, Loss] = {"mse": _mse, "cross_entropy": _cross_entropy}


def _loss(loss: str | Loss, targets: Array) -> Loss:
    chosen = check_option("loss", loss, _LOSSES, "a function of outputs and targets")
    found = check_call("loss", chosen, targets, targets)
    if getattr(found, "shape", None) != ():
        raise ValueError(f"loss: got one that gives {told(found)}, expected a scalar")
    return chosen


def _optimizer(
    optimizer: str | optax.GradientTransformation, learning_rate: float | None, schedule: Schedule, steps: int
) -> optax.GradientTransformation:
    check_choice("schedule", schedule, SCHEDULES)
    if isinstance(optimizer, str) and optimizer in OPTIMIZERS:
        rate = LEARNING_RATE if learning_rate is None else learning_rate
        return _named_optimizer(
            optimizer, check_positive("learning_rate", rate), steps if schedule == "cosine" else None
        )
    check_optimizer("optimizer", optimizer, "'adam', 'sgd' or ")
    if learning_rate is not None:
        raise ValueError(
            f"learning_rate: got {told(learning_rate)} beside an optimizer that has its own, expected none"
        )
    return optimizer


@functools.cache
def _named_optimizer(name: str, rate: float, decayed_over: int | None) -> optax.GradientTransformation:
    # Cached: a new object would be a new static argument, and so a new compilation.
    import optax

    schedule = rate if decayed_over is None else optax.cosine_decay_schedule(rate, decayed_over)
    return optax.adam(schedule) if name == "adam" else optax.sgd(schedule)


def check_network(name: str, network: object) -> TrainedNetwork:
    """Give a network; `ValueError` that names the argument for anything else, such as a module without parameters."""
    return check_instance(name, network, TrainedNetwork, "an ntkit.networks.TrainedNetwork, of train or initialize")


def check_module(module: Module) -> None:
    """Raise `ValueError` unless `module` is a network as [`train`][] takes it."""
    name = module.__name__ if isinstance(module, type) else type(module).__name__
    bases = (module if isinstance(module, type) else type(module)).__mro__
    if any(base.__name__ == "Module" and base.__module__.startswith("flax.nnx") for base in bases):
        raise ValueError(
            f"module: got {name}, a flax.nnx module, expected a flax.linen one: flax.nnx.bridge.to_linen({name}, …) "
            "makes one of its class and arguments"
        )
    has_both = callable(getattr(module, "init", None)) and callable(getattr(module, "apply", None))
    if isinstance(module, type) or not has_both:
        raise wrong("module", module, "a flax.linen module, or an object with its init and apply")


def _outputs(module: Module, key: Array, x: Array) -> int:
    """Give the number of outputs of a network, or raise `ValueError` if it is none that can be trained."""
    check_module(module)
    variables = check_call("module", module.init, key, x)
    if not isinstance(variables, Mapping) or "params" not in variables or "batch_stats" in variables:
        got = f"the variables {', '.join(sorted(variables))}" if isinstance(variables, Mapping) else told(variables)
        raise ValueError(
            f"module: got one with {got}, expected its parameters alone to decide its outputs: no batch normalization"
        )
    return check_outputs("module", check_call("module", module.apply, variables, x), len(x))
