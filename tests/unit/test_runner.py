"""The runner's protocol, with scripted workers in place of processes: orders, samples, disturbances, deaths."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import registry, runner
from harness.case_state import CaseState
from harness.core import SOLO_BLOCK, Case, CaseFailed, Workload
from harness.runner import RETRIES_PER_BLOCK
from harness.schedule import opening_order, order_of, williams
from tests.scripted_worker import BUSY, CALM, DECODE, PREFILL, Lab, Stub, asked_for, plain, play

# --- orders ---


@pytest.mark.parametrize("count", range(1, 10))
def test_a_williams_design_is_balanced(count: int) -> None:
    """Every arm stands equally often in every place, and follows every other arm equally often."""
    design = williams(count)
    assert len(design) == (count if count % 2 == 0 else 2 * count)
    assert all(sorted(order) == list(range(count)) for order in design)
    places = Counter((place, arm) for order in design for place, arm in enumerate(order))
    assert set(places.values()) == {len(design) // count} and len(places) == count**2
    follows = Counter(pair for order in design for pair in itertools.pairwise(order))
    assert len(follows) == count * (count - 1)
    assert len(set(follows.values())) <= 1


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_seed_relabels_the_arms_and_the_blocks_walk_through_the_design(count: int) -> None:
    size = len(williams(count))
    for seed in range(4):
        orders = [order_of(block, count, seed) for block in range(2 * size)]
        assert orders[:size] == orders[size:]
        assert len({tuple(order) for order in orders}) == (1 if count == 1 else size)
        assert orders == [order_of(block, count, seed) for block in range(2 * size)]
    if count > 2:
        assert len({tuple(order_of(0, count, seed)) for seed in range(20)}) > 1


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_who_is_opened_first_says_nothing_of_who_is_measured_first(count: int) -> None:
    size = len(williams(count))
    crossed = [
        (tuple(opening_order(block, count, 3)), tuple(order_of(block, count, 3))) for block in range(size * size)
    ]
    assert len(set(crossed)) == (1 if count == 1 else size * size)


# --- what is run, in which order ---


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Stubs instead of processes, no pauses, a lock of our own."""
    registry.load_all()
    Stub.every, Stub.script = [], staticmethod(plain)  # type: ignore[assignment]
    monkeypatch.setattr(runner, "WorkerProcess", Stub)
    monkeypatch.setattr(runner, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    assert all(worker.closed for worker in Stub.every), "every worker is buried"


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_workers_are_opened_in_an_order_of_their_own(lab: Lab) -> None:
    lab.run()
    for block in range(lab.plan.sampling.blocks):
        names = [worker.name for worker in Stub.every if worker.name.startswith(f"b{block}-")]
        arms = [f"b{block}-{arm}" for arm in lab.plan.groups[0].arms]
        assert names == [arms[place] for place in opening_order(block, 2, lab.plan.seed)]


def test_two_arms_run_abba_in_fresh_processes(lab: Lab) -> None:
    lab.run()
    blocks = [[worker for worker in Stub.every if worker.name.startswith(f"b{block}-")] for block in (0, 1)]
    for block, workers in enumerate(blocks):
        assert len(workers) == 2 and {worker.seed for worker in workers} == {5000 + block}
        dos = [[request["do"] for request in worker.asked] for worker in workers]
        assert dos == [["hello", "open", "slice", "slice"]] * 2
    turns = {row["turn"]: row["worker"] for row in lab.samples(metric="step_time", block=0, phase="timed")}
    assert turns[0] == turns[3] != turns[1] == turns[2]
    again = {row["turn"]: row["worker"] for row in lab.samples(metric="step_time", block=1, phase="timed")}
    assert (turns[0].split("-")[1] == again[0].split("-")[1]) is False, "the other arm is first in the next block"


def test_five_arms_run_in_an_order_and_its_reverse(tmp_path: Path) -> None:
    lab = Lab(
        tmp_path, blocks=1, axes={"kv": ("cat", "prealloc"), "norm": ("native", "fused"), "threads": ("all", "1", "2")}
    )
    lab.run()
    turns = {row["turn"]: row["case_id"] for row in lab.samples(metric="step_time", block=0, phase="timed")}
    order = [turns[turn] for turn in range(10)]
    assert order[:5] == order[:4:-1] and len(set(order)) == 5


def test_every_iteration_becomes_samples_of_every_metric(lab: Lab) -> None:
    lab.run()
    case = lab.state("kv=prealloc").case
    rows = lab.samples(case_id=case.case_id, block=1, phase="timed", metric="tpot")
    assert sorted((row["iteration"], row["value"]) for row in rows) == sorted([(0, 0.25), (1, 0.5), (2, 0.75)] * 2)
    assert {row["unit"] for row in rows} == {"s"} and {row["t_ns"] for row in rows} == {0, 10**9, 3 * 10**9}
    assert [row["value"] for row in lab.samples(case_id=case.case_id, block=1, phase="warmup", metric="tpot")] == [1.0]
    metrics = {row["metric"] for row in lab.samples(case_id=case.case_id)}
    assert metrics == {"tps", "tpot", "step_time", "peak_bytes", "kv_bytes"}, "ttft and ppl are not decode's"
    solo = {row["metric"]: row["value"] for row in lab.samples(case_id=case.case_id, block=SOLO_BLOCK)}
    assert solo == {"peak_bytes": 5.0, "kv_bytes": 6.0}
    readings = lab.store.telemetry(lab.writer.run_id).to_pylist()
    assert {(row["source"], row["name"]) for row in readings} == {
        ("slice", "other_cpu"),
        ("slice", "wall"),
        ("control", "tiny"),
    }
    assert len(readings) == 3 * 2 * 2 * 2


def test_rows_say_what_was_measured(lab: Lab) -> None:
    row = lab.run().rows()["decode kv=prealloc"]
    assert (row["status"], row["num_blocks"], row["num_params"], row["group"]) == ("ok", 2, 7, "lab-0")
    assert (row["axis_kv"], row["axis_norm"], row["axis_backend"]) == ("prealloc", "native", "torch")
    assert lab.progress == sorted(lab.progress) and lab.progress[-1] == 1.0


def test_quality_runs_in_the_solo_pass_alone(tmp_path: Path) -> None:
    lab = Lab(tmp_path, DECODE, Workload.of("perplexity"), blocks=1).run()
    solo = next(worker for worker in Stub.every if worker.name == "solo")
    timed = {(request["workload"].split("(")[0], request["timed"]) for request in solo.asked if request["do"] == "solo"}
    assert timed == {("decode", True), ("perplexity", False)}
    assert not [r for w in Stub.every if w is not solo for r in w.asked if "perplexity" in r.get("workload", "")]
    assert {row["metric"] for row in lab.samples(case_id=lab.state("reference", "perplexity").case.case_id)} == {
        "peak_bytes",
        "ppl",
    }


# --- disturbances ---


def test_a_disturbed_slice_is_repeated_and_kept_as_warm_up(lab: Lab) -> None:
    seen = itertools.count()

    def script(worker: Stub, request: dict[str, Any]) -> dict[str, Any]:
        answer = plain(worker, request)
        if request["do"] == "slice" and next(seen) == 0:
            answer = {**answer, "telemetry": BUSY}
        return answer

    play(script)
    lab.run()
    assert not any(state.invalid_blocks for state in lab.states.values())
    assert len([r for w in Stub.every for r in w.asked if r["do"] == "slice"]) == 2 * 4 + 1
    first = lab.samples(metric="step_time", block=0, turn=0)
    assert Counter(row["phase"] for row in first if row["value"] < 4) == {"warmup": 3, "timed": 3}


def test_what_stays_disturbed_is_invalid_and_retries_are_bounded(lab: Lab) -> None:
    play(lambda worker, request: {**plain(worker, request), "telemetry": BUSY})
    lab.run()
    slices = [r for w in Stub.every for r in w.asked if r["do"] == "slice"]
    assert len(slices) == 2 * (4 + RETRIES_PER_BLOCK)
    for variant in ("reference", "kv=prealloc"):
        state = lab.state(variant)
        assert state.status == "ok" and state.blocks == {0, 1} == set(state.invalid_blocks)
        assert "busy neighbour: other processes used 1000.00 cores" in state.invalid_blocks[0]
    assert len(lab.samples(metric="step_time", phase="timed")) == 2 * 4 * 3, "invalid numbers are kept, too"
    assert '"invalid_blocks": {"0": "busy' in lab.rows()["decode reference"]["facts"]


def test_only_the_disturbed_case_of_a_block_is_invalid(lab: Lab) -> None:
    def script(worker: Stub, request: dict[str, Any]) -> dict[str, Any]:
        disturbed = asked_for(request, "slice", "prealloc") and "/block 1/" in request["label"]
        return {**plain(worker, request), "telemetry": BUSY if disturbed else CALM}

    play(script)
    lab.run()
    assert lab.state("reference").invalid_blocks == {}
    assert set(lab.state("kv=prealloc").invalid_blocks) == {1}


def test_a_control_that_moved_spoils_its_slice(tmp_path: Path) -> None:
    lab = Lab(tmp_path, blocks=4)

    def script(worker: Stub, request: dict[str, Any]) -> dict[str, Any]:
        answer = plain(worker, request)
        if asked_for(request, "slice", "prealloc") and "/block 3/" in request["label"]:
            answer["control"] = {"tiny": 4.1e-3}
        return answer

    play(script)
    lab.run()
    assert lab.state("reference").invalid_blocks == {}
    reasons = lab.state("kv=prealloc").invalid_blocks
    assert set(reasons) == {3} and "control tiny" in reasons[3] and "4.10 times slower" in reasons[3]


# --- deaths and failures ---


def test_a_failed_case_is_a_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    def script(worker: Stub, request: dict[str, Any]) -> dict[str, Any]:
        if asked_for(request, "solo", "prealloc"):
            raise CaseFailed("too big", status="oom")
        return plain(worker, request)

    play(script)
    lab = Lab(tmp_path).run()
    row = lab.rows()["decode kv=prealloc"]
    assert (row["status"], row["reason"], row["num_blocks"]) == ("oom", "too big", 0)
    assert lab.state("reference").blocks == {0, 1}
    assert not [w for w in Stub.every if w.name.startswith("b") and str(w.variant) == "kv=prealloc"], "never timed"


def test_a_dead_solo_worker_costs_one_case(tmp_path: Path) -> None:
    def script(worker: Stub, request: dict[str, Any]) -> dict[str, Any]:
        if asked_for(request, "solo", "prefill") and asked_for(request, "solo", "reference"):
            worker.die("no answer within 9 s", status="timeout")
        return plain(worker, request)

    play(script)
    lab = Lab(tmp_path, DECODE, PREFILL).run()
    found = {name: (row["status"], row["num_blocks"]) for name, row in lab.rows().items()}
    assert found == {
        "decode reference": ("ok", 2),
        "decode kv=prealloc": ("ok", 2),
        "prefill reference": ("timeout", 0),
        "prefill kv=prealloc": ("ok", 2),
    }
    assert [w.name for w in Stub.every].count("solo") == 2


def test_a_worker_that_dies_in_a_slice_takes_only_its_case_along(tmp_path: Path) -> None:
    """The other workload of the same process loses the block, not its status."""

    def script(worker: Stub, request: dict[str, Any]) -> dict[str, Any]:
        if asked_for(request, "slice", "decode") and "prealloc" in request["variant"] and worker.name.startswith("b0"):
            worker.die()
        return plain(worker, request)

    play(script)
    lab = Lab(tmp_path, DECODE, PREFILL, blocks=3).run()
    assert (lab.state("kv=prealloc").status, lab.state("kv=prealloc").reason) == ("failed", "died of SIGSEGV")
    sibling = lab.state("kv=prealloc", "prefill")
    assert sibling.status == "ok" and sibling.invalid_blocks == {0: "its worker process died in this block"}
    assert {row["block"] for row in lab.samples(case_id=sibling.case.case_id, phase="timed", metric="ttft")} == {1, 2}
    for workload in ("decode", "prefill"):
        state = lab.state("reference", workload)
        assert state.status == "ok" and not state.invalid_blocks and state.blocks == {0, 1, 2}


def test_a_worker_that_dies_in_a_warm_up_takes_only_its_case_along(tmp_path: Path) -> None:
    """Decode was warm already when the prefill killed the process that they shared."""

    def script(worker: Stub, request: dict[str, Any]) -> dict[str, Any]:
        if asked_for(request, "open", "prefill") and "prealloc" in request["variant"]:
            worker.die(status="oom")
        return plain(worker, request)

    play(script)
    lab = Lab(tmp_path, DECODE, PREFILL, blocks=3).run()
    assert lab.state("kv=prealloc", "prefill").status == "oom"
    sibling = lab.state("kv=prealloc")
    assert sibling.status == "ok" and set(sibling.invalid_blocks) == {0}
    assert {row["block"] for row in lab.samples(case_id=sibling.case.case_id, phase="timed", metric="tpot")} == {1, 2}


def test_a_failure_without_a_death_leaves_the_worker_at_work(tmp_path: Path) -> None:
    def script(worker: Stub, request: dict[str, Any]) -> dict[str, Any]:
        if asked_for(request, "slice", "decode"):
            raise CaseFailed("scripted")
        return plain(worker, request)

    play(script)
    lab = Lab(tmp_path, DECODE, PREFILL).run()
    assert {lab.state("reference").status, lab.state("kv=prealloc").status} == {"failed"}
    for variant in ("reference", "kv=prealloc"):
        assert lab.state(variant, "prefill").blocks == {0, 1} and not lab.state(variant, "prefill").invalid_blocks


def test_a_worker_that_cannot_start_fails_its_cases_and_no_others(tmp_path: Path) -> None:
    """An engine that cannot be imported, in the solo pass or in the blocks."""
    for where in ("solo", "b"):
        Stub.every.clear()

        def script(worker: Stub, request: dict[str, Any], where: str = where) -> dict[str, Any]:
            if request["do"] == "hello" and worker.name.startswith(where) and "prealloc" in str(worker.variant):
                raise CaseFailed("ModuleNotFoundError: no engine")
            if where == "solo" and asked_for(request, "solo", "reference"):
                worker.die()
            return plain(worker, request)

        play(script)
        lab = Lab(tmp_path / where, DECODE, PREFILL).run()
        for workload in ("decode", "prefill"):
            state = lab.state("kv=prealloc", workload)
            assert (state.status, state.reason) == ("failed", "ModuleNotFoundError: no engine")
            assert lab.state("reference", workload).status == ("failed" if where == "solo" else "ok")
        assert len([w for w in Stub.every if w.asked == [{"do": "hello"}]]) == 2, "one try for each case"


def test_skipped_cases_start_nothing(tmp_path: Path) -> None:
    lab = Lab(tmp_path, axes={"kv": ("cat", "prealloc"), "backend": ("torch", "transformers")}).run()
    row = lab.rows()["decode backend=transformers"]
    assert row["status"] == "skipped" and "transformers" in row["reason"]
    assert not [worker for worker in Stub.every if "transformers" in str(worker.variant)]


def test_an_interruption_buries_the_workers_and_keeps_finished_blocks(lab: Lab) -> None:
    def script(worker: Stub, request: dict[str, Any]) -> dict[str, Any]:
        if worker.name.startswith("b1") and request["do"] == "slice":
            raise KeyboardInterrupt
        return plain(worker, request)

    play(script)
    with pytest.raises(KeyboardInterrupt):
        lab.run()
    assert {row["block"] for row in lab.samples(metric="step_time")} == {0}
    assert {row["num_blocks"] for row in lab.rows().values()} == {1}


def test_blocks_and_solo_passes_that_are_done_are_not_repeated(lab: Lab) -> None:
    for state in lab.states.values():
        state.solo_done, state.blocks, state.facts = True, {0}, {"num_params": 7}
    lab.run()
    assert {worker.name[:2] for worker in Stub.every} == {"b1"}
    assert {row["block"] for row in lab.samples()} == {1}
    assert {row["num_blocks"] for row in lab.rows().values()} == {2}


def test_no_block_starts_that_would_end_after_the_deadline(tmp_path: Path) -> None:
    lab = Lab(tmp_path, blocks=9).run(deadline=0.0)
    assert lab.state("reference").blocks == {0, 1}, "two blocks are the least that says anything"


# --- not steady ---


@pytest.mark.parametrize(("unsteady", "expected"), [(0, "ok"), (2, "ok"), (3, "not_steady"), (4, "not_steady")])
def test_a_case_is_not_steady_if_most_of_its_blocks_were_not(tmp_path: Path, unsteady: int, expected: str) -> None:
    def script(worker: Stub, request: dict[str, Any]) -> dict[str, Any]:
        answer = plain(worker, request)
        block = int(worker.name[1]) if worker.name[0] == "b" else 0
        return {**answer, "steady": block >= unsteady} if asked_for(request, "open", "prealloc") else answer

    play(script)
    rows = Lab(tmp_path, blocks=4).run().rows()
    assert rows["decode reference"]["status"] == "ok"
    assert rows["decode kv=prealloc"]["status"] == expected
    if expected == "not_steady":
        assert rows["decode kv=prealloc"]["reason"] == f"still speeding up after its warm-up in {unsteady} blocks"
    assert rows["decode kv=prealloc"]["num_blocks"] == 4


def test_the_first_failure_is_the_one_that_is_told() -> None:
    state = CaseState(Case(DECODE, "tiny"), "lab-0", 0, {})
    state.fail(CaseFailed("first", status="oom"))
    state.fail(CaseFailed("second"))
    assert (state.status, state.reason) == ("oom", "first")
    assert replace(state, unsteady=9, blocks={0}).row("lab").status == "oom", "a failure outranks unsteadiness"
