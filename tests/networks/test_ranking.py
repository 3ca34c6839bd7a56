import numpy as np

from ntkit.networks.ranking import kendall


def test_kendall_of_perfect_ranks() -> None:
    names = ("norm", "mean", "label_alignment", "label_alignment_later", "nngp_accuracy")
    rows = [dict.fromkeys(names, i) | {"condition_number": 10.0 - i, "accuracy": i / 10} for i in range(5)]
    np.testing.assert_allclose([found["tau"] for found in kendall(rows)], 1)
    same = [row | {"norm": 1.0} for row in rows]
    assert {"score": "norm", "tau": 0.0, "p": 1.0} in kendall(same)
