#!/bin/sh
# Installs the Debian packages that the lab, the tests and the demo need and this machine lacks, saying so in a line.
# Nothing that is installed here is started. Further needs may be given as pairs: install.sh COMMAND PACKAGE...
set -eu

missing=""
need() { # command, package
    if ! command -v "$1" >/dev/null 2>&1 && [ ! -x "/usr/sbin/$1" ] && [ ! -x "/sbin/$1" ]; then
        missing="$missing $2"
    fi
}

need ip iproute2
need nft nftables
need ping iputils-ping
need unshare util-linux
need mount mount
need sshd openssh-server
need ssh openssh-client
need curl curl
need python3 python3
need iperf3 iperf3
need wg wireguard-tools
need wireguard-go wireguard-go
need tinyproxy tinyproxy-bin
need microsocks microsocks
need haproxy haproxy
need miniupnpd miniupnpd-nftables
need upnpc miniupnpc
need natpmpc natpmpc
need cc gcc
while [ $# -ge 2 ]; do
    need "$1" "$2"
    shift 2
done
[ -e /usr/include/stdlib.h ] || missing="$missing libc6-dev"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "missing packages:$missing. Run this as root, or: sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "missing, and this is not a Debian system; install what corresponds to:$missing" >&2
    exit 1
fi
echo "installing Debian packages:$missing"

# An SSH or iperf3 server that was not there before must not start listening because of a test.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT INT TERM
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # one word per package
apt-get install -y -qq --no-install-recommends $missing >/dev/null
for service in openssh-server=ssh coturn=coturn tinc=tinc openvpn=openvpn haproxy=haproxy; do
    case "$missing " in
    *" ${service%=*} "*)
        if command -v systemctl >/dev/null 2>&1; then
            systemctl disable --quiet "${service#*=}.service" 2>/dev/null || true
            echo "${service%=*} is installed but neither started nor enabled"
        fi
        ;;
    esac
done
