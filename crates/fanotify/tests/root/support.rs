//! What the probe says.

use std::path::Path;

use fanotify::{Support, supported};

use crate::harness::{Watchdog, skip};
use crate::listener::Listener;

fn is_root() -> bool {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

#[test]
fn the_probe_is_conclusive() {
    match supported() {
        Support::Yes => assert!(supported().is_yes()),
        Support::No { reason } => {
            assert!(reason.contains("CAP_SYS_ADMIN") || reason.contains("CONFIG_"), "{reason}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn without_privilege_the_answer_is_no_and_names_the_remedy() {
    if !is_root() {
        return skip("without_privilege_the_answer_is_no_and_names_the_remedy", "needs root, to give it up");
    }
    let _watchdog = Watchdog::new();
    let said = Listener::start("unprivileged", Path::new("")).expect("no: ");
    assert!(said.contains("CAP_SYS_ADMIN"), "{said}");
}
