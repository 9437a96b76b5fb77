//! Which file a container will execute first, found before the container is there.
//!
//! While the runtime's `create` or `run` is held, the root file system is mounted already but the config's mounts
//! are not. So the look-up that the runtime's init will make is made here beforehand: `process.args[0]` or the
//! first executable of that name along `PATH`, links and `..` inside the root, and the mounts over it ([`tree`]).
//! What runc 1.1, crun 1.8 and youki 0.7 do was tried out; where they differ, or where the answer depends on what
//! is not there yet, the result is a reason instead of a file, and the caller holds the container in another way.
//!
//! This code may block on a disk, holds descriptors and therefore runs on the engine's workers only.

use crate::bundle::Caller;
use crate::bundle::sys::Stat;
use crate::config::Outline;
use access::Access;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tree::{Found, Tree, Way};

mod access;
mod tree;

/// The file a container will execute first.
#[derive(Debug)]
#[cfg_attr(
    not(test),
    allow(dead_code, reason = "what the file is beyond its mark is asserted by tests only")
)]
pub(crate) struct Entrypoint {
    /// `O_PATH`. Close it as soon as the file is marked: the root cannot be unmounted while it is open.
    pub(crate) file: OwnedFd,
    /// Device and inode number, as an event's descriptor shows them.
    pub(crate) inode: (u64, u64),
    /// Where the container will see it, without links.
    pub(crate) path: PathBuf,
}

/// Why the entrypoint is not known beforehand.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Unresolved {
    #[error("the config names no command")]
    NoCommand,
    #[error("runtimes read this config differently: {0}")]
    Ambiguous(&'static str),
    #[error("the config has no root")]
    NoRoot,
    #[error("{name} is in no directory of PATH")]
    NotInPath { name: String },
    #[error("there is no {}", .path.display())]
    NotFound { path: PathBuf },
    #[error("{} is not a directory", .path.display())]
    NotADirectory { path: PathBuf },
    #[error("{} is {kind}", .path.display())]
    NotAFile { path: PathBuf, kind: &'static str },
    #[error("the container's user may not pass {}", .path.display())]
    Forbidden { path: PathBuf },
    #[error("too many symbolic links at {}", .path.display())]
    TooManyLinks { path: PathBuf },
    #[error("what will be at {} is known only once it is mounted", .path.display())]
    Covered { path: PathBuf },
    #[error("the destination {mount} of a mount: {why}")]
    Destination { mount: String, why: Box<Unresolved> },
    #[error("cannot look at {}: {source}", .path.display())]
    Io { path: PathBuf, source: Arc<io::Error> },
    #[error("it takes too many look-ups")]
    TooComplex,
}

impl Unresolved {
    fn io(path: PathBuf, error: io::Error) -> Self {
        Self::Io { path, source: Arc::new(error) }
    }

    /// Whether a runtime searching along `PATH` goes on to the next directory. Where the listener could not look,
    /// nobody knows what the runtime will find there.
    fn goes_on(&self) -> bool {
        match self {
            Self::NotFound { .. }
            | Self::NotADirectory { .. }
            | Self::NotAFile { .. }
            | Self::Forbidden { .. }
            | Self::TooManyLinks { .. } => true,
            Self::Io { source, .. } => source.raw_os_error() == Some(libc::ENAMETOOLONG),
            _ => false,
        }
    }
}

/// Finds the entrypoint while `create` or `run` is held, before the container has its mounts.
///
/// # Errors
/// The reason why it is not known beforehand. A hook of the config (see [`Outline::hooks`]) may still change what
/// is found here.
pub(crate) fn resolve(
    caller: &Caller<'_>,
    bundle: BorrowedFd<'_>,
    outline: &Outline,
) -> Result<Entrypoint, Unresolved> {
    let root = outline.root.as_ref().ok_or(Unresolved::NoRoot)?;
    let path = Path::new(&root.path);
    let io = |error| Unresolved::io(path.to_owned(), error);
    let _rights = caller.rights().map_err(io)?;
    let runtime = Caller { cwd: bundle, ..*caller };
    let root = runtime.look_up(path, libc::O_DIRECTORY).map_err(io)?;
    let mut tree = Tree::new(root.as_fd());
    tree.mount(runtime, &outline.mounts)?;
    find(&tree, outline)
}

/// Finds the entrypoint once the container is created, through its init's own root (`/proc/<pid>/root`, opened
/// with `O_PATH`): its mounts are all there.
///
/// # Errors
/// The reason why there is none.
pub(crate) fn resolve_in_root(
    init_root: BorrowedFd<'_>,
    outline: &Outline,
) -> Result<Entrypoint, Unresolved> {
    find(&Tree::new(init_root), outline)
}

fn find(tree: &Tree<'_>, outline: &Outline) -> Result<Entrypoint, Unresolved> {
    if outline.ambiguous {
        return Err(Unresolved::Ambiguous("a field of it occurs twice, or in another case"));
    }
    let command = outline.args.first().filter(|command| !command.is_empty()).ok_or(Unresolved::NoCommand)?;
    let cwd = outline.cwd.as_deref().filter(|cwd| !cwd.is_empty()).unwrap_or("/");
    let path = outline.env("PATH").unwrap_or("");
    if [command.as_str(), cwd, path].iter().any(|words| words.contains('\0')) {
        // It ends the word for crun, which is written in C, and is an error for the others.
        return Err(Unresolved::Ambiguous("a NUL is in it"));
    }
    let cwd = tree.cwd(Path::new(cwd))?;
    let found = if command.contains('/') {
        let found = tree.find(&cwd, Path::new(command), None)?;
        regular(found)?
    } else {
        search(tree, &cwd, path, command, &Access::of(outline))?
    };
    Ok(Entrypoint { inode: found.stat.inode(), path: found.path, file: found.file })
}

fn regular(found: Found) -> Result<Found, Unresolved> {
    if found.stat.is_file() {
        Ok(found)
    } else {
        Err(Unresolved::NotAFile { path: found.path, kind: Stat::kind_name(&found.stat) })
    }
}

/// The first executable file of that name along `PATH`. None of the three runtimes has a default where `PATH` is
/// not set.
fn search(tree: &Tree<'_>, cwd: &Way, path: &str, name: &str, access: &Access) -> Result<Found, Unresolved> {
    let candidate = |dir: &str| {
        let found = tree.find(cwd, &Path::new(dir).join(name), Some(access)).and_then(regular)?;
        if access.executes(&found.stat) { Ok(found) } else { Err(Unresolved::Forbidden { path: found.path }) }
    };
    for dir in path.split(':') {
        if dir.is_empty() {
            // An empty entry is the working directory for youki, the root for crun, and an error for runc (if it
            // is all there is of PATH, it is no entry at all for runc).
            let nowhere = |dir| matches!(candidate(dir), Err(why) if why.goes_on());
            if nowhere(".") && nowhere("/") {
                continue;
            }
            return Err(Unresolved::Ambiguous("PATH has an empty entry"));
        }
        match candidate(dir) {
            Err(why) if why.goes_on() => {}
            other => return other,
        }
    }
    Err(Unresolved::NotInPath { name: name.to_owned() })
}

#[cfg(test)]
mod tests;
