import base64
import html.parser
import io

import numpy as np
import pytest

from ntkit import plot
from ntkit.runs import Result, Run, Share, write_report

VOID = {"meta", "img", "br", "hr", "link"}


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def figure():
    return plot.history([{"step": 1, "loss": 1.0}])


def png():
    buffer = io.BytesIO()
    figure().savefig(buffer, format="png")
    return buffer.getvalue()


def read(path):
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    return text, page


def test_one_page_with_everything_and_nothing_outside(tmp_path):
    path = tmp_path / "report.html"
    data = png()
    (tmp_path / "picture.png").write_bytes(data)
    write_report(
        path,
        Result(
            "KIP & friends <script>alert(1)</script>",
            summary={"test accuracy": Share(0.921), "loss": np.float32(0.012345)},
            tables={
                "Accuracy": [{"set": "distilled <b>", "test": 0.92131}, {"set": "random", "train": 1, "test": None}]
            },
            figures={"History": figure(), "Grid": data, 'File "x"': tmp_path / "picture.png"},
        ),
        config={"kernel": {"depth": 3}, "steps": 10, "text": "<i>"},
        versions={"jax": "1.2.3"},
        device={"platform": "cpu"},
        footer="made by ntkit",
    )
    text, page = read(path)
    assert text.startswith("<!doctype html>")
    words = " ".join(page.text)
    for expected in (
        "KIP & friends <script>alert(1)</script>", "92.1 %", "0.01235", "distilled <b>", "0.9213", "kernel.depth",
        "1.2.3", "made by ntkit", "<i>",
    ):  # fmt: skip
        assert expected in words
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe", "b", "i"} & set(tags)
    assert tags.count("img") == 3
    for tag, attributes in page.tags:
        assert not {"href", "srcset", "onclick"} & set(attributes)
        if tag == "img":
            kind, _, content = attributes["src"].partition(";base64,")
            assert kind == "data:image/png"
            assert base64.b64decode(content).startswith(b"\x89PNG")
            assert int(attributes["width"]) > 0
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_a_page_with_nothing_but_a_title(tmp_path):
    write_report(tmp_path / "r.html", Result("t", tables={"none": []}))
    _, page = read(tmp_path / "r.html")
    assert [tag for tag, _ in page.tags].count("p") == 1


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        (b"GIF89a", ValueError, r"figures\['f'\]: got something else, expected a PNG"),
        (3, ValueError, r"figures\['f'\]: got 3, expected a matplotlib Figure"),
        ("/none.png", FileNotFoundError, "none"),
    ],
)
def test_bad_figures_leave_the_old_report(tmp_path, picture, error, message):
    path = tmp_path / "r.html"
    path.write_text("old")
    with pytest.raises(error, match=message):
        write_report(path, Result("t", figures={"f": picture}))
    assert path.read_text() == "old"


def test_a_run_s_report_says_what_it_was(tmp_path):
    run = Run.create(tmp_path / "run", {"depth": 17})
    assert run.write(Result("t", tables={"numbers": [{"of": 0.25}]})) == ["report.html", "results.json"]
    _, page = read(run.path / "report.html")
    words = " ".join(page.text)
    for expected in ("depth", "17", "0.25", run.versions["jax"], run.device["platform"], run.created):
        assert expected in words
