#!/usr/bin/env bash
# Installs Prometheus and its promtool, which the tests of the metrics use, from the system's packages. Where that is
# not possible it says what to do and goes on: those tests are skipped then, but fail in continuous integration.
# usage: 02_src/tools/prometheus.sh
set -euo pipefail

installed() {
    command -v prometheus >/dev/null && command -v promtool >/dev/null
}

if installed; then
    exit
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "==> Prometheus from the system's packages"
    apt-get update --quiet=2 || true
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends prometheus >/dev/null || true
fi
installed || echo "Some tests need Prometheus with promtool; on Debian and Ubuntu: sudo apt-get install prometheus" >&2
