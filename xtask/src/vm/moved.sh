# A house that moves. On the host, `moved.sh TAR TO` makes computers, tells of them in TO/known and TO/inside, and
# backs all up to TO/place. guest.sh reads this file in the machine, where the same has to be told of what is restored.

# What a house knows of them: steps, what these said, states, and what is in these. Steps that are told of inside come
# later, so that it is asked for first.
known() {
    local name step
    for name in moved branch; do
        echo "== $name"
        den log "$name" -n 0 --json && den snaps "$name" --json || return
        for step in 1 2 3; do echo "-- step $step" && den log "$name" "$step" 2>&1 || return; done
    done
    echo "== states"
    for state in one two now; do den cat "moved@$state" /srv/note || return; done
    den diff moved@one moved@two && den diff moved@one branch@now || return
    # But whether they run.
    den tree --lineage moved | sed -E 's/  (running|stopped)//'
    den trash | awk '{ print $1 }'
}

# What is told inside of them: every file below some folders, with its owner, mode, time, links and bytes.
inside() {
    local name
    for name in moved branch; do
        echo "== $name"
        den exec "$name" -- sh -ec '
            cd /; find srv opt etc/lower | sort | while read -r path; do stat -c "%n %f %u:%g %Y" "$path"; done
            find srv opt etc/lower -type f | sort | while read -r path; do stat -c "%n %s %h" "$path"; sha256sum "$path"; done
            readlink /srv/link; ls /bin | wc -l' || return
    done
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    den() { "$DEN" "$@"; }
    {
        den image import "$1" small
        den new moved -I small --memory 256M
        den exec moved -- sh -ec 'mkdir -p /srv/deep/er; head -c 3000000 /dev/urandom > /srv/large; echo one > /srv/note
            ln /srv/note /srv/linked; ln -s /nowhere /srv/link; mkfifo /srv/fifo; chmod 4750 /srv/large; chown 12:34 /srv/note
            rm /opt/tree/old; echo made'
        den snap moved one
        den exec moved -- sh -c 'echo two > /srv/note; rm -r /srv/deep; echo said; echo complained >&2; exit 3' || [ $? -eq 3 ]
        den snap moved two
        den fork moved@one branch
        den exec moved -- sh -c 'echo three > /srv/note; truncate -s 100M /srv/sparse'
        for word in a b c; do den exec branch -- sh -c "echo $word >> /srv/own; cat /srv/note"; done
        den new gone -I small
        den rm gone
    } >/dev/null
    inside >"$2/inside"
    known >"$2/known"
    den backup "$2/place"
fi
