//! What the integration tests have in common: a listener whose records are kept, and what records may look like.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part of this")]

mod lives;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use containerhook::verify::{Model, Rules};
use containerhook::{
    Builder, ContainerEvent, ContainerNotifier, Decision, Engine, EventKind, ExitStatus, Handler, Record,
    Status,
};
use serde_json::Value;
use testkit::Process;

/// How long a test may take: far more than any takes, so that only a stuck one is hit.
pub const LIMIT: Duration = Duration::from_secs(240);

/// How long something that is on its way may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A life without anything special to it, of a container that is created, started and deleted.
pub const WHOLE_LIFE: [EventKind; 5] =
    [EventKind::PreCreate, EventKind::Created, EventKind::Started, EventKind::Stopped, EventKind::Deleted];

/// A notifier whose records and events are kept. In a test that fails, it prints them.
pub struct Listener {
    notifier: Option<ContainerNotifier>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    records: Mutex<Vec<Record>>,
    told: Mutex<Vec<ContainerEvent>>,
    more: Condvar,
}

/// A notifier that marks these files and nothing else.
pub fn only<P: Into<PathBuf>>(runtimes: impl IntoIterator<Item = P>) -> Builder {
    let builder = ContainerNotifier::builder().discover(false).exec_watch(false);
    runtimes.into_iter().fold(builder, Builder::runtime)
}

impl Listener {
    /// Listens to the executions of these files, and lets every container go on.
    pub fn to<P: Into<PathBuf>>(runtimes: impl IntoIterator<Item = P>) -> Result<Self> {
        Self::start(only(runtimes), |_: &ContainerEvent| ())
    }

    /// Starts a notifier.
    pub fn start(builder: Builder, handler: impl Handler) -> Result<Self> {
        log_what_is_wrong();
        let seen = Arc::new(Seen::default());
        let (records, told) = (Arc::clone(&seen), Arc::clone(&seen));
        let keep = move |event: &ContainerEvent| -> Decision {
            lock(&told.told).push(event.clone());
            handler.on_event(event)
        };
        let notifier = builder
            .on_record(move |record: &Record| {
                lock(&records.records).push(record.clone());
                records.more.notify_all();
            })
            .start(keep)?;
        Ok(Listener { notifier: Some(notifier), seen })
    }

    pub fn notifier(&self) -> &ContainerNotifier {
        self.notifier.as_ref().expect("it is there until it is closed")
    }

    pub fn status(&self) -> Result<Status> {
        Ok(self.notifier().status()?)
    }

    /// The records so far.
    pub fn records(&self) -> Vec<Record> {
        lock(&self.seen.records).clone()
    }

    /// The records so far of the containers of this id.
    pub fn of(&self, id: &str) -> Vec<Record> {
        self.records().into_iter().filter(|record| record.event.id() == id).collect()
    }

    /// Waits until as many records of this id are there, and gives them if they are of these kinds, in this order.
    pub fn wait(&self, id: &str, kinds: &[EventKind]) -> Result<Vec<Record>> {
        self.wait_besides(id, kinds, &[])
    }

    /// As [`wait`](Self::wait), for an engine that does `more` besides: what it sends signals for, and when, is its own
    /// affair.
    pub fn wait_besides(&self, id: &str, kinds: &[EventKind], more: &[EventKind]) -> Result<Vec<Record>> {
        let counts = |record: &&Record| record.event.id() == id && !more.contains(&record.event.kind());
        let end = Instant::now() + PATIENCE;
        let mut records = lock(&self.seen.records);
        loop {
            let found: Vec<Record> = records.iter().filter(counts).cloned().collect();
            let got: Vec<EventKind> = found.iter().map(|r| r.event.kind()).collect();
            if got == kinds {
                return Ok(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            let wrong = got.len() > kinds.len() || got != kinds[..got.len()];
            if left.is_zero() || wrong {
                drop(records);
                let got: Vec<&str> = got.iter().map(|kind| kind.as_str()).collect();
                let kinds: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
                let late = if wrong { String::new() } else { format!(" after {PATIENCE:?}") };
                bail!("{id} was told by {got:?}{late}, not by {kinds:?}\n{}", self.text());
            }
            records = self.seen.more.wait_timeout(records, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the records fulfil a wish.
    pub fn wait_for<T>(&self, what: &str, mut wish: impl FnMut(&[Record]) -> Option<T>) -> Result<T> {
        let end = Instant::now() + PATIENCE;
        let mut records = lock(&self.seen.records);
        loop {
            if let Some(it) = wish(&records) {
                return Ok(it);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(records);
                bail!("{what}: not within {PATIENCE:?}\n{}", self.text());
            }
            records = self.seen.more.wait_timeout(records, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until nothing is held and no creation is on its way.
    pub fn wait_idle(&self) -> Result<()> {
        let mut last = None;
        let idle = testkit::wait_until("nothing is held or being created", PATIENCE, || {
            let status = self.notifier().status().ok()?;
            let idle = status.held == 0 && status.creating == 0;
            last = Some(status);
            idle.then_some(())
        });
        idle.map_err(|error| anyhow!("{error:#}: {last:?}\n{}", self.text()))
    }

    /// Closes the notifier, and checks what every test's records must hold to.
    pub fn close(mut self) -> Result<Vec<Record>> {
        // An end is on record before its handler is called, and closing drops what no handler has begun.
        let until = Instant::now() + Duration::from_secs(2);
        while lock(&self.seen.told).len() < lock(&self.seen.records).len() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.notifier.take().expect("it is closed once").close();
        let records = self.records();
        lives::check(&records, &lock(&self.seen.told)).map_err(|e| anyhow!("{e:#}\n{}", self.text()))?;
        verify(&records).map_err(|e| anyhow!("{e:#}\n{}", self.text()))?;
        Ok(records)
    }

    /// Closes the notifier. For one that is not told of every kind of event, whose lives have gaps.
    pub fn close_anyhow(mut self) -> Vec<Record> {
        self.notifier.take().expect("it is closed once").close();
        self.records()
    }

    /// Every record as a line.
    pub fn text(&self) -> String {
        let mut text = String::from("--- records\n");
        for record in self.records() {
            text += &record.to_json();
            text.push('\n');
        }
        text
    }
}

/// Holds the records against the model that `containerhook verify` has, as the lines that a user would see.
pub fn verify(records: &[Record]) -> Result<()> {
    let lines: Result<Vec<Value>, _> = records.iter().map(|r| serde_json::from_str(&r.to_json())).collect();
    verify_lines(&lines?)
}

/// The same of lines that a listener in another process has printed.
pub fn verify_lines(lines: &[Value]) -> Result<()> {
    let mut model = Model::new(Rules::default());
    for (line, number) in lines.iter().zip(1..) {
        model.line(number, line);
    }
    let mut found = model.take_violations();
    found.extend(model.finish().1);
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

impl Drop for Listener {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.text());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the library logs is shown with a test that fails.
fn log_what_is_wrong() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::fmt().with_test_writer().with_ansi(false);
        let _ = subscriber.with_env_filter("containerhook=debug").try_init();
    });
}

/// The event of this kind among the records of one life.
pub fn the(kind: EventKind, records: &[Record]) -> Result<&Record> {
    let mut found = records.iter().filter(|record| record.event.kind() == kind);
    match (found.next(), found.next()) {
        (Some(record), None) => Ok(record),
        (None, _) => bail!("there is no {kind}"),
        (Some(_), Some(_)) => bail!("there is more than one {kind}"),
    }
}

/// What the records of one life must agree on.
pub struct Expected<'a> {
    pub pid: Option<Process>,
    pub name: Option<&'a str>,
    pub bundle: &'a Path,
    /// The configuration as the runtime read it; checked where it is given.
    pub config: Option<&'a serde_json::Value>,
    pub runtime: &'a Path,
    pub engine: Option<Engine>,
    pub exit: Option<ExitStatus>,
}

impl Expected<'_> {
    pub fn check(&self, records: &[Record]) -> Result<()> {
        for record in records {
            let event = &record.event;
            let say = |what: &str| format!("{}: {what}: {}", event.kind(), record.to_json());
            let pid = self.pid.filter(|_| event.kind() != EventKind::PreCreate);
            ensure!(event.pid() == pid.map(|pid| pid.0.cast_unsigned()), say(&format!("pid is not {pid:?}")));
            ensure!(event.name() == self.name, say(&format!("the name is not {:?}", self.name)));
            ensure!(event.bundle() == Some(self.bundle), say(&format!("not {}", self.bundle.display())));
            let runtime = event.runtime().map(|runtime| runtime.path.as_path());
            ensure!(runtime == Some(self.runtime), say(&format!("not {}", self.runtime.display())));
            ensure!(event.engine() == self.engine, say(&format!("the engine is not {:?}", self.engine)));
            if let Some(config) = self.config {
                ensure!(event.config().and_then(|c| c.value()) == Some(config), say("another config"));
            }
            let exit = self.exit.filter(|_| event.kind() == EventKind::Stopped);
            if event.kind() != EventKind::Stopped || exit.is_some() {
                ensure!(
                    event.exit().copied().map(end) == exit.map(end),
                    say(&format!("the exit is not {exit:?}"))
                );
            }
        }
        Ok(())
    }
}

/// How it ended, without what only some kernels tell of it.
pub fn end(exit: ExitStatus) -> (Option<i32>, Option<i32>) {
    (exit.code, exit.signal)
}

/// Seconds since boot, as a container reads them from its `/proc/uptime`.
pub fn uptime() -> Result<f64> {
    parse_uptime(&std::fs::read_to_string("/proc/uptime")?)
}

/// The first number of `/proc/uptime`.
pub fn parse_uptime(text: &str) -> Result<f64> {
    let word = text.split_whitespace().next().ok_or_else(|| anyhow!("no uptime in {text:?}"))?;
    Ok(word.parse()?)
}
