#!/usr/bin/env bash
# Linter, types and every test, on all cores. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ -z "${CONDSEG_TEST_DATA:-}" ] && [ -d ../shared/data ]; then
  CONDSEG_TEST_DATA="$(cd ../shared/data && pwd)"
  export CONDSEG_TEST_DATA
fi
if [ ! -x .venv/moto/bin/moto_server ]; then  # without it, the tests of buckets are skipped
  "$PYTHON" -m venv .venv/moto
  # shellcheck disable=SC2046
  .venv/moto/bin/python -m pip --quiet --disable-pip-version-check install --no-compile \
    $(sed -n 's/^#   --moto //p' requirements.txt) || echo "moto could not be installed"
fi
ruff check
mypy &
types=$!
code=0
python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder "$@" || code=$?
wait "$types" || code=1
exit "$code"
