"""`ntkit distill --adversary`: a robust set beside a clean one, and what attacks leave of both."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest

from ntkit import fc, ntk
from ntkit.attacks import PGD, Linf
from ntkit.cli import main
from ntkit.cli.distill import run_within
from ntkit.data import Standardize, load
from ntkit.distill import Distilled
from ntkit.runs import Run
from tests import flat

SMALL = ("--steps", "20", "--target-batch", "50", "--full-set-limit", "100", "--adversary", "pgd", "--radius", "0.1")
SMALL += ("--adversary-steps", "2", "--attacked-images", "20", "--network-steps", "20", "--network-width", "16")


@pytest.mark.parametrize("left", [(), (".lock",), (".lock", ".config.json.0123456789ab.tmp")])
def test_the_clean_run_is_begun_wherever_a_kill_came_before_it(left, tmp_path) -> None:
    run = Run.create(tmp_path / "run", {"steps": 3})
    (run.path / "clean").mkdir()
    for name in left:
        (run.path / "clean" / name).touch()
    with run_within(run, "clean") as clean:
        clean.save(1, {"x": 1})
    with run_within(run, "clean") as again:
        assert again.restore({"x": 0}) == (1, {"x": 1})
    # What it has come to is of one configuration.
    (run.path / "config.json").write_text((run.path / "config.json").read_text().replace('"steps": 3', '"steps": 4'))
    with pytest.raises(ValueError, match="steps: the run has 3, given 4"), run_within(Run.resume(run.path), "clean"):
        pass


@pytest.mark.slow
def test_a_robust_set_and_a_clean_one(tmp_path, capsys) -> None:
    out = tmp_path / "run"
    main(["distill", *SMALL, "--out", str(out)])
    printed = capsys.readouterr().out
    assert "20 test images under attack, l∞ 0.1" in printed
    rows = json.loads((out / "results.json").read_text())["robustness"]
    assert [row["trained on"] for row in rows] == [
        "10 images of adv-KIP",
        "10 images of KIP",
        "10 images of adv-KIP",
        "10 images of KIP",
        "100 real",
        "100 real, adversarial training",
    ]
    assert all(0 <= row["AutoAttack"] <= row["clean"] <= 1 for row in rows)
    report = (out / "report.html").read_text()
    assert all(word in report for word in ("PGD-20", "AutoAttack", "masked gradients"))
    robust, clean = Distilled.load(out / "distilled.npz"), Distilled.load(out / "clean" / "distilled.npz")
    assert not np.array_equal(robust.images, clean.images)
    assert Run.resume(out).config["radius"] == 0.1

    # Killed when the clean set's directory was there, but nothing in it: the robust set is not distilled again, and all
    # else is the same.
    shutil.rmtree(out / "clean")
    (out / "clean").mkdir()
    (out / "clean" / ".lock").touch()
    (out / "results.json").unlink()
    main(["distill", "--resume", str(out), *SMALL])
    assert json.loads((out / "results.json").read_text())["robustness"] == rows
    np.testing.assert_array_equal(Distilled.load(out / "clean" / "distilled.npz").images, clean.images)

    # And it is what the library does.
    train = load("digits").train
    expected = flat.kip(
        ntk(fc(1)), train.images, train.labels, per_class=1, steps=20, target_batch=50, key=jax.random.key(0),
        optimizer=optax.adam(0.01), adversary=PGD(Linf(0.1), steps=2, stop_early=False),
        preprocessing=Standardize.fit(train.images),
    )  # fmt: skip
    np.testing.assert_allclose(robust.images, expected.images, atol=1e-4)
