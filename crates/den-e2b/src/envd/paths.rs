//! Paths as envd reads them: absolute, from a user's home with `~`, or from there without.

use crate::book::Sandbox;

/// The home of a user, as the templates have it.
pub(crate) fn home(user: &str) -> String {
    match user {
        "root" | "0" => "/root".to_owned(),
        user => format!("/home/{}", user.split(':').next().unwrap_or(user)),
    }
}

/// The absolute form of a path, without `.`, `..` and doubled slashes.
pub(crate) fn resolve(path: &str, user: &str) -> String {
    let path = match path {
        "" | "~" => home(user),
        path if path.starts_with("~/") => format!("{}{}", home(user), &path[1..]),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("{}/{path}", home(user)),
    };
    clean(&path)
}

/// As [`resolve`], in a sandbox: from where its template works, of one that says so.
pub(crate) fn of(sandbox: &Sandbox, path: &str, user: &str) -> String {
    let facts = sandbox.facts();
    match &facts.context {
        Some(context) if !path.starts_with('/') && path != "~" && !path.starts_with("~/") => {
            clean(&format!("{}/{path}", context.workdir))
        }
        _ => resolve(path, user),
    }
}

/// An absolute path without what leads nowhere.
pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The last part of a path.
pub(crate) fn name(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/")
}

/// The directory that a path is in.
pub(crate) fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(at) => &path[..at],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_absolute() {
        for (path, user, expected) in [
            ("", "user", "/home/user"),
            ("~", "root", "/root"),
            ("~/a/../b", "user", "/home/user/b"),
            ("a//b/.", "user", "/home/user/a/b"),
            ("/../etc", "user", "/etc"),
            ("/", "user", "/"),
        ] {
            assert_eq!(resolve(path, user), expected, "{path}");
        }
        assert_eq!((name("/a/b/"), name("/"), parent("/a"), parent("/a/b")), ("b", "/", "/", "/a"));
    }
}
