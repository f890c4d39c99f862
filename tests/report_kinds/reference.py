"""The stores that tests of reports read: the project's own real runs, and made-up ones with hostile text."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from harness.store import Store
from reports.document import Document
from reports.html import to_html
from reports.kinds import build
from reports.language import Language
from reports.sources import Request
from tests.synthetic import Arm, store_run

STORE = Path(__file__).resolve().parents[2] / "results" / "reference"
AB = (
    "compile/compile=off kv=prealloc",
    "compile/compile=default kv=prealloc",
)  # of one run: a case each improved, same
USUAL = {"comparison": AB, "run": ("compile",)}
HOSTILE = "<script>alert(1)</script> | `x` ![p](http://h/p.png) <img src=x onerror=alert(2)> **b** '\"&"
ROUTE = (
    "environment",
    "training_system",
    "profile_report",
    "long_context",
    "quantization",
    "serving",
    "experiment_record",
    "final",
)


@lru_cache(maxsize=64)
def page(kind: str, language: Language = "en") -> str:
    """The HTML of such a report, drawn once."""
    return to_html(real(kind, language))


@lru_cache(maxsize=64)
def real(kind: str, language: Language = "en", *refs: str) -> Document:
    """A report of the project's real runs, made once."""
    words = refs or USUAL.get(kind, ())
    return build(Store.open(STORE), kind, Request(words, language))


def hostile_store(path: Path) -> Store:
    """A run in which every text that a report shows holds markup, with a change that is significant."""
    store = Store.open(path, create=True)
    facts = {"trained": True, "data_fingerprint": "t", "sample_text": HOSTILE, "sample_prompt": HOSTILE,
             "disk_bytes": 1e6, "work": [8, 1e9, 1e8], "num_params": 10, "operations": {HOSTILE: 7}}  # fmt: skip
    fast, slow = [110.0, 111.0, 112.0, 111.0], [100.0, 101.0, 100.5, 101.0]
    store_run(
        store,
        Arm(timed={"tps": slow, "step_time": [0.1, 0.1, 0.1, 0.1]}, facts=facts),
        Arm("kv=prealloc", timed={"tps": fast, "step_time": [0.1, 0.1, 0.1, 0.1]}, facts=facts),
        Arm("quant=int8", status="failed", reason=HOSTILE, facts=facts),
        Arm(solo={"ppl": 9.0, "kl": 0.0, "top1_agreement": 1.0}, workload="perplexity", facts=facts),
        Arm("kv=prealloc", solo={"ppl": 9.1, "kl": 1e-5, "top1_agreement": 0.99}, workload="perplexity", facts=facts),
        Arm("quant=int8", solo={"ppl": 9.2, "kl": 1e-4, "top1_agreement": 0.98}, workload="perplexity", facts=facts),
        suite="quickstart",
        git_sha="a" * 40,
        machine_id="m1",
        cpu_model=HOSTILE,
        device="cpu",
        device_name=HOSTILE,
        command=f"python -m harness run quickstart --model '{HOSTILE}'",
        packages='{"numpy": "<b>2</b>"}',
    )
    return store


def unrelated_store(path: Path) -> Store:
    """A store with a run in which nothing fits any report of the route."""
    store = Store.open(path, create=True)
    store_run(
        store, Arm(solo={"kl": 0.0}, workload="perplexity", model="odd"), suite="lab", machine_id="m1", command=""
    )
    return store
