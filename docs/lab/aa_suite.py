"""Plugin: the reference against itself in ten cases, to count false alarms with the quickstart's sampling.

for seed in 0 1 2 3; do python -m harness run aa --plugin docs/lab/aa_suite.py --device cpu --seed $seed; done
"""

from harness.core import Grid, Sampling, Suite, Workload

SUITE = Suite(
    name="aa",
    doc="Ten cases of the trained tiny model, each beside an identical second arm.",
    grids={
        "cpu": (
            Grid(
                models=("tiny",),
                workloads=(
                    *(Workload.of("decode", context=context, new_tokens=4) for context in (32, 64, 128, 256)),
                    *(Workload.of("prefill", context=context) for context in (32, 64, 96, 128, 192, 256)),
                ),
                axes={"control": ("none", "aa")},
            ),
        )
    },
    metrics=("tps", "ttft"),
    sampling=Sampling(blocks=3, passes=2, slice_seconds=0.12, min_iterations=1, warmup_seconds=0.12),
)
