#!/usr/bin/env bash
# Follow docs/how-to/run-in-production.md on a fresh Debian under its own systemd, and check the cell that results.
# README.md in this folder says what is checked, and what stands in for a machine.
#
#   run.sh            exit code 0 if all claims hold; everything that was started is removed again
#   run.sh --keep     keep the folder of the Debian if a claim fails
#
# Needs root and about 2 GB. The packages come from the mirror of Debian and the package index of this machine.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
BOOT_TIMEOUT_S=120
STOP_TIMEOUT_S=60

fail() {
    echo "FAILED: $*" >&2
    exit 1
}
say() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

keep=no
case "${1:-}" in
    --keep) keep=yes ;;
    "") ;;
    *) sed -n 's/^#   run/usage: run/p' "$0" >&2; exit 2 ;;
esac
[ "$(id -u)" = 0 ] || fail "only root can start a Debian with systemd as its first process"
absent=""
for program in debootstrap:debootstrap systemd-nspawn:systemd-container slirp4netns:slirp4netns python3:python3; do
    command -v "${program%%:*}" >/dev/null || absent+=" ${program#*:}"
done
[ -z "$absent" ] || fail "needs: apt-get install --no-install-recommends$absent"
[ -c /dev/net/tun ] || fail "there is no /dev/net/tun, which slirp4netns needs"

folder="$(mktemp -d /var/tmp/nodestate-production.XXXXXX)"
box="$folder/debian"
copy="$box/root/nodestate" # the repository, as it is at the start
page="$copy/docs/how-to/run-in-production.md"
nspawn=""
slirp=""

end() {
    local code=$?
    trap - EXIT
    [ -z "$slirp" ] || kill "$slirp" 2>/dev/null || true
    # nspawn asks the systemd of the Debian to halt, and ends after it.
    if [ -n "$nspawn" ] && kill "$nspawn" 2>/dev/null; then
        local deadline=$((SECONDS + STOP_TIMEOUT_S))
        while kill -0 "$nspawn" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.2; done
        kill -KILL "$nspawn" 2>/dev/null || true
    fi
    if [ "$keep" = yes ] && [ "$code" != 0 ]; then
        echo "kept: $box" >&2
    else
        rm -rf --one-file-system "$folder"
    fi
    exit "$code"
}
trap end EXIT
trap 'exit 130' INT TERM

# The distributions of Debian that this machine installs from: a line `URI RELEASE COMPONENT` for each.
# shellcheck disable=SC2016 # apt-get expands them
sources() {
    apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        grep -E " $codename(-updates|-security)? main$" | sort -u
}

say "a fresh Debian"
codename="$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)"
mirror="$(sources | sed -n "s/ $codename main$//p" | head -n 1)"
[ -n "$mirror" ] || fail "the sources of apt name no Debian of this machine's release, '$codename'"
debootstrap --variant=minbase --include=systemd-sysv,dbus,ca-certificates "$codename" "$box" "$mirror" \
    >"$folder/debootstrap.log" 2>&1 || { tail -20 "$folder/debootstrap.log" >&2; fail "debootstrap"; }
sources | sed 's/^/deb /' >"$box/etc/apt/sources.list"
apt-config dump | grep -iE '^Acquire::https?::Proxy ' >"$box/etc/apt/apt.conf.d/proxy" || true
# A machine behind a proxy that opens TLS trusts the proxy's certificate.
cp /etc/ssl/certs/ca-certificates.crt "$box/etc/ssl/certs/ca-certificates.crt"
echo 'nameserver 10.0.2.3' >"$box/etc/resolv.conf" # the name server of slirp4netns
echo production >"$box/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 production\n' >"$box/etc/hosts" # Debian's installer writes them
# The settings of this machine's pip, with read-only mounts of the folders that they name.
mapfile -t mounts < <("${PYTHON:-python3}" "$here/pip_settings.py" "$box/etc/pip.conf")
mkdir "$copy"
git -C "$root" ls-files -z --cached --others --exclude-standard |
    tar --directory="$root" --null --files-from=- --create | tar --directory="$copy" --extract
echo "$(du --summarize --block-size=MB "$box" | cut -f 1) from $mirror"

say "systemd as the first process"
setsid systemd-nspawn --quiet --directory="$box" --machine="nodestate-production-$$" --boot --private-network \
    --resolv-conf=off --register=no --keep-unit --console=pipe "${mounts[@]}" >"$folder/nspawn.log" 2>&1 </dev/null &
nspawn=$!
first=""
deadline=$((SECONDS + BOOT_TIMEOUT_S))
until first="$(cat "/proc/$nspawn/task/$nspawn/children" 2>/dev/null)" && first="${first%% *}" && [ -n "$first" ]; do
    [ "$SECONDS" -lt "$deadline" ] && kill -0 "$nspawn" || { cat "$folder/nspawn.log" >&2; fail "systemd-nspawn"; }
    sleep 0.2
done
in_box() {
    nsenter --target "$first" --mount --uts --ipc --net --pid --cgroup --root --wd \
        env --ignore-environment --chdir=/root/nodestate HOME=/root TERM=dumb LANG=C.UTF-8 \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}
until in_box systemctl is-system-running --wait >"$folder/state" 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || fail "systemd does not start: $(cat "$folder/state")"
    sleep 0.2
done
mkfifo "$folder/ready"
setsid slirp4netns --configure --mtu=65520 --disable-host-loopback --ready-fd=9 "$first" host0 \
    9<>"$folder/ready" >"$folder/slirp.log" 2>&1 </dev/null &
slirp=$!
read -r -N 1 -t "$BOOT_TIMEOUT_S" <>"$folder/ready" || { cat "$folder/slirp.log" >&2; fail "slirp4netns"; }
in_box systemctl --version | head -n 1

# follow NUMBER...: run all blocks of commands under these headings of the page, in one shell, as they are written.
follow() {
    local number
    for number in "$@"; do
        say "the page: $(sed -n "s/^## \($number\. .*\)/\1/p" "$page")"
        python3 "$copy/tests/production/page.py" "$page" "$number" >"$box/root/commands.sh"
        if ! in_box bash -euxo pipefail /root/commands.sh >"$folder/commands.log" 2>&1; then
            tail -n 60 "$folder/commands.log" >&2
            in_box journalctl --no-pager --lines 60 --unit 'nodestate-*' >&2 || true
            fail "a command of the page"
        fi
    done
}
check() {
    say "check: $1"
    in_box python3 tests/production/checks.py "$1" || {
        in_box journalctl --no-pager --lines 60 --unit 'nodestate-*' >&2 || true
        fail "check $1"
    }
}

follow 1 2 3 4 5 6 7 8
check healthy
check killed
check frozen
check stopped
follow 9 10 11
check ended
say "passed"
