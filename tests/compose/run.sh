#!/usr/bin/env bash
# Test docker-compose.yml on a real engine: all services become healthy, both designs have the nodes of the agents,
# `nodestate check` finds no difference, and a killed consumer and an agent in a new container continue their work.
#
#   run.sh                 build stand-ins for images that can't be pulled (see stand_ins.sh)
#   run.sh --stand-ins     pull no image: all images are stand-ins
#
# Exit code 0 if all claims hold. Everything that was started is removed again.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
# shellcheck source=tests/compose/engine.sh
. "$here/engine.sh"

HEALTHY_TIMEOUT_S=300 # enough for two cores that build and start six containers
COMPLETE_TIMEOUT_S=120   # a consumer without stored state waits 25 s for reports of agents
NODES_COUNT=51        # agent-simulated has 50 nodes, agent-host one
SERVICES="memcached rabbitmq consumer agent-host agent-simulated serve"

require docker.io docker-compose python3
project="nodestate-test-$$"
scratch="$(mktemp -d)"

# The name has the number of this process, so that the project of another folder is not touched.
compose() { docker-compose --project-name "$project" --file "$root/docker-compose.yml" "$@"; }
nodestate() { compose exec -T serve nodestate "$@"; }
# container SERVICE FORMAT: what docker inspect says of the service's container.
container() { docker inspect --format "$2" "$(compose ps --quiet --all "$1")"; }
say() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

end() {
    local code=$?
    trap - EXIT
    if [ "$code" != 0 ]; then
        compose ps >&2 || true
        compose logs --no-color --tail 40 >&2 || true
    fi
    if ! compose down --volumes --timeout 20 >"$scratch/down" 2>&1 && [ "$code" = 0 ]; then
        cat "$scratch/down" >&2
        code=1
    fi
    engine_end
    rm -rf "$scratch"
    exit "$code"
}
trap end EXIT
trap 'exit 130' INT TERM

healthy() {
    local service state deadline=$((SECONDS + HEALTHY_TIMEOUT_S))
    for service in $SERVICES; do
        until state="$(container "$service" '{{.State.Health.Status}}' 2>/dev/null)" && [ "$state" = healthy ]; do
            [ "$SECONDS" -lt "$deadline" ] || fail "$service is ${state:-not there} after $HEALTHY_TIMEOUT_S s"
            sleep 1
        done
    done
}

# complete_view DESIGN [NODE INCARNATION GENERATION]: wait for a view of all nodes that is current and complete and has
# a newer version of NODE, then print it. A Python program checks the JSON of the command.
complete_view() {
    local deadline=$((SECONDS + COMPLETE_TIMEOUT_S))
    until nodestate view --design "$1" --max-age 5 --on-stale flag --json >"$scratch/view.json" 2>"$scratch/why" &&
        python3 - "$scratch/view.json" "$NODES_COUNT" "$@" >"$scratch/says" 2>>"$scratch/why" <<'PYTHON'; do
import json
import sys

path, count, design, *newer = sys.argv[1:]
with open(path, encoding="utf-8") as file:
    view = json.load(file)
nodes = view["nodes"]
simulated = [f"compute-{number:04}" for number in range(int(count) - 1)]
assert sorted(nodes) == sorted([*simulated, "compute-host"]), f"{len(nodes)} nodes: {sorted(nodes)}"
assert not view["stale"], f"stale: {view['stale']}"
assert not view["incomplete"], f"incomplete: {view['incomplete']}"
assert view["age"] <= 5, f"{view['age']} s old"
host = nodes["compute-host"]["state"]
assert host["status"] == "up", host
assert host["inventory"]["MEMORY_MB"]["total"] > 0, host
assert nodes["compute-0001"]["state"]["allocations"], nodes["compute-0001"]
if newer:
    node, incarnation, generation = newer[0], int(newer[1]), int(newer[2])
    found = nodes[node]
    assert (found["incarnation"], found["generation"]) > (incarnation, generation), f"{node}: {found}"
print(f"{design}: {len(nodes)} nodes, {view['age']:.1f} s old, none stale, none incomplete")
for node in ("compute-host", "compute-0001"):
    found = nodes[node]
    print(f"  {node}: version {found['incarnation']}.{found['generation']}, usage {found['state']['usage']}")
PYTHON
        [ "$SECONDS" -lt "$deadline" ] || {
            cat "$scratch/why" >&2
            fail "no complete view of $1 within $COMPLETE_TIMEOUT_S s"
        }
        sleep 1
    done
    cat "$scratch/says"
}

# version NODE: print the incarnation and generation of NODE in the last view that `complete_view` waited for.
version() {
    python3 -c '
import json, sys
node = json.load(open(sys.argv[1]))["nodes"][sys.argv[2]]
print(node["incarnation"], node["generation"])
' "$scratch/view.json" "$1"
}

both_designs() {
    complete_view journal "$@"
    complete_view snapshot "$@"
}

clean() {
    nodestate check --agents 3 || fail "check found differences"
    nodestate check --json >"$scratch/check.json" || fail "check found differences: $(cat "$scratch/check.json")"
}

case "${1:-}" in
    --stand-ins) pull=--all ;;
    "") pull="" ;;
    *) sed -n 's/^#   run/usage: run/p' "$0" >&2; exit 2 ;;
esac

say "engine and images"
engine
# shellcheck disable=SC2086 # empty is no argument
"$here/stand_ins.sh" $pull

say "docker-compose up"
compose build --quiet consumer >"$scratch/build" 2>&1 || {
    tail -40 "$scratch/build" >&2
    fail "the image does not build"
}
echo "image nodestate:local: $(($(docker image inspect --format '{{.Size}}' nodestate:local) / 1000000)) MB"
say "built"
compose up --detach >"$scratch/up" 2>&1 || { tail -40 "$scratch/up" >&2; fail "docker-compose up"; }
healthy
compose ps
say "all healthy"

both_designs
clean
nodestate doctor || fail "doctor has a FAIL"
# In a container of its own.
compose run --rm -T serve view --design journal --max-age 5 --on-stale refuse --limit 3 2>"$scratch/why" ||
    { cat "$scratch/why" >&2; fail "docker-compose run serve view"; }

say "the consumer is killed"
read -r incarnation generation <<<"$(version compute-0001)"
restarts="$(container consumer '{{.RestartCount}}')"
# The engine does not restart a container after `docker kill`, and no process of a container can kill its first
# process. So a container that sees all processes of the machine sends the signal.
docker run --rm --pid host --user 0 --entrypoint sh nodestate:local \
    -c "kill -KILL $(container consumer '{{.State.Pid}}')"
killed="$SECONDS"
until [ "$(container consumer '{{.RestartCount}}')" -gt "$restarts" ] &&
    [ "$(container consumer '{{.State.Running}}')" = true ]; do
    [ $((SECONDS - killed)) -lt "$COMPLETE_TIMEOUT_S" ] || fail "the consumer was not started again"
    sleep 0.2
done
echo "started again within $((SECONDS - killed)) s"
both_designs compute-0001 "$incarnation" "$generation"
echo "both designs complete and newer than before within $((SECONDS - killed)) s of the kill"
nodestate top --once --json | python3 -c '
import json, sys
for design, status in json.load(sys.stdin)["designs"].items():
    terms = sorted({partition["term"] for partition in status["partitions"]})
    print(f"{design}: terms {terms}")
    assert terms == [2], "a new owner has the next term"
'
clean

say "an agent gets a new container"
read -r incarnation generation <<<"$(version compute-host)"
compose up --detach --force-recreate --no-deps agent-host >"$scratch/up" 2>&1 || {
    cat "$scratch/up" >&2
    fail "docker-compose up --force-recreate agent-host"
}
# The agent must have a new incarnation, not only a later event: no generation of the old one is accepted.
both_designs compute-host "$incarnation" 999999999
clean
healthy
say "all healthy again"

stopping="$SECONDS"
compose stop --timeout 20 >/dev/null 2>&1
echo "stopped in $((SECONDS - stopping)) s"
for service in consumer agent-host agent-simulated serve; do
    code="$(container "$service" '{{.State.ExitCode}}')"
    [ "$code" = 0 ] || fail "$service ended with $code on SIGTERM"
done
echo "consumer, agents and serve ended with 0 on SIGTERM"
say "passed"
