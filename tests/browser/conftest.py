"""A browser, a server over a made-up store, and a tab for each test: see walking.py.

`pytest tests/browser --screenshots DIR` keeps the pictures of the full walk in a folder (CI keeps it as an artifact);
without it they go where pytest keeps its temporary files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.sample_store import write_sample_store
from harness.store import Store
from tests.browser.walking import FLAGS, WIDE, Visitor, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

NEEDED = ("playwright", "axe_playwright_python")
TIMEOUT_MS = 15_000  # generous: a machine that is busy is slow, not wrong


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the pictures go."""
    parser.addoption(
        "--screenshots", metavar="DIR", default=None, help="keep the pictures of the dashboard's walk here"
    )


def pytest_pycollect_makemodule(module_path: Path) -> None:
    """Without the packages there is nothing to collect here, and the report says which are missing."""
    # A skip, not a failure: whoever installed less than the dev extra can still run all other tests. CI installs them.
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        pytest.skip(f"{module_path.parent.name}: needs {', '.join(missing)} (pip install minimind-bench[dev])")


@dataclass(frozen=True)
class Known:
    """Names in the made-up store that addresses are made of."""

    path: Path
    baseline: str
    candidate: str
    swept: str
    machine: str
    case: str
    other_case: str
    num_runs: int


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """A made-up store with two profiles of one run."""
    path = tmp_path_factory.mktemp("browser") / "sample"
    write_sample_store(path, samples=60_000)
    store = Store.open(path)
    runs = store.runs()
    candidate = [run for run in runs if run.side == "candidate" and run.status == "finished"][-1]
    baseline = next(run for run in runs if run.session == candidate.session and run.side == "baseline")
    rows = [row for row in store.cases(candidate.run_id).to_pylist() if row["status"] == "ok"]
    cases = [row["case_id"] for row in rows if "decode" in row["workload"]][:2]
    for number, case in enumerate(cases):
        stacks = f"main;decode;attention {60 + 20 * number}\nmain;decode;norm 20\nmain;sample 20\n"
        _profiled(path, candidate.run_id, case).with_suffix(".collapsed").write_text(stacks)
    swept = [run for run in runs if run.suite == "kv_cache" and run.status == "finished"][-1]
    for row in store.cases(swept.run_id).to_pylist():
        _profiled(path, swept.run_id, row["case_id"])
    return Known(
        path=path,
        baseline=baseline.run_id,
        candidate=candidate.run_id,
        swept=swept.run_id,
        machine=candidate.machine_id,
        case=cases[0],
        other_case=cases[1],
        num_runs=len(runs),
    )


def _profiled(store: Path, run_id: str, case_id: str) -> Path:
    """Write a trace of calls that allocate, and where beside it a profile of that case lies."""
    folder = store / "artifacts" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    common = {"pid": 1, "tid": 1}
    steps: list[tuple[int, int, int]] = []  # (bytes, address, held afterwards): five blocks grow, then all are freed
    for _ in range(6):
        sizes = [4096 * (1 + n) for n in range(5)]
        steps += [(size, n, sum(sizes[: n + 1])) for n, size in enumerate(sizes)]
        steps += [(-size, n, sum(sizes[n + 1 :])) for n, size in enumerate(sizes)]
    calls = [{"name": f"mm_{n % 3}", "ph": "X", "ts": 10 * n, "dur": 8, **common} for n in range(60)]
    counts = {"Total Reserved": 0, "Device Type": 0, "Device Id": -1}
    memory = [
        {"name": "[memory]", "ph": "i", "ts": 10 * n + 4, **common,
         "args": {**counts, "Bytes": size, "Addr": address, "Total Allocated": total}}
        for n, (size, address, total) in enumerate(steps)
    ]  # fmt: skip
    (folder / f"{case_id}.trace.json").write_text(json.dumps({"traceEvents": calls + memory}))
    return folder / case_id


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The machine's own Chromium; no browser is downloaded."""
    program = shutil.which("chromium")
    if program is None:  # a system package that pip cannot bring: .ci/run installs it, and says so where it cannot
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as started:
        found = started.chromium.launch(executable_path=program, args=list(FLAGS), chromium_sandbox=False)
        yield found
        found.close()


@pytest.fixture(scope="session")
def profile(browser: Browser) -> Iterator[BrowserContext]:
    """One profile for all tests, so that scripts are fetched once."""
    found = browser.new_context(viewport={"width": WIDE[0], "height": WIDE[1]}, accept_downloads=True)
    found.set_default_timeout(TIMEOUT_MS)
    found.grant_permissions(["clipboard-read", "clipboard-write"])
    yield found
    found.close()


@pytest.fixture(scope="session")
def address(known: Known) -> Iterator[str]:
    """The dashboard on the made-up store."""
    with serving(known.path) as found:
        yield found


@pytest.fixture(scope="session")
def tab(profile: BrowserContext, address: str) -> Iterator[Visitor]:
    """The tab that most tests use one after the other: scripts stay compiled in it."""
    page = profile.new_page()
    yield Visitor(page, address)
    page.close()


@pytest.fixture
def visitor(tab: Visitor) -> Iterator[Visitor]:
    """A tab on the dashboard of the made-up store. When a test ends, nothing may have gone wrong in it."""
    tab.page.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})
    tab.faults.clear()
    yield tab
    assert not tab.faults, "\n".join(tab.faults)


@pytest.fixture
def open_tab(profile: BrowserContext) -> Iterator[Callable[[str], Visitor]]:
    """Open a tab on another dashboard; nothing may go wrong in it either."""
    with ExitStack() as tabs:
        opened: list[Visitor] = []

        def start(address: str) -> Visitor:
            page = profile.new_page()
            tabs.callback(page.close)
            opened.append(Visitor(page, address))
            return opened[-1]

        yield start
        faults = [fault for visitor in opened for fault in visitor.faults]
    assert not faults, "\n".join(faults)


@pytest.fixture(scope="session")
def pictures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for screenshots."""
    named = request.config.getoption("--screenshots", default=None)
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
