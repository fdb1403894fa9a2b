"""From per-case scores to what a reader looks at: summaries with intervals, tables, figures."""
