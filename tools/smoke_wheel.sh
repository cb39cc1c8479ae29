#!/usr/bin/env bash
# Install a wheel into an empty environment and use it from outside the checkout.
# Usage: tools/smoke_wheel.sh WHEEL [PYTHON]
set -euo pipefail

tools=$(cd "$(dirname "$0")" && pwd)
wheel=$(realpath "$1")
python=${2:-python3}
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT

"$python" -m venv "$room/venv"
echo "Installing $(basename "$wheel") without extras into an empty environment"
"$room/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel" -c "$tools/../constraints.txt"
"$room/venv/bin/python" -m pip check
cp "$tools/smoke.py" "$room/"
cd "$room"
# -I: neither this folder nor PYTHONPATH may lend the library anything.
venv/bin/python -I smoke.py
venv/bin/fitkit --help > help.txt
grep -q fit help.txt
echo "wheel ok: $(basename "$wheel")"
