//! Changing a container's configuration before its runtime reads it.

use crate::config::Config;
use serde_json::{Map, Value, json};

/// A changed configuration, to be answered to a held `PreCreate`.
///
/// It starts as a copy of what the engine wrote, so what is not touched stays as it was: unknown fields, the order of
/// fields, every digit of a number. The helpers cover the usual changes; [`ConfigChange::merge`] and
/// [`ConfigChange::value_mut`] cover the rest. Where a helper finds a field that has not the type the OCI
/// specification gives it, it replaces the field: no runtime would have accepted it.
///
/// ```
/// use containerhook::{Config, ConfigChange};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = Config::from_bytes(r#"{"process":{"args":["sh"],"env":["PATH=/bin"]},"new":1.50}"#)?;
/// let mut change = ConfigChange::of(&config)?;
/// change.add_env("TRACE", "1").drop_capability("NET_RAW").add_bind("/opt/tools", "/tools", &["ro"]);
/// assert_eq!(change.value()["process"]["env"], serde_json::json!(["PATH=/bin", "TRACE=1"]));
/// assert!(String::from_utf8(change.to_bytes())?.contains(r#""new":1.50"#));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigChange {
    value: Value,
}

/// Why a configuration cannot be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the configuration is nested too deeply or has too many values to be changed")]
pub struct ChangeError;

/// When a hook is run; see the OCI runtime specification, "POSIX-platform Hooks".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HookKind {
    /// In the runtime's namespaces, after the container's were made. Deprecated by the specification, understood by
    /// all runtimes.
    Prestart,
    /// In the runtime's namespaces, after the container's were made.
    CreateRuntime,
    /// In the container's namespaces, before its root becomes the root.
    CreateContainer,
    /// In the container, just before its entrypoint is executed.
    StartContainer,
    /// In the runtime's namespaces, after the entrypoint was executed.
    Poststart,
    /// In the runtime's namespaces, after the container was deleted.
    Poststop,
}

impl HookKind {
    fn field(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// A device node for [`ConfigChange::add_device`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device<'a> {
    /// Where the container finds it.
    pub path: &'a str,
    /// `c` for a character device, `b` for a block device.
    pub kind: char,
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// What the container may do with it: `r`, `w`, `m` (mknod) or some of them.
    pub access: &'a str,
}

impl ConfigChange {
    /// Begins with the configuration as it is.
    ///
    /// # Errors
    /// Where [`Config::value`] is `None`.
    pub fn of(config: &Config) -> Result<Self, ChangeError> {
        config.value().cloned().map(Self::from_value).ok_or(ChangeError)
    }

    /// A configuration that was made otherwise, say from the types of the `oci_spec` crate.
    pub fn from_value(value: Value) -> Self {
        Self { value }
    }

    /// The configuration as it stands.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The configuration as it stands, for any change.
    pub fn value_mut(&mut self) -> &mut Value {
        &mut self.value
    }

    /// The bytes of the new `config.json`.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.value.to_string().into_bytes()
    }

    /// Sets an environment variable of the container's process, in place of one of that name.
    pub fn add_env(&mut self, name: &str, value: &str) -> &mut Self {
        let entry = Value::from(format!("{name}={value}"));
        let env = self.list(&["process", "env"]);
        let is_it = |old: &Value| {
            old.as_str().and_then(|old| old.strip_prefix(name)).is_some_and(|rest| rest.starts_with('='))
        };
        let place = env.iter().position(is_it);
        env.retain(|old| !is_it(old));
        env.insert(place.unwrap_or(env.len()), entry);
        self
    }

    /// Removes an environment variable.
    pub fn remove_env(&mut self, name: &str) -> &mut Self {
        let is_it = |old: &Value| {
            old.as_str().is_some_and(|old| old.split_once('=').map_or(old, |(key, _)| key) == name)
        };
        self.list(&["process", "env"]).retain(|old| !is_it(old));
        self
    }

    /// Sets the command line of the container's process; the first word is the executable.
    pub fn set_args<S: AsRef<str>>(&mut self, args: impl IntoIterator<Item = S>) -> &mut Self {
        let args = args.into_iter().map(|arg| Value::from(arg.as_ref()));
        self.object(&["process"]).insert("args".to_owned(), args.collect());
        self
    }

    /// Adds an argument at the end of the command line.
    pub fn add_arg(&mut self, arg: &str) -> &mut Self {
        self.list(&["process", "args"]).push(arg.into());
        self
    }

    /// Mounts a part of the host's tree, after the mounts that are there; the options are added to `rbind`.
    pub fn add_bind(&mut self, source: &str, destination: &str, options: &[&str]) -> &mut Self {
        let options: Vec<&str> = std::iter::once("rbind").chain(options.iter().copied()).collect();
        self.add_mount("bind", source, destination, &options)
    }

    /// Mounts a file system, after the mounts that are there.
    pub fn add_mount(&mut self, kind: &str, source: &str, destination: &str, options: &[&str]) -> &mut Self {
        let mount = json!({"destination": destination, "type": kind, "source": source, "options": options});
        self.list(&["mounts"]).push(mount);
        self
    }

    /// Adds a hook after those that are there. The first of `args` is the program's own name; `path` is its absolute
    /// path, on the host, or in the container for [`HookKind::StartContainer`].
    pub fn add_hook(&mut self, kind: HookKind, path: &str, args: &[&str], env: &[&str]) -> &mut Self {
        self.list(&["hooks", kind.field()]).push(json!({"path": path, "args": args, "env": env}));
        self
    }

    /// Sets an annotation.
    pub fn add_annotation(&mut self, name: &str, value: &str) -> &mut Self {
        self.object(&["annotations"]).insert(name.to_owned(), value.into());
        self
    }

    /// Makes a device node and allows the container to use it.
    pub fn add_device(&mut self, device: &Device<'_>) -> &mut Self {
        let Device { path, kind, major, minor, access } = *device;
        let kind = kind.to_string();
        let devices = self.list(&["linux", "devices"]);
        devices.retain(|old| old.get("path").and_then(Value::as_str) != Some(path));
        devices.push(json!({"path": path, "type": kind, "major": major, "minor": minor}));
        // The last rule that fits counts.
        let rule = json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": access});
        self.list(&["linux", "resources", "devices"]).push(rule);
        self
    }

    /// Sets a resource limit of the container's process, in place of one of that name. Both `NOFILE` and
    /// `RLIMIT_NOFILE` are understood.
    pub fn add_rlimit(&mut self, name: &str, soft: u64, hard: u64) -> &mut Self {
        let name = prefixed("RLIMIT_", name);
        let limits = self.list(&["process", "rlimits"]);
        limits.retain(|old| old.get("type").and_then(Value::as_str) != Some(&name));
        limits.push(json!({"type": name, "hard": hard, "soft": soft}));
        self
    }

    /// Takes a capability from each of the process's five sets. Both `NET_RAW` and `CAP_NET_RAW` are understood.
    pub fn drop_capability(&mut self, name: &str) -> &mut Self {
        let name = prefixed("CAP_", name);
        let sets = self.value.pointer_mut("/process/capabilities").and_then(Value::as_object_mut);
        for set in sets.into_iter().flat_map(Map::values_mut).filter_map(Value::as_array_mut) {
            set.retain(|old| old.as_str().is_none_or(|old| prefixed("CAP_", old) != name));
        }
        self
    }

    /// Merges a JSON merge patch (RFC 7386) into the configuration: objects are merged, `null` removes a field,
    /// anything else replaces what is there.
    pub fn merge(&mut self, patch: &Value) -> &mut Self {
        merge(&mut self.value, patch);
        self
    }

    /// The object at a path of fields; what is no object on the way becomes one.
    fn object(&mut self, path: &[&str]) -> &mut Map<String, Value> {
        let mut at = as_object(&mut self.value);
        for name in path {
            at = as_object(at.entry(*name).or_insert(Value::Null));
        }
        at
    }

    fn list(&mut self, path: &[&str]) -> &mut Vec<Value> {
        let (last, parents) = path.split_last().unwrap_or((&"", &[]));
        let value = self.object(parents).entry(*last).or_insert(Value::Null);
        if !value.is_array() {
            *value = Value::Array(Vec::new());
        }
        match value {
            Value::Array(list) => list,
            _ => unreachable!("it has just been made a list"),
        }
    }
}

fn as_object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(object) => object,
        _ => unreachable!("it has just been made an object"),
    }
}

/// The name as runtimes spell it: `RLIMIT_NOFILE`, `CAP_NET_RAW`.
fn prefixed(prefix: &str, name: &str) -> String {
    let name = name.to_ascii_uppercase();
    if name.starts_with(prefix) { name } else { format!("{prefix}{name}") }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let target = as_object(target);
    for (name, value) in patch {
        if value.is_null() {
            // Not swap_remove, which is what `remove` does: the order of the fields stays.
            target.shift_remove(name);
        } else {
            merge(target.entry(name.as_str()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests;
