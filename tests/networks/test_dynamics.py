import json

import jax
import numpy as np
import pytest

import ntkit
from ntkit import attacks, data, features, networks, plot
from ntkit.data import Standardize
from ntkit.networks import Dynamics, checkpoints, kernel_distance, kernel_dynamics, linearized_from
from tests import flat

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
X = RNG.uniform(0.3, 0.7, (40, 6)).astype(np.float32)
LABELS = np.where((X - 0.5) @ RNG.normal(size=6) > 0, 1, -1)
TRAIN, Y, TEST, TEST_LABELS = X[:30], LABELS[:30, None].astype(np.float32), X[30:], LABELS[30:]
MODULE = ntkit.fc(1).flax(1, 8)
SGD = {"optimizer": networks.sgd(0.3)}


def turned(degrees, values=(4.0, 1.0)):
    """A 2×2 kernel whose eigenvectors are turned by an angle."""
    angle = np.radians(degrees)
    vectors = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return vectors @ np.diag(values) @ vectors.T


def test_distances_by_hand():
    identity, one = np.eye(2), np.array([[1.0, 0.0], [0.0, 0.0]])
    assert kernel_distance(identity, one) == pytest.approx(1 - 1 / np.sqrt(2))
    assert kernel_distance(one, [[0, 0], [0, 3]]) == pytest.approx(1)
    assert kernel_distance(one, -2 * one) == pytest.approx(2)
    assert kernel_distance(identity, 7 * identity) == pytest.approx(0, abs=1e-30)
    # <Θ, Θ'> = 17 cos² + 8 sin² of the angle between the eigenvectors, ‖Θ‖² = 17.
    assert kernel_distance(turned(10), turned(40)) == pytest.approx(1 - (17 * 0.75 + 8 * 0.25) / 17)
    # Smaller than what one minus a cosine can tell from zero.
    assert kernel_distance(turned(0), turned(1e-7)) == pytest.approx(9 / 17 * np.radians(1e-7) ** 2, rel=1e-6)


def test_a_kernel_that_turns_by_a_known_angle():
    steps, degrees = (0, 1, 3, 10), np.array([0, 5, 20, 30])
    dynamics = Dynamics(steps, np.array([turned(angle) for angle in degrees]))
    between = degrees[:, None] - degrees
    np.testing.assert_allclose(dynamics.distances, 9 / 17 * np.sin(np.radians(between)) ** 2, atol=1e-15)
    by_hand = 9 / 17 * np.sin(np.radians([5, 15, 10])) ** 2 / [1, 2, 7]
    np.testing.assert_allclose(dynamics.velocity, by_hand)
    whole = dynamics.rotation()
    # Both ‖Θt − Θ0‖² = 18 sin² of the angle, and so is that of each part up to a factor.
    radius = np.sin(np.radians(degrees)) / np.sin(np.radians(30))
    np.testing.assert_allclose(whole.radius, radius)
    np.testing.assert_allclose(np.cos(whole.angle), 1 - dynamics.distances[0])
    for part, value in (("top", 4), ("bottom", 1)):
        grams = dynamics.part(part, top=1)
        np.testing.assert_allclose(np.linalg.norm(grams, axis=(1, 2)), value)
        # Of projectors on lines, <P, P'> = cos² of the angle between these.
        radius_of_part, angle = dynamics.rotation(part, top=1)
        np.testing.assert_allclose(np.cos(angle), np.cos(np.radians(degrees)) ** 2)
        np.testing.assert_allclose(radius_of_part, radius)
    np.testing.assert_allclose(dynamics.part("top", top=1) + dynamics.part("bottom", top=1), dynamics.grams, atol=1e-14)
    np.testing.assert_allclose(dynamics.eigenvalues, [[4, 1]] * 4)
    np.testing.assert_allclose(dynamics.concentration(1), 16 / 17)
    np.testing.assert_allclose(dynamics.effective_rank, np.exp(-0.8 * np.log(0.8) - 0.2 * np.log(0.2)))
    np.testing.assert_allclose(dynamics.norm, np.sqrt(17))
    # Of the first axis: its share of the kernel is 4 cos² + sin².
    cosines = np.cos(np.radians(degrees)) ** 2
    np.testing.assert_allclose(dynamics.alignment([[1], [0]]), (4 * cosines + 1 - cosines) / np.sqrt(17))


def test_growth_alone_is_no_rotation():
    dynamics = Dynamics((0, 2, 4), np.array([turned(30), 2 * turned(30), 5 * turned(30)]))
    np.testing.assert_allclose(dynamics.distances, 0, atol=1e-30)
    np.testing.assert_allclose(dynamics.rotation().radius, [0, 0.25, 1])
    np.testing.assert_allclose(dynamics.rotation("bottom", top=1).angle, 0, atol=1e-14)


def test_checkpoints_are_of_one_training():
    training = {"key": KEY, "centred": True, "batch_size": 7, **SGD}
    found = checkpoints(MODULE, TRAIN, Y, at=(9, 0, 4, 9), **training)
    assert list(found) == [0, 4, 9]
    for step in (4, 9):
        alone = flat.train(MODULE, TRAIN, Y, steps=step, schedule="constant", **training)
        assert np.array_equal(found[step](TEST), alone(TEST))
    assert np.array_equal(found[0](TEST), np.zeros((10, 1)))
    assert np.array_equal(MODULE.apply(found[0].variables, TEST), MODULE.apply(found[9].initial, TEST))
    assert len(found[9].losses) == 9


def test_kernels_of_a_network():
    preprocessing = Standardize.fit(TRAIN)
    adversary = attacks.FGSM(attacks.Linf(0.05))

    def followed(adversary=None, key=KEY):
        given = {"sample": TEST, "at": (0, 5, 10), **SGD}
        return kernel_dynamics(data.of_pixels(MODULE, preprocessing), TRAIN, Y, key=key, adversary=adversary, **given)

    plain, again, robust, other = followed(), followed(), followed(adversary), followed(key=jax.random.key(1))
    assert np.array_equal(plain.grams, again.grams)
    assert np.array_equal(plain.grams[0], robust.grams[0])
    assert not np.allclose(plain.grams[1:], robust.grams[1:])
    assert not np.allclose(plain.grams[0], other.grams[0])
    # By hand, from the derivatives.
    shown = preprocessing.transform(TEST)
    jacobian = jax.jacobian(MODULE.apply)({"params": plain.networks[2].variables["params"]}, shown)
    rows = np.concatenate([np.reshape(leaf, (10, -1)) for leaf in jax.tree.leaves(jacobian)], axis=1, dtype=np.float64)
    np.testing.assert_allclose(plain.grams[2], rows @ rows.T, rtol=1e-4, atol=1e-5)
    assert np.all(plain.velocity > 0)
    assert plain.effective_rank[1] == features.effective_rank(plain.eigenvalues[1])


@pytest.mark.parametrize("module", [ntkit.fc(0).flax(1, 1), networks.Linearized(MODULE)])
def test_the_kernel_of_a_linear_model_does_not_move(module):
    dynamics = kernel_dynamics(module, TRAIN, Y, sample=TEST, at=(0, 3, 6), key=KEY, **SGD)
    assert not np.array_equal(dynamics.networks[0](TEST), dynamics.networks[2](TEST))
    # But for rounding, of float32 kernels.
    np.testing.assert_allclose(dynamics.distances, 0, atol=1e-12)
    np.testing.assert_allclose(dynamics.velocity, 0, atol=1e-12)
    for part in ("all", "top", "bottom"):
        np.testing.assert_allclose(dynamics.rotation(part, top=2).angle, 0, atol=1e-5)
    for values in (dynamics.norm, dynamics.effective_rank, dynamics.concentration(2), dynamics.alignment(Y[:10])):
        np.testing.assert_allclose(values, values[0], rtol=1e-5)


@pytest.mark.slow
def test_a_linear_network_is_its_linearization():
    # By all images and with SGD, there is nothing that the two could differ in.
    module = ntkit.fc(0).flax(1, 1)
    training = {"centred": True, "key": KEY, **SGD}
    found = checkpoints(module, TRAIN, Y, at=(0, 20, 100), **training)
    from_20 = flat.train(networks.linearize(found[20]), TRAIN, Y, key=KEY, steps=80, schedule="constant", **SGD)
    np.testing.assert_allclose(from_20(TEST), found[100](TEST), rtol=1e-4, atol=1e-6)
    rows = linearized_from(found, TRAIN, Y, TEST, TEST_LABELS, key=KEY, **SGD)
    assert [row["step"] for row in rows] == [0, 20]
    for row in rows:
        assert row["linearized"] == row["network"] == {"clean": data.accuracy(found[100], TEST, TEST_LABELS)}
        assert row["start"] == {"clean": data.accuracy(found[row["step"]], TEST, TEST_LABELS)}


@pytest.mark.slow
def test_linearizations_under_attack():
    ball = attacks.Linf(0.05)
    training = {"adversary": attacks.FGSM(ball), **SGD}
    found = checkpoints(data.of_pixels(MODULE, Standardize.fit(TRAIN)), TRAIN, Y, at=(2, 6), key=KEY, **training)
    given = {"key": KEY, "adversaries": {"fgsm": attacks.FGSM(ball)}, **training}
    rows = [linearized_from(found, TRAIN, Y, TEST, TEST_LABELS, **given) for _ in range(2)]
    assert rows[0] == rows[1]
    (row,) = rows[0]
    for accuracies in (row["start"], row["linearized"], row["network"]):
        assert list(accuracies) == ["clean", "fgsm"]
        assert accuracies["fgsm"] <= accuracies["clean"]


def test_training_goes_on_from_a_trained_network():
    training = {"key": KEY, **SGD}
    whole = flat.train(MODULE, TRAIN, Y, steps=9, centred=True, **training)
    first = flat.train(MODULE, TRAIN, Y, steps=5, centred=True, **training)
    then = flat.train(first, TRAIN, Y, steps=4, **training)
    np.testing.assert_allclose(then(TEST), whole(TEST), rtol=1e-5, atol=1e-6)
    assert then.initial is first.initial
    with pytest.raises(ValueError, match="centred: got True for a trained network, expected it as"):
        flat.train(first, TRAIN, Y, centred=True, **training)


@pytest.mark.slow
def test_summary_and_picture(tmp_path):
    dynamics = Dynamics((0, 1, 5), np.array([turned(0), turned(5), turned(30)]))
    summary = dynamics.summary([[1], [0]], top=1, shares=(1, 2))
    assert json.loads(json.dumps(summary)) == summary
    assert summary["concentration"]["2"] == pytest.approx([1, 1, 1])
    assert summary["alignment"] == list(dynamics.alignment([[1], [0]]))
    assert "alignment" not in dynamics.summary(top=1, shares=(1,))
    still = Dynamics((3, 4), np.array([turned(0), turned(0)])).summary(top=1, shares=(1,))
    for found in ({"standard": summary, "adversarial": still}, {"one": still}):
        plot.save(plot.dynamics(found), tmp_path / "dynamics.png")
        assert (tmp_path / "dynamics.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match=r"found: got \{\}, expected one result or more"):
        plot.dynamics({})


def test_trainings_side_by_side() -> None:
    dynamics = Dynamics((0, 1, 5), np.array([turned(0), turned(5), turned(30)]))
    summary = dynamics.summary([[1], [0]], top=1, shares=(1,)) | {"accuracy": {"clean": [0.1, 0.5, 0.75]}}
    ends = [{"step": 1, "start": {}, "linearized": {"clean": 0.625}, "network": {}}]
    result = networks.dynamics_result({"standard": summary, "adversarial": summary}, {"standard": ends}, title="t")
    assert [row["training"] for row in result.tables["metrics"]] == ["standard"] * 3 + ["adversarial"] * 3
    assert result.tables["metrics"][0]["speed"] is None
    assert result.tables["metrics"][2]["moved"] == result.summary["standard: moved, d(Θf, Θ0)"]
    assert result.tables["rotation"][2]["all: angle"] == pytest.approx(np.degrees(dynamics.rotation().angle[2]))
    accuracy = result.tables["accuracy"]
    assert (accuracy[1]["clean"].mean, accuracy[1]["linearized: clean"].mean) == (0.5, 0.625)
    assert "linearized: clean" not in accuracy[4]
    for bad in ({"standard": dynamics.summary(top=1)}, [summary], {"standard": 1}):
        with pytest.raises(ValueError, match=r"found: got .*, expected summaries of kernel dynamics"):
            networks.dynamics_result(bad)
    with pytest.raises(ValueError, match="accuracy: got 1 of 'clean', expected 3 as steps"):
        networks.dynamics_result({"standard": summary | {"accuracy": {"clean": [0.5]}}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at": ()}, r"at: got \(\), expected two or more different numbers of steps"),
        ({"at": (0,)}, r"at: got \(0,\), expected two or more"),
        ({"at": (3, 3)}, r"at: got \(3, 3\), expected two or more"),
        ({"at": (0, -1)}, r"at: got \(0, -1\), expected two or more"),
        ({"at": (0, 2.5)}, r"at: got \(0, 2.5\), expected two or more"),
        ({"sample": X[:, :5]}, r"sample: got shape \(40, 5\), expected \(n, 6\) as images"),
        ({"sample": np.full((4, 6), np.nan)}, "sample: got NaN"),
        ({"images": X[:3]}, "targets: got shape"),
        ({"optimizer": "sgd"}, "optimizer: got 'sgd'"),
    ],
)
def test_bad_trainings(change, message):
    given = {"images": TRAIN, "targets": Y, "sample": TEST, "at": (0, 2), "key": KEY, **SGD}
    with pytest.raises(ValueError, match=message):
        kernel_dynamics(MODULE, **(given | change))


def test_bad_kernels():
    square = np.eye(2)
    with pytest.raises(ValueError, match=r"second: got shape \(3, 3\), expected \(2, 2\) as first"):
        kernel_distance(square, np.eye(3))
    with pytest.raises(ValueError, match=r"first: got shape \(2,\), expected a square"):
        kernel_distance(square[0], square)
    with pytest.raises(ValueError, match="first: got NaN or infinity"):
        kernel_distance(np.inf * np.ones((2, 2)), square)
    with pytest.raises(ValueError, match="got zeros alone"):
        kernel_distance(0 * square, square)
    with pytest.raises(ValueError, match=r"steps: got \(1, 1\), expected one or more in rising order"):
        Dynamics((1, 1), np.stack([square, square]))
    with pytest.raises(ValueError, match=r"grams: got shape \(1, 2, 2\), expected \(2, n, n\), a square for each step"):
        Dynamics((0, 1), square[None])
    dynamics = Dynamics((0, 1), np.stack([square, square]))
    with pytest.raises(ValueError, match="top: got 2, expected an integer from 1 to 1"):
        dynamics.rotation("top", top=2)
    with pytest.raises(ValueError, match="part: got 'middle', expected one of 'all', 'top', 'bottom'"):
        dynamics.part("middle")
    with pytest.raises(ValueError, match=r"networks: got \{\}, expected two networks or more"):
        linearized_from({}, TRAIN, Y, TEST, TEST_LABELS, key=KEY)
    adversaries = {"clean": attacks.FGSM(attacks.Linf(0.1))}
    found = checkpoints(MODULE, TRAIN, Y, at=(0, 1), key=KEY)
    with pytest.raises(ValueError, match="adversaries: got one with the name 'clean'"):
        linearized_from(found, TRAIN, Y, TEST, TEST_LABELS, key=KEY, adversaries=adversaries)
