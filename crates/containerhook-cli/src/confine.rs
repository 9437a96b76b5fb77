//! What a listener may do: the capabilities that it keeps, and (in [`syscalls`]) the system calls that it makes.
//!
//! Capabilities belong to threads, so they are dropped before there is a second one: first in the supervisor, whose
//! listeners then start with what it has left, and in each listener again. Nothing that either starts can have more, for
//! the bounding set is lowered too, and no new privileges are to be had.
//!
//! Landlock is not used. A process in a Landlock domain may not look at processes outside of it, whatever the rules of the
//! domain are about, and a listener reads the arguments, roots and folders of whoever executes a runtime
//! (`privileges::landlock_would_keep_a_listener_from_its_work` shows it). What Landlock would forbid otherwise, the network above
//! all, the filter of system calls forbids.

mod syscalls;

use anyhow::Context as _;
use clap::Args;
use containerhook::{Privilege, Privileges};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::failure::Usage;

/// The options of commands that hold.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct SandboxArgs {
    /// Keep every capability and allow every system call: to find out whether one is missed
    #[arg(long, help_heading = "Running")]
    no_sandbox: bool,
    /// Listen without this capability: CAP_DAC_READ_SEARCH, CAP_SETUID, CAP_SETGID or CAP_SYS_PTRACE (repeatable)
    ///
    /// Without CAP_DAC_READ_SEARCH what lies in other users' folders is not read, without CAP_SETUID or CAP_SETGID what
    /// rootless users name: such containers are held and told, with less known of them. Without CAP_SYS_PTRACE no other
    /// process's memory is read: BPF notes every execve's arguments (--capture tracepoint), relative bundle paths cannot be
    /// followed, and an entrypoint that cannot be marked is not held. See docs/privileges.md.
    #[arg(long, value_name = "CAPABILITY", value_parser = spare, help_heading = "Running")]
    do_without: Vec<Privilege>,
}

/// Those that a listener can do without: it knows less then, and holds and tells all the same.
const SPARE: [Privilege; 4] =
    [Privilege::CapDacReadSearch, Privilege::CapSetgid, Privilege::CapSetuid, Privilege::CapSysPtrace];

fn spare(words: &str) -> Result<Privilege, String> {
    let name = words.to_ascii_uppercase();
    let named = |privilege: &Privilege| privilege.name() == name || privilege.name()["CAP_".len()..] == name;
    match Privilege::ALL.into_iter().find(named) {
        Some(privilege) if SPARE.contains(&privilege) => Ok(privilege),
        Some(privilege) if Privilege::TO_LISTEN.contains(&privilege) => {
            Err(format!("a listener cannot do without it: it is needed {}", privilege.purpose()))
        }
        _ => Err(format!("give one of {}", SPARE.map(Privilege::name).join(", "))),
    }
}

impl SandboxArgs {
    fn kept(&self) -> Vec<Privilege> {
        Privilege::TO_LISTEN.into_iter().filter(|privilege| !self.do_without.contains(privilege)).collect()
    }

    /// Drops what a listener does not need. Call it first, while there is one thread.
    ///
    /// # Errors
    ///
    /// Where one that it needs is not there; the error names it.
    pub(crate) fn enter(&self) -> anyhow::Result<()> {
        raise_limits();
        let effective = Privileges::effective().context("cannot read /proc/thread-self/status")?;
        let kept = self.kept();
        // What is to be said without the first of all is the library's.
        if effective.has(Privilege::CapSysAdmin)
            && let Some(missing) = kept.iter().find(|privilege| !effective.has(**privilege))
        {
            return Err(Usage(remedy(*missing)).into());
        }
        if self.no_sandbox {
            return Ok(());
        }
        keep(&kept).context("cannot drop capabilities (--no-sandbox keeps them)")
    }

    /// From now on every thread makes those system calls only that a listener has a use for. Call it when all is ready.
    pub(crate) fn close(&self) {
        if self.no_sandbox {
            return;
        }
        if let Err(error) = syscalls::allow_what_is_used() {
            tracing::warn!("system calls are not filtered: {error}");
        }
    }
}

fn remedy(missing: Privilege) -> String {
    let without = if SPARE.contains(&missing) {
        format!(", or listen without by --do-without {missing}")
    } else {
        String::new()
    };
    format!(
        "{missing} is missing, which is needed {}: grant it{without} (docs/privileges.md)",
        missing.purpose()
    )
}

/// Before the right to do so goes. A descriptor is needed for each held execution; maps of BPF count as locked memory before
/// Linux 5.11. Where it may not be, what there is has to do.
fn raise_limits() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}

fn set_of(privileges: &[Privilege]) -> CapabilitySet {
    let bits = privileges.iter().map(|privilege| 1 << privilege.number()).sum();
    CapabilitySet::from_bits_retain(bits)
}

fn keep(privileges: &[Privilege]) -> Result<(), Errno> {
    use rustix::thread::{
        capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    };
    let kept = set_of(privileges);
    set_no_new_privs(true)?;
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(one) {
            continue;
        }
        match capability_is_in_bounding_set(one) {
            Ok(false) => {}
            // Without CAP_SETPCAP it has to stay: with no new privileges it gives nobody anything.
            Ok(true) => match remove_capability_from_bounding_set(one) {
                Err(Errno::PERM) => break,
                removed => removed?,
            },
            // Beyond the kernel's last one.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    clear_ambient_capability_set()?;
    let before = capabilities(None)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: before.effective & kept,
            permitted: before.permitted & kept,
            inheritable: CapabilitySet::empty(),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_spared_is_named_with_or_without_its_prefix() {
        for words in ["CAP_SETUID", "cap_setuid", "setuid", "SETUID"] {
            assert_eq!(spare(words), Ok(Privilege::CapSetuid), "{words}");
        }
        for (words, answer) in [
            ("CAP_SYS_ADMIN", "cannot do without"),
            ("kill", "cannot do without"),
            ("CAP_CHOWN", "give one of CAP_DAC_READ_SEARCH, CAP_SETGID, CAP_SETUID, CAP_SYS_PTRACE"),
            ("all", "give one of"),
            ("", "give one of"),
        ] {
            assert!(spare(words).unwrap_err().contains(answer), "{words}");
        }
    }

    #[test]
    fn a_missing_capability_is_named_with_what_to_do() {
        let words = remedy(Privilege::CapKill);
        assert!(words.starts_with("CAP_KILL is missing") && !words.contains("--do-without"), "{words}");
        assert!(remedy(Privilege::CapSetgid).contains("--do-without CAP_SETGID"));
    }

    #[test]
    fn sets_have_the_kernels_bits() {
        let all = CapabilitySet::DAC_READ_SEARCH
            | CapabilitySet::KILL
            | CapabilitySet::SETGID
            | CapabilitySet::SETUID
            | CapabilitySet::SYS_PTRACE
            | CapabilitySet::SYS_ADMIN;
        assert_eq!(set_of(&Privilege::TO_LISTEN), all);
        let without = SandboxArgs { no_sandbox: false, do_without: vec![Privilege::CapSetuid] };
        assert_eq!(set_of(&without.kept()), all - CapabilitySet::SETUID);
    }
}
