"""One file per suite, declarations only: `SUITE = Suite(...)`. Run with `python -m harness run NAME`."""
