//! Signals: the first SIGINT or SIGTERM ends well, the second ends at once, and nothing may merely stop a listener.

use std::io;
use std::sync::mpsc::Sender;

use signal_hook::consts::{SIGINT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;

use crate::output;

/// Why a listening command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// SIGINT or SIGTERM came.
    Asked,
    /// The process that runs `--exec` has ended before its time.
    HooksDied,
    /// Nobody reads stdout any more.
    OutputClosed,
    /// Writing to stdout failed otherwise, with this error's number.
    OutputFailed(i32),
}

impl End {
    /// What an error from writing to stdout means.
    pub(crate) fn of_output(error: &io::Error) -> End {
        if output::gone(error) {
            End::OutputClosed
        } else {
            End::OutputFailed(error.raw_os_error().unwrap_or(libc::EIO))
        }
    }
}

/// Says why SIGTSTP does nothing.
pub(crate) fn refuse_to_stop() {
    eprintln!(
        "containerhook: not stopping: a stopped listener would freeze every container runtime here; \
         end it with Ctrl-C"
    );
}

/// Sends [`End::Asked`] at the first signal.
///
/// A listener that is stopped (Ctrl-Z, or a background process that writes to a terminal with `stty tostop`) would
/// freeze every execution of a runtime on the host for as long as it stays so.
///
/// With a supervisor it is the supervisor that ends this process when it is asked again: of one request it may hear
/// twice, from a terminal or a service manager and from its supervisor.
pub(crate) fn tell(end: Sender<End>, supervised: bool) -> io::Result<()> {
    // SAFETY: no handler is installed, the disposition is only set to "ignore", and nothing else here uses SIGTTOU.
    unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGTSTP])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut asked = false;
        for signal in signals.forever() {
            match signal {
                SIGTSTP if supervised => {}
                SIGTSTP => refuse_to_stop(),
                _ if asked && supervised => {}
                // The kernel lets everything go that is held when the process ends.
                _ if asked => std::process::exit(128 + signal),
                _ => {
                    asked = true;
                    let _ = end.send(End::Asked);
                }
            }
        }
    })?;
    Ok(())
}
