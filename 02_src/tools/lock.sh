#!/usr/bin/env bash
# Pins the requirements of pyproject.toml, with hashes and for every platform, in requirements/. No address of a
# package index gets into them: whoever installs has one of his own.
# usage: 02_src/tools/lock.sh [--upgrade]
set -euo pipefail
cd "$(dirname "$0")/../.."

pin() {
    local file=requirements/$1.txt
    shift
    echo "==> $file"
    .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --no-emit-index-url --no-emit-find-links "$@" --output-file "$file"
}

# All extras but Ray, which is half a gigabyte and has an environment of its own.
mapfile -t extras < <(sed -n '/^\[project.optional-dependencies\]/,/^$/s/^\([a-z]*\) = .*/--extra=\1/p' pyproject.toml | grep -v =ray)

pin demo pyproject.toml "${extras[@]}" --group build "$@"
pin dev pyproject.toml "${extras[@]}" --group dev "$@"
pin node --group pyproject.toml:node "$@"
pin bench-ray pyproject.toml --extra ray "$@"
for peer in litellm tensorzero any-llm curator; do
    pin "bench-$peer" --group "pyproject.toml:bench-$peer" "$@"
done
