#!/bin/sh
# usage: pack.sh ARCHIVE FOLDER SIZE
# Unpacks mmdebstrap's ARCHIVE and makes FOLDER/root.raw (an ext4 file system of SIZE), FOLDER/vmlinuz and FOLDER/initrd.
# Runs as root, or as root of a user namespace: there it cannot make device nodes, which a system makes itself at boot.
set -eu
archive=$1 folder=$2 size=$3
PATH=$PATH:/usr/sbin:/sbin
mkdir "$folder/root"
tar --extract --file="$archive" --directory="$folder/root" --numeric-owner --xattrs --exclude='./dev/*'
cp "$folder"/root/boot/vmlinuz-* "$folder/vmlinuz"
cp "$folder"/root/boot/initrd.img-* "$folder/initrd"
truncate --size="$size" "$folder/root.raw"
mke2fs -q -F -t ext4 -L root -m 1 -E lazy_itable_init=1,lazy_journal_init=1 -d "$folder/root" "$folder/root.raw"
rm -rf "$folder/root"
