//! Requests and replies over one byte stream, many under way at a time.
//!
//! Servers of a region (over TCP) and regions (over a QUIC stream) talk this way. A frame is a 4-byte
//! little-endian length, an 8-byte number that pairs a reply with its request, one byte that tells what
//! it is, and a body. Requests are handed to the handler in the order sent; replies come in the order in
//! which they are ready.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::limits;
use crate::net::BoxStream;

const HEADER_BYTES: usize = 9;
const STATUS_OK: u8 = 0;
const STATUS_ERROR: u8 = 1;

/// The asking side of a stream. Clones share it; it closes when the last one is dropped.
#[derive(Clone)]
pub struct Client {
    outgoing: mpsc::Sender<Outgoing>,
}

struct Outgoing {
    kind: u8,
    body: Bytes,
    reply: oneshot::Sender<io::Result<Bytes>>,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<io::Result<Bytes>>>>>;

impl Client {
    /// Takes over a connected stream.
    pub fn new(stream: BoxStream) -> Self {
        let (outgoing, queue) = mpsc::channel(limits::RPC_REQUESTS_MAX);
        let (reader, writer) = tokio::io::split(stream);
        let waiting = Waiting::default();
        tokio::spawn(run_client(reader, writer, queue, waiting));
        Self { outgoing }
    }

    /// Sends a request and returns a future of its reply. The request is queued before this returns, so
    /// requests arrive in the order of the calls.
    ///
    /// # Errors
    /// The future fails if the stream ends, if the handler refused, or if too many requests wait.
    pub fn call(&self, kind: u8, body: Bytes) -> impl Future<Output = io::Result<Bytes>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        let queued = self.outgoing.try_send(Outgoing { kind, body, reply });
        async move {
            match queued {
                Ok(()) => answer.await.unwrap_or_else(|_| Err(ended())),
                Err(mpsc::error::TrySendError::Full(_)) => Err(io::Error::new(
                    io::ErrorKind::WouldBlock,
                    "too many requests wait on this connection",
                )),
                Err(mpsc::error::TrySendError::Closed(_)) => Err(ended()),
            }
        }
    }

    /// Whether the stream has ended.
    pub fn is_closed(&self) -> bool {
        self.outgoing.is_closed()
    }

    /// Waits until the stream has ended.
    pub async fn closed(&self) {
        self.outgoing.closed().await;
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the connection ended")
}

async fn run_client(
    mut reader: ReadHalf<BoxStream>,
    mut writer: WriteHalf<BoxStream>,
    mut queue: mpsc::Receiver<Outgoing>,
    waiting: Waiting,
) {
    let writing = async {
        let (mut next, mut buffer, mut taken) = (0, BytesMut::new(), Vec::new());
        while queue.recv_many(&mut taken, 64).await > 0 {
            for Outgoing { kind, body, reply } in taken.drain(..) {
                waiting.lock().insert(next, reply);
                put_frame(&mut buffer, next, kind, &body);
                next += 1;
            }
            writer.write_all_buf(&mut buffer).await?;
            writer.flush().await?;
        }
        writer.shutdown().await
    };
    let reading = async {
        let mut buffer = BytesMut::new();
        while let Some((id, status, body)) = next_frame(&mut reader, &mut buffer).await? {
            let Some(reply) = waiting.lock().remove(&id) else { continue };
            let result = if status == STATUS_OK {
                Ok(body)
            } else {
                Err(io::Error::other(String::from_utf8_lossy(&body).into_owned()))
            };
            // Whoever asked may have stopped waiting.
            let _ = reply.send(result);
        }
        io::Result::Ok(())
    };
    tokio::select! {
        biased;
        _ = writing => {}
        _ = reading => {}
    }
    waiting.lock().clear();
}

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Takes a request. What it does before it returns happens in the order of the requests; what the
    /// returned future does may overlap with later ones. An error's text is sent to the caller.
    fn handle(&self, kind: u8, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>>;
}

/// Answers the requests of a stream until it ends.
///
/// # Errors
/// If the stream breaks or carries a frame that is too long.
pub async fn serve(stream: BoxStream, handler: &dyn Handler) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut working = FuturesUnordered::new();
    let (mut incoming, mut outgoing) = (BytesMut::new(), BytesMut::new());
    loop {
        tokio::select! {
            biased;
            Some((id, result)) = working.next(), if !working.is_empty() => {
                put_reply(&mut outgoing, id, result);
                // Whatever else is ready goes into the same write.
                while let Some(Some((id, result))) = futures::FutureExt::now_or_never(working.next()) {
                    put_reply(&mut outgoing, id, result);
                }
                writer.write_all_buf(&mut outgoing).await?;
                writer.flush().await?;
            }
            frame = next_frame(&mut reader, &mut incoming), if working.len() < limits::RPC_REQUESTS_MAX => {
                let Some((id, kind, body)) = frame? else { return Ok(()) };
                let reply = handler.handle(kind, body);
                working.push(async move { (id, reply.await) });
            }
        }
    }
}

fn put_reply(out: &mut BytesMut, id: u64, result: Result<Bytes, String>) {
    match result {
        Ok(body) => put_frame(out, id, STATUS_OK, &body),
        Err(reason) => put_frame(out, id, STATUS_ERROR, reason.as_bytes()),
    }
}

fn put_frame(out: &mut BytesMut, id: u64, kind: u8, body: &[u8]) {
    // Bodies are bounded by the limits of what is put into them, far below 4 GiB.
    out.put_u32_le(u32::try_from(HEADER_BYTES + body.len()).unwrap_or(u32::MAX));
    out.put_u64_le(id);
    out.put_u8(kind);
    out.extend_from_slice(body);
}

/// The next frame; `None` at a clean end. Cancelling it loses nothing: what was read stays in `buffer`.
async fn next_frame(
    reader: &mut ReadHalf<BoxStream>,
    buffer: &mut BytesMut,
) -> io::Result<Option<(u64, u8, Bytes)>> {
    loop {
        if let Some(length) = buffer.get(..4) {
            let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
            if !(HEADER_BYTES..=limits::PEER_FRAME_BYTES_MAX).contains(&length) {
                let reason = format!("a frame of {length} bytes is out of bounds");
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
            if buffer.len() >= 4 + length {
                buffer.advance(4);
                let mut frame = buffer.split_to(length);
                let (id, kind) = (frame.get_u64_le(), frame.get_u8());
                return Ok(Some((id, kind, frame.freeze())));
            }
            buffer.reserve(4 + length - buffer.len());
        } else {
            buffer.reserve(16 << 10);
        }
        if reader.read_buf(buffer).await? == 0 {
            return if buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Echo;

    impl Handler for Echo {
        fn handle(&self, kind: u8, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
            Box::pin(async move {
                match kind {
                    0 => Ok(body),
                    1 => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        Ok(body)
                    }
                    _ => Err("no such kind".into()),
                }
            })
        }
    }

    fn pair() -> (BoxStream, BoxStream) {
        let (a, b) = tokio::io::duplex(1 << 16);
        (Box::new(a), Box::new(b))
    }

    #[tokio::test(start_paused = true)]
    async fn replies_find_their_requests_in_any_order() {
        let (near, far) = pair();
        let server = tokio::spawn(async move { serve(far, &Echo).await });
        let client = Client::new(near);
        let slow = client.call(1, Bytes::from_static(b"slow"));
        let fast = client.call(0, Bytes::from_static(b"fast"));
        let wrong = client.call(9, Bytes::new());
        assert_eq!(&fast.await.unwrap()[..], b"fast");
        assert_eq!(wrong.await.unwrap_err().to_string(), "no such kind");
        assert_eq!(&slow.await.unwrap()[..], b"slow");
        drop(client);
        assert!(server.await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_stream_fails_what_waits() {
        let (near, far) = pair();
        let client = Client::new(near);
        let call = client.call(0, Bytes::new());
        drop(far);
        assert!(call.await.is_err());
        client.closed().await;
        assert!(client.call(0, Bytes::new()).await.is_err());
    }

    #[tokio::test]
    async fn a_hostile_length_ends_the_stream_alone() {
        let (mut near, far) = pair();
        near.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        let error = serve(far, &Echo).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
