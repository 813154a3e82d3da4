# Part of guest.sh, where systemd is process 1: the daemon as its service.

# Waits until den answers.
answers() {
    for _ in $(seq 150); do den version >/dev/null 2>&1 && return; sleep 0.2; done
    systemctl status den
    return 1
}
main() { systemctl show -p MainPID --value den; }
limits() {
    same memory $((64 << 20)) "$(value b memory.max)" && same pids 40 "$(value b pids.max)" &&
        same cpu "50000 100000" "$(cat "$(cgroup_of b)/cpu.max")"
}
export -f answers main limits

check 10 'systemd is process 1' 'same comm systemd "$(cat /proc/1/comm)"; [ -d /run/systemd/system ]'
check 120 'den install puts the program and its unit in their places, and starts it' '
    mv /usr/local/bin/den /den-vm/den && hash -r && /den-vm/den install && [ -x /usr/local/bin/den ] && answers &&
    same active active "$(systemctl is-active den)" && same enabled enabled "$(systemctl is-enabled den)"' || exit
check 120 'an image is imported, computers are made' '
    den image import /den-vm/base.tar base && den new a && den new b --memory 64M --pids 40 --cpus 0.5 && limits'
step=$(timeout 60 den exec -d a -- sh -c 'for i in $(seq 60); do echo line $i; sleep 0.3; done' | tr -dc 0-9)
check 60 'limits stand when systemd writes its own cgroups anew' '
    printf "[Service]\nType=oneshot\nMemoryMax=100M\nTasksMax=9\nCPUQuota=50%%\nExecStart=/bin/true\n" >/run/systemd/system/other.service &&
    systemctl daemon-reload && systemctl start other && limits && den exec b -- true && systemctl daemon-reload && limits'
check 120 'systemctl restart: computers and their steps go on' "
    before=\$(main); den pause b; systemctl restart den && answers && [ \"\$(main)\" != \"\$before\" ] &&
    same output \"\$(seq -f 'line %g' 60)\" \"\$(den attach a $step)\" && same state paused \"\$(state b)\" && den exec b -- true && limits"
check 120 'systemctl stop leaves computers, start takes them up' '
    den exec -d a -- sleep 1000 >/dev/null && systemctl stop den && ! den version 2>/dev/null && systemctl start den && answers &&
    same sleeps 1 "$(den exec a -- sh -c "ps | grep -c \"[s]leep 1000\"")"'
check 120 'one that is killed is started again by systemd' '
    before=$(main); kill -9 $before; for _ in $(seq 100); do now=$(main); [ "$now" != "$before" ] && [ "$now" != 0 ] && break; sleep 0.2; done
    answers && [ "$(main)" != "$before" ] && same sleeps 1 "$(den exec a -- sh -c "ps | grep -c \"[s]leep 1000\"")"'
check 120 'installed again it goes on with its computers' '
    before=$(main); /den-vm/den install && answers && [ "$(main)" != "$before" ] && den exec a -- true && limits'
check 120 'shutdown and uninstall take all away but the data' '
    den shutdown && for _ in $(seq 100); do [ "$(systemctl is-active den)" != active ] && break; sleep 0.2; done
    /den-vm/den uninstall && [ ! -e /usr/local/bin/den ] && [ ! -e /etc/systemd/system/den.service ] && [ -d /var/lib/den ]'
sleep 2
check 30 'nothing is left' 'out=$(left); echo "$out"; [ -z "$out" ]'
check 30 'the kernel has nothing to say' '! dmesg | grep -A 25 -E "BUG:|WARNING:|Oops|general protection|blocked for more|BTRFS (error|critical|warning)"'
