import json

import numpy as np
import pytest

from ntkit import plot
from ntkit.runs import Result, Run, Share
from ntkit.runs.result import text


def test_a_share_in_words() -> None:
    values = [0.5, 0.75, 0.625]
    assert str(Share(*values)) == f"{100 * np.mean(values):.1f} ± {100 * np.std(values):.1f} %"
    assert str(Share(0.123)) == "12.3 %"
    assert float(Share(*values)) == np.mean(values)
    with pytest.raises(ValueError, match="values: got none"):
        Share()


def test_cells_in_words() -> None:
    cells = [None, "a_b", 12345, 1.23456, np.float32(0.5), Share(1.0), True]
    assert [text(cell) for cell in cells] == ["", "a_b", "12,345", "1.235", "0.5", "100.0 %", "True"]


def test_what_is_written_is_what_was_given(tmp_path) -> None:
    run = Run.create(tmp_path / "run", {})
    result = Result(
        "title",
        summary={"count": np.int64(3), "best": Share(0.5)},
        tables={"accuracy": [{"of": "a", "clean": Share(0.25, 0.75)}, {"of": "b", "clean": None}]},
        figures={"history": plot.history([{"step": 1, "loss": 1.0}])},
        arrays={"x": np.arange(3)},
        captions={"accuracy": "How accurate"},
    )
    for _ in range(2):
        assert run.write(result) == ["report.html", "results.json", "results.npz", "history.png"]
        content = json.loads((run.path / "results.json").read_text())
        assert content["summary"] == {"count": 3, "best": 0.5}
        assert content["accuracy"][0]["clean"] == {"mean": 0.5, "std": 0.25, "values": [0.25, 0.75]}
        assert content["accuracy"][1]["clean"] is None
        with np.load(run.path / "results.npz") as arrays:
            np.testing.assert_array_equal(arrays["x"], [0, 1, 2])
        assert (run.path / "history.png").read_bytes().startswith(b"\x89PNG")
        page = (run.path / "report.html").read_text()
        assert "How accurate" in page
        assert "50.0 ± 25.0 %" in page


def test_a_cell_that_nothing_can_write() -> None:
    with pytest.raises(ValueError, match=r"tables: got .* as 'a' of 't', expected text, a number or a Share"):
        Result("title", tables={"t": [{"a": np.zeros(2)}]})
