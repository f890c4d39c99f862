"""The tables of the store: their columns, their rows as values, and how rows become Arrow tables. Torch-free.

    table = sample_table("20261122T031500-0a1b2c", [sample])
    data = encode(table, "samples", {"20261122T031500-0a1b2c": 0b1})      # bytes of one Parquet file
    table = decode(path, "samples")                                       # raises Damaged with the reason

Every file carries in its metadata `schema_version`, `table` and `parts`: which parts (a bit mask of part numbers) of
which run it holds, so that a reader can tell copies of the same rows apart. SI units throughout; times in UTC. Columns
that a file lacks read as null, axes may differ from file to file; a newer schema, a foreign file or another table is
refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.core import SCHEMA_VERSION, Reading, Sample, Status

RunStatus = Literal["running", "finished", "interrupted", "failed"]
TableName = Literal["runs", "cases", "samples", "telemetry", "summary", "calibration", "noise"]
PART_TABLES: tuple[TableName, ...] = ("telemetry", "samples", "cases")  # written in this order: a case row comes last
ROW_GROUP_ROWS = 20_000  # what is read for one run of a compacted file; smaller ones make the file larger
_MANY_ROWS = 100_000
_TIME = pa.timestamp("us", tz="UTC")

# What pyarrow raises on a damaged file: ArrowInvalid and its kin, ValueError (utf-8), MemoryError (absurd lengths).
_DAMAGE = (pa.ArrowException, OSError, ValueError, MemoryError, EOFError)


class Damaged(Exception):
    """A file that cannot be used; the text is the reason. Never leaves the store: it becomes a `Problem`."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """One execution of a suite. `Store.begin` fills in run_id, schema_version, started_at, status and the writer.

    The writer is host, pid, pid_start. Unknown text is "", an unknown number 0. `argv`, `packages` and `plan` are JSON
    texts; `command` is the one line that reproduces the run; `plan` is enough to resume it; `fingerprint` is what must
    agree for two runs to be compared. Runs measured interleaved with each other share their `session`; `side` says
    which of them this is.
    """

    suite: str
    run_id: str = ""
    schema_version: int = SCHEMA_VERSION
    suite_version: int = 1
    started_at: datetime | None = None
    finished_at: datetime | None = None
    status: RunStatus = "running"
    git_sha: str = ""
    git_dirty: bool = False
    argv: str = "[]"
    command: str = ""
    seed: int = 0
    machine_id: str = ""
    device: str = ""
    device_name: str = ""
    cpu_model: str = ""
    cores: int = 0
    threads: int = 0
    ram_bytes: int = 0
    os: str = ""
    python: str = ""
    torch: str = ""
    triton: str = ""
    cuda: str = ""
    driver: str = ""
    packages: str = "{}"
    fingerprint: str = ""
    plan: str = "{}"
    session: str = ""
    side: str = ""
    host: str = ""
    pid: int = 0
    pid_start: int = 0

    @property
    def completion(self) -> str:
        """The command for a run that did not end: to go on, or to repeat a side of a session or a calibration."""
        other = self.session or not f"{self.command} ".startswith("python -m harness run ")
        return self.command if other else f"python -m harness run --resume {self.run_id}"


@dataclass(frozen=True, slots=True)
class CaseRow:
    """One case of a run as it stands; written again after each block, the last row counts.

    `axes` maps every axis known to the run to its option, the reference's included; `ordinal` is the place in the plan.
    `params`, `facts` and `source` are mappings, stored as JSON. `num_blocks` counts the blocks with timed samples.
    """

    case_id: str
    workload: str
    model: str
    variant: str
    status: Status
    reason: str = ""
    suite: str = ""
    group: str = ""
    ordinal: int = 0
    num_params: int = 0
    num_blocks: int = 0
    axes: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PeakRow:
    """One measured peak of a machine (`calibration`): value in SI units, size in bytes, versions as JSON."""

    kind: str
    value: float
    unit: str
    dtype: str = ""
    size_bytes: int = 0
    threads: int = 0
    t_ns: int = 0
    versions: str = "{}"


def _schema(text: str, **types: pa.DataType) -> pa.Schema:
    """Columns in order; text unless said otherwise."""
    return pa.schema([(name, types.get(name, pa.string())) for name in text.split()])


_INT, _REAL = pa.int64(), pa.float64()
_RUN_TYPES: dict[str, pa.DataType] = {
    **dict.fromkeys(
        ("schema_version", "suite_version", "seed", "cores", "threads", "ram_bytes", "pid", "pid_start"), _INT
    ),
    "started_at": _TIME,
    "finished_at": _TIME,
    "git_dirty": pa.bool_(),
}
SCHEMAS: dict[TableName, pa.Schema] = {
    "runs": _schema(" ".join(f.name for f in sorted(fields(RunRow), key=lambda f: f.name != "run_id")), **_RUN_TYPES),
    "cases": _schema(
        "run_id case_id seq ordinal suite group workload params model num_params variant status reason facts source "
        "num_blocks",
        seq=_INT,
        ordinal=pa.int32(),
        num_params=_INT,
        num_blocks=pa.int32(),
    ),
    "samples": _schema(
        "run_id case_id metric value unit block worker turn iteration phase t_ns",
        value=_REAL,
        block=pa.int32(),
        turn=pa.int32(),
        iteration=pa.int32(),
        t_ns=_INT,
    ),
    "telemetry": _schema(
        "run_id block source name value unit t_ns worker case_id turn",
        block=pa.int32(),
        value=_REAL,
        t_ns=_INT,
        turn=pa.int32(),
    ),
    "summary": _schema(
        "run_id case_id metric unit status n num_blocks median low high p10 p90 noise",
        n=_INT,
        num_blocks=pa.int32(),
        **dict.fromkeys(("median", "low", "high", "p10", "p90", "noise"), _REAL),
    ),
    "calibration": _schema(
        "machine_id kind dtype size_bytes threads value unit t_ns versions",
        size_bytes=_INT,
        threads=_INT,
        value=_REAL,
        t_ns=_INT,
    ),
    "noise": _schema(
        "fingerprint machine_id device workload model metric name blocks effect value low high hits trials suite "
        "git_sha measured_at versions",
        measured_at=_TIME,
        **dict.fromkeys(("blocks", "hits", "trials"), _INT),
        **dict.fromkeys(("effect", "value", "low", "high"), _REAL),
    ),
}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def run_table(run: RunRow) -> pa.Table:
    """One row of `runs`."""
    return pa.Table.from_pylist([{f.name: getattr(run, f.name) for f in fields(run)}], schema=SCHEMAS["runs"])


def run_rows(table: pa.Table) -> list[RunRow]:
    """`runs` rows as values; a null takes the field's default."""
    names = {f.name for f in fields(RunRow)}
    return [
        RunRow(**{name: value for name, value in row.items() if name in names and value is not None})
        for row in table.to_pylist()
    ]


def sample_table(run_id: str, rows: Sequence[Sample]) -> pa.Table:
    """`samples` of one run."""
    return _from_objects("samples", run_id, rows)


def reading_table(run_id: str, rows: Sequence[Reading]) -> pa.Table:
    """`telemetry` of one run."""
    return _from_objects("telemetry", run_id, rows)


def peak_table(machine_id: str, rows: Sequence[PeakRow]) -> pa.Table:
    """`calibration` of one machine."""
    schema = SCHEMAS["calibration"]
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names if name != "machine_id"}
    return pa.table({"machine_id": [machine_id] * len(rows), **columns}, schema=schema)


def _from_objects(table: TableName, run_id: str, rows: Sequence[Sample] | Sequence[Reading]) -> pa.Table:
    schema = SCHEMAS[table]
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names if name != "run_id"}
    return pa.table({"run_id": [run_id] * len(rows), **columns}, schema=schema)


def case_table(run_id: str, rows: Iterable[CaseRow], *, seq: int) -> pa.Table:
    """`cases` of one run, one column `axis_<name>` per axis; of several rows of one case the last is kept."""
    last = {row.case_id: row for row in rows}
    axes = sorted({axis for row in last.values() for axis in row.axes})
    columns: dict[str, list[Any]] = {}
    for name in SCHEMAS["cases"].names:
        if name in ("run_id", "seq"):
            columns[name] = [run_id if name == "run_id" else seq] * len(last)
        elif name in ("params", "facts", "source"):
            columns[name] = [_json(dict(getattr(row, name))) for row in last.values()]
        else:
            columns[name] = [getattr(row, name) for row in last.values()]
    for axis in axes:
        columns[f"axis_{axis}"] = [row.axes.get(axis) for row in last.values()]
    schema = pa.schema([*SCHEMAS["cases"], *((f"axis_{axis}", pa.string()) for axis in axes)])
    return pa.table(columns, schema=schema)


def encode(table: pa.Table, name: TableName, parts: Mapping[str, int], **extra: str) -> pa.Buffer:
    """A whole Parquet file in memory: zstd, page checksums, row groups of ROW_GROUP_ROWS, our metadata."""
    masks = {run_id: f"{mask:x}" for run_id, mask in parts.items()}
    metadata = {"schema_version": str(SCHEMA_VERSION), "table": name, "parts": json.dumps(masks), **extra}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        compression="zstd",
        row_group_size=ROW_GROUP_ROWS,
        write_page_checksum=True,
    )
    return sink.getvalue()


@dataclass(frozen=True, slots=True)
class Footer:
    """What a file says about itself: rows, which parts of which run it holds (bit masks), the other metadata."""

    num_rows: int
    parts: Mapping[str, int]
    metadata: Mapping[str, str]


@contextmanager
def _naming_damage() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        raise Damaged(f"is not readable Parquet: {_first_line(error)}") from error


def _footer(file: pq.ParquetFile, name: TableName) -> Footer:
    metadata = {k.decode(): v.decode() for k, v in (file.metadata.metadata or {}).items() if k != b"ARROW:schema"}
    version, table = metadata.get("schema_version"), metadata.get("table")
    if version is None or table is None or not version.isdigit():
        raise Damaged("is a foreign Parquet file, not written by this project")
    if int(version) > SCHEMA_VERSION:
        raise Damaged(f"has schema version {version}, newer than {SCHEMA_VERSION}: read it with a newer minimind-bench")
    if table != name:
        raise Damaged(f"holds the table '{table}', not '{name}'")
    parts = {run_id: int(mask, 16) for run_id, mask in json.loads(metadata.get("parts", "{}")).items()}
    return Footer(file.metadata.num_rows, parts, metadata)


def _open(path: Path) -> pq.ParquetFile:
    if path.stat().st_size == 0:
        raise Damaged("is empty")
    return pq.ParquetFile(path, page_checksum_verification=True)


def read_footer(path: Path, name: TableName) -> Footer:
    """The footer of a file of table `name`. Raises Damaged with the reason, FileNotFoundError if it has gone."""
    with _naming_damage(), _open(path) as file:
        return _footer(file, name)


def decode(path: Path, name: TableName, where: Mapping[str, Collection[str]] | None = None) -> pa.Table:
    """The rows of a file, in the table's columns and types.

    `where` keeps the rows whose text column is one of some values; row groups that cannot hold one are not read.
    Raises Damaged with the reason, FileNotFoundError if the file has gone.
    """
    with _naming_damage(), _open(path) as file:
        _footer(file, name)
        names = file.schema.names
        wanted = {names.index(column): values for column, values in (where or {}).items() if column in names}
        groups = [g for g in range(file.num_row_groups) if _may_match(file.metadata.row_group(g), wanted)]
        many = file.metadata.num_rows > _MANY_ROWS  # for small files threads cost more than they save
        table = _conform(file.read_row_groups(groups, use_threads=many), name)
        for column, values in (where or {}).items():
            table = table.filter(pc.is_in(table[column], value_set=pa.array(list(values), pa.string())))
        return table


def _may_match(group: pq.RowGroupMetaData, wanted: Mapping[int, Collection[str]]) -> bool:
    """Whether a row group may hold a row with one of the values in each of some columns, given by their place."""
    for place, values in wanted.items():
        limits = group.column(place).statistics
        if limits is not None and limits.has_min_max:
            low, high = limits.min, limits.max
            if not any(low <= value <= high for value in values):
                return False
    return True


def _conform(table: pa.Table, name: TableName) -> pa.Table:
    if table.schema.equals(SCHEMAS[name]):  # as every file of today's schema but those of cases
        return table.replace_schema_metadata(None)
    axes = sorted(column for column in table.column_names if name == "cases" and column.startswith("axis_"))
    wanted = [*SCHEMAS[name], *(pa.field(axis, pa.string()) for axis in axes)]
    columns = []
    for column in wanted:
        found = table[column.name] if column.name in table.column_names else pa.nulls(table.num_rows, column.type)
        columns.append(found if found.type == column.type else found.cast(column.type))
    return pa.table(columns, schema=pa.schema(wanted))


def concat(tables: Sequence[pa.Table], name: TableName) -> pa.Table:
    """All rows of files of one table; columns are matched by name, missing axes are null."""
    return pa.concat_tables([SCHEMAS[name].empty_table(), *tables], promote_options="permissive")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
