import json

import numpy as np
import pytest

from ntkit.runs import Loop, Run, columns


def loop(run, steps):
    return Loop(
        advance=lambda state, count: state + count,
        record=lambda step, state: ({"step": step, "sum": float(state)}, state),
        steps=steps,
        log_every=2,
        what="count",
        run=run,
        checkpoint_every=0,
    )(np.int64(0))


def test_records_of_others_stay_out_of_the_columns(tmp_path):
    """What is not a number, or not one for all records, would make a file that ntkit refuses."""
    run = Run.create(tmp_path / "run", {})
    loop(run, 4)
    run.log(4, note="half", sum="much", each=[1, 2], big=10**400, none=None)
    state, records = loop(Run.resume(run.path), 4)
    assert state == 4
    assert len(records) == 3
    found = columns(records)
    assert list(found) == ["step", "sum"]
    assert found["step"].tolist() == [2, 4, 4]
    np.testing.assert_array_equal(found["sum"], [2, 4, np.nan])


@pytest.mark.parametrize("steps", [0, 3])
def test_fewer_steps_than_the_checkpoint_has_are_refused(steps, tmp_path):
    run = Run.create(tmp_path / "run", {})
    assert loop(run, 4)[0] == 4
    with pytest.raises(
        ValueError, match=rf"^steps: got {steps}, expected at least 4, the step of the checkpoint in '.*run"
    ):
        loop(run, steps)
    assert [json.loads(line)["step"] for line in (run.path / "metrics.jsonl").open()] == [2, 4]
    state, records = loop(Run.resume(run.path), 6)
    assert (state, [record["step"] for record in records]) == (6, [2, 4, 6])
