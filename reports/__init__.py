"""Figures and tables as data, and their rendering to Markdown and HTML.

What belongs here: functions from stored results to a table or a figure, and the templates that turn those into a page.
A report reads `harness.store` and `harness.compare` and measures nothing; it never imports torch, triton or the model,
so that it can be made on a machine that could not have produced the numbers.
"""
