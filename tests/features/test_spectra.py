import warnings

import numpy as np
import pytest

from ntkit import features


def test_effective_rank_and_condition_number() -> None:
    np.testing.assert_allclose(features.effective_rank([2.0, 2.0, 2.0, 0.0]), 3)
    np.testing.assert_allclose(features.effective_rank([5.0]), 1)
    shares = np.array([0.5, 0.25, 0.25])
    np.testing.assert_allclose(features.effective_rank(8 * shares), 2**1.5)
    assert features.condition_number([4.0, 2.0, 0.5]) == 8
    assert features.condition_number([4.0, 0.0]) == np.inf
    np.testing.assert_allclose(features.concentration([1.0, 3.0, 2.0], 1), 9 / 14)
    np.testing.assert_allclose(features.concentration([1.0, 3.0, 2.0], 3), 1)


def test_alignment() -> None:
    y = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    np.testing.assert_allclose(features.alignment(y @ y.T, y), 1)
    np.testing.assert_allclose(features.alignment(np.eye(4), y), 0.5)
    # What is added to all entries is not seen by the centred one.
    np.testing.assert_allclose(features.alignment(y @ y.T + 3, y, centred=True), 1)
    assert features.alignment(y @ y.T + 3, y) < 0.5


def test_label_shares_and_residuals_of_an_eigenbasis() -> None:
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    y = 3 * vectors[:, [2]] + 4 * vectors[:, [5]]
    np.testing.assert_allclose(features.label_shares(vectors, y), [0, 0, 9 / 25, 0, 0, 16 / 25], atol=1e-12)
    np.testing.assert_allclose(features.residuals(vectors, y), [0, 0, 3, 0, 0, 4], atol=1e-12)


def test_predicted_residuals_are_those_of_gradient_descent() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(8, 12))
    y = rng.normal(size=(8, 2))
    eigenvalues, vectors = np.linalg.eigh(x @ x.T)
    rate = 1.5 / eigenvalues[-1]
    w = np.zeros((12, 2))
    expected = []
    for step in range(21):
        if step in (0, 3, 20):
            expected.append(features.residuals(vectors, y - x @ w))
        w -= rate * x.T @ (x @ w - y)
    found = features.predicted_residuals(eigenvalues, vectors, y, [0, 3, 20], rate)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_similarity() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(9, 3))
    np.testing.assert_allclose(np.diag(features.similarity(a, -2 * a)), 1)
    orthogonal = np.linalg.qr(rng.normal(size=(9, 4)))[0]
    np.testing.assert_allclose(features.similarity(orthogonal, orthogonal), np.eye(4), atol=1e-12)


@pytest.mark.parametrize("dimension", [1, 3])
def test_intrinsic_dimension_of_a_flat_piece_in_many_dimensions(dimension) -> None:
    rng = np.random.default_rng(0)
    inside = rng.uniform(size=(1500, dimension))
    turned = np.linalg.qr(rng.normal(size=(64, dimension)))[0]
    images = (inside @ turned.T).reshape(-1, 8, 8, 1)
    found = features.intrinsic_dimension(images)
    assert list(found) == [3, 5, 10, 20]
    # Few neighbours overestimate: the mean of the inverse is that of k − 1 terms, with the bias (k − 1) / (k − 2).
    for k, value in found.items():
        np.testing.assert_allclose(value, dimension, rtol=0.12 + 0.25 / (k - 1))


@pytest.mark.parametrize(
    "of", [features.effective_rank, features.condition_number, lambda values: features.concentration(values, 1)]
)
def test_negative_eigenvalues_get_a_word(of) -> None:
    # What float32 leaves of zeros is none.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of([1.0, 0.5, -3e-7])
    with pytest.warns(features.SpectrumWarning, match="eigenvalues: got -0.1 beside 1, which is more than rounding"):
        of([1.0, 0.5, -0.1])


def test_intrinsic_dimension_by_hand() -> None:
    # Points on a line at 0, 1, 3: distances to the two neighbours are (1, 3), (1, 2), (2, 3).
    expected = 1 / np.mean(np.log([3 / 1, 2 / 1, 3 / 2]))
    np.testing.assert_allclose(features.intrinsic_dimension([[0.0], [1.0], [3.0]], [2])[2], expected)
    # Copies count once, whatever is copied.
    for points in ([0, 1, 3, 3], [0, 0, 0, 1, 3, 3], [0, 0, 1, 1, 3, 3]):
        with pytest.warns(features.CopiesWarning, match=f"images: {len(points) - 3} of {len(points)} are copies"):
            with_copies = features.intrinsic_dimension(np.array(points, float)[:, None], [2])
        np.testing.assert_allclose(with_copies[2], expected)


BAD = [
    (lambda: features.effective_rank([-1.0, 0.0]), "eigenvalues: got none above 0"),
    (lambda: features.effective_rank([np.nan]), "eigenvalues: got NaN"),
    (lambda: features.concentration([1.0], 2), "top: got 2, expected an integer from 1 to 1"),
    (lambda: features.alignment(np.eye(3)[:2], np.ones((2, 1))), r"gram: got shape \(2, 3\)"),
    (lambda: features.alignment(np.eye(3), np.ones(3)), r"y: got shape \(3,\)"),
    (lambda: features.label_shares(np.eye(3), np.ones((2, 1))), "y: got shape"),
    (lambda: features.predicted_residuals([3.0], np.ones((1, 1)), np.ones((1, 1)), 1, 0.7), "learning_rate: got 0.7"),
    (lambda: features.predicted_residuals([3.0], np.ones((1, 1)), np.ones((1, 1)), -1, 0.1), "steps: got -1"),
    (lambda: features.similarity(np.ones((3, 1)), np.ones((2, 1))), "second: got shape"),
    (lambda: features.intrinsic_dimension(np.ones((5, 2)), [2]), "images: got copies"),
    (
        lambda: features.intrinsic_dimension(np.eye(5), [5]),
        r"neighbours: got \[5\], expected one or more integers from 2 to 4",
    ),
    (lambda: features.intrinsic_dimension(np.eye(5), [2]), "images: got equal distances"),
    (lambda: features.intrinsic_dimension(np.ones((2, 2))), "images: got shape"),
    (lambda: features.concentration([0.0, 0.0], 1), "eigenvalues: got none above 0"),
    (lambda: features.effective_rank(np.eye(2)), r"eigenvalues: got shape \(2, 2\)"),
    (lambda: features.alignment(np.triu(np.ones((3, 3))), np.ones((3, 1))), "gram: got one that is not symmetric"),
    (lambda: features.label_shares(np.eye(2), np.zeros((2, 1))), "y: got zeros alone"),
    (lambda: features.predicted_residuals([3.0, 1.0], np.eye(2)[:, :1], np.ones((2, 1)), 1, 0.1), "eigenvalues: got 2"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
