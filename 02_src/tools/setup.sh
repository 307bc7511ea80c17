#!/usr/bin/env bash
# Makes .venv from requirements/KIND.txt, whose hashes pip checks, and installs this project into it as it lies here.
# usage: 02_src/tools/setup.sh demo|dev
set -euo pipefail
cd "$(dirname "$0")/../.."
kind=$1
venv=.venv

fail() {
    echo "$1" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Prints the first Python of 3.11 or later; PYTHON in the environment names one that comes first.
find_python() {
    for name in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python; do
        if command -v "$name" >/dev/null && new_enough "$name"; then
            echo "$name"
            return
        fi
    done
    return 1
}

if ! [ -x "$venv/bin/python" ] || ! new_enough "$venv/bin/python" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python) || fail "Python 3.11 or later is needed, and none is on the PATH; install one, or name it: PYTHON=/path/to/python3 make."
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import venv, ensurepip' 2>/dev/null \
        || fail "Python $version has no venv module; on Debian and Ubuntu: sudo apt-get install python$version-venv"
    echo "==> $venv with Python $version"
    "$python" -m venv --clear "$venv"
fi

pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check --quiet --quiet "$@"
}

echo "==> packages of requirements/$kind.txt, a minute or two the first time"
pip install --require-hashes -r "requirements/$kind.txt"
pip install --no-build-isolation --no-deps --editable .
touch "$venv/.ready-$kind"
