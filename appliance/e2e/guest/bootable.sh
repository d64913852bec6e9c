#!/bin/sh
# Makes a disk that firmware boots: a partition table, a boot loader, and the guest's root with what image.sh put into it, the
# agent, and Debian packages that are not installed: the guest does that, without a network. Usage: bootable.sh BASE DISK BYTES AGENT
# PACKAGES SOURCES. BASE is what image.sh made; PACKAGES come with what they need into /var/local/packages, SOURCES alone into
# /var/local/sources. They are kept in BASE. Needs root, extlinux, and the first time a Debian mirror.
set -eu
base=$1 disk=$2 bytes=$3 agent=$4 packages=$5 sources=$6
begin=2048 # sectors: 1 MiB
loop= work=$(mktemp -d)
root=$work/root
undo() {
	for at in "$root/dev" "$root/proc" "$root" "$work/base"; do
		if mountpoint -q "$at"; then umount "$at"; fi
	done
	if [ -n "$loop" ]; then losetup --detach "$loop"; fi
	rmdir "$work/base" "$root" "$work"
}
trap undo EXIT
mkdir "$work/base" "$root"

rm -f "$disk"
truncate -s "$bytes" "$disk"
printf 'label: dos\nstart=%d, type=83, bootable\n' $begin | sfdisk -q "$disk"
dd if=/usr/lib/EXTLINUX/mbr.bin of="$disk" conv=notrunc status=none
loop=$(losetup --find --show --offset $((begin * 512)) "$disk")
mkfs.ext4 -q -F -L root -O ^64bit "$loop" # the boot loader reads no other
mount "$loop" "$root"
mount -o ro,loop "$base/root.img" "$work/base"
cp -a "$work/base/." "$root"
install -m 0755 "$agent" "$root/payload/agent"
# The agent lies on the root, and nothing else is to be mounted.
echo '/dev/vda1 / ext4 defaults,noatime 0 1' >"$root/etc/fstab"

mkdir -p "$root/boot/extlinux" "$root/var/local/packages" "$root/var/local/sources"
extlinux --install "$root/boot/extlinux" 2>/dev/null
kernel=$(basename "$root"/boot/vmlinuz-*) initrd=$(basename "$root"/boot/initrd.img-*)
cat >"$root/boot/extlinux/extlinux.conf" <<-END
	default linux
	prompt 0
	label linux
	kernel /boot/$kernel
	append initrd=/boot/$initrd root=/dev/vda1 rw console=ttyS0 quiet loglevel=5 mitigations=off panic=1 systemd.show_status=0 net.ifnames=0
END

fetch() { # fetch KIND COMMAND…: what the command leaves in apt's archive, kept
	kind=$1 kept=$base/$(echo "$*" | sha256sum | cut -c 1-12)
	shift
	if [ ! -d "$kept" ]; then
		cp /etc/resolv.conf "$root/etc/resolv.conf"
		mount --bind /dev "$root/dev"
		mount -t proc proc "$root/proc"
		chroot "$root" apt-get update -qq
		chroot "$root" sh -euc "cd /var/cache/apt/archives; $*" >>"$base/debootstrap.log" 2>&1
		umount "$root/dev" "$root/proc"
		rm -rf "$kept.new"
		mkdir "$kept.new"
		cp "$root"/var/cache/apt/archives/*.deb "$kept.new"
		rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
		mv "$kept.new" "$kept"
	fi
	cp "$kept"/*.deb "$root/var/local/$kind"
}
if [ -n "$packages" ]; then fetch packages apt-get install -y -qq --download-only --no-install-recommends $packages; fi
if [ -n "$sources" ]; then fetch sources apt-get download -qq $sources; fi
