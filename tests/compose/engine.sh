#!/usr/bin/env bash
# Sourced by the scripts beside it: `engine` makes sure that a Docker engine answers, and `engine_end`, at the end of
# the script, removes what it started. An engine that answers already (DOCKER_HOST, or the usual socket) is used and
# left alone. Otherwise a private one is started, as root: its socket, its images and its pid are in one new folder.
# ENGINE_ARGS are more arguments for it, e.g. --storage-driver=vfs.

ENGINE_START_TIMEOUT_S=60
ENGINE_STOP_TIMEOUT_S=60

engine_folder=""
engine_pid=""
engine_forwarded=""

# require PACKAGE...: the programs of Debian's packages of the same or a similar name.
require() {
    local absent="" package
    for package in "$@"; do
        command -v "${package/#docker.io/docker}" >/dev/null || absent+=" $package"
    done
    if [ -n "$absent" ]; then
        echo "needs (Debian, Ubuntu): sudo apt-get install --no-install-recommends$absent" >&2
        exit 1
    fi
}

engine() {
    require docker.io
    if timeout 20 docker info >/dev/null 2>&1; then
        echo "engine: the one that runs, $(docker version --format '{{.Server.Version}}')"
        return
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "no Docker engine answers; start one, or run this as root to have a private one" >&2
        exit 1
    fi
    PATH="$PATH:/usr/sbin:/sbin" # a root without a login shell may lack them, and the engine calls iptables
    require docker.io dockerd iptables
    engine_folder="$(mktemp -d /tmp/nodestate-engine.XXXXXX)"
    # The engine changes the machine's packet filter and routing, and never changes them back.
    iptables-save >"$engine_folder/iptables"
    engine_forwarded="$(cat /proc/sys/net/ipv4/ip_forward)"
    # overlay2 where the file system can, vfs (full copies, GBs of them) where it can't: the engine sees to that itself.
    # In a session of its own: Ctrl-C is for the script, which then ends the engine in order.
    # shellcheck disable=SC2086 # several arguments, or none
    setsid dockerd --host "unix://$engine_folder/docker.sock" --data-root "$engine_folder/data" \
        --exec-root "$engine_folder/exec" --pidfile "$engine_folder/pid" ${ENGINE_ARGS:-} >"$engine_folder/log" 2>&1 &
    engine_pid=$!
    export DOCKER_HOST="unix://$engine_folder/docker.sock"
    local deadline=$((SECONDS + ENGINE_START_TIMEOUT_S))
    until docker info >/dev/null 2>&1; do
        if ! kill -0 "$engine_pid" 2>/dev/null || [ "$SECONDS" -ge "$deadline" ]; then
            echo "the private engine does not start:" >&2
            tail -20 "$engine_folder/log" >&2
            exit 1
        fi
        sleep 0.2
    done
    echo "engine: a private one, $(docker info --format '{{.ServerVersion}}, {{.Driver}}')"
}

engine_end() {
    [ -n "$engine_folder" ] || return 0
    if [ -n "$engine_pid" ] && kill "$engine_pid" 2>/dev/null; then
        # It stops its containers and its containerd, and then itself.
        local deadline=$((SECONDS + ENGINE_STOP_TIMEOUT_S))
        while kill -0 "$engine_pid" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.2; done
        kill -KILL "$engine_pid" 2>/dev/null || true
        wait "$engine_pid" 2>/dev/null || true
    fi
    ip link delete docker0 2>/dev/null || true
    iptables-restore <"$engine_folder/iptables" || true
    [ -z "$engine_forwarded" ] || echo "$engine_forwarded" >/proc/sys/net/ipv4/ip_forward
    # What is still mounted there would keep the folder, or worse, be emptied with it.
    findmnt --raw --noheadings --output TARGET | { grep "^$engine_folder/" || true; } | sort -r | xargs -r umount
    rm -rf --one-file-system "$engine_folder"
}
