use super::state_file::{State, parse_state, read_pid_file, read_state};
use super::*;
use std::fs;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use tempfile::TempDir;

/// Whether a test that needs root has to be passed by, which is said.
pub(crate) fn skipped_without_root(test: &str) -> bool {
    // SAFETY: takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        println!("SKIPPED: {test}: needs root");
        if let Some(file) = std::env::var_os("CONTAINERHOOK_SKIPS") {
            use std::io::Write as _;
            let mut file = File::options().append(true).create(true).open(file).unwrap();
            writeln!(file, "SKIPPED: {test}: needs root").unwrap();
        }
    }
    !root
}

/// Opens a directory as the engine opens `/proc/<tid>/root`.
pub(crate) fn path_fd(path: impl AsRef<Path>) -> OwnedFd {
    File::options().read(true).custom_flags(libc::O_PATH).open(path).unwrap().into()
}

pub(crate) fn trusted<'a>(root: BorrowedFd<'a>, cwd: BorrowedFd<'a>) -> Caller<'a> {
    Caller { root, cwd, fsuid: 0, fsgid: 0, groups: &[], trusted: true }
}

/// A root with a bundle `/b`, and a secret beside the root.
struct World {
    dir: TempDir,
    root: OwnedFd,
}

const CONFIG: &str = r#"{"ociVersion":"1.0.2","process":{"args":["/bin/true"]}}"#;

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(dir.path().join("root/b")).unwrap();
    fs::write(dir.path().join("root/b/config.json"), CONFIG).unwrap();
    fs::create_dir(dir.path().join("outside")).unwrap();
    fs::write(dir.path().join("outside/config.json"), r#"{"hostname":"outside"}"#).unwrap();
    let root = path_fd(dir.path().join("root"));
    World { dir, root }
}

impl World {
    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn open_from(&self, cwd: &str, bundle: &str) -> Opened {
        let cwd = path_fd(self.path(cwd));
        open(&trusted(self.root.as_fd(), cwd.as_fd()), Some(Path::new(bundle)))
    }

    fn open(&self, bundle: &str) -> Opened {
        self.open_from("root", bundle)
    }

    fn error(&self) -> String {
        self.open("/b").config.unwrap_err().to_string()
    }

    fn replace_config(&self) -> PathBuf {
        let path = self.path("root/b/config.json");
        fs::remove_file(&path).unwrap();
        path
    }
}

#[test]
fn a_bundle_is_found_in_the_callers_root() {
    let world = world();
    fs::create_dir(world.path("root/b/sub")).unwrap();
    symlink("/b", world.path("root/link")).unwrap();
    symlink("../../../b", world.path("root/climbing")).unwrap();
    let real = world.path("root/b").canonicalize().unwrap();
    for (cwd, bundle) in [
        ("root", "/b"),
        ("root", "b"),
        ("root", "./b/"),
        ("root/b", "."),
        ("root/b", ""),
        ("root/b/sub", ".."),
        ("root/b/sub", "../../b"),
        ("root/b/sub", "../../../../../../b"),
        ("root", "/../../b"),
        ("root", "/link"),
        ("root", "climbing"),
    ] {
        let opened = world.open_from(cwd, bundle);
        assert_eq!(opened.host_path.as_deref(), Some(&*real), "{cwd} {bundle}");
        assert_eq!(opened.config.unwrap().outline().args, ["/bin/true"], "{cwd} {bundle}");
    }
    let cwd = path_fd(world.path("root/b"));
    let opened = open(&trusted(world.root.as_fd(), cwd.as_fd()), None);
    assert_eq!(opened.host_path.as_deref(), Some(&*real));
}

#[test]
fn no_words_lead_out_of_the_callers_root() {
    let world = world();
    let outside = world.path("outside");
    symlink(&outside, world.path("root/absolute")).unwrap();
    symlink("../outside", world.path("root/relative")).unwrap();
    for bundle in ["../outside", "/../outside", "absolute", "relative", outside.to_str().unwrap()] {
        let opened = world.open(bundle);
        assert!(matches!(opened.config, Err(ConfigError::Bundle { .. })), "{bundle}: {opened:?}");
    }
    // Nor does a link in place of the file.
    let config = world.replace_config();
    symlink(outside.join("config.json"), &config).unwrap();
    assert!(matches!(world.open("/b").config, Err(ConfigError::Missing { .. })));
}

#[test]
fn a_magic_link_is_not_followed() {
    // Were it, it would be the listener's own descriptor or root.
    let root = path_fd("/");
    for bundle in ["/proc/self/root", "/proc/self/cwd", "/proc/thread-self/cwd/src"] {
        let opened = open(&trusted(root.as_fd(), root.as_fd()), Some(Path::new(bundle)));
        let error = opened.config.unwrap_err().to_string();
        assert!(error.contains(bundle) && error.contains("symbolic links"), "{error}");
    }
}

#[test]
fn a_working_directory_outside_of_the_root_serves_what_is_below_it() {
    let world = world();
    fs::create_dir(world.path("outside/in")).unwrap();
    assert_eq!(
        world.open_from("outside", ".").config.unwrap().outline().hostname.as_deref(),
        Some("outside")
    );
    assert!(world.open_from("outside/in", "..").config.is_err());
    assert!(world.open_from("outside/in", "../../root/b").config.is_err());
}

#[test]
fn a_removed_working_directory_is_told() {
    let world = world();
    fs::create_dir(world.path("root/gone")).unwrap();
    let cwd = path_fd(world.path("root/gone"));
    fs::remove_dir(world.path("root/gone")).unwrap();
    let opened = open(&trusted(world.root.as_fd(), cwd.as_fd()), None);
    assert!(matches!(opened.config, Err(ConfigError::Missing { .. })), "{opened:?}");
    assert_eq!(opened.host_path, None);
}

#[test]
fn words_that_are_no_path_are_told() {
    let world = world();
    let long = "x/".repeat(3000);
    for bundle in ["/nowhere", "b/config.json", "b\0c", "/b\u{1}", long.as_str()] {
        assert!(matches!(world.open(bundle).config, Err(ConfigError::Bundle { .. })), "{bundle:?}");
    }
}

#[test]
fn no_config_json() {
    let world = world();
    let path = world.replace_config();
    assert_eq!(world.error(), format!("there is no {}", path.canonicalize().unwrap_or(path).display()));
    assert!(world.open("/b").dir.is_some());
}

#[test]
fn a_config_json_of_64_mb_is_told_and_not_read() {
    let world = world();
    let path = world.replace_config();
    File::create(&path).unwrap().set_len(64_000_000).unwrap();
    assert!(world.error().ends_with("/b/config.json is larger than 16777216 bytes"), "{}", world.error());
    File::create(&path).unwrap().set_len(CONFIG_LIMIT + 1).unwrap();
    assert!(matches!(world.open("/b").config, Err(ConfigError::TooLarge { .. })));
}

#[test]
fn a_config_json_that_is_no_file_is_not_opened() {
    let world = world();
    let path = world.replace_config();
    let fifo = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the path is NUL-terminated.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    assert!(world.error().ends_with("/b/config.json is a FIFO, not a regular file"), "{}", world.error());
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    assert!(world.error().contains("is a directory"), "{}", world.error());
    fs::remove_dir(&path).unwrap();

    let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(world.error().contains("is a socket"), "{}", world.error());
    fs::remove_file(&path).unwrap();

    symlink("/dev/zero", &path).unwrap();
    let host = path_fd("/");
    let bundle = world.path("root/b");
    let error = open(&trusted(host.as_fd(), host.as_fd()), Some(&bundle)).config.unwrap_err();
    assert!(error.to_string().contains("is a character device"), "{error}");
    fs::remove_file(&path).unwrap();

    symlink("config.json", &path).unwrap();
    assert!(world.error().contains("symbolic links"), "{}", world.error());
}

#[test]
fn a_config_json_that_is_a_link_inside_the_root() {
    let world = world();
    let path = world.replace_config();
    fs::create_dir(world.path("root/etc")).unwrap();
    fs::write(world.path("root/etc/real"), r#"{"hostname":"linked"}"#).unwrap();
    for target in ["/etc/real", "../etc/real", "../../../../etc/real"] {
        symlink(target, &path).unwrap();
        assert_eq!(
            world.open("/b").config.unwrap().outline().hostname.as_deref(),
            Some("linked"),
            "{target}"
        );
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn invalid_json_is_told_with_its_place() {
    let world = world();
    let path = world.path("root/b/config.json");
    for (text, cause) in [
        ("{\"a\":\n nope}", "is not valid: expected ident at line 2 column 3"),
        ("", "is not valid: it is empty"),
        ("[1]", "is not a JSON object"),
        ("{\"a\": [1, 2", "is not valid: EOF while parsing"),
    ] {
        fs::write(&path, text).unwrap();
        assert!(world.error().contains(cause), "{}", world.error());
        assert!(world.error().contains("/b/config.json"), "{}", world.error());
    }
}

#[test]
fn another_name_for_the_config() {
    let world = world();
    fs::write(world.path("root/other.json"), r#"{"hostname":"other"}"#).unwrap();
    let caller = trusted(world.root.as_fd(), world.root.as_fd());
    for name in ["/other.json", "../other.json"] {
        let opened = open_with_config(&caller, Some(Path::new("b")), Some(Path::new(name)));
        assert_eq!(opened.config.unwrap().outline().hostname.as_deref(), Some("other"), "{name}");
    }
}

#[test]
fn a_file_that_grows_is_read_to_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    // As a file that grew after it was looked at: proc's have no size.
    let file = path_fd("/proc/self/maps");
    assert!(matches!(read_bounded(&file, 100), Err(Unread::TooLarge)));
    fs::write(dir.path().join("f"), "0123456789").unwrap();
    let file = path_fd(dir.path().join("f"));
    assert_eq!(read_bounded(&file, 10).unwrap(), b"0123456789");
    assert!(matches!(read_bounded(&file, 9), Err(Unread::TooLarge)));
}

#[test]
fn an_untrusted_callers_words_open_nothing_she_could_not() {
    if skipped_without_root("an_untrusted_callers_words_open_nothing_she_could_not") {
        return;
    }
    let world = world();
    let config = world.path("root/b/config.json");
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(world.path("root/closed")).unwrap();
    fs::write(world.path("root/closed/config.json"), CONFIG).unwrap();
    fs::set_permissions(world.path("root/closed"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(world.path("root/pid"), "1\n").unwrap();
    fs::set_permissions(world.path("root/pid"), fs::Permissions::from_mode(0o600)).unwrap();

    let caller = Caller {
        fsuid: 12345,
        fsgid: 12345,
        trusted: false,
        ..trusted(world.root.as_fd(), world.root.as_fd())
    };
    let error = open(&caller, Some(Path::new("/b"))).config.unwrap_err();
    assert!(error.to_string().contains("Permission denied"), "{error}");
    let error = open(&caller, Some(Path::new("closed"))).config.unwrap_err();
    assert!(error.to_string().contains("Permission denied"), "{error}");
    let error = read_pid_file(&caller, Path::new("pid")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);

    // What is hers is read, and the thread has its own rights back.
    std::os::unix::fs::chown(&config, Some(12345), None).unwrap();
    assert!(open(&caller, Some(Path::new("/b"))).config.is_ok());
    assert!(fs::read(world.path("root/pid")).is_ok());
}

#[test]
fn pid_files() {
    let world = world();
    let caller = trusted(world.root.as_fd(), world.root.as_fd());
    let path = world.path("root/pid");
    for (text, pid) in [
        ("42", Some(42)),
        ("42\n", Some(42)),
        ("2147483647", Some(i32::MAX)),
        ("", None),
        ("0", None),
        ("-1", None),
        ("+7", None),
        ("2147483648", None),
        ("12 13", None),
        ("99999999999999999999999999999999999", None),
    ] {
        fs::write(&path, text).unwrap();
        assert_eq!(read_pid_file(&caller, Path::new("pid")).ok(), pid, "{text:?}");
    }
    fs::remove_file(&path).unwrap();
    let error = read_pid_file(&caller, Path::new("/pid")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(error.to_string().starts_with("/pid: "), "{error}");
    symlink("/dev/zero", &path).unwrap();
    let host = path_fd("/");
    let error = read_pid_file(&trusted(host.as_fd(), host.as_fd()), &path).unwrap_err();
    assert!(error.to_string().contains("character device"), "{error}");
}

#[test]
fn state_files_of_each_family() {
    let runc =
        br#"{"id":"a","init_process_pid":4711,"init_process_start":193425,"created":"2026-01-02T03:04:05Z",
        "config":{"rootfs":"/r","labels":["x=y","bundle=/run/b"],"pid":3},"rootless":false}"#;
    let crun =
        br#"{"pid":4712,"process-start-time":193426,"cgroup-path":"/a","rootfs":"/r","bundle":"/run/c",
        "created":"2026-01-02T03:04:06Z","owner":"root","detached":true}"#;
    let youki = br#"{"ociVersion":"v1.0.2","id":"c","status":"created","pid":4713,"bundle":"/run/d","annotations":{}}"#;
    let read = |text: &[u8]| {
        let state = parse_state(text).unwrap();
        (state.pid.unwrap(), state.start_time, state.bundle.unwrap())
    };
    assert_eq!(read(runc), (4711, Some(193_425), "/run/b".into()));
    assert_eq!(parse_state(runc).unwrap().created.as_deref(), Some("2026-01-02T03:04:05Z"));
    assert_eq!(read(crun), (4712, Some(193_426), "/run/c".into()));
    assert_eq!(read(youki), (4713, None, "/run/d".into()));
    assert_eq!(parse_state(br#"{"pid":-5,"bundle":7,"created":null}"#), Some(State::default()));
    for no_state in [&b""[..], b"7", b"{", b"[{}]"] {
        assert_eq!(parse_state(no_state), None);
    }
    let world = world();
    fs::write(world.path("root/status"), crun).unwrap();
    let caller = trusted(world.root.as_fd(), world.root.as_fd());
    assert_eq!(read_state(&caller, Path::new("/status")).unwrap().pid, Some(4712));
    assert!(read_state(&caller, Path::new("/b")).unwrap_err().to_string().contains("a directory"));
}
