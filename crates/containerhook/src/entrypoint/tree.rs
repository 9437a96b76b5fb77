//! A container's tree of files before it is there: its root and the mounts of its config, put together as the
//! runtime will, in their order, each destination looked up in what the ones before it made.

use super::Unresolved;
use super::access::Access;
use crate::bundle::Caller;
use crate::bundle::sys::{self, Stat};
use crate::config::Mount;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// As the kernel's `MAXSYMLINKS`.
const LINKS: usize = 40;
/// How many names are looked up at most for one container: some hundred are usual, a hostile config may ask for
/// many millions.
const STEPS: usize = 20_000;

/// A place in the tree: a mount, and the path below its root, free of links, `.` and `..`.
type Place = (usize, OsString);

/// What is mounted somewhere.
#[derive(Debug)]
enum What<'a> {
    /// The container's root, or the tree that is seen through `/proc/<pid>/root`.
    Root(BorrowedFd<'a>),
    /// A part of the host's tree, by its path for the runtime.
    Bind { source: PathBuf, recursive: bool },
    /// A file system that is empty but for the mount points that the runtime makes in it.
    Empty,
    /// Something whose contents nobody knows before it is mounted.
    Unknown,
}

/// A container's tree of files.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    /// As the runtime, with the bundle for its working directory.
    runtime: Option<Caller<'a>>,
    /// The root's path, in the kernel's words.
    root_path: PathBuf,
    mounts: Vec<What<'a>>,
    /// What is mounted on a place; of several the last.
    on: HashMap<Place, usize>,
    /// Directories that the runtime makes on its way to a destination or the working directory.
    made: RefCell<HashSet<Place>>,
    steps: Cell<usize>,
}

/// Something found in the tree.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) file: OwnedFd,
    pub(super) stat: Stat,
    /// Without links, as the container will see it.
    pub(super) path: PathBuf,
}

/// Whether the way is only looked for, or made where it is missing (`mkdir -p`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Fail,
    Make,
}

/// A directory, by the way to it: each entry is one name further.
#[derive(Clone, Debug)]
pub(super) struct Way(Vec<(OsString, Place)>);

impl Way {
    fn path(&self) -> PathBuf {
        std::iter::once(OsString::from("/")).chain(self.0.iter().map(|(name, _)| name.clone())).collect()
    }
}

/// What lies at a place.
enum At {
    File(OwnedFd, Stat),
    /// A directory that is not there yet.
    Made,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: BorrowedFd<'a>) -> Self {
        Self {
            runtime: None,
            root_path: PathBuf::new(),
            mounts: vec![What::Root(root)],
            on: HashMap::new(),
            made: RefCell::default(),
            steps: Cell::new(0),
        }
    }

    /// Puts the config's mounts over the root.
    pub(super) fn mount(&mut self, runtime: Caller<'a>, mounts: &[Mount]) -> Result<(), Unresolved> {
        self.runtime = Some(runtime);
        if let What::Root(root) = &self.mounts[0] {
            self.root_path = sys::path_of(*root).map_err(|error| Unresolved::io("/".into(), error))?;
        }
        for mount in mounts {
            let place = self.destination(&mount.destination).map_err(|why| match why {
                Unresolved::TooComplex => why,
                _ => Unresolved::Destination { mount: mount.destination.clone(), why: Box::new(why) },
            })?;
            self.mounts.push(what(mount));
            self.on.insert(place, self.mounts.len() - 1);
        }
        Ok(())
    }

    /// The place a mount's destination stands for when its turn comes, made if it is not there.
    fn destination(&self, destination: &str) -> Result<Place, Unresolved> {
        // What is there does not matter: it is covered.
        let mut way = self.cwd(Path::new(destination))?;
        Ok(way.0.pop().map_or_else(|| self.top((0, OsString::new())), |(_, place)| place))
    }

    /// The way to the working directory: runtimes make it where it is missing.
    pub(super) fn cwd(&self, path: &Path) -> Result<Way, Unresolved> {
        let mut way = Way(Vec::new());
        self.walk(&mut way, path, None, Missing::Make)?;
        Ok(way)
    }

    /// What `path` stands for, from the root or from the working directory. With `access` a directory on the way
    /// that the user may not pass counts as an error.
    pub(super) fn find(&self, cwd: &Way, path: &Path, access: Option<&Access>) -> Result<Found, Unresolved> {
        let mut way = cwd.clone();
        let at = self.walk(&mut way, path, access, Missing::Fail)?;
        match at {
            At::File(file, stat) => Ok(Found { file, stat, path: way.path() }),
            At::Made => Err(Unresolved::NotAFile { path: way.path(), kind: "a directory" }),
        }
    }

    /// Goes along `path`, link by link, and leaves in `way` where it came to.
    fn walk(
        &self,
        way: &mut Way,
        path: &Path,
        access: Option<&Access>,
        missing: Missing,
    ) -> Result<At, Unresolved> {
        let mut rest: Vec<OsString> = Vec::new();
        push(&mut rest, way, path);
        let mut links = 0;
        // That the root is a directory is known.
        let from_root = access.is_none() && !rest.is_empty() && self.here(way) == (0, OsString::new());
        let mut at = if from_root { At::Made } else { self.at(way, missing)? };
        while let Some(name) = rest.pop() {
            if let At::File(_, stat) = &at {
                if !stat.is_dir() {
                    return Err(Unresolved::NotADirectory { path: way.path() });
                }
                if access.is_some_and(|access| !access.executes(stat)) {
                    return Err(Unresolved::Forbidden { path: way.path() });
                }
            }
            if name == "." {
                continue;
            }
            if name == ".." {
                way.0.pop();
            } else {
                let (mount, mut inside) = self.here(way);
                if !inside.is_empty() {
                    inside.push("/");
                }
                inside.push(&name);
                way.0.push((name, self.top((mount, inside))));
            }
            at = self.at(way, missing)?;
            if let At::File(link, stat) = &at
                && stat.is_link()
            {
                links += 1;
                if links > LINKS {
                    return Err(Unresolved::TooManyLinks { path: way.path() });
                }
                let target = link_target(link, way)?;
                way.0.pop();
                push(&mut rest, way, &target);
                at = self.at(way, missing)?;
            }
        }
        Ok(at)
    }

    fn here(&self, way: &Way) -> Place {
        way.0.last().map_or_else(|| self.top((0, OsString::new())), |(_, place)| place.clone())
    }

    /// What is mounted on a place, and on that.
    fn top(&self, mut place: Place) -> Place {
        while let Some(mount) = self.on.get(&place) {
            place = (*mount, OsString::new());
        }
        place
    }

    fn at(&self, way: &Way, missing: Missing) -> Result<At, Unresolved> {
        self.steps.set(self.steps.get() + 1);
        if self.steps.get() > STEPS {
            return Err(Unresolved::TooComplex);
        }
        let place = self.here(way);
        let (mount, inside) = &place;
        let absent = |why: Unresolved| {
            if self.made.borrow().contains(&place) {
                Ok(At::Made)
            } else if missing == Missing::Make {
                self.made.borrow_mut().insert(place.clone());
                Ok(At::Made)
            } else {
                Err(why)
            }
        };
        let covered = || Unresolved::Covered { path: way.path() };
        let not_found = || Unresolved::NotFound { path: way.path() };
        let opened = match &self.mounts[*mount] {
            What::Empty | What::Unknown if inside.is_empty() => return Ok(At::Made),
            What::Empty => return absent(not_found()),
            What::Unknown => return absent(covered()),
            What::Root(root) => open_inside(*root, inside, true),
            What::Bind { source, recursive } => match self.source(source) {
                Ok(source) => open_inside(source.as_fd(), inside, *recursive),
                // The runtime will fail, unless a hook makes it; what is below it is not known.
                Err(_) => return absent(covered()),
            },
        };
        match opened {
            Ok(file) => {
                let stat = sys::stat(file.as_fd()).map_err(|error| Unresolved::io(way.path(), error))?;
                Ok(At::File(file, stat))
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => absent(not_found()),
                Some(libc::EXDEV) => Err(covered()),
                _ => Err(Unresolved::io(way.path(), error)),
            },
        }
    }

    /// Opened anew each time: a hostile config may name more sources than there are descriptors.
    fn source(&self, source: &Path) -> io::Result<OwnedFd> {
        let runtime = self.runtime.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let file = runtime.look_up(source, 0)?;
        // A part of the container's own root may by then be covered by an earlier mount of the same config.
        if sys::path_of(file.as_fd())?.starts_with(&self.root_path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(file)
    }
}

fn what(mount: &Mount) -> What<'static> {
    let option = |name: &str| mount.options.iter().any(|option| option == name);
    if mount.is_bind() {
        // crun can be told to mount a link itself, or a copy of it.
        let plain = !option("src-nofollow") && !option("copy-symlink") && !option("dest-nofollow");
        return match &mount.source {
            Some(source) if plain && !source.contains('\0') && !source.is_empty() => {
                What::Bind { source: PathBuf::from(source), recursive: !option("bind") || option("rbind") }
            }
            _ => What::Unknown,
        };
    }
    match mount.kind.as_deref() {
        Some("tmpfs") if !option("tmpcopyup") => What::Empty,
        Some("mqueue" | "devpts") => What::Empty,
        _ => What::Unknown,
    }
}

/// Puts the names of `path` before those that are left to go, from the root if it is absolute.
fn push(rest: &mut Vec<OsString>, way: &mut Way, path: &Path) {
    // A slash at the end asks for a directory, which `Path` forgets.
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        rest.push(".".into());
    }
    for component in path.components().rev() {
        match component {
            Component::RootDir => way.0.clear(),
            Component::Prefix(_) => {}
            Component::CurDir => rest.push(".".into()),
            Component::ParentDir => rest.push("..".into()),
            Component::Normal(name) => rest.push(name.to_owned()),
        }
    }
}

/// Opens what is at a path free of links below a directory, or the directory itself.
fn open_inside(root: BorrowedFd<'_>, inside: &OsStr, recursive: bool) -> io::Result<OwnedFd> {
    if inside.is_empty() {
        return root.try_clone_to_owned();
    }
    // Links are followed by the walk alone, so one in the middle is somebody's trick played meanwhile.
    let mut resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    if !recursive {
        // What is mounted below the source will not be there.
        resolve |= libc::RESOLVE_NO_XDEV;
    }
    sys::openat2(root, Path::new(inside), libc::O_PATH | libc::O_NOFOLLOW, resolve)
}

fn link_target(link: &OwnedFd, way: &Way) -> Result<PathBuf, Unresolved> {
    // `/proc/self/exe` and its like lead each process elsewhere, and none where their text says.
    if sys::is_proc(link.as_fd()).map_err(|error| Unresolved::io(way.path(), error))? {
        return Err(Unresolved::Covered { path: way.path() });
    }
    sys::read_link(link.as_fd()).map_err(|error| Unresolved::io(way.path(), error))
}
