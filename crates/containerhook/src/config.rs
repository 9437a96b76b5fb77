//! A container's OCI configuration, as its bundle has it.
//!
//! A [`Config`] keeps the bytes of `config.json` and reads them as little as is asked for. Its fields may be
//! anything: they were written by an engine, by an image's author, or by somebody who wants them misread.

use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// How many values a document may hold for [`Config::value`]: each takes up to 100 bytes of memory for as little
/// as two in the file.
const VALUES_LIMIT: usize = 1 << 20;
/// How many elements of a list the outline keeps.
const LIST_LIMIT: usize = 1 << 16;

/// The OCI configuration of a container: the `config.json` of its bundle.
///
/// Cloning it is cheap. The bytes are those of the file; [`Config::value`] has every field of them, also those
/// that no specification knows, and every digit of a number.
#[derive(Clone)]
pub struct Config(Arc<Inner>);

struct Inner {
    raw: Vec<u8>,
    value: OnceLock<Option<Value>>,
    outline: Outline,
}

impl Config {
    /// Reads a configuration from the bytes of a `config.json`; `path` is for the error's words.
    pub(crate) fn parse(raw: Vec<u8>, path: &Path) -> Result<Self, ConfigError> {
        let text = String::from_utf8_lossy(&raw);
        // One pass finds out that it is an object, where it ends and what its fields are.
        let outline = match Outline::read(&text) {
            Some(outline) => outline,
            None => match first_value(&text) {
                // One whose keys nobody can read, as with half of a surrogate pair.
                Ok(text) if text.starts_with('{') => Outline::default(),
                Ok(_) => return Err(ConfigError::NotObject { path: path.to_owned() }),
                Err(error) => {
                    return Err(ConfigError::Invalid { path: path.to_owned(), cause: error.to_string() });
                }
            },
        };
        drop(text);
        Ok(Self(Arc::new(Inner { raw, value: OnceLock::new(), outline })))
    }

    /// Makes a configuration of the bytes of a `config.json`, for tests of handlers.
    ///
    /// # Errors
    /// If the bytes are not a JSON object.
    pub fn from_bytes(raw: impl Into<Vec<u8>>) -> Result<Self, ConfigError> {
        Self::parse(raw.into(), Path::new("config.json"))
    }

    /// The bytes of the file.
    pub fn raw(&self) -> &[u8] {
        &self.0.raw
    }

    /// The configuration as a JSON value, which is read at the first call.
    ///
    /// Unknown fields, the order of fields and every digit of a number are kept; of a field that occurs twice the
    /// last one is. `None` where the document is nested deeper than 128 levels or holds more than a million
    /// values, which no engine writes.
    pub fn value(&self) -> Option<&Value> {
        self.0
            .value
            .get_or_init(|| {
                let text = self.text();
                let text = first_value(&text).ok()?;
                if is_plain(text) { serde_json::from_str(text).ok() } else { None }
            })
            .as_ref()
    }

    /// The configuration in the types of the [`oci_spec`] crate. Fields that these do not know are lost.
    ///
    /// # Errors
    /// Where a field has another type than the specification says.
    pub fn spec(&self) -> Result<oci_spec::runtime::Spec, ConfigError> {
        let text = self.text();
        first_value(&text).and_then(serde_json::from_str).map_err(|error| ConfigError::Invalid {
            path: PathBuf::from("config.json"),
            cause: error.to_string(),
        })
    }

    /// The fields that holding and telling a container need.
    pub(crate) fn outline(&self) -> &Outline {
        &self.0.outline
    }

    /// Go's JSON reader, hence runc, takes bytes that are not UTF-8 for U+FFFD and goes on.
    fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0.raw)
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("bytes", &self.0.raw.len()).finish_non_exhaustive()
    }
}

impl PartialEq for Config {
    fn eq(&self, other: &Self) -> bool {
        self.0.raw == other.0.raw
    }
}

impl Eq for Config {}

/// Why a container is told without its configuration.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The bundle's directory cannot be opened.
    #[error("cannot open the bundle {}: {source}", .path.display())]
    Bundle {
        /// The bundle, as the runtime's caller named it.
        path: PathBuf,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// The bundle has no `config.json`.
    #[error("there is no {}", .path.display())]
    Missing {
        /// Where it was expected.
        path: PathBuf,
    },
    /// It is a directory, a FIFO, a device or a link to one; it was not opened.
    #[error("{} is {kind}, not a regular file", .path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
        /// What it is, with its article.
        kind: &'static str,
    },
    /// It is larger than what is read.
    #[error("{} is larger than {limit} bytes", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read, in bytes.
        limit: u64,
    },
    /// It cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// It is not JSON, or not of the shape that was asked for.
    #[error("{} is not valid: {cause}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        cause: String,
    },
    /// It is JSON, but not an object.
    #[error("{} is not a JSON object", .path.display())]
    NotObject {
        /// The file.
        path: PathBuf,
    },
}

/// The fields of a configuration that holding and telling a container need. A field of a wrong type is as if it
/// were absent, and loses no other.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Outline {
    pub(crate) root: Option<Root>,
    /// `process.args`; the first is the entrypoint.
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: Option<String>,
    pub(crate) user: Option<User>,
    pub(crate) terminal: bool,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) annotations: Vec<(String, String)>,
    pub(crate) hostname: Option<String>,
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) cgroups_path: Option<String>,
    pub(crate) uid_mappings: Vec<IdMapping>,
    pub(crate) gid_mappings: Vec<IdMapping>,
    /// Whether any OCI hook is configured: one may change the root before the entrypoint is executed.
    pub(crate) hooks: bool,
    /// Two runtimes may read this document as different ones: a field occurs twice (the first counts for crun,
    /// the last for runc), in another case (which runc accepts), or a list is too long to be kept.
    pub(crate) ambiguous: bool,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) path: String,
    pub(crate) readonly: bool,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) additional_gids: Vec<u32>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) destination: String,
    pub(crate) kind: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) options: Vec<String>,
}

impl Mount {
    /// Whether it binds a part of the host's tree, by its type or by its options.
    pub(crate) fn is_bind(&self) -> bool {
        self.kind.as_deref() == Some("bind")
            || self.options.iter().any(|option| option == "bind" || option == "rbind")
    }
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Namespace {
    pub(crate) kind: String,
    pub(crate) path: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdMapping {
    pub(crate) container: u32,
    pub(crate) host: u32,
    pub(crate) size: u32,
}

impl Outline {
    /// The value of a variable in `process.env`; the last one set counts, as for a runtime that sets each in turn.
    pub(crate) fn env(&self, name: &str) -> Option<&str> {
        self.env.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
    }

    pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// `None` if the text does not begin with a valid object, or that has a key which nobody can read.
    fn read(text: &str) -> Option<Self> {
        let mut outline = Self::default();
        let names = ["root", "process", "mounts", "annotations", "hostname", "linux", "hooks"];
        let Fields { texts, ambiguous } = fields(text, names)?;
        let [root, process, mounts, annotations, hostname, linux, hooks] = texts;
        let mut reader = Reader { ambiguous };

        let [path, readonly] = reader.fields(root, ["path", "readonly"]);
        outline.root = string(path).map(|path| Root { path, readonly: boolean(readonly) });

        let [args, env, cwd, user, terminal] =
            reader.fields(process, ["args", "env", "cwd", "user", "terminal"]);
        outline.args = reader.list(args, |text| Some(string(Some(text)).unwrap_or_default()));
        outline.env = reader.list(env, |text| string(Some(text)));
        outline.cwd = string(cwd);
        outline.terminal = boolean(terminal);
        outline.user = user.map(|user| {
            let [uid, gid, groups] = reader.fields(Some(user), ["uid", "gid", "additionalGids"]);
            let additional_gids = reader.list(groups, |text| Some(number(Some(text))));
            User { uid: number(uid), gid: number(gid), additional_gids }
        });

        let mut inner = Reader { ambiguous: false };
        outline.mounts = reader.list(mounts, |text| {
            let [destination, kind, source, options] =
                inner.fields(Some(text), ["destination", "type", "source", "options"]);
            let options = inner.list(options, |text| string(Some(text)));
            Some(Mount {
                destination: string(destination)?,
                kind: string(kind),
                source: string(source),
                options,
            })
        });
        outline.annotations = annotations.map(|text| reader.strings(text)).unwrap_or_default();
        outline.hostname = string(hostname);

        let [namespaces, cgroups_path, uid_mappings, gid_mappings] =
            reader.fields(linux, ["namespaces", "cgroupsPath", "uidMappings", "gidMappings"]);
        outline.namespaces = reader.list(namespaces, |text| {
            let [kind, path] = inner.fields(Some(text), ["type", "path"]);
            Some(Namespace { kind: string(kind)?, path: string(path).filter(|path| !path.is_empty()) })
        });
        outline.cgroups_path = string(cgroups_path);
        let mut id_mappings = |text| {
            reader.list(text, |text| {
                let [container, host, size] = inner.fields(Some(text), ["containerID", "hostID", "size"]);
                Some(IdMapping { container: number(container), host: number(host), size: number(size) })
            })
        };
        outline.uid_mappings = id_mappings(uid_mappings);
        outline.gid_mappings = id_mappings(gid_mappings);

        outline.hooks = hooks.is_some_and(|hooks| {
            let kinds = ["prestart", "createRuntime", "createContainer", "startContainer"];
            reader.fields(Some(hooks), kinds).iter().flatten().any(|list| *list != "[]" && *list != "null")
        });
        outline.ambiguous = reader.ambiguous || inner.ambiguous;
        Some(outline)
    }
}

/// Reads parts of a document, each from its own text, and remembers whether one was ambiguous.
struct Reader {
    ambiguous: bool,
}

impl Reader {
    fn fields<'a, const N: usize>(
        &mut self,
        text: Option<&'a str>,
        names: [&str; N],
    ) -> [Option<&'a str>; N] {
        let Some(found) = text.and_then(|text| fields(text, names)) else { return [None; N] };
        self.ambiguous |= found.ambiguous;
        found.texts
    }

    fn list<T>(&mut self, text: Option<&str>, read: impl FnMut(&str) -> Option<T>) -> Vec<T> {
        let Some(text) = text else { return Vec::new() };
        let mut list = List { kept: Vec::new(), seen: 0, read };
        // What came before a fault counts: there is none, as the document was read to its end before.
        let _ = serde_json::Deserializer::from_str(text).deserialize_seq(&mut list);
        self.ambiguous |= list.seen > LIST_LIMIT;
        list.kept
    }

    /// An object of strings, other values left out.
    fn strings(&mut self, text: &str) -> Vec<(String, String)> {
        let mut kept = Vec::new();
        let visitor = Object(|key: Cow<'_, str>, text: &str| {
            if kept.len() < LIST_LIMIT
                && let Some(value) = string(Some(text))
            {
                kept.push((key.into_owned(), value));
            }
        });
        let _ = serde_json::Deserializer::from_str(text).deserialize_map(visitor);
        kept
    }
}

/// The texts of an object's fields, in the order of the names asked for.
#[derive(Debug)]
pub(crate) struct Fields<'a, const N: usize> {
    pub(crate) texts: [Option<&'a str>; N],
    /// A field of these occurs twice, or with its name in another case.
    pub(crate) ambiguous: bool,
}

/// Finds fields of a JSON object without reading what they hold; `None` if the text is not an object.
/// A field that is `null` is absent, and of two with one name the last counts.
pub(crate) fn fields<'a, const N: usize>(text: &'a str, names: [&str; N]) -> Option<Fields<'a, N>> {
    let mut found = Fields { texts: [None; N], ambiguous: false };
    let visitor = Object(|key: Cow<'_, str>, text: &'a str| {
        if let Some(at) = names.iter().position(|name| *name == key) {
            found.ambiguous |= found.texts[at].is_some();
            found.texts[at] = (text != "null").then_some(text);
        } else if names.iter().any(|name| folds_to(&key, name)) {
            found.ambiguous = true;
        }
    });
    serde_json::Deserializer::from_str(text).deserialize_map(visitor).ok()?;
    Some(found)
}

/// Whether Go's JSON reader takes `key` for the field `name`: it folds case, and two letters beyond ASCII fold
/// into it (the long s and the Kelvin sign).
fn folds_to(key: &str, name: &str) -> bool {
    let fold = |letter: char| match letter {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(name.chars().map(fold))
}

/// The text of the first JSON value in a document. runc reads no further; whatever follows is not its business.
fn first_value(text: &str) -> serde_json::Result<&str> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    match values.next() {
        Some(first) => first.map(RawValue::get),
        None => Err(serde_json::Error::custom("it is empty")),
    }
}

/// Whether a valid document is one to make a [`Value`] of: it holds no more values than that takes memory for, and no
/// key of the few by which serde_json tells numbers and unread values from objects among its own, for which it would
/// show something else than the runtime reads.
fn is_plain(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut values = 1;
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b',' | b'[' | b'{' => values += 1,
            b'"' => {
                let start = at;
                at += 1;
                while bytes.get(at).is_some_and(|byte| *byte != b'"') {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                // Only these can begin such a key; the backslash may be one written with escapes.
                if matches!(bytes.get(start + 1), Some(b'$' | b'\\'))
                    && string(text.get(start..=at))
                        .is_none_or(|key| key.starts_with("$serde_json::private::"))
                {
                    return false;
                }
            }
            _ => {}
        }
        at += 1;
    }
    values <= VALUES_LIMIT
}

fn string(text: Option<&str>) -> Option<String> {
    serde_json::from_str(text?).ok()
}

fn boolean(text: Option<&str>) -> bool {
    text == Some("true")
}

fn number(text: Option<&str>) -> u32 {
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Hands each field of an object, unread, to a closure. The deserializer passes over unread values without
/// recursion, so that no depth of nesting exhausts the stack.
struct Object<F>(F);

impl<'de, F: FnMut(Cow<'de, str>, &'de str)> Visitor<'de> for Object<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(Key(key)) = map.next_key()? {
            let value: &RawValue = map.next_value()?;
            (self.0)(key, value.get());
        }
        Ok(())
    }
}

/// A key, borrowed where it has no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(key)))
            }
            fn visit_str<E>(self, key: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(key.to_owned())))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

/// Reads the elements of a list one by one, and keeps no more than [`LIST_LIMIT`].
struct List<T, F> {
    kept: Vec<T>,
    seen: usize,
    read: F,
}

impl<'de, T, F: FnMut(&str) -> Option<T>> Visitor<'de> for &mut List<T, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while self.seen <= LIST_LIMIT {
            let Some(element) = seq.next_element::<&RawValue>()? else { return Ok(()) };
            self.seen += 1;
            if self.seen <= LIST_LIMIT {
                self.kept.extend((self.read)(element.get()));
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests;
