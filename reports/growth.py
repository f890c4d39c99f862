"""How a time grows with a length, in sentences, tables and a figure: fits with their intervals, and the work behind.

    growths = growths_of(series_of(view, "decode", "context"), "tpot", "context")
    fit_sentence(growths[0], "TPOT", "cached position", "en")    # "reference: TPOT = 15.1 ms [...] + 6.4 µs [...]..."

What has no counted cause says so. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.compare import Measured
from harness.tables import Column
from reports.causes import Growth, growth_of
from reports.document import Grid
from reports.figures import Figure, ScalingLine, scaling
from reports.figures.numbers import measured, number
from reports.language import Language, say
from reports.wording import duration, joined

MOST_LINES = 6
_SAME = 0.25  # two growths within this share of each other are called the same


def growths_of(series: Mapping[tuple[str, ...], list[Measured]] | None, metric: str, length: str) -> list[Growth]:
    found = [growth_of(cases, metric, length) for cases in (series or {}).values()]
    return [growth for growth in found if growth is not None][:MOST_LINES]


def growth_figure(growths: Sequence[Growth], x_label: str, y_label: str, language: Language) -> Figure:
    lines = [
        ScalingLine(
            growth.variant,
            [(float(x), p.value, p.low, p.high) for x, p in zip(growth.lengths, growth.points, strict=True)],
            growth.fit,
        )
        for growth in growths
    ]
    return scaling(lines, x_label=x_label, y_label=y_label, unit="s", language=language)


def fit_sentence(growth: Growth, name: str, per: str, language: Language) -> list[str]:
    fit = growth.fit
    if fit is None:
        return [say(language, "{variant}: fewer than three lengths, so no line is fitted.", variant=growth.variant)]
    return [
        say(
            language,
            "{variant}: {name} = {intercept} + {slope} per {per} (least squares over {count} block values at {lengths} "
            "lengths, 95% intervals, R² {r2:.3f}).",
            variant=growth.variant,
            name=name,
            intercept=measured(fit.intercept, fit.intercept_low, fit.intercept_high, "s"),
            slope=measured(fit.slope, fit.slope_low, fit.slope_high, "s"),
            per=per,
            count=growth.num_values,
            lengths=len(growth.lengths),
            r2=fit.r2,
        )
    ]


def arithmetic_sentence(growth: Growth, language: Language) -> str:
    """Whether TTFT grows as the counted arithmetic does."""
    first, last = growth.flops[0], growth.flops[-1]
    longer = growth.lengths[-1] / growth.lengths[0]
    slower = growth.points[-1].value / growth.points[0].value
    if not first or not last:
        return say(language, "The FLOPs of these prompts were not recorded, so the growth has no counted cause here.")
    more = last / first
    counted = say(
        language,
        "From {least} to {most} tokens the prompt is {longer:.1f} times as long, its FLOPs {more:.1f} times as many "
        "(attention grows with the square), and TTFT {slower:.1f} times as long:",
        least=growth.lengths[0],
        most=growth.lengths[-1],
        longer=longer,
        more=more,
        slower=slower,
    )
    if slower > more * (1 + _SAME):
        why = say(
            language,
            "more than the arithmetic: what it does not count, writing and reading attention scores, grows faster.",
        )
    elif slower < more * (1 - _SAME):
        why = say(
            language,
            "less than the arithmetic: costs that do not depend on the length weigh on short prompts, and larger "
            "products come closer to the peak.",
        )
    else:
        why = say(language, "as the arithmetic does, so TTFT is the model's products at a nearly constant rate.")
    rates = say(
        language,
        "{slow} at the shortest, {fast} at the longest.",
        slow=number(first / growth.points[0].value, "FLOP/s"),
        fast=number(last / growth.points[-1].value, "FLOP/s"),
    )
    return joined(language, (counted, why, rates))


def traffic_sentences(growth: Growth, case: Measured | None, language: Language) -> list[str]:
    """What a cached position costs against the bytes that it adds."""
    ratio, fit, analytic, bandwidth = growth.slope_ratio, growth.fit, growth.analytic, growth.bandwidth
    if ratio is None or fit is None or analytic is None or bandwidth is None:
        return [
            say(language, "Without the bytes of a step or the measured bandwidth, the slope has no counted cause here.")
        ]
    low, high = (slope * bandwidth / analytic.slope for slope in (fit.slope_low, fit.slope_high))
    found = [
        say(
            language,
            "Each position adds {added:,.0f} B to what a step must read, {ideal} at the calibrated {bandwidth}; it "
            "costs {slope}: it is paid for {ratio:.1f} times (95% interval {low:.1f} to {high:.1f}).",
            added=analytic.slope,
            ideal=duration(analytic.slope / bandwidth),
            bandwidth=number(bandwidth, "bytes/s"),
            slope=duration(fit.slope),
            ratio=ratio,
            low=low,
            high=high,
        )
    ]
    if low <= 1 <= high:
        found.append(say(language, "The interval holds 1, so these data do not say that anything else is paid for."))
    facts = case.facts if case is not None else {}
    heads, shared = facts.get("num_attention_heads"), facts.get("num_key_value_heads")
    operations = facts.get("operations")
    copies = operations.get("aten::cat", 0) if isinstance(operations, dict) else 0
    if facts.get("attention") == "upstream" and heads and shared and heads != shared and low > 1:
        found.append(
            say(
                language,
                "The step's own record shows why: upstream's attention repeats {shared} KV heads to {heads} at every "
                "step, and it calls torch.cat {copies} times.",
                shared=shared,
                heads=heads,
                copies=copies,
            )
        )
    return found


def traffic_grid(growths: Sequence[Growth], language: Language) -> Grid:
    columns = (
        Column(say(language, "variant")),
        Column(say(language, "context"), right=True),
        Column("TPOT", right=True),
        Column(say(language, "bytes a token must move"), right=True),
        Column(say(language, "bytes that its time would move"), right=True),
        Column(say(language, "effective / analytic"), right=True),
    )
    rows = tuple(
        (
            growth.variant,
            str(length),
            point.text,
            number(analytic, "bytes"),
            number(effective, "bytes"),
            f"{effective / analytic:.2f}" if effective and analytic else "-",
        )
        for growth in growths
        for length, point, analytic, effective in zip(
            growth.lengths, growth.points, growth.analytic_bytes, growth.effective_bytes, strict=True
        )
    )
    return Grid(columns, rows)


def growth_grid(growths: Sequence[Growth], name: str, work: str, language: Language) -> Grid:
    columns = (
        Column(say(language, "variant")),
        Column(say(language, "context"), right=True),
        Column(name, right=True),
        Column(say(language, "work in {unit}", unit=work), right=True),
        Column(say(language, "rate"), right=True),
    )
    rows = tuple(
        (
            growth.variant,
            str(length),
            point.text,
            f"{flops:.3g}" if flops else "-",
            number(flops / point.value, "FLOP/s") if flops else "-",
        )
        for growth in growths
        for length, point, flops in zip(growth.lengths, growth.points, growth.flops, strict=True)
    )
    return Grid(columns, rows)


def too_low_note(language: Language) -> str:
    """What it means that a step is faster than the calibrated peak allows."""
    return say(
        language,
        "Some steps are faster than the calibrated peaks allow, so the calibration was disturbed and too low; "
        "repeat it on the quiet machine: python -m harness calibrate",
    )
