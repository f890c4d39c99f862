"""Parts of reports on memory: the measured peak split, the number of KV heads, and how the cache lies in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.compare import Measured
from harness.schema import RunRow
from harness.tables import Column
from reports.causes import Split, split_of
from reports.document import Block, Drawing, Grid, Paragraph, Picture, Section
from reports.figures import MemoryPoint, fit_line, memory
from reports.figures.numbers import measured, number, ratio_text
from reports.grids import changes_grid
from reports.kinds.parts import Part, lengths_in, missing_part, series_of
from reports.kinds.run import qualities
from reports.language import Language, say
from reports.sources import CaseRows, Pool, kind_of, parameter, point_of
from reports.wording import joined, percent

_COMMAND = "python -m harness run long_context"


def memory_part(pool: Pool, language: Language) -> Part:
    """The measured peak, split."""
    title = say(language, "Memory against length")
    for kind in ("prefill", "decode"):
        view = pool.newest(lambda rows, kind=kind: lengths_in(rows, kind, "context") >= 2, prefer=("long_context",))  # type: ignore[misc]
        if view is None:
            continue
        for (_, variant, *_), cases in series_of(view, kind, "context").items():
            splits = [split for case in cases if (split := split_of(case, "context")) is not None]
            if len(splits) >= 2:
                return _memory_of(title, view.run, variant, kind, splits, language)
    what = say(language, "peak memory and cache size at several lengths, with the size of the weights")
    return missing_part(title, what, _COMMAND)


def _memory_of(title: str, run: RunRow, variant: str, kind: str, splits: Sequence[Split], language: Language) -> Part:
    fit = fit_line([float(split.length) for split in splits], [split.rest for split in splits])
    columns = (
        Column(say(language, "context"), right=True),
        Column(say(language, "weights"), right=True),
        Column(say(language, "KV cache"), right=True),
        Column(say(language, "the rest"), right=True),
        Column(say(language, "measured peak"), right=True),
        Column(say(language, "peak − sum of the model"), right=True),
    )

    def predicted(split: Split) -> float:
        return split.rest if fit is None else fit.intercept + fit.slope * split.length

    rows = tuple(
        (
            str(split.length),
            number(split.weights, "bytes"),
            number(split.kv, "bytes"),
            number(split.rest, "bytes"),
            number(split.peak, "bytes"),
            "-" if fit is None else number(split.rest - predicted(split), "bytes"),
        )
        for split in splits
    )
    points = [MemoryPoint(float(s.length), s.weights, s.kv, max(predicted(s), 0.0), s.peak) for s in splits]
    first, last = splits[0], splits[-1]
    grown = last.peak - first.peak
    sentences = [
        say(
            language,
            "{workload}, {variant}: of the {peak} at {most} tokens the weights are {weights}, the cache {cache}; the "
            "rest (activations, buffers, copies made while loading) is {rest}.",
            workload=kind,
            variant=variant,
            peak=number(last.peak, "bytes"),
            most=last.length,
            weights=number(last.weights, "bytes"),
            cache=number(last.kv, "bytes"),
            rest=number(last.rest, "bytes"),
        )
    ]
    if grown > 0:
        share = (last.kv - first.kv) / grown
        sentences.append(
            say(
                language,
                "Of the {grown} that {tokens} tokens more add, {share} is the cache; the activations take the others.",
                grown=number(grown, "bytes"),
                tokens=last.length - first.length,
                share=percent(share),
            )
        )
    if fit is not None:
        sentences.append(
            say(
                language,
                "The rest is {intercept} and {slope} per token (95% intervals, least squares over {count} lengths).",
                intercept=measured(fit.intercept, fit.intercept_low, fit.intercept_high, "bytes"),
                slope=measured(fit.slope, fit.slope_low, fit.slope_high, "bytes"),
                count=len(splits),
            )
        )
    picture = Picture("memory", memory(points, x_label=say(language, "context in tokens"), language=language))
    answer = say(
        language,
        "Memory goes from {low} to {high}, of which the cache is {cache}.",
        low=number(first.peak, "bytes"),
        high=number(last.peak, "bytes"),
        cache=number(last.kv, "bytes"),
    )
    text = Paragraph(joined(language, sentences))
    return Part(Section(title, (text, Grid(columns, rows), picture)), (run,), answer)


def heads_part(pool: Pool, language: Language) -> Part:
    """GQA against MQA and MHA."""
    title = say(language, "Key/value heads: GQA against MQA and MHA")

    def fits(rows: CaseRows) -> bool:
        return any("attn=" in row["variant"] and kind_of(row["workload"]) in ("decode", "prefill") for row in rows)

    view = pool.newest(fits)
    found = [] if view is None else [c for c in view.comparisons if "attn=" in c.candidate.variant]
    wanted = [c for c in found if c.metric in ("tps", "ttft", "kv_bytes", "peak_bytes")]
    if view is None or not wanted:
        return missing_part(title, say(language, "GQA, MQA and MHA side by side"), "python -m harness run attention")
    grid = changes_grid(wanted, qualities(view), language)
    cache = next((c for c in wanted if c.metric == "kv_bytes"), None)
    answer = ""
    if cache is not None and cache.reference_value and cache.candidate_value is not None:
        answer = say(
            language,
            "{variant} holds {ratio} of the reference's cache.",
            variant=cache.candidate.variant,
            ratio=percent(cache.candidate_value / cache.reference_value),
        )
    note = Paragraph(say(language, "The heads are converted from the same weights, so quality is what is lost by it."))
    return Part(
        Section(title, (note, grid)), (view.run,), answer or say(language, "The numbers of KV heads are compared.")
    )


def layout_part(pool: Pool, language: Language) -> Part:
    """What a position takes in each kind of cache, and what paging rounds up."""
    title = say(language, "How the cache lies in memory")

    def fits(rows: CaseRows) -> bool:
        return len({row["variant"] for row in rows if kind_of(row["workload"]) == "decode" and _only_kv(row)}) >= 2

    view = pool.newest(fits)
    cases = [] if view is None else [item.case for item in view.cases if _is_cache_case(item.case)]
    if view is None or not cases:
        what = say(language, "the cache's kinds side by side, with their bytes")
        return missing_part(title, what, "python -m harness run kv_cache")
    columns = (
        Column(say(language, "cache")),
        Column(say(language, "positions held"), right=True),
        Column(say(language, "bytes"), right=True),
        Column(say(language, "bytes per position"), right=True),
        Column(say(language, "over the reference's"), right=True),
    )
    rows, base, kinds = [], dict[int, float](), dict[str, tuple[int, float]]()
    for case in cases:
        held, size = _positions(case), point_of(case, "kv_bytes")
        if size is None or not held:
            continue
        base.setdefault(held, size.value)
        kind = str(case.facts.get("cache", case.variant))
        kinds[kind] = (held, size.value)
        rows.append(
            (
                kind,
                str(held),
                number(size.value, "bytes"),
                f"{size.value / held:,.0f} B",
                ratio_text(size.value / base[held]) if base[held] else "-",
            )
        )
    heads, layers = cases[0].facts.get("num_key_value_heads"), _layers(cases[0])
    blocks: list[Block] = []
    if heads and layers:
        text = say(
            language,
            "A position is the keys and values of {heads} KV heads in each of {layers} layers.",
            heads=heads,
            layers=layers,
        )
        blocks.append(Paragraph(text))
    blocks += [Drawing(_drawing(kinds, language)), Grid(columns, tuple(rows))]
    answer = say(language, "Cache kinds measured: {kinds}.", kinds=", ".join(kinds))
    return Part(Section(title, tuple(blocks)), (view.run,), answer)


def _only_kv(row: Mapping[str, Any]) -> bool:
    variant = str(row["variant"])
    return variant == "reference" or (variant.startswith("kv=") and " " not in variant)


def _is_cache_case(case: Measured) -> bool:
    only = case.variant == "reference" or (case.variant.startswith("kv=") and " " not in case.variant)
    return only and kind_of(case.workload) == "decode" and "kv_bytes" in case.series


def _positions(case: Measured) -> int:
    return (parameter(case.workload, "context") or 0) + (parameter(case.workload, "new_tokens") or 0)


def _layers(case: Measured) -> int | None:
    modules = case.facts.get("modules")
    return modules.get("Attention") if isinstance(modules, dict) else None


def _drawing(kinds: dict[str, tuple[int, float]], language: Language) -> str:
    """One line per kind of cache that was measured."""
    words = {
        "cat": f"[K0 V0][K1 V1] … [Kn Vn]   {say(language, 'grown by a copy of everything at every step')}",
        "prealloc": f"[K0 V0][K1 V1] … [Kn Vn][ free ]   {say(language, 'reserved once, written in place')}",
        "int8": f"[k0 v0 s0][k1 v1 s1] …   {say(language, 'one byte a value, a scale per head and position')}",
        "paged": f"[16 | 16 | 16 | … | 7 of 16]   {say(language, 'pages from a pool; the last one is part empty')}",
    }
    return "\n".join(f"{kind:9} {words[kind]}" for kind in kinds if kind in words)
