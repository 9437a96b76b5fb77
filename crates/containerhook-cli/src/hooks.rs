//! `watch --exec`: a program that is run for each event, outside of the listener's sandbox.
//!
//! A listener has few capabilities left and may execute nothing (`confine`). So before either is given up it, or its
//! supervisor, starts this program once more as the *helper* ([`helper`]), with every right that it was started with. The two
//! have a socket between them: the listener names an event and sends what is to be on the hook's standard input (an
//! unnamed file in memory, which no process has to pump), the helper answers how the hook ended. Nobody else has an end of
//! it; when the listener's side is gone, however that came, the helper kills the hooks that run, and ends.
//!
//! A hook that is waited for is waited for by a handler's thread, never by the engine, which answers in its place at the
//! deadline.

pub(crate) mod helper;

use std::collections::HashMap;
use std::io::{self, IoSlice, Seek as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use containerhook::{ContainerEvent, Decision, OnTimeout};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    recv, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::args::duration;
use crate::failure::Usage;
use crate::listener::take;
use crate::signals::End;
use crate::systemd;

/// The options of `watch`.
#[derive(Debug, Args)]
pub(crate) struct HookArgs {
    /// Run this for each event: an absolute path of a program, or else words for /bin/sh -c
    ///
    /// The event's JSON is on its standard input, CONTAINERHOOK_KIND, _ID, _NAME, _PID and _BUNDLE are in its environment
    /// where they are known. It runs outside of the sandbox, with the rights that containerhook was started with. What it
    /// prints goes to stderr. One container's events come one after the other, 16 run at a time.
    #[arg(long, value_name = "COMMAND", help_heading = "Running a program for each event")]
    exec: Option<String>,
    /// Hold each container until COMMAND has ended: exit code 0 lets it go on, another refuses it
    ///
    /// One that has not ended by --deadline is killed. That, an end by a signal, and the exit codes 126 and 127 (the
    /// program could not be run) are no answer: --on-timeout says what becomes of the container.
    #[arg(long, requires = "exec", help_heading = "Running a program for each event")]
    hold: bool,
    /// Kill a COMMAND that no container waits for when it has run this long
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s", requires = "exec")]
    #[arg(help_heading = "Running a program for each event")]
    exec_timeout: Duration,
}

impl HookArgs {
    pub(crate) fn command(&self) -> Option<&str> {
        self.exec.as_deref()
    }

    pub(crate) fn holds(&self) -> bool {
        self.hold && self.exec.is_some()
    }

    /// Refuses what could never be run.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match self.command() {
            Some(command) if command.trim().is_empty() || command.contains('\0') => {
                Err(Usage("--exec: give a program, or words for a shell".into()).into())
            }
            Some(command) if !is_program(command) && !Path::new(SHELL).exists() => {
                Err(Usage(format!("--exec {command:?}: there is no {SHELL} here: give an absolute path"))
                    .into())
            }
            _ => Ok(()),
        }
    }
}

const SHELL: &str = "/bin/sh";

/// Is it one program's path, not words for a shell?
fn is_program(command: &str) -> bool {
    command.starts_with('/') && (Path::new(command).is_file() || !command.contains(char::is_whitespace))
}

/// What the listener asks for. The hook's standard input comes with it.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    no: u64,
    /// Requests of one container are run one after the other.
    container: String,
    limit_ms: u64,
    /// Its container waits: the limit counts from now, not from the hook's start.
    held: bool,
    env: Vec<(String, String)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Reply {
    no: u64,
    end: HookEnd,
}

/// What became of a hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum HookEnd {
    Exited(i32),
    Signaled(i32),
    /// It was killed when its time was over, or had no turn.
    Late,
    /// It could not be run.
    Failed(String),
}

impl HookEnd {
    /// As a shell says that it could not execute something.
    const NOT_RUN: [i32; 2] = [126, 127];

    fn words(&self) -> String {
        match self {
            HookEnd::Exited(code) if Self::NOT_RUN.contains(code) => {
                format!("could not be run (exit code {code})")
            }
            HookEnd::Exited(code) => format!("ended with exit code {code}"),
            HookEnd::Signaled(signal) => format!("was killed by signal {signal}"),
            HookEnd::Late => "was not done in time, and was killed".into(),
            HookEnd::Failed(why) => format!("could not be run: {why}"),
        }
    }
}

/// The biggest message: an environment of a few bounded words.
const MOST: usize = 64 << 10;
/// Of each word from a container, which may be anything.
const LONGEST_WORD: usize = 4096;

/// The listener's end of the socket to its helper.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: Option<OwnedFd>,
    /// `None` where the supervisor has started it.
    helper: Option<Child>,
}

impl Channel {
    /// Starts the helper. Call it first, while this process has all its rights and one thread.
    pub(crate) fn open() -> anyhow::Result<Channel> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .context("cannot make a socket for --exec")?;
        fcntl_setfd(&theirs, FdFlags::empty()).context("cannot give --exec its socket")?;
        let mut words = std::env::args_os();
        let mut command = Command::new("/proc/self/exe");
        command.args(words.next().map(|_| format!("--hooks-helper={}", theirs.as_raw_fd()))).args(words);
        for name in systemd::VARIABLES {
            command.env_remove(name);
        }
        let helper = command.spawn().context("cannot start the process that runs --exec")?;
        Ok(Channel { socket: Some(ours), helper: Some(helper) })
    }

    /// That of the supervisor, who has left it open.
    pub(crate) fn inherited(number: RawFd) -> anyhow::Result<Channel> {
        Ok(Channel { socket: Some(take(number)?), helper: None })
    }

    /// The number that a child of ours will find it at.
    pub(crate) fn to_inherit(&self) -> io::Result<RawFd> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        fcntl_setfd(socket, FdFlags::empty())?;
        Ok(socket.as_raw_fd())
    }
}

impl Drop for Channel {
    /// Nobody is left behind: the helper ends when it sees that this end is closed.
    fn drop(&mut self) {
        self.socket = None;
        if let Some(helper) = &mut self.helper {
            let _ = helper.wait();
        }
    }
}

/// Runs hooks: what a listener has of its helper.
pub(crate) struct Hooks {
    channel: Channel,
    command: String,
    patience: Duration,
    with_config: bool,
    on_timeout: OnTimeout,
    asked: Arc<Asked>,
    next: AtomicU64,
}

#[derive(Default)]
struct Asked {
    hooks: Mutex<HashMap<u64, Waits>>,
    one_done: Condvar,
}

struct Waits {
    /// Which event.
    what: String,
    /// Who waits for the answer, where somebody does.
    answer: Option<Sender<HookEnd>>,
}

impl Asked {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Waits>> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hooks {
    /// `end` hears it when the helper has died: it cannot be replaced, for the rights to do so are given up.
    pub(crate) fn start(
        channel: Channel,
        args: &HookArgs,
        with_config: bool,
        on_timeout: OnTimeout,
        end: Sender<End>,
    ) -> anyhow::Result<Hooks> {
        let asked = Arc::new(Asked::default());
        let theirs = Arc::clone(&asked);
        let socket =
            channel.socket.as_ref().context("no socket")?.try_clone().context("the helper's socket")?;
        let command = args.exec.clone().unwrap_or_default();
        let name = command.clone();
        std::thread::Builder::new()
            .name("hooks".into())
            .spawn(move || {
                listen(&socket, &theirs, &name);
                // Whoever waits sees that nobody will answer.
                theirs.lock().clear();
                theirs.one_done.notify_all();
                let _ = end.send(End::HooksDied);
            })
            .context("cannot start the thread that hears of hooks")?;
        // One listener after another uses the same helper: no answer is taken for that to another question.
        let next = AtomicU64::new(u64::from(std::process::id()) << 32);
        Ok(Hooks { channel, command, patience: args.exec_timeout, with_config, on_timeout, asked, next })
    }

    /// Runs it for something that nobody waits for.
    pub(crate) fn tell(&self, record: &containerhook::Record) {
        let json = if self.with_config { record.to_json_with_config() } else { record.to_json() };
        if let Err(error) = self.send(&record.event, &json, self.patience, false, None) {
            tracing::warn!("{:?} is not run for {}: {error}", self.command, what(&record.event));
        }
    }

    /// Runs it, and waits for its answer where the event is held.
    pub(crate) fn ask(&self, event: &ContainerEvent) -> Decision {
        let json = if self.with_config { event.to_json_with_config() } else { event.to_json() };
        let Some(deadline) = event.deadline().filter(|_| event.held()) else {
            if let Err(error) = self.send(event, &json, self.patience, false, None) {
                tracing::warn!("{:?} is not run for {}: {error}", self.command, what(event));
            }
            return Decision::allow();
        };
        let (answer, answers) = mpsc::channel();
        let left = deadline.saturating_duration_since(Instant::now());
        let end = match self.send(event, &json, left, true, Some(answer)) {
            Ok(()) => answers.recv().unwrap_or_else(|_| HookEnd::Failed("the helper has ended".into())),
            Err(error) => HookEnd::Failed(error.to_string()),
        };
        match &end {
            HookEnd::Exited(0) => return Decision::allow(),
            HookEnd::Exited(code) if !HookEnd::NOT_RUN.contains(code) => {
                return Decision::deny(format!("{:?} {}", self.command, end.words()));
            }
            // The engine answers at the deadline, and tells that there was none in time.
            HookEnd::Late => std::thread::sleep(
                (deadline + Duration::from_millis(20)).saturating_duration_since(Instant::now()),
            ),
            _ => {}
        }
        let words = format!("{:?} gave no answer to {}: it {}", self.command, what(event), end.words());
        tracing::warn!("{words}");
        match self.on_timeout {
            OnTimeout::Deny => Decision::deny(words),
            _ => Decision::allow(),
        }
    }

    fn send(
        &self,
        event: &ContainerEvent,
        json: &str,
        limit: Duration,
        held: bool,
        answer: Option<Sender<HookEnd>>,
    ) -> io::Result<()> {
        let input = input(json)?;
        let no = self.next.fetch_add(1, Ordering::Relaxed);
        let request = Request {
            no,
            container: event.id().to_owned(),
            limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            held,
            env: environment(json),
        };
        let message = serde_json::to_vec(&request)?;
        self.asked.lock().insert(no, Waits { what: what(event), answer });
        let sent = send_with(self.channel.socket.as_ref().map(OwnedFd::as_fd), &message, input.as_fd());
        if sent.is_err() {
            self.asked.lock().remove(&no);
        }
        sent
    }

    /// Waits, but not for long, until every hook has ended that nobody waits for.
    pub(crate) fn finish(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut hooks = self.asked.lock();
        let open = |hooks: &HashMap<u64, Waits>| hooks.values().filter(|hook| hook.answer.is_none()).count();
        while open(&hooks) > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("{} runs of {:?} are not waited for", open(&hooks), self.command);
                return;
            }
            let waited = self.asked.one_done.wait_timeout(hooks, left);
            hooks = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Until the helper has ended.
fn listen(socket: &OwnedFd, asked: &Asked, command: &str) {
    let mut buffer = vec![0_u8; MOST];
    loop {
        let length = match recv(socket, buffer.as_mut_slice(), RecvFlags::empty()) {
            Ok((0, _)) => return,
            Ok((length, _)) => length,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return tracing::warn!("the helper of --exec: {error}"),
        };
        let Ok(Reply { no, end }) = serde_json::from_slice(buffer.get(..length).unwrap_or_default()) else {
            tracing::warn!("the helper of --exec said something that is not understood");
            continue;
        };
        let mut hooks = asked.lock();
        let waits = hooks.remove(&no);
        if waits.as_ref().is_some_and(|waits| waits.answer.is_none()) {
            asked.one_done.notify_all();
        }
        drop(hooks);
        match waits {
            Some(Waits { answer: Some(answer), .. }) => drop(answer.send(end)),
            Some(Waits { what, .. }) if end != HookEnd::Exited(0) => {
                tracing::warn!("{command:?}, run for {what}, {}", end.words());
            }
            _ => {}
        }
    }
}

fn what(event: &ContainerEvent) -> String {
    let id: String = event.id().chars().take(100).collect();
    format!("{} of {id:?}", event.kind())
}

/// What a shell script wants to know without reading JSON. A word that no environment can hold is left out.
fn environment(json: &str) -> Vec<(String, String)> {
    let event: Value = serde_json::from_str(json).unwrap_or_default();
    let fields = [("KIND", "event"), ("ID", "id"), ("NAME", "name"), ("PID", "pid"), ("BUNDLE", "bundle")];
    let word = |field: &str| match &event[field] {
        Value::String(word) => Some(word.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let fits = |word: &String| word.len() <= LONGEST_WORD && !word.contains('\0');
    fields
        .into_iter()
        .filter_map(|(name, field)| Some((format!("CONTAINERHOOK_{name}"), word(field).filter(fits)?)))
        .collect()
}

/// A file that is in no file system, with the line in it, to be read from its start.
fn input(json: &str) -> io::Result<OwnedFd> {
    let mut file = std::fs::File::from(memfd_create("containerhook-event", MemfdFlags::CLOEXEC)?);
    file.write_all(json.as_bytes())?;
    file.write_all(b"\n")?;
    file.rewind()?;
    Ok(file.into())
}

fn send_with(socket: Option<BorrowedFd<'_>>, message: &[u8], file: BorrowedFd<'_>) -> io::Result<()> {
    let socket = socket.ok_or(io::ErrorKind::NotConnected)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut with = SendAncillaryBuffer::new(&mut space);
    let files = [file];
    with.push(SendAncillaryMessage::ScmRights(&files));
    // A helper that does not keep up must not hold up what is told.
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match sendmsg(socket, &[IoSlice::new(message)], &mut with, flags) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::AGAIN) => Err(io::Error::other("too many hooks wait for their turn")),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_no_environment_can_hold_are_left_out() {
        let json = serde_json::json!({"event": "created", "id": "a b\n=c", "name": "x\0y", "pid": 7,
            "bundle": "/".repeat(LONGEST_WORD + 1)});
        let env = environment(&json.to_string());
        let env: Vec<_> = env.iter().map(|(name, word)| (name.as_str(), word.as_str())).collect();
        assert_eq!(
            env,
            [("CONTAINERHOOK_KIND", "created"), ("CONTAINERHOOK_ID", "a b\n=c"), ("CONTAINERHOOK_PID", "7")]
        );
    }

    #[test]
    fn a_path_is_executed_and_words_are_given_to_a_shell() {
        for (command, program) in [
            ("/usr/local/bin/hook", true),
            ("/bin/sh", true),
            ("/bin/echo hello", false),
            ("hook", false),
            ("exit 3", false),
        ] {
            assert_eq!(is_program(command), program, "{command}");
        }
    }
}
