#!/usr/bin/env bash
# Make sure that the tests can have real servers: memcached and RabbitMQ, installed or through Docker; MariaDB and
# PostgreSQL, installed. What is missing is installed now, where that can be done.
# Exit 0: they can. 1: they cannot, and the last lines say what to do. Servers are started by the tests, not here.
set -euo pipefail

PATH="$PATH:/usr/local/sbin:/usr/sbin:/usr/lib/rabbitmq/bin"

for folder in /usr/lib/postgresql/*/bin; do
    PATH="$PATH:$folder"
done

# The packages to install, by their names on Debian and Ubuntu.
missing() {
    for program in "$@"; do
        command -v "${program%%:*}" >/dev/null || printf '%s ' "${program#*:}"
    done
}

wanted="memcached:memcached rabbitmq-server:rabbitmq-server mariadbd:mariadb-server postgres:postgresql"
if command -v docker >/dev/null && timeout 10 docker info >/dev/null 2>&1; then
    # shellcheck disable=SC2086 # one word each
    absent="$(missing ${wanted%%mariadbd*})"
    [ -z "$absent" ] || echo "Not installed: ${absent}- the tests take containers instead."
    wanted="mariadbd${wanted##*mariadbd}"
fi

# shellcheck disable=SC2086 # ditto
absent="$(missing $wanted)"
if [ -z "$absent" ]; then
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
    # shellcheck disable=SC2086 # ditto
    apt-get install -y -qq --no-install-recommends $absent
    hash -r
    for folder in /usr/lib/postgresql/*/bin; do
        PATH="$PATH:$folder"
    done
    # shellcheck disable=SC2086 # ditto
    absent="$(missing $wanted)"
    if [ -z "$absent" ]; then
        exit 0
    fi
fi

cat >&2 <<EOF
The tests against real servers need: ${absent}
Either install them (Debian, Ubuntu):  sudo apt-get install --no-install-recommends ${absent}
or, for memcached and RabbitMQ, start Docker; then the tests take containers.
Without them: make check
EOF
exit 1
