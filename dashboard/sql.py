"""The texts of the dashboard's questions, over the views of `dashboard.database`. Nothing here takes a value into text.

    rows = database.ask(page("started_at", True, condition), [*values, 50, 0])

Marks are bound in the order in which they stand. Conditions come from `dashboard.filters`.
"""

from __future__ import annotations

from collections.abc import Mapping

LINE = "summary.run_id, summary.case_id, metric, unit, summary.status, n, summary.num_blocks, median, low, high, noise"
LINES = """
    FROM summary JOIN runs USING (run_id) JOIN series USING (case_id)
    JOIN cases ON cases.run_id = summary.run_id AND cases.case_id = summary.case_id
"""


def counted(which: str) -> str:
    """Of each run its cases by status. `which`: a condition on `run_id`."""
    return f"""
        SELECT run_id, count(*) FILTER (status = 'ok') AS num_ok, count(*) FILTER (status = 'skipped') AS num_skipped,
               count(*) FILTER (status NOT IN ('ok', 'skipped')) AS num_failed
        FROM cases WHERE {which} GROUP BY run_id
    """


def noisy(which: str) -> str:
    """Of each run the median noise of its headline metrics."""
    return f"""
        SELECT run_id, median(noise) AS noise FROM summary JOIN series USING (case_id)
        WHERE metric = headline AND isfinite(noise) AND {which} GROUP BY run_id
    """


def versus(which: str) -> str:
    """Of each run how many times as good as the baseline it is, over the cases that both have: bound are the baseline's
    id and its machine. Logarithms are averaged, cases independent."""
    return f"""
        SELECT run_id, avg(change) AS change,
               CASE WHEN count(variance) = count(*) THEN 1.96 * sqrt(sum(variance)) / count(*) END AS half
        FROM (
            SELECT ours.run_id, direction * ln(ours.median / theirs.median) AS change,
                   ours.log_error ** 2 + theirs.log_error ** 2 AS variance
            FROM summary AS ours JOIN series USING (case_id) JOIN runs USING (run_id)
            JOIN summary AS theirs ON theirs.case_id = ours.case_id AND theirs.metric = ours.metric
            WHERE theirs.run_id = ? AND runs.machine_id = ? AND ours.metric = headline
              AND ours.status = 'ok' AND theirs.status = 'ok' AND ours.median > 0 AND theirs.median > 0
        ) WHERE {which} GROUP BY run_id
    """


# Medians of timed metrics in time order; the spread of successive differences is not moved by a step or a drift.
STEADINESS = """
    WITH points AS (
        SELECT summary.case_id, metric, unit, ln(median) AS level, noise, num_blocks, epoch(started_at) AS moment,
               level - lag(level) OVER (PARTITION BY summary.case_id, metric ORDER BY number) AS step
        FROM summary JOIN runs USING (run_id)
        WHERE machine_id = ? AND summary.status = 'ok' AND n > 1 AND median > 0 AND started_at IS NOT NULL
    )
    SELECT case_id, metric, any_value(unit), count(*), arg_max(num_blocks, moment),
           1.482602218505602 / sqrt(2) * median(abs(step)), regr_slope(level, moment) * (max(moment) - min(moment)),
           median(noise) FILTER (isfinite(noise))
    FROM points GROUP BY case_id, metric ORDER BY case_id, metric
"""
SORTS: Mapping[str, str] = {
    **{name: f"runs.{name}" for name in ("run_id", "started_at", "finished_at", "status", "suite", "git_sha")},
    **{name: f"runs.{name}" for name in ("machine_id", "device", "device_name", "cpu_model", "git_dirty", "session")},
    **{name: f"coalesce({name}, 0)" for name in ("num_ok", "num_skipped", "num_failed")},
    "geomean": "change",
    "noise": "noise",
}
# What a matrix may be spread over: of each case a value. An axis or parameter is bound, never written into the text.
SPREADS: Mapping[str, str] = {
    "model": "SELECT case_id, model AS value FROM series",
    "workload": "SELECT case_id, kind AS value FROM series",
    "variant": "SELECT case_id, variant AS value FROM series",
}
AXIS = "SELECT case_id, option AS value FROM options WHERE axis = ?"
PARAMETER = "SELECT case_id, CAST(value AS VARCHAR) AS value FROM parameters WHERE name = ?"
_MINE = "run_id = ANY(?)"
# Of some runs what stands beside them. Bound: their ids, again, the baseline and its machine, the ids twice more.
RUNS = f"""
    SELECT runs.run_id, num_ok, num_skipped, num_failed, change, half, noise
    FROM runs LEFT JOIN ({counted(_MINE)}) USING (run_id) LEFT JOIN ({noisy(_MINE)}) USING (run_id)
    LEFT JOIN ({versus(_MINE)}) USING (run_id) WHERE runs.{_MINE}
"""
# What must be known of every run before they can be sorted so; by anything else the runs themselves are enough.
_EVERY: Mapping[str, str] = {
    **dict.fromkeys(("num_ok", "num_skipped", "num_failed"), counted("TRUE")),
    "noise": noisy("TRUE"),
    "geomean": versus("TRUE"),
}


def page(sort: str, descending: bool, condition: str) -> str:
    """The ids of a stretch of runs. Bound: for "geomean" the baseline and its machine; the values; limit, offset."""
    beside = f"LEFT JOIN ({_EVERY[sort]}) USING (run_id)" if sort in _EVERY else ""
    order = f"{SORTS[sort]} {'DESC' if descending else 'ASC'} NULLS LAST, runs.run_id DESC"
    return f"SELECT runs.run_id FROM runs {beside} WHERE {condition} ORDER BY {order} LIMIT ? OFFSET ?"


PROGRESS = """
    SELECT avg(CASE WHEN status <> 'ok' THEN 1.0 ELSE least(num_blocks / ?, 1.0) END) FROM cases WHERE run_id = ?
"""
METRICS = "SELECT DISTINCT metric FROM summary WHERE n > 0 ORDER BY metric"


def matrix(rows: str, columns: str, condition: str) -> str:
    """Cases by row, column, status and reason, each once per machine as its newest run left it.

    `rows`, `columns`: one of SPREADS, AXIS or PARAMETER; `condition`: of `Filter.where`.
    """
    return f"""
        WITH newest AS (
            SELECT cases.case_id, cases.status, cases.reason
            FROM cases JOIN runs USING (run_id) JOIN series USING (case_id) WHERE {condition}
            QUALIFY row_number() OVER (
                PARTITION BY cases.case_id, runs.machine_id ORDER BY runs.number DESC) = 1
        )
        SELECT across.value, down.value, status, reason, count(*) AS num
        FROM newest JOIN ({rows}) AS across USING (case_id) JOIN ({columns}) AS down USING (case_id)
        GROUP BY ALL ORDER BY across.value, down.value, num DESC, reason
    """
