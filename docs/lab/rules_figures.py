"""The two figures of `rules_compared.py`, as SVG: what the noise looks like, and what each rule sees through it.

    rules_figure(path, outcomes, effects, promise)
    noise_figure(path, models, seed=1)

Needs matplotlib (of the `dev` extra). Colours are those of Okabe and Ito, which colour-blind readers can tell apart;
curves carry their names, and no date, so that the same figures give the same file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
import numpy as np

from harness.compare import location
from harness.noise import PASS, NoiseModel, pair_differences

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#666666"
SKY, YELLOW, BLACK = "#56B4E9", "#B58900", "#000000"
STYLE = {
    "svg.hashsalt": "minimind-bench",
    "svg.fonttype": "path",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "figure.facecolor": "white",
}
LAYOUTS = (  # turns of 30 ms that an arm takes before the other has the token, mirrored; 50 of each arm in all
    (1, "30 ms"),
    (5, "150 ms"),
    (25, "750 ms"),
    (50, "A, then B\n(1.5 s each)"),
)
DRAWN = {  # words by which a rule is found -> colour, dashes, name in the figure
    "median 5%": (ORANGE, "-", "median 5%"),
    "median 10%": (YELLOW, "-", "median 10%"),
    "mean:5%": (PURPLE, "--", "pytest-benchmark mean:5%"),
    "rank test": (GREY, "-", "rank test"),
    "asv": (GREEN, "-.", "asv"),
    "criterion": (SKY, "--", "criterion.rs"),
    "ours": (BLUE, "-", "ours"),
}


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def rules_figure(path: Path, outcomes: Sequence[Any], effects: Sequence[float], promise: float) -> None:
    """Share of alarms against the true slowdown: as the tools are used, and with as many false alarms as we promise."""
    chosen = [found for found in outcomes if found.layout == "A, then B" or "ours" in found.name]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.4), sharey=True)
        titles = ("as they are used", f"each tuned to {promise:.0%} false alarms")
        for axis, title, tuned in zip(axes, titles, (False, True), strict=True):
            for words, (colour, dashes, name) in DRAWN.items():
                for found in chosen:
                    if words in found.name:
                        threshold = found.tuned() if tuned else found.threshold
                        rates = [100 * found.rate(effect, threshold) for effect in effects]
                        wide = 2.6 if name == "ours" else 1.5
                        at = [100 * effect for effect in effects]
                        axis.plot(at, rates, dashes, color=colour, lw=wide, marker="o", ms=3.5, label=name)
            axis.set_title(title, loc="left", fontsize=10.5)
            axis.set_xlabel("true slowdown of the candidate, %")
            axis.set_xlim(-0.3, 10.3)
            axis.set_ylim(-2, 102)
            axis.set_xticks([0, 1, 2, 3, 5, 10], ["0\n(same code)", "1", "2", "3", "5", "10"])
        axes[0].set_ylabel("comparisons called slower, %")
        axes[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.tight_layout()
        _save(figure, path)


def spread(model: NoiseModel, seed: int, turns: int, *, num: int = 2000) -> float:
    """Robust standard deviation of a block's log difference if arms change every `turns` turns; 100 turns in all."""
    rng = np.random.default_rng([seed, turns])
    order = np.repeat((0, 1) if turns == 50 else (0, 1, 1, 0) * (100 // PASS // turns), turns)
    logs = model.residuals(rng, shape=(num,), num_turns=len(order), stretch=len(order))
    logs = logs + model.switch * np.concatenate([[True], order[1:] != order[:-1]])
    if turns == 50:
        found = np.median(logs[:, order == 1], axis=1) - np.median(logs[:, order == 0], axis=1)
    else:
        slices = np.median(logs.reshape(num, -1, turns), axis=2)
        found = location(pair_differences(slices, order[::turns].tolist()))
    return float(np.subtract(*np.quantile(found, (0.75, 0.25)))) / 1.349


def noise_figure(path: Path, models: Sequence[NoiseModel], *, seed: int) -> None:
    """Left: the turns of two equal workers in one measured block. Right: how finely they must alternate."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), gridspec_kw={"width_ratios": (1.25, 1)})
        model = max(models, key=lambda model: model.switch)
        order = np.array((0, 1, 1, 0) * (len(model.turns[0]) // PASS))
        changed = np.concatenate([[True], order[1:] != order[:-1]])
        milliseconds = 1e3 * model.seconds * np.exp(np.array(model.turns[0]) + model.switch * changed)
        for arm, colour, name in ((0, BLUE, "worker A"), (1, ORANGE, "worker B")):
            for mask, fill, what in (
                (changed, colour, "first after the other"),
                (~changed, "white", "second in a row"),
            ):
                mine = (order == arm) & mask
                label = f"{name}, {what}"
                left.plot(np.flatnonzero(mine), milliseconds[mine], "o", ms=4.5, mec=colour, mfc=fill, label=label)
        left.set_ylim(0.55 * np.median(milliseconds), 1.75 * np.median(milliseconds))
        left.set_xlabel("turn of 30 ms (A B B A ...)")
        left.set_ylabel("median iteration of the turn, ms")
        left.set_title(f"one block of {model.family}: the same code twice", loc="left", fontsize=10.5)
        left.legend(frameon=False, fontsize=8.5, ncols=2, loc="upper left")
        for model, colour, mark in zip(models, (BLUE, ORANGE, GREEN, PURPLE), "os^D", strict=False):
            sds = [100 * spread(model, seed, turns) for turns, _ in LAYOUTS]
            right.plot(range(len(LAYOUTS)), sds, marker=mark, color=colour, label=model.family)
        right.set_xticks(range(len(LAYOUTS)), [name for _, name in LAYOUTS])
        right.set_yscale("log")
        right.set_yticks([1, 2, 5, 10, 20], ["1%", "2%", "5%", "10%", "20%"])
        right.minorticks_off()
        right.set_xlabel("time until the other worker has its turn")
        right.set_title("spread of a block's difference, 3 s of measuring", loc="left", fontsize=10.5)
        right.legend(frameon=False, fontsize=9)
        figure.tight_layout()
        _save(figure, path)
