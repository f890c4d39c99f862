"""The dashboard's lists: runs that are sorted, filtered and paged, the matrix, what pickers offer."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest

from dashboard.filters import Filter, parse_filter
from dashboard.query import Query, SummaryLine
from dashboard.sql import SORTS
from harness.core import UsageError
from harness.store import Store
from tests.dashboard.stores import arm
from tests.synthetic import store_run


def test_the_list_of_runs_counts_cases_by_status(asked: Query, sample: Path) -> None:
    store = Store.open(sample)
    page = asked.runs(limit=500)
    assert [line.run_id for line in page.rows] == [run.run_id for run in store.runs()[::-1]]
    assert page.total == len(page.rows)
    for line in page.rows:
        status = Counter(row["status"] for row in store.cases(line.run_id).to_pylist())
        assert (line.num_ok, line.num_skipped) == (status["ok"], status["skipped"])
        assert line.num_failed == status.total() - status["ok"] - status["skipped"]
        run = store.find_run(line.run_id)
        assert (line.command, line.suite, line.status, line.session, line.side) == (
            run.command, run.suite, run.status, run.session, run.side,
        )  # fmt: skip
        assert "synthetic" in line.subject


@pytest.mark.parametrize("sort", sorted(SORTS))
def test_every_column_sorts_both_ways_and_pages_fit_together(asked: Query, sort: str) -> None:
    baseline = asked.runs(parse_filter("suite=gate"), limit=1).rows[0].run_id
    for descending in (False, True):
        whole = asked.runs(sort=sort, descending=descending, limit=500, baseline=baseline)
        pages = [
            asked.runs(sort=sort, descending=descending, offset=start, limit=7, baseline=baseline).rows
            for start in range(0, whole.total, 7)
        ]
        assert [line for page in pages for line in page] == list(whole.rows)
        values = [getattr(line, sort) for line in whole.rows]
        present = [value for value in values if value is not None]
        assert present == sorted(present, reverse=descending) and values[len(present) :] == [None] * (
            len(values) - len(present)
        )


def test_a_page_beyond_the_end_is_empty_and_still_knows_the_total(asked: Query) -> None:
    page = asked.runs(offset=10_000)
    assert page.rows == () and page.total > 40
    assert asked.runs(offset=-5, limit=-1).rows == ()


def test_the_geometric_mean_is_over_the_headline_of_the_cases_in_common(asked: Query) -> None:
    gates = asked.runs(parse_filter("suite=gate machine=synthetic-laptop run_status=finished"), limit=500).rows
    newest, oldest = gates[0].run_id, gates[-1].run_id
    (found,) = (line for line in asked.runs(baseline=oldest, limit=500).rows if line.run_id == newest)
    headline = {"decode": ("tps", 1), "prefill": ("ttft", -1)}
    medians: dict[str, dict[str, SummaryLine]] = {newest: {}, oldest: {}}
    for line in asked.summary([newest, oldest], ["tps", "ttft"]):
        if line.status == "ok" and headline.get(line.workload.partition("(")[0], ("",))[0] == line.metric:
            medians[line.run_id][line.case_id] = line
    logs = []
    for case_id in medians[newest].keys() & medians[oldest].keys():
        a, b = medians[oldest][case_id], medians[newest][case_id]
        assert a.median and b.median
        logs.append(headline[a.workload.partition("(")[0]][1] * math.log(b.median / a.median))
    assert found.geomean == pytest.approx(math.exp(sum(logs) / len(logs)), rel=1e-12)
    assert found.geomean_low is not None and found.geomean_high is not None
    assert found.geomean_low < found.geomean < found.geomean_high
    assert found.geomean_high / found.geomean == pytest.approx(found.geomean / found.geomean_low)


def test_a_run_is_as_good_as_itself_and_other_machines_are_not_compared(asked: Query) -> None:
    first = asked.runs(parse_filter("suite=gate machine=synthetic-laptop"), limit=1).rows[0]
    lines = asked.runs(baseline=first.run_id, limit=500).rows
    assert next(line.geomean for line in lines if line.run_id == first.run_id) == 1.0
    assert {line.geomean for line in lines if line.machine_id != first.machine_id} == {None}
    assert {line.geomean for line in lines if line.suite == "quantization"} == {None}
    assert {line.geomean for line in asked.runs(limit=500).rows} == {None}
    assert {line.geomean for line in asked.runs(baseline="no such run", limit=500).rows} == {None}


def test_one_block_gives_a_mean_without_an_interval(store: Store) -> None:
    first = store_run(store, arm(timed={"tps": {0: 100.0}}))
    store_run(store, arm(timed={"tps": {0: 150.0}}))
    newest = Query(store.path).runs(baseline=first.run_id).rows[0]
    assert newest.geomean == pytest.approx(1.5) and newest.geomean_low is None and newest.geomean_high is None


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("suite=gate", lambda line: line.suite == "gate"),
        ("suite!=gate", lambda line: line.suite != "gate"),
        ("suite=gate,norm", lambda line: line.suite in ("gate", "norm")),
        ("machine=synthetic-l", lambda line: line.machine_id == "synthetic-laptop"),
        ("model=mini*", lambda line: line.model.startswith("mini")),
        ("workload=decode", lambda line: line.workload.startswith("decode(")),
        ("norm=fused", lambda line: line.axes["norm"] == "fused"),
        ("norm!=native", lambda line: line.axes["norm"] != "native"),
        ("kv=cat norm=native", lambda line: (line.axes["kv"], line.axes["norm"]) == ("cat", "native")),
        (
            "context>=500",
            lambda line: int(line.workload.partition("context=")[2].partition(",")[0].rstrip(")") or 0) >= 500,
        ),
        ("variant=reference", lambda line: line.variant == "reference"),
        ("variant='kv=prealloc sdpa=fused'", lambda line: line.variant == "kv=prealloc sdpa=fused"),
        ("status=skipped", lambda line: line.status == "skipped"),
        ("metric=ppl,kl", lambda line: line.metric in ("ppl", "kl")),
        ("run_status=running", lambda line: line.run_id == "RUNNING"),
    ],
)
def test_a_filter_keeps_what_it_says(asked: Query, text: str, keep: Any) -> None:
    running = asked.stamp().running[0].run_id
    every = asked.summary(Filter())
    expected = [line for line in every if keep(replace(line, run_id="RUNNING") if line.run_id == running else line)]
    assert expected and list(asked.summary(parse_filter(text))) == expected
    runs = asked.runs(parse_filter(text), limit=500)
    assert {line.run_id for line in runs.rows} == {line.run_id for line in expected} and runs.total == len(runs.rows)


def test_a_whole_machine_id_means_that_machine_alone(store: Store) -> None:
    for machine_id in ("ab12", "ab12cd", "ab34"):
        store_run(store, arm(), machine_id=machine_id)

    def found(text: str) -> set[str]:
        return {line.machine_id for line in Query(store.path).runs(parse_filter(text)).rows}

    assert found("machine=ab") == {"ab12", "ab12cd", "ab34"} and found("machine=ab12") == {"ab12"}
    assert found("machine!=ab12") == {"ab12cd", "ab34"} and found("machine=ab12c,ab3") == {"ab12cd", "ab34"}
    assert found("machine=ab12*") == {"ab12", "ab12cd"}


def test_filters_by_time_and_by_changed_files(asked: Query) -> None:
    middle = asked.runs(limit=500).rows[20].started_at
    assert middle is not None
    later = asked.runs(parse_filter(f"started>={middle:%Y-%m-%dT%H:%M:%S}"), limit=500)
    assert later.total == 21 and all(line.started_at >= middle for line in later.rows if line.started_at)
    assert {line.git_dirty for line in asked.runs(parse_filter("dirty=yes"), limit=500).rows} == {True}


def test_the_matrix_counts_every_case_once_per_machine(asked: Query) -> None:
    cells = {(cell.row, cell.column): cell for cell in asked.matrix("quant", "kv")}
    newest: dict[tuple[str, str], SummaryLine] = {}
    for line in asked.summary(Filter()):
        newest[line.case_id, line.machine_id] = line
    expected = Counter((line.axes["quant"], line.axes["kv"]) for line in newest.values())
    got = {key: c.num_ok + c.num_skipped + c.num_failed + c.num_wrong for key, c in cells.items()}
    assert got == dict(expected)
    assert all(cell.reasons for cell in cells.values() if cell.num_skipped or cell.num_failed or cell.num_wrong)


def test_the_matrix_takes_parameters_in_order_of_size_and_a_filter(asked: Query) -> None:
    cells = asked.matrix("context", "model", parse_filter("suite=kv_cache machine=synthetic-laptop"))
    assert [cell.row for cell in cells] == ["128", "512", "1000"]
    with pytest.raises(UsageError, match=r"unknown axis of a matrix 'nrom'\. Did you mean 'norm'"):
        asked.matrix("nrom", "kv")


def test_a_wrong_case_is_no_failed_one(store: Store) -> None:
    store_run(store, arm(), arm("norm=fused", timed={}, status="wrong", reason="no fused norm ran"))
    store_run(store, arm("kv=prealloc", timed={}, status="oom", reason="26 GB"))
    cells = {(cell.row, cell.column): cell for cell in Query(store.path).matrix("norm", "kv")}
    assert astuple(cells["fused", "cat"])[2:] == (0, 0, 0, 1, ("no fused norm ran",))
    assert astuple(cells["native", "prealloc"])[2:] == (0, 0, 1, 0, ("26 GB",))


def test_pickers_offer_what_the_store_has(asked: Query) -> None:
    assert [m.machine_id for m in asked.machines()] == ["synthetic-laptop", "synthetic-server", "synthetic-workstation"]
    assert {m.device for m in asked.machines()} == {"cpu", "cuda"}
    assert {"gate", "norm"} <= set(asked.suites()) and {"tiny", "minimind2-small"} <= set(asked.models())
    assert {"tps", "ppl", "peak_bytes"} <= set(asked.metrics()) and "" not in asked.metrics()
    assert asked.axes()["kv"][0] == "cat" and "prealloc" in asked.axes()["kv"]
