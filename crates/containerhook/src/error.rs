//! The library's error: what was tried, on what, why it failed, and what can be done.

use std::error::Error as StdError;
use std::fmt;
use std::io;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The process lacks a privilege (`CAP_SYS_ADMIN`, most often).
    Permission,
    /// The kernel lacks what is needed.
    Unsupported,
    /// No container runtime was found that could be marked.
    NoRuntime,
    /// Something given by the caller is not valid.
    InvalidInput,
    /// The notifier has been closed, or its engine has ended.
    Closed,
    /// The engine does not answer.
    Stuck,
    /// The operating system refused an operation.
    Os,
}

/// Why a notifier could not start, or could not do what it was asked.
///
/// Its display names the operation, the cause and, where there is one, the remedy.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    what: String,
    remedy: Option<&'static str>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Error(Box::new(Inner { kind, what: what.into(), remedy: None, source: None }))
    }

    pub(crate) fn os(what: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => ErrorKind::Permission,
            Some(libc::ENOSYS) => ErrorKind::Unsupported,
            _ => ErrorKind::Os,
        };
        Error::new(kind, what).because(source)
    }

    pub(crate) fn remedy(mut self, remedy: &'static str) -> Self {
        self.0.remedy = Some(remedy);
        self
    }

    pub(crate) fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What kind of thing went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        if let Some(remedy) = self.0.remedy {
            write!(f, " ({remedy})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("what", &self.0.what)
            .field("remedy", &self.0.remedy)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // The display has it already; it is here for those who look for an io::Error in the chain.
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
