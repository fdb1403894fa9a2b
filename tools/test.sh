#!/usr/bin/env bash
# Linter and every test. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ -z "${CONDSEG_TEST_DATA:-}" ] && [ -d ../shared/data ]; then
  CONDSEG_TEST_DATA="$(cd ../shared/data && pwd)"
  export CONDSEG_TEST_DATA
fi
ruff check
python -m pytest "$@"
