#!/bin/bash
# First process of the lab's guest kernel (user-mode Linux). Its root is the host's /, by hostfs, read-only.
# From the kernel command line: WORK = a folder of the host, mounted read-write at /run/work; MODS = "a,b,c".
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs t /run
mkdir -p /run/m/lib /run/lock /run/work /run/t; mount -t hostfs none /run/work -o "$WORK"
mount -t tmpfs t /tmp; mount -t tmpfs t /var/tmp 2>/dev/null
hostname peer
ln -s /usr/lib/uml/modules /run/m/lib/modules
printf '#!/bin/sh\nexec /sbin/modprobe -d /run/m "$@"\n' >/run/modprobe; chmod +x /run/modprobe
echo /run/modprobe >/proc/sys/kernel/modprobe           # the kernel's own module requests work too
/run/modprobe -a ${MODS//,/ }
ip link set lo up
# Warm up in the background: the first GCM SA costs seconds here (templates and random generator load).
( ip xfrm state add src 127.0.0.9 dst 127.0.0.9 proto esp spi 0xfff mode tunnel aead "rfc4106(gcm(aes))" 0x$(printf %072d 1) 128
  ip xfrm state add src 127.0.0.9 dst 127.0.0.9 proto esp spi 0xffe mode tunnel auth-trunc "hmac(sha256)" 0x$(printf %064d 1) 128 enc "cbc(aes)" 0x$(printf %064d 1)
  ip xfrm state deleteall src 127.0.0.9 ) >/dev/null 2>&1 &
cd /run/work; mkfifo /run/f; exec 9<>/run/f
echo up >ready.tmp; mv ready.tmp ready
n=1
while :; do                                             # mailbox: the host drops cmd.N, we answer out.N and rc.N
  if [ -e cmd.$n ]; then
    ( . ./cmd.$n ) 9>&- >out.$n 2>&1 </dev/null; echo $? >rc.tmp; mv rc.tmp rc.$n; n=$((n+1))
  else read -t 0.02 -u 9; fi
done
