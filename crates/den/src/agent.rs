//! The static program that runs inside every computer, built by this crate's build script.

/// Its bytes.
pub static AGENT: &[u8] = include_bytes!(env!("DEN_AGENT_PATH"));
