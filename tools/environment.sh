# Sourced by the other scripts: makes .venv from requirements.txt, once for each state of the pins.
# A script with a cache folder of its own sets `cache` before.
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
  # Python writes the bytecode of what it imports; that of everything takes as long as the rest.
  pip=(.venv/bin/python -m pip --quiet --disable-pip-version-check install --no-compile)
  "${pip[@]}" -r requirements.txt
  if [ "$(uname -sm)" = "Linux x86_64" ]; then  # a failure is one line, and training slower
    XDG_CACHE_HOME="${cache:-${XDG_CACHE_HOME:-}}" \
      .venv/bin/python -m condseg_jax.models.onednn >/dev/null &
  fi
  "${pip[@]}" --no-deps --editable .
  # The tests that need it are skipped where it cannot be had.
  "${pip[@]}" --no-deps "$(sed -n 's/^#   --no-deps //p' requirements.txt)" \
    || echo "monailabel could not be installed"
  wait
  cp requirements.txt .venv/installed.txt
fi
# shellcheck disable=SC1091
source .venv/bin/activate
# Some containers set it: every command would compile all that it imports again, 5 s on a slow core.
unset PYTHONDONTWRITEBYTECODE
