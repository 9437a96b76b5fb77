//! The one BPF object, and how its programs reach the kernel.
//!
//! The object is compiled by `cargo xtask bpf` and committed, so that a user needs neither clang nor libelf. Nothing is
//! loaded before a part asks for it, and each program is loaded on its own: a kernel that refuses one refuses only that
//! one. What is needed to load is given back when the [`Loader`] is
//! dropped; a part keeps the descriptors of its maps and of its attachment, and nothing else.
//!
//! Everything here opens descriptors, so it belongs on the engine's side.

mod clock;
mod object;
mod sys;
mod types;

use std::ffi::CStr;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::thread;

use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, RingBuf};

pub(crate) use self::clock::Clock;
use self::object::Object;
pub(crate) use self::sys::Tracefs;
use crate::proc::HostProc;

/// Why a part could not be had from the kernel, in words for the user.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(String);

impl Refused {
    /// The words of an error and of its sources.
    pub(crate) fn new(what: &str, error: &dyn std::error::Error) -> Refused {
        let mut text = format!("{what}: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                let _ = write!(text, ": {cause_text}");
            }
            source = cause.source();
        }
        Refused(shorten(&text))
    }
}

/// A verifier's log can be a megabyte. It begins with the errno, and what was wrong stands at its end.
fn shorten(text: &str) -> String {
    const KEEP: usize = 300;
    let chars = || text.char_indices().map(|(at, _)| at);
    match (chars().nth(KEEP), chars().nth_back(KEEP)) {
        (Some(head), Some(tail)) if head < tail => format!("{} … {}", &text[..head], &text[tail..]),
        _ => text.to_owned(),
    }
}

/// Hands out maps and attached programs of the object. Free until the first use; drop it when all parts have what they
/// need.
#[derive(Default)]
pub(crate) struct Loader {
    state: State,
    sizes: Vec<(&'static str, u32)>,
    /// Other values for constants of the programs.
    constants: Vec<(&'static str, u32)>,
    /// Our pid as whoever uses the programs has it.
    own_pid: Option<i32>,
}

#[derive(Default)]
enum State {
    #[default]
    Unused,
    Open(Box<Object>),
    Refused(Refused),
}

impl Loader {
    /// A loader that has not asked the kernel for anything yet.
    #[cfg(test)]
    pub(crate) fn new() -> Loader {
        Loader::default()
    }

    /// For who names processes by the pids of this procfs. The programs name them by those of the kernel's first pid
    /// namespace; where these are others, on a host that is itself a container, everything is refused.
    pub(crate) fn for_pids_of(proc: &HostProc) -> Loader {
        let own_pid = Some(proc.own_pid());
        Loader { state: State::Unused, sizes: Vec::new(), constants: Vec::new(), own_pid }
    }

    /// With an array of this many places, whose number a constant of the programs says. Before anything is asked for.
    pub(crate) fn with_places(mut self, map: &'static str, constant: &'static str, places: u32) -> Loader {
        self.sizes.push((map, places));
        self.constants.push((constant, places));
        self
    }

    /// With another size for one map, to see what happens when it is full.
    #[cfg(test)]
    pub(crate) fn with_size(mut self, map: &'static str, entries: u32) -> Loader {
        self.sizes.push((map, entries));
        self
    }

    fn open(&mut self) -> Result<&mut Object, Refused> {
        if let State::Unused = self.state {
            self.state = match Self::load(&self.sizes, &self.constants, self.own_pid) {
                Ok(open) => State::Open(Box::new(open)),
                Err(refused) => State::Refused(refused),
            };
        }
        match &mut self.state {
            State::Open(open) => Ok(open),
            State::Refused(refused) => Err(refused.clone()),
            State::Unused => Err(Refused("the BPF object was not loaded".to_owned())),
        }
    }

    fn load(
        sizes: &[(&'static str, u32)],
        constants: &[(&'static str, u32)],
        own_pid: Option<i32>,
    ) -> Result<Object, Refused> {
        let object = Object::open(sizes, constants)?;
        if let Some(own) = own_pid {
            let seen = object.program("raw", c"", "whoami".to_owned())?.run(&[0]);
            let seen = seen.map_err(|error| Refused::new("run BPF program whoami", &error))?;
            if seen != own.cast_unsigned() {
                return Err(Refused(format!(
                    "BPF programs see the pids of the kernel's first pid namespace, and /proc, or HOST_ROOT/proc, \
                     those of another: this process is {seen} there, and {own} here"
                )));
            }
        }
        Ok(object)
    }

    /// Takes a map out of the object. Each can be taken once.
    fn map(&mut self, name: &'static str) -> Result<Map, Refused> {
        self.open()?.take(name)
    }

    /// Takes a hash table.
    pub(crate) fn hash<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<HashMap<MapData, K, V>, Refused> {
        let map = self.map(name)?;
        HashMap::try_from(map).map_err(|error| Refused::new(name, &error))
    }

    /// One more descriptor of a hash table that is not taken yet.
    pub(crate) fn descriptor(&mut self, name: &'static str) -> Result<OwnedFd, Refused> {
        self.open()?.descriptor(name)
    }

    /// Takes an array.
    pub(crate) fn array<V: Pod>(&mut self, name: &'static str) -> Result<Array<MapData, V>, Refused> {
        let map = self.map(name)?;
        Array::try_from(map).map_err(|error| Refused::new(name, &error))
    }

    /// Takes a ring buffer.
    pub(crate) fn ring(&mut self, name: &'static str) -> Result<RingBuf<MapData>, Refused> {
        let map = self.map(name)?;
        RingBuf::try_from(map).map_err(|error| Refused::new(name, &error))
    }

    /// Loads the twin programs of a part for a tracepoint, and attaches them: the `tp_btf` ones, or where the kernel refuses
    /// those, the `raw_tp` ones that do the same.
    pub(crate) fn attached_twins(
        &mut self,
        tracepoint: &'static CStr,
        part: &str,
    ) -> Result<(Twins, [Attached; 2]), Refused> {
        self.twins_that(tracepoint, part, Twins::attach)
    }

    /// Loads them, for later.
    ///
    /// After this the next attachment waits for the kernel, some 10 ms, whatever its tracepoint is: what is to be attached
    /// at once should be so before.
    pub(crate) fn twins(&mut self, tracepoint: &'static CStr, part: &str) -> Result<Twins, Refused> {
        // Some kernels load a `tp_btf` program and refuse to attach it.
        self.twins_that(tracepoint, part, |twins| twins.first.attach().map(drop)).map(|(twins, ())| twins)
    }

    fn twins_that<T>(
        &mut self,
        tracepoint: &'static CStr,
        part: &str,
        attach: impl Fn(&Twins) -> Result<T, Refused>,
    ) -> Result<(Twins, T), Refused> {
        let open = self.open()?;
        let load = |kind: &str| {
            let load = |name: String| open.program(kind, tracepoint, name);
            // The verifier takes its time (the exec program's on 6.18: 20 ms), and each processor has its own.
            let (first, second) = thread::scope(|scope| {
                let second = scope.spawn(|| load(format!("{part}_{kind}_twin")));
                let first = load(format!("{part}_{kind}"));
                (
                    first,
                    second.join().unwrap_or_else(|_| Err(Refused("loading a program panicked".to_owned()))),
                )
            });
            let twins = Twins { first: first?, second: second?, missed: [0; 2] };
            let attached = attach(&twins)?;
            Ok((twins, attached))
        };
        load("btf")
            .or_else(|first: Refused| load("raw").map_err(|second| Refused(format!("{first}; {second}"))))
    }

    /// Loads programs that a program may go on as (a tail call), and puts them into a table in this order. They are to be
    /// had as long as the table's descriptor is kept.
    pub(crate) fn stages(&mut self, table: &'static str, names: &[&str]) -> Result<OwnedFd, Refused> {
        let stages = self.descriptor(table)?;
        let open = self.open()?;
        for (index, name) in (0..).zip(names) {
            let program = open.load_event(name)?;
            sys::put(stages.as_fd(), index, program.as_fd()).map_err(|error| Refused::new(table, &error))?;
        }
        Ok(stages)
    }

    /// Loads a program and attaches it to an event that is named as tracefs has it: `syscalls/sys_enter_execve`.
    pub(crate) fn attached(
        &mut self,
        tracefs: &Tracefs,
        event: &str,
        name: &str,
    ) -> Result<Attached, Refused> {
        let program = self.open()?.load_event(name)?;
        let link = tracefs.id(event).and_then(|id| sys::attach_to_event(program.as_fd(), id));
        let refused = |error| Refused::new(&format!("attach BPF program {name} to {event}"), &error);
        Ok(Attached { _link: link.map_err(refused)? })
    }

    /// Does the kernel take programs of this kind (`btf` or `raw`), and attach them?
    pub(crate) fn takes(&mut self, kind: &str) -> Result<(), Refused> {
        let program = self.open()?.program(kind, c"sched_process_exit", format!("exit_{kind}"))?;
        program.attach().map(drop)
    }

    /// Loads a `raw_tp` program that is never attached but [run](Program::run).
    pub(crate) fn runnable(&mut self, name: &str) -> Result<Program, Refused> {
        self.open()?.program("raw", c"", name.to_owned())
    }
}

impl Object {
    fn program(&self, kind: &str, tracepoint: &'static CStr, name: String) -> Result<Program, Refused> {
        let (fd, tracepoint) = match kind {
            "btf" => (self.load_tracing(&name, tracepoint)?, None),
            _ => (self.load_raw(&name)?, Some(tracepoint)),
        };
        Ok(Program { fd, tracepoint, name })
    }
}

/// A program that the kernel has taken. Does nothing until it is attached or run.
#[derive(Debug)]
pub(crate) struct Program {
    fd: OwnedFd,
    /// `None`: the kernel knows where it belongs.
    tracepoint: Option<&'static CStr>,
    name: String,
}

/// An attached program. Dropped, it is detached.
#[derive(Debug)]
pub(crate) struct Attached {
    _link: OwnedFd,
}

/// A program twice, for the same tracepoint.
///
/// Since Linux 6.2 a program is skipped on a processor where a run of it is under way, and where tracepoints may be preempted
/// (seen on 7.2) that happens. Its twin is free then, unless a second task was preempted in that one: rare, and
/// [noticed](Twins::both_missed).
#[derive(Debug)]
pub(crate) struct Twins {
    first: Program,
    second: Program,
    missed: [u64; 2],
}

impl Twins {
    /// From now on both run at their tracepoint, in this order.
    pub(crate) fn attach(&self) -> Result<[Attached; 2], Refused> {
        Ok([self.first.attach()?, self.second.attach()?])
    }

    /// Whether something may have come by both since this was last asked. Linux 5.12; none is skipped before 6.2.
    pub(crate) fn both_missed(&mut self) -> bool {
        let now = [&self.first, &self.second].map(|program| sys::misses(program.fd.as_fd()).unwrap_or(0));
        let before = std::mem::replace(&mut self.missed, now);
        now[0] != before[0] && now[1] != before[1]
    }

    /// How often each was skipped, as of the last question.
    #[cfg(test)]
    pub(crate) fn missed(&self) -> [u64; 2] {
        self.missed
    }
}

impl Program {
    /// From now on it runs at its tracepoint. Each attachment counts on its own.
    pub(crate) fn attach(&self) -> Result<Attached, Refused> {
        let link = sys::attach(self.fd.as_fd(), self.tracepoint)
            .map_err(|error| Refused::new(&format!("attach BPF program {}", self.name), &error))?;
        Ok(Attached { _link: link })
    }

    /// Runs a `raw_tp` program once in the context of this thread, with these arguments, and returns what it returns.
    pub(crate) fn run(&self, arguments: &[u64]) -> io::Result<u32> {
        sys::run(self.fd.as_fd(), arguments)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        if let State::Open(_) = std::mem::take(&mut self.state) {
            give_back();
        }
    }
}

/// glibc keeps freed memory; parsing leaves tens of megabytes of it behind.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes no pointers and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// For the tests of the parts.
#[cfg(test)]
pub(crate) mod testing {
    use std::fs::OpenOptions;
    use std::io::Write as _;

    /// Says so, loudly, and leaves a line for the summary.
    pub(crate) fn skipped(test: &str, reason: &str) {
        println!("SKIPPED: {test}: {reason}");
        if let Some(path) = std::env::var_os("CONTAINERHOOK_SKIPS")
            && let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path)
        {
            let _ = writeln!(file, "SKIPPED: {test}: {reason}");
        }
    }

    /// Something could not be had: an excuse for a test only where it is the host that lacks it.
    pub(crate) fn skip(test: &str, reason: &str) {
        let excuses = ["os error 1)", "os error 13)", "CONFIG_DEBUG_INFO_BTF", "Linux 6.15 does"];
        assert!(excuses.iter().any(|excuse| reason.contains(excuse)), "{reason}");
        skipped(test, reason);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::process::Command;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_long_log_keeps_its_ends() {
        assert_eq!(shorten("short"), "short");
        let long = format!("begin{}end", "ä".repeat(10_000));
        let short = shorten(&long);
        assert!(short.starts_with("begin") && short.ends_with("end") && short.len() < 2000);
    }

    #[test]
    fn what_is_not_there_is_refused_in_words() {
        let mut loader = Loader::new();
        let error = loader.twins(c"sched_process_exit", "no_such").unwrap_err();
        assert!(error.to_string().contains("no_such"), "{error}");
        if loader.map("exits").is_ok() {
            assert!(loader.map("exits").unwrap_err().to_string().contains("exits"));
        }
    }

    /// What the attached programs cost each exec, fork and exit of the host. Prints; run it with
    /// `cargo test --release -p containerhook --lib what_the_programs_cost -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn what_the_programs_cost() {
        const EXECS: u32 = 2000;
        let spawn = || {
            let start = Instant::now();
            assert!(Command::new("/bin/busybox").arg("true").status().unwrap().success());
            start.elapsed()
        };
        let median = || {
            let mut times: Vec<_> = (0..EXECS).map(|_| spawn()).collect();
            times.sort();
            times[times.len() / 2]
        };
        let mut loader = Loader::new();
        let start = Instant::now();
        let programs: Vec<Twins> = ["exec", "fork", "exit"]
            .into_iter()
            .zip([c"sched_process_exec", c"sched_process_fork", c"sched_process_exit"])
            .map(|(part, tracepoint)| loader.twins(tracepoint, part).unwrap())
            .collect();
        println!("loaded in {:?}", start.elapsed());
        drop(loader);

        median();
        for round in 0..3 {
            let without = median();
            let attached: Vec<_> = programs.iter().map(|program| program.attach().unwrap()).collect();
            let with = median();
            drop(attached);
            println!(
                "round {round}: spawn and wait, median of {EXECS}: {without:?} without, {with:?} with all three"
            );
        }

        let _stats = sys::count_runs().unwrap();
        for Twins { first: program, .. } in &programs {
            let attached = program.attach().unwrap();
            let (ns_before, runs_before) = program.runs();
            for _ in 0..EXECS {
                spawn();
            }
            let (ns, runs) = program.runs();
            drop(attached);
            assert!(runs - runs_before >= u64::from(EXECS), "each spawn is an exec, a fork and an exit");
            println!("{}: {} ns a run", program.name, (ns - ns_before) / (runs - runs_before));
        }
    }

    impl Program {
        /// Nanoseconds and count of its runs, while they are counted.
        fn runs(&self) -> (u64, u64) {
            let path = format!("/proc/thread-self/fdinfo/{}", self.fd.as_raw_fd());
            let text = std::fs::read_to_string(path).unwrap();
            let field = |name| {
                text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse::<u64>().unwrap()
            };
            (field("run_time_ns:"), field("run_cnt:"))
        }
    }
}
