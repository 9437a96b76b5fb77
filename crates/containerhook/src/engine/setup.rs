//! From settings to an engine that listens.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime};

use fanotify::{Class, Group};

use super::{
    EXECS, EXITS, Engine, GROUP, Message, PATIENCE, WORKERS, WORKERS_FOR_ANYBODY, Workers, linger_of,
};
use crate::bpf::Loader;
use crate::capture::{Capture, Reader};
use crate::dispatch::Dispatch;
use crate::error::{Error, ErrorKind};
use crate::event::EventKind;
use crate::exec_watch::ExecWatch;
use crate::exit::Exits;
use crate::lifecycle::{Existing, Input, Lifecycle, Rules, Vanished};
use crate::mailbox::{Inbox, Mailbox};
use crate::memory::{self, Memory, Remembered};
use crate::notifier::{CaptureBackend, Settings};
use crate::outlet::Inlet;
use crate::pool::Pool;
use crate::proc::HostProc;
use crate::runtime::Search;
use crate::work::{Ward, Worker};

/// How many descriptors the workers may open while the engine's thread is interrupted: three for each of them, and more for
/// the few that look through directories.
const HEADROOM: usize = 3 * (WORKERS + WORKERS_FOR_ANYBODY) + 16;

/// The moment now, in the unit of processes' start times.
fn own_start_time() -> u64 {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = uptime.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    // USER_HZ is 100 wherever there are containers.
    (seconds * 100.0) as u64
}

pub(super) fn of_fanotify(error: &fanotify::Error) -> Error {
    let kind = match error.raw_os_error() {
        Some(libc::EPERM) => ErrorKind::Permission,
        Some(libc::ENOSYS | libc::EINVAL) => ErrorKind::Unsupported,
        _ => ErrorKind::Os,
    };
    // Its words name the operation, the path and the remedy.
    Error::new(kind, error.to_string())
}

impl Engine {
    pub(super) fn new(
        settings: Settings,
        dispatch: Arc<Dispatch>,
        log: Inlet,
        mailbox: Mailbox<Message>,
        messages: Receiver<Message>,
    ) -> Result<Engine, Error> {
        // This class may choose the errno of a denial, from Linux 6.13; before that both do the same.
        let group = Group::builder().nonblocking(true).class(Class::PreContent).headroom(HEADROOM).build();
        let group = group.map_err(|error| of_fanotify(&error))?;
        let group = Arc::new(group);
        let mut warnings = Vec::new();
        let proc = HostProc::of(&settings.host_root);
        let reader = Reader { proc: proc.clone(), host_root: settings.host_root.clone() };
        let mut loader = Loader::for_pids_of(&proc);
        let (capture, said) = Capture::open(settings.capture_backend, &group, &reader, &mut loader)?;
        warnings.extend(said);
        let (exits, said) = Exits::open_for(settings.exit_backend.into(), &mut loader, &proc)
            .map_err(|e| Error::new(ErrorKind::Unsupported, e.to_string()))?;
        warnings.extend(said);
        let exec_watch = if settings.exec_watch != Some(false) {
            ExecWatch::open_for(&mut loader, &proc)
                .map_err(|refused| {
                    warnings.push(format!("containers that no mark held will not be seen: {refused}"));
                })
                .ok()
        } else {
            None
        };
        drop(loader);
        let mailbox = Arc::new(mailbox);
        let linger = linger_of(&settings);
        let inbox = Inbox::new(messages, Arc::clone(&mailbox), linger)
            .map_err(|e| Error::os("cannot create an epoll instance", e))?;
        let watch = |fd: BorrowedFd<'_>, token| {
            inbox.add(fd, token).map_err(|e| Error::os("cannot wait for the engine's descriptors", e))
        };
        watch(group.as_fd(), GROUP)?;
        watch(exits.fd(), EXITS)?;
        if let Some(exec_watch) = &exec_watch {
            watch(exec_watch.fd(), EXECS)?;
        }
        let user_ns = proc
            .host_namespace("user")
            .or_else(|_| proc.namespace(proc.own_pid(), "user"))
            .map_err(|e| Error::os("cannot read the user namespace in /proc", e).remedy("mount /proc"))?;
        let pool = |name, ward, most| {
            let worker = Worker { group: Arc::downgrade(&group), user_ns, reader: reader.clone() };
            let post = Arc::clone(&mailbox);
            let work = move |_, job| {
                if let Some(outcome) = worker.run(job, ward) {
                    post.post(Message::Worked(outcome));
                }
            };
            // A worker that waits for a dead disk must not take another's place for longer than what it reads is held.
            Pool::new(name, most, PATIENCE, linger, work, |_| ())
                .map_err(|e| Error::os("cannot start a worker's thread", e))
        };
        let workers = Workers {
            trusted: pool("ch-worker", Ward::Trusted, WORKERS)?,
            anybody: pool("ch-worker-any", Ward::Anybody, WORKERS_FOR_ANYBODY)?,
        };
        let search = Search {
            host_root: settings.host_root.clone(),
            only: settings.only_runtime.clone(),
            extra: settings.runtimes.clone(),
            configs: settings.discover,
            engines: settings.discover,
        };
        let exit_backend = exits.backend().into();
        // What is held is read within its deadline, whatever it will turn out to be.
        let held = [EventKind::PreCreate, EventKind::Created, EventKind::Started, EventKind::Exec];
        let deadline = |kind| settings.deadlines.get(kind).copied().unwrap_or(settings.deadline);
        let patience = held.iter().map(deadline).fold(PATIENCE, Duration::min);
        let rules = Rules {
            told: settings.told,
            deadlines: settings.deadlines,
            deadline: settings.deadline,
            on_timeout: settings.on_timeout,
            proc: proc.clone(),
        };
        let mut engine = Engine {
            group,
            inbox,
            proc,
            capture,
            may_replace_capture: settings.capture_backend == CaptureBackend::Auto,
            exits,
            exec_watch,
            misses: Default::default(),
            started: own_start_time(),
            exit_backend,
            lifecycle: Lifecycle::new(rules),
            workers,
            dispatch,
            log,
            holds: HashMap::new(),
            stops: HashMap::new(),
            killed: HashSet::new(),
            doubts: VecDeque::new(),
            memory: None,
            reading: VecDeque::new(),
            patience,
            runtimes: HashMap::new(),
            creations: HashMap::new(),
            execs: HashMap::new(),
            entries: HashMap::new(),
            entry_marks: HashMap::new(),
            unwatched: Vec::new(),
            watch_again_at: Instant::now(),
            names: VecDeque::new(),
            search,
            looks: 0,
            marker: None,
            tells_existing: settings.existing,
            tells_strangers: settings.exec_watch.unwrap_or(settings.discover),
            warnings: Vec::new(),
            actions: Vec::new(),
            closing: false,
        };
        for warning in warnings {
            engine.warn(warning);
        }
        engine.mark_at_start(settings.discover)?;
        if let Some(path) = settings.state_file {
            engine.recall(path)?;
        }
        if settings.existing {
            engine.look();
        }
        Ok(engine)
    }

    /// Tells what an earlier listener has left untold.
    fn recall(&mut self, path: PathBuf) -> Result<(), Error> {
        let remembered = memory::recall(&path, &self.proc).unwrap_or_else(|error| {
            self.warn(format!("what {} remembers is not read: {error}", path.display()));
            Remembered::default()
        });
        let memory = Memory::start(path, self.log.clone())
            .map_err(|e| Error::os("cannot start the thread that keeps the state file", e))?;
        self.memory = Some(memory);
        let time = SystemTime::now();
        for known in remembered.ended {
            let (key, container, _) = known.restore(&self.proc);
            self.apply(Input::Vanished(Box::new(Vanished { key, container, time })));
        }
        for known in remembered.running {
            let (key, container, process) = known.restore(&self.proc);
            self.apply(Input::Existing(Box::new(Existing { key, container, process, time })));
        }
        Ok(())
    }
}
