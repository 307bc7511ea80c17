#!/usr/bin/env bash
# Installs the npm packages of FOLDER from its lock file. Where the system has no Node.js that is new enough, one is
# installed into .venv from requirements/node.txt, whose hashes pip checks.
# usage: 02_src/tools/node.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$1
oldest=20.15

new_enough() {
    command -v npm >/dev/null && node -e "
        const [major, minor] = process.versions.node.split('.').map(Number), [a, b] = '$oldest'.split('.').map(Number);
        process.exit(major > a || (major === a && minor >= b) ? 0 : 1)" 2>/dev/null
}

PATH="$PWD/.venv/bin:$PATH"
if ! new_enough; then
    echo "==> Node.js into .venv, as there is none of $oldest or later"
    .venv/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes -r requirements/node.txt
    hash -r
fi
if ! new_enough; then
    echo "The tests need Node.js $oldest or later with npm, and there is none for this platform: install it." >&2
    exit 1
fi

echo "==> npm packages of $folder"
npm ci --prefix "$folder" --no-audit --no-fund --loglevel=error
touch "$folder/node_modules/.ready"
