//! A computer is one: what people run on theirs is installed from the registries through the gate
//! and run inside, for real.
//!
//! ```text
//! Lab ── House (daemon, gate) ── computer `lab` (posture open) ── apt-get install … ─► the software itself
//! ```
//!
//! One computer a file, made for it and gone with it. What cannot work in the container tier is in
//! docs/COMPUTER.md with the error that a user sees, and asserted here as well.

mod computer {
    mod databases;
    mod den;
    mod docker;
    mod git;
    mod init;
    mod lab;
    mod languages;
    mod links;
    mod mounts;
    mod nested;
    mod services;
}
