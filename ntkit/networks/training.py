"""Training a finite network, on clean or attacked images, in a compiled loop that can be killed and resumed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from ntkit._checks import (
    check_batch,
    check_call,
    check_finite,
    check_flag,
    check_instance,
    check_integer,
    check_key,
    check_optimizer,
    check_outputs,
    check_targets,
    told,
    wrong,
)
from ntkit._loops import slow_in_loops
from ntkit._pytrees import ByValue, pytree_dataclass, static_field
from ntkit.attacks.losses import fooled
from ntkit.attacks.pipeline import Adversary, Augment, Pipeline
from ntkit.data import check_images
from ntkit.data.pixels import PixelModule
from ntkit.data.targets import Loss, check_loss, classes_of, cross_entropy, mse
from ntkit.networks.optimizers import adam, updated
from ntkit.runs import Method, Session, iterate
from ntkit.runs.session import check_session

if TYPE_CHECKING:
    import optax

# The loss of each is kept.
MAX_STEPS = 10**8


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
) -> TrainedNetwork:
    """Give a network before its training: the one that [`train`][] starts from with the same arguments."""
    first = jnp.asarray(check_batch("images", images)[:1])
    check_key("key", key)
    centred = check_flag("centred", centred)
    key_init = jax.random.split(key)[0]
    count_outputs(module, key_init, first)
    return _initialized(module, key_init, first, centred)


def train(
    module: Module | TrainedNetwork,
    images: Float[ArrayLike, "n ..."],
    targets: Float[ArrayLike, "n outputs"],
    *,
    key: Array,
    steps: int = 1000,
    loss: str | Loss = "mse",
    optimizer: optax.GradientTransformation | None = None,
    batch_size: int | None = None,
    centred: bool = False,
    augment: Augment | None = None,
    adversary: Adversary | None = None,
    session: Session | None = None,
) -> TrainedNetwork:
    """Train a network.

    The data go to the device once, and many steps run per dispatch; on a CPU, a network with convolutions is trained
    step by step, which XLA runs faster there. The result depends on the arguments alone: the same key on the same
    device gives the same bits, however often the run was interrupted and resumed.

    **Arguments:**

    - `module`: a flax module, for example `ntkit.fc(1).flax(num_outputs=10, width=1024)` or
      [`ntkit.networks.vgg11`][]`(10)`; [`ntkit.data.of_pixels`][] puts a preprocessing into it. Or a trained network,
      to go on from: with the parameters that it has, a new optimizer, and `centred` if it is.
    - `images`: (n, height, width, channels) or (n, d), as the network takes them.
    - `targets`: (n, outputs), soft labels of a distilled set or `ntkit.data.one_hot(labels, classes)`; (n, 1) with the
      signs of the classes for a network with one output.
    - `key`: for the initialization, the batches, the augmentation and the adversary.
    - `steps`: gradient steps.
    - `loss`: `"mse"`, ½ · mean over images of ‖f(x) − y‖²; `"cross_entropy"` of the softmax against the class with the
      largest target (of one output, of (−f, f) against its sign); or a function of outputs and targets.
    - `optimizer`: any optax optimizer, such as those of [`ntkit.networks.adam`][] and [`ntkit.networks.sgd`][]
      (default: Adam with a learning rate that falls from 0.001 to 0 along a cosine). The line search of one such as
      `optax.lbfgs()` is on the batch.
    - `batch_size`: images of each step; `None`, or at least n: all. Each image comes once in an epoch, in a new order;
      what does not fill a batch at its end is left out.
    - `centred`: subtract the network's output at initialization, so that training starts from f_0 = 0 as in the
      closed forms ([`ntkit.regression.flow`][] and [`ntkit.regression.fit`][]). SGD on the squared error with a small
      constant learning rate η is then at step s where `flow` is at time η · s · outputs, in the limit of infinite
      width.
    - `augment`: `augment(key, images) -> images`, applied to each batch.
    - `adversary`: `adversary(model, images, classes, key=key) -> images`, applied to each batch with the current
      network: adversarial training (Madry et al. 2018, arXiv:1706.06083, eq. 2.1). An `ntkit.attacks.Attack`, best with
      `stop_early=False`, or any function. The classes are those of the largest targets, or −1 and +1.
    - `session`: records, checkpoints and progress, an `ntkit.runs.Session`. Its `evaluate` is called with the network
      as it is; a record every hundred steps, unless it says otherwise. A run that is resumed goes on to as many `steps`
      as it was begun for; to take more, train the network that it gave.

    **Returns:** a [`TrainedNetwork`][]. Its history has the means of `loss` and `accuracy` over the batches between two
    records.

    **Raises:** `ValueError` that names the argument; `FloatingPointError` if the loss became infinite or NaN;
    `Interrupted` (a `KeyboardInterrupt`) on Ctrl-C or SIGTERM, after the step was finished and, with a `run`, saved.
    """
    images = check_images("images", images)
    check_key("key", key)
    pipeline = Pipeline.of(augment, adversary, None, np.asarray(images))
    images = jnp.asarray(images)
    targets = jnp.asarray(check_targets("targets", targets, len(images)))
    check_finite("targets", targets, "finite values")
    steps = check_integer("steps", steps, 1, MAX_STEPS)
    batch_size = None if batch_size is None else check_integer("batch_size", batch_size)
    centred = check_flag("centred", centred)
    session = Session() if session is None else check_session(session)
    key_init, key_steps = jax.random.split(key)
    first = images[:1]
    if isinstance(module, TrainedNetwork):
        if centred:
            raise ValueError("centred: got True for a trained network, expected it as that network was trained")
        outputs = count_outputs(module.module, key_init, first)
        start = module
    else:
        outputs = count_outputs(module, key_init, first)
        start = _initialized(module, key_init, first, centred)
    if targets.shape[1] != outputs:
        expected = (len(images), outputs)
        raise ValueError(f"targets: got shape {targets.shape}, expected {expected} as the network's outputs")
    # What no augmentation and no attack changes is preprocessed once.
    prepared = isinstance(start.module, PixelModule) and augment is None and adversary is None
    method = _Training(
        key=key_steps,
        images=start.variables["preprocessing"].transform(images) if prepared else images,
        targets=targets,
        start=start.variables["params"],
        others={name: values for name, values in start.variables.items() if name != "params"},
        initial=start.initial,
        pipeline=pipeline,
        module=ByValue(start.module),
        prepared=prepared,
        loss=check_loss(loss, _LOSSES, outputs, targets.dtype),
        optimizer=adam(decay_over=steps) if optimizer is None else check_optimizer("optimizer", optimizer),
        batch_size=None if batch_size is None or batch_size >= len(images) else batch_size,
        steps=steps,
        slow_in_loops=slow_in_loops(start.module.apply, start.variables, first),
    )
    state, history = iterate(method, steps, session)
    # A loss is of the parameters before its step.
    if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)):
        raise FloatingPointError("training diverged: parameters are not finite at its end; try a smaller learning rate")
    return dataclasses.replace(method.model(state), losses=np.asarray(state.losses), history=history)


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


@pytree_dataclass
class _State:
    """All that a step changes. `losses`: of each step, before it."""

    params: Any
    optimizer: Any
    step: Array
    losses: Array


@pytree_dataclass(eq=False)
class _Training(Method[_State]):
    """Steps of a network. Two trainings that differ in data alone share one compilation.

    `start`: the parameters before the first step. `others`: the variables that are not trained. `prepared`: whether
    the images are as a module of pixels shows them to the network within.
    """

    what: ClassVar[str] = "train"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    log_every: ClassVar[int] = 100
    diverged: ClassVar[str] = "training diverged"
    from_argument: ClassVar[Mapping[str, str]] = {"params": "module", "losses": "number of steps"}

    key: Array
    images: Array
    targets: Array
    start: Any
    others: dict[str, Any]
    initial: Any
    pipeline: Pipeline
    module: ByValue = static_field()
    prepared: bool = static_field()
    loss: Loss = static_field()
    optimizer: optax.GradientTransformation = static_field()
    batch_size: int | None = static_field()
    steps: int = static_field()
    slow_in_loops: bool = static_field()

    @property
    def one_by_one(self) -> bool:
        return self.slow_in_loops

    def init(self) -> _State:
        return _State(self.start, self.optimizer.init(self.start), jnp.zeros((), jnp.int32), jnp.zeros(self.steps))

    def step(self, state: _State) -> tuple[_State, dict[str, Array]]:
        import optax

        key_augment, key_adversary = jax.random.split(jax.random.fold_in(self.key, state.step))
        x, y = self.images, self.targets
        if self.batch_size is not None:
            rows = _batch(self.key, state.step, len(x), self.batch_size)
            x, y = x[rows], y[rows]
        x = self.pipeline.augmented(key_augment, x)
        labels = classes_of(y) if y.shape[1] > 1 else 2 * classes_of(y) - 1
        x = self.pipeline.attacked(lambda: self.model(state), x, labels, key_adversary)

        def objective(params: Any) -> tuple[Array, Array]:
            outputs = _apply(*self._seen(self.others | {"params": params}), x)
            return self.loss(outputs, y), jnp.mean(~fooled(outputs, classes_of(y)), dtype=jnp.float32)

        (loss, right), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, optimizer = updated(
            *(self.optimizer, gradient, state.optimizer, state.params, loss), lambda params: objective(params)[0]
        )
        params = optax.apply_updates(state.params, updates)
        after = _State(params, optimizer, state.step + 1, state.losses.at[state.step].set(loss))
        return after, {"loss": loss, "accuracy": right}

    def _seen(self, variables: Any) -> tuple[ByValue, Any, Any]:
        """Give the module that is shown the images, with its variables and the initial ones."""
        if not self.prepared:
            return self.module, variables, self.initial
        pixels: PixelModule = self.module.function
        initial = None if self.initial is None else pixels.within(self.initial)
        return ByValue(pixels.module), pixels.within(variables), initial

    def model(self, state: _State) -> TrainedNetwork:
        return TrainedNetwork(self.others | {"params": state.params}, self.module.function, self.initial)


def _batch(key: Array, step: Array, n: int, size: int) -> Array:
    """Give the rows of a step's batch: a part of the epoch's permutation."""
    batches = n // size
    order = jax.random.permutation(jax.random.fold_in(key, step // batches), n)
    return lax.dynamic_slice(order, (step % batches * size,), (size,))


_LOSSES: dict[str, Loss] = {"mse": mse, "cross_entropy": functools.partial(cross_entropy, temperature=1.0)}


def check_network(name: str, network: object) -> TrainedNetwork:
    """Give a network; `ValueError` that names the argument for anything else, such as a module without parameters."""
    return check_instance(name, network, TrainedNetwork, "an ntkit.networks.TrainedNetwork, of train or initialize")


def check_module(module: Module, argument: str = "module") -> None:
    """Raise `ValueError` unless `module` is a network as [`train`][] takes it."""
    name = module.__name__ if isinstance(module, type) else type(module).__name__
    bases = (module if isinstance(module, type) else type(module)).__mro__
    if any(base.__name__ == "Module" and base.__module__.startswith("flax.nnx") for base in bases):
        raise ValueError(
            f"{argument}: got {name}, a flax.nnx module, expected a flax.linen one: "
            f"flax.nnx.bridge.to_linen({name}, …) makes one of its class and arguments"
        )
    has_both = callable(getattr(module, "init", None)) and callable(getattr(module, "apply", None))
    if isinstance(module, type) or not has_both:
        raise wrong(argument, module, "a flax.linen module, or an object with its init and apply")


def count_outputs(module: Module, key: Array, x: Array) -> int:
    """Give the number of outputs of a network, or raise `ValueError` if it is none that can be trained."""
    check_module(module)
    variables = check_call("module", module.init, key, x)
    if not isinstance(variables, Mapping) or "params" not in variables or "batch_stats" in variables:
        got = f"the variables {', '.join(sorted(variables))}" if isinstance(variables, Mapping) else told(variables)
        raise ValueError(
            f"module: got one with {got}, expected its parameters alone to decide its outputs: no batch normalization"
        )
    return check_outputs("module", check_call("module", module.apply, variables, x), len(x))
