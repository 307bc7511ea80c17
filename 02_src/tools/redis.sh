#!/usr/bin/env bash
# Installs redis-server, which the tests of shared limits start and kill, from the system's packages. Where that is not
# possible it says what to do and goes on: those tests are skipped then, but fail in continuous integration.
# usage: 02_src/tools/redis.sh
set -euo pipefail

installed() {
    command -v redis-server >/dev/null || command -v valkey-server >/dev/null
}

if installed; then
    exit
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "==> redis-server from the system's packages"
    apt-get update --quiet=2 || true
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends redis-server >/dev/null || true
fi
installed || echo "Some tests need redis-server; on Debian and Ubuntu: sudo apt-get install redis-server" >&2
