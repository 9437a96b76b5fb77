//! A bundle: the directory a runtime is told to make a container of, and its `config.json`.
//!
//! Everything here is found through words of the runtime's caller, so nothing is taken on trust: paths are
//! resolved in the caller's own root ([`Caller`]), an unprivileged caller's files are opened with her own rights
//! ([`rights`]), what is not a regular file is not opened at all, and what is read is bounded.
//!
//! This code may block on a disk, holds descriptors and therefore runs on the engine's workers only.

use crate::config::{Config, ConfigError};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) mod caller;
pub(crate) mod host_path;
pub(crate) mod rights;
pub(crate) mod state_file;
pub(crate) mod sys;
pub(crate) mod write;

pub(crate) use caller::Caller;

/// The largest `config.json` that is read. Docker's and the kubelet's have 10 to 100 KiB.
pub(crate) const CONFIG_LIMIT: u64 = 16 << 20;

/// What was found of a bundle.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The bundle's directory, `O_PATH`.
    pub(crate) dir: Option<OwnedFd>,
    /// The directory's path, if the listener finds the same directory under it. Of a caller in another mount
    /// namespace it may not: [`host_path::host_path`] looks further.
    pub(crate) host_path: Option<PathBuf>,
    pub(crate) config: Result<Config, ConfigError>,
}

/// Opens the bundle that a caller names, the working directory if it names none, and reads its config.
pub(crate) fn open(caller: &Caller<'_>, bundle: Option<&Path>) -> Opened {
    open_with_config(caller, bundle, None)
}

/// As [`open`], with another name for `config.json` (`crun --config FILE`), relative to the bundle.
pub(crate) fn open_with_config(caller: &Caller<'_>, bundle: Option<&Path>, config: Option<&Path>) -> Opened {
    // runc takes an empty `--bundle` for none.
    let bundle = bundle.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let fail = |source: io::Error| Opened {
        dir: None,
        host_path: None,
        config: Err(ConfigError::Bundle { path: bundle.to_owned(), source: Arc::new(source) }),
    };
    let _rights = match caller.rights() {
        Ok(rights) => rights,
        Err(error) => return fail(error),
    };
    let dir = if bundle == Path::new(".") {
        // Not looked up: it may have been removed or covered, and is still the caller's working directory.
        caller.cwd.try_clone_to_owned()
    } else {
        caller.look_up(bundle, libc::O_DIRECTORY)
    };
    let dir = match dir {
        Ok(dir) => dir,
        Err(error) => return fail(error),
    };
    let host_path = host_path::own_path(dir.as_fd());
    let name = config.unwrap_or(Path::new("config.json"));
    // For messages: the path as seen from here where there is one.
    let told = host_path.as_deref().unwrap_or(bundle).join(name);
    let config = read_config(caller, &dir, &bundle.join(name), name, &told);
    Opened { dir: Some(dir), host_path, config }
}

/// Whether `config.json` in the bundle's directory holds the very bytes that `known` was read from. They are compared, not
/// parsed: nearly always they do.
pub(crate) fn is_still(caller: &Caller<'_>, dir: &OwnedFd, known: &Config) -> bool {
    let Ok(_rights) = caller.rights() else { return false };
    let beneath = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS;
    sys::openat2(dir.as_fd(), Path::new("config.json"), libc::O_PATH, beneath)
        .is_ok_and(|file| read_bounded(&file, CONFIG_LIMIT).is_ok_and(|bytes| bytes == known.raw()))
}

fn read_config(
    caller: &Caller<'_>,
    dir: &OwnedFd,
    full: &Path,
    name: &Path,
    told: &Path,
) -> Result<Config, ConfigError> {
    let file = look_up_in(caller, dir, full, name).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT) => ConfigError::Missing { path: told.to_owned() },
        _ => ConfigError::Read { path: told.to_owned(), source: Arc::new(error) },
    })?;
    let bytes = read_bounded(&file, CONFIG_LIMIT).map_err(|error| match error {
        Unread::NotRegular(kind) => ConfigError::NotRegular { path: told.to_owned(), kind },
        Unread::TooLarge => ConfigError::TooLarge { path: told.to_owned(), limit: CONFIG_LIMIT },
        Unread::Io(source) => ConfigError::Read { path: told.to_owned(), source: Arc::new(source) },
    })?;
    Config::parse(bytes, told)
}

/// Opens a file of the bundle with `O_PATH`: through the directory that is already open, and only where a link
/// leads elsewhere through its full path.
fn look_up_in(caller: &Caller<'_>, dir: &OwnedFd, full: &Path, name: &Path) -> io::Result<OwnedFd> {
    let beneath = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS;
    match sys::openat2(dir.as_fd(), name, libc::O_PATH, beneath) {
        // ELOOP: a link on the way. EXDEV: the name itself leads out of the bundle.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::EXDEV)) => {
            caller.look_up(full, 0)
        }
        other => other,
    }
}

/// Why a file was not read.
#[derive(Debug)]
pub(crate) enum Unread {
    /// What it is instead of a regular file.
    NotRegular(&'static str),
    TooLarge,
    Io(io::Error),
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Unread> for io::Error {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::NotRegular(kind) => Self::other(format!("it is {kind}, not a regular file")),
            Unread::TooLarge => Self::from_raw_os_error(libc::EFBIG),
            Unread::Io(error) => error,
        }
    }
}

/// Reads a regular file of at most `limit` bytes; anything else is not even opened for reading, as the mere
/// opening of a FIFO or a device has effects.
pub(crate) fn read_bounded(file: &OwnedFd, limit: u64) -> Result<Vec<u8>, Unread> {
    let stat = sys::stat(file.as_fd())?;
    if !stat.is_file() {
        return Err(Unread::NotRegular(stat.kind_name()));
    }
    if stat.size > limit {
        return Err(Unread::TooLarge);
    }
    let mut bytes = Vec::with_capacity(stat.size as usize + 1);
    // It may grow while it is read, and files of proc have no size at all.
    sys::reopen(file.as_fd())?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(Unread::TooLarge) } else { Ok(bytes) }
}

#[cfg(test)]
pub(crate) mod tests;
