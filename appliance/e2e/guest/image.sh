#!/bin/sh
# Makes the guest's root disk: Debian 12, its cloud kernel, systemd and what boots and serves; nothing of ours but the unit
# that starts the agent. Usage: image.sh DIRECTORY [SUITE]: the kernel is SUITE's if that is given (bookworm-backports). Leaves
# root.img, vmlinuz and initrd.img there; needs root.
set -eu
dir=$1
suite=${2:-}
root=$dir/root
mkdir -p "$dir"
rm -rf "$root"

debootstrap --variant=minbase --include=systemd,systemd-sysv,udev,kmod,initramfs-tools,zstd,iproute2,procps,attr,qemu-utils \
	bookworm "$root" ${MIRROR:-} >"$dir/debootstrap.log"
# What only a person at the machine or a later upgrade would need.
printf 'path-exclude=/usr/share/doc/*\npath-exclude=/usr/share/locale/*\npath-exclude=/usr/share/man/*\n' >"$root/etc/dpkg/dpkg.cfg.d/lean"
mkdir -p "$root/etc/initramfs-tools"
cat >"$root/etc/initramfs-tools/modules" <<-END
	virtio_pci
	virtio_blk
	ext4
END
sed -i 's/^MODULES=.*/MODULES=list/' "$root/etc/initramfs-tools/initramfs.conf"
cp /etc/resolv.conf "$root/etc/resolv.conf"
if [ -n "$suite" ]; then
	echo "deb ${MIRROR:-http://deb.debian.org/debian} $suite main" >"$root/etc/apt/sources.list.d/$suite.list"
	chroot "$root" apt-get update -qq >>"$dir/debootstrap.log" 2>&1
fi
chroot "$root" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ${suite:+-t "$suite"} linux-image-cloud-amd64 \
	>>"$dir/debootstrap.log" 2>&1

echo guest >"$root/etc/hostname"
printf '127.0.0.1 localhost guest\n' >"$root/etc/hosts"
# On a busy host an emulated machine takes its time to find its disks.
printf '%s\n' '/dev/vda / ext4 defaults,noatime 0 0' 'LABEL=payload /payload ext4 ro,x-systemd.device-timeout=10min 0 0' \
	'LABEL=store /srv ext4 defaults,noatime,x-systemd.device-timeout=10min 0 0' >"$root/etc/fstab"
printf '[Match]\nName=e*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n' >"$root/etc/systemd/network/10-user.network"
mkdir -p "$root/payload" "$root/srv" "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=persistent\nSyncIntervalSec=1\nRateLimitIntervalSec=0\n' >"$root/etc/systemd/journald.conf.d/guest.conf"
printf 'SUBSYSTEM=="virtio-ports", ATTR{name}=="agent", TAG+="systemd", ENV{SYSTEMD_WANTS}+="agent.service"\n' >"$root/etc/udev/rules.d/99-agent.rules"
cat >"$root/etc/systemd/system/agent.service" <<-END
	[Unit]
	Description=what the host asks of this guest
	RequiresMountsFor=/payload
	[Service]
	ExecStart=/payload/agent /dev/virtio-ports/agent
	Restart=always
	RestartSec=1
	KillMode=process
	OOMScoreAdjust=-1000
END
# The user that virtual machines run as, as libvirt has it.
chroot "$root" useradd --system --no-create-home --uid 64055 libvirt-qemu
chroot "$root" systemctl enable -q systemd-networkd.service systemd-networkd-wait-online.service
chroot "$root" systemctl mask -q getty@tty1.service getty-static.service serial-getty@ttyS0.service console-getty.service apt-daily.timer \
	apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-timesyncd.service \
	systemd-update-utmp.service systemd-pstore.service systemd-tmpfiles-clean.timer systemd-journal-catalog-update.service
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/doc/* "$root"/usr/share/locale/*
: >"$root/etc/machine-id"
echo 5c3d0e5a1f6b4c7d9e8f0a1b2c3d4e5f >"$root/etc/machine-id"

cp "$root"/boot/vmlinuz-* "$dir/vmlinuz"
cp "$root"/boot/initrd.img-* "$dir/initrd.img"
rm -f "$dir/root.img.new"
truncate -s 2G "$dir/root.img.new"
mkfs.ext4 -q -F -L root -d "$root" "$dir/root.img.new"
rm -rf "$root"
mv "$dir/root.img.new" "$dir/root.img"
