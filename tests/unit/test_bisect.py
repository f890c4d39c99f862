"""The search for a bad commit: where it steps, what it answers, how blocks become decisions, and what it follows."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import bisect as module
from harness.bisect import Decision, Rule, Search, Step, bisect, check_blocks, check_effect, check_metric, judge
from harness.compare import Measured, Series
from harness.core import Gate, UsageError
from harness.execute import Request
from harness.plan import Group
from harness.registry import load_all
from harness.schema import RunRow
from harness.store import Store
from harness.worktree import Commit
from tests.synthetic import Arm

load_all()


def commits(count: int) -> list[Commit]:
    return [Commit(f"{number:040x}", f"number {number}") for number in range(count)]


def by_number(decide: Callable[[int], Decision]) -> tuple[Callable[[Commit], Step], list[int]]:
    """A step that decides by the commit's number, and the numbers that were asked for."""
    asked: list[int] = []

    def measure_step(commit: Commit) -> Step:
        asked.append(int(commit.sha, 16))
        return Step(commit, decide(asked[-1]))

    return measure_step, asked


# The search --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 33])
def test_it_finds_every_place_in_the_announced_number_of_steps(count: int) -> None:
    for culprit in range(count):
        measure_step, asked = by_number(lambda number, culprit=culprit: "bad" if number >= culprit else "good")
        result = bisect(commits(count), measure_step)
        assert (result.outcome, [int(c.sha, 16) for c in result.suspects]) == ("found", [culprit])
        assert asked[0] == count - 1 and len(asked) == len(set(asked)) == len(result.steps)
        assert len(asked) <= module.num_steps(count)


@settings(deadline=None)
@given(st.data())
def test_commits_that_do_not_run_widen_the_answer_only_as_far_as_they_must(data: Any) -> None:
    count = data.draw(st.integers(1, 30))
    culprit = data.draw(st.integers(0, count - 1))
    broken = data.draw(st.sets(st.integers(0, count - 2))) if count > 1 else set()

    def decide(number: int) -> Decision:
        return "skipped" if number in broken else "bad" if number >= culprit else "good"

    measure_step, asked = by_number(decide)
    result = bisect(commits(count), measure_step)
    suspects = [int(commit.sha, 16) for commit in result.suspects]
    assert culprit in suspects and len(asked) == len(set(asked))
    assert set(suspects[:-1]) <= broken and suspects[-1] not in broken, "all but the last could not be measured"
    assert suspects[0] == 0 or suspects[0] - 1 not in broken, "what comes before is known to be good"
    assert result.outcome == ("found" if len(suspects) == 1 else "range") and not result.stopped


def test_it_gets_out_of_a_long_stretch_that_does_not_run_quickly() -> None:
    def decide(number: int) -> Decision:
        return "skipped" if 20 <= number < 80 else "bad" if number >= 90 else "good"

    measure_step, asked = by_number(decide)
    result = bisect(commits(100), measure_step)
    assert result.outcome == "found" and int(result.suspects[0].sha, 16) == 90
    assert len(asked) <= module.num_steps(100) + 4


@pytest.mark.parametrize(
    ("decision", "outcome"), [("good", "not worse"), ("undecided", "undecided"), ("skipped", "unmeasured")]
)
def test_without_a_bad_end_there_is_no_search(decision: Decision, outcome: str) -> None:
    measure_step, asked = by_number(lambda number: decision)
    result = bisect(commits(9), measure_step)
    assert (result.outcome, result.suspects, asked) == (outcome, (), [8])


def test_when_time_runs_out_the_answer_is_what_is_left() -> None:
    measure_step, asked = by_number(lambda number: "bad" if number >= 5 else "good")
    result = bisect(commits(16), measure_step, time_left=lambda: len(asked) < 3)
    assert (result.outcome, result.stopped, len(asked)) == ("range", True, 3)
    assert [int(commit.sha, 16) for commit in result.suspects] == [4, 5, 6, 7]


# From blocks to decisions ------------------------------------------------------------------------------------------


def timed(
    values: Sequence[float], metric: str = "tpot", *, status: str = "ok", run: str = "a", **facts: Any
) -> Measured:
    """A decode case with one turn a block."""
    blocks = dict(enumerate(values))
    held = Series(blocks, "s", False, {block: {0: value} for block, value in blocks.items()})
    series = {metric: held} if values else {}
    workload = "decode(batch=1,context=8,new_tokens=4)"
    reason = "" if status == "ok" else "it broke"
    return Measured(run, "c", workload, "tiny", "reference", status, reason, "g", facts, series, session="s")


def single(value: float, metric: str) -> Measured:
    series = {metric: Series({-1: value}, "bytes", True, {-1: {0: value}})}
    return Measured("a", "c", "decode(context=8)", "tiny", "reference", "ok", "", "g", {}, series, session="s")


def noisy(count: int, factor: float, seed: int, sd: float = 0.01) -> list[float]:
    rng = random.Random(seed)
    return [factor * (1 + rng.gauss(0, sd)) for _ in range(count)]


RULE = Rule(effect=0.05, error_rate=0.01)


@pytest.mark.parametrize(("metric", "worse", "better"), [("tpot", 1.12, 0.9), ("tps", 0.89, 1.1)])
def test_worse_is_bad_and_better_is_good_whichever_way_the_metric_goes(
    metric: str, worse: float, better: float
) -> None:
    reference = timed(noisy(6, 1.0, 1), metric)
    for factor, decision in ((worse, "bad"), (better, "good"), (1.0, "good")):
        found = judge(reference, timed(noisy(6, factor, 2), metric, run="b"), metric, RULE)
        assert found.decision == decision and found.num_blocks == 6
        assert found.ratio == pytest.approx(factor, rel=0.02) and found.low is not None and found.high is not None
        assert found.low < found.ratio < found.high
        assert found.harm is not None and (found.harm > 0.05) == (decision == "bad")


def test_few_blocks_and_much_noise_stay_undecided() -> None:
    found = judge(timed([1.0, 1.0]), timed([1.2, 1.2], run="b"), "tpot", RULE)
    assert (found.decision, found.reason) == ("undecided", "2 blocks do not decide")
    found = judge(timed(noisy(6, 1.0, 1, 0.2)), timed(noisy(6, 1.03, 2, 0.2), run="b"), "tpot", RULE)
    assert found.decision == "undecided"


def test_before_the_first_block_nothing_is_decided() -> None:
    nothing = single(5.0, "kv_bytes")
    found = judge(nothing, nothing, "tpot", RULE)
    assert (found.decision, found.reason) == ("undecided", "no block was measured")


def test_a_case_that_does_not_run_is_skipped_and_a_disturbed_one_undecided() -> None:
    good = timed([1.0] * 4)
    found = judge(good, timed([], status="failed", run="b"), "tpot", RULE)
    assert (found.decision, found.reason) == ("skipped", "failed: it broke")
    found = judge(timed([], status="oom"), timed([1.0] * 4, run="b"), "tpot", RULE)
    assert (found.decision, found.reason) == ("skipped", "at the good commit oom: it broke")
    disturbed = timed([1.0], run="b", invalid_blocks={"1": "busy neighbour", "2": "busy neighbour"})
    assert judge(good, disturbed, "tpot", RULE).decision == "undecided"
    assert judge(good, timed([1.0] * 4, run="b"), "ttft", RULE).decision == "skipped", "a metric that is not there"


@pytest.mark.parametrize(
    ("before", "after", "effect", "decision"),
    [
        (100, 100, 0.0, "good"),
        (100, 101, 0.0, "bad"),
        (100, 101, 0.03, "good"),
        (100, 90, 0.0, "good"),
        (0, 1, 0.5, "bad"),
    ],
)
def test_a_metric_without_noise_needs_no_blocks(before: float, after: float, effect: float, decision: Decision) -> None:
    found = judge(single(before, "kv_bytes"), single(after, "kv_bytes"), "kv_bytes", Rule(effect))
    assert (found.decision, found.num_blocks) == (decision, 0)
    assert f"{before} " in found.reason


def test_a_whole_search_through_noise_finds_the_commit() -> None:
    """Blocks one by one, 1.4% noise, 5% planted at a random place among 12, 3% asked for: as the defaults would."""
    rng = random.Random(7)
    right, blocks_used, num_steps = 0, 0, 0
    for _ in range(25):
        culprit = rng.randrange(12)

        def measure_step(commit: Commit, culprit: int = culprit) -> Step:
            nonlocal blocks_used, num_steps
            factor = 1.05 if int(commit.sha, 16) >= culprit else 1.0
            a, b = noisy(16, 1.0, rng.random(), 0.01), noisy(16, factor, rng.random(), 0.01)
            rule = Rule(0.03, module.ERROR_RATE / module.num_steps(12))
            found = next(
                (
                    f
                    for n in range(3, 17)
                    if (f := judge(timed(a[:n]), timed(b[:n], run="b"), "tpot", rule)).decision != "undecided"
                ),
                None,
            )
            num_steps, blocks_used = num_steps + 1, blocks_used + (found.num_blocks if found else 16)
            return Step(commit, found.decision if found else "undecided")

        result = bisect(commits(12), measure_step)
        right += [int(commit.sha, 16) for commit in result.suspects] == [culprit]
    assert right >= 24 and blocks_used / num_steps < 9


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (lambda: check_metric("tpto"), "Did you mean 'tpot'"),
        (lambda: check_metric("load_time"), "one value with noise"),
        (lambda: check_effect(0.0, "tpot"), "--effect 0: "),
        (lambda: check_effect(0.0, None), "for example 0.03"),
        (lambda: check_effect(3.0, None), "0.03 for 3%"),
        (lambda: check_effect(-0.1, "kv_bytes"), "--effect -0.1"),
        (lambda: check_blocks(2), "at least 3 blocks"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(check: Callable[[], None], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check()


def test_what_can_be_is_not() -> None:
    check_metric("tpot")
    check_metric("kv_bytes")
    check_effect(0.0, "kv_bytes")
    check_effect(0.03, None)
    assert (check_blocks(None), check_blocks(3)) == (module.MAX_BLOCKS, 3)


# What a search measures --------------------------------------------------------------------------------------------


class Laboratory:
    """A search whose `measure` writes what a script says: seconds per token of a case at a commit."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, arms: Sequence[Arm], **options: Any) -> None:
        self.arms, self.requests, self.blocks = arms, [], 0
        self.script: Callable[[str, int], Arm | float] = lambda variant, number: 1.0
        self.store = Store.open(folder / "store", create=True)
        monkeypatch.setattr(module, "measure", self.measure)
        monkeypatch.setattr(module, "checkout_worktree", lambda repository, sha: contextlib.nullcontext(folder))
        good = Commit("f" * 40, "good")
        self.shown: list[tuple[float, str]] = []
        self.search = Search(
            Request("lab"),
            self.store,
            folder,
            good,
            folder,
            5,
            lambda d, t: self.shown.append((d, t)),
            print,
            **options,
        )

    def measure(self, request: Request, store: Store, progress: Any, warn: Any, *, sides: Any, schedule: Any) -> Any:
        self.requests.append(request)
        progress(0.5, "half")
        arms = [arm for arm in self.arms if not request.only or arm.case().case_id in request.only]
        writers = [store.begin(RunRow(suite="lab", session=f"s{len(self.requests)}", side=s.name)) for s in sides]
        numbers = [-1 if side.git_sha == "f" * 40 else int(side.git_sha, 16) for side in sides]
        for writer, number in zip(writers, numbers, strict=True):
            said = [self.script(arm.variant, number) for arm in arms]
            rows = [s if isinstance(s, Arm) else arm for s, arm in zip(said, arms, strict=True)]
            samples = [sample for arm in rows for sample in arm.samples()]
            writer.write(cases=[arm.row(place) for place, arm in enumerate(rows)], samples=samples)
        broken = {arm.variant for arm in arms for n in numbers if isinstance(self.script(arm.variant, n), Arm)}
        live = [arm.case() for arm in arms if arm.variant not in broken]
        group = Group("lab-0", tuple(case.variant for case in live), arms[0].case().variant, tuple(live))
        runner = SimpleNamespace(
            plan=SimpleNamespace(groups=(group,)),
            sides=[SimpleNamespace(writer=writer) for writer in writers],
            live=lambda group: list(group.cases),
        )
        for _, block, cases in schedule(runner):
            self.blocks += 1
            for writer, number in zip(writers, numbers, strict=True):
                values = {str(case.variant): self.script(str(case.variant), number) for case in cases}
                seconds = {v: {block: s * (1 + 1e-3 * (block % 3) * number)} for v, s in values.items()}
                found = [
                    Arm(v, timed={"tpot": blocks, "tps": {k: 1 / s for k, s in blocks.items()}})
                    for v, blocks in seconds.items()
                ]
                writer.write(samples=[sample for arm in found for sample in arm.samples()])
        for writer in writers:
            writer.finish("finished")
        return {side.name: writer.run_id for side, writer in zip(sides, writers, strict=True)}

    def run(self, count: int = 8) -> Any:
        return bisect(commits(count), self.search.measure_step, time_left=self.search.time_left)


ARMS = (Arm("reference"), Arm("kv=prealloc"), Arm("norm=fused"))


def test_the_case_that_got_worst_is_followed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Laboratory(tmp_path, monkeypatch, ARMS)
    slow = {"reference": (6, 1.06), "kv=prealloc": (3, 1.2), "norm=fused": (99, 1.0)}
    lab.script = lambda variant, number: slow[variant][1] if number >= slow[variant][0] else 1.0
    result = lab.run()
    assert result.outcome == "found" and int(result.suspects[0].sha, 16) == 3
    assert lab.search.target is not None and lab.search.target.case.variant == "kv=prealloc"
    first, *rest = lab.requests
    assert first.only == () and {request.only for request in rest} == {(ARMS[1].case().case_id,)}
    assert {request.blocks for request in lab.requests} == {module.MAX_BLOCKS}
    assert {found.case.variant for found in result.steps[0].judgements if found.decision == "bad"} >= {"kv=prealloc"}
    assert lab.blocks <= 4 * len(result.steps), "easy steps cost few blocks"
    assert [done for done, _ in lab.shown] == sorted(done for done, _ in lab.shown) and lab.shown[-1][0] < 1
    assert lab.store.find_run(result.steps[1].runs["candidate"]).side == "candidate"


def test_what_does_not_run_is_skipped_without_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Laboratory(tmp_path, monkeypatch, ARMS[:1])
    broken = Arm("reference", status="failed", reason="SyntaxError")
    lab.script = lambda variant, number: broken if number in (2, 3) else 1.1 if number >= 4 else 1.0
    result = lab.run()
    assert result.outcome == "range" and [int(c.sha, 16) for c in result.suspects] == [2, 3, 4]
    skipped = [step for step in result.steps if step.decision == "skipped"]
    assert len(skipped) == 2 and all("SyntaxError" in step.reason for step in skipped)
    lab.script = lambda variant, number: broken if number >= 0 else 1.0
    lab.search.target = None
    assert lab.run().outcome == "unmeasured"


def test_gates_say_what_is_followed_and_a_metric_overrules_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = (Gate("kv_bytes", "exact", variant="reference"), Gate("tpot", variant="kv=*"))
    lab = Laboratory(tmp_path, monkeypatch, ARMS, gates=gates)
    followed = {(j.case.variant, j.metric) for j in lab.search.measure_step(commits(1)[0]).judgements}
    assert followed == {("reference", "kv_bytes"), ("kv=prealloc", "tpot")}
    lab.search.metric = "kv_bytes"
    followed = {(j.case.variant, j.metric) for j in lab.search.measure_step(commits(1)[0]).judgements}
    assert followed == {(arm.variant, "kv_bytes") for arm in ARMS}
    lab.search.metric = "ppl"
    step = lab.search.measure_step(commits(1)[0])
    assert (step.decision, step.judgements) == ("skipped", ()), "decode has no perplexity"


def test_an_exact_metric_is_decided_without_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Laboratory(tmp_path, monkeypatch, ARMS[:1], metric="kv_bytes", effect=0.0)
    lab.script = lambda variant, number: Arm(variant, solo={"kv_bytes": 100.0 if number < 5 else 101.0})
    result = lab.run()
    assert int(result.suspects[0].sha, 16) == 5 and lab.blocks == 0


def test_a_deadline_ends_a_step_and_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Laboratory(tmp_path, monkeypatch, ARMS[:1], deadline=time.monotonic() - 1)
    step = lab.search.measure_step(commits(1)[0])
    assert (step.decision, lab.blocks) == ("undecided", 1) and not lab.search.time_left()


def test_noise_of_earlier_steps_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Laboratory(tmp_path, monkeypatch, ARMS[:1])
    lab.script = lambda variant, number: 1.2 if number >= 3 else 1.0
    steps = lab.run().steps
    assert [metric for metric, _, _ in lab.search.noise] == ["tps"] * len(steps)
    assert all(variance > 0 and df >= 2 for _, variance, df in lab.search.noise)
