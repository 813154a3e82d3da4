//! Reading a computer back from a disk: what CRIU needs around it.
//!
//! ```text
//! serve ── Revive, on standard input ──► den-agent revive
//!    ▲           cgroup · mount namespace of its own: overlay, /dev, volumes, agent · ids of the images
//!    │           └─► becomes CRIU, in the cgroup ─► the computer's processes
//!    │                   ├─ setup-namespaces ─► den-agent hook: its link
//!    └── one word each ──┴─ pre-resume, post-dump … ─► den-agent hook SOCKET: goes on if it is told so
//! ```
//!
//! Invariants:
//! - All that is made here lies in a mount namespace that ends with CRIU, or in the cgroup, which the launcher ends
//!   if `serve` goes away.
//! - A hook that hears nothing, or a no, fails, and CRIU gives up: it lets a computer that it was writing go on,
//!   and ends one that it was reading.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use den_sys::SysError;
use den_sys::cgroup::{self, Cgroups, Hierarchies, Limits};
use den_sys::clone::{self, Cloned};
use den_sys::mount::{self, Access, Detached, LayersBy, OverlayPlan};
use den_wire::launcher::{Revive, cgroup_name, pool_cgroup_name, shared_name};

use crate::launcher::{GateNet, cell_dev, set_up_inside};

/// How long a hook waits for `serve` to answer.
const HOOK_WAIT: Duration = Duration::from_secs(60);
/// A mistake by the host, or a newer one.
const REQUEST_BYTES_MAX: u64 = 1 << 20;

/// `den-agent revive`: becomes CRIU, or returns the exit code.
pub fn main() -> i32 {
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(REQUEST_BYTES_MAX).read_to_end(&mut bytes);
    let request: Revive = match read.ok().and_then(|_| minicbor::decode(&bytes).ok()) {
        Some(request) => request,
        None => {
            eprintln!("error: no request on standard input");
            return 2;
        }
    };
    match revive(&request) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("error: {error}");
            1
        }
    }
}

fn revive(request: &Revive) -> Result<std::convert::Infallible, SysError> {
    // Devices have the modes that they are given.
    rustix::process::umask(rustix::fs::Mode::empty());
    let create = &request.create;
    let instance = cgroup::instance_of(Path::new(&request.run));
    let cgroups = Cgroups::open(&instance)?;
    let name = cgroup_name(create.pool, request.link);
    if create.pool != 0 {
        cgroups.create_parent(&pool_cgroup_name(create.pool))?;
    }
    cgroups.create(&name, request.base)?;
    let limits = Limits {
        cpu_milli: create.limits.cpu_milli,
        memory_bytes: create.limits.memory_bytes,
        pids: create.limits.pids,
    };
    cgroups.limit(&name, &limits)?;
    let door = cgroups.door(&name)?;
    let unified = Hierarchies::find()?.unified;

    clone::unshare(clone::Unshare::Mount)?;
    mount::propagate_root(rustix::mount::MountPropagationFlags::PRIVATE)?;
    let stage = Stage::new(request)?;
    let root = stage.directory("root")?;
    let namespace = id_map(request.base, request.ids)?;
    let layers: Vec<&Path> = create.layers.iter().map(Path::new).collect();
    let disk = Path::new(&create.disk);
    let aside = stage.directory("layers")?;
    let plan =
        OverlayPlan { lower: &layers, writable: disk, idmap: namespace.as_fd(), base: request.base, stage: &aside };
    let overlay = mount::overlay(&plan, LayersBy::Descriptor).or_else(|_| mount::overlay(&plan, LayersBy::Path))?;
    overlay.attach(&text(&root))?;
    let dev = stage.directory("dev")?;
    cell_dev(request.base, Some(&request.boot_id))?.attach(&text(&dev))?;
    let agent = stage.file("agent")?;
    Detached::of_tree(Path::new(&create.agent), None, Access::ReadOnly)?.attach(&text(&agent))?;

    let mut criu = Command::new(&request.criu);
    criu.arg("restore").args(["-v2", "-o", "restore.log", "-d", "--images-dir"]).arg(&request.images);
    criu.args(["--tcp-established", "--file-locks", "--manage-cgroups=ignore", "--empty-ns", "net"]);
    criu.args(["--network-lock", "skip"]);
    criu.arg("--root").arg(&root);
    let mut external = |name: &str, path: &Path| {
        criu.arg("--external").arg(format!("mnt[{name}]:{}", path.display()));
    };
    external("dev", &dev);
    external("agent", &agent);
    if door.unified().is_some() {
        let mount = match unified {
            Some(mount) => mount,
            // As in the launcher, nobody else sees it.
            None => {
                let at = stage.directory("cgroup")?;
                cgroup::new_unified()?.attach(&text(&at))?;
                at
            }
        };
        external("cgroup", &mount.join(&instance).join(&name));
    }
    for (name, _) in &create.volumes {
        let at = stage.directory(name)?;
        let tree = disk.join("vol").join(name);
        Detached::of_tree(&tree, Some(namespace.as_fd()), Access::ReadWrite)?.attach(&text(&at))?;
        external(name, &at);
    }
    for (number, (folder, _)) in create.shared.iter().enumerate() {
        let name = shared_name(number);
        let at = stage.directory(&name)?;
        Detached::of_tree(Path::new(folder), Some(namespace.as_fd()), Access::Shared)?.attach(&text(&at))?;
        external(&name, &at);
    }
    let own = std::env::current_exe().map_err(|error| SysError::io("readlink", Path::new("/proc/self/exe"), &error))?;
    let hook = stage.file("hook")?;
    let script = format!("#!{} hook\n{}\n{}\n{}\n", own.display(), request.hook, request.run, request.link);
    fs::write(&hook, script)
        .and_then(|()| fs::set_permissions(&hook, fs::Permissions::from_mode(0o700)))
        .map_err(|error| SysError::io("write", &hook, &error))?;
    criu.arg("--action-script").arg(&hook);

    // What the computer's first process has, and could not get again by itself. Refused without CAP_SYS_RESOURCE.
    clone::raise_limits(std::process::id() as i32);
    let _ = fs::write("/proc/self/oom_score_adj", "-900");
    door.enter_whole()?;
    clone::unshare(clone::Unshare::Cgroup)?;
    criu.stdin(std::process::Stdio::null());
    Err(SysError::io("execute", Path::new(&request.criu), &criu.exec()))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A place for mounts that nobody else sees: a tmpfs over a folder of the host, in this mount namespace alone.
///
/// What is restored walks there as the computer's root, so RUN, which is the host's root's alone, will not do.
struct Stage(PathBuf);

/// Folders that every host has and that anybody may walk through.
const STAGES: [&str; 4] = ["/dev/shm", "/mnt", "/media", "/srv"];

impl Stage {
    fn new(request: &Revive) -> Result<Self, SysError> {
        let create = &request.create;
        let mut needed = vec![&request.run, &request.images, &request.criu, &create.disk, &create.agent];
        needed.extend(&create.layers);
        needed.extend(create.shared.iter().map(|(folder, _)| folder));
        let is_free = |at: &&str| Path::new(at).is_dir() && !needed.iter().any(|path| Path::new(path).starts_with(at));
        let at = STAGES.iter().find(|at| is_free(at)).map(PathBuf::from);
        let at = at.ok_or(SysError::new("stage", "no folder for it", rustix::io::Errno::NOENT.raw_os_error()))?;
        mount::new_filesystem("tmpfs", &[("mode", "0755"), ("size", "64k")], rustix::mount::MountAttrFlags::empty())?
            .attach(&text(&at))?;
        Ok(Self(at))
    }

    fn directory(&self, name: &str) -> Result<PathBuf, SysError> {
        let path = self.0.join(name);
        fs::create_dir(&path).map_err(|error| SysError::io("mkdir", &path, &error))?;
        Ok(path)
    }

    fn file(&self, name: &str) -> Result<PathBuf, SysError> {
        let path = self.0.join(name);
        fs::write(&path, "").map_err(|error| SysError::io("create", &path, &error))?;
        Ok(path)
    }
}

/// A user namespace that maps 0.. to `base`.., held by nothing but its descriptor.
fn id_map(base: u32, count: u32) -> Result<std::os::fd::OwnedFd, SysError> {
    let (ours, theirs) = den_sys::socket::packet_pair()?;
    match clone::clone(clone::USER_NAMESPACE)? {
        Cloned::Child => {
            drop(ours);
            let _ = den_sys::socket::receive(&theirs, &mut [0; 1], &mut Vec::new());
            clone::exit_now(0)
        }
        Cloned::Parent(child) => {
            let folder = PathBuf::from(format!("/proc/{}", child.pid));
            let map = format!("0 {base} {count}\n");
            let write = |name: &str| {
                let path = folder.join(name);
                let written =
                    fs::OpenOptions::new().write(true).open(&path).and_then(|mut f| f.write_all(map.as_bytes()));
                written.map_err(|error| SysError::io("write", &path, &error))
            };
            let path = folder.join("ns/user");
            let opened = write("uid_map")
                .and_then(|()| write("gid_map"))
                .and_then(|()| fs::File::open(&path).map_err(|error| SysError::io("open", &path, &error)));
            drop(ours);
            clone::reap(child.pid, true);
            opened.map(Into::into)
        }
    }
}

/// `den-agent hook FILE`: what CRIU runs on its way. CRIU takes a file and no words for it, so the file begins with
/// `#!…/den-agent hook`; what follows are lines: the socket, and for a link RUN and its number.
pub fn hook(args: &[String]) -> i32 {
    let text = args.first().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().skip(1).collect();
    let action = std::env::var("CRTOOLS_SCRIPT_ACTION").unwrap_or_default();
    let pid = std::env::var("CRTOOLS_INIT_PID").unwrap_or_default();
    let done = match (action.as_str(), lines.as_slice()) {
        ("setup-namespaces", [_, run, link]) => connect(run, link, &pid),
        ("post-dump" | "pre-resume", [socket, ..]) => ask(socket, &action, &pid),
        (_, [_, ..]) => Ok(()),
        (_, []) => Err("no socket is named".to_owned()),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {action}: {error}");
            1
        }
    }
}

/// Gives the computer its link.
fn connect(run: &str, link: &str, pid: &str) -> Result<(), String> {
    let (Ok(link), Ok(pid)) = (link.parse::<u64>(), pid.parse::<i32>()) else {
        return Err("no numbers".to_owned());
    };
    let inside = || {
        let net = GateNet::open(&Path::new(run).join("gate.netns"))?;
        net.links()?.connect(link, pid)?;
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let namespace = fs::File::open(&path).map_err(|error| SysError::io("open", &path, &error))?;
        clone::enter_network(namespace.as_fd())?;
        set_up_inside()
    };
    inside().map_err(|error: SysError| error.to_string())
}

/// Tells `serve` how far it is, and asks whether to go on.
fn ask(socket: &str, action: &str, pid: &str) -> Result<(), String> {
    let asked = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(HOOK_WAIT))?;
        stream.write_all(format!("{action} {pid}\n").as_bytes())?;
        let mut word = [0];
        stream.read_exact(&mut word)?;
        Ok(word[0])
    };
    match asked() {
        Ok(b'y') => Ok(()),
        Ok(_) => Err("it is not to go on".to_owned()),
        Err(error) => Err(std::io::Error::to_string(&error)),
    }
}
