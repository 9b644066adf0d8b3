#!/usr/bin/env bash
# Make sure that the tests can start real servers: memcached, RabbitMQ, MariaDB, PostgreSQL and Redis, each as a program
# of this machine; memcached and RabbitMQ may be Docker containers instead. Programs that are missing are installed if
# this script runs as root on Debian or Ubuntu. So is openssl, which makes their certificates. With --peers the servers of `python -m bench peers` are installed as well,
# as far as the distribution has them: their tests are skipped without them. So are the tests of a pooler without
# PgBouncer, and those of the alert rules without promtool, which are installed with the others.
# Exit 0: the tests can start them. 1: they cannot, and the last lines say what to do. The tests start the servers.
set -euo pipefail

PATH="$PATH:/usr/local/sbin:/usr/sbin:/usr/lib/rabbitmq/bin"

add_postgres_to_path() {
    for folder in /usr/lib/postgresql/*/bin; do
        PATH="$PATH:$folder"
    done
}
add_postgres_to_path

# Print the Debian packages of those of the given program:package pairs whose program is not installed.
missing() {
    for program in "$@"; do
        command -v "${program%%:*}" >/dev/null || printf '%s ' "${program#*:}"
    done
}

# Install the given packages. Debian starts a daemon as soon as it is installed: the daemons would hold memory and ports,
# and if RabbitMQ fails to start, the whole installation fails. A policy-rc.d that exits with 101 forbids the start.
install() {
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "$@"
    hash -r
    add_postgres_to_path
}

may_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null
}

if [ "${1:-}" = --peers ] && may_install; then
    for peer in $(missing nats-server:nats-server etcd:etcd-server); do
        install "$peer" || echo "Not installed: $peer - the tests of this peer are skipped."
    done
fi

if may_install && [ -n "$(missing pgbouncer:pgbouncer)" ]; then
    install pgbouncer || echo "Not installed: pgbouncer - the tests of a pooler are skipped."
fi

if may_install && [ -n "$(missing promtool:prometheus)" ]; then
    install prometheus || echo "Not installed: prometheus - the tests of the alert rules are skipped."
fi

if may_install && [ -n "$(missing docker-compose:docker-compose)" ] && ! docker compose version >/dev/null 2>&1; then
    install docker-compose || echo "Not installed: docker-compose - the tests of docker-compose.yml are skipped."
fi

containers="memcached:memcached rabbitmq-server:rabbitmq-server"
programs="openssl:openssl mariadbd:mariadb-server postgres:postgresql redis-server:redis-server"
wanted="$containers $programs"
# shellcheck disable=SC2086 # one word each
if command -v docker >/dev/null && timeout 10 docker info >/dev/null 2>&1; then
    absent="$(missing $containers)"
    [ -z "$absent" ] || echo "Not installed: ${absent}- the tests start containers instead."
    wanted="$programs"
fi

# shellcheck disable=SC2086 # ditto
absent="$(missing $wanted)"
if [ -n "$absent" ] && may_install; then
    echo "Not installed: ${absent}- installing."
    # shellcheck disable=SC2086 # ditto
    install $absent
    # shellcheck disable=SC2086 # ditto
    absent="$(missing $wanted)"
fi
if [ -z "$absent" ]; then
    exit 0
fi

cat >&2 <<EOF
The tests against real servers need: ${absent}
Either install them (Debian, Ubuntu):  sudo apt-get install --no-install-recommends ${absent}
or, for memcached and RabbitMQ, start Docker: the tests then start containers.
Without them: make check
EOF
exit 1
