"""Studies: a declared grid of trainings, run, scored, and told in tables and figures."""
