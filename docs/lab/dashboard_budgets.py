"""How quick the dashboard is: what a person waits for, measured in Chromium over a made-up store of a given size.

    python docs/lab/dashboard_budgets.py --samples 1000000
    python docs/lab/dashboard_budgets.py --samples 10000000 --keep big      # the store stays, for the next time

The server and the browser share this machine, and no name is resolved. Times are from the start of the navigation
until rows, or a drawn figure, are on the screen, taken by the page itself frame by frame; medians of three. "Empty
cache" is a fresh browser profile on a server that has answered before, "first" the very first page of a fresh server.
It refuses (exit code 2) to run without Chromium.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from playwright.sync_api import Browser, Page, Request, sync_playwright

from harness.sample_store import write_sample_store
from harness.store import Store

FLAGS = (
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
TIMES = 3
UPDATE = "_dash-update-component"
# Noted by the page itself: when its first sentence, its rows, its first figure can be seen.
WATCH = """() => {
  window.__seen = {};
  const look = () => {
    const seen = window.__seen;
    const note = (name, there) => { if (there && !(name in seen)) seen[name] = performance.now(); };
    const sentence = document.getElementById("page-sentence");
    note("sentence", sentence && sentence.textContent);
    note("rows", [...document.querySelectorAll('#runs-grid .ag-row [col-id="suite"]')].some((one) => one.textContent));
    note("figure", [...document.querySelectorAll(".js-plotly-plot")].some(
      (plot) => plot.data && plot.data.length && plot.querySelector(".trace, .slice, .scatterlayer path")));
    requestAnimationFrame(look);
  };
  look();
}"""


@dataclass(frozen=True)
class Row:
    """One line of the table: the values measured, and the most that they may be (None: only told)."""

    what: str
    values: Sequence[float]
    unit: str
    most: float | None

    def text(self) -> str:
        """The line, in Markdown."""
        middle = statistics.median(self.values)
        told = f"{min(self.values):.4g} to {max(self.values):.4g}" if len(self.values) > 1 else "–"
        limit = "–" if self.most is None else f"{self.most:g} {self.unit}"
        kept = "–" if self.most is None else "kept" if middle <= self.most else "**not kept**"
        return f"| {self.what} | {middle:.4g} {self.unit} | {told} | {limit} | {kept} |"


@dataclass
class Answers:
    """The callbacks that a page asked for: seconds until the answer was there, bytes of it."""

    seconds: list[float] = field(default_factory=list)
    bytes: list[tuple[int, str]] = field(default_factory=list)
    grid: list[float] = field(default_factory=list)

    def note(self, request: Request) -> None:
        """Called for every request that was answered in full."""
        response = request.response()
        if UPDATE not in request.url or response is None:
            return
        waited = (request.timing["responseEnd"] - request.timing["requestStart"]) / 1e3
        wanted = json.loads(request.post_data or "{}").get("output", "")
        (self.grid if wanted.startswith("runs-grid") else self.seconds).append(waited)
        self.bytes.append((int(response.headers.get("content-length", 0)), urlsplit(request.frame.url).path))


@contextmanager
def served(store: Path) -> Iterator[tuple[str, int, float]]:
    """The dashboard as a process: its address, its process id, the seconds until it answered."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "dashboard", "--store", str(store), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = re.search(r"http://[0-9.:]+", process.stdout.readline())
            if found is None:
                raise SystemExit("the dashboard did not start")
            with urllib.request.urlopen(found[0] + "/") as answer:
                answer.read()
            yield found[0], process.pid, time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGINT)


def seen(page: Page, address: str | None, name: str) -> float:
    """Seconds until the page shows what is wanted; `address` None loads the same page again."""
    if address is None:
        page.reload(wait_until="commit")
    else:
        page.goto(address, wait_until="commit")
    page.wait_for_function(f"() => window.__seen && '{name}' in window.__seen", timeout=120_000)
    milliseconds: float = page.evaluate(f"() => window.__seen['{name}']")
    page.wait_for_load_state("networkidle")
    return milliseconds / 1e3


def fresh(browser: Browser, answers: Answers) -> Page:
    """A tab with an empty cache."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(f"({WATCH})()")
    page = context.new_page()
    page.on("requestfinished", answers.note)
    return page


def page_rows(
    browser: Browser,
    base: str,
    name: str,
    path: str,
    wanted: str,
    empty_limit: float,
    again_limit: float,
    all_answers: Answers,
) -> list[Row]:
    """One page: with an empty cache, and loaded again."""
    empty, again = [], []
    for _ in range(TIMES):
        page = fresh(browser, all_answers)
        empty.append(seen(page, base + path, wanted))
        again.append(seen(page, None, wanted))
        page.context.close()
    return [
        Row(f"{name}, empty cache", empty, "s", empty_limit),
        Row(f"{name}, loaded again", again, "s", again_limit),
    ]


def grid_blocks(browser: Browser, base: str, answers: Answers) -> list[float]:
    """Seconds for each stretch of rows that scrolling through the list of runs asks for."""
    own = Answers()
    page = fresh(browser, own)
    seen(page, base + "/runs", "rows")
    own.grid.clear()
    body = page.locator("#runs-grid .ag-body-viewport")
    for step in range(1, 9):
        body.evaluate(f"(grid) => {{ grid.scrollTop = {step * 3300}; }}")
        page.wait_for_timeout(600)
    page.context.close()
    answers.bytes += own.bytes
    return own.grid


def mounted(browser: Browser, base: str, path: str) -> int:
    """Figures that are drawn before anybody scrolls."""
    page = fresh(browser, Answers())
    seen(page, base + path, "figure")
    page.wait_for_timeout(1500)
    count: int = page.evaluate(
        "() => [...document.querySelectorAll('.js-plotly-plot')].filter((plot) => plot.data && plot.data.length).length"
    )
    page.context.close()
    return count


def measure(browser: Browser, store: Path, big: bool) -> list[Row]:
    """All lines of the table."""
    factor = 1.5 if big else 1.0
    runs = Store.open(store).runs()
    candidate = [run for run in runs if run.side == "candidate" and run.status == "finished"][-1]
    baseline = next(run for run in runs if run.session == candidate.session and run.side == "baseline")
    ready = []
    first = []
    for _ in range(TIMES):
        with served(store) as (base, _, seconds):
            ready.append(seconds)
            page = fresh(browser, Answers())
            first.append(seen(page, base + "/", "sentence"))
            page.context.close()
    rows = [Row("server ready", ready, "s", 5.0), Row("Overview, first of all", first, "s", None)]
    answers = Answers()
    with served(store) as (base, pid, _):
        fresh_page = fresh(browser, Answers())
        seen(fresh_page, base + "/", "sentence")  # what a fresh server keeps
        fresh_page.context.close()
        rows += page_rows(browser, base, "Overview", "/", "sentence", 2.5 * factor, 1.5 * factor, answers)
        rows += page_rows(browser, base, "Runs", "/runs", "rows", 2.5 * factor, 1.5 * factor, answers)
        for name, path in (
            ("Compare", f"/compare?a={baseline.run_id}&b={candidate.run_id}&rows=all"),
            ("Trend", "/trend?filter=suite=gate"),
            ("Pareto", "/pareto"),
            ("Memory", "/memory"),
        ):
            rows += page_rows(browser, base, name, path, "figure", 6.0 * factor, 2.5 * factor, answers)
        blocks = grid_blocks(browser, base, answers)
        rows.append(Row("figures drawn at once (Trend)", [mounted(browser, base, "/trend?filter=suite=gate")], "", 4))
        rows.append(
            Row("memory of the server", [psutil.Process(pid).memory_info().rss / 1e6], "MB", 600 if big else 500)
        )
    rows.append(
        Row(
            f"callback, 95th of 100 ({len(answers.seconds)} of them)",
            [ninety_five(answers.seconds)],
            "s",
            None if big else 0.3,
        )
    )
    rows.append(Row(f"stretch of 100 runs ({len(blocks)} of them)", blocks or [float("nan")], "s", 0.15))
    largest, place = max(answers.bytes)
    rows.append(Row(f"largest answer to a callback ({place})", [largest / 1e3], "kB", 300))
    return rows


def ninety_five(values: Sequence[float]) -> float:
    """The value that 95 in 100 stay under."""
    return statistics.quantiles(values, n=20)[-1]


def main() -> int:
    """Print the table; the exit code says whether every budget was kept."""
    found = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    found.add_argument(
        "--samples", type=int, default=1_000_000, help="size of the made-up store (default: %(default)s)"
    )
    found.add_argument("--keep", metavar="DIR", type=Path, help="where the store is, or is made and stays")
    options = found.parse_args()
    program = shutil.which("chromium")
    if program is None:
        print("no chromium on this machine (Debian: apt-get install chromium)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        store = options.keep or Path(folder) / "sample"
        if not store.exists():
            write_sample_store(store, samples=options.samples)
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=program, args=list(FLAGS), chromium_sandbox=False)
            rows = measure(browser, store, big=options.samples > 1_000_000)
            version = browser.version
            browser.close()
        size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) / 1e6
        num_runs = len(Store.open(store).runs())
    print(f"{options.samples:,} samples in {num_runs:,} runs ({size:.0f} MB); Chromium {version}, Python "
          f"{platform.python_version()}, {psutil.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f}\n")  # fmt: skip
    print("| what | median | from, to | budget | |\n|---|---|---|---|---|")
    print("\n".join(row.text() for row in rows))
    return int(any(row.most is not None and statistics.median(row.values) > row.most for row in rows))


if __name__ == "__main__":
    sys.exit(main())
