//! Which indices a log holds.

use super::{LogError, Record};

/// The rule of a log's order, applied to each record before it is written and again when it is recovered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Span {
    purged: Option<u64>,
    /// The index of the next entry; `None` while the log may begin anywhere.
    next: Option<u64>,
    /// The index of the oldest entry, if there is one.
    first: Option<u64>,
}

impl Span {
    /// The span at the start of a segment whose predecessors are gone.
    pub(super) fn starting_at(first: Option<u64>, next: Option<u64>) -> Self {
        Self { purged: None, first, next }
    }

    pub(super) fn first(&self) -> Option<u64> {
        self.first
    }

    pub(super) fn next(&self) -> Option<u64> {
        self.next
    }

    pub(super) fn purged(&self) -> Option<u64> {
        self.purged
    }

    /// Takes a record into account, or refuses it.
    pub(super) fn apply(&mut self, record: &Record) -> Result<(), LogError> {
        match record {
            Record::Entry { index, .. } => self.append(*index),
            Record::TruncateFrom { index } => self.truncate(*index),
            Record::Purged { index, .. } => self.purge(*index),
            Record::Vote(_) | Record::Committed(_) | Record::Closed => Ok(()),
        }
    }

    fn append(&mut self, index: u64) -> Result<(), LogError> {
        if let Some(next) = self.next.filter(|next| *next != index) {
            return Err(out_of_order(index, format!("the next entry is {next}")));
        }
        self.next = Some(after(index)?);
        self.first.get_or_insert(index);
        Ok(())
    }

    fn truncate(&mut self, index: u64) -> Result<(), LogError> {
        if let Some(purged) = self.purged.filter(|purged| *purged >= index) {
            return Err(out_of_order(index, format!("entries up to {purged} are purged")));
        }
        if self.next.is_none_or(|next| next <= index) {
            return Ok(());
        }
        if self.first.is_some_and(|first| index <= first) {
            self.first = None;
        }
        self.next = if self.first.is_none() && self.purged.is_none() { None } else { Some(index) };
        Ok(())
    }

    fn purge(&mut self, index: u64) -> Result<(), LogError> {
        if let Some(purged) = self.purged.filter(|purged| *purged > index) {
            return Err(out_of_order(index, format!("entries up to {purged} are purged already")));
        }
        let next = after(index)?;
        self.purged = Some(index);
        self.first = match (self.first, self.next) {
            (Some(first), Some(end)) if end > next => Some(first.max(next)),
            _ => None,
        };
        self.next = self.next.max(Some(next));
        Ok(())
    }
}

/// In a segment's header the last of all numbers stands for none.
fn after(index: u64) -> Result<u64, LogError> {
    let next = index.checked_add(1).filter(|next| *next != super::segment::NO_INDEX);
    next.ok_or_else(|| out_of_order(index, "no index may follow it".into()))
}

fn out_of_order(index: u64, reason: String) -> LogError {
    LogError::OutOfOrder { index, reason }
}
