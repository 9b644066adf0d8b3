#!/usr/bin/env bash
# Build stand-ins from Debian's packages for the images that the Dockerfile, docker-compose.yml and harness/servers/
# name, in the engine of DOCKER_HOST: for machines that can't pull images. A stand-in has only the programs, users,
# ports and variables of the real image that our files use.
#
#   stand_ins.sh           build the images that are missing and can't be pulled
#   stand_ins.sh --all     build all images, and pull none
#
# Needs root, debootstrap and docker. Exit code 0 if the engine has all images.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
PATH="$PATH:/usr/sbin:/sbin" # debootstrap is there; not every PATH has it

PULL_TIMEOUT_S=300

# The names come from the files that use them, so that a new tag gets a new stand-in.
python_image="$(sed -n 's/^FROM \(python:[^ ]*\).*/\1/p' "$root/Dockerfile" | sort -u)"
memcached_image="$(sed -n 's/^ *image: \(memcached:.*\)/\1/p' "$root/docker-compose.yml")"
rabbit_image="$(sed -n 's/^ *image: \(rabbitmq:.*\)/\1/p' "$root/docker-compose.yml")"
base_image="nodestate-stand-in-base:bookworm"

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

have() { docker image inspect "$1" >/dev/null 2>&1; }

# Build the bare Debian image that all stand-ins use.
base() {
    have "$base_image" && return
    debootstrap --variant=minbase bookworm "$folder/root" >"$folder/debootstrap.log" 2>&1 ||
        { tail -20 "$folder/debootstrap.log" >&2; return 1; }
    # Debian starts a service when its package is installed; this prevents it while an image is built.
    printf '#!/bin/sh\nexit 101\n' >"$folder/root/usr/sbin/policy-rc.d"
    chmod 755 "$folder/root/usr/sbin/policy-rc.d"
    rm -rf "$folder"/root/var/cache/apt/archives/*.deb "$folder"/root/var/lib/apt/lists/*
    tar --numeric-owner -C "$folder/root" -c . | docker import - "$base_image" >/dev/null
    rm -rf "$folder/root"
}

# build NAME FOLDER: build the Dockerfile in the folder. The classic builder needs no plugin and no frontend image.
build() {
    DOCKER_BUILDKIT=0 docker build --quiet --tag "$1" "$2" >"$folder/build.log" 2>&1 ||
        { tail -20 "$folder/build.log" >&2; return 1; }
}

python_stand_in() {
    mkdir "$folder/python"
    # The image trusts the certificates of this machine: behind a proxy that opens TLS, pip would fail otherwise.
    cp /etc/ssl/certs/ca-certificates.crt "$folder/python/"
    cat >"$folder/python/Dockerfile" <<'DOCKERFILE'
FROM nodestate-stand-in-base:bookworm
# Debian marks its Python as EXTERNALLY-MANAGED, so that pip refuses to install; the real image does not.
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends ca-certificates python3 python3-pip python3-venv \
 && rm -rf /var/lib/apt/lists/* /usr/lib/python3*/EXTERNALLY-MANAGED \
 && ln -s /usr/bin/python3 /usr/local/bin/python \
 && ln -s /usr/bin/python3 /usr/local/bin/python3
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt LANG=C.UTF-8
CMD ["python3"]
DOCKERFILE
    build "$python_image" "$folder/python"
}

memcached_stand_in() {
    mkdir "$folder/memcached"
    cat >"$folder/memcached/Dockerfile" <<'DOCKERFILE'
FROM nodestate-stand-in-base:bookworm
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends memcached && rm -rf /var/lib/apt/lists/*
USER memcache
EXPOSE 11211
CMD ["memcached"]
DOCKERFILE
    build "$memcached_image" "$folder/memcached"
}

rabbit_stand_in() {
    mkdir "$folder/rabbitmq"
    # RabbitMQ reads RABBITMQ_DEFAULT_USER and _PASS. The real image also lets "guest" log in from the network.
    cat >"$folder/rabbitmq/10-defaults.conf" <<'CONF'
loopback_users.guest = false
log.console = true
CONF
    # A new volume on the data folder belongs to root. Debian's wrapper is not used: it logs into files, and a signal to
    # it does not reach the server.
    cat >"$folder/rabbitmq/entrypoint.sh" <<'ENTRYPOINT'
#!/bin/bash
set -e
if [ "$(id -u)" = 0 ] && [ "$1" = rabbitmq-server ]; then
    chown -R rabbitmq:rabbitmq /var/lib/rabbitmq
    exec setpriv --reuid rabbitmq --regid rabbitmq --init-groups "$0" "$@"
fi
PATH="/usr/lib/rabbitmq/bin:$PATH" exec "$@"
ENTRYPOINT
    chmod 755 "$folder/rabbitmq/entrypoint.sh"
    cat >"$folder/rabbitmq/Dockerfile" <<'DOCKERFILE'
FROM nodestate-stand-in-base:bookworm
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends rabbitmq-server && rm -rf /var/lib/apt/lists/*
COPY 10-defaults.conf /etc/rabbitmq/conf.d/10-defaults.conf
COPY entrypoint.sh /usr/local/bin/docker-entrypoint.sh
ENV HOME=/var/lib/rabbitmq LANG=C.UTF-8 RABBITMQ_LOGS=-
VOLUME /var/lib/rabbitmq
EXPOSE 5672
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["rabbitmq-server"]
DOCKERFILE
    build "$rabbit_image" "$folder/rabbitmq"
}

# provide NAME FUNCTION: use the image if it exists, else pull it, else build it with the function.
provide() {
    local started="$SECONDS"
    if [ "$all" = no ]; then
        if have "$1"; then
            echo "image $1: exists"
            return
        elif timeout "$PULL_TIMEOUT_S" docker pull --quiet "$1" >/dev/null 2>&1; then
            echo "image $1: pulled in $((SECONDS - started)) s"
            return
        fi
    fi
    base
    "$2"
    local size_mb="$(($(docker image inspect -f '{{.Size}}' "$1") / 1000000))"
    echo "image $1: a stand-in, built in $((SECONDS - started)) s, $size_mb MB"
}

case "${1:-}" in
    --all) all=yes ;;
    "") all=no ;;
    *) echo "usage: stand_ins.sh [--all]" >&2; exit 2 ;;
esac
provide "$python_image" python_stand_in
provide "$memcached_image" memcached_stand_in
provide "$rabbit_image" rabbit_stand_in
