//! A client's requests and what their replies show.

use bytes::Bytes;
use meridian_wire::{
    Acl, AddWatchMode, Create, CreateMode, ErrorCode, OpCode, OpResult, ReplyHeader, Request, Response, Stat,
};

use super::seen::Once;
use super::{Client, Disconnected};

/// What a request came to: a refusal is an answer, too.
pub(in crate::sim) type Answer<T> = Result<Result<T, ErrorCode>, Disconnected>;

impl Client {
    pub(in crate::sim) async fn create(
        &mut self,
        path: &str,
        data: &str,
        mode: CreateMode,
    ) -> Answer<(String, Stat)> {
        self.send(&create(path, data, mode)).await?;
        self.create_reply().await
    }

    /// The reply to a [`create`] that was sent.
    pub(in crate::sim) async fn create_reply(&mut self) -> Answer<(String, Stat)> {
        let (header, body) = self.reply().await?;
        Ok(self.read(header, &body, OpCode::Create2, |client, response| match response {
            Response::Create2 { path, stat } => {
                client.show(path, Some(&stat));
                Some((path.to_string(), stat))
            }
            _ => None,
        }))
    }

    /// Writes data if the znode has the version, or in any case if it is -1.
    pub(in crate::sim) async fn set(&mut self, path: &str, data: &str, version: i32) -> Answer<Stat> {
        self.send(&set(path, data, version)).await?;
        self.set_reply(path).await
    }

    /// The reply to a [`set`] that was sent.
    pub(in crate::sim) async fn set_reply(&mut self, path: &str) -> Answer<Stat> {
        let (header, body) = self.reply().await?;
        Ok(self.read(header, &body, OpCode::SetData, |client, response| match response {
            Response::Stat(stat) => {
                client.show(path, Some(&stat));
                Some(stat)
            }
            _ => None,
        }))
    }

    pub(in crate::sim) async fn delete(&mut self, path: &str) -> Answer<()> {
        let (header, _) = self.call(&Request::Delete { path, version: -1 }).await?;
        match header.error {
            ErrorCode::Ok | ErrorCode::NoNode => self.show(path, None),
            _ => {}
        }
        Ok(if header.error == ErrorCode::Ok { Ok(()) } else { Err(header.error) })
    }

    /// Reads data and stat, and leaves a watch of them if wanted.
    pub(in crate::sim) async fn get(&mut self, path: &str, watch: bool) -> Answer<(String, Stat)> {
        let (header, body) = self.call(&Request::GetData { path, watch }).await?;
        if header.error == ErrorCode::NoNode {
            self.show(path, None);
        }
        Ok(self.read(header, &body, OpCode::GetData, |client, response| match response {
            Response::Data { data, stat } => {
                client.show(path, Some(&stat));
                if watch {
                    client.seen.watch(path, Once::Data, Some(&stat));
                }
                Some((text(data), stat))
            }
            _ => None,
        }))
    }

    /// Whether a znode exists; leaves a watch if wanted, in any case.
    pub(in crate::sim) async fn exists(&mut self, path: &str, watch: bool) -> Answer<Option<Stat>> {
        let (header, body) = self.call(&Request::Exists { path, watch }).await?;
        let stat = match header.error {
            ErrorCode::NoNode => None,
            ErrorCode::Ok => match Response::decode(OpCode::Exists, &body) {
                Ok(Response::Stat(stat)) => Some(stat),
                _ => return Ok(Err(ErrorCode::MarshallingError)),
            },
            error => return Ok(Err(error)),
        };
        self.show(path, stat.as_ref());
        if watch {
            self.seen.watch(path, Once::Data, stat.as_ref());
        }
        Ok(Ok(stat))
    }

    /// The names of a znode's children; leaves a watch of them if wanted.
    pub(in crate::sim) async fn children(&mut self, path: &str, watch: bool) -> Answer<Vec<String>> {
        let (header, body) = self.call(&Request::GetChildren2 { path, watch }).await?;
        if header.error == ErrorCode::NoNode {
            self.show(path, None);
        }
        Ok(self.read(header, &body, OpCode::GetChildren2, |client, response| match response {
            Response::Children2 { children, stat } => {
                client.show(path, Some(&stat));
                if watch {
                    client.seen.watch(path, Once::Child, Some(&stat));
                }
                Some(children.into_iter().map(str::to_string).collect())
            }
            _ => None,
        }))
    }

    /// What is read after it shows all that anybody was told of before.
    pub(in crate::sim) async fn sync(&mut self, path: &str) -> Answer<()> {
        let (header, _) = self.call(&Request::Sync { path }).await?;
        Ok(if header.error == ErrorCode::Ok { Ok(()) } else { Err(header.error) })
    }

    /// All or none of these; an error is that of the operation that failed.
    pub(in crate::sim) async fn multi(&mut self, operations: Vec<Request<'_>>) -> Answer<()> {
        let paths: Vec<String> =
            operations.iter().map(|o| o.path().unwrap_or_default().to_string()).collect();
        let (header, body) = self.call(&Request::Multi(operations)).await?;
        let outcome = self.read(header, &body, OpCode::Multi, |client, response| {
            let Response::Results(results) = response else { return None };
            let mut failure = None;
            for (path, result) in paths.iter().zip(results) {
                match result {
                    OpResult::SetData(stat) => client.show(path, Some(&stat)),
                    OpResult::Error(ErrorCode::Ok | ErrorCode::RuntimeInconsistency) => {}
                    OpResult::Error(error) => failure = Some(error),
                    _ => {}
                }
            }
            Some(failure)
        });
        Ok(outcome.and_then(|failure| failure.map_or(Ok(()), Err)))
    }

    /// Reads several znodes at one moment.
    pub(in crate::sim) async fn get_all(&mut self, paths: &[&str]) -> Answer<Vec<String>> {
        let operations = paths.iter().map(|path| Request::GetData { path, watch: false }).collect();
        let (header, body) = self.call(&Request::MultiRead(operations)).await?;
        Ok(self.read(header, &body, OpCode::MultiRead, |client, response| {
            let Response::Results(results) = response else { return None };
            let read = paths.iter().zip(results).map(|(path, result)| match result {
                OpResult::GetData { data, stat } => {
                    client.show(path, Some(&stat));
                    Some(text(data))
                }
                _ => None,
            });
            read.collect()
        }))
    }

    /// Leaves a watch that stays.
    pub(in crate::sim) async fn watch_lastingly(&mut self, path: &str, recursive: bool) -> Answer<()> {
        let mode = if recursive { AddWatchMode::PersistentRecursive } else { AddWatchMode::Persistent };
        let (header, _) = self.call(&Request::AddWatch { path, mode: mode.into() }).await?;
        if header.error != ErrorCode::Ok {
            return Ok(Err(header.error));
        }
        self.seen.watch_lastingly(path, recursive);
        Ok(Ok(()))
    }

    /// Ends the session. When it is answered, the session's ephemerals are gone.
    pub(in crate::sim) async fn close_session(&mut self) -> Answer<()> {
        let (header, _) = self.call(&Request::CloseSession).await?;
        Ok(if header.error == ErrorCode::Ok { Ok(()) } else { Err(header.error) })
    }

    /// Whether a watch that fires once is set.
    pub(in crate::sim) fn is_watched(&self, path: &str, kind: Once) -> bool {
        self.seen.is_watched(path, kind)
    }

    /// Paths with watches.
    pub(in crate::sim) fn watched_paths(&self) -> impl Iterator<Item = String> + use<> {
        self.seen.watched_paths().into_iter()
    }

    fn show(&mut self, path: &str, stat: Option<&Stat>) {
        let finding = self.seen.shown(path, stat);
        self.expect(finding);
    }

    fn read<T>(
        &mut self,
        header: ReplyHeader,
        body: &Bytes,
        op: OpCode,
        take: impl FnOnce(&mut Self, Response<'_>) -> Option<T>,
    ) -> Result<T, ErrorCode> {
        if header.error != ErrorCode::Ok {
            return Err(header.error);
        }
        let response = Response::decode(op, body).map_err(|_| ErrorCode::MarshallingError)?;
        take(self, response).ok_or(ErrorCode::MarshallingError)
    }
}

pub(in crate::sim) fn create<'a>(path: &'a str, data: &'a str, mode: CreateMode) -> Request<'a> {
    let data = Some(data.as_bytes());
    Request::Create2(Create { path, data, acl: vec![Acl::OPEN], flags: mode.into() })
}

pub(in crate::sim) fn set<'a>(path: &'a str, data: &'a str, version: i32) -> Request<'a> {
    Request::SetData { path, data: Some(data.as_bytes()), version }
}

fn text(data: Option<&[u8]>) -> String {
    String::from_utf8_lossy(data.unwrap_or_default()).into_owned()
}
