//! What a command line asks of a container that is there: a signal, other limits.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use serde_json::Value;

use crate::bundle::{self, Caller};
use crate::cmdline::{Invocation, Verb};
use crate::event::Asked;

/// A file of limits is read up to this size; the kubelet's have less than a KiB.
const MOST_LIMITS: u64 = 64 << 10;

/// An option's word is cut here.
const MOST_WORD: usize = 256;

/// What is asked, where it is more than the verb says.
pub(crate) fn asked(invocation: &Invocation, caller: &Caller<'_>) -> Option<Asked> {
    match invocation.verb {
        Verb::Kill => {
            let signal = invocation.signal.as_deref().map_or(Some(libc::SIGTERM), signal_number);
            Some(Asked { signal, ..Asked::default() })
        }
        Verb::Update => Some(Asked { limits: limits(invocation, caller), ..Asked::default() }),
        _ => None,
    }
}

/// The file counts where there is one, as it does for the runtimes; what they are given by standard input is not seen.
fn limits(invocation: &Invocation, caller: &Caller<'_>) -> Option<Value> {
    if let Some(path) = &invocation.resources_file {
        return if path == Path::new("-") { None } else { read(path, caller).ok() };
    }
    let word = |word: &OsStr| word.to_string_lossy().chars().take(MOST_WORD).collect::<String>();
    let given = invocation.limits.iter().map(|(name, value)| ((*name).to_owned(), Value::from(word(value))));
    let limits: serde_json::Map<String, Value> = given.collect();
    (!limits.is_empty()).then_some(Value::Object(limits))
}

fn read(path: &Path, caller: &Caller<'_>) -> io::Result<Value> {
    let _rights = caller.rights()?;
    let bytes = bundle::read_bounded(&caller.look_up(path, 0)?, MOST_LIMITS)?;
    let limits: Value = serde_json::from_slice(&bytes)?;
    limits.is_object().then_some(limits).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A signal's number, by number or name, with or without `SIG`, as runtimes read it.
fn signal_number(word: &OsStr) -> Option<i32> {
    let word = word.to_str()?;
    if let Ok(number) = word.parse::<i32>() {
        return (0..=libc::SIGRTMAX()).contains(&number).then_some(number);
    }
    let name = word.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    for (base, number) in [("RTMIN", libc::SIGRTMIN()), ("RTMAX", libc::SIGRTMAX())] {
        let Some(offset) = name.strip_prefix(base) else { continue };
        let offset = if offset.is_empty() { 0 } else { offset.parse::<i32>().ok()? };
        let number = number.checked_add(offset)?;
        return (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number).then_some(number);
    }
    SIGNALS.iter().find_map(|(known, number)| (*known == name).then_some(*number))
}

const SIGNALS: &[(&str, i32)] = &[
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGPOLL),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_in_every_spelling() {
        let cases = [
            ("9", Some(9)),
            ("KILL", Some(9)),
            ("SIGKILL", Some(9)),
            ("sigterm", Some(15)),
            ("0", Some(0)),
            ("64", Some(64)),
            ("65", None),
            ("-1", None),
            ("RTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMAX+1", None),
            ("RTMIN-1", None),
            ("RTMIN+99999999999", None),
            ("SIG", None),
            ("", None),
            ("NONE", None),
        ];
        for (word, number) in cases {
            assert_eq!(signal_number(OsStr::new(word)), number, "{word:?}");
        }
    }
}
