use super::*;

#[test]
fn what_is_no_text_is_shown_by_its_numbers() {
    let check = |bytes: &[u8], expected: &str| assert_eq!(show(bytes), expected);
    check(b"/plain name", "/plain name");
    check("/gr\u{fc}n".as_bytes(), "/gr\u{fc}n");
    check(b"/a\xffb", "/a\\xffb");
    check(b"/a\nb\x1b[31m", "/a\\x0ab\\x1b[31m");
    check(b"/a\\xff", "/a\\\\xff");
    check(b"/a\\b", "/a\\b");
}

#[test]
fn a_path_is_absolute_and_does_not_climb_out() {
    let check = |path: &str, expected: Option<&str>| {
        assert_eq!(checked(Path::new(path)).ok().as_deref(), expected.map(Path::new), "{path}");
    };
    check("/", Some("/"));
    check("//a/./b/", Some("/a/b"));
    check("/a/../b", Some("/a/../b"));
    check("/..", None);
    check("/a/../../etc", None);
    check("etc", None);
    check("", None);
    check("/a\0b", None);
    check(&"/x".repeat(DEPTH_MAX + 1), None);
    check(&"/0123456789".repeat(PATH_BYTES_MAX / 10), None);
}

#[test]
fn a_moment_that_no_number_holds_is_the_furthest_one() {
    assert_eq!(Stamp { sec: i64::MAX, nsec: 999_999_999 }.micros(), i64::MAX);
    assert_eq!(Stamp { sec: -2, nsec: 500_000_000 }.micros(), -1_500_000);
}

#[test]
fn older_kernels_are_told_the_layers_in_other_ways() {
    use overlay::By::{Descriptor, List, Name};
    let dir = tempfile::Builder::new().prefix("den-view-").tempdir().expect("a folder");
    for name in ["top", "layer"] {
        fs_err::create_dir(dir.path().join(name)).expect("a folder");
        fs_err::write(dir.path().join(name).join(name), "x").expect("a file");
    }
    for way in [Descriptor, Name, List] {
        let root = overlay::mount_by(&dir.path().join("top"), &[&dir.path().join("layer")], &[way]);
        let view = View { root: root.expect("a view; this test needs root and, by descriptor, Linux 6.13") };
        assert_eq!(view.entries(Path::new("/")).expect("entries").len(), 2, "{way:?}");
    }
}
