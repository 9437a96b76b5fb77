#!/bin/busybox sh
# What a guest runs as its init: it makes a host of the initial RAM file system, runs the programs that /vm/list names,
# and tells what came of each on the second serial port, which nobody else writes to. What a program prints follows
# "| ", what this script says follows ">> ": nothing that a program prints can be taken for a result.
B=/bin/busybox
if [ ! -e /vm/stage2 ]; then
  # A runtime's pivot_root refuses the initial file system. The same files, mounted once more and moved over it, are
  # another mount, which has a parent, and nothing needs to be copied.
  $B mkdir -p /vm/root
  $B mount --bind / /vm/root
  : > /vm/stage2
  cd /vm/root || exit 1
  $B mount --move . /
  exec $B chroot . /vm/init
fi
for folder in /proc /sys /dev /run /tmp /var/tmp /root; do $B mkdir -p $folder; done
$B --install -s /bin
export PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin HOME=/root RUST_BACKTRACE=1 CONTAINERHOOK_TEST_SLOWNESS=3
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec > /dev/console 2>&1
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -sf /proc/self/fd /dev/fd
for kind in tracefs:kernel/tracing debugfs:kernel/debug bpf:fs/bpf securityfs:kernel/security cgroup2:fs/cgroup; do
  mount -t ${kind%%:*} ${kind%%:*} /sys/${kind#*:}
done
chmod 1777 /tmp /var/tmp
ip link set lo up
hostname guest
# What the kernel says of itself from here on is on the console: of a lockup, the stacks too.
dmesg -n 8
for module in /vm/modules/*.ko; do [ -e "$module" ] && insmod "$module"; done

PORT=$(sed -n 's/.*vm.port=\([^ ]*\).*/\1/p' /proc/cmdline)
FROM=$(sed -n 's/.*vm.from=\([0-9]*\).*/\1/p' /proc/cmdline)
stty -F "$PORT" raw -echo
exec 3> "$PORT"
say() { echo ">> $*" >&3; }

say up "$(uname -r)" "$(cut -d ' ' -f 1 /proc/uptime)"
mkfifo /run/said
number=0
while read -r name limit arguments; do
  number=$((number + 1))
  [ "$number" -le "${FROM:-0}" ] && continue
  : > /run/skips
  say begin "$number" "$name"
  begin=$(cut -d ' ' -f 1 /proc/uptime)
  awk '{ print "| " $0; fflush() }' < /run/said >&3 &
  printer=$!
  # The words are to be split: no argument has a space in it.
  # shellcheck disable=SC2086
  CONTAINERHOOK_SKIPS=/run/skips timeout -s KILL "$limit" $arguments > /run/said 2>&1 < /dev/null 3>&-
  code=$?
  # Something that the program left behind may keep the pipe open.
  tries=0
  while kill -0 $printer 2> /dev/null && [ $tries -lt 30 ]; do sleep 0.1; tries=$((tries + 1)); done
  kill $printer 2> /dev/null
  # One that was killed leaves what it had started, which would stand in the next one's way.
  [ $code = 137 ] && kill -s KILL -1
  while IFS= read -r line; do say skip "$line"; done < /run/skips
  say end "$number" "$code" "$begin" "$(cut -d ' ' -f 1 /proc/uptime)"
done < /vm/list
say done
poweroff -f
