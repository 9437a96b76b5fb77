//! One unary gRPC call over a unix socket: a length and a message each way, and the outcome in the trailers.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::{HeaderMap, Request, StatusCode};
use tokio::net::UnixStream;

use crate::task::LIMIT;

/// Sends `message` to `path` and returns the answer's message.
pub(super) fn call(socket: &Path, path: &str, message: &[u8]) -> Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer =
        runtime.block_on(async { tokio::time::timeout(LIMIT, exchange(socket, path, message)).await });
    // Without waiting for the connection's own task: the socket goes with it.
    runtime.shutdown_timeout(Duration::ZERO);
    answer.with_context(|| format!("{path}: no answer within {LIMIT:?}"))?.with_context(|| path.to_owned())
}

async fn exchange(socket: &Path, path: &str, message: &[u8]) -> Result<Vec<u8>> {
    let stream =
        UnixStream::connect(socket).await.with_context(|| format!("connecting to {}", socket.display()))?;
    let (client, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let mut client = client.ready().await?;
    let request = Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut body) = client.send_request(request, false)?;
    // One byte for "not compressed", four for the length.
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len())?.to_be_bytes());
    frame.extend_from_slice(message);
    body.send_data(frame.into(), true)?;

    let response = response.await?;
    ensure!(response.status() == StatusCode::OK, "the service answered HTTP {}", response.status());
    check(response.headers())?;
    let mut stream = response.into_body();
    let mut answer = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        answer.extend_from_slice(&data);
    }
    if let Some(trailers) = stream.trailers().await? {
        check(&trailers)?;
    }
    ensure!(answer.len() >= 5, "the service answered without a message");
    Ok(answer.split_off(5))
}

/// The outcome is in the trailers, or in the headers where there is no body.
fn check(headers: &HeaderMap) -> Result<()> {
    let text = |name| headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    match text("grpc-status") {
        Some(status) if status != "0" => {
            bail!("gRPC status {status}: {}", unescape(&text("grpc-message").unwrap_or_default()))
        }
        _ => Ok(()),
    }
}

/// `%20` and its like.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| *first == b'%').and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn messages_are_unescaped() {
        assert_eq!(super::unescape("no%20such 100%: %e2%82%ac %4"), "no such 100%: € %4");
    }
}
