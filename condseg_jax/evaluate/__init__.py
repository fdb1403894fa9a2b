"""Evaluation: per-case scores and their summaries with intervals, tables and figures."""
