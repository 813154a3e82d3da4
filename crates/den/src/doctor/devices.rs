//! Devices that computers get or are carried by: FUSE, tun, veth, KVM.

use std::{path::Path, time::Duration};

use den_sys::{
    kvm::{self, Ending, Stage, Trial},
    netlink::{Netlink, VethPair},
};

use super::{Check, Status, kernel::Inside};

/// Guest code that works is through in 3 ms.
const KVM_LIMIT: Duration = Duration::from_millis(500);

pub(super) fn checks() -> Vec<Check> {
    vec![
        node("fuse", "/dev/fuse", "no FUSE inside computers (sshfs, rootless containers, AppImages)", "modprobe fuse"),
        node("tun", "/dev/net/tun", "no tun devices inside computers (VPNs, slirp4netns)", "modprobe tun"),
        veth(),
        kvm(),
    ]
}

fn node(name: &'static str, path: &str, means: &str, fix: &str) -> Check {
    let opened = std::fs::File::options().read(true).write(true).open(path);
    let opened = opened.map(|_| format!("{path} opens")).map_err(|error| format!("{path}: {error}"));
    Check::tried(name, opened, Status::Warn, means, Some(fix))
}

/// A veth pair into the network namespace of a child. It ends with the namespace at the latest.
fn veth() -> Check {
    let name = format!("den{}", std::process::id());
    let tried = Inside::start("--net", "net").map_err(|error| error.to_string()).and_then(|inside| {
        let pair = VethPair {
            name: &name,
            index: 0,
            mac: None,
            peer_pid: inside.pid(),
            peer_name: "eth0",
            peer_mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
        };
        let link = Netlink::open().map_err(|error| error.to_string())?;
        let made = link.add_veth(&pair).map_err(|error| error.to_string());
        let gone = link.delete(&name).map_err(|error| error.to_string());
        made.and(gone)
    });
    let tried = tried.map(|()| "a pair into a new network namespace".to_owned());
    Check::tried("veth", tried, Status::Warn, "computers have no network but their loopback", Some("modprobe veth"))
}

fn kvm() -> Check {
    const NAME: &str = "kvm";
    const MEANS: &str =
        "the vm tier runs without KVM: emulated, several times slower; containers are not touched by it";
    if !Path::new("/dev/kvm").exists() {
        return Check::warn(NAME, "no /dev/kvm", MEANS).fix("modprobe kvm_intel || modprobe kvm_amd");
    }
    let variant =
        ["kvm_intel", "kvm_amd", "kvm_pvm"].into_iter().find(|name| Path::new("/sys/module").join(name).exists());
    let variant = variant.map_or(String::new(), |name| format!(" ({name})"));
    let trial = match kvm::trial(KVM_LIMIT) {
        Ok(trial) => trial,
        Err(error) => return Check::warn(NAME, error.to_string(), MEANS),
    };
    let Trial { stage, ending } = trial;
    let why = match ending {
        Ending::Done => {
            return Check::ok(
                NAME,
                format!("16-bit and 64-bit guest code ran, with an exception taken inside{variant}"),
            );
        }
        Ending::Errno(errno) => std::io::Error::from_raw_os_error(errno).to_string(),
        Ending::Exit(reason) => format!("the guest left with exit reason {reason}"),
        Ending::NotEmulated(bytes) => {
            let bytes = bytes.map(|byte| format!("{byte:02x}")).join(" ");
            format!("KVM only interprets guests here and does not know `{bytes}`")
        }
        Ending::TimedOut => format!("nothing came in {} ms", KVM_LIMIT.as_millis()),
        Ending::Killed => "the kernel ended the trial".to_owned(),
    };
    let found = match stage {
        Stage::Open => format!("{}: {why}", stage.as_str()),
        Stage::LongMode | Stage::Exception => {
            format!("opens and runs 16-bit code, but boots no kernel{variant}: {}: {why}", stage.as_str())
        }
        _ => format!("opens, but runs no guest{variant}: {}: {why}", stage.as_str()),
    };
    Check::warn(NAME, found, MEANS)
}
