import jax
import numpy as np
import pytest

import ntkit
from ntkit import attacks, data, networks, regression
from ntkit.data import Standardize
from ntkit.networks import training
from ntkit.networks.transferring import random_noise, transfer, transfer_result, transfer_rows

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
# Away from the bounds, so that balls fit between them.
X = RNG.uniform(0.3, 0.7, (60, 12)).astype(np.float32)
LABELS = np.where((X - 0.5) @ RNG.normal(size=12) + 0.1 * RNG.normal(size=60) > 0, 1, -1)
TRAIN, Y, TEST, TEST_LABELS = X[:40], LABELS[:40, None].astype(np.float32), X[40:], LABELS[40:]
PREPROCESS = Standardize.fit(TRAIN)


@pytest.mark.parametrize("ball", [attacks.Linf(0.1), attacks.L2(0.1)])
def test_noise_has_the_full_size(ball: attacks.Ball) -> None:
    x = np.concatenate([X, np.zeros((2, 12), np.float32)])
    noise = np.asarray(random_noise(x, ball, key=KEY))
    change = noise.astype(np.float64) - x
    sizes = np.max(np.abs(change), axis=1) if ball.norm == "l∞" else np.linalg.norm(change, axis=1)
    assert sizes.max() <= ball.radius
    np.testing.assert_allclose(sizes[:60], ball.radius, rtol=1e-5)
    assert noise.min() >= 0
    if ball.norm == "l∞":
        np.testing.assert_allclose(np.abs(change[:60]), 0.1, rtol=1e-5)
    # In all directions alike: the mean of 720 signs or coordinates is that of a coin.
    assert abs(np.mean(np.sign(change[:60]))) < 0.1
    assert len(np.unique(np.sign(change[:60]), axis=0)) > 55


def descended(x: np.ndarray, y: np.ndarray, rate: float, steps: int) -> np.ndarray:
    """Weights of a linear model, and its constant, by gradient descent on the parameters of fc(0)."""
    d = x.shape[1]
    features = np.concatenate([x * np.sqrt(2 / d), np.full((len(x), 1), 0.1)], axis=1)
    weights = np.zeros(d + 1)
    for _ in range(steps):
        weights -= rate * features.T @ (features @ weights - y[:, 0]) / len(x)
    return weights * np.concatenate([np.full(d, np.sqrt(2 / d)), [0.1]])


@pytest.mark.slow
@pytest.mark.parametrize("ball", [attacks.Linf(0.03), attacks.L2(0.08)])
def test_linear_networks_fall_for_what_is_crafted_on_their_kernel(ball: attacks.Ball) -> None:
    # A linear network is its tangent kernel's machine at any width, and the strongest attack on it is known.
    rate, steps = 0.1, (10, 200)
    architecture = ntkit.fc(0)
    prepared = np.asarray(PREPROCESS.transform(TRAIN))
    examples = {}
    for step in steps:
        predictor = regression.flow(ntkit.ntk(architecture), prepared, Y, rate * step)
        model = data.of_pixels(predictor, PREPROCESS)
        examples[f"kernel at {step}"] = attacks.FGSM(ball)(model, TEST, TEST_LABELS)
    found = transfer(
        data.of_pixels(architecture.flax(1, 1), PREPROCESS),
        TRAIN,
        Y,
        TEST,
        TEST_LABELS,
        examples=examples,
        adversaries={"one": attacks.FGSM(ball), "many": attacks.PGD(ball, steps=5)},
        steps=steps,
        key=KEY,
        optimizer=networks.sgd(rate),
        centred=True,
    )
    assert list(found) == [10, 200]
    for step in steps:
        weights = descended(prepared.astype(np.float64), Y, rate, step)
        margins = TEST_LABELS * (np.asarray(PREPROCESS.transform(TEST)) @ weights[:-1] + weights[-1])
        by_pixel = weights[:-1] / np.asarray(PREPROCESS.std)
        drop = ball.radius * (np.abs(by_pixel).sum() if ball.norm == "l∞" else np.linalg.norm(by_pixel))
        clean, robust = np.mean(margins > 0), np.mean(margins - drop > 0)
        assert clean > robust + 0.15
        expected = {"clean": clean, f"kernel at {step}": robust, "one": robust, "many": robust}
        assert {name: found[step][name] for name in expected} == pytest.approx(expected)


def test_all_times_are_of_one_training() -> None:
    module = ntkit.fc(1).flax(1, 16)

    def accuracies(steps, key=KEY):
        return transfer(module, TRAIN, Y, TEST, TEST_LABELS, examples={}, adversaries={}, steps=steps, key=key)

    found = accuracies([30, 6, 30])
    assert list(found) == [6, 30]
    key_train, _ = jax.random.split(KEY)
    for step in found:
        alone = training.train(module, TRAIN, Y, key=key_train, steps=step, optimizer=networks.adam())
        assert found[step] == {"clean": data.accuracy(alone, TEST, TEST_LABELS)}
    assert accuracies([6])[6] == found[6]


def test_transfer_rows() -> None:
    found = transfer_rows("a", [{5: {"clean": 0.5}, 9: {"clean": 0.25}}, {5: {"clean": 1.0}, 9: {"clean": 0.75}}])
    assert found == [
        {"network": "a", "steps": 5, "accuracy": {"clean": [0.5, 1.0]}},
        {"network": "a", "steps": 9, "accuracy": {"clean": [0.25, 0.75]}},
    ]


def test_a_table_of_all_models() -> None:
    kernel = {"network": "ntk", "steps": None, "accuracy": {"noise": [0.5], "kernel": [0.0], "clean": [1.0]}}
    rows = transfer_rows("a", [{5: {"clean": 0.5, "kernel": 0.0}}, {5: {"clean": 1.0, "kernel": 0.5}}])
    result = transfer_result([kernel, *rows], names={"clean": "clean", "kernel": "crafted"}, title="t")
    first, second = result.tables["accuracy"]
    assert (first["model"], first["steps"], str(first["crafted"])) == ("ntk", None, "0.0 %")
    assert list(second) == ["model", "steps", "clean", "crafted"]
    assert second["clean"].values == (0.5, 1.0)
    assert result.summary == {"a, clean": second["clean"], "a, crafted": second["crafted"]}
    assert list(transfer_result([kernel]).tables["accuracy"][0]) == ["model", "steps", "noise", "kernel", "clean"]
    for bad in ([], [{}], {"network": "a"}, "rows"):
        with pytest.raises(ValueError, match=r"rows: got .*, expected one row or more of ntkit.networks.transfer_rows"):
            transfer_result(bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": []}, r"steps: got \[\], expected one or more integers of at least 1"),
        ({"steps": [5, 0]}, "steps: got .*, expected one or more integers of at least 1"),
        ({"examples": {"clean": TEST}}, "examples: got the names clean, expected each once"),
        ({"examples": {"noise": TEST[:3]}}, r"examples: got noise of shape \(3, 12\), expected \(20, 12\) as x"),
        ({"optimizer": "sgd"}, "optimizer: got 'sgd'"),
    ],
)
def test_bad_arguments(change, message: str) -> None:
    arguments = {"examples": {}, "adversaries": {}, "steps": [5], "key": KEY} | change
    with pytest.raises(ValueError, match=message):
        transfer(ntkit.fc(1).flax(1, 8), TRAIN, Y, TEST, TEST_LABELS, **arguments)
