//! The hostile suite: one file per way of using up what a host has, or of breaking the walls' own
//! machinery, from a computer whose root wants harm.
//!
//! ```text
//! attacker (root inside, limits of its own) ──► limits ──► host, unharmed ──► neighbour, served
//! ```
//!
//! Each row shows (1) where the attack ends and with which error, (2) that a neighbour's commands were
//! answered all the while, (3) that the host holds nothing of it, and (4) what becomes of the attacker:
//! it goes on, or is failed with a reason and starts again. What the network takes is the subject of
//! `attack`, and how fast the neighbour is that of the bench.

mod world;

mod agent;
mod cgroups;
mod descriptors;
mod disk;
mod kernel;
mod locks;
mod log;
mod memory;
mod mounts;
mod namespaces;
mod processes;
mod storms;
mod terminals;
mod watches;
