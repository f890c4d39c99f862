"""How long a plan will take, roughly: from the models' own costs and what ordinary cores reach. Torch-free."""

from __future__ import annotations

from harness.core import Case
from harness.plan import Plan
from harness.telemetry import usable_cpus

_WORKER_START = 3.5  # CPU seconds to import the framework and build a model
_SOLO = 1.5  # seconds of one solo pass
_FLOPS_PER_CORE = 5e10  # what dense products of these sizes reach on one ordinary core
_BYTES_PER_SECOND = 1e10
_STEP = 5e-3  # dispatch of one forward


def iteration_seconds(case: Case, cores: int) -> float:
    """A rough time of one iteration; 0.1 s for weights whose shape is not known before they are loaded."""
    from minimind import costs
    from minimind.config import PRESETS

    config = PRESETS.get(case.model)
    if config is None:
        return 0.1
    params = dict(case.workload.params)
    if case.workload.kind == "rms_norm":
        return 10.0 * params["calls"] * params["rows"] * config.hidden_size * 4 / _BYTES_PER_SECOND
    batch = params["batch"]
    speed = _FLOPS_PER_CORE * min(cores, 8)
    if case.workload.kind == "train_step":
        return float(costs.train_flops(config, batch, params["length"])) / speed
    prompt = params.get("context", params.get("prompt", params.get("length", 0)))
    prefill = float(costs.prefill_flops(config, batch, prompt)) / speed
    step = float(costs.weight_bytes(config, 4)) / _BYTES_PER_SECOND + _STEP
    if case.workload.kind == "decode":
        return params["new_tokens"] * step
    return prefill + params.get("new_tokens", 0) * step


def estimate_seconds(plan: Plan) -> float:
    """Seconds that a run of the plan will take, within a factor of about two."""
    cores, sampling = len(usable_cpus()), plan.sampling
    total = 10.0
    for group in plan.groups:
        live = [case for case in group.cases if case.case_id not in plan.skips]
        timed = [case for case in group.timed() if case.case_id not in plan.skips]
        arms = {case.variant for case in timed}
        block = _WORKER_START * len(arms) / max(min(cores, len(arms)), 1)
        for case in timed:
            one = iteration_seconds(case, cores)
            block += max(sampling.warmup_seconds, one * sampling.min_iterations) + one
            block += 2 * sampling.passes * (0.05 + max(sampling.slice_seconds, one * sampling.min_iterations))
        total += sampling.blocks * block + sum(_SOLO + 3 * iteration_seconds(case, cores) for case in live)
    return total
