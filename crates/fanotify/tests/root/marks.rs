//! Marks are guards, counted per inode, without a descriptor.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use fanotify::{ErrorKind, Group, InodeId};

use crate::harness::{
    Program, Running, Watchdog, assert_unheld, can_run, held, skip, while_nothing_is_written,
};

fn assert_held(group: &Group, program: &Path) {
    let running = Running::exec(program);
    held(group).allow().expect("allow");
    assert_eq!(running.end(), 0);
}

fn o_path(path: &Path) -> File {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).expect("open")
}

#[test]
fn marks_of_one_inode_are_counted() {
    if !can_run("marks_of_one_inode_are_counted") {
        return;
    }
    let _watchdog = Watchdog::new();
    let program = Program::new();
    let other_name = program.folder.path().join("hard-link");
    fs::hard_link(&program.path, &other_name).expect("link");
    let symlink = program.folder.path().join("symlink");
    std::os::unix::fs::symlink("hard-link", &symlink).expect("symlink");
    let group = Group::new().expect("group");

    let first = group.mark(&program.path).expect("mark");
    let second = group.mark(&symlink).expect("mark");
    let third = group.mark_fd(o_path(&other_name)).expect("mark");
    assert_eq!((first.inode(), second.inode()), (third.inode(), third.inode()));
    drop(first);
    assert_held(&group, &program.path);
    second.remove().expect("remove");
    assert_held(&group, &program.path);
    drop(third);
    assert_unheld(&group, &program.path);
    let _again = group.mark(&program.path).expect("mark");
    assert_held(&group, &other_name);
}

#[test]
fn a_mark_is_removed_by_the_event_of_its_own_file() {
    if !can_run("a_mark_is_removed_by_the_event_of_its_own_file") {
        return;
    }
    let _watchdog = Watchdog::new();
    let program = Program::new();
    let group = Group::new().expect("group");
    // The path leads nowhere, so that only the descriptor can do it.
    let mark = group.mark(&program.path).expect("mark").with_path("/nowhere");
    let running = program.start();
    let event = held(&group);
    mark.remove_by(event.file()).expect("remove");
    event.allow().expect("allow");
    assert_eq!(running.end(), 0);
    assert_unheld(&group, &program.path);
}

#[test]
fn a_descriptor_of_another_file_removes_no_mark_of_that_file() {
    if !can_run("a_descriptor_of_another_file_removes_no_mark_of_that_file") {
        return;
    }
    let _watchdog = Watchdog::new();
    let (one, other) = (Program::new(), Program::new());
    let group = Group::new().expect("group");
    let mark = group.mark(&one.path).expect("mark");
    let _other_mark = group.mark(&other.path).expect("mark");
    let error = mark.remove_by(File::open(&other.path).expect("open")).expect_err("another file");
    assert_eq!(error.kind(), ErrorKind::Stale);
    assert_unheld(&group, &one.path);
    assert_held(&group, &other.path);
}

#[test]
fn a_mark_whose_file_was_replaced_leaves_the_new_one_alone() {
    if !can_run("a_mark_whose_file_was_replaced_leaves_the_new_one_alone") {
        return;
    }
    let _watchdog = Watchdog::new();
    let (program, new) = (Program::new(), Program::new());
    let group = Group::new().expect("group");
    let old_mark = group.mark(&program.path).expect("mark");
    fs::rename(&new.path, &program.path).expect("replace");
    assert_unheld(&group, &program.path);

    let new_mark = group.mark(&program.path).expect("mark");
    assert_ne!(old_mark.inode(), new_mark.inode());
    drop(old_mark);
    assert_held(&group, &program.path);
    drop(new_mark);
    assert_unheld(&group, &program.path);
}

#[test]
fn removing_says_where_the_path_has_gone() {
    if !can_run("removing_says_where_the_path_has_gone") {
        return;
    }
    let _watchdog = Watchdog::new();
    let (program, new) = (Program::new(), Program::new());
    let group = Group::new().expect("group");
    let (first, second) = (group.mark(&program.path).expect("mark"), group.mark(&new.path).expect("mark"));
    fs::rename(&new.path, &program.path).expect("replace");
    assert_eq!(first.remove().expect_err("replaced").kind(), ErrorKind::Stale);
    let error = second.remove().expect_err("renamed");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.path(), Some(new.path.as_path()));
    assert!(error.to_string().contains("remove the mark"), "{error}");
}

#[test]
fn what_is_no_regular_file_is_refused() {
    if !can_run("what_is_no_regular_file_is_refused") {
        return;
    }
    let group = Group::new().expect("group");
    let folder = tempfile::tempdir().expect("a temporary folder");
    for path in [folder.path(), Path::new("/dev/null")] {
        assert_eq!(group.mark(path).expect_err("no file").kind(), ErrorKind::NotAFile, "{path:?}");
    }
    let missing = group.mark(folder.path().join("missing")).expect_err("missing");
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(missing.to_string().contains("missing"), "{missing}");
    // procfs does not permit permission events.
    assert_eq!(group.mark("/proc/self/status").expect_err("procfs").kind(), ErrorKind::Unsupported);
}

/// Numbers of one table mean other files in another, and `/proc/self/fd` is that of the main thread.
#[test]
fn an_o_path_descriptor_of_a_private_table_can_be_marked() {
    if !can_run("an_o_path_descriptor_of_a_private_table_can_be_marked") {
        return;
    }
    let _watchdog = Watchdog::new();
    let program = Program::new();
    let path = program.path.clone();
    thread::spawn(move || {
        // The copy would keep a program busy that another test is writing.
        while_nothing_is_written(|| {
            // SAFETY: from here on this thread has descriptors of its own, and it owns none from before.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
        });
        let group = Group::new().expect("group");
        let mark = group.mark_fd(o_path(&path)).expect("mark");
        assert_eq!(mark.path(), Some(path.as_path()));
        assert_held(&group, &path);
        mark.remove_by(o_path(&path)).expect("remove");
        assert_unheld(&group, &path);
    })
    .join()
    .expect("thread");
}

#[test]
fn a_mark_outlives_its_file_system_and_the_next_one_can_be_marked() {
    const TEST: &str = "a_mark_outlives_its_file_system_and_the_next_one_can_be_marked";
    if !can_run(TEST) {
        return;
    }
    let _watchdog = Watchdog::new();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = folder.path().join("true");
    let Some(mount) = Mount::tmpfs(folder.path()) else {
        return skip(TEST, "a tmpfs cannot be mounted");
    };
    Program::write(&program);
    let group = Group::new().expect("group");
    let old = group.mark(&program).expect("mark");
    assert_held(&group, &program);
    mount.unmount().expect("a mark holds no descriptor, so that this succeeds");

    let _mount = Mount::tmpfs(folder.path()).expect("mount");
    Program::write(&program);
    let same = InodeId::of(o_path(&program)).expect("inode") == old.inode();
    if !same {
        skip(TEST, "the kernel gave the second file system other numbers; what is tested is less");
    }
    // Where the numbers are the same, the count says that it is marked, and the kernel knows nothing of it.
    let new = group.mark(&program).expect("mark");
    assert_held(&group, &program);
    drop(old);
    assert_held(&group, &program);
    drop(new);
    assert_unheld(&group, &program);
}

struct Mount(Option<PathBuf>);

impl Mount {
    fn tmpfs(path: &Path) -> Option<Self> {
        let target = CString::new(path.as_os_str().as_bytes()).expect("a path without NUL");
        // SAFETY: strings that end with NUL and outlive the call.
        let result =
            unsafe { libc::mount(c"none".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()) };
        (result == 0).then(|| Self(Some(path.to_owned())))
    }

    fn unmount(mut self) -> std::io::Result<()> {
        self.umount(0)
    }

    fn umount(&mut self, flags: i32) -> std::io::Result<()> {
        let Some(path) = self.0.take() else { return Ok(()) };
        let target = CString::new(path.as_os_str().as_bytes()).expect("a path without NUL");
        // SAFETY: a string that ends with NUL and outlives the call.
        if unsafe { libc::umount2(target.as_ptr(), flags) } == 0 {
            return Ok(());
        }
        let error = std::io::Error::last_os_error();
        self.0 = Some(path);
        Err(error)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.umount(libc::MNT_DETACH);
    }
}
