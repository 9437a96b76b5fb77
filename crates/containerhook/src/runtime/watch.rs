//! What changes about runtimes while we run.
//!
//! Every place that discovery looked at depends on names in directories: of the file itself, of each link on
//! the way to it, or of the first directory that does not exist yet. Those directories have an inotify watch,
//! and an event about any other name in them costs a comparison. When one of the names changes, the place is
//! looked at again, here and now, so that a binary that an upgrade has just put there is told before its first
//! execution is long past.
//!
//! What inotify does not tell: a file system mounted over a directory, and changes that another machine makes
//! to a network file system.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use super::tree::{Born, Inode, Trail, Want};
use super::{Binary, Discovered, Kind, Place, Warning};

/// Directories with a watch; each costs the kernel about 1 KiB that cannot be swapped.
const WATCHES: usize = 16_384;
/// How often a place is looked at again because a directory on its way has just come.
const ROUNDS: usize = 32;
/// Files that only may become a runtime.
const LIKELY: usize = 1024;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A file that was not there before: to be marked at once, even where an old file of the same inode number
    /// was marked, whose mark has gone with it.
    Found(Binary),
    /// A file beside a runtime, with a name that installers give to what they are about to rename over it, such
    /// as `runc.dpkg-new`. Marked now, it has no unseen moment after the rename. It is not worth a word.
    Likely(Binary),
    /// No place leads to this file any more.
    Gone(Binary),
    /// A configuration came, changed or went: to be answered by a full search.
    Config(PathBuf),
    /// Too much happened to tell: to be answered by a full search.
    All,
}

type Identity = (Inode, Born);

/// Watches over the places of one search.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: OwnedFd,
    dirs: HashMap<i32, Dir>,
    /// Watches by the directory's path as we open it.
    paths: HashMap<PathBuf, i32>,
    places: Vec<Followed>,
    /// By how many places each file is reached.
    known: HashMap<Identity, usize>,
    likely: HashSet<Identity>,
    warnings: Vec<Warning>,
    exhausted: bool,
    /// What the last call of [`Watch::follow`] began to watch.
    fresh: HashSet<i32>,
}

#[derive(Debug, Default)]
struct Dir {
    paths: BTreeSet<PathBuf>,
    /// By the place that wants them.
    wants: BTreeMap<usize, BTreeSet<Want>>,
}

#[derive(Debug)]
struct Followed {
    place: Place,
    binaries: Vec<Binary>,
    watches: BTreeSet<i32>,
}

impl Watch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// `EMFILE` where `fs.inotify.max_user_instances` is exhausted.
    pub(crate) fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|error| {
            let error = io::Error::from(error);
            let remedy = "raise it: sysctl fs.inotify.max_user_instances=1024";
            match error.raw_os_error() {
                Some(e) if e == Errno::MFILE.raw_os_error() => {
                    io::Error::new(error.kind(), format!("inotify: {error}; {remedy}"))
                }
                _ => error,
            }
        })?;
        Ok(Self {
            inotify,
            dirs: HashMap::new(),
            paths: HashMap::new(),
            places: Vec::new(),
            known: HashMap::new(),
            likely: HashSet::new(),
            warnings: Vec::new(),
            exhausted: false,
            fresh: HashSet::new(),
        })
    }

    /// Readable when [`Watch::drain`] has something to do.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Watches the places of a search, instead of those of an earlier one. What changed between the search and
    /// now is returned: [`Change::All`] where a configuration may have, because it was not watched before.
    pub(crate) fn follow(&mut self, discovered: &Discovered) -> Vec<Change> {
        let before: HashSet<Identity> = discovered.binaries.iter().map(Binary::identity).collect();
        let old: HashSet<i32> = self.dirs.keys().copied().collect();
        for dir in self.dirs.values_mut() {
            dir.wants.clear();
        }
        self.places.clear();
        self.known.clear();
        self.exhausted = false;
        let mut changes = Vec::new();
        let mut unread = false;
        self.fresh.clear();
        for place in &discovered.places {
            let at = self.places.len();
            let followed = Followed { place: place.clone(), binaries: Vec::new(), watches: BTreeSet::new() };
            self.places.push(followed);
            let found = self.look(at);
            unread |= matches!(place.kind, Kind::Config(_))
                && self.places[at].watches.iter().any(|wd| self.fresh.contains(wd));
            for binary in found {
                if !before.contains(&binary.identity()) {
                    changes.push(Change::Found(binary));
                }
            }
        }
        for wd in old {
            self.unwatch_idle(wd);
        }
        if unread {
            changes.push(Change::All);
        }
        changes
    }

    /// What could not be watched, since the last call.
    pub(crate) fn warnings(&mut self) -> Vec<Warning> {
        std::mem::take(&mut self.warnings)
    }

    /// Reads what happened, and looks again where it matters.
    pub(crate) fn drain(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut touched = BTreeSet::new();
        let mut configs = BTreeSet::new();
        let mut buf = [MaybeUninit::uninit(); 16 * 1024];
        // A writer that never rests must not keep us here.
        for _ in 0..64 {
            let events = self.read(&mut buf);
            if events.is_empty() {
                break;
            }
            for event in events {
                if event.what.contains(ReadFlags::QUEUE_OVERFLOW) {
                    return vec![Change::All];
                }
                self.event(&event, &mut touched, &mut configs, &mut changes);
            }
        }
        let before: BTreeMap<Identity, Binary> = touched
            .iter()
            .flat_map(|at| &self.places[*at].binaries)
            .map(|b| (b.identity(), b.clone()))
            .collect();
        let was_known: HashSet<Identity> = self.known.keys().copied().collect();
        let mut found = BTreeMap::new();
        for at in touched {
            for binary in self.look(at) {
                if !was_known.contains(&binary.identity()) {
                    found.entry(binary.identity()).or_insert(binary);
                }
            }
        }
        changes.extend(found.into_values().map(Change::Found));
        changes.extend(
            before.into_iter().filter(|(i, _)| !self.known.contains_key(i)).map(|(_, b)| Change::Gone(b)),
        );
        changes.extend(configs.into_iter().map(Change::Config));
        changes
    }

    fn read(&self, buf: &mut [MaybeUninit<u8>]) -> Vec<Event> {
        let mut reader = inotify::Reader::new(&self.inotify, buf);
        let mut events = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => events.push(Event {
                    wd: event.wd(),
                    what: event.events(),
                    name: event.file_name().map(|n| OsStr::from_bytes(n.to_bytes()).to_owned()),
                }),
                Err(Errno::INTR) => continue,
                Err(_) => return events,
            }
            if reader.is_buffer_empty() {
                return events;
            }
        }
    }

    fn event(
        &mut self,
        event: &Event,
        touched: &mut BTreeSet<usize>,
        configs: &mut BTreeSet<PathBuf>,
        changes: &mut Vec<Change>,
    ) {
        let Some(dir) = self.dirs.get(&event.wd) else { return };
        let itself = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT | ReadFlags::IGNORED;
        let about_itself = event.what.intersects(itself);
        let mut likely = None;
        for (at, wants) in &dir.wants {
            let place = &self.places[*at].place;
            let wanted = match &event.name {
                _ if about_itself => true,
                Some(name) => wants.iter().any(|w| w.matches(name)),
                None => false,
            };
            if wanted {
                touched.insert(*at);
                if matches!(place.kind, Kind::Config(_)) {
                    let dir = dir.paths.first().cloned().unwrap_or_default();
                    configs.insert(event.name.as_ref().map_or(dir.clone(), |name| dir.join(name)));
                }
            } else if let (None, Some(name)) = (&likely, &event.name) {
                likely = becomes(place, wants, name).map(|as_name| (place.clone(), as_name, name.clone()));
            }
        }
        let dirs = dir.paths.clone();
        if about_itself {
            self.forget(event.wd, event.what.contains(ReadFlags::IGNORED));
        }
        if let Some((place, as_name, name)) = likely {
            for dir in &dirs {
                self.likely(&place, &as_name, &dir.join(&name), changes);
            }
        }
    }

    /// The directory is not where it was: the next look has to watch what is there now.
    fn forget(&mut self, wd: i32, already_removed: bool) {
        if !already_removed {
            let _ = inotify::remove_watch(&self.inotify, wd);
        }
        if let Some(dir) = self.dirs.remove(&wd) {
            for path in dir.paths {
                self.paths.remove(&path);
            }
            for at in dir.wants.into_keys() {
                self.places[at].watches.remove(&wd);
            }
        }
    }

    fn likely(&mut self, place: &Place, as_name: &str, path: &Path, changes: &mut Vec<Change>) {
        let Ok(inside) = path.strip_prefix(place.realm.root.host()) else { return };
        let beside =
            Place { route: super::tree::Route::exact(&Path::new("/").join(inside)), ..place.clone() };
        for binary in beside.find() {
            let new = !self.known.contains_key(&binary.identity()) && self.likely.len() < LIKELY;
            if new && self.likely.insert(binary.identity()) {
                changes.push(Change::Likely(Binary { name: as_name.to_owned(), ..binary }));
            }
        }
    }

    /// Looks at a place, watches what it depends on, and looks again for as long as that brings new watches:
    /// what came before a watch did is not told by it.
    fn look(&mut self, at: usize) -> Vec<Binary> {
        for binary in std::mem::take(&mut self.places[at].binaries) {
            if let Some(count) = self.known.get_mut(&binary.identity()) {
                *count -= 1;
                if *count == 0 {
                    self.known.remove(&binary.identity());
                }
            }
        }
        let mut found = Vec::new();
        for _ in 0..ROUNDS {
            let (binaries, trail) = self.places[at].place.look();
            found = binaries;
            if !self.want(at, trail) {
                break;
            }
        }
        for binary in &found {
            self.likely.remove(&binary.identity());
            *self.known.entry(binary.identity()).or_default() += 1;
        }
        self.places[at].binaries.clone_from(&found);
        found
    }

    /// Sets what a place wants, and says whether a directory is watched that was not before.
    fn want(&mut self, at: usize, trail: Trail) -> bool {
        let old = std::mem::take(&mut self.places[at].watches);
        for wd in &old {
            if let Some(dir) = self.dirs.get_mut(wd) {
                dir.wants.remove(&at);
            }
        }
        let mut any_new = false;
        for (dir, wants) in trail.dirs {
            let path = self.places[at].place.realm.root.host_path(&dir);
            let Some((wd, new)) = self.watch(&path) else { continue };
            any_new |= new;
            if new {
                self.fresh.insert(wd);
            }
            let watched = self.dirs.entry(wd).or_default();
            watched.paths.insert(path);
            watched.wants.entry(at).or_default().extend(wants);
            self.places[at].watches.insert(wd);
        }
        for wd in old {
            self.unwatch_idle(wd);
        }
        any_new
    }

    fn watch(&mut self, path: &Path) -> Option<(i32, bool)> {
        let flags = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            // Made executable after it was written, or written in place.
            | WatchFlags::ATTRIB
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR
            | WatchFlags::DONT_FOLLOW
            | WatchFlags::EXCL_UNLINK;
        let old = self.paths.get(path).copied();
        let full = old.is_none() && self.dirs.len() >= WATCHES;
        let added = if full { Err(Errno::NOSPC) } else { inotify::add_watch(&self.inotify, path, flags) };
        match added {
            // The kernel gives the same number for the same inode, and so tells whether this is another
            // directory by now, of the same path.
            Ok(wd) => {
                if old == Some(wd) {
                    return Some((wd, false));
                }
                if let Some(dir) = old.and_then(|old| self.dirs.get_mut(&old)) {
                    dir.paths.remove(path);
                }
                self.paths.insert(path.to_path_buf(), wd);
                Some((wd, true))
            }
            Err(Errno::NOSPC) => {
                if !std::mem::replace(&mut self.exhausted, true) {
                    let remedy = if full {
                        format!("more than {WATCHES} directories matter")
                    } else {
                        "fs.inotify.max_user_watches is exhausted; raise it: \
                         sysctl fs.inotify.max_user_watches=524288"
                            .to_owned()
                    };
                    let message = format!("changes of runtimes here and elsewhere are not noticed: {remedy}");
                    self.warnings.push(Warning { file: path.to_path_buf(), line: None, message });
                }
                None
            }
            // Gone again, or not ours to read: a change above it is told by the directory above.
            Err(_) => None,
        }
    }

    fn unwatch_idle(&mut self, wd: i32) {
        if self.dirs.get(&wd).is_some_and(|dir| dir.wants.is_empty()) {
            self.forget(wd, false);
        }
    }
}

struct Event {
    wd: i32,
    what: ReadFlags,
    name: Option<OsString>,
}

/// The name that a file may be about to get: `runc` for `runc.dpkg-new`, `.runc.x1Yz` or `runc;5f3a`.
fn becomes(place: &Place, wants: &BTreeSet<Want>, name: &OsStr) -> Option<String> {
    if !matches!(place.kind, Kind::Binary(_)) {
        return None;
    }
    let name = name.to_str()?;
    wants.iter().find_map(|want| match want {
        Want::Name(wanted) => {
            let wanted = wanted.to_str().filter(|w| w.len() >= 4)?;
            name.contains(wanted).then(|| wanted.to_owned())
        }
        Want::Glob(_) => None,
    })
}

#[cfg(test)]
mod tests;
