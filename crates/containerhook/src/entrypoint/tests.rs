//! Each case is resolved, and then run by every runtime that is installed: what the container printed must be what
//! the file that was found says.

use super::*;
use crate::bundle::sys;
use crate::bundle::tests::{path_fd, skipped_without_root, trusted};
use crate::config::Config;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// The case that no runtime here runs: built with Go 1.20 or later runc goes on where the user may not execute a
/// file, built with an older one it tries to execute it and fails, as crun and youki do.
const REFUSED: &str = "a user may not execute";

/// What a case puts into the bundle before it is resolved; paths are relative to the bundle.
enum Put {
    /// A script that says its label.
    Script(&'static str, u32),
    Dir(&'static str, u32),
    Link(&'static str, &'static str),
    /// A file that is no program.
    Text(&'static str),
    /// Gives what is there to another user.
    Owner(&'static str, u32),
}
use Put::{Dir, Link, Owner, Script, Text};

struct Case {
    name: &'static str,
    put: Vec<Put>,
    process: Value,
    mounts: Value,
    /// Fields of the config beside those that all have.
    more: Value,
    /// The script that is found, or how the reason begins.
    expected: Result<&'static str, &'static str>,
}

impl Case {
    fn config(&self) -> Value {
        let mut process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": []});
        for (key, value) in self.process.as_object().unwrap() {
            process[key] = value.clone();
        }
        // Without these no runtime goes as far as to execute anything.
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}),
        ];
        mounts.extend(self.mounts.as_array().unwrap().clone());
        let mut config = json!({
            "ociVersion": "1.0.2", "process": process, "root": {"path": "rootfs"}, "mounts": mounts,
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]}
        });
        config.as_object_mut().unwrap().extend(self.more.as_object().unwrap().clone());
        config
    }

    fn bundle(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path();
        fs::set_permissions(bundle, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(bundle.join("rootfs/.bb")).unwrap();
        if Path::new("/bin/busybox").exists() {
            fs::copy("/bin/busybox", bundle.join("rootfs/.bb/busybox")).unwrap();
        }
        for put in &self.put {
            let (Script(path, _) | Dir(path, _) | Link(path, _) | Text(path) | Owner(path, _)) = put;
            let full = bundle.join(path);
            fs::create_dir_all(full.parent().unwrap()).unwrap();
            match put {
                Script(_, mode) => {
                    fs::write(&full, script(path)).unwrap();
                    fs::set_permissions(&full, fs::Permissions::from_mode(*mode)).unwrap();
                }
                Dir(_, mode) => {
                    fs::create_dir_all(&full).unwrap();
                    fs::set_permissions(&full, fs::Permissions::from_mode(*mode)).unwrap();
                }
                Link(_, target) => symlink(target, &full).unwrap(),
                Text(_) => fs::write(&full, "text").unwrap(),
                Owner(_, uid) => std::os::unix::fs::chown(&full, Some(*uid), Some(*uid)).unwrap(),
            }
        }
        let config = self.config().to_string().replace("@/", &format!("{}/", bundle.display()));
        fs::write(bundle.join("config.json"), config).unwrap();
        dir
    }
}

fn script(label: &str) -> String {
    format!("#!/.bb/busybox sh\necho {label}\n")
}

fn resolve_bundle(bundle: &Path) -> Result<Entrypoint, Unresolved> {
    let config = Config::from_bytes(fs::read(bundle.join("config.json")).unwrap()).unwrap();
    let host = path_fd("/");
    resolve(&trusted(host.as_fd(), host.as_fd()), path_fd(bundle).as_fd(), config.outline())
}

fn content(entrypoint: &Entrypoint) -> String {
    let mut text = String::new();
    sys::reopen(entrypoint.file.as_fd()).unwrap().read_to_string(&mut text).unwrap();
    text
}

#[allow(clippy::too_many_lines)]
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |name, put, process, mounts, expected| {
        cases.push(Case { name, put, process, mounts, more: json!({}), expected });
    };
    let none = || json!([]);
    let bind = |source: &str, destination: &str| json!({"destination": destination, "type": "bind", "source": format!("@/{source}"), "options": ["rbind", "ro"]});
    let tmpfs = |destination: &str| json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"});
    let two = || vec![Script("rootfs/a/who", 0o755), Script("rootfs/b/who", 0o755)];
    let path = |path: &str| json!({"args": ["who"], "env": [format!("PATH={path}")]});
    let absolute = |path: &str| json!({"args": [path], "env": ["PATH=/nowhere"]});

    // Names with a slash.
    case("absolute", two(), absolute("/b/who"), none(), Ok("rootfs/b/who"));
    case("dots", two(), absolute("/a/./..//../../b/../b/who"), none(), Ok("rootfs/b/who"));
    let relative = json!({"args": ["b/who"], "env": ["PATH=/a"], "cwd": "/srv"});
    case("relative", vec![Script("rootfs/srv/b/who", 0o755)], relative, none(), Ok("rootfs/srv/b/who"));
    let upwards = json!({"args": ["../b/who"], "env": ["PATH=/a"], "cwd": "/srv/link"});
    let put = vec![
        Link("rootfs/srv/link", "/deep/er"),
        Dir("rootfs/deep/er", 0o755),
        Script("rootfs/deep/b/who", 0o755),
    ];
    case("up from a linked cwd", put, upwards, none(), Ok("rootfs/deep/b/who"));
    let made = json!({"args": ["../../b/who"], "env": ["PATH=/a"], "cwd": "/new/er"});
    case("a cwd that is made", two(), made, none(), Ok("rootfs/b/who"));
    case("not there", two(), absolute("/c/who"), none(), Err("there is no /c"));
    case("a file on the way", two(), absolute("/a/who/x"), none(), Err("/a/who is not a directory"));
    case("a directory", two(), absolute("/a"), none(), Err("/a is a directory"));
    case("a slash behind", two(), absolute("/a/who/"), none(), Err("/a/who is not a directory"));

    // Links.
    let put = vec![Script("rootfs/b/who", 0o755), Link("rootfs/a", "b"), Link("rootfs/c", "/a/who")];
    case("links", put, absolute("/c"), none(), Ok("rootfs/b/who"));
    let put = vec![Script("rootfs/b/who", 0o755), Link("rootfs/x/y", "../../../../b")];
    case("a link that climbs", put, absolute("/x/y/who"), none(), Ok("rootfs/b/who"));
    let put = vec![Script("rootfs/b/who", 0o755), Link("rootfs/a/who", "who"), Link("rootfs/c", "c")];
    case("a loop in PATH", put, path("/a:/c:/b"), none(), Ok("rootfs/b/who"));
    case(
        "a loop",
        vec![Link("rootfs/c", "d"), Link("rootfs/d", "c")],
        absolute("/c"),
        none(),
        Err("too many"),
    );

    // Along PATH.
    case("the first", two(), path("/b:/a"), none(), Ok("rootfs/b/who"));
    case("the second", two(), path("/nowhere:/a/who:/b"), none(), Ok("rootfs/b/who"));
    let twice = json!({"args": ["who"], "env": ["PATH=/a", "PATH=/b"]});
    case("PATH twice", two(), twice, none(), Ok("rootfs/b/who"));
    case("no PATH", two(), json!({"args": ["who"]}), none(), Err("who is in no directory of PATH"));
    let unset = json!({"args": ["who"]});
    case("no default", vec![Script("rootfs/bin/who", 0o755)], unset, none(), Err("who is in no directory"));
    let put = vec![Text("rootfs/a/who"), Dir("rootfs/b/who", 0o755), Script("rootfs/c/who", 0o755)];
    case("neither text nor a directory", put, path("/a:/b:/c"), none(), Ok("rootfs/c/who"));
    let put = || {
        vec![
            Script("rootfs/a/who", 0o700),
            Dir("rootfs/b", 0o700),
            Script("rootfs/b/who", 0o755),
            Script("rootfs/c/who", 0o755),
        ]
    };
    case("root may all", put(), path("/a:/b:/c"), none(), Ok("rootfs/a/who"));
    let user = || json!({"args": ["who"], "env": ["PATH=/a:/b:/c"], "user": {"uid": 1234, "gid": 1234}});
    case(REFUSED, put(), user(), none(), Ok("rootfs/c/who"));
    let put = vec![Dir("rootfs/b", 0o700), Script("rootfs/b/who", 0o755), Script("rootfs/c/who", 0o755)];
    case("a user may not pass", put, user(), none(), Ok("rootfs/c/who"));
    case("an empty entry", two(), path("/nowhere::/b"), none(), Ok("rootfs/b/who"));
    let put = vec![Script("rootfs/who", 0o755), Script("rootfs/b/who", 0o755)];
    case(
        "an empty entry that counts",
        put,
        path(":/b"),
        none(),
        Err("runtimes read this config differently: PATH"),
    );
    let put = vec![Script("rootfs/srv/sub/who", 0o755)];
    let relative = json!({"args": ["who"], "env": ["PATH=sub"], "cwd": "/srv"});
    case("a relative entry", put, relative, none(), Ok("rootfs/srv/sub/who"));

    // Mounts.
    let tools =
        || vec![Script("rootfs/m/who", 0o755), Script("tools/who", 0o755), Script("tools/deep/who", 0o755)];
    case("bind", tools(), path("/m"), json!([bind("tools", "/m")]), Ok("tools/who"));
    case("bind below", tools(), absolute("/m/deep/who"), json!([bind("tools", "/m/")]), Ok("tools/deep/who"));
    let relative = json!([{"destination": "/m", "type": "bind", "source": "tools", "options": ["rbind"]}]);
    case("a relative source", tools(), path("/m"), relative, Ok("tools/who"));
    let init = json!([bind("tools/who", "/sbin/new/docker-init")]);
    case("bind of a file to nowhere", tools(), absolute("/sbin/new/docker-init"), init, Ok("tools/who"));
    case(
        "bind of a file",
        tools(),
        absolute("/m/who"),
        json!([bind("tools/who", "/m/who")]),
        Ok("tools/who"),
    );
    case("a destination without a slash", tools(), path("/m"), json!([bind("tools", "m")]), Ok("tools/who"));
    let mut put = tools();
    put.push(Link("linked", "tools"));
    case("a linked source", put, path("/m"), json!([bind("linked/deep", "/m")]), Ok("tools/deep/who"));
    let mut put = tools();
    put.extend([Link("rootfs/l", "/m/sub"), Dir("rootfs/m/sub", 0o755)]);
    case("a linked destination", put, path("/m/sub"), json!([bind("tools", "/l")]), Ok("tools/who"));
    let mut put = tools();
    put.extend([Link("rootfs/l", "../../m"), Dir("rootfs/m/sub", 0o755)]);
    case(
        "a destination below a link",
        put,
        path("/m/sub"),
        json!([bind("tools", "/l/sub")]),
        Ok("tools/who"),
    );
    case(
        "a destination with dots",
        tools(),
        path("/m"),
        json!([bind("tools", "/x/../../m")]),
        Ok("tools/who"),
    );
    let other = || {
        vec![
            Script("x/who", 0o755),
            Script("x/deep/who", 0o755),
            Script("y/who", 0o755),
            Script("y/deep/who", 0o755),
        ]
    };
    case("the later", other(), path("/m"), json!([bind("x", "/m"), bind("y", "/m")]), Ok("y/who"));
    let hidden = json!([bind("x", "/m/deep"), bind("y", "/m")]);
    case("the later hides what is below", other(), path("/m/deep"), hidden, Ok("y/deep/who"));
    let deeper = json!([bind("x", "/m"), bind("y", "/m/deep")]);
    case("the deeper", other(), path("/m/deep"), deeper, Ok("y/who"));
    let upward = json!([bind("x", "/m"), bind("y", "/m/deep")]);
    case("up from the deeper", other(), absolute("/m/deep/../who"), upward, Ok("x/who"));
    let over = json!([tmpfs("/t"), bind("x", "/t/p/q")]);
    case("bind on a tmpfs", other(), path("/t/p:/t/p/q"), over, Ok("x/who"));
    case("a tmpfs over", tools(), path("/m:/t"), json!([tmpfs("/m"), bind("tools", "/t")]), Ok("tools/who"));
    case("only a tmpfs", tools(), path("/m"), json!([tmpfs("/m")]), Err("who is in no directory of PATH"));
    let copied = json!([{"destination": "/m", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}]);
    case("a tmpfs with copies", tools(), path("/m:/t"), copied, Err("what will be at /m/who"));
    let put = vec![Script("rootfs/b/who", 0o755), Link("x/who", "/b/who"), Script("b/who", 0o755)];
    case("a link in a bind", put, path("/m"), json!([bind("x", "/m")]), Ok("rootfs/b/who"));
    let put = vec![Script("rootfs/b/who", 0o755), Link("x/l", "/b"), Script("y/who", 0o755)];
    case(
        "a destination on a bind's link",
        put,
        path("/b"),
        json!([bind("x", "/x"), bind("y", "/x/l")]),
        Ok("y/who"),
    );
    case("in proc", two(), absolute("/proc/self/root/a/who"), none(), Err("what will be at /proc/self"));
    case(
        "no source",
        two(),
        absolute("/m/who"),
        json!([bind("nowhere", "/m")]),
        Err("what will be at /m is"),
    );
    let own = json!([bind("y", "/a"), bind("rootfs/a", "/m")]);
    let mut put = two();
    put.push(Script("y/who", 0o755));
    case("a part of the root itself", put, path("/m"), own, Err("what will be at /m is"));
    let mut put = two();
    put.push(Script("rootfs/run/x", 0o755));
    case(
        "a file for a destination's parent",
        put,
        path("/b"),
        json!([tmpfs("/run/x/y")]),
        Err("the destination /run/x/y of"),
    );
    case("no command", vec![], json!({"args": []}), none(), Err("the config names no command"));
    case("an empty command", vec![], json!({"args": [""]}), none(), Err("the config names no command"));
    let nul = json!({"args": ["/a/who\u{0}x"]});
    case("a NUL", two(), nul, none(), Err("runtimes read this config differently: a NUL"));
    // Only root can give files away, and only root runs the cases.
    // SAFETY: takes nothing and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        let put = vec![
            Script("rootfs/a/who", 0o700),
            Owner("rootfs/a/who", 1000),
            Script("rootfs/b/who", 0o700),
            Owner("rootfs/b/who", 101_000),
        ];
        // The runtimes work in the root as the container's root.
        let put = put.into_iter().chain([Owner("rootfs", 100_000)]).collect();
        let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        let kinds = ["pid", "mount", "ipc", "uts", "user", "network"].map(|kind| json!({"type": kind}));
        let linux = json!({"namespaces": kinds, "uidMappings": mapping, "gidMappings": mapping});
        cases.push(Case {
            name: "a user namespace",
            put,
            process: json!({"args": ["who"], "env": ["PATH=/a:/b"], "user": {"uid": 1000, "gid": 1000}}),
            mounts: none(),
            more: json!({"linux": linux}),
            expected: Ok("rootfs/b/who"),
        });
        cases.push(Case {
            name: "a read-only root",
            put: two(),
            process: path("/b"),
            mounts: none(),
            more: json!({"root": {"path": "rootfs", "readonly": true}}),
            expected: Ok("rootfs/b/who"),
        });
    }
    cases
}

#[test]
fn entrypoints_are_found_as_told() {
    for case in cases() {
        let bundle = case.bundle();
        let found = resolve_bundle(bundle.path());
        match (&case.expected, &found) {
            (Ok(label), Ok(entrypoint)) => {
                assert_eq!(content(entrypoint), script(label), "{}", case.name);
                let real = fs::metadata(bundle.path().join(label)).unwrap();
                use std::os::unix::fs::MetadataExt;
                assert_eq!(entrypoint.inode, (real.dev(), real.ino()), "{}", case.name);
            }
            (Err(reason), Err(why)) => {
                assert!(why.to_string().starts_with(reason), "{}: {why}", case.name);
            }
            (_, other) => panic!("{}: {other:?}", case.name),
        }
    }
}

fn installed_runtimes() -> Vec<(&'static str, PathBuf)> {
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo/bin/youki"));
    let places = [
        ("runc", Some(PathBuf::from("/usr/sbin/runc"))),
        ("runc", Some(PathBuf::from("/usr/bin/runc"))),
        ("crun", Some(PathBuf::from("/usr/bin/crun"))),
        ("youki", home),
    ];
    let found =
        places.into_iter().filter_map(|(name, path)| Some((name, path.filter(|path| path.exists())?)));
    found.collect::<BTreeMap<_, _>>().into_iter().collect()
}

/// Says so where a test cannot run here.
fn skipped(test: &str, reason: &str) {
    println!("SKIPPED: {test}: {reason}");
    if let Some(file) = std::env::var_os("CONTAINERHOOK_SKIPS") {
        use std::io::Write as _;
        let mut file = fs::File::options().append(true).create(true).open(file).unwrap();
        writeln!(file, "SKIPPED: {test}: {reason}").unwrap();
    }
}

#[test]
fn entrypoints_are_those_of_real_runtimes() {
    let test = "entrypoints_are_those_of_real_runtimes";
    if skipped_without_root(test) {
        return;
    }
    let runtimes = installed_runtimes();
    if runtimes.is_empty() || !Path::new("/bin/busybox").exists() {
        return skipped(test, "needs runc, crun or youki, and a static /bin/busybox");
    }
    for case in cases() {
        let Ok(expected) = case.expected else { continue };
        let mut worked = Vec::new();
        let mut said = String::new();
        for (name, runtime) in &runtimes {
            // Anew for each: a runtime leaves directories in the root.
            let bundle = case.bundle();
            let state = tempfile::tempdir().unwrap();
            // crun and youki refuse cgroup v1 with an empty v2 hierarchy beside it. In the foreground youki 0.7 now and
            // then waits for ever for a container that has ended.
            let shell = "umount /sys/fs/cgroup/unified 2>/dev/null; exec timeout -s KILL 10 \"$@\"";
            let id = format!("containerhook-entrypoint-{}", std::process::id());
            let run = |words: &[&str]| {
                Command::new("unshare")
                    .args(["-m", "sh", "-c", shell, "sh"])
                    .arg(runtime)
                    .arg("--root")
                    .arg(state.path())
                    .args(words)
                    .stdin(Stdio::null())
                    .output()
                    .unwrap()
            };
            let output = run(&["run", "--detach", "--bundle", bundle.path().to_str().unwrap(), &id]);
            run(&["delete", "--force", &id]);
            let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            if !printed.is_empty() {
                // A runtime may refuse what another accepts, but none may execute another file.
                assert_eq!(printed, expected, "{}: {name}", case.name);
                worked.push(name);
            }
            said.push_str(&String::from_utf8_lossy(&output.stderr));
        }
        assert!(case.name == REFUSED || !worked.is_empty(), "{}: no runtime ran it: {said}", case.name);
        println!("{}: {worked:?}", case.name);
    }
}

#[test]
fn a_created_container_needs_no_mounts() {
    let case = &cases()[0];
    let bundle = case.bundle();
    let mut config = case.config();
    config["mounts"] = json!([{"destination": "/b", "type": "tmpfs"}]);
    let config = Config::from_bytes(config.to_string()).unwrap();
    let root = path_fd(bundle.path().join("rootfs"));
    let found = resolve_in_root(root.as_fd(), config.outline()).unwrap();
    assert_eq!(content(&found), script("rootfs/b/who"));
    assert_eq!(found.path, Path::new("/b/who"));
}

#[test]
fn links_of_proc_are_not_followed() {
    let root = path_fd("/");
    for command in ["/proc/self/exe", "/proc/thread-self/root/bin/sh", "/dev/fd/0"] {
        let config = Config::from_bytes(json!({"process": {"args": [command]}}).to_string()).unwrap();
        let why = resolve_in_root(root.as_fd(), config.outline()).unwrap_err();
        assert!(matches!(why, Unresolved::Covered { .. }), "{command}: {why}");
    }
}

#[test]
fn what_blocks_when_opened_is_not_opened() {
    let case = Case {
        name: "",
        put: vec![],
        process: json!({"args": ["/fifo"]}),
        mounts: json!([]),
        more: json!({}),
        expected: Err(""),
    };
    let bundle = case.bundle();
    let path = std::ffi::CString::new(bundle.path().join("rootfs/fifo").to_str().unwrap()).unwrap();
    // SAFETY: the path is NUL-terminated.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o755) }, 0);
    assert_eq!(resolve_bundle(bundle.path()).unwrap_err().to_string(), "/fifo is a FIFO");
}

#[test]
fn a_hostile_config_takes_bounded_work() {
    let deep = "/x".repeat(2000);
    let mounts: Vec<_> = (0..5000).map(|_| json!({"destination": deep, "type": "tmpfs"})).collect();
    let case = Case {
        name: "",
        put: vec![],
        process: json!({"args": ["/x"]}),
        mounts: json!(mounts),
        more: json!({}),
        expected: Err(""),
    };
    assert!(matches!(resolve_bundle(case.bundle().path()), Err(Unresolved::TooComplex)));

    let long = format!("/{}", "x".repeat(300));
    let case = Case {
        name: "",
        put: vec![],
        process: json!({"args": [long]}),
        mounts: json!([]),
        more: json!({}),
        expected: Err(""),
    };
    assert!(matches!(resolve_bundle(case.bundle().path()), Err(Unresolved::Io { .. })));
}

/// Unmounts at the end of a test, however it ends.
struct Mounted(PathBuf);

impl Mounted {
    fn bind(source: &Path, destination: &Path) -> Self {
        assert!(Command::new("mount").arg("--bind").args([source, destination]).status().unwrap().success());
        Self(destination.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn what_is_mounted_below_a_source_is_there_only_with_rbind() {
    if skipped_without_root("what_is_mounted_below_a_source_is_there_only_with_rbind") {
        return;
    }
    for (option, expected) in [("rbind", Ok("y/who")), ("bind", Err("what will be at /m/sub is known"))] {
        let mount = json!({"destination": "/m", "type": "bind", "source": "@/x", "options": [option]});
        let put = vec![Dir("x/sub", 0o755), Script("x/sub/who", 0o755), Script("y/who", 0o755)];
        let process = json!({"args": ["/m/sub/who"]});
        let bundle =
            Case { name: option, put, process, mounts: json!([mount]), more: json!({}), expected }.bundle();
        let _mounted = Mounted::bind(&bundle.path().join("y"), &bundle.path().join("x/sub"));
        match (expected, resolve_bundle(bundle.path())) {
            (Ok(label), Ok(found)) => assert_eq!(content(&found), script(label)),
            (Err(reason), Err(why)) => assert!(why.to_string().starts_with(reason), "{why}"),
            (_, other) => panic!("{option}: {other:?}"),
        }
    }
}

#[test]
fn a_root_in_which_the_mount_lies_is_crossed() {
    if skipped_without_root("a_root_in_which_the_mount_lies_is_crossed") {
        return;
    }
    // As an engine's own mounts in the root file system are.
    let bundle = cases()[0].bundle();
    fs::create_dir_all(bundle.path().join("z")).unwrap();
    fs::write(bundle.path().join("z/who"), script("z/who")).unwrap();
    let _mounted = Mounted::bind(&bundle.path().join("z"), &bundle.path().join("rootfs/b"));
    assert_eq!(content(&resolve_bundle(bundle.path()).unwrap()), script("z/who"));
}

#[test]
fn an_ambiguous_config_is_not_resolved() {
    let bundle = cases()[0].bundle();
    let text = r#"{"root":{"path":"rootfs"},"process":{"args":["/a/who"],"args":["/b/who"]}}"#;
    fs::write(bundle.path().join("config.json"), text).unwrap();
    assert!(matches!(resolve_bundle(bundle.path()), Err(Unresolved::Ambiguous(_))));
}

#[test]
fn an_untrusted_caller_resolves_with_her_own_rights() {
    if skipped_without_root("an_untrusted_caller_resolves_with_her_own_rights") {
        return;
    }
    let case = &cases()[0];
    let bundle = case.bundle();
    let config = Config::from_bytes(case.config().to_string()).unwrap();
    let host = path_fd("/");
    let caller = Caller { fsuid: 1234, fsgid: 1234, trusted: false, ..trusted(host.as_fd(), host.as_fd()) };
    let dir = path_fd(bundle.path());
    assert!(resolve(&caller, dir.as_fd(), config.outline()).is_ok());
    fs::set_permissions(bundle.path().join("rootfs/b"), fs::Permissions::from_mode(0o700)).unwrap();
    let why = resolve(&caller, dir.as_fd(), config.outline()).unwrap_err();
    assert_eq!(why.to_string(), "cannot look at /b/who: Permission denied (os error 13)");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn no_words_panic_or_leave_the_root(
        command in "[a-c./\u{0}]{0,12}",
        path in "[a-c.:/]{0,16}",
        cwd in "[a-c./]{0,8}",
        destinations in prop::collection::vec("[a-c./]{0,8}", 0..4),
        links in prop::collection::vec(("[a-c]", "[a-c./]{1,8}"), 0..4),
    ) {
        let case = Case { name: "", put: vec![Script("rootfs/a/b", 0o755), Script("x/c", 0o755)],
            process: json!({"args": [command], "env": [format!("PATH={path}")], "cwd": cwd}),
            mounts: destinations.iter().map(|to| json!({"destination": to, "type": "bind", "source": "x"})).collect(),
            more: json!({}), expected: Err("") };
        let bundle = case.bundle();
        for (name, target) in &links {
            let _ = symlink(target, bundle.path().join("rootfs").join(name));
        }
        if let Ok(found) = resolve_bundle(bundle.path()) {
            prop_assert!(["rootfs/a/b", "x/c"].map(script).contains(&content(&found)));
        }
    }
}
