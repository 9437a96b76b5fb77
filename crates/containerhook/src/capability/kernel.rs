//! What the kernel can do, and what it forbids.

use std::io::Read as _;
use std::path::Path;

use super::{Area, Available, Capability};

pub(super) fn permission_events() -> Capability {
    let (available, detail) = match fanotify::supported() {
        fanotify::Support::Yes => (Available::Yes, None),
        fanotify::Support::No { reason } => (Available::No, Some(reason)),
        fanotify::Support::Unknown { reason } => (Available::Unknown, Some(reason)),
        _ => (Available::Unknown, None),
    };
    let purpose = "to see and hold executions of runtimes";
    Capability::new(Area::Kernel, "fanotify-permission-events", purpose, available)
        .required(true)
        .detail(detail)
        .remedy(
            "run as root of the host's user namespace with CAP_SYS_ADMIN, on a kernel with \
             CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y (Linux 5.10 or later)",
        )
}

/// The options that make a difference, and whether it works without.
const OPTIONS: [(&str, bool); 5] = [
    ("CONFIG_FANOTIFY_ACCESS_PERMISSIONS", true),
    ("CONFIG_FANOTIFY", true),
    ("CONFIG_PROC_FS", true),
    ("CONFIG_BPF_SYSCALL", false),
    ("CONFIG_DEBUG_INFO_BTF", false),
];

/// An unpacked configuration has some 300 KB.
const MOST: u64 = 4 << 20;

/// Explains what the trials show: it decides nothing.
pub(super) fn options(host_root: &Path) -> Capability {
    let purpose = "the options that the rest is built on";
    let new = |available| {
        Capability::new(Area::Kernel, "kernel-options", purpose, available)
            .matters(false)
            .remedy("run a kernel that is built with them")
    };
    let Some((from, text)) = configuration(host_root) else {
        let words = "none of /proc/config.gz, /boot/config-RELEASE and /usr/lib/modules/RELEASE/config can be read; the trials below \
             say what works";
        let mut unknown = new(Available::Unknown).detail(words.to_owned());
        unknown.remedy = None;
        return unknown;
    };
    let missing = missing(&text);
    if missing.is_empty() {
        return new(Available::Yes).detail(format!("by {from}"));
    }
    new(Available::No).detail(format!("{from} does not set {}", missing.join(", ")))
}

fn missing(config: &str) -> Vec<&'static str> {
    let set = |option: &str| {
        config.lines().any(|line| line.strip_prefix(option).is_some_and(|rest| matches!(rest, "=y" | "=m")))
    };
    OPTIONS.into_iter().map(|(option, _)| option).filter(|option| !set(option)).collect()
}

fn configuration(host_root: &Path) -> Option<(String, String)> {
    let unpacked = || {
        let file = std::fs::File::open("/proc/config.gz").ok()?;
        let mut text = String::new();
        flate2::read::GzDecoder::new(file).take(MOST).read_to_string(&mut text).ok()?;
        Some(("/proc/config.gz".to_owned(), text))
    };
    unpacked().or_else(|| {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
        of_release(host_root, release.trim())
    })
}

/// Distributions put it beside the kernel, or among its modules.
fn of_release(host_root: &Path, release: &str) -> Option<(String, String)> {
    let places = [
        format!("boot/config-{release}"),
        format!("usr/lib/modules/{release}/config"),
        format!("lib/modules/{release}/config"),
    ];
    places.into_iter().find_map(|name| {
        let path = host_root.join(name);
        let mut text = String::new();
        std::fs::File::open(&path).ok()?.take(MOST).read_to_string(&mut text).ok()?;
        Some((path.display().to_string(), text))
    })
}

/// Explains why BPF programs are refused.
pub(super) fn btf() -> Capability {
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    let (available, detail) = match std::fs::File::open(PATH) {
        Ok(_) => (Available::Yes, None),
        Err(error) => {
            let sys = Path::new("/sys/kernel").is_dir();
            let available = if sys { Available::No } else { Available::Unknown };
            (available, Some(format!("{PATH}: {error}")))
        }
    };
    Capability::new(Area::Kernel, "btf", "the kernel's types, for BPF programs", available)
        .matters(false)
        .detail(detail)
        .remedy("run a kernel with CONFIG_DEBUG_INFO_BTF=y, and mount /sys")
}

const LOCKDOWN: &str = "/sys/kernel/security/lockdown";
const MODULES: &str = "/sys/kernel/security/lsm";

/// `yes` means that nothing is in the way. Explains why BPF programs are refused.
pub(super) fn lockdown() -> Capability {
    let new = |available| {
        Capability::new(Area::Kernel, "no-lockdown", "lockdown=confidentiality forbids BPF", available)
            .matters(false)
            .remedy("boot with lockdown=integrity, or without; without it ends have exit codes on Linux 6.15 only")
    };
    match std::fs::read_to_string(LOCKDOWN) {
        Ok(text) => match chosen(&text) {
            Some("confidentiality") => new(Available::No).detail("lockdown is confidentiality".to_owned()),
            Some(level) => new(Available::Yes).detail(format!("lockdown is {level}")),
            None => unsaid(new(Available::Unknown), format!("{LOCKDOWN} says {:?}", text.trim())),
        },
        Err(_) if std::fs::metadata(MODULES).is_ok() => {
            new(Available::Yes).detail("this kernel has no lockdown".to_owned())
        }
        Err(error) => unsaid(new(Available::Unknown), format!("{LOCKDOWN}: {error}; is securityfs mounted?")),
    }
}

/// The word in brackets.
fn chosen(text: &str) -> Option<&str> {
    text.split_once('[')?.1.split_once(']').map(|(word, _)| word)
}

/// Nothing is known to be missing, so there is nothing to do.
fn unsaid(mut capability: Capability, detail: String) -> Capability {
    capability.remedy = None;
    capability.detail(detail)
}

/// Explains refusals: a mark that is refused is a warning of its own.
pub(super) fn security_modules() -> Capability {
    let new = |available| {
        Capability::new(Area::Kernel, "security-modules", "SELinux has a permission for marks", available)
            .matters(false)
    };
    let active = std::fs::read_to_string(MODULES).ok();
    let enforces = std::fs::read_to_string("/sys/fs/selinux/enforce").ok();
    match (enforces.as_deref().map(str::trim), active) {
        (Some("1"), active) => {
            let domain = std::fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
            let domain = domain.trim_end_matches(['\0', '\n']);
            let active = active.map(|active| format!(" ({})", active.trim())).unwrap_or_default();
            let mut unknown = new(Available::Unknown).detail(format!(
                "SELinux is enforcing{active}; this process is {domain}. A mark that is refused is a warning below"
            ));
            unknown.remedy = Some(
                "where marks or memory are refused: allow this domain watch_with_perm on the runtimes' and the \
                 containers' files, and ptrace; in a container use the type spc_t"
                    .to_owned(),
            );
            unknown
        }
        (_, Some(active)) => new(Available::Yes).detail(format!("active: {}", active.trim())),
        (Some(_), None) => new(Available::Yes).detail("SELinux is permissive".to_owned()),
        (None, None) => unsaid(
            new(Available::Unknown),
            format!("{MODULES} cannot be read (is securityfs mounted?); no SELinux is to be seen"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_found_wherever_distributions_put_it() {
        let host = tempfile::tempdir().unwrap();
        assert_eq!(of_release(host.path(), "6.1.0"), None);
        // The later one in this list is looked for first.
        for place in ["lib/modules/6.1.0/config", "usr/lib/modules/6.1.0/config", "boot/config-6.1.0"] {
            let file = host.path().join(place);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, place).unwrap();
            assert_eq!(of_release(host.path(), "6.1.0"), Some((file.display().to_string(), place.into())));
        }
    }

    #[test]
    fn options_that_are_not_set_are_named() {
        let all = "CONFIG_FANOTIFY=y\nCONFIG_FANOTIFY_ACCESS_PERMISSIONS=y\nCONFIG_PROC_FS=y\nCONFIG_BPF_SYSCALL=y\n\
                   CONFIG_DEBUG_INFO_BTF=y\n";
        assert_eq!(missing(all), Vec::<&str>::new());
        let less = all.replace("CONFIG_DEBUG_INFO_BTF=y", "# CONFIG_DEBUG_INFO_BTF is not set");
        assert_eq!(missing(&less), ["CONFIG_DEBUG_INFO_BTF"]);
        // One option's name may begin another's.
        let less = all.replace("CONFIG_FANOTIFY=y\n", "");
        assert_eq!(missing(&less), ["CONFIG_FANOTIFY"]);
        assert_eq!(missing("").len(), OPTIONS.len());
    }

    #[test]
    fn the_level_of_the_lockdown_is_the_word_in_brackets() {
        assert_eq!(chosen("none [integrity] confidentiality\n"), Some("integrity"));
        assert_eq!(chosen("[none] integrity confidentiality\n"), Some("none"));
        assert_eq!(chosen("none integrity"), None);
    }

    #[test]
    fn a_host_configuration_is_found_by_the_kernels_release() {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let host = tempfile::tempdir().unwrap();
        std::fs::create_dir(host.path().join("boot")).unwrap();
        std::fs::write(host.path().join(format!("boot/config-{}", release.trim())), "CONFIG_FANOTIFY=y\n")
            .unwrap();
        let (from, text) = configuration(host.path()).unwrap();
        // The kernel's own word goes before a file.
        if Path::new("/proc/config.gz").exists() {
            assert!(from == "/proc/config.gz" && text.contains("CONFIG_PROC_FS=y"), "{from}");
        } else {
            assert_eq!(text, "CONFIG_FANOTIFY=y\n");
        }
    }
}
