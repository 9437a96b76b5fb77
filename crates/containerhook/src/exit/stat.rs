//! One look at `/proc/PID/stat`: who a process is, and whether it still lives. Never polled.

use crate::proc::HostProc;
use std::fs::{self, File};
use std::io::{self, Read as _};

use super::Process;

/// `PF_EXITING` (include/linux/sched.h): set at the start of `do_exit`, before the exit tracepoint.
const PF_EXITING: u64 = 0x4;

/// `CAP_SYS_PTRACE`: without it the kernel shows others' exit codes as 0.
const CAP_SYS_PTRACE: u32 = 19;

/// What one line of `/proc/PID/stat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    /// Clock ticks after boot. With the pid this is who the process is.
    pub(super) start_time: u64,
    state: u8,
    flags: u64,
    threads: i64,
    exit_code: i32,
}

impl Stat {
    /// Reads the line; its second field is the command in parentheses, which may hold spaces and parentheses itself.
    fn parse(line: &[u8]) -> Option<Stat> {
        let line = std::str::from_utf8(line.get(line.iter().rposition(|&b| b == b')')? + 1..)?).ok()?;
        let mut fields = line.split_ascii_whitespace();
        // proc(5) counts from 1; the field after the command is the third. `nth` consumes.
        let state = *fields.next()?.as_bytes().first()?;
        let flags = fields.nth(9 - 4)?.parse().ok()?;
        let threads = fields.nth(20 - 10)?.parse().ok()?;
        let start_time = fields.nth(22 - 21)?.parse().ok()?;
        let exit_code = fields.nth(52 - 23)?.parse().ok()?;
        Some(Stat { start_time, state, flags, threads, exit_code })
    }

    /// The whole process has ended. A leader that left before its other threads is a zombie too, but not yet the end.
    pub(super) fn is_dead(&self) -> bool {
        self.leader_is_dead() && self.threads <= 1
    }

    /// It has been reaped while the line was written: the kernel found no threads to count any more.
    fn is_reaped(&self) -> bool {
        self.threads < 1
    }

    /// The exit tracepoint may have been passed already.
    pub(super) fn is_exiting(&self) -> bool {
        self.flags & PF_EXITING != 0 || self.leader_is_dead()
    }

    fn leader_is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// A mounted `/proc` whose pids are the ones that are watched.
#[derive(Debug)]
pub(super) struct Proc {
    proc: HostProc,
    shows_exit_codes: bool,
}

impl Proc {
    pub(super) fn new(proc: &HostProc) -> Proc {
        Proc { proc: proc.clone(), shows_exit_codes: may_ptrace() }
    }

    /// Whether the pids are another namespace's, where no pidfd can be had.
    pub(super) fn is_foreign(&self) -> bool {
        self.proc.is_foreign()
    }

    /// What is known of the process that has this pid now; `None` where there is none.
    ///
    /// An error says nothing of the process: most often no descriptor was left to look with.
    pub(super) fn look(&self, pid: i32) -> io::Result<Option<Stat>> {
        if pid <= 0 {
            return Ok(None);
        }
        let gone = |error: io::Error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => Ok(None),
            _ => Err(error),
        };
        let mut file = match File::open(self.proc.path(pid, "stat")) {
            Ok(file) => file,
            Err(error) => return gone(error),
        };
        // 52 numbers and a command of at most 64 bytes.
        let mut line = [0; 2048];
        let mut len = 0;
        // The kernel writes it in one piece: what leaves room is all of it.
        while len < line.len() {
            match file.read(&mut line[len..]) {
                Ok(0) => break,
                Ok(n) => {
                    len += n;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return gone(error),
            }
        }
        Ok(Stat::parse(&line[..len]))
    }

    /// The same, for what can do without where it cannot be had.
    pub(super) fn stat(&self, pid: i32) -> Option<Stat> {
        self.look(pid).ok().flatten()
    }

    /// The wait status of a process that is *known to be dead*, where it is not reaped yet and the kernel shows it to us.
    ///
    /// It looks anew, for the line by which the death became known may have the wrong code. The kernel copies the leader's code
    /// before it looks at the state, and takes the process's own in its place under a lock that one who is reaped has not any
    /// more (`do_task_stat`): a line that is the first to show a zombie, or is of one that was reaped meanwhile, may have the 0 of
    /// one who lived.
    ///
    /// Before "exit: Use the correct `exit_code` in ``/proc/PID/stat``" (January 2022; 5.10 is without it) it is the leader's
    /// own, which differs where the leader left before the other threads.
    pub(super) fn exit_status(&self, process: Process) -> Option<i32> {
        let now = self.stat(process.pid).filter(|now| now.start_time == process.start_time)?;
        self.code_of_dead(&now)
    }

    fn code_of_dead(&self, now: &Stat) -> Option<i32> {
        // Not permitted is shown as 0, which is not to be taken for a success.
        let shown = self.shows_exit_codes || now.exit_code != 0;
        (now.is_dead() && !now.is_reaped() && shown).then_some(now.exit_code)
    }

    #[cfg(test)]
    pub(super) fn hide_exit_codes(&mut self) {
        self.shows_exit_codes = false;
    }
}

/// Whether this thread has CAP_SYS_PTRACE.
fn may_ptrace() -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|caps| caps & (1 << CAP_SYS_PTRACE) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "1234 (a) R (b) S 1 1234 1234 0 -1 4194560 79 0 0 0 0 0 0 0 20 0 1 0 5550 2465792 201 \
        18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 256\n";

    #[test]
    fn a_command_with_parentheses_does_not_shift_the_fields() {
        let stat = Stat::parse(LINE.as_bytes()).unwrap();
        assert_eq!((stat.start_time, stat.state, stat.threads, stat.exit_code), (5550, b'S', 1, 256));
        assert!(!stat.is_dead() && !stat.is_exiting());
    }

    #[test]
    fn a_leader_that_left_its_threads_is_not_the_end() {
        let line = LINE.replace(") S ", ") Z ").replace(" 20 0 1 0 ", " 20 0 2 0 ");
        let stat = Stat::parse(line.as_bytes()).unwrap();
        assert!(!stat.is_dead() && stat.is_exiting());
        let stat = Stat::parse(LINE.replace(") S ", ") Z ").as_bytes()).unwrap();
        assert!(stat.is_dead());
    }

    #[test]
    fn a_line_of_one_that_was_reaped_meanwhile_has_no_code() {
        let proc = Proc { proc: HostProc::default(), shows_exit_codes: true };
        // What a listener saw under load of a process that had exited with 3.
        let line = LINE.replace(") S ", ") Z ").replace(" 20 0 1 0 ", " 20 0 0 0 ").replace(" 256\n", " 0\n");
        let stat = Stat::parse(line.as_bytes()).unwrap();
        assert!(stat.is_dead());
        assert_eq!(proc.code_of_dead(&stat), None);
        let stat = Stat::parse(LINE.replace(") S ", ") Z ").as_bytes()).unwrap();
        assert_eq!(proc.code_of_dead(&stat), Some(256));
        assert_eq!(proc.code_of_dead(&Stat::parse(LINE.as_bytes()).unwrap()), None);
    }

    #[test]
    fn a_torn_or_foreign_line_is_nothing() {
        for len in 0..LINE.len() - 5 {
            assert_eq!(Stat::parse(&LINE.as_bytes()[..len]), None, "{len}");
        }
        assert_eq!(Stat::parse(b"no such thing"), None);
        assert_eq!(Stat::parse(&[0xff; 64]), None);
    }

    #[test]
    fn we_find_ourselves_and_nobody_at_zero() {
        let proc = Proc::new(&HostProc::default());
        assert!(proc.stat(std::process::id() as i32).is_some_and(|s| !s.is_exiting() && s.start_time > 0));
        assert_eq!(proc.stat(0), None);
        assert_eq!(proc.stat(-1), None);
        assert_eq!(proc.stat(i32::MAX), None);
    }
}
