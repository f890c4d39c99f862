"""The pages that show results in a browser: `python -m dashboard`.

What belongs here: pages and their callbacks over `harness.store`, `harness.compare` and the figures of `reports`.
Pages read the summary table and go to single samples only on demand; nothing here measures, and nothing here imports
torch, triton or the model.
"""
