"""Case, Profile, Noise and Help: what they say of one series, of foreign files, of a calibration, and of a word."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dashboard.app import build_app
from dashboard.pages import case, help, noise, profile
from harness import profiles
from harness.calibration import Bound, Floor, NoiseCalibration, Rate, save_noise
from harness.power import blocks_for
from harness.registry import load_all
from harness.schema import RunRow
from harness.store import Store
from tests.dashboard.page_text import (
    commands,
    context_of,
    every,
    figures,
    heading,
    links,
    query_of,
    sentence,
    shown,
    tables,
)
from tests.synthetic import Arm, store_run

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"


@pytest.fixture(autouse=True)
def declared() -> None:
    load_all()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", create=True)


FUSED = Arm("norm=fused", {"tps": [11.0, 12.0, 13.0]}, facts={"outputs": "abc", "threads": 2})
PLAIN = Arm(timed={"tps": [9.0, 10.0, 11.0]}, facts={"outputs": "abc"})
QUALITY = Arm("norm=fused", solo={"kl": 0.0, "ppl": 8.5}, workload="perplexity")


def measured(store: Store, *arms: Arm, machine: str = "m1") -> RunRow:
    return store_run(store, *arms, suite="lab", machine_id=machine, git_sha="c0ffee" * 6, command="again")


def test_a_case_says_how_it_stands_what_it_is_and_whether_it_is_right(store: Store) -> None:
    run = measured(store, PLAIN, FUSED, QUALITY)
    page = case.layout(context_of(store), case.State(case=FUSED.case().case_id))
    assert heading(page) == "tiny: decode 32 @ 128, norm=fused"
    assert sentence(page).startswith("tps 12.0 tok/s [")
    assert sentence(page).endswith(f"in run {run.run_id}; machines that measured it: 1.")
    text = shown(page)
    assert "Torch's fused rms_norm" in text or "norm=fused" in text
    assert "Its greedy tokens are the reference's." in text
    assert "PPL 8.50, KL 0" in text
    assert commands(page) == ["again"]
    against = query_of(links(page)["its run against the reference"])
    assert against == {"a": [f"{run.run_id}/reference"], "b": [f"{run.run_id}/norm=fused"]}
    assert ["threads", "2"] in tables(page)[-1]


def test_tokens_that_differ_are_said_to_differ(store: Store) -> None:
    other = Arm("norm=fused", {"tps": [11.0, 12.0]}, facts={"outputs": "xyz"})
    measured(store, PLAIN, other)
    assert "differ from the reference's" in shown(case.layout(context_of(store), case.State(case=other.case().case_id)))


def test_a_case_that_failed_says_why(store: Store) -> None:
    arm = Arm("kv=int8", status="failed", reason="ValueError: no such cache")
    run = measured(store, PLAIN, arm)
    page = case.layout(context_of(store), case.State(case=arm.case().case_id))
    assert sentence(page) == f"In its newest run ({run.run_id}) it is failed: ValueError: no such cache"


def test_every_machine_has_its_row_and_its_own_number(store: Store) -> None:
    measured(store, PLAIN)
    faster = Arm(timed={"tps": [19.0, 20.0, 21.0]})
    measured(store, faster, machine="m2")
    page = case.layout(context_of(store), case.State(case=PLAIN.case().case_id))
    rows = tables(page)[1][1:]
    assert {row[0].split()[-1]: row[4].split(" ")[0] for row in rows} == {"m1": "10.0", "m2": "20.0"}
    assert sentence(page).startswith("tps 20.0")
    chosen = case.layout(context_of(store), case.State(case=PLAIN.case().case_id, machine="m1"))
    assert sentence(chosen).startswith("tps 10.0")


def test_without_a_case_the_newest_ones_are_listed(store: Store) -> None:
    measured(store, PLAIN, FUSED)
    page = case.layout(context_of(store), case.State())
    assert sentence(page) == "2 cases in the newest run of each suite; each has a page of its own."
    assert query_of(links(page)[FUSED.case().case_id])["case"] == [FUSED.case().case_id]


def test_a_case_that_nobody_ran_leads_to_those_that_are_there(store: Store) -> None:
    measured(store, PLAIN)
    page = case.layout(context_of(store), case.State(case="<b>"))
    assert sentence(page) == "No run of this store has the case '<b>'."
    assert links(page)["All cases of the newest runs"] == "/case"


def test_a_real_case_has_its_samples_drawn() -> None:
    page = case.layout(context_of(REFERENCE), case.State(case="23edf06fe5ed"))
    assert set(figures(page)) == {"case-trend", "case-samples"}


def profiled(store: Store, run: RunRow, arm: Arm, stacks: str = "", trace: object = None) -> None:
    folder = store.path / "artifacts" / run.run_id
    folder.mkdir(parents=True, exist_ok=True)
    if stacks:
        (folder / f"{arm.case().case_id}.collapsed").write_text(stacks)
    if trace is not None:
        (folder / f"{arm.case().case_id}.trace.json").write_text(json.dumps(trace))


def test_without_a_profile_the_page_says_who_could_write_one(store: Store) -> None:
    run = measured(store, PLAIN)
    page = profile.layout(context_of(store), profile.State())
    assert sentence(page) == f"No case of run {run.run_id} has a profile."
    assert commands(page) == [f"python -m harness profile quickstart --store {store.path}"]
    assert f"artifacts/{run.run_id}/" in shown(page)
    store_run(store, PLAIN, suite="profile-gate", machine_id="m1")
    page = profile.layout(context_of(store), profile.State())
    assert commands(page) == [f"python -m harness profile gate --store {store.path}"]


def test_stacks_are_drawn_and_the_hottest_frame_is_named(store: Store) -> None:
    arm = Arm(timed={"tps": [9.0, 10.0]})
    run = measured(store, arm)
    profiled(store, run, arm, "main;forward;matmul 60\nmain;forward;norm 30\nnonsense\nmain 10\nx -3\n")
    page = profile.layout(context_of(store), profile.State(run=run.run_id))
    assert sentence(page) == "tiny: decode 32 @ 128, reference: 60% of 100 samples are in matmul itself."
    assert "icicle" in figures(page)
    assert "2 lines were not stacks and were passed over." in shown(page)


def test_two_cases_are_laid_over_each_other(store: Store) -> None:
    run = measured(store, PLAIN, FUSED)
    profiled(store, run, PLAIN, "a;b 5\na;c 5\n")
    profiled(store, run, FUSED, "a;b 9\na;c 1\n")
    state = profile.State(run=run.run_id, case=PLAIN.case().case_id, against=FUSED.case().case_id)
    alone = profile.layout(context_of(store), profile.State(run=run.run_id, case=PLAIN.case().case_id))
    assert figures(profile.layout(context_of(store), state))["icicle"] != figures(alone)["icicle"]


def test_a_trace_gives_operations_and_a_timeline(store: Store) -> None:
    def event(name: str, start: float, duration: float, **rest: object) -> dict[str, object]:
        return {"ph": "X", "name": name, "ts": start, "dur": duration, "pid": 1, "tid": 7, **rest}

    events = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 7, "args": {"name": "main"}},
        event("step", 0, 1000), event("inner", 10, 20), event("gemm", 100, 300, cat="kernel", tid=0),
        event("gemm", 500, 300, cat="kernel", tid=0), event("norm", 400, 100, cat="kernel", tid=0),
        {"ph": "X", "name": "broken", "ts": "now"}, "nonsense",
    ]  # fmt: skip
    run = measured(store, PLAIN)
    profiled(store, run, PLAIN, trace={"traceEvents": events})
    page = profile.layout(context_of(store), profile.State(run=run.run_id))
    assert sentence(page).endswith("86% of the time of 2 operations is in gemm.")
    assert tables(page)[0][1:] == [
        ["gemm", "2", "0.6 ms", "0.3 ms", "85.7%"],
        ["norm", "1", "0.1 ms", "0.1 ms", "14.3%"],
    ]
    trace = profiles.read_trace(store.path / "artifacts" / run.run_id / f"{PLAIN.case().case_id}.trace.json")
    assert [slot.name for slot in trace.slots] == ["step", "gemm", "norm", "gemm"]
    assert trace.slots[0].lane == "CPU main"


def test_what_is_looked_for_is_marked_in_stacks_and_kept_of_the_operations(store: Store) -> None:
    run = measured(store, PLAIN)
    events = [{"ph": "X", "name": name, "ts": k * 10, "dur": 10, "pid": 1, "tid": 7} for k, name in enumerate("xyx")]
    profiled(store, run, PLAIN, "main;forward;matmul 60\nmain;norm 40\n", trace=events)
    page = profile.layout(context_of(store), profile.State(run=run.run_id, find="X"))
    assert tables(page)[0][1:] == [["x", "2", "0.02 ms", "0.01 ms", "66.7%"]]
    assert "1 operations have 'X' in their name: 66.7% of the time." in shown(page)
    page = profile.layout(context_of(store), profile.State(run=run.run_id, find="MATMUL"))
    assert "1 frames have 'MATMUL' in their name: 60.0% of the time is in them." in shown(page)


def test_the_files_of_a_case_can_be_taken_along_as_they_are(store: Store) -> None:
    run = measured(store, PLAIN)
    stacks, events = "main;norm 40\n", [{"ph": "X", "name": "x", "ts": 0, "dur": 10, "pid": 1, "tid": 7}]
    profiled(store, run, PLAIN, stacks, trace=events)
    client = build_app(store.path).server.test_client()
    page = profile.layout(context_of(store), profile.State())
    with client.get(links(page)["Chrome trace"]) as trace, client.get(links(page)["collapsed stacks"]) as saved:
        assert trace.json == events
        assert trace.headers["Content-Disposition"] == f"attachment; filename={PLAIN.case().case_id}.trace.json"
        assert saved.text == stacks
    assert "Chrome trace" not in links(profile.layout(context_of(store), profile.State(case="<b>")))
    refused = client.get("/export/profile.txt?case=..")
    assert refused.status_code == 400
    assert "no case of this address has a file of kind 'collapsed'" in refused.text


@pytest.mark.parametrize("content", ["", "{", '{"traceEvents": 3}', "[1, 2]", "[" * 200_000, '[{"ph": "X"}]'])
def test_a_trace_that_is_none_is_named_with_the_reason(store: Store, content: str) -> None:
    run = measured(store, PLAIN)
    profiled(store, run, PLAIN, trace=1)
    (store.path / "artifacts" / run.run_id / f"{PLAIN.case().case_id}.trace.json").write_text(content)
    page = profile.layout(context_of(store), profile.State(run=run.run_id))
    assert f"{PLAIN.case().case_id}.trace.json" in shown(page)
    assert sentence(page) == "tiny: decode 32 @ 128, reference has no profile."


def test_a_file_beyond_the_limit_is_not_read(store: Store) -> None:
    run = measured(store, PLAIN)
    profiled(store, run, PLAIN, "a 1\n")
    with (store.path / "artifacts" / run.run_id / f"{PLAIN.case().case_id}.collapsed").open("r+b") as file:
        file.truncate(profiles.MAX_BYTES + 1)
    text = shown(profile.layout(context_of(store), profile.State(run=run.run_id)))
    assert "has 50 MB; more than 50 are not shown" in text


def test_nothing_outside_the_artifacts_is_read(store: Store) -> None:
    secret = store.path.parent / "secret.collapsed"
    secret.write_text("secret 1\n")
    run = measured(store, PLAIN)
    folder = store.path / "artifacts" / run.run_id
    folder.mkdir(parents=True)
    (folder / f"{PLAIN.case().case_id}.collapsed").symlink_to(secret)
    assert profiles.artifact(store.path, run.run_id, PLAIN.case().case_id, "collapsed") is None
    assert profiles.artifact(store.path, "..", "../secret", "collapsed") is None
    assert profiles.artifact(store.path, "../..", "secret", "collapsed") is None
    assert "has no profile" in sentence(profile.layout(context_of(store), profile.State(case=PLAIN.case().case_id)))


def calibrated(store: Store, *, age: timedelta = timedelta(days=1)) -> Floor:
    floor = Floor(
        workload="decode", model="tiny", metric="tps", sd=Bound(0.02, 0.018, 0.023), df=60,
        floors={4: Bound(0.012, 0.01, 0.015), 8: Bound(0.008, 0.006, 0.01), 16: Bound(0.004, 0.003, 0.006)},
        block_seconds=3.0, blocks=8, measured_at=datetime.now(UTC) - age, false_alarms=Rate(1, 200), red=Rate(0, 200),
        power={0.03: Rate(45, 50), 0.05: Rate(50, 50)}, suite="gate",
    )  # fmt: skip
    save_noise(store, NoiseCalibration("f00d", "m1", "cpu", (floor,)))
    return floor


def test_a_calibrated_machine_says_what_it_can_tell_and_how_often_it_errs(store: Store) -> None:
    store_run(store, PLAIN, suite="gate", machine_id="m1", fingerprint="f00d")
    floor = calibrated(store)
    page = noise.layout(context_of(store), noise.State(effect=5.0))
    least = f"{floor.detectable(8, 0.005, 0.8):.1%}"
    alarms = f"{Rate(1, 200).interval[1]:.1%}"
    assert sentence(page) == (
        f"Eight blocks show changes from {least} on, in the noisiest family from {least} on. "
        f"Of 200 comparisons of unchanged code 1 were called changed (at most {alarms} in the long run)."
    )
    row = tables(page)[0][1]
    assert row[:3] == ["decode on tiny, tps", "2.00%", "1.50%, 1.00%, 0.60%"]
    assert row[4].startswith("1 of 200 [")
    assert figures(page)["power"]["layout"]["meta"]["rows"]
    needed = blocks_for(0.05, 0.02, margin=0.006, alpha=0.025, power=0.8)
    assert needed is not None
    assert tables(page)[1][1] == ["decode on tiny, tps", str(needed), f"{needed * 3.0 / 60:.1f} min"]


def test_an_effect_within_the_margin_is_never_shown(store: Store) -> None:
    store_run(store, PLAIN, suite="gate", machine_id="m1", fingerprint="f00d")
    calibrated(store)
    page = noise.layout(context_of(store), noise.State(effect=0.5))
    assert tables(page)[1][1][1:] == ["never: it lies within the margin of 0.60%", "–"]


def test_another_machines_calibration_is_no_knowledge_of_this_one(store: Store) -> None:
    store_run(store, PLAIN, suite="gate", machine_id="m1", fingerprint="beef")
    calibrated(store)
    page = noise.layout(context_of(store), noise.State())
    assert sentence(page).startswith("How often verdicts on this machine are wrong was not measured.")
    assert "This calibration was made on another machine" in shown(page)


def test_the_series_of_a_machine_by_their_noise_and_the_blocks_refused(store: Store) -> None:
    for level in (10.0, 10.4, 10.1, 10.9):
        spoiled = Arm(timed={"tps": [level, level]}, invalid={0: "steal: the hypervisor took 0.4 cores"})
        store_run(store, spoiled, machine_id="m1")
    page = noise.layout(context_of(store), noise.State())
    assert "From run to run its series differ by" in sentence(page)
    series, refused = tables(page)[-2:]
    assert series[1][:3] == ["tiny: decode 32 @ 128, reference", "tps", "4"]
    assert refused[1] == ["steal", "4"]
    assert commands(page) == [f"python -m harness calibrate --noise --budget 30m --store {store.path}"]


def test_every_word_of_the_glossary_is_there_and_can_be_found(store: Store) -> None:
    text = Path(help.DOCS / "glossary.md").read_text(encoding="utf-8")
    page = help.layout(context_of(store), help.State())
    words = {row[0] for table in tables(page) for row in table[1:]}
    assert {"workload", "noise floor", "ttft", "session of runs"} <= words
    assert len(words) == sum(
        line.startswith("| ") and not line.startswith(("| word", "| name")) for line in text.splitlines()
    )
    found = help.layout(context_of(store), help.State(term="noise floor"))
    assert tables(found)[0][1][0] == "noise floor"
    assert "words have 'noise floor' in them." in sentence(found)


def test_a_word_that_is_not_there_is_said_not_to_be(store: Store) -> None:
    assert sentence(help.layout(context_of(store), help.State(term="<wheels>"))) == (
        "No word of the glossary has '<wheels>' in it."
    )


def test_the_method_is_shown_without_html_and_mathematics(store: Store) -> None:
    page = help.layout(context_of(store), help.State(part="method"))
    (markdown,) = [part for part in every(page) if type(part).__name__ == "Markdown"]
    assert markdown.dangerously_allow_html is False
    assert markdown.mathjax is False
    assert "![" not in markdown.children
    assert "](figures" not in markdown.children
    assert "The block is the unit" in markdown.children


def test_an_installation_without_docs_says_so(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(help, "DOCS", tmp_path / "nowhere")
    assert "has no folder docs" in sentence(help.layout(context_of(store), help.State()))


def test_english_text_on_a_chinese_page_is_announced(store: Store) -> None:
    page = help.layout(context_of(store, "zh"), help.State())
    assert "这份文本只有英文版。" in shown(page)
