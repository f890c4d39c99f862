"""Kernels of the laboratory: one file per op, each with a public function that has torch's signature.

`reference.py` holds the plain-torch twins that tests and benchmarks compare with.
"""
