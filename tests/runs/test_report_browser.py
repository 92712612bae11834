"""report.html in a real browser, Debian's chromium without a screen: `make test-all` installs it where it can."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from test_report import rename
from tiny import write_tiny_dataset

from training import train
from training.runs import report_page as report

WIDTHS = (390, 1200)

PROBE = """
<body style="margin:0"><iframe src="report.html" style="width:WIDTHpx;height:800px;border:0"></iframe>
<script>
addEventListener("load", () => {
    const page = document.querySelector("iframe").contentDocument;
    const box = (picture) => { const r = picture.getBoundingClientRect(); return [r.left, r.width, r.height, r.right] };
    const seen = {
        inside: page.defaultView.innerWidth,
        scroll: page.documentElement.scrollWidth,
        pictures: [...page.querySelectorAll("svg")].map(box),
        drawn: [...page.querySelectorAll("svg")].map((svg) => svg.querySelectorAll("path, circle").length),
        letters: [...page.querySelectorAll("svg text")].map((text) => text.getBoundingClientRect().height),
        cut: [...page.querySelectorAll("svg text")].filter((text) => {
            const [letters, picture] = [text, text.ownerSVGElement].map((element) => element.getBoundingClientRect());
            return letters.left < picture.left - 1 || letters.right > picture.right + 1
                || letters.top < picture.top - 1 || letters.bottom > picture.bottom + 1;
        }).map((text) => text.textContent),
        fetched: page.defaultView.performance.getEntriesByType("resource").map((entry) => entry.name),
    };
    const said = document.createElement("pre");
    said.id = "seen";
    said.textContent = JSON.stringify(seen);
    document.body.append(said);
});
</script>
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a long name and long words."""
    folder = tmp_path_factory.mktemp("browser")
    write_tiny_dataset(folder / "data", num_sequences=2000, num_words=400)
    output = folder / ("run_of_" + "x" * 80)
    settings = ["--data", str(folder / "data"), "--output", str(output), "--device", "cpu", "--dim", "8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.set_num_threads", lambda _: None)
        patch.setattr("sys.argv", ["train.py", *settings, "--epochs", "2", "--log-every", "1"])
        train.main()
        rename(output, ["y" * 4096, "שלום", *("MASSACHUSETTSWIDE"[row % 16 :] + str(row) for row in range(100))])
        patch.setattr("sys.argv", ["report.py", str(output)])
        report.main()
    return output


def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "no chromium on the PATH: install one (Debian: apt-get install chromium), and try again"
    return found


def dumped(page: Path, *options: str) -> tuple[str, list[str]]:
    """The page as the browser has it once it is loaded, and what its console said."""
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent}/profile"]
    command += ["--enable-logging=stderr", "--allow-file-access-from-files", "--virtual-time-budget=5000", *options]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.long
@pytest.mark.parametrize("width", WIDTHS)
def test_a_browser_shows_every_picture_and_nothing_is_cut_or_wider_than_the_screen(
    run: Path, tmp_path: Path, width: int
) -> None:
    shutil.copy(run / "report.html", tmp_path)
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.replace("WIDTH", str(width)))
    content, console = dumped(probe, "--window-size=1400,900")
    assert console == []
    found = re.search(r'<pre id="seen">(.*?)</pre>', content, re.DOTALL)
    assert found, content[:500]
    seen = json.loads(unescape(found[1]))
    assert seen["inside"] == width
    assert seen["scroll"] <= seen["inside"]
    assert len(seen["pictures"]) == 6
    for left, wide, high, right in seen["pictures"]:
        assert left >= 0
        assert right <= width
        assert wide > 250
        assert high > 150
    assert min(seen["drawn"]) > 5
    assert min(seen["letters"]) >= 7
    assert seen["cut"] == []
    assert seen["fetched"] == []


@pytest.mark.long
def test_the_console_of_a_page_with_an_error_is_heard(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<script>nowhere()</script>")
    assert "nowhere is not defined" in dumped(page)[1][0]
