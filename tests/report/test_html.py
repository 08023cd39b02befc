"""The page, as text and in a browser."""

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from onnxbrecq.report.evidence import Evidence
from onnxbrecq.report.html import as_html
from onnxbrecq.report.result import Gate, Result

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--virtual-time-budget=10000",
)  # fmt: skip

# What is drawn, and the label of a bar whose name is a script, under the mouse.
_PROBE = """<script>
Plotly.Fx.hover("chart-bits", [{curveNumber: 0, pointNumber: 1}]);
document.getElementById("search").value = "FEATURES";
document.getElementById("search").dispatchEvent(new Event("input"));
document.body.dataset.left = document.querySelectorAll("#layers tbody tr:not(.hidden)").length;
</script></body>"""


class Tags(HTMLParser):
    """Every tag of a page, with its attributes; and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if not self.tags or self.tags[-1][0] not in ("script", "style"):
            self.text += data


def test_names_stay_text(page: Path) -> None:
    found = Tags(page.read_text("utf-8"))
    assert [tag for tag, _ in found.tags].count("script") == 3
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    assert [str(image["src"])[:10] for image in images] == ["data:image"]
    assert found.text.count("<script>document.body") >= 5
    assert not [a for _, attributes in found.tags for a in attributes if a.startswith("on")]


def test_nothing_is_loaded_from_anywhere(page: Path) -> None:
    found = Tags(page.read_text("utf-8"))
    for _, attributes in found.tags:
        for key in ("src", "href"):
            assert (attributes.get(key) or "#").startswith(("data:", "#"))
    policy = next(a["content"] for t, a in found.tags if t == "meta" and "http-equiv" in a)
    assert str(policy).startswith("default-src 'none';")


@pytest.mark.parametrize(
    ("met", "says"), [(True, "gate met"), (False, "gate not met"), (None, "no gate")]
)
def test_the_verdict_stands_on_top(
    result: Result, evidence: Evidence, met: bool | None, says: str
) -> None:
    text = as_html(replace(result, gate=Gate({}, met, None)), evidence).decode()
    assert re.search(r"<h1><span class=\"badge\">([\w ]+)</span>", text)[1] == says  # type: ignore[index]


def test_what_was_not_measured_is_left_out(result: Result, evidence: Evidence) -> None:
    bare = replace(
        result, accuracy=None, fidelity=None, execution=(), blocks=(), notes=(), layers=(),
        weights_mean_bits=None, activations_mean_bits=None,
    )  # fmt: skip
    none = replace(evidence, growth=(), noise=(), worst=(), thumbnails=(), front=None)
    text = as_html(bare, none).decode()
    for part in (
        "bits",
        "errors",
        "worst",
        "kernels",
        "speed",
        "front",
        "samples",
        "notes",
        "blocks",
    ):
        assert f'<section id="{part}">' not in text


def test_half_a_character_in_a_name(result: Result, evidence: Evidence) -> None:
    text = as_html(replace(result, notes=("a\udc80b",)), replace(evidence, note="not gathered"))
    assert b"a\\udc80b" in text
    assert b"<li>not gathered</li>" in text


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_draws_it_without_a_complaint(page: Path, tmp_path: Path) -> None:
    page.write_text(page.read_text("utf-8").replace("</body>", _PROBE), encoding="utf-8")
    command = [
        str(CHROMIUM), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
        page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert said == []
    drawn = Tags(done.stdout)
    body = next(attributes for tag, attributes in drawn.tags if tag == "body")
    assert body.get("data-ready") == "yes"
    assert "data-obeyed" not in body
    assert body.get("data-left") == "1"  # the search leaves one layer of four
    charts = {str(a["id"]) for _, a in drawn.tags if "js-plotly-plot" in str(a.get("class"))}
    assert charts == {
        "chart-bits", "chart-growth", "chart-latency", "chart-front", "weights-0", "data-0",
    }  # fmt: skip
    label = re.search(r'<g class="hoverlayer">.*?</g></g>', done.stdout, re.DOTALL)
    assert label is not None
    assert "&lt;script&gt;document" in label[0]
