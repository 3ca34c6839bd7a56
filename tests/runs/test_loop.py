import json
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit.runs import Interrupted, Method, Run, Session, iterate

# --- A method that only counts, and one with everything


@ntkit.pytree_dataclass
class Count(Method):
    def init(self):
        return jnp.zeros((), jnp.int32)

    def step(self, state):
        return state + 1, {"loss": 1.0 * state}


@ntkit.pytree_dataclass
class Walk(Method):
    """A random walk from data that no step changes."""

    metrics = ("size", "longest")
    largest = ("longest",)

    data: jax.Array
    scale: float = ntkit.static_field(default=1.0)

    def init(self):
        # The same array twice, of a weak type, and a key: what a donated state must not have.
        zero = jnp.asarray(0.0) * 1
        return {"x": self.data, "y": zero, "z": zero, "key": jax.random.key(0)}

    def step(self, state):
        key, draw = jax.random.split(state["key"])
        x = state["x"] + self.scale * jax.random.normal(draw, state["x"].shape)
        size = jnp.abs(x).mean()
        return {"x": x, "y": state["y"] + size, "z": state["z"], "key": key}, {
            "size": size,
            "longest": jnp.abs(x).max(),
        }

    def model(self, state):
        return state["x"]


WALK = Walk(jnp.zeros(3))


def by_hand(steps):
    """The states and metrics of a walk, one after the other."""
    state, found = WALK.init(), []
    for _ in range(steps):
        state, metrics = WALK.step(state)
        found.append({name: float(value) for name, value in metrics.items()})
    return state, found


def same_bits(first, second):
    return all(np.array_equal(first[0][name], second[0][name]) for name in "xyz") and all(
        np.array_equal(first[1][name], second[1][name]) for name in first[1]
    )


def test_records_are_means_and_largest_values_of_their_steps() -> None:
    state, history = iterate(WALK, 7, Session(log_every=3))
    expected, metrics = by_hand(7)
    np.testing.assert_allclose(state["x"], expected["x"], rtol=1e-6)
    assert history["step"].tolist() == [3, 6, 7]
    parts = (metrics[:3], metrics[3:6], metrics[6:])
    np.testing.assert_allclose(history["size"], [np.mean([m["size"] for m in part]) for part in parts], rtol=1e-6)
    np.testing.assert_allclose(history["longest"], [max(m["longest"] for m in part) for part in parts], rtol=1e-6)


def test_data_are_arguments_and_static_fields_are_compiled_for() -> None:
    from ntkit.runs.loop import _steps

    before = _steps._cache_size()
    for shift in (1.0, 2.0):
        iterate(Walk(jnp.full(3, shift)), 3)
    assert _steps._cache_size() - before <= 1
    iterate(Walk(jnp.zeros(3), 2.0), 3)
    assert 1 <= _steps._cache_size() - before <= 2


def test_interrupted_and_resumed_to_the_same_bits(tmp_path) -> None:
    whole = iterate(WALK, 40, Session(log_every=7))
    run = Run.create(tmp_path / "run", {})

    def evaluate(x):
        if run.step is None or run.step < 20:
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)
        return {}

    with pytest.raises(Interrupted, match=r"stopped after \d+ of 40 steps, saved in"):
        iterate(WALK, 40, Session(run=run, log_every=7, evaluate=evaluate))
    assert 0 < run.step < 40
    resumed = iterate(WALK, 40, Session(run=Run.resume(run.path), log_every=7))
    assert same_bits(whole, resumed)
    # What is finished takes no more steps.
    assert same_bits(whole, iterate(WALK, 40, Session(run=Run.resume(run.path), log_every=7)))


def test_a_checkpoint_between_two_records_keeps_the_sums(tmp_path) -> None:
    whole = iterate(WALK, 30, Session(log_every=20))
    run = Run.create(tmp_path / "run", {})
    # With a checkpoint after every dispatch the run is cut at one of them.
    iterate(WALK, 13, Session(run=run, log_every=20, checkpoint_every=0))
    cut = [json.loads(line)["step"] for line in (run.path / "metrics.jsonl").open()]
    assert cut == [13]
    resumed = iterate(WALK, 30, Session(run=Run.resume(run.path), log_every=20))
    np.testing.assert_array_equal(whole[0]["x"], resumed[0]["x"])


def test_what_evaluate_keeps_stays(tmp_path) -> None:
    kept = []

    def keep(x):
        kept.append(x)
        return {"first": float(x[0])}

    state, history = iterate(WALK, 6, Session(log_every=2, evaluate=keep))
    assert [float(x[0]) for x in kept] == history["first"].tolist()
    np.testing.assert_array_equal(kept[-1], state["x"])


def test_one_by_one_is_the_same() -> None:
    @ntkit.pytree_dataclass
    class OneByOne(Walk):
        one_by_one = True

    np.testing.assert_allclose(iterate(OneByOne(jnp.zeros(3)), 5)[0]["x"], iterate(WALK, 5)[0]["x"], rtol=1e-6)


def test_records_of_others_stay_out_of_the_history(tmp_path) -> None:
    """What is not a number, or not one for all records, would make a file that ntkit refuses."""
    run = Run.create(tmp_path / "run", {})
    iterate(Count(), 4, Session(run=run, log_every=2))
    run.log(4, note="half", loss="much", each=[1, 2], big=10**400, none=None)
    state, history = iterate(Count(), 4, Session(run=Run.resume(run.path), log_every=2))
    assert state == 4
    assert list(history) == ["step", "loss"]
    assert history["step"].tolist() == [2, 4, 4]
    np.testing.assert_array_equal(history["loss"], [0.5, 2.5, np.nan])


@pytest.mark.parametrize("steps", [0, 3])
def test_fewer_steps_than_the_checkpoint_has_are_refused(steps, tmp_path) -> None:
    run = Run.create(tmp_path / "run", {})
    session = Session(run=run, log_every=2)
    assert iterate(Count(), 4, session)[0] == 4
    with pytest.raises(
        ValueError, match=rf"^steps: got {steps}, expected at least 4, the step of the checkpoint in '.*run"
    ):
        iterate(Count(), steps, session)
    assert [json.loads(line)["step"] for line in (run.path / "metrics.jsonl").open()] == [2, 4]
    state, history = iterate(Count(), 6, Session(run=Run.resume(run.path), log_every=2))
    assert (state, history["step"].tolist()) == (6, [2, 4, 6])


def test_another_state_is_refused(tmp_path) -> None:
    run = Run.create(tmp_path / "run", {})
    iterate(WALK, 2, Session(run=run))
    with pytest.raises(ValueError, match=r"^run: got '.*run', which was begun with another x, expected the arguments"):
        iterate(Walk(jnp.zeros(4)), 4, Session(run=Run.resume(run.path)))


def test_divergence_and_wrong_metrics() -> None:
    @ntkit.pytree_dataclass
    class Bad(Count):
        diverged = "counting failed"

        def step(self, state):
            return state + 1, {"loss": jnp.where(state == 3, jnp.nan, 0.0)}

    with pytest.raises(FloatingPointError, match="counting failed: the loss is nan by step 4; try a smaller"):
        iterate(Bad(), 8, Session(log_every=4))

    @ntkit.pytree_dataclass
    class Other(Count):
        def step(self, state):
            return state + 1, {"score": state}

    with pytest.raises(ValueError, match=r"method: got metrics \['score'\] from a step, expected \['loss'\]"):
        iterate(Other(), 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [("run", "runs/one"), ("log_every", 0), ("checkpoint_every", -1), ("show_progress", 1), ("evaluate", 3)],
)
def test_bad_sessions(field, value) -> None:
    with pytest.raises(ValueError, match=f"^{field}: got "):
        Session(**{field: value})
