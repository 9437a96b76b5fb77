//! Tables of real command lines, spellings checked against the programs, and properties.

mod engines;
mod programs;
mod properties;
mod spellings;

use super::*;

/// A command line written in a row; words are what white space separates.
fn argv(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn os(word: &str) -> Option<OsString> {
    Some(OsString::from(word))
}

fn path(word: &str) -> Option<PathBuf> {
    Some(PathBuf::from(word))
}

fn words(line: &str) -> Vec<OsString> {
    argv(line)
}

#[test]
fn the_family_is_guessed_by_the_file_name() {
    let table = [
        ("runc", Family::Runc),
        ("/usr/sbin/runc", Family::Runc),
        ("docker-runc", Family::Runc),
        ("runc.amd64", Family::Runc),
        ("runc-v1.2.3", Family::Runc),
        ("cri-o-runc", Family::Runc),
        ("sysbox-runc", Family::Runc),
        ("buildkit-runc", Family::Runc),
        ("nvidia-container-runtime", Family::Runc),
        ("nvidia-container-runtime.cdi", Family::Runc),
        ("kata-runtime", Family::Runc),
        ("crun", Family::Crun),
        ("crun-wasm", Family::Crun),
        ("/opt/x/krun", Family::Crun),
        ("youki", Family::Youki),
        ("runsc", Family::Runsc),
        ("conmon", Family::Conmon),
        ("conmon-rs", Family::Generic),
        ("conmonrs", Family::Generic),
        ("containerd-shim-runc-v2", Family::Generic),
        ("containerd-shim-runsc-v1", Family::Generic),
        ("oci-runtime", Family::Generic),
        ("truncate", Family::Generic),
        ("/usr/bin/", Family::Generic),
        ("", Family::Generic),
    ];
    for (name, family) in table {
        assert_eq!(Family::guess(OsStr::new(name)), family, "{name}");
    }
}

#[test]
fn each_family_has_its_state_where_the_program_puts_it() {
    let root = Caller::default();
    let root_xdg = Caller { uid: 0, xdg_runtime_dir: Some(Path::new("/run/user/0")) };
    let user = Caller { uid: 1000, xdg_runtime_dir: Some(Path::new("/run/user/1000")) };
    let bare_user = Caller { uid: 1000, xdg_runtime_dir: Some(Path::new("")) };
    let table = [
        (Family::Runc, "/run/runc", "/run/runc", "/run/user/1000/runc", "/run/runc"),
        (Family::Crun, "/run/crun", "/run/user/0/crun", "/run/user/1000/crun", "/run/crun"),
        (Family::Youki, "/run/youki", "/run/youki", "/run/user/1000/youki", "/run/user/1000/youki"),
        (Family::Runsc, "/var/run/runsc", "/run/user/0/runsc", "/run/user/1000/runsc", "/var/run/runsc"),
    ];
    for (family, a, b, c, d) in table {
        assert_eq!(family.default_state_root(&root), path(a), "{family:?}");
        assert_eq!(family.default_state_root(&root_xdg), path(b), "{family:?}");
        assert_eq!(family.default_state_root(&user), path(c), "{family:?}");
        assert_eq!(family.default_state_root(&bare_user), path(d), "{family:?}");
        assert!(family.state_file().is_some(), "{family:?}");
    }
    assert_eq!(Family::Generic.default_state_root(&user), None);
    let inv = parse(Family::Runc, &argv("runc --root /r state c1"));
    assert_eq!(inv.state_root(&user), path("/r"));
    // Seen with strace: runc and crun look in their working directory.
    assert_eq!(parse(Family::Runc, &argv("runc --root= state c1")).root, path(""));
    assert_eq!(parse(Family::Crun, &argv("crun --root= state c1")).root, path(""));
    assert_eq!(parse(Family::Runsc, &argv("runsc --root= state c1")).root, None);
}

#[test]
fn an_empty_command_line_asks_for_nothing() {
    for family in [Family::Runc, Family::Crun, Family::Youki, Family::Runsc, Family::Conmon, Family::Generic]
    {
        assert_eq!(parse(family, &[]), Invocation::new(family));
        assert_eq!(parse(family, &argv("x")), Invocation::new(family));
        assert_eq!(parse(family, &[OsString::new()]), Invocation::new(family));
    }
}

#[test]
fn only_plausible_lines_are_learnt_from() {
    let yes = [
        "x create --bundle /b c1",
        "x --root /r --log /l --log-format json create --bundle /b --pid-file /p c1",
        "x run c1",
        "x run -b /b c1",
        "x -root=/r run -d c1",
        "x start c1",
        "x kill c1 9",
        "x kill --all c1 KILL",
        "x delete --force c1",
        "x state c1",
        "x exec c1 ls -l",
        "x exec --process /p c1",
        "x --unheard-of V create --never-seen V --bundle /b c1",
        "x --unheard-of create c1",
        "/my/own/engine restore --image-path /i c1",
    ];
    for line in yes {
        assert!(looks_like_oci(&argv(line)), "{line}");
    }
    let no = [
        "x",
        "x --version",
        "x create",
        "x create --help c1",
        "x list",
        "x init",
        "x spec",
        "docker run --rm debian:12 ls",
        "docker run debian ls",
        "podman start a b",
        "sudo runc create --bundle /b c1",
        "cat /etc/passwd",
        "kubectl create deployment web --image=nginx",
        "x run ../c1",
        "x run /c1",
        "x run .c1",
        "x exec c1",
        "x exec --process /p c1 ls",
        "containerd-shim-runc-v2 -namespace moby -id c1 -address /run/containerd/containerd.sock start",
        "bwrap --bind / / sh -c ls",
    ];
    for line in no {
        assert!(!looks_like_oci(&argv(line)), "{line}");
    }
}
