"""Studies: a declared grid of trainings, run, scored and reported in tables and figures."""
