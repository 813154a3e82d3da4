//! Control groups: which layout, and whether each controller takes a limit in a group of our own.

use std::{path::Path, time::Duration};

use den_sys::{
    SysError,
    cgroup::{Cgroups, Freezer, Hierarchies, Layout, Limits},
};

use super::{Check, line};

/// An empty group stands still at once.
const FREEZE_MAX: Duration = Duration::from_secs(1);

/// On v2 they are in one tree; on v1 each has its own.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

pub(super) fn checks() -> Vec<Check> {
    let found = match Hierarchies::find() {
        Ok(found) => found,
        Err(error) => return vec![Check::fail("cgroups", error.to_string(), "limits cannot be set")],
    };
    vec![controllers(&found), freezer(&found)]
}

fn controllers(found: &Hierarchies) -> Check {
    const NAME: &str = "cgroups";
    let unified = found.unified.as_deref();
    let layout = match (found.layout, unified, found.v1.is_empty()) {
        (Layout::V2, ..) => "v2",
        (Layout::V1, Some(_), false) => "hybrid: v1 controllers beside a v2 tree",
        (Layout::V1, None, false) => "v1",
        (Layout::V1, _, true) => {
            let fix = "mount -t cgroup2 cgroup2 /sys/fs/cgroup";
            return Check::fail(NAME, "no hierarchy with controllers is mounted", "computers would have no limits")
                .fix(fix);
        }
    };
    let there = |name: &str| match unified {
        Some(mount) if found.layout == Layout::V2 => {
            line(mount.join("cgroup.controllers")).is_some_and(|list| list.split(' ').any(|found| found == name))
        }
        _ => found.v1.iter().any(|(controller, _)| *controller == name),
    };
    let lacking: Vec<_> = CONTROLLERS.into_iter().filter(|name| !there(name)).collect();
    if !lacking.is_empty() {
        let found = format!("{layout}, without {}", lacking.join(", "));
        return Check::fail(NAME, found, "computers would not be held to their limits");
    }
    match in_own_group(unified, |groups| {
        groups.limit("trial", &Limits { cpu_milli: 500, memory_bytes: 64 << 20, pids: 64 })
    }) {
        Ok(()) if !there("cpuset") => {
            let means = "a computer that keeps the kernel busy leaves no processor to others";
            Check::warn(NAME, format!("{layout}; cpu, memory and pids take limits; there is no cpuset"), means)
        }
        Ok(()) => Check::ok(NAME, format!("{layout}; cpu, memory and pids take limits")),
        Err(error) => Check::fail(NAME, format!("{layout}; {error}"), "computers would not be held to their limits"),
    }
}

fn freezer(found: &Hierarchies) -> Check {
    const NAME: &str = "freezer";
    let Some(mount) = found.freezing() else {
        let means = "a computer cannot be held still for a snapshot or a pause";
        return Check::warn(NAME, "neither a cgroup2 tree nor a v1 freezer is mounted", means)
            .fix("mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified");
    };
    let tried = in_own_group(found.unified.as_deref(), |_| {
        let path = mount.join(instance()).join("trial");
        let gone = || SysError::new("open", path.display(), rustix::io::Errno::NOENT.raw_os_error());
        let mut freezer = Freezer::of(&path).ok_or_else(gone)?;
        match freezer.freeze(FREEZE_MAX)? {
            true => freezer.thaw(),
            false => Err(SysError::new("freeze", path.display(), rustix::io::Errno::TIMEDOUT.raw_os_error())),
        }
    });
    let by = if found.unified.is_some() { "cgroup.freeze" } else { "the v1 freezer" };
    let found = tried.map(|()| format!("{by} freezes and thaws"));
    Check::tried(NAME, found, super::Status::Warn, "a computer cannot be held still for a snapshot or a pause", None)
}

fn instance() -> String {
    format!("den-doctor-{}", std::process::id())
}

/// Tries something in a group made for it, and unmakes the group and what making it switched on.
fn in_own_group(unified: Option<&Path>, trial: impl FnOnce(&Cgroups) -> Result<(), SysError>) -> Result<(), SysError> {
    let switches = unified.map(|mount| mount.join("cgroup.subtree_control"));
    let on = |path: &Path| line(path).unwrap_or_default().split(' ').map(str::to_owned).collect::<Vec<_>>();
    let before = switches.as_deref().map(on);
    let instance = instance();
    let result = Cgroups::open(&instance).and_then(|groups| {
        let result = groups.create("trial", 0).and_then(|()| trial(&groups));
        groups.remove("trial").and(result)
    });
    let removed = Cgroups::remove_instance(&instance);
    if let (Some(path), Some(before)) = (switches, before) {
        for switched in on(&path).iter().filter(|name| !name.is_empty() && !before.contains(name)) {
            let _ = std::fs::write(&path, format!("-{switched}")); // In use by another by now.
        }
    }
    result.and(removed)
}
