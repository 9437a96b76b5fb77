//! What a test needs, and saying loudly that it was skipped.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

/// Something a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Effective uid 0.
    Root,
    /// A static busybox.
    Busybox,
    /// The runtime runc.
    Runc,
    /// The runtime crun.
    Crun,
    /// The runtime youki.
    Youki,
    /// containerd, its runc shim and `ctr`.
    Containerd,
    /// containerd with its CRI plugin; the image for sandboxes is made by the fixture.
    Cri,
    /// dockerd and Docker's client.
    Docker,
    /// Podman and conmon.
    Podman,
    /// Podman for a user who is not root.
    PodmanRootless,
    /// buildah.
    Buildah,
    /// A terminal without a person.
    Tmux,
    /// lxc, not lxd.
    Lxc,
    /// bubblewrap.
    Bubblewrap,
    /// gVisor.
    Runsc,
}

impl Need {
    /// The name that `CONTAINERHOOK_REQUIRE` lists it by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Busybox => "busybox",
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::Youki => "youki",
            Self::Containerd => "containerd",
            Self::Cri => "cri",
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::PodmanRootless => "podman-rootless",
            Self::Buildah => "buildah",
            Self::Tmux => "tmux",
            Self::Lxc => "lxc",
            Self::Bubblewrap => "bubblewrap",
            Self::Runsc => "runsc",
        }
    }

    /// Why it is missing here and what to do, or `None` when it is there.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        let programs: &[(&str, &str)] = match self {
            Self::Root => {
                let uid = crate::sys::effective_uid();
                return (uid != 0).then(|| format!("runs as uid {uid}, not as root; run it with sudo"));
            }
            Self::Busybox => return crate::rootfs::no_static_busybox(),
            Self::Runc => &[("runc", "runc")],
            Self::Crun => &[("crun", "crun")],
            Self::Youki => {
                let hint = "`cargo install youki --locked --no-default-features --features v1,v2,seccomp`";
                return find_program("youki").is_none().then(|| format!("youki is not installed; {hint}"));
            }
            Self::Containerd | Self::Cri => &[
                ("containerd", "containerd"),
                ("ctr", "containerd"),
                ("containerd-shim-runc-v2", "containerd"),
            ],
            Self::Docker => &[("dockerd", "docker.io"), ("containerd", "containerd")],
            Self::Podman => &[("podman", "podman"), ("conmon", "conmon")],
            Self::PodmanRootless => {
                &[("podman", "podman"), ("conmon", "conmon"), ("newuidmap", "uidmap"), ("useradd", "passwd")]
            }
            Self::Buildah => &[("buildah", "buildah")],
            Self::Tmux => &[("tmux", "tmux")],
            Self::Lxc => &[("lxc-execute", "lxc")],
            Self::Bubblewrap => &[("bwrap", "bubblewrap")],
            Self::Runsc => &[("runsc", "runsc")],
        };
        let (program, package) = programs.iter().find(|(program, _)| find_program(program).is_none())?;
        Some(format!("{program} is not installed; `apt-get install --no-install-recommends {package}`"))
    }

    fn is_required(self) -> bool {
        let Ok(list) = std::env::var("CONTAINERHOOK_REQUIRE") else { return false };
        list == "1" || list.split([',', ' ']).any(|name| name == self.name())
    }
}

/// Ends the test, counted as skipped, unless everything that is named is there:
/// `need!(Root, Runc, Busybox);`, with the variants of [`Need`].
///
/// For tests that return `()` or a `Result<(), _>`. Under `CONTAINERHOOK_REQUIRE` what is missing is a failure.
#[macro_export]
macro_rules! need {
    ($($need:ident),+ $(,)?) => {
        if $crate::skip::require($crate::test_name!(), &[$($crate::Need::$need),+]) {
            return $crate::skip::Outcome::skipped();
        }
    };
}

/// Ends the test, counted as skipped, for a reason that [`Need`] has no word for: `skip!("no cgroup2 here");`
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {{
        $crate::skip::report($crate::test_name!(), &format!($($reason)+));
        return $crate::skip::Outcome::skipped();
    }};
}

/// The name of the function around it, as the test runner writes it.
#[doc(hidden)]
#[macro_export]
macro_rules! test_name {
    () => {{
        // Not the thread's name: with one test thread tests run on the main one.
        fn here() {}
        $crate::skip::function_of(std::any::type_name_of_val(&here))
    }};
}

/// What a skipped test returns.
pub trait Outcome {
    /// The value that counts as passed.
    fn skipped() -> Self;
}

impl Outcome for () {
    fn skipped() -> Self {}
}

impl<E> Outcome for Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// Whether `test` has to be skipped for want of one of `needs`; reports it then. [`need!`] calls this.
///
/// # Panics
/// When what is missing is listed in `CONTAINERHOOK_REQUIRE`.
#[must_use]
pub fn require(test: &str, needs: &[Need]) -> bool {
    for need in needs {
        let Some(reason) = need.missing() else { continue };
        assert!(
            !need.is_required(),
            "{test} needs {}, which CONTAINERHOOK_REQUIRE lists: {reason}",
            need.name()
        );
        report(test, &reason);
        return true;
    }
    false
}

/// Says that `test` was skipped, on standard error and in the file that `CONTAINERHOOK_SKIPS` names.
pub fn report(test: &str, reason: &str) {
    let line = format!("SKIPPED: {test}: {}\n", reason.replace('\n', " "));
    // Written to the descriptor, for the test runner keeps what a passing test prints by macro to itself.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("CONTAINERHOOK_SKIPS") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// `a::b::test` of `a::b::test::here`.
#[doc(hidden)]
#[must_use]
pub fn function_of(here: &'static str) -> &'static str {
    let name = here.strip_suffix("::here").unwrap_or(here);
    name.trim_end_matches("::{{closure}}")
}

/// Looks a program up in `PATH`, in the folders for administrators, which a user's `PATH` may lack, and in cargo's.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo/bin"));
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .chain(home)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}
