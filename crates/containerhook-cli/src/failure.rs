//! How the program ends: the exit codes, and an error's words on stderr.

use std::fmt;
use std::process::ExitCode;

use containerhook::ErrorKind;

/// Something went wrong while it ran, or what was looked at is not right.
pub(crate) const FAILED: u8 = 1;
/// It was asked for something that cannot be, or cannot work on this host as it is.
pub(crate) const CANNOT: u8 = 2;

/// What every `--help` says of them.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  it did what it was asked (also when ended by Ctrl-C, SIGTERM or a closed stdout)
  1  it failed
  2  wrong usage, or it cannot work here: no privilege, no kernel support, no runtime";

/// What was asked for cannot be: the command line is at fault.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Says on stderr what went wrong, and gives the exit code for it.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("containerhook: {}", words(error));
    ExitCode::from(code(error))
}

pub(crate) fn words(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain() {
        if !words.is_empty() {
            words.push_str(": ");
        }
        words.push_str(&cause.to_string());
        // The library's error has its own cause in its words already.
        if cause.is::<containerhook::Error>() {
            break;
        }
    }
    words
}

pub(crate) fn code(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<Usage>().is_some() {
        return CANNOT;
    }
    match error.downcast_ref::<containerhook::Error>().map(containerhook::Error::kind) {
        Some(
            ErrorKind::Permission | ErrorKind::Unsupported | ErrorKind::NoRuntime | ErrorKind::InvalidInput,
        ) => CANNOT,
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn what_cannot_work_is_told_apart_from_what_failed() {
        let usage = anyhow::Error::new(Usage("no such field".into()));
        assert_eq!((code(&usage), words(&usage).as_str()), (CANNOT, "no such field"));
        let disk = Err::<(), _>(std::io::Error::other("disk")).context("cannot read x").unwrap_err();
        assert_eq!((code(&disk), words(&disk).as_str()), (FAILED, "cannot read x: disk"));
        // The library refuses a deadline of zero before it touches the kernel.
        let refused = containerhook::ContainerNotifier::builder()
            .deadline(std::time::Duration::ZERO)
            .start(|_: &containerhook::ContainerEvent| {})
            .unwrap_err();
        let once = refused.to_string();
        let refused = anyhow::Error::new(refused);
        assert_eq!((code(&refused), words(&refused)), (CANNOT, once));
    }
}
