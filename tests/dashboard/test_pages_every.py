"""Every page here: on real results, without data, with nonsense and with hostile text, in both languages."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlencode

import pytest

from dashboard import url
from dashboard.context import Context
from harness.core import UsageError
from harness.registry import load_all
from harness.store import Store
from tests.dashboard.page_text import commands, context_of, every, heading, sentence, shown
from tests.synthetic import Arm, store_run

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
NAMES = ("trend", "pareto", "memory", "matrix", "noise", "case", "roofline", "profile", "help")
PAGES = [importlib.import_module(f"dashboard.pages.{name}") for name in NAMES]
WITH_DATA = [module for module in PAGES if module.PATH != "/help"]
HOSTILE = ("<script>alert(1)</script>", "'; DROP TABLE runs; --", "../../../../etc/passwd", "\u202e%s{x}{{", "x" * 5000)


@pytest.fixture(autouse=True)
def declared() -> None:
    load_all()


def states(module: ModuleType, text: str) -> list[Any]:
    """The states of addresses in which one field has this text, for each field."""
    names = [field.name for field in dataclasses.fields(module.State)]
    return [url.parse(module.State, urlencode({name: text}))[0] for name in names]


@pytest.mark.parametrize("module", PAGES, ids=NAMES)
def test_a_page_says_what_it_is_and_answers_in_its_first_line(module: ModuleType) -> None:
    page = module.layout(context_of(REFERENCE), module.State())
    assert heading(page) == module.TITLE
    assert sentence(page).endswith(".")
    assert "{" not in sentence(page)


@pytest.mark.parametrize("module", PAGES, ids=NAMES)
def test_a_page_is_there_in_chinese(module: ModuleType) -> None:
    page = module.layout(context_of(REFERENCE, "zh"), module.State())
    assert any("\u4e00" <= character <= "\u9fff" for character in heading(page))
    assert any("\u4e00" <= character <= "\u9fff" for character in sentence(page))


@pytest.mark.parametrize("module", WITH_DATA, ids=[module.PATH for module in WITH_DATA])
def test_an_empty_store_names_the_command_that_fills_it(module: ModuleType, tmp_path: Path) -> None:
    Store.open(tmp_path, create=True)
    page = module.layout(context_of(tmp_path), module.State())
    assert sentence(page)
    assert commands(page)[0].startswith("python -m harness ")
    assert commands(page)[0].endswith(f"--store {tmp_path}")


@pytest.mark.parametrize("text", HOSTILE, ids=("markup", "sql", "path", "format", "long"))
@pytest.mark.parametrize("module", PAGES, ids=NAMES)
def test_nonsense_in_the_address_is_a_page_or_a_sentence(module: ModuleType, text: str) -> None:
    context = context_of(REFERENCE)
    for state in states(module, text):
        page = answered(module, context, state)
        assert page
        assert not {"Iframe", "Script", "DangerouslySetInnerHTML"} & {type(part).__name__ for part in every(page)}


def answered(module: ModuleType, context: Context, state: Any) -> Any:
    """The page, or the words with which it refuses the state."""
    try:
        page = module.layout(context, state)
    except UsageError as error:
        return str(error)
    return page if sentence(page) else None


@pytest.mark.parametrize("module", WITH_DATA, ids=[module.PATH for module in WITH_DATA])
def test_hostile_rows_are_shown_as_the_text_that_they_are(module: ModuleType, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    outside = tmp_path / "calibration"
    outside.mkdir()
    (outside / "secret.parquet").write_bytes(b"not ours")
    markup = "<img src=x onerror=alert(1)>"
    arms = [
        Arm(timed={"tps": [1.0, 2.0], "step_time": [1.0, 2.0]}, solo={"peak_bytes": 3e8, "kv_bytes": 1e6},
            facts={"work": [1, 1e9, 1e9], markup: markup, "outputs": markup}),
        Arm(variant="norm=fused", status="failed", reason=markup),
    ]  # fmt: skip
    store_run(
        store, *arms, suite=markup, machine_id="m<1>", fingerprint="../../calibration/secret", git_sha=markup,
        command=f"run {markup}", cpu_model=markup, device="cpu", ram_bytes=10**10,
    )  # fmt: skip
    page = module.layout(context_of(store), module.State())
    assert sentence(page)
    assert "not ours" not in shown(page)


@pytest.mark.parametrize("module", WITH_DATA, ids=[module.PATH for module in WITH_DATA])
def test_a_run_that_measured_nothing_is_no_fault(module: ModuleType, tmp_path: Path) -> None:
    store = Store.open(tmp_path, create=True)
    store_run(store, Arm(status="skipped", reason="norm=triton needs cuda"), machine_id="m1")
    assert sentence(module.layout(context_of(store), module.State()))


OF_A_MACHINE = [m for m in WITH_DATA if "machine" in {field.name for field in dataclasses.fields(m.State)}]


@pytest.mark.parametrize("module", OF_A_MACHINE, ids=[module.PATH for module in OF_A_MACHINE])
def test_an_unknown_machine_is_refused_by_name(module: ModuleType) -> None:
    with pytest.raises(UsageError, match="no machine 'nowhere' in this store; known: 5cef0b44a416"):
        module.layout(context_of(REFERENCE), module.State(machine="nowhere"))
