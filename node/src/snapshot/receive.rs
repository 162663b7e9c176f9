use std::io::{self, Write};
use std::sync::atomic::Ordering;

use super::write::TemporaryFile;
use super::{SnapshotError, SnapshotId, SnapshotReader, SnapshotStore};

/// Takes over the bytes of another server's [`super::RawSnapshot`]. Nothing of them is used before
/// [`SnapshotReceiver::finish`] has checked them all. Dropped unfinished, it leaves nothing.
pub struct SnapshotReceiver {
    temporary: TemporaryFile,
    id: SnapshotId,
    bytes_max: u64,
}

impl SnapshotReceiver {
    pub(super) fn create(
        store: &SnapshotStore,
        id: SnapshotId,
        bytes_max: u64,
    ) -> Result<Self, SnapshotError> {
        // Transfers may run side by side, also of the same snapshot.
        let transfer = store.transfers.fetch_add(1, Ordering::Relaxed);
        let temporary = TemporaryFile::create(store, &format!("received-{transfer}"))?;
        Ok(SnapshotReceiver { temporary, id, bytes_max })
    }

    /// Bytes received so far.
    pub fn received_bytes(&self) -> u64 {
        self.temporary.end()
    }

    /// Checks what was received, makes it durable and puts it among the snapshots.
    ///
    /// # Errors
    /// [`SnapshotError::Corrupt`] when it is not a whole snapshot, or another than was announced; then nothing of
    /// it stays.
    pub fn finish(mut self) -> Result<SnapshotId, SnapshotError> {
        let mut reader = SnapshotReader::open(&*self.temporary.store().disk, self.temporary.path())?;
        if reader.id() != self.id {
            let reason = "it is not the snapshot that was announced";
            return Err(SnapshotError::corrupt(self.temporary.path(), 0, reason));
        }
        reader.check_rest()?;
        self.temporary.publish(self.id)?;
        Ok(self.id)
    }
}

impl Write for SnapshotReceiver {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let total = self.temporary.end().saturating_add(bytes.len() as u64);
        if total > self.bytes_max {
            let error = SnapshotError::TooLong { what: "a snapshot", bytes: total, max: self.bytes_max };
            return Err(error.into());
        }
        self.temporary.append(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
