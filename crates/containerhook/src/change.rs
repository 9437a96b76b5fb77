//! H6
use std::os::fd::BorrowedFd;
pub(crate) fn write(_: &crate::bundle::Caller<'_>, _: BorrowedFd<'_>, _: &[u8]) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
