import math

import jax
import jax.numpy as jnp
import pytest

import ntkit
from ntkit.cli import refusals
from tests.cli.command import check_one_line

REFUSED = {
    "distill --per-class 100000 --init noise": "--per-class: got 100000, expected less: it takes 8,000 GB of memory",
    "distill --adversary pgd --network-width 100000000": "--network-width: got 100000000, expected less",
    "attack --widths 16 400000000": "--widths: got 400000000, expected less",
    "dynamics --depth 2 --width 100000": "--width: got 100000, expected less",
    "score --candidates fc1x16 fc2x100000": "--candidates: got 'fc2x100000', expected less",
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_memory_cannot_hold_is_refused(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(refusals, "_memory", lambda: 2**34)
    name, options = command.split(maxsplit=1)
    check_one_line(name, f"{options} --out {tmp_path / 'run'}", REFUSED[command], capsys)
    assert not (tmp_path / "run").exists()


def test_a_network_that_fits_exactly(monkeypatch):
    module = ntkit.fc(2).flax(10, 64)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    # Itself, its gradient and Adam's two moments.
    taken = 4 * 4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))
    monkeypatch.setattr(refusals, "_memory", lambda: taken)
    refusals.check_network("width", 64, module, (8, 8, 1))
    monkeypatch.setattr(refusals, "_memory", lambda: taken - 1)
    with pytest.raises(ValueError, match=r"^width: got 64, expected less: it takes"):
        refusals.check_network("width", 64, module, (8, 8, 1))


def test_this_machine_says_how_much_it_has():
    assert refusals._memory() > 2**28


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("RESOURCE_EXHAUSTED: no room\nand more")])
def test_what_was_not_foreseen_is_one_line(error, tmp_path, monkeypatch, capsys):
    def full(*arguments, **options):
        raise error

    monkeypatch.setattr("ntkit.distill.label_solve", full)
    message = "out of memory: no room" if isinstance(error, MemoryError) else "RESOURCE_EXHAUSTED: no room"
    check_one_line("label-solve", f"--out {tmp_path / 'run'}", message, capsys)
    assert not (tmp_path / "run").exists()
