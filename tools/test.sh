#!/usr/bin/env bash
# Linter, types and every test, on all cores. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ -z "${CONDSEG_TEST_DATA:-}" ] && [ -d ../shared/data ]; then
  CONDSEG_TEST_DATA="$(cd ../shared/data && pwd)"
  export CONDSEG_TEST_DATA
fi
ruff check
mypy
python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder "$@"
