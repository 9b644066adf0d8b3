#!/usr/bin/env bash
# Prove docker-compose.yml on a real engine: all services become healthy, both designs show what the agents report,
# `nodestate check` finds no difference, and a killed consumer and a new agent container take up where the last ended.
#
#   run.sh                 images that can't be pulled are replaced by stand-ins (see stand_ins.sh)
#   run.sh --stand-ins     pull none: all images are stand-ins
#
# Exit 0: all of it is so. Everything that was started is removed again.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
# shellcheck source=tests/compose/engine.sh
. "$here/engine.sh"

HEALTHY_TIMEOUT_S=300 # two cores that build, start six containers and check their health take their time
WHOLE_TIMEOUT_S=120   # a consumer that began with nothing listens for 25 s before it vouches for what it knows
NODES_COUNT=51        # agent-simulated has 50, agent-host is the last
SERVICES="memcached rabbitmq consumer agent-host agent-simulated view"

require docker.io docker-compose python3
project="nodestate-test-$$"
scratch="$(mktemp -d)"

# Of another folder's project nothing is touched: the name has this process's number.
compose() { docker-compose --project-name "$project" --file "$root/docker-compose.yml" "$@"; }
nodestate() { compose exec -T view nodestate "$@"; }
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

# whole DESIGN [NODE INCARNATION GENERATION]: wait for a fresh view of all nodes, none incomplete, and of that node
# something newer; print what it says. The test is Python's, on the JSON that the command prints for programs.
whole() {
    local deadline=$((SECONDS + WHOLE_TIMEOUT_S))
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
        [ "$SECONDS" -lt "$deadline" ] || { cat "$scratch/why" >&2; fail "no whole view of $1 within $WHOLE_TIMEOUT_S s"; }
        sleep 1
    done
    cat "$scratch/says"
}

# version NODE: its incarnation and generation in the last view that `whole` waited for.
version() {
    python3 -c 'import json, sys; n = json.load(open(sys.argv[1]))["nodes"][sys.argv[2]]; print(n["incarnation"], n["generation"])' \
        "$scratch/view.json" "$1"
}

both_designs() {
    whole journal "$@"
    whole snapshot "$@"
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
compose build --quiet consumer >"$scratch/build" 2>&1 || { tail -40 "$scratch/build" >&2; fail "the image does not build"; }
echo "image nodestate:local: $(($(docker image inspect --format '{{.Size}}' nodestate:local) / 1000000)) MB"
say "built"
compose up --detach >"$scratch/up" 2>&1 || { tail -40 "$scratch/up" >&2; fail "docker-compose up"; }
healthy
compose ps
say "all healthy"

both_designs
clean
nodestate doctor || fail "doctor has a FAIL"
# As the file's head says, and from a container of its own.
compose run --rm -T view view --design journal --max-age 5 --on-stale refuse --limit 3 2>"$scratch/why" ||
    { cat "$scratch/why" >&2; fail "docker-compose run view"; }

say "the consumer is killed"
read -r incarnation generation <<<"$(version compute-0001)"
restarts="$(container consumer '{{.RestartCount}}')"
# `docker kill` would count as the user's wish, after which nothing restarts. And a container's first process is safe
# from its own kin. So the signal comes from a container that sees the engine's whole machine.
docker run --rm --pid host --user 0 --entrypoint sh nodestate:local -c "kill -KILL $(container consumer '{{.State.Pid}}')"
killed="$SECONDS"
until [ "$(container consumer '{{.RestartCount}}')" -gt "$restarts" ] && [ "$(container consumer '{{.State.Running}}')" = true ]; do
    [ $((SECONDS - killed)) -lt "$WHOLE_TIMEOUT_S" ] || fail "the consumer was not started again"
    sleep 0.2
done
echo "started again within $((SECONDS - killed)) s"
both_designs compute-0001 "$incarnation" "$generation"
echo "both designs whole and newer than before within $((SECONDS - killed)) s of the kill"
nodestate top --once --json | python3 -c '
import json, sys
for design, look in json.load(sys.stdin)["designs"].items():
    terms = sorted({partition["term"] for partition in look["partitions"]})
    print(f"{design}: terms {terms}")
    assert terms == [2], "a new owner has the next term"
'
clean

say "an agent gets a new container"
read -r incarnation generation <<<"$(version compute-host)"
compose up --detach --force-recreate --no-deps agent-host >"$scratch/up" 2>&1 || { cat "$scratch/up" >&2; fail "recreate"; }
# A new life, not only a later event of the last one: no generation may count.
both_designs compute-host "$incarnation" 999999999
clean
healthy
say "all healthy again"

stopping="$SECONDS"
compose stop --timeout 20 >/dev/null 2>&1
echo "stopped in $((SECONDS - stopping)) s"
for service in consumer agent-host agent-simulated view; do
    code="$(container "$service" '{{.State.ExitCode}}')"
    [ "$code" = 0 ] || fail "$service ended with $code on SIGTERM"
done
echo "consumer, agents and view ended with 0 on SIGTERM"
say "passed"
