"""What the harness itself costs: the same decode steps driven by its session and by a bare loop, and an A/A arm."""

from harness.core import Grid, Sampling, Suite, Workload


def _grid(new_tokens: int) -> Grid:
    return Grid(
        models=("tiny", "minimind2-small"),
        workloads=(Workload.of("decode", context=128, new_tokens=new_tokens),),
        axes={"loop": ("harness", "bare"), "control": ("none", "aa")},
    )


SUITE = Suite(
    name="overhead",
    doc="Harness against a bare loop (must stay within 1%), and the reference against itself.",
    grids={"cpu": (_grid(16),), "cuda": (_grid(128),)},
    metrics=("tps", "tpot", "peak_bytes"),
    sampling=Sampling(blocks=8, passes=2, min_iterations=1),
)
