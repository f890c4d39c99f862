"""The files for CI: they parse, name what exists, and their steps do locally what they do there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.cli import build_parser
from tests.commandline import ROOT, environment, new_store
from tests.scratch_repository import commit, copy_of_this, new_repository, plant

yaml = pytest.importorskip("yaml", reason="PyYAML comes with pre-commit")

ACTION = ROOT / "action.yml"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
GITLAB = ROOT / "ci" / "gitlab.yml"
GUIDE = ROOT / "docs" / "ci.md"
INPUT = re.compile(r"\$\{\{\s*inputs\.([\w-]+)\s*\}\}")


def load(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text())
    assert isinstance(found, dict)
    return found


def steps_of(path: Path) -> list[dict[str, Any]]:
    """Every step of an action or of all jobs of a workflow."""
    document = load(path)
    jobs = [document["runs"]] if "runs" in document else list(document["jobs"].values())
    return [step for job in jobs for step in job["steps"]]


def step(name: str) -> dict[str, Any]:
    (found,) = [one for one in steps_of(ACTION) if one["name"] == name]
    return found


def every_script() -> Iterator[tuple[str, str]]:
    for path in (ACTION, *WORKFLOWS):
        for one in steps_of(path):
            if "run" in one:
                yield f"{path.name}: {one['name']}", one["run"]
    for name, job in load(GITLAB).items():
        for part in ("before_script", "script", "after_script"):
            for number, line in enumerate(job.get(part, [])):
                yield f"gitlab.yml: {name} {part} {number}", line


SCRIPTS = dict(every_script())


def stub(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)


RECORD = """
import json, os, sys
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""


def run_script(
    text: str, folder: Path, variables: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """As GitHub runs a bash step; programs of `folder/bin` come first."""
    paths = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    runner = {"RUNNER_TEMP": str(folder), "GITHUB_ACTION": "__self", "GITHUB_REPOSITORY": "someone/something"}
    files = {name: str(folder / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "RECORD")}
    script = folder / "step.sh"
    script.write_text(text)
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
        cwd=cwd or folder,
        env={**environment(folder), **runner, **files, "PATH": paths, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def recorded(folder: Path) -> list[list[str]]:
    path = folder / "RECORD"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


DEFAULTS = {key: str(value["default"]) for key, value in load(ACTION)["inputs"].items()}


def variables_of(one: Mapping[str, Any], **inputs: str) -> dict[str, str]:
    """The step's `env` with its inputs filled in."""
    values = {**DEFAULTS, **{key.replace("_", "-"): value for key, value in inputs.items()}}
    return {key: INPUT.sub(lambda match: values[match[1]], str(text)) for key, text in one.get("env", {}).items()}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_step_is_a_script_without_text_from_outside(name: str, tmp_path: Path) -> None:
    """bash reads it; and no `${{ }}` in it, through which a branch's name would become a command."""
    (tmp_path / "script").write_text(SCRIPTS[name])
    done = subprocess.run(["bash", "-n", str(tmp_path / "script")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "${{" not in SCRIPTS[name]


def test_everything_that_is_used_exists() -> None:
    declared = load(ACTION)["inputs"]
    for path in (ACTION, *WORKFLOWS):
        for one in steps_of(path):
            uses = one.get("uses", "./")
            assert uses == "./" or re.fullmatch(r"actions/[\w-]+@v\d+", uses), uses
            if one.get("uses") == "./":
                assert set(one["with"]) <= set(declared), one["name"]
            if path == ACTION and "run" in one:
                assert one["shell"] == "bash"
    text = ACTION.read_text()
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(declared), "each input is declared, and each is used"
    written = set(re.findall(r'echo "([\w-]+)=', step("Gate")["run"]))
    assert set(re.findall(r"steps\.gate\.outputs\.([\w-]+)", text)) <= written
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    scripts = "\n".join(SCRIPTS.values())
    assert set(re.findall(r"\bmake (\w+)", scripts + (ROOT / ".ci" / "run").read_text())) <= targets
    for name in set(re.findall(r"--constraint (\S+)", scripts)) | {"ci/self-gate"}:
        assert (ROOT / name).is_file()
    assert os.access(ROOT / "ci" / "self-gate", os.X_OK)


@pytest.mark.parametrize("name", [name for name, text in SCRIPTS.items() if re.search(r"python3? -m harness", text)])
@pytest.mark.parametrize("full", [False, True])
def test_every_command_of_the_harness_is_one_that_it_knows(name: str, full: bool, tmp_path: Path) -> None:
    """With the inputs' defaults, and with every input given."""
    for program in ("python", "python3", "nvidia-smi"):
        stub(tmp_path / "bin", program, RECORD)
    given = {"suite": "gate", "gates": "g.toml", "exact": "true", "calibrate": "5m", "plugin": "my plugin.py"}
    (found,) = [one for one in (*steps_of(ACTION), {}) if one.get("run") == SCRIPTS[name]] or [{}]
    variables = variables_of(found, **(given if full else {}))
    if name.startswith("gitlab"):
        variables = {**load(GITLAB)[".minimind-bench-gate"]["variables"], "GATE_FLAGS": "--exact" if full else ""}
        variables["GATE_CALIBRATE"] = "5m" if full else ""
    elif "BUDGET" in variables and not variables["BUDGET"]:
        variables["BUDGET"] = "10m"
    done = run_script(SCRIPTS[name], tmp_path, variables)
    assert done.returncode == 0, done.stdout + done.stderr
    commands = [words[3:] for words in recorded(tmp_path) if words[1:3] == ["-m", "harness"]]
    assert commands or "GATE_CALIBRATE" in SCRIPTS[name]
    for words in commands:
        build_parser().parse_args(words)
        assert ("my plugin.py" in words) == (full and "PLUGIN" in variables), "one word, blanks and all"


def test_the_commands_of_the_guide_are_ones_that_the_harness_knows() -> None:
    blocks = re.findall(r"```(?:bash|yaml)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [line.partition("#")[0] for line in lines if line.startswith("python -m harness")]
    assert len(commands) >= 5
    for line in commands:
        build_parser().parse_args(line.split()[3:])
    for block in re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        document = yaml.safe_load(block)
        for words in re.findall(r"'with': (\{[^}]*\})", str(document)):
            used = set(re.findall(r"'([\w-]+)':", words))
            assert used <= {*DEFAULTS, "fetch-depth", "runner", "calibrate"}, used
    for link in re.findall(r"\]\(((?!http)[^)#]+)", GUIDE.read_text()):
        assert (GUIDE.parent / link).exists(), link


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This harness in a repository of its own: a commit, one that changes nothing, one that is 5% slower."""
    folder = copy_of_this(tmp_path_factory.mktemp("project") / "repository")
    (folder / "gates.toml").write_text('suite = "fake_slow"\n[[gate]]\nmetric = "tps"\nvariant = "backend=fake"\n')
    commit(folder, "gates")
    commit(folder, "nothing", **{"README.md": "unchanged"})
    plant(folder, "slower", 1.05)
    return folder


def gate_step(project: Path, folder: Path, **inputs: str) -> tuple[int, str, dict[str, str]]:
    """Gate and Verdict as GitHub runs them: the exit code of the latter, the job summary, the outputs."""
    stub(
        folder / "bin", "python", f"import os, sys\nos.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n"
    )
    store = new_store(folder / "results")
    known = {"store": str(store.path), "plugin": "tests/fake_backend.py", "suite": "", "budget": "40s", **inputs}
    environ = {"PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    done = run_script(step("Gate")["run"], folder, {**variables_of(step("Gate"), **known), **environ}, project)
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = dict(line.split("=", 1) for line in (folder / "GITHUB_OUTPUT").read_text().splitlines())
    verdict = {"CODE": outputs["exit-code"], "STRICT": inputs.get("strict", "false")}
    ended = run_script(step("Verdict")["run"], folder, verdict)
    summary = (folder / "GITHUB_STEP_SUMMARY").read_text()
    return ended.returncode, summary + done.stderr + ended.stdout, outputs


def test_the_gate_step_is_green_on_an_unchanged_commit(project: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(project, clone)
    subprocess.run(["git", "-C", str(clone), "checkout", "--quiet", "--detach", "HEAD~1"], check=True)
    code, said, outputs = gate_step(clone, tmp_path)
    assert (code, outputs["exit-code"]) == (0, "0"), said
    assert r"None of 1 gated rows of fake\_slow regressed" in said and "green" in said
    assert Path(outputs["summary"]).is_file() and (Path(outputs["folder"]) / "gate.xml").is_file()


def test_the_gate_step_is_red_on_a_slower_commit_and_annotates_it(project: Path, tmp_path: Path) -> None:
    code, said, outputs = gate_step(project, tmp_path)
    assert (code, outputs["exit-code"]) == (1, "1"), said
    assert r"1 of 1 gated rows of fake\_slow regressed" in said and "::error" in said, said
    assert "| tps |" in said, f"red for another reason than its speed: {said}"


def test_a_gate_that_cannot_start_fails_and_says_so(project: Path, tmp_path: Path) -> None:
    code, said, outputs = gate_step(project, tmp_path, against="no-such-branch")
    assert (code, outputs["exit-code"]) == (2, "2") and "before it measured anything" in said


@pytest.mark.parametrize(
    ("given", "strict", "code", "word"),
    [("4", "false", 0, "::notice::undecided"), ("4", "true", 4, "::notice::undecided"), ("3", "false", 3, "::error::")],
)
def test_undecided_fails_only_where_it_is_asked_to(
    given: str, strict: str, code: int, word: str, tmp_path: Path
) -> None:
    done = run_script(step("Verdict")["run"], tmp_path, {"CODE": given, "STRICT": strict})
    assert done.returncode == code and word in done.stdout


@pytest.mark.parametrize(
    ("answer", "method", "place"),
    [("print(77)", "PATCH", "issues/comments/77"), ("", "POST", "issues/5/comments")],
)
def test_the_comment_is_written_once_and_then_changed(answer: str, method: str, place: str, tmp_path: Path) -> None:
    stub(tmp_path / "bin", "gh", f"{RECORD}\nif '--jq' in sys.argv:\n    {answer or 'pass'}\n")
    summary = tmp_path / "gate.md"
    summary.write_text("**green**\n")
    done = run_script(step("Comment")["run"], tmp_path, {"NUMBER": "5", "NAME": "gate", "SUMMARY": str(summary)})
    assert done.returncode == 0, done.stderr
    look, write = recorded(tmp_path)
    assert "<!-- minimind-bench gate: gate -->" in look[-1]
    assert write[:5] == ["gh", "api", "--method", method, f"repos/someone/something/{place}"]
    assert (tmp_path / "gate.md.comment").read_text() == "<!-- minimind-bench gate: gate -->\n**green**\n"


def test_a_fork_that_may_not_comment_gets_a_warning_and_no_failure(tmp_path: Path) -> None:
    stub(tmp_path / "bin", "gh", "import sys\nsys.exit('--jq' not in sys.argv)\n")
    (tmp_path / "gate.md").write_text("x\n")
    words = {"NUMBER": "5", "NAME": "gate", "SUMMARY": str(tmp_path / "gate.md")}
    done = run_script(step("Comment")["run"], tmp_path, words)
    assert done.returncode == 0 and "::warning::no comment may be written here" in done.stdout


def test_gitlab_makes_undecided_a_warning_and_keeps_the_reports() -> None:
    job = load(GITLAB)[".minimind-bench-gate"]
    assert job["allow_failure"] == {"exit_codes": [4]} and job["artifacts"]["reports"] == {"junit": "gate.xml"}
    assert job["variables"]["GIT_DEPTH"] == "0", "a shallow clone has no parent commit"


def test_the_workflows_fetch_the_history_and_run_the_tests_on_the_ends_of_the_range() -> None:
    for path in WORKFLOWS:
        checkouts = [one for one in steps_of(path) if one.get("uses", "").startswith("actions/checkout")]
        assert checkouts and all(one["with"]["fetch-depth"] == 0 for one in checkouts)
    versions = load(WORKFLOWS[0])["jobs"]["tests"]["strategy"]["matrix"]["python"]
    supported = re.search(r'requires-python = ">=([\d.]+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert supported is not None and versions == [supported[1], f"3.{int(supported[2]) - 1}"]


def self_gate(folder: Path, code: int | None, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """This project's own gate in another repository, with a harness that ends with a code."""
    (folder / "ci").mkdir(exist_ok=True)
    shutil.copy(ROOT / "ci" / "self-gate", folder / "ci")
    stub(tmp_path / "bin", "python-stub", f"{RECORD}\nsys.exit({code})\n")
    return run_script(str(folder / "ci" / "self-gate"), tmp_path, {"PYTHON": str(tmp_path / "bin" / "python-stub")})


def test_the_own_gate_passes_without_a_parent_and_says_so(tmp_path: Path) -> None:
    for folder in (tmp_path / "exported", new_repository(tmp_path / "fresh")):
        folder.mkdir(exist_ok=True)
        if (folder / ".git").exists():
            commit(folder, "first", a="1")
        done = self_gate(folder, 1, tmp_path)
        assert done.returncode == 0 and "has no commit HEAD~1" in done.stdout, done.stdout + done.stderr
    commit(tmp_path / "fresh", "second", a="2")
    done = self_gate(tmp_path / "fresh", 1, tmp_path)
    assert done.returncode == 0 and "has no gates yet" in done.stdout and not recorded(tmp_path)


@pytest.mark.parametrize(("given", "code"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 0)])
def test_the_own_gate_fails_on_all_but_undecided(given: int, code: int, tmp_path: Path) -> None:
    folder = new_repository(tmp_path / "project")
    (folder / "harness").mkdir()
    for number in ("1", "2"):
        commit(folder, number, **{"harness/gates.py": number})
    done = self_gate(folder, given, tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    ((_, *words),) = recorded(tmp_path)
    found = build_parser().parse_args(words[2:])
    assert (found.suite, found.against, found.exact) == ("gate", "HEAD~1", True) and not Path(found.store).exists()
