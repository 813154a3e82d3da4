//! Users and groups, from /etc/passwd and /etc/group inside. The C library's look-ups load shared
//! libraries, which a static program must not.

use std::collections::HashMap;
use std::io::Read;

use den_wire::agent::FailureKind;
use rustix::fs::{Mode, OFlags};

use super::failure::{Outcome, failure};

/// How much of each file is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its other groups.
    pub groups: Vec<u32>,
    /// Its name; the number where it has none.
    pub name: String,
    /// Its home directory; `/` where it has none.
    pub home: Vec<u8>,
    /// Its shell; `/bin/sh` where it has none.
    pub shell: Vec<u8>,
}

/// Both files as they are now.
#[derive(Debug, Default)]
pub struct Users {
    passwd: Vec<u8>,
    group: Vec<u8>,
    user_names: HashMap<u32, Option<String>>,
    group_names: HashMap<u32, Option<String>>,
}

impl Users {
    /// Reads them; one that is missing or no file counts as empty.
    pub fn read() -> Self {
        Self { passwd: slurp("/etc/passwd"), group: slurp("/etc/group"), ..Self::default() }
    }

    /// Who `name`, `uid`, `name:group` or `uid:gid` is. A number needs no entry.
    pub fn user(&self, wanted: &str) -> Outcome<User> {
        let missing = || failure(FailureKind::NoSuchUser, wanted, None);
        let (name, group) = match wanted.split_once(':') {
            Some((name, group)) => (name, Some(group)),
            None => (wanted, None),
        };
        let number = name.parse::<u32>().ok().filter(|&uid| uid != u32::MAX);
        // A name that looks like a number is a name first, as chown(1) has it.
        let entry = self
            .passwd_lines()
            .find(|entry| entry[0] == name.as_bytes())
            .or_else(|| self.passwd_lines().find(|entry| number.is_some() && number_of(entry[2]) == number));
        let mut user = match (entry, number) {
            (Some(entry), _) => User {
                uid: number_of(entry[2]).ok_or_else(missing)?,
                gid: number_of(entry[3]).ok_or_else(missing)?,
                groups: Vec::new(),
                name: String::from_utf8_lossy(entry[0]).into_owned(),
                home: or(entry[5], b"/"),
                shell: or(entry[6], b"/bin/sh"),
            },
            (None, Some(uid)) => User {
                uid,
                gid: 0,
                groups: Vec::new(),
                name: uid.to_string(),
                home: b"/".to_vec(),
                shell: b"/bin/sh".to_vec(),
            },
            (None, None) => return Err(missing()),
        };
        if let Some(group) = group {
            user.gid = self.group(group).ok_or_else(missing)?;
        }
        user.groups = self.groups_of(&user);
        Ok(user)
    }

    /// The numbers in `user`, `user:group`, `user:` (its own group) or `:group`; `None` is left as it is.
    pub fn owner(&self, wanted: &str) -> Outcome<(Option<u32>, Option<u32>)> {
        if let Some(group) = wanted.strip_prefix(':') {
            let missing = || failure(FailureKind::NoSuchUser, wanted, None);
            return Ok((None, Some(self.group(group).ok_or_else(missing)?)));
        }
        match wanted.strip_suffix(':') {
            Some(name) => self.user(name).map(|user| (Some(user.uid), Some(user.gid))),
            None => self.user(wanted).map(|user| (Some(user.uid), wanted.contains(':').then_some(user.gid))),
        }
    }

    /// The numbers for something new: as [`Self::owner`], but `user` alone takes its own group along.
    pub fn owner_of_new(&self, wanted: &str) -> Outcome<(Option<u32>, Option<u32>)> {
        let (uid, gid) = self.owner(wanted)?;
        Ok((uid, if gid.is_none() { Some(self.user(wanted)?.gid) } else { gid }))
    }

    /// The name of a user's number.
    pub fn user_name(&mut self, uid: u32) -> Option<String> {
        if let Some(known) = self.user_names.get(&uid) {
            return known.clone();
        }
        let entry = self.passwd_lines().find(|entry| number_of(entry[2]) == Some(uid));
        let name = entry.map(|entry| String::from_utf8_lossy(entry[0]).into_owned());
        self.user_names.insert(uid, name.clone());
        name
    }

    /// The name of a group's number.
    pub fn group_name(&mut self, gid: u32) -> Option<String> {
        if let Some(known) = self.group_names.get(&gid) {
            return known.clone();
        }
        let entry = self.group_lines().find(|entry| number_of(entry[2]) == Some(gid));
        let name = entry.map(|entry| String::from_utf8_lossy(entry[0]).into_owned());
        self.group_names.insert(gid, name.clone());
        name
    }

    fn group(&self, wanted: &str) -> Option<u32> {
        let entry = self.group_lines().find(|entry| entry[0] == wanted.as_bytes());
        let named = entry.and_then(|entry| number_of(entry[2]));
        named.or_else(|| wanted.parse().ok().filter(|&gid| gid != u32::MAX))
    }

    fn groups_of(&self, user: &User) -> Vec<u32> {
        let name = user.name.as_bytes();
        let member = |entry: &[&[u8]; 4]| entry[3].split(|&b| b == b',').any(|member| member == name);
        let mut groups = vec![user.gid];
        for gid in self.group_lines().filter(member).filter_map(|entry| number_of(entry[2])) {
            if !groups.contains(&gid) {
                groups.push(gid);
            }
        }
        groups
    }

    fn passwd_lines(&self) -> impl Iterator<Item = [&[u8]; 7]> {
        lines(&self.passwd)
    }

    fn group_lines(&self) -> impl Iterator<Item = [&[u8]; 4]> {
        lines(&self.group)
    }
}

/// Lines with at least `N` fields; comments and others are passed over.
fn lines<const N: usize>(text: &[u8]) -> impl Iterator<Item = [&[u8]; N]> {
    text.split(|&b| b == b'\n').filter_map(|line| {
        let mut fields = [&line[..0]; N];
        let mut parts = line.split(|&b| b == b':');
        for field in &mut fields {
            *field = parts.next()?;
        }
        (!fields[0].is_empty() && fields[0][0] != b'#').then_some(fields)
    })
}

fn number_of(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn or(field: &[u8], default: &[u8]) -> Vec<u8> {
    if field.is_empty() { default } else { field }.to_vec()
}

fn slurp(path: &str) -> Vec<u8> {
    // Without O_NONBLOCK a FIFO put there would hold the agent.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut text = Vec::new();
    if let Ok(fd) = rustix::fs::open(path, flags, Mode::empty())
        && let Ok(stat) = rustix::fs::fstat(&fd)
        && rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file()
    {
        // Room for all of it and the end, so that two calls read it.
        text.reserve((stat.st_size as u64).min(FILE_BYTES_MAX) as usize + 64);
        let _ = std::fs::File::from(fd).take(FILE_BYTES_MAX).read_to_end(&mut text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Users {
        Users {
            passwd: b"root:x:0:0:root:/root:/bin/bash\n# no\nbroken:1\nuser:x:1000:1000::/home/user:\n".to_vec(),
            group: b"root:x:0:\nuser:x:1000:\nsudo:x:27:a,user\ndocker:x:999:user,b\n".to_vec(),
            ..Users::default()
        }
    }

    #[test]
    fn a_user_has_its_groups() {
        let user = users().user("user").expect("is there");
        assert_eq!((user.uid, user.gid, user.groups), (1000, 1000, vec![1000, 27, 999]));
        assert_eq!((user.home, user.shell), (b"/home/user".to_vec(), b"/bin/sh".to_vec()));
        assert_eq!(users().user("1000:sudo").expect("is there").groups, [27, 999]);
    }

    #[test]
    fn a_number_needs_no_entry() {
        let user = users().user("4242").expect("a number");
        assert_eq!((user.uid, user.gid, user.name.as_str()), (4242, 0, "4242"));
        assert_eq!(users().user("7:8").expect("numbers").gid, 8);
        for missing in ["nobody", "user:nogroup", "", "-1", "4294967295"] {
            assert_eq!(users().user(missing).expect_err(missing).kind, FailureKind::NoSuchUser);
        }
    }

    #[test]
    fn an_owner_may_lack_either_half() {
        let owner = |text| users().owner(text).expect(text);
        assert_eq!(owner("user"), (Some(1000), None));
        assert_eq!(owner(":sudo"), (None, Some(27)));
        assert_eq!(owner("user:"), (Some(1000), Some(1000)));
        assert_eq!(owner("5:6"), (Some(5), Some(6)));
    }
}
