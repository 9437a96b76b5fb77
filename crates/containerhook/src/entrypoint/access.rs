//! Whether a container's user may execute a file or pass through a directory.
//!
//! It matters only for the search along `PATH`: a runtime searches as the container's user and passes by what
//! that user may not execute, so the first file of that name need not be the one.

use crate::bundle::sys::Stat;
use crate::config::{IdMapping, Outline};

/// A container's user, with ids as the host sees them.
#[derive(Debug)]
pub(super) struct Access {
    /// Root in the container may do anything with the files of its user namespace.
    root: bool,
    uid: Option<u32>,
    gids: Vec<u32>,
}

impl Access {
    pub(super) fn of(outline: &Outline) -> Self {
        let user = outline.user.clone().unwrap_or_default();
        let gids = std::iter::once(user.gid).chain(user.additional_gids);
        Self {
            root: user.uid == 0,
            uid: on_host(user.uid, &outline.uid_mappings),
            gids: gids.filter_map(|gid| on_host(gid, &outline.gid_mappings)).collect(),
        }
    }

    /// By the mode alone: access control lists are not looked at.
    pub(super) fn executes(&self, file: &Stat) -> bool {
        if self.root {
            return file.is_dir() || file.mode & 0o111 != 0;
        }
        let bit = if self.uid == Some(file.uid) {
            0o100
        } else if self.gids.contains(&file.gid) {
            0o010
        } else {
            0o001
        };
        file.mode & bit != 0
    }
}

/// An id in the container's user namespace, as the host has it; without mappings there is no such namespace.
fn on_host(id: u32, mappings: &[IdMapping]) -> Option<u32> {
    if mappings.is_empty() {
        return Some(id);
    }
    mappings.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container).filter(|offset| *offset < mapping.size)?;
        mapping.host.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn access(user: &str, linux: &str) -> Access {
        let text = format!(r#"{{"process":{{"user":{user}}},"linux":{linux}}}"#);
        Access::of(Config::from_bytes(text).unwrap().outline())
    }

    fn file(mode: u32, uid: u32, gid: u32) -> Stat {
        Stat { dev: 1, ino: 1, mode: libc::S_IFREG | mode, uid, gid, size: 0 }
    }

    #[test]
    fn modes() {
        let user = access(r#"{"uid":5,"gid":6,"additionalGids":[7]}"#, "{}");
        for (mode, uid, gid, may) in [
            (0o755, 0, 0, true),
            (0o700, 0, 0, false),
            (0o700, 5, 0, true),
            (0o077, 5, 0, false),
            (0o710, 0, 6, true),
            (0o710, 0, 7, true),
            (0o701, 0, 7, false),
            (0o644, 5, 6, false),
        ] {
            assert_eq!(user.executes(&file(mode, uid, gid)), may, "{mode:o} {uid} {gid}");
        }
        let root = access(r#"{"uid":0,"gid":0}"#, "{}");
        assert!(root.executes(&file(0o001, 9, 9)) && !root.executes(&file(0o666, 0, 0)));
    }

    #[test]
    fn ids_are_mapped() {
        let linux = r#"{"uidMappings":[{"containerID":0,"hostID":1000,"size":1},{"containerID":1,"hostID":100000,"size":65535}],
            "gidMappings":[{"containerID":4294967295,"hostID":4294967295,"size":2}]}"#;
        let user = access(r#"{"uid":5,"gid":6}"#, linux);
        assert!(user.executes(&file(0o100, 100_004, 0)) && !user.executes(&file(0o100, 5, 0)));
        assert!(!user.executes(&file(0o010, 0, 6)));
        let unmapped = access(r#"{"uid":70000,"gid":4294967295}"#, linux);
        assert!(!unmapped.executes(&file(0o700, 70_000, 0)) && unmapped.executes(&file(0o010, 0, u32::MAX)));
    }
}
