"""What a gate compares with: names for stored runs, and how a baseline is written on the command line. Torch-free.

    set_baseline(store, "release-1", store.find_run("latest"))
    parse_baseline("HEAD~1", store, repository)          # Baseline(kind="commit", commit="3f2a...", ...)
    parse_baseline("tag:release-1", store, repository)   # commit:REV, run:RUN, tag:NAME, variant:axis=option

The names lie in `STORE/baselines.json`, one small file that is replaced as a whole. It refuses (UsageError) names that
could be taken for something else, a text that means nothing or two things, and runs that are not finished. A damaged
file of names is named in the store's `problems` and moved aside by the next `set`, never lost in silence.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pyarrow as pa

from harness.catalog import explain, write_file
from harness.core import HarnessError, StoreError, UsageError, Variant
from harness.registry import resolve_variant
from harness.schema import RunRow
from harness.store import Store
from harness.worktree import own_repository, resolve

BaselineKind = Literal["commit", "run", "tag", "variant"]
FILE_NAME = "baselines.json"
_FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Named:
    """One name: the run it stands for, and what tells people which run that is."""

    name: str
    run_id: str
    suite: str = ""
    git_sha: str = ""
    machine_id: str = ""
    set_at: str = ""


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a candidate is compared with. `text` is what the user wrote; the fields of other kinds are empty."""

    kind: BaselineKind
    text: str
    commit: str = ""
    run: RunRow | None = None
    variant: Variant | None = None

    def __str__(self) -> str:
        """The kind and what it came to: `commit 3f2a91c04 (HEAD~1)`."""
        if self.kind == "variant":
            return f"variant {self.variant}"
        found = self.commit[:9] if self.run is None else f"{self.run.run_id} of {self.run.git_sha[:9] or 'no commit'}"
        word = "commit" if self.run is None else "run"
        plain = self.text.partition(":")[2] or self.text
        return f"{word} {found}" + ("" if self.commit.startswith(plain) or plain in found else f" ({plain})")

    @property
    def canonical(self) -> str:
        """A text that means the same tomorrow: `commit:` with the full sha, `run:` with the id."""
        if self.kind == "variant":
            return "variant:" + str(self.variant).replace(" ", ",")
        return f"commit:{self.commit}" if self.run is None else f"run:{self.run.run_id}"


def list_baselines(store: Store) -> list[Named]:
    """All names, the oldest first; none, and a problem noted, where the file is damaged."""
    path = store.path / FILE_NAME
    try:
        return _read(path)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        store.catalog.note(path, f"is not a file of baselines: {str(error).splitlines()[0]}")
        return []


def _read(path: Path) -> list[Named]:
    """Raises ValueError (JSON's and Unicode's are) where the file is not ours, or of a newer format."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict) or not isinstance(document.get("baselines"), list):
        raise ValueError("it has no list of baselines")
    if document.get("format") != _FORMAT:
        raise ValueError(f"its format is {document.get('format')!r}, not {_FORMAT}")
    names, found = {field.name for field in fields(Named)}, []
    for entry in document["baselines"]:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("name", "run_id")):
            raise ValueError(f"{str(entry)[:80]} is not a baseline")
        found.append(Named(**{key: str(value) for key, value in entry.items() if key in names}))
    return sorted(found, key=lambda named: named.set_at)


def _write(store: Store, change: Callable[[Sequence[Named]], Sequence[Named]]) -> None:
    """Replace the file by a change of it, under the store's lock. Raises StoreError if it cannot be written."""
    path = store.path / FILE_NAME
    with store.catalog.lock(wait=True):
        known = list_baselines(store)
        if not known and path.exists() and any(problem.path == path for problem in store.problems):
            _move_aside(path)
        document = {"format": _FORMAT, "baselines": [asdict(named) for named in change(known)]}
        write_file(path, pa.py_buffer(json.dumps(document, indent=2).encode() + b"\n"))


def _move_aside(path: Path) -> None:
    try:
        os.replace(path, path.with_name("baselines-damaged.json"))
    except OSError as error:
        raise StoreError(explain(path, error)) from error


def set_baseline(store: Store, name: str, run: RunRow) -> Named:
    """Give a run a name; an older run of that name loses it. Raises UsageError for a bad name or an unfinished run."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot name a baseline: letters, digits, dot, dash and underscore, at most 64, "
            "the first a letter or digit"
        )
    if run.status != "finished":
        raise UsageError(f"run {run.run_id} is {run.status}; a baseline must be a finished run")
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    named = Named(name, run.run_id, run.suite, run.git_sha, run.machine_id, now)
    _write(store, lambda known: [*(other for other in known if other.name != name), named])
    return named


def prune_baselines(store: Store, *, keep: int | None = None) -> list[Named]:
    """Drop the names whose run is gone, and all but the newest `keep`; returns what was dropped."""
    runs = {run.run_id for run in store.runs()}
    dropped: list[Named] = []

    def change(known: Sequence[Named]) -> Sequence[Named]:
        here = [named for named in known if named.run_id in runs]
        kept = here if keep is None else here[len(here) - min(keep, len(here)) :]
        dropped.extend(named for named in known if named not in kept)
        return kept

    if list_baselines(store):
        _write(store, change)
    return dropped


def parse_baseline(text: str, store: Store, repository: Path | None) -> Baseline:
    """What a text means: with a prefix that kind, else a name, an axis=option, a stored run, a git revision.

    Raises UsageError where it means nothing, listing what was tried, or both a run and a commit. `repository`: None for
    the checkout that this harness runs from. The registry must be loaded (variants are checked).
    """
    prefix, colon, rest = text.partition(":")
    ways: dict[str, Callable[[str], Baseline]] = {
        "tag": lambda name: _of_tag(name, text, store),
        "variant": lambda name: Baseline("variant", text, variant=resolve_variant(Variant.parse(name))),
        "run": lambda name: Baseline("run", text, run=_finished(store.find_run(name))),
        "commit": lambda name: Baseline("commit", text, commit=_commit(name, repository)),
    }
    if colon and prefix in ways:
        if not rest:
            raise UsageError(f"baseline '{text}' names no {prefix}, for example commit:HEAD~1 or variant:kv=cat")
        return ways[prefix](rest)
    if any(named.name == text for named in list_baselines(store)):
        return ways["tag"](text)
    if "=" in text or text == "reference":
        return ways["variant"](text)
    found, tried = [], [f"no baseline is named '{text}' (harness baseline list)", "it is not of the form axis=option"]
    for kind in ("run", "commit"):
        try:
            found.append(ways[kind](text))
        except HarnessError as error:
            tried.append(str(error))
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"'{text}' may be {found[0]} or {found[1]}: write {found[0].canonical} or commit:{text}")
    raise UsageError(f"'{text}' is no baseline. Tried: " + "; ".join(tried))


def _of_tag(name: str, text: str, store: Store) -> Baseline:
    names = {named.name: named for named in list_baselines(store)}
    if name not in names:
        raise UsageError(f"no baseline is named '{name}'. Known: {', '.join(names) or 'none'}")
    run = store.run(names[name].run_id)
    if run is None:
        raise UsageError(f"baseline '{name}' is run {names[name].run_id}, which is no longer in store {store.path}")
    return Baseline("tag", text, run=run)


def _finished(run: RunRow) -> RunRow:
    if run.status == "finished":
        return run
    raise UsageError(f"run {run.run_id} is {run.status}; a baseline must be a finished run")


def _commit(revision: str, repository: Path | None) -> str:
    return resolve(own_repository() if repository is None else repository, revision)
