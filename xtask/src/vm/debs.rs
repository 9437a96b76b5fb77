//! Debian packages of any suite and architecture, unpacked into a folder of ours: nothing on this machine is installed,
//! upgraded or replaced for a virtual machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use testkit::skip::find_program;

/// Where this machine gets its Debian packages from.
#[derive(Clone, Debug)]
pub(super) struct Mirror {
    uri: String,
    signed_by: Option<String>,
}

/// A package that would be installed, as apt resolved it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Deb {
    pub(super) name: String,
    pub(super) version: String,
}

/// apt with lists, a cache and an idea of what is installed.
#[derive(Debug)]
pub(super) struct Apt {
    options: Vec<String>,
    lists: Option<PathBuf>,
}

/// Lists younger than this are as good as new.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

impl Mirror {
    /// The one that apt's own sources name.
    pub(super) fn of_this_machine() -> Result<Self> {
        for tool in ["apt-get", "dpkg"] {
            ensure!(
                find_program(tool).is_some(),
                "{tool} is not here: kernels come as Debian packages, by apt"
            );
        }
        let format = "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)";
        let find = || {
            let output = output(Command::new("apt-get").args(["indextargets", "--format", format]))?;
            let main = output.lines().find_map(|line| line.strip_prefix("Debian|Debian|main|"));
            Ok::<_, anyhow::Error>(main.map(|uri| uri.trim_end_matches('/').to_owned()))
        };
        let uri = match find()? {
            Some(uri) => uri,
            None => {
                // Who a source is, apt knows only once it has its lists.
                let _ = output(Command::new("apt-get").args(["update", "-q"]));
                find()?.context("apt's sources name no mirror of Debian's main archive")?
            }
        };
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let signed_by = Path::new(keyring).exists().then(|| keyring.to_owned());
        Ok(Self { uri, signed_by })
    }
}

impl Apt {
    /// The machine's own, which knows what is installed already.
    pub(super) fn of_this_machine() -> Self {
        Self { options: Vec::new(), lists: None }
    }

    /// One for another suite, on which nothing is installed; what it keeps is kept in `folder`.
    pub(super) fn of_suite(mirror: &Mirror, suite: &str, architecture: &str, folder: &Path) -> Result<Self> {
        for name in ["lists/partial", "cache/archives/partial"] {
            let folder = folder.join(name);
            fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        }
        let at = |name: &str| folder.join(name).display().to_string();
        let signed = mirror.signed_by.as_ref().map(|path| format!("[signed-by={path}] ")).unwrap_or_default();
        fs::write(at("sources.list"), format!("deb {signed}{} {suite} main\n", mirror.uri))?;
        fs::write(at("status"), "")?;
        let options = [
            ("Dir::State::lists", at("lists")),
            ("Dir::Cache", at("cache")),
            ("Dir::Etc::sourcelist", at("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".to_owned()),
            ("Dir::State::status", at("status")),
            ("APT::Architecture", architecture.to_owned()),
            ("APT::Architectures", architecture.to_owned()),
            ("Acquire::Languages", "none".to_owned()),
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".to_owned()),
        ];
        let options = options.map(|(name, value)| format!("{name}={value}")).to_vec();
        Ok(Self { options, lists: Some(folder.join("updated")) })
    }

    /// Gets the lists, where they are not of today.
    pub(super) fn update(&self) -> Result<()> {
        let Some(stamp) = &self.lists else { return self.run(&["update", "-q"]).map(drop) };
        let age = |at: SystemTime| SystemTime::now().duration_since(at).ok();
        let age = fs::metadata(stamp).and_then(|m| m.modified()).ok().and_then(age);
        if age.is_some_and(|age| age < FRESH) {
            return Ok(());
        }
        self.run(&["update", "-q", "-o", "APT::Update::Error-Mode=any"])?;
        fs::write(stamp, "").with_context(|| format!("writing {}", stamp.display()))
    }

    /// All that installing the package would install.
    pub(super) fn resolve(&self, package: &str) -> Result<Vec<Deb>> {
        let text = self.run(&["install", "--simulate", "-q", "--no-install-recommends", package])?;
        Ok(text.lines().filter_map(installed).collect())
    }

    /// Downloads packages and unpacks them below `into`, all or nothing.
    pub(super) fn unpack(&self, debs: &[Deb], into: &Path) -> Result<()> {
        let parent = into.parent().context("a folder in a folder")?;
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        let scratch = tempfile::Builder::new().prefix(".unpack-").tempdir_in(parent)?;
        let (archives, tree) = (scratch.path().join("archives"), scratch.path().join("tree"));
        for folder in [&archives, &tree] {
            fs::create_dir(folder)?;
        }
        let names: Vec<String> = debs.iter().map(|deb| format!("{}={}", deb.name, deb.version)).collect();
        let mut command = self.command(&["download", "-q"]);
        output(command.args(names).current_dir(&archives))?;
        for entry in fs::read_dir(&archives)? {
            output(Command::new("dpkg").arg("-x").arg(entry?.path()).arg(&tree))?;
        }
        if into.exists() {
            fs::remove_dir_all(into).with_context(|| format!("removing {}", into.display()))?;
        }
        fs::rename(&tree, into).with_context(|| format!("making {}", into.display()))
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        output(&mut self.command(arguments))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("apt-get");
        let sandbox = "APT::Sandbox::User=root"; // whose user could not write to our folders
        for option in [sandbox, "Acquire::Retries=3", "Acquire::http::Timeout=30"] {
            command.args(["-o", option]);
        }
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
        command
    }
}

/// `Inst name [old] (version Debian:12.15/oldstable [amd64])`.
fn installed(line: &str) -> Option<Deb> {
    let mut words = line.strip_prefix("Inst ")?.split(' ');
    let name = words.next()?.to_owned();
    let version = words.find_map(|word| word.strip_prefix('('))?.to_owned();
    Some(Deb { name, version })
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = words.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = last[last.len().saturating_sub(4)..].join("; ");
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        let verb = arguments.iter().find(|a| !a.contains('=') && !a.starts_with('-')).cloned();
        bail!("{program} {} failed ({}): {last}", verb.unwrap_or_default(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{Deb, installed};

    #[test]
    fn what_apt_would_install() {
        let deb = |name: &str, version: &str| Some(Deb { name: name.into(), version: version.into() });
        assert_eq!(
            installed("Inst linux-image-6.1.0-50-cloud-amd64 (6.1.176-1 Debian:12.15/oldstable [amd64])"),
            deb("linux-image-6.1.0-50-cloud-amd64", "6.1.176-1")
        );
        assert_eq!(
            installed("Inst libc6 [2.36-9] (2.41-12 Debian:13.8/stable [amd64]) []"),
            deb("libc6", "2.41-12")
        );
        assert_eq!(installed("Conf libc6 (2.41-12 Debian:13.8/stable [amd64])"), None);
    }
}
