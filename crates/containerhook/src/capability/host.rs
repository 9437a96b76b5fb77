//! How the host is set up.

use std::path::Path;

use super::{Area, Available, Capability};

/// What counts kills for want of memory.
pub(super) fn memory_cgroup(host_root: &Path) -> Capability {
    let mounts = host_root.join("sys/fs/cgroup");
    let (available, detail) = match layout(&mounts) {
        Some((layout, true)) => (Available::Yes, layout.to_owned()),
        Some((layout, false)) => (Available::No, format!("{layout}, without the memory controller")),
        None => (Available::Unknown, format!("no cgroups are mounted at {}", mounts.display())),
    };
    Capability::new(Area::Host, "memory-cgroup", "whether memory was the reason of an end", available)
        .detail(detail)
        .remedy("boot with the memory controller (cgroup_enable=memory), and let /sys/fs/cgroup be seen")
}

/// The layout below where cgroups are mounted, and whether it counts memory.
fn layout(mounts: &Path) -> Option<(&'static str, bool)> {
    let controllers = |path: &Path| {
        let words = std::fs::read_to_string(path.join("cgroup.controllers")).ok()?;
        Some(words.split_whitespace().any(|word| word == "memory"))
    };
    if let Some(memory) = controllers(mounts) {
        return Some(("cgroup v2", memory));
    }
    let first = mounts.join("memory").join("tasks").exists();
    match controllers(&mounts.join("unified")) {
        Some(second) => Some(("cgroup v1 and v2 (hybrid)", first || second)),
        None if first => Some(("cgroup v1", true)),
        // Other controllers of v1.
        None if mounts.join("cpu").join("tasks").exists() || mounts.join("pids").join("tasks").exists() => {
            Some(("cgroup v1", false))
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layout_is_told_apart() {
        let host = tempfile::tempdir().unwrap();
        let mounts = host.path().join("sys/fs/cgroup");
        let seen = || memory_cgroup(host.path());
        assert_eq!(seen().available, Available::Unknown);
        let make = |folder: &str, file: &str, text: &str| {
            std::fs::create_dir_all(mounts.join(folder)).unwrap();
            std::fs::write(mounts.join(folder).join(file), text).unwrap();
        };
        make("pids", "tasks", "");
        assert_eq!((seen().available, layout(&mounts)), (Available::No, Some(("cgroup v1", false))));
        make("memory", "tasks", "");
        assert_eq!((seen().available, layout(&mounts)), (Available::Yes, Some(("cgroup v1", true))));
        make("unified", "cgroup.controllers", "");
        assert_eq!(layout(&mounts), Some(("cgroup v1 and v2 (hybrid)", true)));
        make("", "cgroup.controllers", "cpu io pids\n");
        assert_eq!((seen().available, layout(&mounts)), (Available::No, Some(("cgroup v2", false))));
        make("", "cgroup.controllers", "cpu io memory pids\n");
        assert_eq!((seen().available, seen().detail), (Available::Yes, Some("cgroup v2".to_owned())));
    }
}
