#!/bin/bash
# The guests' root: Debian's packages, Debian's kernel with ZFS (KERNEL, made by kernel.sh), and our init.
# Makes root.erofs, vmlinuz, initrd.img and manifest. No secret is in it: keys come on a disk that each lab makes for itself.
. "$(dirname "$0")/common.sh"
: "${KERNEL:?}"
root=$WORK/root
system essential "$root" --include="$(words "$guest/packages" | paste -sd,)"
read -r release kernel zfs < "$KERNEL/versions"

# The modules named in the lists, and what they need.
rm -rf "$root/lib/modules"; mkdir -p "$root/lib/modules/$release"
{ words "$guest/modules"; words "$guest/modules.initramfs"; words "$guest/modules.start"; } | sort -u | while read -r module; do
  modprobe -d "$KERNEL" -S "$release" --show-depends "$module" || { say "the kernel has no module $module" >&2; exit 1; }
done > "$WORK/insmod"
awk '$1 == "insmod" { print $2 }' "$WORK/insmod" | sed "s#^$KERNEL/##" | sort -u > "$WORK/modules"
(cd "$KERNEL" && cpio -pdm --quiet "$root" < "$WORK/modules")
cp "$KERNEL/lib/modules/$release"/modules.{builtin,order,builtin.modinfo} "$root/lib/modules/$release/"
depmod -b "$root" "$release"

# What each guest must not share, or gets when it starts, is not in the image.
rm -rf "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/* "$root"/etc/ssh/ssh_host_* "$root"/var/cache/apt/* \
  "$root"/var/lib/apt/lists/* "$root"/var/log/*.log "$root"/var/cache/debconf/*-old "$root/etc/hostid" "$root/usr/share/python3/__pycache__"
: > "$root/etc/machine-id"; : > "$root/etc/fstab"
ln -sfn /proc/mounts "$root/etc/mtab"; rm -rf "$root/var/run"; ln -s /run "$root/var/run"
sed -i 's#^root:[^:]*:#root::#' "$root/etc/shadow"
sed -i 's#^iscsid.startup = .*#iscsid.startup = /usr/sbin/iscsid#' "$root/etc/iscsi/iscsid.conf"
chroot "$root" useradd --system --user-group --home-dir /var/lib/img-storage --create-home --shell /bin/bash img-storage
install -m 644 "$guest/sshd_config" "$root/etc/ssh/sshd_config"
install -m 644 "$guest/ssh_config" "$root/etc/ssh/ssh_config"
install -m 755 "$guest/init" "$root/sbin/lab-init"
install -m 755 "$guest/shutdown" "$root/sbin/lab-shutdown"
install -m 644 "$guest/inittab" "$root/etc/inittab"
mkdir -p "$root/etc/lab" "$root/opt/lab" "$root/etc/target"
words "$guest/modules.start" > "$root/etc/lab/modules"
ln -s /opt/lab/img-storage "$root/usr/local/bin/img-storage"

# What mounts the root: busybox and a few modules.
ram=$WORK/ram
mkdir -p "$ram"/{bin,dev,proc,sys,modules,lower,state,root}
cp "$root/bin/busybox" "$ram/bin/"; install -m 755 "$guest/initramfs-init" "$ram/init"; install -m 755 "$guest/probe" "$ram/probe"
words "$guest/modules.initramfs" | while read -r module; do modprobe -d "$root" -S "$release" --show-depends "$module"; done |
  awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
    cp "$file" "$ram/modules/"; basename "$file" >> "$ram/modules/order"
  done
(cd "$ram" && find . | LC_ALL=C sort | cpio -o -H newc --quiet -R 0:0) > "$OUT/initrd.img"

cp "$KERNEL/boot/vmlinuz" "$OUT/vmlinuz"
{ chroot "$root" dpkg-query -W; printf 'Linux %s (%s)\nZFS modules %s\n' "$release" "$kernel" "$zfs"; } > "$OUT/manifest"
mkfs.erofs -T0 --quiet "$OUT/root.erofs" "$root" > "$WORK/erofs.log" 2>&1 || { cat "$WORK/erofs.log"; exit 1; }
say "root $(du -h "$OUT/root.erofs" | cut -f1), kernel $(du -h "$OUT/vmlinuz" | cut -f1), initramfs $(du -h "$OUT/initrd.img" | cut -f1)"
