//! What happened in a run, in order: two runs of one seed must not differ in it.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::net::HostId;

/// The record of a run. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Trace(Arc<Mutex<Content>>);

#[derive(Default)]
struct Content {
    /// Folded over all events.
    digest: u64,
    count: u64,
    print: bool,
    /// All events, if they are kept.
    kept: Option<Vec<Happening>>,
}

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Happening {
    /// A packet reached its host.
    Packet { now_ms: u64, kind: &'static str, from: HostId, to: HostId, bytes: usize },
    /// A client did or learnt something, or a fault struck.
    Note { now_ms: u64, text: String },
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Happening::Packet { now_ms, kind, from, to, bytes } => {
                write!(f, "{now_ms:>8} {kind} {from} > {to} {bytes}")
            }
            Happening::Note { now_ms, text } => write!(f, "{now_ms:>8} {text}"),
        }
    }
}

impl Trace {
    /// Prints notes as they come.
    pub(super) fn printing() -> Self {
        Self(Arc::new(Mutex::new(Content { print: true, ..Content::default() })))
    }

    /// Keeps all events, to be compared.
    pub(super) fn keeping() -> Self {
        Self(Arc::new(Mutex::new(Content { kept: Some(Vec::new()), ..Content::default() })))
    }

    pub(super) fn packet(&self, now_ms: u64, kind: &'static str, from: HostId, to: HostId, bytes: usize) {
        let mut content = self.0.lock();
        content.fold(kind.as_bytes());
        content.fold(&now_ms.to_le_bytes());
        content.fold(&[from, to]);
        content.fold(&bytes.to_le_bytes());
        content.keep(|| Happening::Packet { now_ms, kind, from, to, bytes });
    }

    pub(super) fn note(&self, now_ms: u64, text: fmt::Arguments<'_>) {
        let mut content = self.0.lock();
        let text = text.to_string();
        if content.print {
            println!("{now_ms:>8} {text}");
        }
        content.fold(&now_ms.to_le_bytes());
        content.fold(text.as_bytes());
        content.keep(|| Happening::Note { now_ms, text });
    }

    /// A digest of all events, and how many they are.
    pub(super) fn digest(&self) -> (u64, u64) {
        let content = self.0.lock();
        (content.digest, content.count)
    }

    /// All events.
    pub(super) fn take(&self) -> Vec<Happening> {
        self.0.lock().kept.take().unwrap_or_default()
    }
}

impl Content {
    fn fold(&mut self, bytes: &[u8]) {
        // FNV-1a.
        for byte in bytes {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn keep(&mut self, happening: impl FnOnce() -> Happening) {
        self.count += 1;
        if let Some(kept) = &mut self.kept {
            kept.push(happening());
        }
    }
}
