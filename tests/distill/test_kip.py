import functools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntkit
from ntkit import attacks, distill, regression
from ntkit.attacks import FGSM, PGD, Linf
from ntkit.data import Standardize, one_hot
from ntkit.distill.batches import ClassIndex
from ntkit.runs import Interrupted, Run
from tests import flat

from .small import RBF, clouds, gaussian

IMAGES, LABELS = clouds()
SUPPORT = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
# One object for all tests: an optimizer is a static argument, and a new one is a new compilation.
ADAM = optax.adam(0.05)
SGD = optax.sgd(0.05)
KEY = jax.random.key(0)
ALL = ("images", "labels", "kernel")


def kip(**options):
    return flat.kip(
        **{"kernel": RBF(), "images": IMAGES, "labels": LABELS, "per_class": 2, "steps": 4, "key": KEY} | options
    )


def same_bits(first, second):
    """Whether two sets are the same to the bit, their histories too."""
    leaves = [jax.tree.leaves((one.images, one.labels, dict(one.history), one.kernel)) for one in (first, second)]
    return all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))


def reference_loss(parameters, targets, ridge, images):
    """KIP's loss, eq. 7 of Nguyen, Chen, Lee 2021, by a plain solve."""
    support = parameters["images"]
    gram = gaussian(support, support, parameters["scale"])
    regularized = gram + ridge * jnp.trace(gram) / len(gram) * jnp.eye(len(gram))
    predictions = gaussian(images, support, parameters["scale"]) @ jnp.linalg.solve(regularized, parameters["labels"])
    return 0.5 * jnp.mean(jnp.sum((targets - predictions) ** 2, axis=1))


@pytest.mark.parametrize(
    ("learned", "optimizer"),
    [
        pytest.param(("images",), SGD, id="images", marks=pytest.mark.slow),
        pytest.param(("images", "labels"), ADAM, id="images and labels", marks=pytest.mark.slow),
        pytest.param(("images", "labels", "scale"), ADAM, id="kernel too"),
    ],
)
def test_equals_plain_gradient_steps(learned, optimizer, x64):
    images, labels = clouds(dtype=np.float64)
    targets = np.asarray(one_hot(labels, 3), np.float64)
    parameters = {"images": jnp.asarray(SUPPORT, jnp.float64), "scale": jnp.float64(0.8)}
    parameters["labels"] = jnp.asarray(one_hot(np.repeat(np.arange(3), 2), 3), jnp.float64)
    constant = {name: value for name, value in parameters.items() if name not in learned}
    parameters = {name: parameters[name] for name in learned}
    state = optimizer.init(parameters)
    losses = []
    value_and_gradient = jax.jit(jax.value_and_grad(lambda p: reference_loss(constant | p, targets, 1e-3, images)))
    for _ in range(3):
        loss, gradient = value_and_gradient(parameters)
        updates, state = optimizer.update(gradient, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        losses.append(float(loss))
    expected = constant | parameters

    distilled = kip(
        kernel=RBF(0.8),
        images=images,
        labels=labels,
        steps=3,
        init=SUPPORT.astype(np.float64),
        learn=[name.replace("scale", "kernel") for name in learned],
        optimizer=optimizer,
        ridge=1e-3,
        log_every=1,
    )
    np.testing.assert_allclose(distilled.images, expected["images"], rtol=1e-9)
    np.testing.assert_allclose(distilled.labels, expected["labels"], rtol=1e-9)
    np.testing.assert_allclose(distilled.kernel.scale, expected["scale"], rtol=1e-9)
    np.testing.assert_allclose(distilled.history["loss"], losses, rtol=1e-9)
    np.testing.assert_array_equal(distilled.history["step"], [1, 2, 3])
    np.testing.assert_array_equal(distilled.history["ridge"], 1e-3)
    assert distilled.images.dtype == np.float64


def test_a_family_learns_on_images_with_every_option():
    images = IMAGES.reshape(-1, 2, 2, 1)
    augment = ntkit.data.Augmentation(flip=True)
    distilled = flat.kip(
        [RBFOfImages(1.0), RBFOfImages(0.5)],
        images,
        LABELS,
        per_class=2,
        steps=40,
        key=KEY,
        learn=ALL,
        target_batch=20,
        support_batch=4,
        augment=augment,
        loss="cross_entropy",
    )
    assert distilled.images.shape == (6, 2, 2, 1)
    assert distilled.labels.shape == (6, 3)
    assert len(distilled.kernel) == 2
    assert distilled.history["loss"][-1] < distilled.history["loss"][0]


class RBFOfImages(RBF):
    def gram(self, x1, x2):
        x2 = x1 if x2 is None else x2
        return gaussian(x1.reshape(len(x1), -1), x2.reshape(len(x2), -1), self.scale)


jax.tree_util.register_dataclass(RBFOfImages, ["scale"], [])


def counting():
    """An optimizer that adds the number of updates that a value has had, as its own state remembers it."""

    def init(parameters):
        return jax.tree.map(jnp.zeros_like, parameters)

    def update(gradient, state, parameters=None):
        state = jax.tree.map(lambda count: count + 1, state)
        return state, state

    return optax.GradientTransformation(init, update)


def test_a_support_batch_updates_its_rows_and_their_state_alone():
    steps = 12
    support = np.zeros((9, 4), np.float32) + np.arange(9)[:, None]
    distilled = kip(per_class=3, init=support, steps=steps, support_batch=3, optimizer=counting(), learn=ALL)
    moved = distilled.images - support
    # A row that was drawn v times has moved by 1 + 2 + … + v, all of it.
    visits = (np.sqrt(8 * moved + 1) - 1) / 2
    np.testing.assert_allclose(visits, np.rint(visits), atol=1e-4)
    visits = np.rint(visits)
    assert (visits == visits[:, :1]).all()
    np.testing.assert_array_equal(visits[:, 0].reshape(3, 3).sum(axis=1), steps)
    start = np.asarray(one_hot(np.repeat(np.arange(3), 3), 3))
    np.testing.assert_allclose(distilled.labels - start, moved[:, :3], rtol=1e-5)
    # The kernel is of every batch.
    assert float(distilled.kernel.scale) == pytest.approx(1 + steps * (steps + 1) / 2)


def drawn(key, step, classes, size):
    """The rows of a step's support batch."""
    keys = jax.random.split(jax.random.fold_in(jax.random.split(key)[1], step), 5)
    return np.asarray(ClassIndex.of(classes, 3).draw(keys[2], size))


@pytest.mark.parametrize("name", ["adam with a schedule", "momentum"])
def test_support_batches_with_moments_equal_plain_numpy(name, x64):
    images, labels = clouds(dtype=np.float64)
    targets = jnp.asarray(one_hot(labels, 3), jnp.float64)
    classes = np.repeat(np.arange(3), 2)
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    adam = name.startswith("adam")
    optimizer = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(schedule))
    optimizer = optimizer if adam else optax.sgd(0.1, momentum=0.9)

    support, fixed = SUPPORT.astype(np.float64), jnp.asarray(one_hot(classes, 3), jnp.float64)
    first, second = np.zeros_like(support), np.zeros_like(support)

    @jax.jit
    def slope(batch, labels):
        def loss(batch):
            return reference_loss({"images": batch, "labels": labels, "scale": 1.0}, targets, 1e-6, images)

        return jax.grad(loss)(batch)

    for step in range(5):
        rows = drawn(KEY, step, classes, 3)
        gradient = np.asarray(slope(support[rows], fixed[rows]))
        if adam:
            first[rows] = 0.9 * first[rows] + 0.1 * gradient
            second[rows] = 0.999 * second[rows] + 0.001 * gradient**2
            # The number of steps is of the whole run, as in optax's state.
            unbiased = first[rows] / (1 - 0.9 ** (step + 1)), second[rows] / (1 - 0.999 ** (step + 1))
            support[rows] -= (0.1 - 0.01 * step) * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
        else:
            first[rows] = 0.9 * first[rows] + gradient
            support[rows] -= 0.1 * first[rows]
    distilled = kip(
        images=images,
        labels=labels,
        init=SUPPORT.astype(np.float64),
        steps=5,
        support_batch=3,
        learn=("images",),
        optimizer=optimizer,
    )
    np.testing.assert_allclose(distilled.images, support, rtol=1e-6)  # optax's schedules are float32


@pytest.mark.parametrize(
    "optimizer",
    [optax.contrib.schedule_free_adamw(0.05), optax.polyak_sgd(0.1)],
    ids=["parameters in the state", "needs the loss"],
)
def test_optimizers_out_of_the_ordinary(optimizer):
    distilled = kip(init=SUPPORT, steps=20, support_batch=3, optimizer=optimizer, target_batch=30)
    assert np.isfinite(distilled.images).all()
    assert (distilled.images != SUPPORT).all()


def test_one_member_of_a_family_per_step():
    family = [RBF(0.7), RBF(1.3)]
    run = functools.partial(kip, kernel=family, learn=ALL, optimizer=SGD, target_batch=30)
    start = np.array([member.scale for member in family], np.float32)
    for steps in (1, 2):
        changed = np.array([float(member.scale) for member in run(steps=steps).kernel]) != start
        assert 1 <= changed.sum() <= steps
    assert (np.array([float(member.scale) for member in run(steps=20).kernel]) != start).all()


# Every kind of randomness, and every kind of state.
EVERYTHING = {
    "kernel": [RBF(0.7), RBF(1.3)],
    "steps": 23,
    "log_every": 5,
    "learn": ALL,
    "optimizer": ADAM,
    "target_batch": 20,
    "support_batch": 3,
    "evaluate": lambda model: {"norm": float(jnp.sum(model.weights**2))},
}


@pytest.fixture(scope="module")
def undisturbed():
    return kip(**EVERYTHING)


def test_the_same_key_gives_the_same_bits(undisturbed):
    assert same_bits(kip(**EVERYTHING), undisturbed)
    other = kip(**EVERYTHING, key=jax.random.key(1))
    assert not np.array_equal(other.images, undisturbed.images)
    assert list(undisturbed.history) == ["step", "loss", "accuracy", "ridge", "norm"]
    np.testing.assert_array_equal(undisturbed.history["step"], [5, 10, 15, 20, 23])


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_the_length_of_a_dispatch_changes_no_bit(seconds, undisturbed, monkeypatch):
    monkeypatch.setattr(ntkit.runs.loop, "DISPATCH_SECONDS", seconds)
    assert same_bits(kip(**EVERYTHING), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_equals_undisturbed(number, undisturbed, tmp_path):
    run = Run.create(tmp_path / "run", {})
    calls = []

    def evaluate(model):
        calls.append(model)
        if len(calls) == 2:
            signal.raise_signal(number)
        return EVERYTHING["evaluate"](model)

    with pytest.raises(Interrupted, match=r"stopped after 10 of 23 steps, saved in .*run") as caught:
        kip(**EVERYTHING | {"evaluate": evaluate}, run=run)
    assert caught.value.signal == number
    assert run.step == 10
    assert same_bits(kip(**EVERYTHING, run=Run.resume(run.path)), undisturbed)
    # And once more, when there is nothing left to do.
    assert same_bits(kip(**EVERYTHING, run=Run.resume(run.path)), undisturbed)


def test_killed_between_records_and_resumed_equals_undisturbed(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(ntkit.runs.loop, "DISPATCH_SECONDS", 0.0)
    run = Run.create(tmp_path / "run", {})

    def evaluate(model):
        if len(run.metrics()) == 1:
            raise RuntimeError("killed")
        return EVERYTHING["evaluate"](model)

    with pytest.raises(RuntimeError, match="killed"):
        kip(**EVERYTHING | {"evaluate": evaluate}, run=run, checkpoint_every=0)
    assert run.step == 9
    assert same_bits(kip(**EVERYTHING, run=Run.resume(run.path)), undisturbed)


def test_the_initial_images_are_left_alone():
    given = jnp.asarray(SUPPORT)
    for init in (SUPPORT, given):
        kip(init=init, optimizer=ADAM)
        assert (np.asarray(init) == SUPPORT).all()
    np.testing.assert_array_equal(kip(init=given, steps=0).images, SUPPORT)
    assert (clouds()[0] == IMAGES).all()


def test_real_images_start_in_their_classes_and_noise_is_noise():
    real = kip(steps=0, per_class=20).images
    for label in range(3):
        own = {tuple(image) for image in IMAGES[label == LABELS]}
        assert {tuple(image) for image in real[20 * label : 20 * (label + 1)]} == own
    noise = kip(steps=0, per_class=1000, init="noise").images
    np.testing.assert_allclose([noise.mean(), noise.std()], [IMAGES.mean(), IMAGES.std()], rtol=0.1)


def test_the_adversary_attacks_the_current_predictor_and_is_not_differentiated():
    def shift(model, images, labels, key):
        # The size of the shift depends on the support set, and the labels are integers of the batch.
        weights = jnp.take_along_axis(model(images), labels[:, None], axis=1)
        return images + 0.1 * weights * jax.random.normal(key, images.shape)

    options = {"init": SUPPORT, "steps": 1, "optimizer": SGD, "learn": ("images",)}
    moved = kip(**options, adversary=shift).images
    classes = np.repeat(np.arange(3), 2)
    keys = jax.random.split(jax.random.fold_in(jax.random.split(KEY)[1], 0), 5)
    model = regression.fit(RBF(), SUPPORT, one_hot(classes, 3), 1e-6)
    attacked = shift(model, jnp.asarray(IMAGES), jnp.asarray(LABELS), keys[4])

    def loss(support):
        parameters = {"images": support, "labels": one_hot(classes, 3), "scale": 1.0}
        return reference_loss(parameters, one_hot(LABELS, 3), 1e-6, attacked)

    np.testing.assert_allclose(
        moved, SUPPORT - 0.05 * jax.jit(jax.grad(loss))(jnp.asarray(SUPPORT)), rtol=1e-3, atol=1e-5
    )


@pytest.mark.slow
def test_the_adversary_works_on_pixels_under_a_preprocessing():
    pixels = ((IMAGES - IMAGES.min()) / np.ptp(IMAGES)).astype(np.float32)
    preprocessing = Standardize.fit(pixels)
    seen = np.asarray(preprocessing.transform(pixels))
    options = {"steps": 2, "optimizer": SGD, "target_batch": 30}
    # Without an adversary it is the data set preprocessed before.
    once = kip(images=seen, **options)
    each = kip(images=pixels, preprocessing=preprocessing, **options)
    np.testing.assert_allclose(each.images, once.images, atol=1e-5)
    adversary = PGD(Linf(0.1), steps=3, random_start=False)
    calls = []

    def by_hand(model, images, labels, key):
        # What is given are pixels, and a model of them.
        calls.append(images.shape)
        return jnp.clip(attacks.PGD(Linf(0.1), steps=3, random_start=False)(model, images, labels), 0, 1)

    given = [kip(images=pixels, preprocessing=preprocessing, adversary=a, **options) for a in (adversary, by_hand)]
    np.testing.assert_allclose(given[0].images, given[1].images, atol=1e-6)
    assert calls
    assert given[0].history["loss"][-1] > 1.2 * each.history["loss"][-1]


def test_the_augmentation_is_applied_to_the_target_batch():
    def constant(key, images):
        return jnp.broadcast_to(jax.random.normal(key, (4,)), images.shape)

    plain, augmented = (kip(optimizer=ADAM, augment=augment, steps=1) for augment in (None, constant))
    assert augmented.history["accuracy"][0] == pytest.approx(1 / 3)
    assert plain.history["accuracy"][0] > 0.5


def test_cross_entropy_is_the_negative_log_likelihood():
    predictions, labels = np.random.default_rng(0).normal(size=(5, 3)), np.array([0, 2, 1, 1, 0])
    likelihoods = np.exp(predictions / 0.2) / np.exp(predictions / 0.2).sum(axis=1, keepdims=True)
    expected = -np.log(likelihoods[np.arange(5), labels]).mean()
    for centred in (True, False):
        loss = distill.cross_entropy(predictions, one_hot(labels, 3, centred=centred), temperature=0.2)
        assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_a_loss_of_ones_own():
    distilled = kip(loss=lambda predictions, targets: jnp.mean(jnp.abs(predictions - targets)), steps=20)
    assert distilled.history["loss"][1] < distilled.history["loss"][0]


def infinite_from_step_10(count):
    return jnp.where(count < 10, 0.01, jnp.inf)


def test_a_run_that_diverges_says_so_and_keeps_what_is_on_disk(tmp_path):
    run = Run.create(tmp_path / "run", {})
    schedule = infinite_from_step_10
    with pytest.raises(FloatingPointError, match=r"distillation diverged: .* by step 20; try a smaller learning rate"):
        kip(optimizer=optax.sgd(schedule), steps=40, run=run, checkpoint_every=0)
    assert [record["step"] for record in run.metrics()] == [10]
    assert run.step >= 10


def test_memory_does_not_grow_with_the_steps():
    kip(optimizer=ADAM, target_batch=30)
    before = len(jax.live_arrays())
    kip(optimizer=ADAM, target_batch=30, steps=300)
    assert len(jax.live_arrays()) <= before


def bad(array, index, value):
    changed = np.array(array)
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"adversary": FGSM(Linf(0.1))},
            r"images: got values from -.* expected pixels within the bounds \(0, 1\) of the ball",
        ),
        ({"preprocessing": "zca"}, "preprocessing: got 'zca', expected one of ntkit.data"),
        ({"images": IMAGES[:, 0]}, r"images: got shape \(60,\), expected"),
        ({"images": (255 * IMAGES).astype(np.uint8)}, "images: got dtype uint8, expected floats"),
        (
            {"images": bad(IMAGES, (7, 1), np.nan)},
            "images: got NaN or infinity in 1 of 60 images, the first at index 7",
        ),
        ({"images": bad(IMAGES, (8, 1), np.inf)}, "images: got NaN or infinity .* index 8, expected finite"),
        ({"images": bad(IMAGES.astype(np.float64), 9, 1e300)}, "images: got NaN or infinity .* index 9"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "images: got shape .* expected at least one"),
        ({"labels": LABELS[:-1]}, "labels: got 59 labels, expected 60"),
        ({"labels": LABELS[:, None]}, r"labels: got shape \(60, 1\), expected \(n,\)"),
        ({"labels": LABELS.astype(float)}, "labels: got dtype float64, expected integers"),
        ({"labels": LABELS - 1}, "labels: got -1 at index 0, expected classes from 0"),
        ({"labels": bad(LABELS, 3, 2**31 - 2)}, "labels: got no examples of class 3 of 2147483647, expected"),
        ({"labels": LABELS + (LABELS > 1)}, "labels: got no examples of class 2 of 4, expected some of each"),
        ({"learn": "images"}, "learn: got 'images', expected 'images', with 'labels'"),
        ({"learn": ("labels",)}, "learn: got "),
        ({"labels": np.where(LABELS == 1, 0, LABELS)}, "labels: got no examples of class 1 of 3, expected"),
        ({"per_class": 0}, "per_class: got 0, expected an integer of at least 1"),
        ({"per_class": 2.0}, "per_class: got 2.0, expected an integer of at least 1"),
        ({"per_class": 21}, "per_class: got 21, expected at most 20: class 0 has no more examples"),
        ({"steps": -1}, "steps: got -1, expected an integer of at least 0"),
        ({"log_every": 0}, "log_every: got 0, expected an integer of at least 1"),
        ({"checkpoint_every": float("nan")}, "checkpoint_every: got nan, expected at least 0 seconds"),
        ({"target_batch": 0}, "batch: got 0, expected an integer of at least 1"),
        ({"support_batch": -3}, "batch: got -3, expected an integer of at least 1"),
        ({"ridge": -1e-6}, "ridge: got -1e-06, expected a finite number of at least 0"),
        ({"ridge": float("nan")}, "ridge: got nan, expected a finite number"),
        ({"loss": "hinge"}, "loss: got 'hinge', expected one of 'mse', 'cross_entropy', or a function"),
        ({"init": "zeros"}, "init: got 'zeros', expected one of 'real', 'noise', or an array of images"),
        ({"init": SUPPORT[:5]}, r"init: got images of shape \(5, 4\), expected \(6, 4\): 2 of each class"),
        ({"init": bad(SUPPORT, 2, np.nan)}, "init: got NaN or infinity in 1 of 6 images, the first at index 2"),
        ({"kernel": "ntk"}, "kernel: got 'ntk', expected an ntkit.Kernel such as"),
        ({"kernel": []}, r"kernel: got \[\], expected"),
        ({"kernel": [ntkit.Kernel()]}, "kernel: got a Kernel, which is no pytree, expected"),
        ({"mesh": "all"}, "mesh: got str, expected a jax.sharding.Mesh"),
        ({"optimizer": 0.01}, "optimizer: got 0.01, expected an optax.GradientTransformation"),
    ],
)
def test_bad_input_is_one_line_that_names_it(options, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        kip(**options)
    assert "\n" not in str(caught.value)


def test_an_optimizer_that_mixes_the_images_cannot_go_with_support_batches():
    def init(parameters):
        return {"between": jnp.zeros((6, 6)) if len(parameters["images"]) == 6 else jnp.zeros((2, 2))}

    mixing = optax.GradientTransformation(init, lambda gradient, state, parameters=None: (gradient, state))
    with pytest.raises(ValueError, match=r"^optimizer: got one that keeps an array of shape \(6, 6\)"):
        kip(optimizer=mixing, steps=1, support_batch=2)
    # Which axis is factored depends on which is longer, 6 or 4, 3 or 4.
    factored = optax.adafactor(0.05, min_dim_size_to_factor=2)
    with pytest.raises(ValueError, match=r"^optimizer: got one that keeps an array of shape \(4,\)"):
        kip(optimizer=factored, steps=1, support_batch=3)
