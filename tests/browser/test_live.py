"""A run that goes on while it is looked at: its progress, its rows, and its end come without a reload."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import expect

from harness.schema import RunRow
from harness.store import RunWriter, Store
from tests.browser.walking import Visitor, serving
from tests.synthetic import Arm, store_run

BLOCKS = 4
LOOKS_MS = 6_000  # while a run goes on, a page looks at the store every five seconds
PACES = {"reference": 10.0, "norm=fused": 12.0}  # tokens/s of each arm


def _arms(*blocks: int) -> list[Arm]:
    return [
        Arm(variant=variant, timed={"tps": {block: pace + block / 10 for block in blocks}})
        for variant, pace in PACES.items()
    ]


def _write(writer: RunWriter, *blocks: int) -> None:
    """The cases as they stand after these blocks, and the samples of them."""
    arms = _arms(*blocks)
    rows = [replace(arm.row(number), num_blocks=max(blocks) + 1) for number, arm in enumerate(arms)]
    writer.write(cases=rows, samples=[sample for arm in arms for sample in arm.samples()])


def test_a_run_is_followed_to_its_end(tmp_path: Path, open_tab: Callable[[str], Visitor]) -> None:
    store = Store.open(tmp_path / "store", create=True)
    store_run(store, *_arms(*range(BLOCKS)), suite="lab", machine_id="m1")
    writer = store.begin(RunRow(suite="lab", machine_id="m1", plan=json.dumps({"blocks": BLOCKS})))
    _write(writer, 0)
    with serving(store.path) as address:
        visitor = open_tab(address)
        visitor.page.clock.install()  # so that the seconds between two looks at the store need not be waited for
        visitor.go("/runs")
        running = visitor.page.locator("#running")
        expect(running).to_contain_text("lab is running since")
        expect(running).to_contain_text("25% done")
        assert visitor.grid("status") == ["running", "finished"]
        _write(writer, 1, 2)
        visitor.page.clock.fast_forward(LOOKS_MS)
        expect(running).to_contain_text("75% done")
        _write(writer, 3)
        writer.finish("finished")
        visitor.page.clock.fast_forward(LOOKS_MS)
        expect(running).to_be_empty()
        expect(visitor.page.locator('#runs-grid .ag-row[row-index="0"] [col-id="status"]')).to_have_text("finished")
        visitor.page.close()
