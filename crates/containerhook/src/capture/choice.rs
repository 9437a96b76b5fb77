//! Which backend reads held executions: what was asked for, or the cheapest that works, by trial.

use std::fmt::Write as _;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use fanotify::{Class, Group, PermissionEvent};

use super::probe::{self, Probed};
use super::traced::Tracer;
use super::{Reader, Sighting, Traced};
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
    tracer: Option<Tracer>,
}

impl Capture {
    /// Tries what was asked for, or each in turn. With a warning for each that would have been cheaper.
    pub(crate) fn open(
        asked: CaptureBackend,
        group: &Arc<Group>,
        reader: &Reader,
        bpf: &mut Loader,
    ) -> Result<(Capture, Vec<String>), Error> {
        let proc = &reader.proc;
        let candidates = match asked {
            CaptureBackend::Auto => in_turn(proc).to_vec(),
            asked => vec![asked],
        };
        let mut refused = Vec::new();
        // Of one that does not work, for the next.
        let mut lookup = None;
        for backend in candidates {
            match Capture::attempt(backend, &mut lookup, group, reader, bpf) {
                Ok((capture, said)) => {
                    let warn = |why| format!("held executions cannot be read by {why}");
                    let mut warnings: Vec<String> = refused.into_iter().map(warn).collect();
                    warnings.extend(said);
                    return Ok((capture, warnings));
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
             kernel.yama.ptrace_scope must be below 3; without CAP_SYS_PTRACE these two do for a tracepoint",
        ))
    }

    /// In place of one that has stopped working: the next that works. For a worker, as it takes its time: the trial is made
    /// with a group of its own.
    pub(crate) fn instead_of(
        failed: CaptureBackend,
        group: &Arc<Group>,
        reader: &Reader,
    ) -> Result<Capture, String> {
        let trial = Group::builder().nonblocking(true).class(Class::PreContent).build();
        let trial = Arc::new(trial.map_err(|error| error.to_string())?);
        let mut bpf = Loader::for_pids_of(&reader.proc);
        let (mut lookup, mut refused) = (None, Vec::new());
        for backend in in_turn(&reader.proc).into_iter().filter(|backend| *backend != failed) {
            match Capture::attempt(backend, &mut lookup, &trial, reader, &mut bpf) {
                Ok((mut capture, _)) => {
                    if let Some(lookup) = &mut capture.lookup {
                        lookup.retarget(group.as_fd());
                    }
                    return Ok(capture);
                }
                Err(why) => refused.push(format!("{}: {why}", name(backend))),
            }
        }
        Err(refused.join("; "))
    }

    fn attempt(
        backend: CaptureBackend,
        spare: &mut Option<Lookup>,
        group: &Arc<Group>,
        reader: &Reader,
        bpf: &mut Loader,
    ) -> Result<(Capture, Option<String>), String> {
        if backend == CaptureBackend::Memory && reader.proc.is_foreign() {
            return Err("the kernel does not say who executes in another pid namespace".to_owned());
        }
        let lookup = match (backend, spare.take()) {
            (CaptureBackend::Memory, _) => None,
            (_, Some(spare)) => Some(spare),
            (_, None) => Some(Lookup::open(bpf, group.as_fd()).map_err(|refused| refused.to_string())?),
        };
        let tracer = match backend {
            CaptureBackend::Tracepoint => {
                let tracer = Tracer::open(&reader.proc, &reader.host_root);
                Some(tracer.map_err(|refused| refused.to_string())?)
            }
            _ => None,
        };
        let mut capture = Capture { backend, lookup, tracer };
        match probe::run(group, |event| capture.try_on(event, reader)) {
            Probed::Works => Ok((capture, None)),
            Probed::Fails(why) => {
                *spare = capture.lookup;
                Err(why)
            }
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
    pub(crate) fn who(&mut self, event: &PermissionEvent) -> Result<Option<Sighting>, Unplaced> {
        let Some(lookup) = &mut self.lookup else {
            let tid = self.passed(event.task()).map_err(|why| Unplaced { why, refused: false })?;
            return Ok(Some(tid.into()));
        };
        let found = lookup.find(event.file()).map_err(|error| Unplaced {
            refused: error.raw_os_error() == Some(libc::EPERM),
            why: format!("who executes could not be looked up: {error}"),
        })?;
        Ok(found.map(|found| {
            let traced = self.tracer.as_ref().map(|tracer| {
                let argv = tracer.arguments(&found);
                Box::new(Traced { found, argv })
            });
            Sighting { tid: found.tid, traced }
        }))
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

    fn try_on(&mut self, event: &PermissionEvent, reader: &Reader) -> Result<(), String> {
        let sighting = self.who(event).map_err(|unplaced| unplaced.why)?.ok_or("the task was killed")?;
        let argv = match sighting.traced.as_deref() {
            None => {
                let record = reader.facts(&sighting).and_then(|task| reader.capture(&sighting, &task));
                record.map_err(|error| error.to_string())?.argv
            }
            // Our child's root is not the host's where we are in a container, and may then not be opened.
            Some(traced) => {
                reader.facts(&sighting).map_err(|error| error.to_string())?;
                traced.argv.clone().map_err(|gap| gap.to_string())?
            }
        };
        if !argv.iter().map(|word| word.as_encoded_bytes()).eq(probe::ARGUMENTS.map(str::as_bytes)) {
            return Err(format!("other arguments were read: {argv:?}"));
        }
        Ok(())
    }
}

/// Nobody knows whose an execution is.
pub(crate) struct Unplaced {
    pub(crate) why: String,
    /// The look-up is not permitted, or not any more.
    pub(crate) refused: bool,
}

/// The cheapest first.
fn in_turn(proc: &HostProc) -> [CaptureBackend; 2] {
    let first = if proc.is_foreign() { CaptureBackend::Lookup } else { CaptureBackend::Memory };
    [first, CaptureBackend::Tracepoint]
}

/// As it is told and asked for.
pub(crate) fn name(backend: CaptureBackend) -> &'static str {
    match backend {
        CaptureBackend::Auto => "auto",
        CaptureBackend::Memory => "memory",
        CaptureBackend::Lookup => "lookup",
        CaptureBackend::Tracepoint => "tracepoint",
    }
}
