//! Which backend reads held executions: what was asked for, or the cheapest that works, by trial.

use std::fmt::Write as _;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use fanotify::{Group, PermissionEvent};

use super::probe::{self, Probed};
use crate::bpf::Loader;
use crate::error::{Error, ErrorKind};
use crate::lookup::Lookup;
use crate::notifier::CaptureBackend;
use crate::proc::HostProc;

/// The engine's part: who raised an event. It runs on the engine's thread, after the event was read and before it can be
/// answered.
pub(crate) struct Capture {
    backend: CaptureBackend,
    lookup: Option<Lookup>,
}

impl Capture {
    /// Tries what was asked for, or each in turn. With a warning for each that would have been cheaper.
    pub(crate) fn open(
        asked: CaptureBackend,
        group: &Arc<Group>,
        proc: &HostProc,
        bpf: &mut Loader,
    ) -> Result<(Capture, Vec<String>), Error> {
        let candidates = match asked {
            CaptureBackend::Auto if proc.is_foreign() => vec![CaptureBackend::Lookup],
            CaptureBackend::Auto => vec![CaptureBackend::Memory],
            asked => vec![asked],
        };
        let mut refused = Vec::new();
        for backend in candidates {
            match Capture::attempt(backend, group, proc, bpf) {
                Ok((capture, said)) => {
                    refused.extend(said);
                    return Ok((capture, refused));
                }
                Err(why) => refused.push(format!("{}: {why}", name(backend))),
            }
        }
        let mut what = format!("held executions cannot be read by {}", refused.join("; "));
        if proc.is_foreign() {
            let _ = write!(what, "; the listener is in another pid namespace than {}", proc.dir().display());
        }
        Err(Error::new(ErrorKind::Unsupported, what).remedy(
            "grant CAP_SYS_PTRACE, and in another pid namespace than the host's CAP_BPF and CAP_PERFMON; \
             kernel.yama.ptrace_scope must be below 3",
        ))
    }

    fn attempt(
        backend: CaptureBackend,
        group: &Arc<Group>,
        proc: &HostProc,
        bpf: &mut Loader,
    ) -> Result<(Capture, Option<String>), String> {
        if backend == CaptureBackend::Memory && proc.is_foreign() {
            return Err("the kernel does not say who executes in another pid namespace".to_owned());
        }
        let lookup = match backend {
            CaptureBackend::Memory => None,
            _ => Some(Lookup::open(bpf, group.as_fd()).map_err(|refused| refused.to_string())?),
        };
        let mut capture = Capture { backend, lookup };
        match probe::run(group, |event| capture.try_on(event, proc)) {
            Probed::Works => Ok((capture, None)),
            Probed::Fails(why) => Err(why),
            Probed::Unknown(why) => {
                let said = format!("how held executions are read could not be tried: {why}");
                Ok((capture, Some(said)))
            }
        }
    }

    /// What is used.
    pub(crate) fn backend(&self) -> CaptureBackend {
        self.backend
    }

    /// The task that waits for the answer to this event, as the host numbers it; `None` where it was killed meanwhile.
    pub(crate) fn who(&mut self, event: &PermissionEvent) -> Result<Option<i32>, String> {
        match &mut self.lookup {
            Some(lookup) => match lookup.find(event.file()) {
                Ok(found) => Ok(found.map(|found| found.tid)),
                Err(error) => Err(format!("who executes could not be looked up: {error}")),
            },
            None => self.passed(event.task()).map(Some),
        }
    }

    /// The task of an execution that was not held, of which the kernel's number is all there is.
    pub(crate) fn passed(&self, task: i32) -> Result<i32, String> {
        match (&self.lookup, task) {
            (None, 1..) => Ok(task),
            (None, _) => {
                Err("the task is not in the listener's pid namespace; the host's procfs belongs at \
                              HOST_ROOT/proc"
                    .to_owned())
            }
            (Some(_), _) => Err("who executes can be looked up only while it is held".to_owned()),
        }
    }

    fn try_on(&mut self, event: &PermissionEvent, proc: &HostProc) -> Result<(), String> {
        let tid = self.who(event)?.ok_or("the task was killed")?;
        let record = super::task(proc, tid).and_then(|task| super::capture(proc, &task));
        let record = record.map_err(|error| error.to_string())?;
        if !record.argv.iter().map(|word| word.as_encoded_bytes()).eq(probe::ARGUMENTS.map(str::as_bytes)) {
            return Err(format!("other arguments were read: {:?}", record.argv));
        }
        Ok(())
    }
}

/// As it is told and asked for.
fn name(backend: CaptureBackend) -> &'static str {
    match backend {
        CaptureBackend::Auto => "auto",
        CaptureBackend::Memory => "memory",
        CaptureBackend::Lookup => "lookup",
    }
}
