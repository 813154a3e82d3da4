# Part of guest.sh: the measures that /den-vm/measures names, in place of the session; each goal is a check.

# What `den doctor` advises for hosts whose computers are not trusted.
echo 1024 >/proc/sys/fs/mount-max
echo 1 >/sys/devices/virtual/workqueue/cpumask
serve --images /den-vm/images
check 60 'the daemon answers' 'den version' || exit
# Standard error is a terminal: it says which one is on.
if ! den bench --json $(cat /den-vm/measures) >/tmp/report; then
    failed=$((failed + 1))
    echo 'FAIL  den bench'
    exit
fi
measures=$(jq -r '.results[] | [.name, (.p50 | tostring), (.goal.met | tostring), .note] | @tsv' /tmp/report)
while IFS=$'\t' read -r name figure met note; do
    if [ "$met" = true ]; then verdict=ok passed=$((passed + 1)); else verdict=FAIL failed=$((failed + 1)); fi
    echo "$verdict  $name $figure: $note"
done <<<"$measures"
