"""Axis `backend`: which engine executes the case. Every declared backend is an option."""

from __future__ import annotations

from harness.registry import axis

axis("backend", reference="torch", doc="The engine that executes the case.")
