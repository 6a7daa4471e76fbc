#!/bin/sh
# $1: the root of the system that has been made.
set -eu
echo 'LABEL=root / ext4 errors=remount-ro,discard 0 1' > "$1/etc/fstab"
echo debian > "$1/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost\n' > "$1/etc/hosts"
# Looking for other clouds' metadata would wait for a network that may not be there.
printf 'datasource_list: [NoCloud, None]\n' > "$1/etc/cloud/cloud.cfg.d/90_drover.cfg"
# The one locale that is always there: cloud-init's own choice would have to be generated, and makes it report an error.
printf 'locale: C.UTF-8\n' >> "$1/etc/cloud/cloud.cfg.d/90_drover.cfg"
# cloud-init writes what it is told for systemd-networkd; a network that nobody described is no reason to wait.
chroot "$1" systemctl enable systemd-networkd.service
chroot "$1" systemctl disable systemd-networkd-wait-online.service
# The first boot makes these, for each machine its own.
: > "$1/etc/machine-id"
rm -f "$1"/etc/ssh/ssh_host_*_key "$1"/etc/ssh/ssh_host_*_key.pub
