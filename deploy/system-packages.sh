#!/bin/sh
# Installs the system packages some tests use, where that is possible without asking.
# Each is optional: its tests skip, and say so, where it is missing.
set -u
missing=""
command -v chromium >/dev/null 2>&1 || missing="$missing chromium"
command -v promtool >/dev/null 2>&1 || missing="$missing prometheus"
command -v redis-server >/dev/null 2>&1 || missing="$missing redis-server"
command -v openssl >/dev/null 2>&1 || missing="$missing openssl"
command -v g++ >/dev/null 2>&1 || missing="$missing g++"
command -v qemu-x86_64 >/dev/null 2>&1 || missing="$missing qemu-user"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "Not installed, so their tests skip:$missing (as root: apt-get install$missing)"
    exit 0
fi
echo "Installing for the tests:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >/dev/null 2>&1
# Debian's packages would start servers on their usual ports: only the programs are wanted.
mkdir -p /etc/systemd/system
for service in prometheus redis-server; do
    ln -sf /dev/null "/etc/systemd/system/$service.service" 2>/dev/null
done
for package in $missing; do
    apt-get install -y -qq --no-install-recommends "$package" >/dev/null 2>&1 ||
        echo "$package could not be installed; its tests skip."
done
exit 0
