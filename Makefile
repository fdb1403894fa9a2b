.PHONY: test fast docs bench
SHELL := bash

test:  # ruff and every test
	bash tools/test.sh

fast:  # ruff and the tests that take seconds
	bash tools/test.sh -m "not slow"

docs:  # the site, into site/
	source tools/environment.sh && mkdocs build --strict

bench:  # every suite (hours), then the tables of benchmarks/README.md and README.md
	source tools/environment.sh && for suite in conv cost export input memory predict scale startup step; \
	  do python -m tools.benchmark $$suite --json=benchmarks/$$suite.json || exit; done
	source tools/environment.sh && python -m tools.benchmark table
