#!/usr/bin/env bash
# Run tests as on a machine with Docker but without memcached and RabbitMQ: harness/servers/ then starts containers
# with testcontainers. The arguments are those of pytest; without any, the tests of the servers run.
#
#   containers.sh [--stand-ins] [PYTEST ARGUMENT...]
#
# Needs root, and the environment that `make fast` creates. The exit code is that of pytest.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
# shellcheck source=tests/compose/engine.sh
. "$here/engine.sh"

pull=""
if [ "${1:-}" = --stand-ins ]; then
    pull=--all
    shift
fi
[ $# -gt 0 ] || set -- tests/services -v
if [ ! -x "$root/.venv/bin/python" ]; then
    echo "there is no environment .venv: run 'make fast' first" >&2
    exit 1
fi

trap engine_end EXIT
trap 'exit 130' INT TERM
engine
# shellcheck disable=SC2086 # empty is no argument
"$here/stand_ins.sh" $pull

# Hide the servers in a mount namespace of this run: a file that can't be executed is mounted over each program. A
# changed PATH is not enough, because the servers are also searched for in Debian's folders.
cd "$root"
before="$(docker ps --quiet --all | sort)"
code=0
# shellcheck disable=SC2016 # the inner shell expands them
unshare --mount --propagation private bash -euo pipefail -c '
    IFS=: read -r -a folders <<<"$PATH:/usr/local/sbin:/usr/sbin:/usr/lib/rabbitmq/bin"
    for program in memcached rabbitmq-server epmd; do
        for folder in "${folders[@]}"; do
            if [ -x "$folder/$program" ]; then mount --bind /dev/null "$folder/$program"; fi
        done
    done
    exec "$@"
' - .venv/bin/python -m pytest -p no:cacheprovider "$@" || code=$?
if [ "$(docker ps --quiet --all | sort)" != "$before" ]; then
    echo "FAILED: containers are left over:" >&2
    docker ps --all >&2
    [ "$code" != 0 ] || code=1
fi
exit "$code"
