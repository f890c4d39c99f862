"""Data for training and evaluation: the embedded corpus, and the user's own files.

- `minimind.data.corpus`: the Python standard library as a text corpus (needs neither torch nor tokenizers)
- `minimind.data.records`: reads and checks jsonl and plain text files (no torch either)
- `minimind.data.samples`: turns records into token ids and labels, rows into batches
"""
