# Sourced by the other scripts: makes .venv from requirements.txt, once for each state of the pins.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-python3}"
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "Python 3.11 or newer is needed; name one with PYTHON=/path/to/python" >&2
  exit 2
fi
if ! cmp -s requirements.txt .venv/installed.txt; then
  echo "installing into .venv"
  "$PYTHON" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
  cp requirements.txt .venv/installed.txt
fi
# shellcheck disable=SC1091
source .venv/bin/activate
