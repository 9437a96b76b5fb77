//! `watch --ready-file`, and `ready`, which asks it: does somebody listen at this moment?
//!
//! The file is locked as long as its listener lives: the kernel takes the lock away with the process, so nothing that was
//! left behind is taken for a listener, whatever pid namespace either is in.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::failure::FAILED;

const HELP: &str = "\
The file is that of `watch --ready-file FILE`. It is for probes: it needs no shell, no capability and no network.
A listener that is stuck or stopped is killed by its supervisor (--watchdog), and is not ready from then on.

Examples:
  containerhook watch --ready-file /run/containerhook/ready &
  containerhook ready /run/containerhook/ready && echo every container is told

Exit codes:
  0  a listener listens
  1  none does, or not yet
  2  wrong usage";

/// Tells whether a listener is ready, by its --ready-file
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct ReadyArgs {
    /// The file that `watch --ready-file` was given
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
}

pub(crate) fn run(args: &ReadyArgs) -> anyhow::Result<ExitCode> {
    let path = args.file.display();
    let file = match File::open(&args.file) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("not ready: there is no {path}");
            return Ok(ExitCode::from(FAILED));
        }
        Err(error) => return Err(error).with_context(|| format!("cannot open the ready file {path}")),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => {
            println!("ready");
            Ok(ExitCode::SUCCESS)
        }
        Ok(()) => {
            eprintln!("not ready: the listener of {path} has ended");
            Ok(ExitCode::from(FAILED))
        }
        Err(error) => Err(error).with_context(|| format!("cannot ask for the lock of the ready file {path}")),
    }
}

/// Keep it as long as you listen.
#[derive(Debug)]
#[must_use]
pub(crate) struct Ready {
    _locked: File,
}

/// Whoever asks has the lock for a moment.
const PATIENCE: Duration = Duration::from_secs(2);

/// Says in this file that it listens from now on.
pub(crate) fn announce(path: &Path, words: &str) -> anyhow::Result<Ready> {
    let cannot = || format!("cannot write the ready file {}", path.display());
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .with_context(cannot)?;
    let started = Instant::now();
    while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error != Errno::WOULDBLOCK {
            return Err(error).with_context(|| format!("cannot lock the ready file {}", path.display()));
        }
        if started.elapsed() > PATIENCE {
            anyhow::bail!("the ready file {} is another listener's: give each its own", path.display());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    file.set_len(0).with_context(cannot)?;
    writeln!(file, "{words}").with_context(cannot)?;
    Ok(Ready { _locked: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_ready_while_its_listener_lives() {
        let folder = testkit::Scratch::new().unwrap();
        let args = ReadyArgs { file: folder.join("ready") };
        let code = || format!("{:?}", run(&args).unwrap());
        let (yes, no) = (format!("{:?}", ExitCode::SUCCESS), format!("{:?}", ExitCode::from(FAILED)));
        assert_eq!(code(), no);
        let ready = announce(&args.file, "ready: 1 runtime marked, and more words").unwrap();
        assert_eq!((code(), code()), (yes.clone(), yes.clone()));
        let error = announce(&args.file, "ready").unwrap_err().to_string();
        assert!(error.contains("another listener"), "{error}");
        drop(ready);
        assert_eq!(code(), no);
        let again = announce(&args.file, "ready").unwrap();
        assert_eq!((code(), std::fs::read_to_string(&args.file).unwrap().as_str()), (yes, "ready\n"));
        drop(again);
    }
}
