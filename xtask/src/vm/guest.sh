#!/bin/bash
# Process 1 of the machine that `cargo xtask vm` boots, or with --systemd its service: a session with Den, a line a
# check, and at the end `VM: N passed, N failed` and power off.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 DEN_LOG=warn
export DEN_CRIU=/var/cache/den/criu/criu
if [ $$ -eq 1 ]; then
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t devtmpfs devtmpfs /dev
    exec </dev/null >/dev/ttyS0 2>&1
    mkdir -p /dev/pts /dev/shm
    mount -t devpts -o ptmxmode=666 devpts /dev/pts
    mount -t tmpfs tmpfs /dev/shm
    mount -t tmpfs -o mode=755 tmpfs /run
    mount -t tmpfs tmpfs /tmp
    mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
    mount --make-rshared /
fi
# Where there is no networking to load them, what a host has loaded at its boot.
for module in loop btrfs overlay fuse tun veth; do modprobe $module || echo "no module $module"; done
busybox ip link set lo up
hostname vm
mkdir -p /var/lib/den /var/log
cgroup=/sys/fs/cgroup
log=/var/log/den.log
passed=0 failed=0

end() {
    trap - EXIT
    if [ $failed -gt 0 ]; then
        echo "-- the daemon's log"
        if [ $$ -eq 1 ]; then tail -n 40 $log; else journalctl -u den -n 60 --no-pager; fi
        echo "-- the kernel's log"
        dmesg | tail -n 20
    fi
    echo "VM: $passed passed, $failed failed"
    sync
    busybox poweroff -f
    sleep 60
}
trap end EXIT

# check SECONDS WHAT SCRIPT: the script's status is the verdict, its output is shown where it fails.
check() {
    local since=$EPOCHREALTIME out rc verdict
    out=$(timeout -k 5 "$1" bash -c "$3" 2>&1)
    rc=$?
    if [ $rc -eq 0 ]; then
        passed=$((passed + 1)) verdict=ok
    else
        failed=$((failed + 1)) verdict="FAIL $rc"
    fi
    printf '%s  %s  (%s ms)\n' "$verdict" "$2" $(((${EPOCHREALTIME/./} - ${since/./}) / 1000))
    if [ $rc -ne 0 ]; then echo "$out" | sed 's/^/      /'; fi
    return $rc
}

# The daemon, where systemd would have put it; waits until it answers.
serve() {
    mkdir -p $cgroup/system.slice/den.service
    (
        echo $BASHPID >$cgroup/system.slice/den.service/cgroup.procs
        exec setsid den serve "$@" >>$log 2>&1
    ) &
    daemon=$!
    for _ in $(seq 600); do
        if den version >/dev/null 2>&1; then return; fi
        if ! kill -0 $daemon 2>/dev/null; then break; fi
        sleep 0.2
    done
    echo "den serve does not answer"
}

# The cgroup of a computer, seen from outside: the one whose first process has its name.
cgroup_of() {
    local dir pid
    # Those of a pool lie in its own.
    for dir in $cgroup/den/c[0-9]* $cgroup/den/*/c[0-9]*; do
        pid=$(head -n 1 "$dir/cgroup.procs" 2>/dev/null)
        [ -n "$pid" ] && [ "$(nsenter -t "$pid" -u hostname)" = "$1" ] && echo "$dir" && return
    done
    echo "/no-cgroup-of-$1"
}
# value COMPUTER FILE [KEY]: a number in a file of its cgroup.
value() {
    local found
    found=$(sed -n "s/^${3:+$3 }\([0-9a-z]*\)$/\1/p" "$(cgroup_of "$1")/$2")
    echo "${found:-nothing}"
}
# Where a computer stands; whether a service of it does within 30 s.
state() { den ls | awk -v name="$1" '$1 == name { print $2 }'; }
stands() {
    for _ in $(seq 100); do den service ls "$1" | grep -w "$2" | grep -qw "$3" && return; sleep 0.3; done
    den service ls "$1"
    return 1
}
# Whether this kernel is at least MAJOR.MINOR.
since() { [ "$(printf '%s\n' "$1" "$(uname -r)" | sort -V | head -n 1)" = "$1" ]; }
# same WHAT WANTED FOUND: fails where they differ.
same() { [ "$2" = "$3" ] || { echo "$1: wanted <$2>, found <$3>"; return 1; }; }
# What is left of Den on this machine.
left() {
    grep -E ' /(run|var/lib)/den' /proc/self/mountinfo | sed 's/^/mount /'
    find $cgroup -mindepth 1 -type d -path "$cgroup/den*" 2>/dev/null | sed 's/^/cgroup /'
    ps axo pid=,ppid=,stat=,args= | grep -E '[d]en[- ](serve|gate|launcher|agent)|[d]en-(husk|cell)' | grep -v ' Z' | sed 's/^/process /'
    losetup -a | sed 's/^/loop /'
    busybox ip -o link | grep -v ' lo:' | sed 's/^/link /'
}
# sandbox ID PATH JSON: a request to a sandbox, and what it answers, without the bytes of its frames.
api=http://127.0.0.1:7878
sandbox() {
    # A frame is a byte of flags and four of length.
    printf "\\0\\0\\0\\0\\x$(printf %02x ${#3})%s" "$3" |
        curl -sS -m 60 -H "E2b-Sandbox-Id: $1" -H "E2b-Sandbox-Port: 49983" -H "content-type: application/connect+json" \
            --data-binary @- "$api/$2" | tr -c '[:print:]' '\n'
}
export cgroup log api
export -f cgroup_of value state stands since same left sandbox

echo "Linux $(uname -r), $(nproc) CPUs, $(sed -n 's/^MemTotal: *//p' /proc/meminfo)"
if [ $$ -ne 1 ]; then
    log=/dev/null
    . /den-vm/systemd.sh
    exit
fi
if [ -e /den-vm/measures ]; then
    . /den-vm/bench.sh
    exit
fi
check 10 'cgroup v2 and nothing else' 'same type cgroup2fs $(stat -f -c %T $cgroup); ! grep -q " - cgroup " /proc/self/mountinfo'
echo "-- den doctor"
den doctor
doctor=$?
check 10 'doctor has no objection' "exit $doctor"
serve
check 60 'the daemon answers' 'den version' || exit
check 120 'an image is imported' 'den image import /den-vm/base.tar base'
check 60 'a computer is made' 'den new a' || exit
echo "-- inside"
timeout 60 den exec a -- sh -c 'id; hostname; cat /proc/self/cgroup; ls /sys/fs/cgroup; cat /proc/mounts' 2>&1
check 60 'it is root, under its name, at the root of a cgroup tree' '
    same out "uid=0 a 0::/" "$(den exec a -- sh -c "echo uid=\$(id -u) \$(hostname) \$(cat /proc/self/cgroup)")"'
check 60 'exit codes and standard input' '
    den exec a -- sh -c "exit 7"; same code 7 $?
    same input hello "$(echo hello | den exec -i a -- cat)"'
check 60 'a terminal' 'same tty /dev/pts/0 "$(den exec -t a -- tty | tr -d "\r")"'
check 60 'files of the image belong to root and can be changed' '
    same owner 0:0 "$(den exec a -- stat -c %u:%g /etc/lower)" &&
    den exec a -- sh -ec "echo more >> /etc/lower; chown 1000:1000 /etc/lower; rm -r /opt/tree; mkdir /opt/tree; mv /var /var2" &&
    same out "1000 2 0" "$(den exec a -- sh -c "echo \$(stat -c %u /etc/lower) \$(wc -l < /etc/lower) \$(ls -A /opt/tree | wc -l)")"'
check 60 'another user' 'same user 1000 "$(den exec -u user a -- id -u)"'
check 60 'files go in and out' '
    head -c 3000000 /dev/urandom > /tmp/in && den cp /tmp/in a:/root/ && den cp a:/root/in /tmp/out && cmp /tmp/in /tmp/out'
check 60 'its own cgroup tree is its own, its limits are not' '
    den exec a -- sh -c "cd /sys/fs/cgroup && mkdir inner && for pid in \$(cat cgroup.procs); do echo \$pid > inner/cgroup.procs; done;
        cat cgroup.controllers; echo +memory +pids > cgroup.subtree_control && mkdir other && echo 9 > other/pids.max && cat other/pids.max" &&
    ! den exec a -- sh -c "echo max > /sys/fs/cgroup/memory.max" && ! den exec a -- sh -c "echo max > /sys/fs/cgroup/pids.max" &&
    den exec a -- true'
check 60 'mounts, as root inside' '
    den exec a -- sh -ec "mkdir /m && mount -t tmpfs none /m && umount /m && mount -t proc none /m && umount /m"'

check 60 'limits are set on the host' '
    den new b --memory 64M --pids 40 --cpus 0.5 && dir=$(cgroup_of b) && ls -d "$dir" &&
    same cpu "50000 100000" "$(cat "$dir/cpu.max")" &&
    same memory $((64 << 20)) "$(value b memory.max)" && same pids 40 "$(value b pids.max)"'
check 60 'the gate carries what a rule allows to another computer, and refuses the rest' '
    den exec -d b -- timeout 40 sh -c "while :; do echo hello | nc -l -p 8000; done" >/dev/null &&
    den net a guarded && den net a allow vm:b:8000 || exit
    at=$(den exec a -- nslookup b.vm.internal 169.254.1.1 | sed -n "s/.*[ \t]\(198\.1[89]\.[0-9.]*\).*/\1/p" | head -n 1)
    echo "b.vm.internal is <$at>"
    same said hello "$(den exec a -- sh -c "sleep 5 | nc $at 8000")" &&
    same otherwise "" "$(den exec a -- sh -c "sleep 1 | nc $at 8001; sleep 1 | nc 10.1.2.3 80" 2>/dev/null)" || exit
    den net log a; den net log a --denied | grep no_rule && den net log a --denied | grep floor && den net a open'
check 120 'a memory bomb ends inside' '
    before=$(value b memory.events oom_kill)
    same code 137 "$(den exec b -- sh -c "awk \"BEGIN{s=1; while (1) s = s s}\"; echo \$?" 2>/dev/null)" &&
    after=$(value b memory.events oom_kill) && echo "killed: $before, then $after" && [ "$after" -gt "$before" ] &&
    den exec b -- true && den exec a -- true'
check 120 'a fork bomb stops at the limit' '
    before=$(value b pids.events max)
    den exec b -- sh -c "i=0; while [ \$i -lt 100 ]; do sleep 12 & i=\$((i+1)); done"
    after=$(value b pids.events max); echo "refused: $before, then $after; now $(value b pids.current)"
    [ "$after" -gt "$before" ] && [ "$(value b pids.current)" -le 40 ] && sleep 14 && den exec b -- true'
check 120 'the CPU limit holds' '
    before=$(value b cpu.stat usage_usec)
    den exec --timeout 4s b -- sh -c "while :; do :; done"
    after=$(value b cpu.stat usage_usec); echo "us: $before, then $after"
    [ "$((after - before))" -lt 3000000 ] && [ "$((after - before))" -gt 1000000 ]'
check 120 'who keeps the kernel busy leaves a processor to those at work, and has it back' '
    den new k --memory 64M && held=$(cgroup_of k)/cpuset.cpus && same "at first" "" "$(cat "$held")" || exit
    yields=$(cgroup_of k)/cpu.idle
    den exec -d k -- sh -c "while :; do dd if=/dev/zero of=/dev/null bs=1M count=100; done" >/dev/null
    for _ in $(seq 60); do den exec b -- true; [ -n "$(cat "$held")" ] && break; done
    same "while b is at work" 0 "$(cat "$held")" || exit
    for _ in $(seq 60); do [ "$(cat "$yields")" = 1 ] && break; den exec b -- true; done
    same "whether it yields to b" 1 "$(cat "$yields")" || exit
    for _ in $(seq 60); do [ "$(cat "$held")" != 0 ] && break; sleep 0.5; done
    for _ in $(seq 60); do [ "$(cat "$yields")" = 0 ] && break; sleep 0.5; done
    same "while it is not" "0-1 0" "$(cat "$held") $(cat "$yields")" && den rm --now k'
if since 6.7; then
    check 180 'the disk limit holds' '
        den new d --disk 64M && ! den exec d -- sh -c "dd if=/dev/urandom of=/root/big bs=1M count=160 && sync" &&
        den exec d -- sh -ec "rm /root/big; sync; sleep 1; echo x > /root/small"'
else
    check 10 'that no disk is held to a limit before Linux 6.7 is in the log' 'grep "no simple quotas" $log'
fi

check 60 'stop and start keep the disk' '
    den exec a -- sh -c "echo kept > /root/kept; echo gone > /run/gone" && den stop -t 1s a && den start a &&
    same out "kept 1000 0 1" "$(den exec a -- sh -c "echo \$(cat /root/kept) \$(stat -c %u /etc/lower) \$(ls -A /opt/tree | wc -l) \$(ls /var2 /run/gone 2>&1 | grep -c gone)")"'

check 120 'history: snap, diff, fork, merge, restore' '
    den new h --memory 256M || exit
    den exec h -- sh -ec "mkdir /srv; echo one > /srv/a" && den snap h first && den exec h -- sh -c "echo two > /srv/b" || exit
    den diff h@first h | grep /srv/b && den fork h@first f &&
    same fork "one gone" "$(den exec f -- sh -c "echo \$(cat /srv/a) \$(ls /srv/b >/dev/null 2>&1 || echo gone)")" || exit
    den exec f -- sh -c "echo three > /srv/c" && den merge f &&
    same merged "one two three" "$(den exec h -- sh -c "echo \$(cat /srv/a /srv/b /srv/c)")" &&
    den restore h@first && same restored a "$(den exec h -- ls /srv)" &&
    den undo h && same undone "a b c" "$(den exec h -- sh -c "echo \$(ls /srv)")" && den rm --now f'
check 120 'pause: the freezer of v2, nothing moves, a request wakes it' '
    den exec -d h -- sh -c "i=0; while :; do i=\$((i+1)); echo \$i > /srv/beat; sleep 0.1; done" >/dev/null && sleep 2 &&
    den pause h && same state paused "$(state h)" && same frozen 1 "$(value h cgroup.freeze)" &&
    same all 1 "$(value h cgroup.events frozen)" || exit
    before=$(den cat h@now /srv/beat); sleep 1; same beat "$before" "$(den cat h@now /srv/beat)" || exit
    same woken "$before" "$(den exec h -- sh -c "b=\$(cat /srv/beat); while [ \$b = $before ] && [ \$((i+=1)) -lt 50 ]; do sleep 0.1; b=\$(cat /srv/beat); done; [ \$b != $before ] && echo $before")" &&
    same state running "$(state h)" && same frozen 0 "$(value h cgroup.events frozen)"'
check 120 'unplug: frozen, refused, taken back' '
    den unplug h && same state unplugged "$(state h)" && same all 1 "$(value h cgroup.events frozen)" &&
    ! den exec h -- true && den cat h@now /srv/a && den replug h && den exec h -- true && same state running "$(state h)"'
check 120 'a service runs again after a stop' '
    den service add h beat --run "echo up; while :; do sleep 1; done" && stands h beat running &&
    den stop -t 1s h && den start h && stands h beat running && [ "$(den service logs h beat)" = up ]'
check 120 'the trash keeps a computer, undo brings it back' '
    den rm h && ! den exec h -- true && den trash | grep -w h && den undo h && same kept one "$(den exec h -- cat /srv/a)" &&
    stands h beat running && den service rm h beat'
check 120 'a pool is full when it is, and a size changes while it runs' '
    den pool new team --computers 1 --memory 256M && den new p --pool team --memory 128M && ! den new q --pool team --memory 64M &&
    den exec -d p -- sleep 1000 >/dev/null && den resize p --cpus 0.25 --memory 96M --pids 50 &&
    same cpu "25000 100000" "$(cat "$(cgroup_of p)/cpu.max")" && same memory $((96 << 20)) "$(value p memory.max)" &&
    same pids 50 "$(value p pids.max)" && same sleeps 1 "$(den exec p -- sh -c "ps | grep -c \"[s]leep 1000\"")" &&
    den rm --now p && den pool rm team'
check 180 'memory goes to the disk, nothing runs, a request reads it back' '
    den new m --memory 128M && step=$(den exec -d m -- sh -c "i=0; while :; do i=\$((i+1)); echo \$i; sleep 0.2; done" | tr -dc 0-9) || exit
    total="grep MemTotal /proc/meminfo"; sees=$(den exec m -- sh -c "$total"); echo "$sees"
    sleep 2; den pause m --to-disk && same state paused "$(state m)" && same cgroup /no-cgroup-of-m "$(cgroup_of m)" || exit
    said=$(den log m $step | wc -l); echo "said $said"; [ $said -gt 2 ] && same woken 0:: "$(den exec m -- sh -c "cut -d/ -f1 /proc/self/cgroup")" || exit
    sleep 2; den log m $step > /tmp/m; now=$(wc -l < /tmp/m); echo "now $now"; [ $now -gt $said ] && seq $now | cmp - /tmp/m &&
    same memory $((128 << 20)) "$(value m memory.max)" && same share "$sees" "$(den exec m -- sh -c "$total")"'
check 180 'a fork with memory goes on, and so does its parent' '
    den fork m mf --memory && sleep 2 && den log mf 1 >/tmp/mf; den log m 1 >/tmp/m; tail -n 1 /tmp/m /tmp/mf
    seq $(wc -l </tmp/m) | cmp - /tmp/m && den exec mf -- hostname && same name mf "$(den exec mf -- hostname)" &&
    same counts 1 "$(den exec mf -- sh -c "ps | grep -c \"[w]hile :\"")" && den rm --now m mf'
check 180 'the interface of E2B: a sandbox, a command, its end' '
    key=$(den e2b key)
    made=$(curl -sS -m 60 -H "X-API-Key: $key" -H "content-type: application/json" -d "{\"templateID\":\"base\",\"timeout\":300}" $api/sandboxes)
    echo "$made"; id=$(echo "$made" | jq -r .sandboxID); den ls
    said=$(sandbox $id process.Process/Start "{\"process\":{\"cmd\":\"/bin/sh\",\"args\":[\"-c\",\"id -un; hostname\"]}}")
    echo "$said"; said=$(echo "$said" | sed -n "s/.*\"stdout\":\"\([^\"]*\)\".*/\1/p" | while read -r part; do echo $part | base64 -d; done)
    same said "user $id" "$(echo $said)" &&
    same ended 204 "$(curl -sS -m 60 -o /dev/null -w "%{http_code}" -X DELETE -H "X-API-Key: $key" $api/sandboxes/$id)" && ! den ls | grep $id'
check 60 'usage and events' '
    den top --once | grep -w h && used=$(value h memory.current) && echo "memory $used" && [ "$used" -gt 100000 ] &&
    den info b --json | tr -d " \n" | grep -E "\"cpu_us\":[1-9][0-9]{5,}.*\"memory_bytes\":[1-9]" &&
    den events --json | grep "\"oom\"" && den events --json | grep "\"limit_reached\"" && den events --json | grep "\"unplugged\""'
check 60 'a computer is paused, to stay so over kill -9 of the daemon' 'den pause h'
step=$(timeout 60 den exec -d a -- sh -c 'for i in $(seq 30); do echo line $i; sleep 0.3; done' | tr -dc 0-9)
sleep 2
kill -9 $daemon
wait $daemon 2>/dev/null
sleep 1
serve
check 120 'a step goes on over kill -9 of the daemon' "same output \"\$(seq -f 'line %g' 30)\" \"\$(den attach a $step)\""
check 60 'so do computers, and one that is paused stands still' '
    den exec a -- true && den exec b -- true && den ls && same state paused "$(state h)" &&
    same all 1 "$(value h cgroup.events frozen)" && den exec h -- true && same state running "$(state h)"'
echo "-- processes"
ps axo pid,ppid,cgroup:60,args | grep -E '[d]en'
launcher=$(ps axo pid=,args= | grep -E '[d]en.*launcher' | awk '{print $1; exit}')
kill -9 $launcher
check 120 'a launcher that dies is replaced' '
    for _ in $(seq 100); do if den new e 2>/dev/null; then break; fi; sleep 0.5; done; den exec e -- true'
kill -9 $daemon
wait $daemon 2>/dev/null
serve
check 120 'and after another start all that were there run or start' '
    den ls; den start a >/dev/null 2>&1; same kept kept "$(den exec a -- cat /root/kept)"'
check 120 'five computers at once' '
    for i in $(seq 5); do den new n$i & done; wait; for i in $(seq 5); do den exec n$i -- hostname || exit 1; done'
check 120 'removed computers leave no process and no cgroup; the husks stay' '
    den rm --all && sleep 5; ! pgrep -af "[d]en-agent init" || exit
    cd $cgroup/den && for dir in */; do grep -q . $dir/cgroup.procs || { echo "empty: $dir"; exit 1; }; done
    set -- */; echo "$# cgroups"; [ $# -le 8 ]'
check 30 'what is left would be found' 'for what in mount cgroup process loop; do left | grep "^$what " || exit; done'
ends='den shutdown; for _ in $(seq 300); do [ -d /proc/$daemon ] || exit 0; case $(ps -o stat= -p $daemon) in Z*) exit 0 ;; esac; sleep 0.2; done; exit 1'
check 120 'shutdown ends the daemon' "daemon=$daemon; $ends"
sleep 2
. /den-vm/moved.sh
if [ -d /den-vm/moved ]; then
    export -f known inside
    mv /var/lib/den /var/lib/den-before
    check 120 'a backup that another machine made is restored here' 'den restore-backup /den-vm/moved/place'
    serve
    check 60 'its computers have their history, states and trash' 'known >/tmp/known; diff /den-vm/moved/known /tmp/known'
    check 120 'they start, with their files, and go on' '
        den start moved && den start branch && inside >/tmp/inside && diff /den-vm/moved/inside /tmp/inside || exit
        den restore moved@one && same note one "$(den exec moved -- cat /srv/note)" && den undo moved &&
        same note three "$(den exec moved -- cat /srv/note)" && den undo gone && den exec gone -- true'
    check 120 'and go into the next backup of that place' '
        den backup /den-vm/moved/place && same backups 2 "$(den backup ls /den-vm/moved/place --json | jq length)" &&
        den backup verify /den-vm/moved/place'
    check 120 'and this daemon ends' "daemon=$daemon; $ends"
fi
sleep 2
check 30 'nothing is left' 'out=$(left); echo "$out"; [ -z "$out" ]'
check 30 'the kernel has nothing to say' '! dmesg | grep -A 25 -E "BUG:|WARNING:|Oops|general protection|blocked for more|BTRFS (error|critical|warning)"'
