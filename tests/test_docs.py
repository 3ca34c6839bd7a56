"""The code of the pages that a newcomer copies from runs as it stands there."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def code(page: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S))


@pytest.mark.slow
@pytest.mark.parametrize("page", ["index.md", "extend.md", "gp.md"])
def test_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "a_page"}
    exec(compile(code(page), page, "exec"), names)
    if page == "index.md":
        found = names["found"]
        assert found.clean > 0.9
        assert found.worst <= min(found.robust.values()) < 0.5
    elif page == "extend.md":
        model, again, digits = names["model"], names["again"], names["digits"]
        x = digits.test.images[:5]
        assert (again(x) == model(x)).all()
