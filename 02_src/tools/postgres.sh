#!/usr/bin/env bash
# Installs PostgreSQL, which the tests of shared jobs start and stop, from the system's packages. Where that is not
# possible it says what to do and goes on: those tests are skipped then, but fail in continuous integration.
# usage: 02_src/tools/postgres.sh
set -euo pipefail

installed() {
    command -v initdb >/dev/null || compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null
}

if installed; then
    exit
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "==> PostgreSQL from the system's packages"
    apt-get update --quiet=2 || true
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends postgresql >/dev/null || true
fi
installed || echo "Some tests need PostgreSQL; on Debian and Ubuntu: sudo apt-get install postgresql" >&2
