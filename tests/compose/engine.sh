#!/usr/bin/env bash
# Sourced by the other scripts: `engine` provides a Docker engine, and `engine_end`, called at the end of the script,
# removes an engine that `engine` started. An engine that answers already (DOCKER_HOST, or the usual socket) is used and
# not removed. Otherwise a private engine is started, as root, with its socket, images and pid in one new folder.
# ENGINE_ARGS are more arguments for it, for example --storage-driver=vfs.

ENGINE_START_TIMEOUT_S=60
ENGINE_STOP_TIMEOUT_S=60

engine_folder=""
engine_pid=""
engine_forwarded=""

# require PACKAGE...: fail unless the programs of these Debian packages are installed.
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
    PATH="$PATH:/usr/sbin:/sbin" # without a login shell, root may lack these folders; the engine calls iptables
    require docker.io dockerd iptables
    engine_folder="$(mktemp -d /tmp/nodestate-engine.XXXXXX)"
    # The engine changes the packet filter and routing of the machine and does not restore them.
    iptables-save >"$engine_folder/iptables"
    engine_forwarded="$(cat /proc/sys/net/ipv4/ip_forward)"
    # The engine chooses overlay2 if the file system supports it, else vfs, which copies gigabytes.
    # It runs in a session of its own, so that Ctrl-C reaches only the script, which then stops the engine.
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
        # The engine stops its containers and its containerd, and then ends.
        local deadline=$((SECONDS + ENGINE_STOP_TIMEOUT_S))
        while kill -0 "$engine_pid" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.2; done
        kill -KILL "$engine_pid" 2>/dev/null || true
        wait "$engine_pid" 2>/dev/null || true
    fi
    ip link delete docker0 2>/dev/null || true
    iptables-restore <"$engine_folder/iptables" || true
    [ -z "$engine_forwarded" ] || echo "$engine_forwarded" >/proc/sys/net/ipv4/ip_forward
    # Unmount everything in the folder first: otherwise rm would fail, or would empty the mounted file systems.
    findmnt --raw --noheadings --output TARGET | { grep "^$engine_folder/" || true; } | sort -r | xargs -r umount
    rm -rf --one-file-system "$engine_folder"
}
