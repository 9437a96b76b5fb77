//! H6
use std::os::fd::{BorrowedFd, OwnedFd};
pub(crate) struct Entrypoint {
    pub(crate) file: OwnedFd,
    pub(crate) path: std::path::PathBuf,
}
pub(crate) fn resolve(
    _: &crate::bundle::Caller<'_>,
    _: BorrowedFd<'_>,
    _: &crate::config::Outline,
) -> Result<Entrypoint, String> {
    Err("no".into())
}
