//! What disks promise of their states: kept, forked with keys of their own, taken back.

mod common;
mod rekey;
mod settled;
mod snapshots;
