//! Linux as safe types that own what they open.
//!
//! ```text
//! launch    clone, creds, mount (new mount API), seccomp, netlink, cgroup (v1 and v2), launch
//! agent     spawn, pty, inotify, notify (answering calls of others)
//! sleep     cgroup (freezer), pageout
//! disk      btrfs, loopdev
//! gate      transparent (sockets for others' addresses), datagram, splice, netlink
//! all       socket (descriptors over unix sockets), error, failpoint
//! ```
//!
//! All `unsafe` of Den lies here. Deliberately absent: any idea of a computer.

pub mod btrfs;
pub mod cgroup;
pub mod clone;
pub mod creds;
pub mod datagram;
pub mod error;
pub mod failpoint;
pub mod inotify;
pub mod kvm;
pub mod loopdev;
pub mod mount;
pub mod netlink;
pub mod notify;
pub mod pageout;
pub mod pty;
pub mod seccomp;
pub mod slice;
pub mod socket;
pub mod spawn;
pub mod splice;
pub mod transparent;

pub use error::SysError;
