//! The one thread that owns all state. (Face only; the lead writes it now.)
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;

use crate::capability::Support;
use crate::error::{Error, ErrorKind};
use crate::handler::Handler;
use crate::notifier::{Settings, Status};
use crate::outlet::Inlet;

/// What this host supports.
#[must_use]
pub fn supported() -> Support {
    Support { capabilities: Vec::new() }
}

pub(crate) enum Command {
    WatchTermination { id: String, pid: u32, reply: SyncSender<Result<(), Error>> },
    Status { reply: SyncSender<Status> },
    Close,
}

pub(crate) struct Mailbox;
impl Mailbox {
    pub(crate) fn send(&self, _: Command) {}
}

pub(crate) fn start(
    _: Settings,
    _: Box<dyn Handler>,
    _: Inlet,
) -> Result<(JoinHandle<()>, Arc<Mailbox>), Error> {
    Err(Error::new(ErrorKind::Unsupported, "not written yet"))
}
