//! On which machine a figure was measured.

use std::fs;
use std::process::Command;

pub(crate) fn describe() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of_cpu = |key: &str| {
        let line = cpu.lines().find(|line| line.starts_with(key))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    let model = of_cpu("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let guest = if of_cpu("flags").is_some_and(|flags| flags.contains(" hypervisor")) {
        ", a virtual machine"
    } else {
        ""
    };
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: f64 =
        memory.split_ascii_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{count} × {model}{guest}, {:.0} GiB, Linux {}", kib / 1024.0 / 1024.0, kernel.trim())
}

pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default()
}

/// The commit that was measured, with a `+` where the tree holds changes beside it.
pub(crate) fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return "unknown".to_owned() };
    let clean =
        git(&["status", "--porcelain", "--untracked-files=no", "--", "crates", "benches", "Cargo.lock"]);
    if clean.is_some_and(|changes| changes.is_empty()) { commit } else { commit + "+" }
}
