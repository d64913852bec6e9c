#!/bin/sh
# Installs what tests and demo need beyond Go: Debian packages, and the Azure
# emulator below .tools. Does nothing when all is there.
set -eu
cd "$(dirname "$0")/../.."

AZURITE_VERSION=3.37.0 # the first that answers checksums of ranges; azblob v1.8.0 needs no flag with it
NODE_VERSION=22        # where the machine's own is older than Azurite runs on

missing=
need() { # need COMMAND PACKAGE
	command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need qemu-img qemu-utils
need qemu-storage-daemon qemu-system-common
need vhdiinfo libvhdi-utils
need fio fio
need sqlite3 sqlite3
need mkfs.ext4 e2fsprogs
need mkfs.xfs xfsprogs
need getfattr attr
need jq jq
need rsync rsync
need losetup util-linux
need qemu-system-x86_64 qemu-system-x86 # guesttest and powercut, with debootstrap
need debootstrap debootstrap
need extlinux extlinux # bootdrill's boot loader
need sfdisk fdisk
need xz xz-utils
need gcc gcc # the race detector
[ -e /usr/include/pthread.h ] || missing="$missing libc6-dev"
node_major() { "$1" --version 2>/dev/null | sed 's/^v\([0-9]*\).*/\1/'; }
if ! command -v npm >/dev/null 2>&1; then
	missing="$missing npm"
fi
if [ -n "$missing" ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "tools: run as root, or install:$missing" >&2
		exit 1
	fi
	echo "tools: installing$missing"
	apt-get update -qq
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

have=$(sed -n 's/.*"version": "\(.*\)".*/\1/p' .tools/node_modules/azurite/package.json 2>/dev/null | head -n 1)
if [ "$have" != "$AZURITE_VERSION" ]; then
	echo "tools: installing azurite $AZURITE_VERSION"
	mkdir -p .tools
	packages="azurite@$AZURITE_VERSION"
	major=$(node_major node)
	[ "${major:-0}" -ge 20 ] || packages="$packages node@$NODE_VERSION"
	npm install --prefix .tools --no-audit --no-fund --silent $packages >/dev/null
fi

# Prometheus's own judge of rules, without its server: 19 MB to fetch. A test goes without.
if [ ! -x .tools/promtool ] && ! command -v promtool >/dev/null 2>&1 && command -v apt-get >/dev/null 2>&1; then
	echo "tools: fetching promtool"
	mkdir -p .tools
	dir=$(mktemp -d)
	if (cd "$dir" && apt-get download -qq prometheus >/dev/null 2>&1 && dpkg -x prometheus_*.deb x); then
		cp "$dir/x/usr/bin/promtool" .tools/promtool
	else
		echo "tools: no promtool: its test is skipped" >&2
	fi
	rm -rf "$dir"
fi
