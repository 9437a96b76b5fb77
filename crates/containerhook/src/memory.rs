//! What outlives the listener: a small file that says which containers run, so that the next listener can tell the ends
//! that nobody saw.
//!
//! The engine sends what has changed, and never waits; a thread of its side writes the whole file anew, at most twenty
//! times a second, and puts it in the old one's place by a rename. An end is taken out of the file a moment after it was
//! told: a listener that is killed in between has told it, and the next one tells it again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::{Container, Runtime};
use crate::exit::Process;
use crate::lifecycle::Key;
use crate::metadata::{Engine, Kubernetes};
use crate::outlet::{Inlet, Level};
use crate::proc::{HostProc, Stat};

/// Of the file's form. One of another version is not read.
const VERSION: u32 = 1;

/// Containers that are remembered; of more the youngest are not.
const MOST: usize = 16_384;

/// The file is not read beyond this.
const MOST_BYTES: u64 = 64 << 20;

const PAUSE: Duration = Duration::from_millis(50);

/// A container that runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Known {
    pid: i32,
    start_time: u64,
    id: String,
    name: Option<String>,
    root: Option<String>,
    uid: u32,
    state_root: Option<String>,
    bundle: Option<String>,
    runtime: Option<(String, String)>,
    engine: Option<Engine>,
    image: Option<String>,
    kubernetes: Option<Kubernetes>,
    cgroup: Option<String>,
    rootless: bool,
}

#[derive(Serialize, Deserialize)]
struct Contents<K> {
    version: u32,
    /// Start times count from a boot.
    boot: String,
    containers: Vec<K>,
}

impl Known {
    pub(crate) fn new(process: Process, key: Option<&Key>, container: &Container) -> Known {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Known {
            pid: process.pid,
            start_time: process.start_time,
            id: container.id.clone(),
            name: container.name.clone(),
            root: key.map(|key| text(&key.root)),
            uid: container.owner_uid,
            state_root: container.state_root.as_deref().map(text),
            bundle: container.bundle.as_deref().map(text),
            runtime: container.runtime.as_ref().map(|runtime| (runtime.name.clone(), text(&runtime.path))),
            engine: container.engine,
            image: container.image.clone(),
            kubernetes: container.kubernetes.clone(),
            cgroup: container.cgroup.clone(),
            rootless: container.rootless,
        }
    }

    fn process(&self) -> Process {
        Process { pid: self.pid, start_time: self.start_time }
    }

    /// What was remembered, in the engine's terms.
    pub(crate) fn restore(self, proc: &HostProc) -> (Key, Container, Process) {
        let process = self.process();
        // Found by others, it has no key: it gets one that no runtime has.
        let key = Key::new(self.root.unwrap_or_default().into(), self.id.clone().into(), self.uid);
        let container = Container {
            id: self.id,
            name: self.name,
            pid: u32::try_from(self.pid).ok(),
            bundle: self.bundle.map(PathBuf::from),
            runtime: self.runtime.map(|(name, path)| Runtime::new(name, path)),
            state_root: self.state_root.map(PathBuf::from),
            engine: self.engine,
            rootless: self.rootless,
            owner_uid: self.uid,
            image: self.image,
            kubernetes: self.kubernetes,
            cgroup: self.cgroup,
            proc: proc.clone(),
            ..Container::default()
        };
        (key, container, process)
    }
}

/// What an earlier listener has remembered.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    pub(crate) running: Vec<Known>,
    pub(crate) ended: Vec<Known>,
}

/// Reads the file; that there is none is nothing remembered.
pub(crate) fn recall(path: &Path, proc: &HostProc) -> io::Result<Remembered> {
    let mut remembered = Remembered::default();
    let Some(contents) = read(path)? else { return Ok(remembered) };
    let same_boot = contents.boot == boot_id();
    for known in contents.containers.into_iter().take(MOST) {
        let lives = |stat: Stat| stat.start_time == known.start_time && !matches!(stat.state, b'Z' | b'X');
        if same_boot && proc.stat(known.pid).is_ok_and(lives) {
            remembered.running.push(known);
        } else {
            remembered.ended.push(known);
        }
    }
    Ok(remembered)
}

fn read(path: &Path) -> io::Result<Option<Contents<Known>>> {
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match file {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let metadata = file.metadata()?;
    let us = rustix::process::geteuid().as_raw();
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    if !metadata.is_file() || ![0, us].contains(&metadata.uid()) || metadata.mode() & 0o022 != 0 {
        return Err(invalid("others can write it, or it is no file"));
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(invalid("it is too large"));
    }
    let contents: Contents<Known> = serde_json::from_slice(&bytes)?;
    if contents.version != VERSION {
        return Err(invalid(&format!("it is of version {}", contents.version)));
    }
    Ok(Some(contents))
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

enum News {
    Runs(Box<Known>),
    Ended(Process),
}

/// Keeps the file.
pub(crate) struct Memory {
    sender: Option<Sender<News>>,
    thread: Option<JoinHandle<()>>,
}

impl Memory {
    /// It begins with nothing; what is there still is told to it again.
    pub(crate) fn start(path: PathBuf, log: Inlet) -> io::Result<Memory> {
        let (sender, news) = mpsc::channel();
        let thread =
            thread::Builder::new().name("ch-memory".into()).spawn(move || keep(&path, &news, &log))?;
        Ok(Memory { sender: Some(sender), thread: Some(thread) })
    }

    pub(crate) fn runs(&self, known: Known) {
        self.send(News::Runs(Box::new(known)));
    }

    /// One of whatever is watched.
    pub(crate) fn ended(&self, process: Process) {
        self.send(News::Ended(process));
    }

    fn send(&self, news: News) {
        if let Some(sender) = &self.sender {
            let _ = sender.send(news);
        }
    }
}

impl Drop for Memory {
    /// The last word is written.
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn keep(path: &Path, news: &Receiver<News>, log: &Inlet) {
    let mut known: BTreeMap<Process, Known> = BTreeMap::new();
    let mut failed = false;
    let mut unwritten = false;
    let boot = boot_id();
    loop {
        let first = news.recv();
        let over = first.is_err();
        for news in first.into_iter().chain(news.try_iter()) {
            match news {
                News::Runs(one) if known.len() < MOST || known.contains_key(&one.process()) => {
                    known.insert(one.process(), *one);
                    unwritten = true;
                }
                News::Runs(_) => {}
                News::Ended(process) => unwritten |= known.remove(&process).is_some(),
            }
        }
        if unwritten {
            let containers: Vec<&Known> = known.values().collect();
            match write(path, &Contents { version: VERSION, boot: boot.clone(), containers }) {
                Ok(()) => (failed, unwritten) = (false, false),
                Err(error) if !failed => {
                    failed = true;
                    let line = format!("what runs cannot be written to {}: {error}", path.display());
                    log.log(Level::Warn, line);
                }
                Err(_) => {}
            }
        }
        if over {
            return;
        }
        thread::sleep(PAUSE);
    }
}

fn write(path: &Path, contents: &Contents<&Known>) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    // One that a killed listener left is in the way of `create_new`, which follows no link.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(contents)?)?;
    file.sync_data()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(pid: i32, start_time: u64) -> Known {
        let container = Container {
            id: format!("c{pid}"),
            engine: Some(Engine::Docker),
            runtime: Some(Runtime::new("runc", "/runc")),
            ..Container::default()
        };
        let key = Key::new("/run/runc".into(), container.id.clone().into(), 0);
        Known::new(Process { pid, start_time }, Some(&key), &container)
    }

    fn save(path: &Path, boot: String, containers: &[Known]) {
        let containers = containers.iter().collect();
        write(path, &Contents { version: VERSION, boot, containers }).unwrap();
    }

    #[test]
    fn what_runs_and_what_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let nothing = recall(&path, &HostProc::default()).unwrap();
        assert!(nothing.running.is_empty() && nothing.ended.is_empty());
        let me = std::process::id().cast_signed();
        let lives = known(me, HostProc::default().stat(me).unwrap().start_time);
        let ended = known(me, 1);
        save(&path, boot_id(), &[lives.clone(), ended.clone()]);
        let remembered = recall(&path, &HostProc::default()).unwrap();
        assert_eq!((&remembered.running, &remembered.ended), (&vec![lives.clone()], &vec![ended]));
        assert_eq!(remembered.running[0].clone().restore(&HostProc::default()).1.id, lives.id);
        save(&path, "another boot".into(), std::slice::from_ref(&lives));
        assert_eq!(recall(&path, &HostProc::default()).unwrap().ended, [lives]);
    }

    #[test]
    fn a_file_that_is_not_ours_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        for text in ["", "{", "[]", r#"{"version":2,"boot":"","containers":[]}"#, r#"{"version":1}"#] {
            fs::write(&path, text).unwrap();
            assert!(recall(&path, &HostProc::default()).is_err(), "{text:?}");
        }
        save(&path, boot_id(), &[]);
        assert!(recall(&path, &HostProc::default()).is_ok());
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        assert!(recall(&path, &HostProc::default()).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(recall(&link, &HostProc::default()).is_err());
        assert!(recall(dir.path(), &HostProc::default()).is_err());
    }
}
