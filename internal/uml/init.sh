#!/bin/busybox sh
# The first process of a guest. Its root is a folder of the host, read-only;
# the kernel's command line gives it, as variables, the host's folder of
# kernel modules, the folder that is shared for writing, and how many seconds
# the guest may live at most, should whoever started it be gone.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/tmp TMPDIR=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mount -t hostfs -o "$uml_modules" none /lib/modules
mount -t hostfs -o "$uml_shared" none /shared
ip link set lo up
modprobe -a dm-mod dm-log-writes dm-flakey
(sleep "$uml_seconds"; poweroff -f) &
sh /shared/command
echo $? >/shared/status
poweroff -f
