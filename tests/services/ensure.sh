#!/usr/bin/env bash
# Make sure that the tests can have a real memcached and a real RabbitMQ: installed, through Docker, or installed now.
# Exit 0: they can. 1: they cannot, and the last lines say what to do. Servers are started by the tests, not here.
set -euo pipefail

PATH="$PATH:/usr/local/sbin:/usr/sbin:/usr/lib/rabbitmq/bin"

missing() {
    for program in memcached rabbitmq-server; do
        command -v "$program" >/dev/null || printf '%s ' "$program"
    done
}

absent="$(missing)"
if [ -z "$absent" ]; then
    exit 0
fi

if command -v docker >/dev/null && timeout 10 docker info >/dev/null 2>&1; then
    echo "Not installed: ${absent}- the tests take containers instead."
    exit 0
fi

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Not installed: ${absent}- installing."
    # Debian starts a daemon as soon as its package is there. These would only hold memory and ports, and RabbitMQ's
    # start can fail the whole installation; a policy that says no is Debian's own way to forbid it.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086 # program names are the packages' names on Debian and Ubuntu, one word each
    apt-get install -y -qq --no-install-recommends $absent
    hash -r
    absent="$(missing)"
    if [ -z "$absent" ]; then
        exit 0
    fi
fi

cat >&2 <<EOF
The tests against real servers need: ${absent}
Either install them (Debian, Ubuntu):  sudo apt-get install --no-install-recommends ${absent}
or start Docker, then the tests take containers.
Without them: make check
EOF
exit 1
