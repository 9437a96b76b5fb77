//! Every spelling of a command line, every way of execution and every kind of entrypoint, with real runtimes: each
//! container is told by its id and pid, in order, and held before its first instruction.

mod support;

use std::collections::HashMap;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use containerhook::{ContainerEvent, EventKind, Record};
use serde_json::{Value, json};
use support::{LIMIT, Listener, PATIENCE, WHOLE_LIFE, only, parse_uptime, the, uptime};
use testkit::{
    Bundle, BundleBuilder, Family, Output, Process, Rootfs, Runtime, Scratch, Task, need, unique_id, watchdog,
};

/// What prints when its first instruction ran.
const CLOCK: [&str; 3] = ["/bin/sh", "-c", "read up idle < /proc/uptime; echo $up"];

/// A listener whose handler takes its time at every hold, and notes when it returned.
struct Clocked {
    listener: Listener,
    returned: Arc<Mutex<HashMap<String, f64>>>,
}

impl Clocked {
    fn to(runtimes: impl IntoIterator<Item = PathBuf>) -> Result<Self> {
        let returned = Arc::new(Mutex::new(HashMap::new()));
        let notes = Arc::clone(&returned);
        let listener = Listener::start(only(runtimes), move |event: &ContainerEvent| {
            if event.held() {
                std::thread::sleep(Duration::from_millis(30));
                if let Ok(now) = uptime() {
                    notes.lock().unwrap().insert(event.id().to_owned(), now);
                }
            }
        })?;
        Ok(Clocked { listener, returned })
    }

    /// A whole life by `run`: held three times, and nothing of the container ran before the last handler had returned.
    fn ran(&self, output: &Output, id: &str, bundle: &Path, runtime: &Path) -> Result<()> {
        ensure!(output.status.success(), "{output:?}");
        let records = self.listener.wait(id, &WHOLE_LIFE)?;
        check(&records, bundle, runtime, None)?;
        let returned = *self.returned.lock().unwrap().get(id).context("nothing was held")?;
        let first = parse_uptime(&output.stdout)?;
        // To a hundredth of a second, as the kernel prints it.
        ensure!(first >= returned - 0.01, "it ran at {first}, the handler returned at {returned}");
        Ok(())
    }

    /// A whole life by `create`, `start` and `delete`; the runtime's own word is what counts.
    fn created(&self, runtime: &Runtime, id: &str, bundle: &Path, marked: &Path) -> Result<()> {
        self.listener.wait(id, &WHOLE_LIFE[..2])?;
        let init = runtime.state(id)?.init;
        runtime.start(id)?;
        self.listener.wait(id, &WHOLE_LIFE[..3])?;
        runtime.delete(id, true)?;
        let records = self.listener.wait(id, &WHOLE_LIFE)?;
        check(&records, bundle, marked, Some(init))
    }
}

/// What the records of a life must agree on, whatever way it came.
fn check(records: &[Record], bundle: &Path, runtime: &Path, init: Option<Process>) -> Result<()> {
    let pid = the(EventKind::Created, records)?.event.pid();
    ensure!(pid.is_some(), "its pid is not known");
    ensure!(init.is_none() || pid == init.map(|init| init.0.cast_unsigned()), "{pid:?} is not {init:?}");
    for record in records {
        let event = &record.event;
        let kind = event.kind();
        ensure!(event.held() == WHOLE_LIFE[..3].contains(&kind), "held: {}", record.to_json());
        ensure!(kind == EventKind::PreCreate || event.pid() == pid, "{}", record.to_json());
        ensure!(event.bundle() == Some(bundle), "{} is not {}", record.to_json(), bundle.display());
        let said = event.runtime().map(|runtime| runtime.path.as_path());
        ensure!(said == Some(runtime), "{} is not {}", record.to_json(), runtime.display());
        ensure!(event.config().is_some() && !event.rootless(), "{}", record.to_json());
    }
    Ok(())
}

/// Runs all rows, and names those that fail.
fn each<T>(rows: &[T], name: impl Fn(&T) -> &str, run: impl Fn(&T) -> Result<()>) -> Result<()> {
    let mut failed = String::new();
    for row in rows {
        if let Err(error) = run(row) {
            failed += &format!("\n{}: {error:#}", name(row));
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{failed}") }
}

fn words<S: Into<OsString> + Clone>(words: &[S]) -> Vec<OsString> {
    words.iter().cloned().map(Into::into).collect()
}

fn done(command: &mut Command) -> Result<Output> {
    Task::spawn(command)?.wait(PATIENCE)
}

fn write_script(path: &Path, text: &str) -> Result<()> {
    // By a child: no other thread's child may inherit a descriptor that can be written by, or executing it fails.
    let mut write = Command::new("sh");
    write.args(["-c", r#"printf '%s' "$2" > "$1" && chmod 755 "$1""#, "sh"]).arg(path).arg(text);
    done(&mut write)?.ok()?;
    Ok(())
}

// ---- spellings

struct Case<'a> {
    runtime: &'a Runtime,
    bundle: &'a Bundle,
    scratch: &'a Scratch,
}

impl Case<'_> {
    /// `create ARGS ID`.
    fn create(&self, args: &[&str]) -> Command {
        let mut command = self.runtime.command(["create"]);
        command.args(args).arg(self.bundle.id());
        command
    }

    fn path(&self) -> &str {
        self.bundle.path().to_str().expect("scratch folders are UTF-8")
    }

    fn pid_file(&self) -> String {
        format!("{}/init.pid", self.path())
    }
}

struct Spelling {
    name: &'static str,
    /// `None`: all understand it.
    only: Option<Family>,
    terminal: bool,
    command: fn(&Case<'_>) -> Result<Command>,
}

const fn spelling(name: &'static str, command: fn(&Case<'_>) -> Result<Command>) -> Spelling {
    Spelling { name, only: None, terminal: false, command }
}

const SPELLINGS: &[Spelling] = &[
    spelling("--bundle B --pid-file P", |c| {
        Ok(c.create(&["--bundle", c.path(), "--pid-file", &c.pid_file()]))
    }),
    spelling("--bundle=B --pid-file=P", |c| {
        Ok(c.create(&[&format!("--bundle={}", c.path()), &format!("--pid-file={}", c.pid_file())]))
    }),
    spelling("-b B", |c| Ok(c.create(&["-b", c.path(), "--pid-file", &c.pid_file()]))),
    Spelling {
        only: Some(Family::Runc),
        ..spelling("-bundle B -pid-file=P", |c| {
            Ok(c.create(&["-bundle", c.path(), &format!("-pid-file={}", c.pid_file())]))
        })
    },
    Spelling {
        only: Some(Family::Crun),
        ..spelling("-bB", |c| Ok(c.create(&[&format!("-b{}", c.path()), "--pid-file", &c.pid_file()])))
    },
    Spelling {
        only: Some(Family::Crun),
        ..spelling("--bund=B --pid=P", |c| {
            Ok(c.create(&[&format!("--bund={}", c.path()), &format!("--pid={}", c.pid_file())]))
        })
    },
    spelling("a relative bundle", |c| {
        let mut command = c.create(&["--bundle", &format!("../{}", last(c.bundle.path())?)]);
        command.current_dir(c.scratch.path());
        Ok(command)
    }),
    spelling("no bundle", |c| {
        let mut command = c.create(&["--pid-file", &c.pid_file()]);
        command.current_dir(c.bundle.path());
        Ok(command)
    }),
    spelling("a relative pid file", |c| {
        let mut command = c.create(&["--bundle", c.path(), "--pid-file", "./init.pid"]);
        command.current_dir(c.scratch.path());
        Ok(command)
    }),
    spelling("no pid file", |c| Ok(c.create(&["--bundle", c.path()]))),
    spelling("--no-pivot", |c| {
        Ok(c.create(&["--no-pivot", "--bundle", c.path(), "--pid-file", &c.pid_file()]))
    }),
    spelling("--no-new-keyring", |c| Ok(c.create(&["--no-new-keyring", "--bundle", c.path()]))),
    spelling("--preserve-fds 1", |c| {
        let mut command = c.create(&["--bundle", c.path(), "--preserve-fds", "1"]);
        // SAFETY: between fork and exec dup2 takes two integers and touches no memory.
        unsafe {
            command.pre_exec(|| match libc::dup2(0, 3) {
                -1 => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        Ok(command)
    }),
    Spelling {
        terminal: true,
        ..spelling("--console-socket S", |c| {
            let socket = c.scratch.join(format!("{}.sock", c.bundle.id()));
            // The terminal's descriptor waits in the socket's queue; nobody has to take it.
            std::mem::forget(UnixListener::bind(&socket)?);
            Ok(c.create(&["--bundle", c.path(), "--console-socket", &socket.to_string_lossy()]))
        })
    },
    spelling("global options", |c| {
        let log = c.scratch.join("log").display().to_string();
        let options = ["--debug", "--log", &log, "--log-format", "json", "create", "--bundle", c.path()];
        Ok(c.runtime.command(options.into_iter().chain([c.bundle.id()])))
    }),
    spelling("--root=R", |c| {
        let mut command = c.runtime.bare(&c.runtime.path());
        command.arg(format!("--root={}", c.runtime.state_dir().display()));
        command.args(["create", "--bundle", c.path(), c.bundle.id()]);
        Ok(command)
    }),
    spelling("-- before the id", |c| Ok(c.create(&["--bundle", c.path(), "--"]))),
    spelling("1,000 arguments", |c| {
        let mut args = Vec::new();
        for _ in 0..499 {
            args.extend(["--bundle", "/nonexistent"]);
        }
        args.extend(["--bundle", c.path()]);
        Ok(c.create(&args))
    }),
    spelling("a bundle's path of 3,000 bytes", |c| {
        Ok(c.create(&["--bundle", &long_bundle(c.bundle)?.to_string_lossy(), "--pid-file", &c.pid_file()]))
    }),
];

fn last(path: &Path) -> Result<&str> {
    path.file_name().and_then(|name| name.to_str()).context("a path without a name")
}

/// The same bundle by a long path.
fn long_bundle(bundle: &Bundle) -> Result<PathBuf> {
    let mut path = bundle.path().to_owned();
    while path.as_os_str().len() < 3000 {
        path.push("x".repeat(100));
    }
    std::fs::create_dir_all(&path)?;
    std::fs::copy(bundle.config_path(), path.join("config.json"))?;
    Ok(path)
}

fn spellings_of_create(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let clocked = Clocked::to([runtime.path()])?;
    let (scratch, rootfs) = (Scratch::new()?, Rootfs::busybox()?);
    each(
        SPELLINGS,
        |row| row.name,
        |row| {
            if row.only.is_some_and(|only| only != family) {
                return Ok(());
            }
            let bundle = Bundle::builder(unique_id("spelt")).rootfs(&rootfs).args(["/bin/sleep", "1000"]);
            let bundle = bundle.edit(|config| config["process"]["terminal"] = row.terminal.into()).build()?;
            let case = Case { runtime: &runtime, bundle: &bundle, scratch: &scratch };
            done(&mut (row.command)(&case)?)?.ok()?;
            let long = bundle.path().join("x".repeat(100)).exists();
            let told = if long { long_bundle(&bundle)? } else { bundle.path().to_owned() };
            clocked.created(&runtime, bundle.id(), &told, &runtime.path())
        },
    )?;
    clocked.listener.wait_idle()?;
    clocked.listener.close()?;
    Ok(())
}

/// `run` with the flags that only it has.
fn spellings_of_run(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let clocked = Clocked::to([runtime.path()])?;
    let rootfs = Rootfs::busybox()?;
    let table: [(&str, &[&str]); 5] = [
        ("in the foreground", &[]),
        ("--pid-file", &["--pid-file", "P"]),
        ("--keep", &["--keep"]),
        ("--no-pivot", &["--no-pivot"]),
        ("--detach", &["--detach", "--pid-file", "P"]),
    ];
    each(
        &table,
        |row| row.0,
        |(_, flags)| {
            if flags.contains(&"--keep") && family == Family::Crun {
                return Ok(());
            }
            let bundle = Bundle::builder(unique_id("run")).rootfs(&rootfs).args(CLOCK).build()?;
            let id = bundle.id();
            let mut command = runtime.command(["run", "--bundle"]);
            command.arg(bundle.path());
            for flag in *flags {
                command.arg(if *flag == "P" { bundle.pid_file().into_os_string() } else { flag.into() });
            }
            let task = Task::spawn(command.arg(id))?;
            let keeps = flags.contains(&"--keep") || flags.contains(&"--detach");
            if keeps {
                clocked.listener.wait(id, &WHOLE_LIFE[..4])?;
                runtime.delete(id, true)?;
            }
            clocked.ran(&task.wait(PATIENCE)?, id, bundle.path(), &runtime.path())
        },
    )?;
    clocked.listener.wait_idle()?;
    clocked.listener.close()?;
    Ok(())
}

// ---- ways of execution

type Way = (&'static str, fn(&Runtime, &Scratch, &[OsString]) -> Result<Command>);

const WAYS: &[Way] = &[
    ("by its path", |runtime, _, args| Ok(by(runtime, &runtime.path(), args))),
    ("by a symbolic link", |runtime, scratch, args| {
        symlink(runtime.path(), scratch.join("link"))?;
        Ok(by(runtime, &scratch.join("link"), args))
    }),
    ("by a hard link", |runtime, scratch, args| {
        std::fs::hard_link(runtime.path(), scratch.join("oci"))?;
        Ok(by(runtime, &scratch.join("oci"), args))
    }),
    ("by a relative path", |runtime, _, args| {
        let path = runtime.path();
        let mut command = by(runtime, Path::new(&format!("./{}", last(&path)?)), args);
        command.current_dir(path.parent().context("no folder")?);
        Ok(command)
    }),
    ("under another argument 0", |runtime, _, args| {
        let mut command = by(runtime, &runtime.path(), args);
        command.arg0("something else");
        Ok(command)
    }),
    ("by env", |runtime, _, args| {
        Ok(by(runtime, Path::new("/usr/bin/env"), &[words(&[runtime.path()]), args.to_vec()].concat()))
    }),
    ("by a #! wrapper that execs", |runtime, scratch, args| {
        let path = scratch.join("exec-wrapper");
        write_script(&path, &format!("#!/bin/sh\nexec {} \"$@\"\n", runtime.path().display()))?;
        Ok(by(runtime, &path, args))
    }),
    ("by a #! wrapper that forks", |runtime, scratch, args| {
        let path = scratch.join("fork-wrapper");
        write_script(&path, &format!("#!/bin/sh\n{} \"$@\"\nexit $?\n", runtime.path().display()))?;
        Ok(by(runtime, &path, args))
    }),
    ("by a double fork", |runtime, scratch, args| {
        let path = scratch.join("daemon");
        // It ends before its grandchild does, which is nobody's child but init's.
        let text = format!(
            "#!/bin/sh\n( {} \"$@\"; echo $? > {scratch}/code ) &\nwait\nexit $(cat {scratch}/code)\n",
            runtime.path().display(),
            scratch = scratch.path().display()
        );
        write_script(&path, &text)?;
        Ok(by(runtime, &path, args))
    }),
    ("by execveat and a folder", |runtime, _, args| {
        let path = runtime.path();
        let folder = open_path(path.parent().context("no folder")?)?;
        Ok(by_execveat(runtime, folder, last(&path)?, 0, args))
    }),
    ("by fexecve", |runtime, _, args| {
        Ok(by_execveat(runtime, open_path(&runtime.path())?, "", libc::AT_EMPTY_PATH, args))
    }),
    ("by /proc/self/fd", |runtime, _, args| {
        let shell = r#"exec 9< "$0"; exec /proc/self/fd/9 "$@""#;
        let words = [words(&["-c", shell]), words(&[runtime.path()]), args.to_vec()].concat();
        Ok(by(runtime, Path::new("/bin/sh"), &words))
    }),
];

fn by(runtime: &Runtime, program: &Path, args: &[OsString]) -> Command {
    let mut command = runtime.bare(program);
    command.args(args);
    command
}

fn open_path(path: &Path) -> Result<File> {
    Ok(File::options().read(true).custom_flags(libc::O_PATH).open(path)?)
}

/// The child executes the runtime by itself, before the standard library would.
fn by_execveat(runtime: &Runtime, at: File, path: &str, flags: i32, args: &[OsString]) -> Command {
    let mut command = by(runtime, &runtime.path(), args);
    let text = |word: &std::ffi::OsStr| CString::new(word.as_bytes()).expect("no NUL in a test");
    let mut argv: Vec<CString> = vec![text("runtime".as_ref())];
    argv.extend(args.iter().map(|arg| text(arg)));
    let path = text(path.as_ref());
    // As numbers, for a closure for another thread may have no pointers.
    let pointers: Vec<usize> = argv.iter().map(|arg| arg.as_ptr() as usize).chain([0]).collect();
    // SAFETY: between fork and exec one system call is made, on strings that the closure owns.
    unsafe {
        command.pre_exec(move || {
            let _ = &argv;
            let environ = [0_usize];
            let (path, argv, environ) = (path.as_ptr(), pointers.as_ptr(), environ.as_ptr());
            libc::syscall(libc::SYS_execveat, at.as_raw_fd(), path, argv, environ, flags);
            Err(std::io::Error::last_os_error())
        });
    }
    command
}

fn executed_in_every_way(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let clocked = Clocked::to([runtime.path()])?;
    let rootfs = Rootfs::busybox()?;
    each(
        WAYS,
        |row| row.0,
        |(_, way)| {
            let scratch = Scratch::new()?;
            let bundle = Bundle::builder(unique_id("run")).rootfs(&rootfs).args(CLOCK).build()?;
            let args = runtime.command(["run", "--bundle"]);
            let mut args = words(&args.get_args().collect::<Vec<_>>());
            args.extend(words(&[bundle.path().as_os_str(), bundle.id().as_ref()]));
            let output = done(&mut way(&runtime, &scratch, &args)?)?;
            clocked.ran(&output, bundle.id(), bundle.path(), &runtime.path())?;

            let scratch = Scratch::new()?;
            let bundle = Bundle::builder(unique_id("create")).rootfs(&rootfs).args(["/bin/sleep", "1000"]);
            let bundle = bundle.build()?;
            let args = runtime.command(["create", "--bundle"]);
            let mut args = words(&args.get_args().collect::<Vec<_>>());
            args.extend(words(&[bundle.path().as_os_str(), bundle.id().as_ref()]));
            done(&mut way(&runtime, &scratch, &args)?)?.ok()?;
            clocked.created(&runtime, bundle.id(), bundle.path(), &runtime.path())
        },
    )?;
    clocked.listener.wait_idle()?;
    clocked.listener.close()?;
    Ok(())
}

/// A copy under another name, which is all that the listener and the engine know of it.
fn under_another_name(family: Family, names: &[&str]) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let (scratch, rootfs) = (Scratch::new()?, Rootfs::busybox()?);
    let copies: Vec<PathBuf> = names.iter().map(|name| scratch.join(name)).collect();
    for copy in &copies {
        done(Command::new("cp").arg(runtime.path()).arg(copy))?.ok()?;
    }
    let clocked = Clocked::to(copies.iter().cloned())?;
    each(
        &copies,
        |copy| last(copy).unwrap_or_default(),
        |copy| {
            let state = runtime.state_dir();
            let words = |verb, bundle: &Bundle| {
                let mut command = runtime.bare(copy);
                command
                    .arg("--root")
                    .arg(&state)
                    .args([verb, "--bundle"])
                    .arg(bundle.path())
                    .arg(bundle.id());
                command
            };
            let bundle = Bundle::builder(unique_id("run")).rootfs(&rootfs).args(CLOCK).build()?;
            clocked.ran(&done(&mut words("run", &bundle))?, bundle.id(), bundle.path(), copy)?;
            // Without a pid file: its state must be found too.
            let bundle = Bundle::builder(unique_id("create")).rootfs(&rootfs).args(["/bin/sleep", "1000"]);
            let bundle = bundle.build()?;
            let id = bundle.id();
            done(&mut words("create", &bundle))?.ok()?;
            clocked.listener.wait(id, &WHOLE_LIFE[..2])?;
            let init = runtime.state(id)?.init;
            for args in [&["start", id][..], &["delete", "--force", id]] {
                done(runtime.bare(copy).arg("--root").arg(&state).args(args))?.ok()?;
            }
            check(&clocked.listener.wait(id, &WHOLE_LIFE)?, bundle.path(), copy, Some(init))
        },
    )?;
    clocked.listener.wait_idle()?;
    clocked.listener.close()?;
    Ok(())
}

/// A wrapper as `nvidia-container-runtime` is one, marked like the runtime that it executes: one container, told once.
fn wrapped_by_another_marked_file(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let (scratch, rootfs) = (Scratch::new()?, Rootfs::busybox()?);
    let real = runtime.path().display().to_string();
    let wrappers = [
        ("nvidia-container-runtime", format!("#!/bin/sh\nexec {real} \"$@\"\n")),
        ("docker-runc", format!("#!/bin/sh\n{real} \"$@\"\nexit $?\n")),
    ];
    let mut marked = vec![runtime.path()];
    for (name, text) in &wrappers {
        write_script(&scratch.join(name), text)?;
        marked.push(scratch.join(name));
    }
    let clocked = Clocked::to(marked)?;
    each(
        &wrappers,
        |row| row.0,
        |(name, _)| {
            let wrapper = scratch.join(name);
            let bundle = Bundle::builder(unique_id("run")).rootfs(&rootfs).args(CLOCK).build()?;
            let args = runtime.command(["run", "--bundle"]);
            let mut command = runtime.bare(&wrapper);
            command.args(args.get_args()).arg(bundle.path()).arg(bundle.id());
            clocked.ran(&done(&mut command)?, bundle.id(), bundle.path(), &wrapper)?;

            let bundle = Bundle::builder(unique_id("create")).rootfs(&rootfs).args(["/bin/sleep", "1000"]);
            let bundle = bundle.build()?;
            let args = runtime.command(["create", "--bundle"]);
            let mut command = runtime.bare(&wrapper);
            command.args(args.get_args()).arg(bundle.path()).arg(bundle.id());
            done(&mut command)?.ok()?;
            clocked.created(&runtime, bundle.id(), bundle.path(), &wrapper)
        },
    )?;
    clocked.listener.wait_idle()?;
    clocked.listener.close()?;
    Ok(())
}

// ---- entrypoints

type Edit = fn(BundleBuilder, &Rootfs, &Scratch) -> Result<BundleBuilder>;

/// What the container executes, and where that lies; each prints `ok`.
const ENTRYPOINTS: &[(&str, Edit)] = &[
    ("an absolute path", |bundle, _, _| Ok(bundle.args(["/bin/echo", "ok"]))),
    ("a path with more slashes than it needs", |bundle, _, _| Ok(bundle.args(["//bin///.//echo", "ok"]))),
    ("a name in PATH", |bundle, _, _| Ok(path(bundle, "/nowhere:/etc:/bin").args(["echo", "ok"]))),
    ("a path relative to the working directory", |bundle, _, _| {
        Ok(bundle.cwd("/bin").args(["./echo", "ok"]))
    }),
    ("a path with ..", |bundle, _, _| Ok(bundle.cwd("/tmp").args(["../bin/../bin/echo", "ok"]))),
    ("an absolute symbolic link", |bundle, rootfs, _| {
        symlink("/bin/busybox", rootfs.join("tmp/echo"))?;
        Ok(bundle.args(["/tmp/echo", "ok"]))
    }),
    ("a symbolic link that climbs above the root", |bundle, rootfs, _| {
        symlink("../../../../bin/busybox", rootfs.join("var/echo"))?;
        Ok(bundle.args(["/var/echo", "ok"]))
    }),
    ("a folder that is a symbolic link", |bundle, rootfs, _| {
        symlink("/bin", rootfs.join("linked"))?;
        Ok(bundle.cwd("/linked").args(["./echo", "ok"]))
    }),
    ("a script", |bundle, rootfs, _| {
        write_script(&rootfs.join("script"), "#!/bin/sh\necho ok\n")?;
        Ok(bundle.args(["/script"]))
    }),
    ("a script in PATH, of a script", |bundle, rootfs, _| {
        write_script(&rootfs.join("inner"), "#!/bin/sh\necho ok\n")?;
        write_script(&rootfs.join("etc/outer"), "#!/inner\n")?;
        Ok(path(bundle, "/bin:/etc").args(["outer"]))
    }),
    ("a file of the host, bound where no folder is", |bundle, rootfs, scratch| {
        let init = scratch.join("host-init");
        done(Command::new("cp").arg(rootfs.join("bin/busybox")).arg(&init))?.ok()?;
        Ok(bundle.bind(init, "/sbin/deep/echo").args(["/sbin/deep/echo", "ok"]))
    }),
    ("a file of the host, bound over one of the root", |bundle, rootfs, scratch| {
        let program = scratch.join("program");
        done(Command::new("cp").arg(rootfs.join("bin/busybox")).arg(&program))?.ok()?;
        std::fs::write(rootfs.join("etc/echo"), "")?;
        Ok(bundle.bind(program, "/etc/echo").args(["/etc/echo", "ok"]))
    }),
    ("a folder of the host, bound over PATH", |bundle, rootfs, scratch| {
        std::fs::create_dir(scratch.join("programs"))?;
        done(Command::new("cp").arg(rootfs.join("bin/busybox")).arg(scratch.join("programs/echo")))?.ok()?;
        Ok(path(bundle.bind(scratch.join("programs"), "/usr/local/bin"), "/usr/local/bin")
            .args(["echo", "ok"]))
    }),
    ("the later of two mounts", |bundle, rootfs, scratch| {
        for name in ["below", "above"] {
            std::fs::create_dir(scratch.join(name))?;
            let copy = scratch.join(name).join("echo");
            done(Command::new("cp").arg(rootfs.join("bin/busybox")).arg(copy))?.ok()?;
        }
        let bundle = bundle.bind(scratch.join("below"), "/opt").bind(scratch.join("above"), "/opt");
        Ok(bundle.args(["/opt/echo", "ok"]))
    }),
    ("a read-only root", |bundle, _, _| {
        Ok(bundle.edit(|config| config["root"]["readonly"] = true.into()).args(["/bin/echo", "ok"]))
    }),
    ("a root on overlay", |bundle, rootfs, scratch| {
        Ok(root_at(bundle, &overlay(rootfs, scratch)?).args(["/bin/echo", "ok"]))
    }),
    ("a file of overlay's upper folder", |bundle, rootfs, scratch| {
        let merged = overlay(rootfs, scratch)?;
        write_script(&merged.join("new"), "#!/bin/sh\necho ok\n")?;
        Ok(root_at(bundle, &merged).args(["/new"]))
    }),
    ("a root with a user namespace", |bundle, rootfs, scratch| {
        let merged = overlay(rootfs, scratch)?;
        let mapped = bundle.edit(|config| {
            let map = json!([{"containerID": 0, "hostID": 300_000, "size": 65536}]);
            config["linux"]["uidMappings"] = map.clone();
            config["linux"]["gidMappings"] = map;
            let namespaces = config["linux"]["namespaces"].as_array_mut().expect("an array");
            namespaces.push(json!({"type": "user"}));
        });
        Ok(root_at(mapped, &merged).args(["/bin/echo", "ok"]))
    }),
];

fn path(bundle: BundleBuilder, path: &str) -> BundleBuilder {
    bundle.edit(|config| config["process"]["env"] = json!([format!("PATH={path}")]))
}

fn root_at(bundle: BundleBuilder, root: &Path) -> BundleBuilder {
    bundle.edit(|config: &mut Value| config["root"]["path"] = root.to_string_lossy().into())
}

/// The root below an overlay, which ends with the scratch folder.
fn overlay(rootfs: &Rootfs, scratch: &Scratch) -> Result<PathBuf> {
    for folder in ["upper", "work", "merged"] {
        std::fs::create_dir(scratch.join(folder))?;
        std::fs::set_permissions(scratch.join(folder), std::fs::Permissions::from_mode(0o755))?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        rootfs.path().display(),
        scratch.join("upper").display(),
        scratch.join("work").display()
    );
    let merged = scratch.join("merged");
    done(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&merged))?.ok()?;
    Ok(merged)
}

fn every_kind_of_entrypoint(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let listener = Listener::to([runtime.path()])?;
    each(
        ENTRYPOINTS,
        |row| row.0,
        |(_, edit)| {
            let (rootfs, scratch) = (Rootfs::busybox()?, Scratch::new()?);
            let bundle =
                edit(Bundle::builder(unique_id("run")).rootfs(&rootfs), &rootfs, &scratch)?.build()?;
            let output = runtime.run(&bundle)?;
            ensure!((output.stdout.as_str(), output.code()) == ("ok\n", Some(0)), "{output:?}");
            check(&listener.wait(bundle.id(), &WHOLE_LIFE)?, bundle.path(), &runtime.path(), None)?;

            let (rootfs, scratch) = (Rootfs::busybox()?, Scratch::new()?);
            let bundle = edit(Bundle::builder(unique_id("create")).rootfs(&rootfs), &rootfs, &scratch)?;
            let bundle = bundle.build()?;
            let init = runtime.create(&bundle)?;
            runtime.start(bundle.id())?;
            listener.wait(bundle.id(), &WHOLE_LIFE[..4])?;
            runtime.delete(bundle.id(), true)?;
            ensure!(bundle.stdout() == "ok\n", "{:?}", bundle.stdout());
            let records = listener.wait(bundle.id(), &WHOLE_LIFE)?;
            check(&records, bundle.path(), &runtime.path(), Some(init))
        },
    )?;
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

/// A mount hides the entrypoint, and what it shows cannot be known before: `create` and `start` hold it all the same, for
/// the root is put together by then.
fn hidden_by_a_mount(family: Family) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::new(family)?;
    let listener = Listener::to([runtime.path()])?;
    let bundle = Bundle::builder(unique_id("create"))
        .mount("/hidden", "tmpfs", "tmpfs", &["mode=755", "tmpcopyup"])
        .bind("/bin", "/hidden/none")
        .args(["/proc/self/root/bin/echo", "ok"])
        .build()?;
    let init = runtime.create(&bundle)?;
    runtime.start(bundle.id())?;
    listener.wait(bundle.id(), &WHOLE_LIFE[..4])?;
    runtime.delete(bundle.id(), true)?;
    let records = listener.wait(bundle.id(), &WHOLE_LIFE)?;
    ensure!(the(EventKind::Created, &records)?.event.pid() == Some(init.0.cast_unsigned()));
    ensure!(the(EventKind::Created, &records)?.event.held() && bundle.stdout() == "ok\n");
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

macro_rules! for_each_runtime {
    ($($family:ident $module:ident),*; $tests:tt) => {$(
        mod $module {
            for_each_runtime!(@ $family $tests);
        }
    )*};
    (@ $family:ident [$($test:ident),*]) => {$(
        #[test]
        fn $test() -> super::Result<()> {
            testkit::need!(Root, Busybox, $family);
            super::$test(super::Family::$family)
        }
    )*};
}

for_each_runtime!(Runc runc, Crun crun; [
    spellings_of_create,
    spellings_of_run,
    executed_in_every_way,
    wrapped_by_another_marked_file,
    every_kind_of_entrypoint,
    hidden_by_a_mount
]);

for_each_runtime!(Youki youki; [every_kind_of_entrypoint]);

#[test]
fn runc_under_another_name() -> Result<()> {
    need!(Root, Busybox, Runc);
    under_another_name(Family::Runc, &["docker-runc", "runc.amd64", "oci-runtime"])
}

#[test]
fn crun_under_another_name() -> Result<()> {
    need!(Root, Busybox, Crun);
    under_another_name(Family::Crun, &["crun-wasm", "container-runtime"])
}

/// Restoring needs CRIU and a kernel that lets it: here the runtime is played by a script, which writes the pid file.
#[test]
fn restored_from_a_checkpoint() -> Result<()> {
    need!(Root, Busybox);
    let _dog = watchdog(LIMIT);
    let scratch = Scratch::new()?;
    let runtime = scratch.join("runc");
    let sleep = scratch.join("init");
    symlink("/bin/sleep", &sleep)?;
    let text = format!(
        "#!/bin/sh\n{} 1000 > /dev/null 2>&1 &\necho $! > {}/init.pid\n",
        sleep.display(),
        scratch.path().display()
    );
    write_script(&runtime, &text)?;
    let listener = Listener::to([runtime.clone()])?;
    let bundle = Bundle::builder(unique_id("restored")).build()?;
    let mut restore = Command::new(&runtime);
    restore.args(["restore", "--image-path"]).arg(scratch.join("image")).arg("--bundle").arg(bundle.path());
    restore.arg("--pid-file").arg(scratch.join("init.pid")).args(["--detach", bundle.id()]);
    done(&mut restore)?.ok()?;
    let init: i32 = std::fs::read_to_string(scratch.join("init.pid"))?.trim().parse()?;
    let kinds = [EventKind::PreCreate, EventKind::Created];
    let records = listener.wait(bundle.id(), &kinds)?;
    ensure!(records[0].event.held() && !records[1].event.held(), "{}", listener.text());
    ensure!(records[1].event.pid() == Some(init.cast_unsigned()), "{}", listener.text());
    Process(init).kill(libc::SIGKILL)?;
    listener.wait(bundle.id(), &[&kinds[..], &[EventKind::Stopped]].concat())?;
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}
