//! An initial RAM file system: the archive that the kernel unpacks before it runs anything.
//!
//! The format is `newc` of cpio(5): a header of hexadecimal fields, the name and the content, each padded to four bytes.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context as _, Result};

/// Writes an archive. Folders above a file are made as they are needed.
pub(super) struct Archive<W> {
    to: W,
    inode: u32,
    folders: BTreeSet<String>,
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

impl<W: Write> Archive<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to, inode: 0, folders: BTreeSet::new() }
    }

    /// A copy of a file of this machine, at a path that begins with `/`.
    pub(super) fn copy(&mut self, from: &Path, at: &str) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.file(at, &content)
    }

    /// A file that may be executed.
    pub(super) fn file(&mut self, at: &str, content: &[u8]) -> Result<()> {
        self.entry(at, PROGRAM, content)
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, at: &str, to: &str) -> Result<()> {
        self.entry(at, LINK, to.as_bytes())
    }

    pub(super) fn finish(mut self) -> Result<W> {
        self.put("TRAILER!!!", 0, &[])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn entry(&mut self, at: &str, mode: u32, content: &[u8]) -> Result<()> {
        let name = at.trim_start_matches('/');
        for (end, _) in name.match_indices('/') {
            let folder = &name[..end];
            if self.folders.insert(folder.to_owned()) {
                self.put(folder, FOLDER, &[])?;
            }
        }
        Ok(self.put(name, mode, content)?)
    }

    fn put(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let length = u32::try_from(content.len()).map_err(|_| io::Error::other("a file beyond 4 GiB"))?;
        let (inode, links, named) = (self.inode, 1, name.len() as u32 + 1);
        write!(self.to, "070701")?;
        // Inode, mode, owner, group, links, time, length, and the device's numbers, name's length, no checksum.
        for field in [inode, mode, 0, 0, links, 0, length, 0, 0, 0, 0, named, 0] {
            write!(self.to, "{field:08x}")?;
        }
        self.to.write_all(name.as_bytes())?;
        self.to.write_all(&[0])?;
        self.pad(110 + name.len() + 1)?;
        self.to.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.to.write_all(&[0; 3][..(4 - length % 4) % 4])
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn busybox_reads_what_is_written() -> Result<()> {
        testkit::need!(Busybox);
        let mut archive = Archive::new(Vec::new());
        archive.file("/a/b/program", b"12345")?;
        archive.file("/a/c", b"")?;
        archive.link("/init", "a/b/program")?;
        let scratch = testkit::Scratch::new()?;
        fs::write(scratch.join("archive"), archive.finish()?)?;
        let from = fs::File::open(scratch.join("archive"))?;
        let mut list = Command::new("busybox");
        let output =
            list.args(["cpio", "-idmv"]).current_dir(scratch.path()).stdin(from).stderr(Stdio::piped());
        let output = output.output()?;
        assert!(output.status.success(), "{output:?}");
        assert_eq!(fs::read(scratch.join("init"))?, b"12345");
        assert_eq!(fs::read(scratch.join("a/c"))?, b"");
        Ok(())
    }
}
