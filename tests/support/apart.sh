#!/bin/sh
# Runs a command where sandboxes, their traces and network namespaces are its own, so that two suites share a machine.
# Usage: unshare --mount --propagation slave apart.sh DIRECTORY COMMAND...
# DIRECTORY is made anew; what it stands in for is on disk, because writable layers do not like a tmpfs.
set -eu
directory=$1
shift
rm -rf "$directory"
# As systemd has it: what is mounted later reaches the namespaces that are made below this one.
mount --make-rshared /
for name in sandboxes traces; do
    mkdir -p "$directory/$name" "/var/lib/kata-containers/$name"
    mount --bind "$directory/$name" "/var/lib/kata-containers/$name"
done
for place in /run/kata /run/netns; do
    mkdir -p "$place"
    mount -t tmpfs -o mode=755 tmpfs "$place"
    mount --make-shared "$place"
done
exec "$@"
