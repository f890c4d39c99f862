"""`harness gate` from the command line, on scripted clocks: two commits, a stored run, a variant; every exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.store import Store
from tests.commandline import ROOT, environment, new_store
from tests.e2e.conftest import Call

GATE = ("gate", "fake_gate", "--device", "cpu")


class Project:
    """A repository of its own with this harness in it; `fake.json` says how its code behaves."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.top = folder, folder / "project"
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "csrc")
        for name in ("harness", "minimind", "kernels", "suites"):
            shutil.copytree(ROOT / name, self.top / name, ignore=ignored)
        (self.top / "tests").mkdir()
        shutil.copy(ROOT / "tests" / "fake_backend.py", self.top / "tests")
        (self.top / ".gitignore").write_text("__pycache__\nout/\n")
        self.git("init", "-q", "-b", "main")
        self.commit()

    def git(self, *words: str) -> str:
        git = ["git", "-C", str(self.top), "-c", "user.name=x", "-c", "user.email=x@example.org", *words]
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout

    def commit(self, **behaviour: Any) -> None:
        self.behave(**behaviour)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "x")

    def behave(self, **behaviour: Any) -> None:
        (self.top / "fake.json").write_text(json.dumps(behaviour))

    def gate(self, *words: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, the JSON report, stderr; and nothing is left behind."""
        store = self.folder / "results"
        if not store.exists():
            new_store(store)
        plugin = ("--plugin", "tests/fake_backend.py", "--store", str(store), "-o", "json")
        child = subprocess.run(
            [sys.executable, "-m", "harness", *GATE, *plugin, *words],
            cwd=self.top,
            env=environment(self.folder),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert len(self.git("worktree", "list").splitlines()) == 1, child.stderr
        assert [path.name for path in self.folder.iterdir() if "bench-" in path.name] == []
        return child.returncode, json.loads(child.stdout or "{}"), child.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


def decisions(report: dict[str, Any]) -> dict[str, str]:
    return {f"{row['workload'].split('(')[0]} {row['metric']}": row["decision"] for row in report["rows"]}


GREEN = {
    "decode tps": "passed",
    "decode kv_bytes": "passed",
    "prefill ttft": "passed",
    "prefill kv_bytes": "passed",
    "perplexity ppl": "passed",
}


@pytest.mark.slow
def test_unchanged_code_is_green(project: Project) -> None:
    project.commit()
    code, report, err = project.gate("--against", "HEAD")
    assert code == 0, err
    assert decisions(report) == GREEN and report["exit_code"] == 0
    sides = {name: Store.open(project.folder / "results").find_run(run) for name, run in report["runs"].items()}
    assert sides["baseline"].session == sides["candidate"].session != ""
    assert sides["baseline"].command == sides["candidate"].command == report["command"]
    assert sides["baseline"].git_sha == project.git("rev-parse", "HEAD").strip()
    assert "Not calibrated" in err and report["abilities"][0].startswith("Not calibrated")


@pytest.mark.slow
def test_slower_code_is_red_twice_and_only_where_it_is_slower(project: Project, tmp_path: Path) -> None:
    project.commit()
    project.behave(factor={"decode": 1.05})
    files = ("--markdown", str(tmp_path / "s.md"), "--junit", str(tmp_path / "j.xml"), "--annotations")
    code, report, err = project.gate("--against", "HEAD", *files)
    assert code == 1, err
    assert decisions(report) == {**GREEN, "decode tps": "regressed"}
    (row,) = [row for row in report["rows"] if row["decision"] == "regressed"]
    assert row["effect"] == pytest.approx(1 / 1.05 - 1, abs=1e-3) and row["first"]["decision"] == "regressed"
    assert row["candidate_run"] != row["first"]["candidate_run"] and "measured again" in err
    assert (row["margin"], row["margin_source"]) == (0.01, "policy")
    second = Store.open(project.folder / "results").cases(row["candidate_run"]).to_pylist()
    assert {found["workload"].split("(")[0]: found["num_blocks"] for found in second}.get("prefill", 0) == 0
    text = (tmp_path / "s.md").read_text()
    assert text.startswith("**🔴 1 of 5 gated rows") and "4 rows unchanged (hidden)" in text
    assert ET.parse(tmp_path / "j.xml").getroot().get("failures") == "1"
    assert err.count("::error title=regressed%3A tiny decode") == 1


@pytest.mark.slow
def test_a_slow_baseline_makes_the_candidate_better(project: Project) -> None:
    project.commit(factor={"prefill": 1.2})
    project.behave()
    code, report, err = project.gate("--against", "HEAD")
    assert (code, decisions(report)["prefill ttft"]) == (0, "improved"), err


@pytest.mark.slow
def test_a_loss_of_quality_is_red_without_any_block(project: Project) -> None:
    project.commit()
    project.behave(ppl=2.02, factor={"decode": 2.0})
    code, report, err = project.gate("--against", "HEAD", "--exact")
    assert code == 1, err
    assert decisions(report) == {
        "decode kv_bytes": "passed",
        "prefill kv_bytes": "passed",
        "perplexity ppl": "regressed",
    }
    (row,) = [row for row in report["rows"] if row["decision"] == "regressed"]
    assert "--exact" in row["command"] and row["num_blocks"] is None


@pytest.mark.slow
def test_a_case_that_breaks_is_red_and_one_that_never_ran_is_not(project: Project) -> None:
    project.commit(broken=["prefill"])
    project.behave(broken=["decode"])
    code, report, err = project.gate("--against", "HEAD", "--exact")
    assert code == 1, err
    assert decisions(report) == {
        "decode status": "regressed",
        "prefill status": "skipped",
        "perplexity ppl": "passed",
    }


@pytest.mark.slow
def test_nothing_measured_is_no_success(project: Project) -> None:
    project.commit(broken=["decode", "prefill", "perplexity"])
    code, report, err = project.gate("--against", "HEAD", "--exact")
    assert code == 3, err
    assert "Nothing of fake_gate could be measured" in report["verdict"]


# --- in this process: stored runs, variants, what is refused ---


def report_of(result: tuple[int, str, str]) -> tuple[int, dict[str, Any]]:
    code, out, err = result
    assert out, err
    return code, json.loads(out)


@pytest.mark.slow
def test_a_stored_run_is_a_baseline_on_its_own_machine(call: Call, tmp_path: Path) -> None:
    store = new_store(tmp_path / "results")
    assert call("run", "fake_gate", store=store.path)[0] == 0
    assert call("baseline", "set", "v1", store=store.path)[0] == 0
    code, out, _ = call("baseline", "list", "-o", "json", store=store.path)
    assert code == 0 and [(row["name"], row["there"]) for row in json.loads(out)] == [("v1", True)]
    code, report = report_of(call(*GATE, "--against", "v1", "-o", "json", store=store.path))
    assert (code, decisions(report)) == (0, GREEN)
    assert any("not interleaved" in note for note in report["notes"])
    run = store.find_run("latest~1")
    store.save_run(replace(run, fingerprint="another", git_sha="0123456789abcdef"))
    code, _, err = call(*GATE, "--against", "tag:v1", store=store.path)
    assert code == 2 and "another machine" in err and "commit:012345678" in err
    code, report = report_of(call(*GATE, "--against", "tag:v1", "--exact", "-o", "json", store=store.path))
    assert code == 0 and len(report["rows"]) == 3


@pytest.mark.slow
def test_another_variant_is_a_baseline(call: Call, tmp_path: Path) -> None:
    store = new_store(tmp_path / "results")
    words = (*GATE, "--axis", "fake=plain,slow", "--against", "variant:backend=fake", "-o", "json")
    code, report = report_of(call(*words, store=store.path))
    assert code == 1
    found = {row["workload"].split("(")[0]: row for row in report["rows"] if row["decision"] == "regressed"}
    assert sorted(found) == ["decode", "prefill"]
    assert (found["decode"]["variant"], found["decode"]["reference_variant"]) == (
        "backend=fake fake=slow",
        "backend=fake",
    )
    assert found["decode"]["first"] is not None


@pytest.mark.slow
def test_one_block_is_undecided(call: Call, tmp_path: Path) -> None:
    store = new_store(tmp_path / "results")
    words = (*GATE, "--axis", "fake=plain,slow", "--against", "backend=fake", "--blocks", "1", "-o", "json")
    code, report = report_of(call(*words, store=store.path))
    assert code == 4 and decisions(report)["decode tps"] == "inconclusive"


@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--against", "nowhere"), "'nowhere' is no baseline"),
        (("--against", "variant:fake=slow"), "measures no variant"),
        (("--against", "HEAD", "--gates", "nowhere.toml"), "nowhere.toml"),
        (("--against", "HEAD", "--markdown", "nowhere/s.md"), "--markdown 'nowhere/s.md'"),
        (("--against", "HEAD", "--junit", "."), "--junit '.'"),
        (("--against", "HEAD", "--model", "nope"), "nope"),
        (("--against", "run:latest"), "no run 'latest'"),
    ],
)
def test_what_cannot_be_is_a_usage_error_before_anything_is_made(
    call: Call, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    code, out, err = call(*GATE, *words, store=tmp_path / "results")
    assert (code, out) == (2, "") and said in err
    assert not (tmp_path / "results").exists()


@pytest.mark.usefixtures("no_worker")
def test_a_suite_without_gates_is_refused(call: Call, tmp_path: Path) -> None:
    code, _, err = call("gate", "fake_slow", "--device", "cpu", store=tmp_path / "results")
    assert code == 2 and "declares no gates" in err
    (tmp_path / "g.toml").write_text("[[gate]]\nmetric = 'tps'\n")
    words = ("gate", "fake_slow", "--device", "cpu", "--gates", str(tmp_path / "g.toml"), "--exact")
    code, _, err = call(*words, store=tmp_path / "results")
    assert code == 2 and "nothing to gate" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("set",), "needs a name"),
        (("set", "v1"), "no finished run"),
        (("list", "v1"), "takes no name"),
        (("list", "--keep", "2"), "--keep belongs to prune"),
    ],
)
def test_words_that_a_baseline_action_has_no_use_for(
    call: Call, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    code, _, err = call("baseline", *words, store=new_store(tmp_path / "results").path)
    assert code == 2 and said in err
