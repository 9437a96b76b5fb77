//! The capabilities(7) of a process that make a difference here.

use serde::Serialize;

use super::{Area, Available, Capability};

/// A capability of a process, as in capabilities(7), that a listener uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum Privilege {
    /// `CAP_CHOWN`: a changed configuration keeps its owner.
    CapChown,
    /// `CAP_DAC_OVERRIDE`: a configuration in a folder of another user is changed.
    CapDacOverride,
    /// `CAP_DAC_READ_SEARCH`: files and folders of other users are read.
    CapDacReadSearch,
    /// `CAP_FOWNER`: a changed configuration keeps its mode.
    CapFowner,
    /// `CAP_KILL`: containers of other users are ended, or let go on.
    CapKill,
    /// `CAP_SETGID`: what a rootless user names is opened with her groups.
    CapSetgid,
    /// `CAP_SETUID`: what a rootless user names is opened with her rights.
    CapSetuid,
    /// `CAP_SYS_PTRACE`: the arguments, roots and folders of held processes are read.
    CapSysPtrace,
    /// `CAP_SYS_ADMIN`: permission events; it includes what BPF takes.
    CapSysAdmin,
}

impl Privilege {
    /// All, by number.
    pub const ALL: [Privilege; 9] = [
        Privilege::CapChown,
        Privilege::CapDacOverride,
        Privilege::CapDacReadSearch,
        Privilege::CapFowner,
        Privilege::CapKill,
        Privilege::CapSetgid,
        Privilege::CapSetuid,
        Privilege::CapSysPtrace,
        Privilege::CapSysAdmin,
    ];

    /// Those that a listener uses which changes no configuration.
    pub const TO_LISTEN: [Privilege; 6] = [
        Privilege::CapDacReadSearch,
        Privilege::CapKill,
        Privilege::CapSetgid,
        Privilege::CapSetuid,
        Privilege::CapSysPtrace,
        Privilege::CapSysAdmin,
    ];

    /// The name, as in capabilities(7): `CAP_SYS_ADMIN`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Privilege::CapChown => "CAP_CHOWN",
            Privilege::CapDacOverride => "CAP_DAC_OVERRIDE",
            Privilege::CapDacReadSearch => "CAP_DAC_READ_SEARCH",
            Privilege::CapFowner => "CAP_FOWNER",
            Privilege::CapKill => "CAP_KILL",
            Privilege::CapSetgid => "CAP_SETGID",
            Privilege::CapSetuid => "CAP_SETUID",
            Privilege::CapSysPtrace => "CAP_SYS_PTRACE",
            Privilege::CapSysAdmin => "CAP_SYS_ADMIN",
        }
    }

    /// What it is for, in a few words.
    #[must_use]
    pub fn purpose(self) -> &'static str {
        match self {
            Privilege::CapChown => "to keep the owner of a configuration that is changed",
            Privilege::CapDacOverride => "to change configurations in other users' folders",
            Privilege::CapDacReadSearch => "to read configurations in other users' folders",
            Privilege::CapFowner => "to keep the mode of a configuration that is changed",
            Privilege::CapKill => "to end, or let go on, containers of other users",
            Privilege::CapSetgid => "to open what a rootless user names with her groups",
            Privilege::CapSetuid => "to open what a rootless user names with her rights",
            Privilege::CapSysPtrace => "to read the arguments, roots and folders of held processes",
            Privilege::CapSysAdmin => "for permission events and BPF",
        }
    }

    /// The kernel's number.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Privilege::CapChown => 0,
            Privilege::CapDacOverride => 1,
            Privilege::CapDacReadSearch => 2,
            Privilege::CapFowner => 3,
            Privilege::CapKill => 5,
            Privilege::CapSetgid => 6,
            Privilege::CapSetuid => 7,
            Privilege::CapSysPtrace => 19,
            Privilege::CapSysAdmin => 21,
        }
    }
}

impl std::fmt::Display for Privilege {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// The capabilities that a process has in effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privileges(u64);

impl Privileges {
    /// Those of the calling thread.
    ///
    /// # Errors
    ///
    /// Where `/proc` is not mounted.
    pub fn effective() -> std::io::Result<Privileges> {
        let status = std::fs::read_to_string("/proc/thread-self/status")?;
        Self::parse(&status).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
    }

    fn parse(status: &str) -> Option<Privileges> {
        let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(set.trim(), 16).ok().map(Privileges)
    }

    /// Is this one among them?
    #[must_use]
    pub fn has(self, privilege: Privilege) -> bool {
        self.0 & (1 << privilege.number()) != 0
    }
}

pub(super) fn capability() -> Capability {
    let (available, detail) = match Privileges::effective() {
        Ok(effective) => {
            let missing = Privilege::TO_LISTEN.into_iter().filter(|privilege| !effective.has(*privilege));
            let missing: Vec<_> =
                missing.map(|privilege| format!("{privilege} {}", privilege.purpose())).collect();
            if missing.is_empty() {
                (Available::Yes, None)
            } else {
                (Available::No, Some(format!("missing: {}", missing.join("; "))))
            }
        }
        Err(error) => (Available::Unknown, Some(format!("/proc/thread-self/status: {error}"))),
    };
    let purpose = "the rights that a listener uses";
    Capability::new(Area::Process, "process-capabilities", purpose, available)
        .detail(detail)
        .remedy("grant them: docs/privileges.md says what each is for")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read() {
        let status = "CapPrm:\tffffffffffffffff\nCapEff:\t0000000000280000\nCapBnd:\tffffffffffffffff\n";
        let set = Privileges::parse(status).unwrap();
        let has: Vec<_> = Privilege::ALL.into_iter().filter(|privilege| set.has(*privilege)).collect();
        assert_eq!(has, [Privilege::CapSysPtrace, Privilege::CapSysAdmin]);
        assert_eq!(Privileges::parse("CapPrm:\t0\n"), None);
        assert_eq!(Privileges::parse("CapEff:\tx\n"), None);
        assert!(Privileges::effective().is_ok());
    }

    #[test]
    fn names_in_json_are_the_kernels() {
        for privilege in Privilege::ALL {
            assert_eq!(serde_json::to_value(privilege).unwrap(), privilege.name());
        }
    }
}
