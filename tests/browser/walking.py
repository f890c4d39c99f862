"""What the walks through the dashboard share: a server as a real process, and a browser tab that notes what goes wrong.

    with serving(store) as address, ...:
        visitor.go("/runs?filter=suite=gate")
        visitor.sentence()                      # what a person reads first

A visitor is a tab with a list of faults: messages on the console, exceptions, answers of 400 and more, requests to any
other host. The fixtures of conftest.py demand at the end of each test that there are none.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Locator, Page, Request, Response

# A closed network, from inside the browser: no name is resolved, and nothing is fetched of its own accord.
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
WIDE, NARROW = (1280, 900), (390, 844)

# The page is there, nothing is being fetched for it, what is near the window is drawn (and not about to be fitted to
# its place, which takes the label off a point and loses a click) and the grid has its rows.
_SETTLED = """() => {
  const near = (part) => {
    const place = part.getBoundingClientRect();
    return place.top < window.innerHeight + 250 && place.bottom > -250;
  };
  if (!document.getElementById("page-title") || !document.getElementById("nav").textContent) return false;
  if (document.querySelector('[data-dash-is-loading="true"]') || !window.bench.current()) return false;
  const drawn = [...document.querySelectorAll("#shell .figure, [role=dialog] .figure")].filter(near).every((figure) => {
    const plot = figure.querySelector(".js-plotly-plot");
    return plot && plot.data && plot.data.length && plot.querySelector(".main-svg") && !plot._resolveResize;
  });
  const frame = document.querySelector(".grid-frame");
  return drawn && (!frame || [...frame.querySelectorAll('.ag-row [col-id="suite"]')].some((cell) => cell.textContent));
}"""

_FOLLOW = """(place) => {
  window.history.pushState({}, "", place);
  window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
}"""

_AXE = """async (rows) => {
  const where = rows === null ? document : { exclude: [[`tbody tr:nth-child(n + ${rows + 1})`]] };
  const quick = { resultTypes: ["violations"], selectors: false, preload: false, iframes: false };
  const found = await window.axe.run(where, quick);
  return found.violations.map((finding) => [
    finding.impact, finding.id, finding.nodes.map((node) => node.html.slice(0, 200) + " " + node.failureSummary),
  ]);
}"""

_DRAWN = """() => [...document.querySelectorAll(".figure .graph .js-plotly-plot")]
  .filter((plot) => plot.data && plot.data.length && plot.querySelector(".main-svg")).length"""


@contextmanager
def serving(store: Path, *flags: str) -> Iterator[str]:
    """`python -m dashboard` on a free port, as a process of its own; its address, without a slash at the end."""
    command = [sys.executable, "-m", "dashboard", "--store", str(store), "--port", "0", *flags]
    with (
        TemporaryFile("w+") as told,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            found = re.search(r"http://[0-9.]+:\d+", process.stdout.readline())
            if found:
                yield found[0]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        told.seek(0)
        errors = told.read()
    assert found and process.returncode == 0 and "Traceback" not in errors, f"exit code {process.returncode}\n{errors}"


@dataclass
class Visitor:
    """One tab on one dashboard."""

    page: Page
    address: str
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.faults.append(f"exception: {error}"))
        self.page.on("request", self._asked)
        self.page.on("response", self._answered)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.faults.append(f"console: {message.text}")

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self.address + "/", "data:", "blob:")):
            self.faults.append(f"request to elsewhere: {request.url}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.faults.append(f"answer {response.status}: {response.url}")

    def go(self, place: str) -> None:
        """Go to an address as a link of the dashboard does, and wait until it is drawn; a fresh tab loads it."""
        here = self.page.url
        if not here.startswith(self.address + "/") or _uncoloured(here) == _uncoloured(self.address + place):
            self.load(place)
            return
        with self.page.expect_response(lambda answer: "page.children" in (answer.request.post_data or "")):
            self.page.evaluate(_FOLLOW, place)
        self.settle()

    def load(self, place: str) -> None:
        """Load an address of the dashboard as a bookmark does, and wait until it is drawn."""
        self.page.goto(self.address + place)
        self.settle()

    def settle(self) -> None:
        """Wait until the page is drawn, with the figures near the window."""
        self.page.wait_for_function(_SETTLED)

    def mount_all(self) -> int:
        """Scroll through the page, so that every figure is drawn; how many there are."""
        for figure in self.page.locator(".figure").all():
            figure.scroll_into_view_if_needed()
            self.settle()
        self.page.evaluate("window.scrollTo(0, 0)")
        return self.num_drawn()

    def num_drawn(self) -> int:
        """Figures that show something."""
        found: int = self.page.evaluate(_DRAWN)
        return found

    def title(self) -> str:
        """The page's heading."""
        return self.page.locator("#page-title").inner_text()

    def sentence(self) -> str:
        """What stands first, in words."""
        return self.page.locator("#page-sentence").inner_text()

    def text(self) -> str:
        """Everything that is visible of the page."""
        return self.page.locator("body").inner_text()

    def rows(self, table: str) -> list[list[str]]:
        """The cells of a table's body, by the id of its frame."""
        found: list[list[str]] = self.page.locator(f"#{table} tbody tr").evaluate_all(
            "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.innerText.trim()))"
        )
        return found

    def grid(self, column: str) -> list[str]:
        """The texts of a column of the grid of runs, in the order of the rows in sight."""
        found: list[str] = self.page.locator("#runs-grid .ag-row").evaluate_all(
            f"""(rows) => {{
              const texts = new Map();
              for (const row of rows) {{
                const cell = row.querySelector('[col-id="{column}"]');
                if (cell) texts.set(Number(row.getAttribute("row-index")), cell.textContent.trim());
              }}
              return [...texts.keys()].sort((one, other) => one - other).map((number) => texts.get(number));
            }}"""
        )
        return found

    def choose(self, label: str, option: str) -> None:
        """Pick an entry of a control by what it says; the entry may say more behind that."""
        self.page.locator("#page").get_by_label(label, exact=True).first.click()
        self.page.get_by_role("option").filter(has_text=re.compile("^" + re.escape(option))).first.click()

    def switch_to(self, word: str) -> None:
        """Press a part of a segmented control (language, colours) that says this word."""
        self.page.locator("#top, #page").locator("label").filter(has_text=re.compile(f"^{re.escape(word)}$")).click()

    def download(self, press: Locator, folder: Path) -> Path:
        """What pressing something saves: the file, under its own name, in a folder."""
        with self.page.expect_download() as waiting:
            press.click()
        path = folder / waiting.value.suggested_filename
        waiting.value.save_as(path)
        return path

    def too_wide(self) -> list[str]:
        """Parts that stick out of the window sideways, where the whole page would have to be scrolled."""
        found: list[str] = self.page.evaluate(
            """() => {
              const width = document.documentElement.clientWidth;
              if (document.documentElement.scrollWidth <= width + 1) return [];
              return [...document.querySelectorAll("#shell *")]
                .filter((part) => part.getBoundingClientRect().right > width + 1 &&
                  !part.closest(".table-frame, .ag-root-wrapper, svg"))
                .slice(0, 5).map((part) => part.outerHTML.slice(0, 160));
            }"""
        )
        return found


def _uncoloured(address: str) -> str:
    """An address without its colours, of which the server does not hear."""
    return re.sub(r"[?&]scheme=\w+", "", unquote(address))


def accessibility_faults(page: Page, *, first_rows: int | None = None) -> list[str]:
    """What axe-core finds serious or critical, each as rule and place; of tables only so many rows (None: all)."""
    if not page.evaluate("() => Boolean(window.axe)"):
        page.evaluate((resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate(_AXE, first_rows)
    return [
        f"{rule}: {place}" for impact, rule, places in found if impact in ("serious", "critical") for place in places
    ]
