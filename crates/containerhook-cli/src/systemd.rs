//! What systemd wants to hear from a service of `Type=notify`: sd_notify(3), which is a datagram.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// What the environment says of it. A program that is started by this one gets none of it.
pub(crate) const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// The service manager, where one listens.
#[derive(Debug)]
pub(crate) struct Systemd {
    socket: UnixDatagram,
    address: SocketAddr,
    /// How long it waits for a sign of life.
    watchdog: Option<Duration>,
    ready: bool,
}

impl Systemd {
    /// `None` where nobody asked.
    pub(crate) fn of_environment() -> io::Result<Option<Systemd>> {
        let Some(address) = env::var_os(VARIABLES[0]).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        let number = |name| env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
        // The limit may be meant for another process.
        let ours = number(VARIABLES[2]).is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number(VARIABLES[1]).filter(|micros| ours && *micros > 0).map(Duration::from_micros);
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not hold up who tells it.
        socket.set_nonblocking(true)?;
        Ok(Some(Systemd { socket, address: parse(&address)?, watchdog, ready: false }))
    }

    /// How long it waits for a sign of life, if it does.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The engine has come round; the first time: every runtime is marked.
    pub(crate) fn beat(&mut self) {
        if !self.ready {
            self.ready = true;
            self.tell("READY=1\nSTATUS=every container runtime found is listened to");
        }
        if self.watchdog.is_some() {
            self.tell("WATCHDOG=1");
        }
    }

    /// In words, for `systemctl status`.
    pub(crate) fn status(&self, words: &str) {
        self.tell(&format!("STATUS={words}"));
    }

    /// It ends, because it was asked to.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, words: &str) {
        if let Err(error) = self.socket.send_to_addr(words.as_bytes(), &self.address) {
            tracing::debug!("telling systemd {words:?}: {error}");
        }
    }
}

/// A path, or with an `@` before it a name that is in no file system.
fn parse(address: &OsString) -> io::Result<SocketAddr> {
    match address.as_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_address_are_understood() {
        let path = parse(&OsString::from("/run/systemd/notify")).unwrap();
        assert_eq!(path.as_pathname(), Some(std::path::Path::new("/run/systemd/notify")));
        let name = parse(&OsString::from("@a/b")).unwrap();
        assert_eq!(name.as_abstract_name(), Some(&b"a/b"[..]));
        assert!(parse(&OsString::from("x".repeat(200))).is_err());
    }

    #[test]
    fn it_is_ready_once_and_alive_often() {
        let folder = testkit::Scratch::new().unwrap();
        let path = folder.join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let socket = UnixDatagram::unbound().unwrap();
        let address = SocketAddr::from_pathname(&path).unwrap();
        let watchdog = Some(Duration::from_secs(30));
        let mut systemd = Systemd { socket, address, watchdog, ready: false };
        systemd.beat();
        systemd.beat();
        systemd.stopping();
        manager.set_nonblocking(true).unwrap();
        let mut told = Vec::new();
        let mut buffer = [0; 200];
        while let Ok(length) = manager.recv(&mut buffer) {
            told.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        assert!(told[0].starts_with("READY=1\n"), "{told:?}");
        assert_eq!(told[1..], ["WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]);
    }
}
