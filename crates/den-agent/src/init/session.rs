//! The processes of a step: its process group, and the other groups of its session.

use den_sys::spawn::kill;

/// Who belongs to the session or group that `leader` leads or led, zombies apart.
pub fn members(leader: u32) -> Vec<i32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut members = Vec::new();
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if let Ok(stat) = std::fs::read(process.path().join("stat"))
            && belongs(&stat, leader)
        {
            members.push(pid);
        }
    }
    members
}

/// Sends a signal to all of them.
pub fn signal(leader: u32, signal: i32) {
    let _ = kill(-(leader as i32), signal);
    for pid in members(leader) {
        // Those of the group have it already, and a second SIGTERM could be taken for impatience.
        if rustix::process::Pid::from_raw(pid)
            .and_then(|pid| rustix::process::getpgid(Some(pid)).ok())
            .is_some_and(|group| group.as_raw_pid() as u32 != leader)
        {
            let _ = kill(pid, signal);
        }
    }
}

/// `pid (name) state parent group session ...`, where the name may hold anything (proc_pid_stat(5)).
fn belongs(stat: &[u8], leader: u32) -> bool {
    let Some(end) = stat.iter().rposition(|&b| b == b')') else { return false };
    let mut fields = stat[end + 1..].split(|&b| b == b' ').filter(|field| !field.is_empty());
    let state = fields.next();
    let number = |field: Option<&[u8]>| std::str::from_utf8(field?).ok()?.parse::<u32>().ok();
    let (_, group, session) = (fields.next(), number(fields.next()), number(fields.next()));
    state != Some(b"Z") && state != Some(b"X") && (group == Some(leader) || session == Some(leader))
}

#[cfg(test)]
mod tests {
    use super::belongs;

    #[test]
    fn a_name_with_parentheses_is_no_field() {
        assert!(belongs(b"7 (a) Z 1) S 1 5 6 0", 6));
        assert!(belongs(b"7 (x) S 1 5 6 0", 5));
        assert!(!belongs(b"7 (x) Z 1 5 6 0", 5));
        assert!(!belongs(b"7 (x) S 5 1 1 5", 5));
        assert!(!belongs(b"", 5));
    }
}
