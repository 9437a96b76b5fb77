//! Paths as somebody else sees them: walked under a root of their own, symbolic links included.
//!
//! The kernel's `RESOLVE_IN_ROOT` gives the end of such a walk, but not its way. Which directories and names
//! the way depends on is what [`Trail`] keeps, so that a change of any of them can be noticed. The walk goes
//! from descriptor to descriptor, so that a link that flips meanwhile cannot lead it out of the root.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};

/// As many links as the kernel follows before it says ELOOP.
const LINKS: u8 = 40;
/// What one pattern may match, and what one directory may hold, before the rest is passed by.
const MATCHES: usize = 1024;
const ENTRIES: usize = 200_000;

/// A directory that somebody sees as `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Root {
    host: Arc<Path>,
    /// Directories inside that are not entered: they may never answer.
    shunned: Arc<[PathBuf]>,
}

impl Root {
    pub(crate) fn new(host: impl AsRef<Path>) -> Self {
        Self { host: host.as_ref().into(), shunned: Arc::new([]) }
    }

    pub(crate) fn shunning(self, shunned: Vec<PathBuf>) -> Self {
        Self { shunned: shunned.into(), ..self }
    }

    /// Where this root lies for us.
    pub(crate) fn host(&self) -> &Path {
        &self.host
    }

    /// A path inside, as we would open it.
    pub(crate) fn host_path(&self, inside: &Path) -> PathBuf {
        match inside.strip_prefix("/") {
            Ok(relative) if relative.as_os_str().is_empty() => self.host.to_path_buf(),
            Ok(relative) => self.host.join(relative),
            Err(_) => self.host.join(inside),
        }
    }

    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&*self.host, flags, Mode::empty())?)
    }

    /// Everything that `route` leads to, and what that depends on.
    pub(crate) fn walk(&self, route: &Route) -> Walked {
        let mut walker = Walker { root: self, walked: Walked::default() };
        if let Ok(fd) = self.open() {
            let top = Rc::new(Dir { fd, path: PathBuf::from("/") });
            walker.go(vec![top], route.steps.iter().cloned().collect(), PathBuf::from("/"), 0);
        }
        walker.walked
    }
}

/// A path to walk, with alternatives where it has patterns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Route {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Step {
    Up { own: bool },
    Name { name: OsString, own: bool },
    AnyOf(Arc<[OsString]>),
    Glob(Arc<glob::Pattern>),
}

impl Route {
    /// Exactly this path.
    pub(crate) fn exact(path: &Path) -> Self {
        Self { steps: steps(path, true).collect() }
    }

    /// A path whose components may have shell patterns. A component that is not a valid pattern stands for itself.
    pub(crate) fn pattern(path: &Path) -> Self {
        let special = |name: &OsStr| name.as_bytes().iter().any(|b| b"*?[".contains(b));
        let steps = steps(path, true).map(|step| match step {
            Step::Name { name, own } if special(&name) => {
                match name.to_str().and_then(|s| glob::Pattern::new(s).ok()) {
                    Some(pattern) => Step::Glob(Arc::new(pattern)),
                    None => Step::Name { name, own },
                }
            }
            other => other,
        });
        Self { steps: steps.collect() }
    }

    /// Any of `names` at the end of this route.
    pub(crate) fn any_of(mut self, names: Arc<[OsString]>) -> Self {
        self.steps.push(Step::AnyOf(names));
        self
    }
}

fn steps(path: &Path, own: bool) -> impl Iterator<Item = Step> + '_ {
    path.components().filter_map(move |c| match c {
        Component::ParentDir => Some(Step::Up { own }),
        Component::Normal(name) => Some(Step::Name { name: name.to_owned(), own }),
        _ => None,
    })
}

/// The names on which a walk depended: a change of any of them, in its directory, may lead elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trail {
    /// By directory, as seen from the root, free of links.
    pub(crate) dirs: BTreeMap<PathBuf, BTreeSet<Want>>,
}

impl Trail {
    fn add(&mut self, dir: &Path, want: Want) {
        match self.dirs.get_mut(dir) {
            Some(wants) => drop(wants.insert(want)),
            None => drop(self.dirs.insert(dir.to_path_buf(), BTreeSet::from([want]))),
        }
    }
}

/// A name that matters in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Want {
    Name(OsString),
    Glob(Arc<glob::Pattern>),
}

impl Want {
    pub(crate) fn matches(&self, name: &OsStr) -> bool {
        match self {
            Want::Name(wanted) => wanted == name,
            Want::Glob(pattern) => name.to_str().is_some_and(|s| matches(pattern, s)),
        }
    }
}

/// As a shell does: a leading dot only by a dot.
fn matches(pattern: &glob::Pattern, name: &str) -> bool {
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
    pattern.matches_with(name, options)
}

/// Where a walk ended.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    pub(crate) found: Vec<Found>,
    pub(crate) trail: Trail,
}

/// Something that is there.
#[derive(Debug)]
pub(crate) struct Found {
    /// The path that was asked for, patterns replaced by what they matched.
    pub(crate) sought: PathBuf,
    /// The same without any link.
    pub(crate) path: PathBuf,
    /// O_PATH: to be closed soon, because it keeps the file system from being unmounted.
    pub(crate) fd: OwnedFd,
    pub(crate) stat: Stat,
}

/// What is needed of a file's status.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    pub(crate) inode: Inode,
    pub(crate) file_type: FileType,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) born: Born,
    /// Seconds since 1970.
    pub(crate) modified: i64,
}

/// What a mark is set on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Inode {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

/// What tells a file from the next one that gets its inode number: file systems give numbers out again at once,
/// and a mark goes with the file, not with the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Born {
    seconds: i64,
    nanoseconds: u32,
}

pub(crate) fn stat(fd: &OwnedFd) -> io::Result<Stat> {
    // What the kernel has in memory is enough, and a network file system is not asked.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let s = rustix::fs::statx(fd, c"", flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
    // Where no time of birth is kept, the last change says "another" too often, which costs a mark set twice.
    let has_birth = s.stx_mask & StatxFlags::BTIME.bits() != 0;
    let born = if has_birth { s.stx_btime } else { s.stx_ctime };
    Ok(Stat {
        inode: Inode { dev: rustix::fs::makedev(s.stx_dev_major, s.stx_dev_minor), ino: s.stx_ino },
        file_type: FileType::from_raw_mode(u32::from(s.stx_mode)),
        mode: u32::from(s.stx_mode) & 0o7777,
        uid: s.stx_uid,
        born: Born { seconds: born.tv_sec, nanoseconds: born.tv_nsec },
        modified: s.stx_mtime.tv_sec,
    })
}

struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

struct Walker<'a> {
    root: &'a Root,
    walked: Walked,
}

impl Walker<'_> {
    fn go(&mut self, mut stack: Vec<Rc<Dir>>, mut todo: VecDeque<Step>, mut sought: PathBuf, mut links: u8) {
        while let Some(step) = todo.pop_front() {
            let Some(here) = stack.last().cloned() else { return };
            let name = match step {
                Step::Up { own } => {
                    if own {
                        sought.push("..");
                    }
                    if stack.len() > 1 {
                        stack.pop();
                    }
                    continue;
                }
                Step::Name { name, own } => {
                    if own {
                        sought.push(&name);
                    }
                    name
                }
                Step::AnyOf(names) => {
                    for name in names.iter() {
                        self.branch(&stack, &todo, name.clone(), &sought, links);
                    }
                    return;
                }
                Step::Glob(pattern) => {
                    self.walked.trail.add(&here.path, Want::Glob(Arc::clone(&pattern)));
                    for name in list(&here.fd, MATCHES, |name| matches(&pattern, name)) {
                        self.branch(&stack, &todo, name, &sought, links);
                    }
                    return;
                }
            };
            self.walked.trail.add(&here.path, Want::Name(name.clone()));
            let path = here.path.join(&name);
            if self.root.shunned.contains(&path) {
                return;
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let Ok(fd) = rustix::fs::openat(&here.fd, &*name, flags, Mode::empty()) else { return };
            let Ok(stat) = stat(&fd) else { return };
            match stat.file_type {
                FileType::Symlink => {
                    links += 1;
                    if links > LINKS {
                        return;
                    }
                    let Ok(target) = rustix::fs::readlinkat(&fd, c"", Vec::new()) else { return };
                    let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                    if target.is_absolute() {
                        stack.truncate(1);
                    }
                    for step in steps(&target, false).collect::<Vec<_>>().into_iter().rev() {
                        todo.push_front(step);
                    }
                }
                FileType::Directory => stack.push(Rc::new(Dir { fd, path })),
                _ if todo.is_empty() => return self.found(Found { sought, path, fd, stat }),
                _ => return,
            }
        }
        let Some(end) = stack.pop() else { return };
        let Ok(stat) = stat(&end.fd) else { return };
        let Ok(fd) = end.fd.try_clone() else { return };
        self.found(Found { sought, path: end.path.clone(), fd, stat });
    }

    fn branch(&mut self, stack: &[Rc<Dir>], todo: &VecDeque<Step>, name: OsString, sought: &Path, links: u8) {
        if self.walked.found.len() >= MATCHES {
            return;
        }
        let mut todo = todo.clone();
        todo.push_front(Step::Name { name, own: true });
        self.go(stack.to_vec(), todo, sought.to_path_buf(), links);
    }

    fn found(&mut self, found: Found) {
        self.walked.found.push(found);
    }
}

/// The names in a directory that please, in order; bounded.
pub(crate) fn list(dir: &OwnedFd, max: usize, pleases: impl Fn(&str) -> bool) -> Vec<OsString> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::openat(dir, c".", flags, Mode::empty()) else { return Vec::new() };
    let Ok(entries) = rustix::fs::Dir::new(fd) else { return Vec::new() };
    let mut names: Vec<OsString> = entries
        .take(ENTRIES)
        .map_while(Result::ok)
        .filter(|e| !matches!(e.file_name().to_bytes(), b"." | b".."))
        .filter(|e| e.file_name().to_str().is_ok_and(&pleases))
        .take(max)
        .map(|e| OsStr::from_bytes(e.file_name().to_bytes()).to_owned())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn tree() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = Root::new(dir.path());
        (dir, root)
    }

    fn paths(walked: &Walked) -> Vec<&str> {
        walked.found.iter().map(|f| f.path.to_str().unwrap()).collect()
    }

    #[test]
    fn links_stay_under_the_root() {
        let (dir, root) = tree();
        let d = dir.path();
        fs::create_dir_all(d.join("usr/bin")).unwrap();
        fs::write(d.join("usr/bin/runc"), "").unwrap();
        symlink("/usr/bin/runc", d.join("absolute")).unwrap();
        symlink("../../../../../usr/bin/runc", d.join("dots")).unwrap();
        symlink("usr/bin", d.join("bin")).unwrap();
        symlink("/etc/passwd", d.join("outside")).unwrap();
        symlink("loop", d.join("loop")).unwrap();
        for name in ["absolute", "dots", "bin/runc", "/bin/../bin/./runc", "bin/../bin/runc", "../../dots"] {
            let walked = root.walk(&Route::exact(Path::new(name)));
            assert_eq!(paths(&walked), ["/usr/bin/runc"], "{name}");
        }
        for name in ["outside", "loop", "absolute/x", "bin/runc/.."] {
            assert!(root.walk(&Route::exact(Path::new(name))).found.is_empty(), "{name}");
        }
    }

    #[test]
    fn the_trail_names_every_directory_on_the_way() {
        let (dir, root) = tree();
        let d = dir.path();
        fs::create_dir_all(d.join("data/1")).unwrap();
        symlink("/data/1", d.join("current")).unwrap();
        let walked = root.walk(&Route::exact(Path::new("/current/bin/runc")));
        assert!(walked.found.is_empty());
        let trail: Vec<_> =
            walked.trail.dirs.iter().map(|(dir, wants)| (dir.to_str().unwrap(), wants.len())).collect();
        assert_eq!(trail, [("/", 2), ("/data", 1), ("/data/1", 1)]);
        assert!(walked.trail.dirs[Path::new("/data/1")].contains(&Want::Name("bin".into())));
    }

    #[test]
    fn patterns_match_each_component() {
        let (dir, root) = tree();
        let d = dir.path();
        for name in ["data/a/bin/runc", "data/b/bin/runc", "data/b/bin/crun", "data/.c/bin/runc", "data/x"] {
            fs::create_dir_all(d.join(name).parent().unwrap()).unwrap();
            fs::write(d.join(name), "").unwrap();
        }
        let route = Route::pattern(Path::new("/data/*/bin")).any_of(Arc::new(["runc".into(), "crun".into()]));
        let walked = root.walk(&route);
        assert_eq!(paths(&walked), ["/data/a/bin/runc", "/data/b/bin/runc", "/data/b/bin/crun"]);
        assert_eq!(walked.found[2].sought, Path::new("/data/b/bin/crun"));
        assert!(walked.trail.dirs[Path::new("/data")].iter().any(|w| w.matches(OsStr::new("new"))));
    }

    #[test]
    fn what_is_shunned_is_not_entered() {
        let (dir, root) = tree();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let root = root.shunning(vec!["/a".into()]);
        assert!(root.walk(&Route::exact(Path::new("/a/b"))).found.is_empty());
    }
}
