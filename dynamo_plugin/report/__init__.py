"""The report of a model embedding: one HTML file that works offline."""

from __future__ import annotations

from dynamo_plugin.report.writing import write_report

__all__ = ["write_report"]
