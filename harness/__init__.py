"""Measures a small language model honestly: plans, runs, stores and compares benchmark cases.

Start at `harness.core` (the nouns), then `harness.registry` (declaring variants, workloads and metrics). The command
line is `python -m harness`.
"""
