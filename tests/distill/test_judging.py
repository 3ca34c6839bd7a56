import jax
import numpy as np
import pytest
from flax import linen as nn

from ntkit import attacks, data, distill, networks
from ntkit.data import Split, one_hot

from .small import clouds
from .test_frepo import Small

KEY = jax.random.key(0)
IMAGES, LABELS = clouds(90)
LABELS = LABELS.astype(np.int32)
TRAIN, TEST = Split(IMAGES[:60], LABELS[:60]), Split(IMAGES[60:], LABELS[60:])
GOOD = distill.Distilled(IMAGES[:6], np.asarray(one_hot(LABELS[:6], 3)))
BAD = distill.Distilled(IMAGES[:6], np.asarray(one_hot((LABELS[:6] + 1) % 3, 3)))


def judged(**options):
    return distill.judge(
        **{"sets": {"good": GOOD, "bad": BAD}, "modules": {"small": Small()}, "train": TRAIN, "test": TEST, "key": KEY}
        | {"learning_rates": (1e-5, 0.03), "steps": (5, 60), "seeds": 2}
        | options
    )


def test_networks_are_trained_on_each_set_as_it_was_chosen_on_held_out_images():
    rows = judged().tables["networks"]
    assert [row["trained on"] for row in rows] == ["6 good", "6 bad"]
    good, bad = rows
    assert float(good["test accuracy"]) > 0.9
    assert float(bad["test accuracy"]) < 0.2
    assert (good["learning rate"], good["steps"]) == (0.03, 60)
    # What is tested is what `train` gives with what was chosen.
    _, key_networks = jax.random.split(KEY)
    for seed in range(2):
        network = networks.train(
            Small(),
            GOOD.images,
            GOOD.labels,
            key=jax.random.fold_in(key_networks, seed),
            steps=60,
            optimizer=networks.adam(0.03, decay_over=60),
        )
        assert good["test accuracy"].values[seed] == data.accuracy(network, TEST.images, TEST.labels)


def test_the_test_set_chooses_nothing():
    """With other test labels the same is chosen."""
    wrong = Split(TEST.images, (TEST.labels + 1) % 3)
    chosen = [
        [(row["learning rate"], row["steps"], row["held out"].values) for row in judged(**change).tables["networks"]]
        for change in ({}, {"test": wrong})
    ]
    assert chosen[0] == chosen[1]


def test_with_and_without_augmentation():
    images = IMAGES.reshape(-1, 2, 2, 1)
    one = distill.Distilled(images[:6], GOOD.labels)
    rows = judged(
        sets={"set": one},
        train=Split(images[:60], LABELS[:60]),
        test=Split(images[60:], LABELS[60:]),
        augment=data.Augmentation(flip=True),
        learning_rates=(0.03,),
        steps=(20,),
        seeds=1,
    ).tables["networks"]
    assert [row["augmented"] for row in rows] == ["no", "yes"]


@pytest.mark.slow
def test_networks_under_attack():
    ball = attacks.Linf(0.5, bounds=(-10, 10))
    preprocessing = data.Standardize.fit(TEST.images)
    attacked = distill.UnderAttack(ball, TEST, preprocessing)
    fitted = Split(preprocessing.transform(TEST.images), TEST.labels)
    good = distill.Distilled(preprocessing.transform(GOOD.images), GOOD.labels)
    (row,) = judged(sets={"good": good}, test=fitted, learning_rates=(0.03,), steps=(60,), attacked=attacked).tables[
        "networks"
    ]
    # The networks that are attacked are those that are tested, on the same images.
    assert row["clean"].values == row["test accuracy"].values
    assert float(row["AutoAttack"]) <= float(row["PGD-20"]) < float(row["clean"])
    _, key_networks = jax.random.split(KEY)
    model = networks.train(
        Small(),
        good.images,
        good.labels,
        key=jax.random.fold_in(key_networks, 0),
        steps=60,
        optimizer=networks.adam(0.03, decay_over=60),
    )
    x = np.asarray(attacks.PGD(ball, steps=20)(data.of_pixels(model, preprocessing), TEST.images, TEST.labels, key=KEY))
    assert abs(row["PGD-20"].values[0] - data.accuracy(model, preprocessing.transform(x), TEST.labels)) < 0.07
    with pytest.raises(ValueError, match=r"test: got values from .*, expected pixels within the bounds"):
        distill.UnderAttack(attacks.Linf(0.5), TEST)


def test_herding_by_hand():
    features = np.array([[0.0], [1.0], [2.0], [10.0], [5.0], [6.0], [7.0], [9.0]], np.float32)
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    # Of class 0 the mean is 3.25: 2 is nearest, then (2 + x) / 2 is nearest with 1, then (3 + x) / 3 with 10.
    found = distill.herded(features, labels, per_class=3)
    np.testing.assert_array_equal(found.images[:3, 0], [2, 1, 10])
    # Of class 1 the mean is 6.75: 7, then 6 (6.5), then 7 taken: (13 + 9) / 3 = 7.33 and (13 + 5) / 3 = 6 are it.
    np.testing.assert_array_equal(found.images[3:, 0], [7, 6, 9])
    np.testing.assert_allclose(found.labels, one_hot(np.repeat([0, 1], 3), 2))
    shifted = distill.herded(features, labels, per_class=1, features=lambda x: (x - 9) ** 2)
    np.testing.assert_array_equal(shifted.images[:, 0], [2, 6])


@pytest.mark.slow
def test_resnet18():
    module = networks.resnet18(10, width=2)
    x = np.random.default_rng(0).uniform(size=(2, 16, 16, 3)).astype(np.float32)
    network = networks.initialize(module, x, key=KEY)
    assert network(x).shape == (2, 10)
    assert module.apply(network.variables, x, method="features").shape == (2, 16)
    params = network.variables["params"]
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
    # One, four stages of two blocks of two, and three shortcuts.
    assert len(kernels) == 1 + 16 + 3
    # As wide as published it has as many weights: 11,173,962, less 9,600 of normalization and 10 biases.
    full = jax.eval_shape(networks.resnet18(10).init, KEY, np.zeros((1, 32, 32, 3), np.float32))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(full) if len(leaf.shape) > 1) == 11_164_352
    with pytest.raises(ValueError, match="expected images"):
        networks.initialize(module, x[:, 0, :, 0], key=KEY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": {}}, "sets: got {}, expected distilled sets by their names"),
        ({"sets": {"a": IMAGES}}, "sets: got float32 of shape"),
        ({"modules": {"a": nn.Dense}}, "modules: got the class Dense"),
        ({"train": IMAGES}, "train: got float32 of shape"),
        ({"learning_rates": ()}, "learning_rates: got"),
        ({"learning_rates": (0.0,)}, "learning_rates: got 0.0"),
        ({"steps": (0,)}, "steps: got"),
        ({"centred": ["large"]}, "centred: got .*large.*, expected names of networks, of small"),
        ({"held_out": 0}, "held_out: got 0"),
        ({"seeds": 0}, "seeds: got 0"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        judged(**change)


def test_bad_arguments_of_herding():
    with pytest.raises(ValueError, match="per_class: got 31, expected at most 30, those of class 0"):
        distill.herded(IMAGES, LABELS, per_class=31)
