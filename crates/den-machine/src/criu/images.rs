//! CRIU's images, as far as they are about the host or the name of the computer: which ids it has, how it is called,
//! and who answers its calls.
//!
//! ```text
//! userns-*.img   two magic numbers, length, message { 1, 2: { first, lower_first, count } }    made anew
//! utsns-*.img    two magic numbers, length, message { 1: host name, 2: domain name }             made anew
//! seccomp.img    instructions of 8 bytes: `return USER_NOTIF` becomes `return ALLOW`            in place
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Magic numbers at the head of an image file, in bytes.
const MAGIC_BYTES: usize = 8;
/// `return SECCOMP_RET_USER_NOTIF`: BPF_RET | BPF_K, no jumps, the constant.
const ASK: [u8; 8] = [0x06, 0, 0, 0, 0, 0, 0xc0, 0x7f];
/// `return SECCOMP_RET_ALLOW`.
const ALLOW: [u8; 8] = [0x06, 0, 0, 0, 0, 0, 0xff, 0x7f];

/// Makes the images those of a computer whose ids are `base` to `base + ids`, that is called `hostname`, and whose
/// calls nobody waits for.
///
/// Anybody may read them who is in their folder: what is restored opens them from there, as who it will be. The
/// folder above lets nobody in.
pub(super) fn fit(folder: &Path, base: u32, ids: u32, hostname: &str) -> io::Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o644))?;
        if name.starts_with("userns-") && name.ends_with(".img") {
            let old = fs::read(entry.path())?;
            let magic = old.get(..MAGIC_BYTES).ok_or(io::ErrorKind::UnexpectedEof)?;
            fs::write(entry.path(), user_namespace(magic, base, ids))?;
        } else if name.starts_with("utsns-") && name.ends_with(".img") {
            let old = fs::read(entry.path())?;
            fs::write(entry.path(), host_name(&old, hostname).ok_or(io::ErrorKind::InvalidData)?)?;
        } else if name == "seccomp.img" {
            let mut bytes = fs::read(entry.path())?;
            if allow(&mut bytes) {
                fs::write(entry.path(), bytes)?;
            }
        }
    }
    Ok(())
}

/// An image of a user namespace with one range.
fn user_namespace(magic: &[u8], base: u32, ids: u32) -> Vec<u8> {
    let mut extent = Vec::new();
    for (number, value) in [(1, 0), (2, base), (3, ids)] {
        extent.push(number << 3);
        varint(&mut extent, value);
    }
    let mut message = Vec::new();
    for number in [1_u8, 2] {
        field(&mut message, number, &extent);
    }
    [magic, &(message.len() as u32).to_le_bytes(), &message].concat()
}

/// An image of a UTS namespace with another host name and the domain name that it had; none where it cannot be read.
fn host_name(old: &[u8], hostname: &str) -> Option<Vec<u8>> {
    let (magic, rest) = old.split_at_checked(MAGIC_BYTES)?;
    let (length, rest) = rest.split_at_checked(4)?;
    let mut left = rest.get(..u32::from_le_bytes(length.try_into().ok()?) as usize)?;
    let mut message = Vec::new();
    field(&mut message, 1, hostname.as_bytes());
    // Both are shorter than a varint of two bytes.
    while let [tag, length, rest @ ..] = left {
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        if *tag == 2 << 3 | 2 {
            field(&mut message, 2, value);
        }
        left = rest;
    }
    Some([magic, &(message.len() as u32).to_le_bytes(), &message].concat())
}

/// A field of bytes.
fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    varint(out, bytes.len() as u32);
    out.extend(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Says whether there was anything to change.
fn allow(bytes: &mut [u8]) -> bool {
    let mut changed = false;
    let mut at = 0;
    while at + ASK.len() <= bytes.len() {
        if bytes[at..at + ASK.len()] == ASK {
            bytes[at..at + ASK.len()].copy_from_slice(&ALLOW);
            changed = true;
        }
        at += 1;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_written_as_criu_does() {
        // As CRIU 4.2.1 wrote it for 0 → 805306368, 262144 ids.
        let image = user_namespace(&[0x19, 0x43, 0x56, 0x54, 1, 2, 3, 4], 805_306_368, 262_144);
        let extent = [0x08, 0, 0x10, 0x80, 0x80, 0x80, 0x80, 0x03, 0x18, 0x80, 0x80, 0x10];
        let mut expected = vec![0x19, 0x43, 0x56, 0x54, 1, 2, 3, 4, 28, 0, 0, 0];
        for field in [0x0a, 0x12] {
            expected.extend([field, 12]);
            expected.extend(extent);
        }
        assert_eq!(image, expected);
    }

    #[test]
    fn a_host_name_is_another_and_the_domain_stays() {
        let image = |message: &[u8]| [&[7; MAGIC_BYTES][..], &(message.len() as u32).to_le_bytes(), message].concat();
        let old = image(b"\x0a\x03web\x12\x06(none)");
        assert_eq!(host_name(&old, "try-1"), Some(image(b"\x0a\x05try-1\x12\x06(none)")));
        assert_eq!(host_name(&image(b"\x0a\x03we"), "try"), None);
        assert_eq!(host_name(&old[..9], "try"), None);
    }

    #[test]
    fn calls_that_waited_for_an_answer_are_allowed() {
        let mut bytes = [&[9_u8, 9, 9][..], &ASK, &[6, 0, 0, 0, 1, 0, 5, 0], &ASK].concat();
        assert!(allow(&mut bytes));
        assert_eq!(bytes, [&[9_u8, 9, 9][..], &ALLOW, &[6, 0, 0, 0, 1, 0, 5, 0], &ALLOW].concat());
        assert!(!allow(&mut bytes));
    }
}
