//! gVisor's runsc.
//!
//! runsc reads with Go's `flag`: any number of dashes up to two, and the first argument that is no option
//! ends the options, before the verb and behind it. It executes itself as `runsc-gofer`, `runsc-sandbox` and
//! `runsc-exec`; the last has the whole command line of an `exec --detach` less that option, so `argv[0]` is
//! what tells it apart.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::oci::{self, Grammar, Key, Shape};
use super::scan::{GO, Opt, flag, value};
use super::{Family, Invocation, Verb};

const GRAMMAR: Grammar = Grammar {
    family: Family::Runsc,
    dialect: GO,
    global: GLOBAL,
    global_after_verb: false,
    reorder: None,
    shape,
    verb,
};

pub(super) fn parse(argv: &[&OsStr]) -> Invocation {
    let mut inv = oci::parse(&GRAMMAR, argv.get(1..).unwrap_or_default());
    let itself = argv.first().is_some_and(|name| {
        let name = name.as_bytes();
        matches!(name, b"runsc-gofer" | b"runsc-sandbox" | b"runsc-exec" | b"runsc-metrics")
    });
    if itself {
        inv.verb = Verb::Init;
        inv.exec = None;
    }
    inv
}

fn verb(word: &OsStr) -> Verb {
    match word.as_bytes() {
        b"boot" | b"gofer" | b"umount" | b"dynamic-gofer" | b"netgofer" | b"metric-server" => Verb::Init,
        b"flags" | b"commands" => Verb::Help,
        b"init" => Verb::Other(word.to_os_string()),
        _ => Verb::from_word(word),
    }
}

fn shape(verb: &Verb) -> Shape {
    let options = match verb {
        Verb::Create | Verb::Run | Verb::Restore => RUN,
        Verb::Checkpoint => CHECKPOINT,
        Verb::Exec => EXEC,
        Verb::Kill => KILL,
        Verb::Delete => DELETE,
        Verb::List | Verb::Ps => LIST,
        Verb::Events => EVENTS,
        _ => PLAIN,
    };
    Shape { options, stop_after: 1 }
}

const HELP: Opt<Key> = flag("help", b'h', Key::Help);

const RUN: &[Opt<Key>] = &[
    HELP,
    value("bundle", 0, Key::Bundle),
    value("console-socket", 0, Key::ConsoleSocket),
    value("pid-file", 0, Key::PidFile),
    value("user-log", 0, Key::Ignored),
    flag("detach", 0, Key::Detach),
    flag("keep", 0, Key::Keep),
    value("pass-fd", 0, Key::Ignored),
    value("exec-fd", 0, Key::Ignored),
    value("image-path", 0, Key::ImagePath),
    value("work-path", 0, Key::WorkPath),
    value("fs-restore-image-path", 0, Key::Ignored),
    flag("fs-restore-direct", 0, Key::Ignored),
    flag("no-subreaper", 0, Key::Ignored),
    flag("direct", 0, Key::Ignored),
    flag("background", 0, Key::Ignored),
];

const CHECKPOINT: &[Opt<Key>] = &[
    HELP,
    value("image-path", 0, Key::ImagePath),
    value("work-path", 0, Key::WorkPath),
    flag("leave-running", 0, Key::LeaveRunning),
    value("compression", 0, Key::Ignored),
    value("excludes-committed-zero-pages", 0, Key::Ignored),
    flag("exclude-committed-zero-pages", 0, Key::Ignored),
    flag("direct", 0, Key::Ignored),
    value("save-restore-exec-argv", 0, Key::Ignored),
    value("save-restore-exec-timeout", 0, Key::Ignored),
    value("save-restore-exec-container-id", 0, Key::Ignored),
];

const EXEC: &[Opt<Key>] = &[
    HELP,
    value("additional-gids", 0, Key::Ignored),
    value("cap", 0, Key::Cap),
    value("console-socket", 0, Key::ConsoleSocket),
    value("cwd", 0, Key::Cwd),
    flag("detach", 0, Key::Detach),
    value("env", 0, Key::Env),
    value("exec-fd", 0, Key::Ignored),
    value("internal-pid-file", 0, Key::Ignored),
    value("pass-fd", 0, Key::Ignored),
    value("pid-file", 0, Key::PidFile),
    value("process", 0, Key::Process),
    value("user", 0, Key::User),
];

const KILL: &[Opt<Key>] = &[HELP, flag("all", 0, Key::All), value("pid", 0, Key::Ignored)];

const DELETE: &[Opt<Key>] = &[HELP, flag("force", 0, Key::Force)];

const LIST: &[Opt<Key>] = &[
    HELP,
    value("format", 0, Key::Ignored),
    value("f", 0, Key::Ignored),
    flag("quiet", 0, Key::Ignored),
    flag("q", 0, Key::Ignored),
    flag("sandbox", 0, Key::Ignored),
];

const EVENTS: &[Opt<Key>] = &[HELP, value("interval", 0, Key::Ignored), flag("stats", 0, Key::Ignored)];

const PLAIN: &[Opt<Key>] = &[HELP];

// runsc writes its own options as `--flag=value`, where the kind does not matter; people also write `--flag
// value`, where it does. Switches and others therefore stand here with their kind, of the 2022 and the 2026
// versions.
const GLOBAL: &[Opt<Key>] = &[
    HELP,
    flag("version", 0, Key::Help),
    value("root", 0, Key::Root),
    value("log", 0, Key::Log),
    value("log-format", 0, Key::LogFormat),
    flag("debug", 0, Key::Ignored),
    flag("systemd-cgroup", 0, Key::SystemdCgroup),
    flag("rootless", 0, Key::Rootless),
    value("debug-log", 0, Key::Ignored),
    value("debug-command", 0, Key::Ignored),
    value("debug-log-format", 0, Key::Ignored),
    value("debug-log-fd", 0, Key::Ignored),
    flag("debug-to-user-log", 0, Key::Ignored),
    value("log-fd", 0, Key::Ignored),
    value("panic-log", 0, Key::Ignored),
    value("panic-log-fd", 0, Key::Ignored),
    value("panic-signal", 0, Key::Ignored),
    value("coverage-report", 0, Key::Ignored),
    value("coverage-fd", 0, Key::Ignored),
    flag("log-packets", 0, Key::Ignored),
    value("pcap-log", 0, Key::Ignored),
    flag("alsologtostderr", 0, Key::Ignored),
    flag("allow-flag-override", 0, Key::Ignored),
    value("traceback", 0, Key::Ignored),
    value("metric-server", 0, Key::Ignored),
    value("final-metrics-log", 0, Key::Ignored),
    value("profiling-metrics", 0, Key::Ignored),
    value("profiling-metrics-log", 0, Key::Ignored),
    value("profiling-metrics-rate-us", 0, Key::Ignored),
    flag("strace", 0, Key::Ignored),
    value("strace-syscalls", 0, Key::Ignored),
    value("strace-log-size", 0, Key::Ignored),
    flag("strace-event", 0, Key::Ignored),
    value("platform", 0, Key::Ignored),
    value("platform_device_path", 0, Key::Ignored),
    value("watchdog-action", 0, Key::Ignored),
    flag("profile", 0, Key::Ignored),
    value("profile-block", 0, Key::Ignored),
    value("profile-cpu", 0, Key::Ignored),
    value("profile-gc-interval", 0, Key::Ignored),
    value("profile-heap", 0, Key::Ignored),
    value("profile-mutex", 0, Key::Ignored),
    value("trace", 0, Key::Ignored),
    value("ref-leak-mode", 0, Key::Ignored),
    flag("cpu-num-from-quota", 0, Key::Ignored),
    flag("oci-seccomp", 0, Key::Ignored),
    flag("enable-core-tags", 0, Key::Ignored),
    value("signal-unkillable-policy", 0, Key::Ignored),
    value("pod-init-config", 0, Key::Ignored),
    value("host-settings", 0, Key::Ignored),
    value("sidecar-release-enforcement-policy", 0, Key::Ignored),
    value("sidecar-usage-policy", 0, Key::Ignored),
    value("restore-spec-validation", 0, Key::Ignored),
    flag("systrap-disable-syscall-patching", 0, Key::Ignored),
    flag("systrap-disable-fast-path", 0, Key::Ignored),
    flag("allow-suid", 0, Key::Ignored),
    flag("kvm-use-cpu-nums", 0, Key::Ignored),
    flag("allow-rootfs-tar-annotation", 0, Key::Ignored),
    value("control-rpc-stop-timeout", 0, Key::Ignored),
    value("shared-root", 0, Key::Ignored),
    flag("app-huge-pages", 0, Key::Ignored),
    value("file-access", 0, Key::Ignored),
    value("file-access-mounts", 0, Key::Ignored),
    flag("overlay", 0, Key::Ignored),
    value("overlay2", 0, Key::Ignored),
    flag("fsgofer-host-uds", 0, Key::Ignored),
    value("host-uds", 0, Key::Ignored),
    value("host-fifo", 0, Key::Ignored),
    value("character-device-policy", 0, Key::Ignored),
    flag("gvisor-marker-file", 0, Key::Ignored),
    value("override-procs", 0, Key::Ignored),
    flag("vfs2", 0, Key::Ignored),
    flag("fuse", 0, Key::Ignored),
    flag("lisafs", 0, Key::Ignored),
    flag("cgroupfs", 0, Key::Ignored),
    flag("ignore-cgroups", 0, Key::Ignored),
    value("in-sandbox-cgroup", 0, Key::Ignored),
    value("fdlimit", 0, Key::Ignored),
    value("dcache", 0, Key::Ignored),
    flag("iouring", 0, Key::Ignored),
    flag("directfs", 0, Key::Ignored),
    value("network", 0, Key::Ignored),
    value("network-proxy-path", 0, Key::Ignored),
    value("gofer-network-namespace", 0, Key::Ignored),
    flag("net-raw", 0, Key::Ignored),
    flag("allow-packet-socket-write", 0, Key::Ignored),
    flag("allow-live-tcp-migration", 0, Key::Ignored),
    flag("gso", 0, Key::Ignored),
    flag("software-gso", 0, Key::Ignored),
    // A duration in 2022, a switch since: with `--gvisor-gro=V` alone are both meant.
    flag("gvisor-gro", 0, Key::Ignored),
    flag("tx-checksum-offload", 0, Key::Ignored),
    flag("rx-checksum-offload", 0, Key::Ignored),
    value("qdisc", 0, Key::Ignored),
    value("qdisc-tbf-rate", 0, Key::Ignored),
    value("qdisc-tbf-burst", 0, Key::Ignored),
    value("num-network-channels", 0, Key::Ignored),
    value("network-processors-per-channel", 0, Key::Ignored),
    flag("buffer-pooling", 0, Key::Ignored),
    flag("EXPERIMENTAL-afxdp", 0, Key::Ignored),
    value("EXPERIMENTAL-xdp", 0, Key::Ignored),
    flag("EXPERIMENTAL-xdp-need-wakeup", 0, Key::Ignored),
    flag("reproduce-nat", 0, Key::Ignored),
    flag("reproduce-nftables", 0, Key::Ignored),
    flag("net-disconnect-ok", 0, Key::Ignored),
    flag("pause-external-networking", 0, Key::Ignored),
    flag("allow-connected-on-save", 0, Key::Ignored),
    flag("nvproxy", 0, Key::Ignored),
    flag("nvproxy-docker", 0, Key::Ignored),
    value("nvproxy-driver-version", 0, Key::Ignored),
    flag("nvproxy-allow-unsupported-driver", 0, Key::Ignored),
    value("nvproxy-allowed-driver-capabilities", 0, Key::Ignored),
    value("cuda-checkpoint-path", 0, Key::Ignored),
    flag("rdmaproxy", 0, Key::Ignored),
    flag("tpuproxy", 0, Key::Ignored),
    flag("TESTONLY-unsafe-nonroot", 0, Key::Ignored),
    flag("TESTONLY-allow-packet-endpoint-write", 0, Key::Ignored),
    flag("TESTONLY-afs-syscall-panic", 0, Key::Ignored),
    flag("TESTONLY-nftables", 0, Key::Ignored),
    flag("TESTONLY-autosave-resume", 0, Key::Ignored),
    value("TESTONLY-autosave-image-path", 0, Key::Ignored),
    value("TESTONLY-test-name-env", 0, Key::Ignored),
];
