//! Reads the znodes of a running ensemble as any client does.
//!
//! A tree that is written to meanwhile can't be read at one instant: what has changed is read again until a
//! pass finds nothing new, or the passes are used up and the rest is reported.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use meridian_wire::{
    AuthPacket, ConnectRequest, ConnectResponse, ErrorCode, OpCode, ReplyHeader, Request, Response, Stat,
    begin_frame, cut_frame, finish_frame, xid,
};

use super::Found;
use crate::tree::{Acl, Times};
use crate::txn::import::ImportedZnode;

/// Znodes asked for before the first answer is waited for.
const WINDOW: usize = 256;
/// An ensemble that says nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often what has changed is read again.
const PASSES: usize = 5;
/// The largest answer taken.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Reads everything that the client may read. `auth` is what `addauth` takes: scheme and credentials.
/// `progress` is told how many znodes were read, and how many are known of.
///
/// # Errors
/// If the ensemble can't be reached, does not open a session, or answers what is no answer.
pub fn read(
    address: &str,
    auth: &[(String, String)],
    mut progress: impl FnMut(usize, usize),
) -> io::Result<Found> {
    let mut reader = Reader {
        connection: Connection::open(address, auth)?,
        found: Found::default(),
        denied: 0,
        masked: 0,
    };
    let mut paths = vec!["/".to_string()];
    let mut done = 0;
    while done < paths.len() {
        let end = (done + WINDOW).min(paths.len());
        let children = reader.read_znodes(&paths[done..end])?;
        paths.extend(children);
        done = end;
        progress(done, paths.len());
    }
    let mut changed = 0;
    for _ in 0..PASSES {
        changed = reader.read_changed()?;
        if changed == 0 {
            break;
        }
    }
    reader.finish(changed)
}

struct Reader {
    connection: Connection,
    found: Found,
    /// Znodes that the client may not read.
    denied: u64,
    /// Znodes whose ACL is shown without the digests.
    masked: u64,
}

impl Reader {
    /// Reads znodes, and returns the paths of their children.
    fn read_znodes(&mut self, paths: &[String]) -> io::Result<Vec<String>> {
        for path in paths {
            self.connection.send(&Request::GetData { path, watch: false })?;
            self.connection.send(&Request::GetAcl { path })?;
            self.connection.send(&Request::GetChildren2 { path, watch: false })?;
        }
        self.connection.flush()?;
        let mut all_children = Vec::new();
        for path in paths {
            let (data, acl, children) =
                (self.connection.answer()?, self.connection.answer()?, self.connection.answer()?);
            self.found.zxid = self.found.zxid.max(data.0.zxid);
            let errors = [data.0.error, acl.0.error, children.0.error];
            if errors.contains(&ErrorCode::NoNode) {
                self.found.znodes.remove(path.as_str());
                continue;
            }
            if errors.contains(&ErrorCode::NoAuth) {
                self.denied += 1;
                continue;
            }
            let (
                Response::Data { data, stat },
                Response::Acl { acl, .. },
                Response::Children2 { children, .. },
            ) = (
                decode(OpCode::GetData, &data.1)?,
                decode(OpCode::GetAcl, &acl.1)?,
                decode(OpCode::GetChildren2, &children.1)?,
            )
            else {
                return Err(io::Error::other(format!("{path} was not answered as it should be")));
            };
            if acl.iter().any(|entry| entry.scheme == "digest" && entry.id.ends_with(":x")) {
                self.masked += 1;
            }
            let parent = if path == "/" { "" } else { path };
            all_children.extend(children.iter().map(|child| format!("{parent}/{child}")));
            let acl = acl
                .iter()
                .map(|a| Acl { perms: a.perms, scheme: a.scheme.into(), id: a.id.into() })
                .collect();
            let (data, times) = (data.map(Bytes::copy_from_slice), times_of(&stat));
            let path: Box<str> = path.as_str().into();
            let znode = ImportedZnode { path: path.clone(), data, acl, owner: stat.ephemeral_owner, times };
            self.found.znodes.insert(path, znode);
        }
        Ok(all_children)
    }

    /// Reads again what has changed, and returns how many znodes that was.
    fn read_changed(&mut self) -> io::Result<usize> {
        let known: Vec<(String, Times)> =
            self.found.znodes.iter().map(|(path, znode)| (path.to_string(), znode.times)).collect();
        let mut changed = Vec::new();
        for window in known.chunks(WINDOW) {
            for (path, _) in window {
                self.connection.send(&Request::Exists { path, watch: false })?;
            }
            self.connection.flush()?;
            for (path, times) in window {
                let (header, body) = self.connection.answer()?;
                let same = header.error == ErrorCode::Ok
                    && matches!(decode(OpCode::Exists, &body)?, Response::Stat(stat) if times_of(&stat) == *times);
                if !same {
                    changed.push(path.clone());
                }
            }
        }
        let count = changed.len();
        let mut paths = changed;
        while !paths.is_empty() {
            let mut next = Vec::new();
            for window in paths.chunks(WINDOW) {
                let children = self.read_znodes(window)?;
                next.extend(
                    children.into_iter().filter(|child| !self.found.znodes.contains_key(child.as_str())),
                );
            }
            paths = next;
        }
        Ok(count)
    }

    fn finish(mut self, changed: usize) -> io::Result<Found> {
        self.connection.close();
        let znodes = std::mem::take(&mut self.found.znodes);
        // What lies under a znode that is gone or unreadable can't be taken.
        let mut whole: BTreeMap<Box<str>, ImportedZnode> = BTreeMap::new();
        for (path, znode) in znodes {
            let parent = crate::tree::split_path(&path).map(|(parent, _)| parent);
            if parent.is_none_or(|parent| whole.contains_key(parent)) {
                whole.insert(path, znode);
            }
        }
        self.found.znodes = whole;
        let notes = &mut self.found.notes;
        if self.denied > 0 {
            notes.push(format!("{} znodes may not be read: give --auth of a super user", self.denied));
        }
        if self.masked > 0 {
            notes.push(format!(
                "{} ACLs are shown without their digests and would lock everybody out: give --auth of a super user",
                self.masked
            ));
        }
        if changed > 0 {
            notes.push(format!("{changed} znodes were still changing: stop the writers and import again"));
        }
        notes.push("containers and znodes with a time to live become persistent: clients are not told which they are".into());
        self.found.keep_what_lasts();
        Ok(self.found)
    }
}

fn decode(op: OpCode, body: &Bytes) -> io::Result<Response<'_>> {
    Response::decode(op, body).map_err(io::Error::other)
}

/// The stored part of a stat that clients see; see [`crate::tree::Znode::stat`].
fn times_of(stat: &Stat) -> Times {
    Times {
        czxid: stat.czxid,
        mzxid: stat.mzxid,
        pzxid: stat.pzxid,
        ctime: stat.ctime,
        mtime: stat.mtime,
        version: stat.version,
        cversion: stat.cversion.wrapping_add(stat.num_children) / 2,
        aversion: stat.aversion,
    }
}

/// A session with the ensemble.
struct Connection {
    stream: TcpStream,
    input: BytesMut,
    output: BytesMut,
    xid: i32,
}

impl Connection {
    fn open(address: &str, auth: &[(String, String)]) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"));
        for address in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => return Self::greet(stream, auth),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn greet(stream: TcpStream, auth: &[(String, String)]) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut connection = Self { stream, input: BytesMut::new(), output: BytesMut::new(), xid: 0 };
        let start = begin_frame(&mut connection.output);
        ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: 0,
            timeout_ms: 60_000,
            session_id: 0,
            password: &[0; 16],
            read_only: Some(false),
        }
        .encode(&mut connection.output);
        finish_frame(start, &mut connection.output).map_err(io::Error::other)?;
        connection.flush()?;
        let frame = connection.frame()?;
        let welcome = ConnectResponse::decode(&frame).map_err(io::Error::other)?;
        if welcome.session_id == 0 {
            return Err(io::Error::other("the ensemble opens no session"));
        }
        for (scheme, credentials) in auth {
            let packet = AuthPacket { kind: 0, scheme, auth: credentials.as_bytes() };
            Request::Auth(packet)
                .encode_frame(xid::AUTH, &mut connection.output)
                .map_err(io::Error::other)?;
            connection.flush()?;
            if connection.answer()?.0.error != ErrorCode::Ok {
                return Err(io::Error::other(format!("the ensemble does not accept --auth {scheme}:...")));
            }
        }
        Ok(connection)
    }

    fn send(&mut self, request: &Request<'_>) -> io::Result<()> {
        self.xid = self.xid.wrapping_add(1).max(1);
        request.encode_frame(self.xid, &mut self.output).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.output)?;
        self.output.clear();
        Ok(())
    }

    /// The next reply.
    fn answer(&mut self) -> io::Result<(ReplyHeader, Bytes)> {
        let frame = self.frame()?;
        let (header, body) = ReplyHeader::decode(&frame).map_err(io::Error::other)?;
        Ok((header, frame.slice_ref(body)))
    }

    fn frame(&mut self) -> io::Result<Bytes> {
        let mut chunk = [0; 64 << 10];
        loop {
            if let Some(frame) = cut_frame(&mut self.input, ANSWER_BYTES_MAX).map_err(io::Error::other)? {
                return Ok(frame);
            }
            match self.stream.read(&mut chunk)? {
                0 => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the ensemble closed the connection",
                    ));
                }
                read => self.input.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// Ends the session; if that fails it expires.
    fn close(&mut self) {
        let asked = Request::CloseSession.encode_frame(1, &mut self.output).is_ok() && self.flush().is_ok();
        if asked {
            let _ = self.frame();
        }
    }
}
