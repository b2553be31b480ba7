#!/bin/sh
# Installs the Debian package of this image on the node whose root is at $HOST, and stays, so that the DaemonSet is whole.
# Repeating it changes nothing; containerd is restarted once, where its configuration has changed.
#
#     install.sh            install, then wait
#     install.sh once       install
#     install.sh remove     take it all away again
set -eu
host=${HOST:-/host}
package=$(ls /kata-python_*_amd64.deb)
configuration=$host/etc/containerd

# A program of the node in the node's own root; its services are told by their manager.
node() { chroot "$host" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
    DEBIAN_FRONTEND=noninteractive ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
    ${PIP_CERT:+PIP_CERT="$PIP_CERT"} "$@"; }

state() { cat "$configuration/config.toml" "$configuration"/conf.d/* 2>/dev/null | md5sum; }

restart() {
    if [ -d "$host/run/systemd/system" ]; then
        echo "install: restarting containerd"
        node systemctl restart containerd
    else
        echo "install: restart containerd: its configuration has changed"
    fi
}

change() {
    before=$(state)
    "$@"
    if [ "$(state)" != "$before" ]; then restart; else echo "install: containerd's configuration is as it was"; fi
}

add() {
    name=$(basename "$package")
    cp "$package" "$host/var/cache/$name"
    node apt-get -q update
    node apt-get -q install --yes --no-install-recommends "/var/cache/$name"
    rm -f "$host/var/cache/$name"
    node kata-runtime install
}

remove() { node apt-get -q purge --yes kata-python; }

case ${1:-} in
once) change add ;;
remove) change remove ;;
"") change add ;;
*)
    echo "install.sh [once|remove]" >&2
    exit 2
    ;;
esac
if [ -z "${1:-}" ]; then
    echo "install: done, waiting"
    trap 'exit 0' TERM INT
    while :; do sleep 3600 & wait $!; done
fi
