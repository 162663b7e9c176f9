//! The servers' own log, with virtual time.

use std::cell::Cell;
use std::fmt;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

thread_local! {
    static NOW_MS: Cell<u64> = const { Cell::new(0) };
}

pub(super) fn set_time(now_ms: u64) {
    NOW_MS.set(now_ms);
}

/// Shows what `RUST_LOG` asks for.
pub(super) fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    // A second start changes nothing.
    let _ =
        tracing_subscriber::fmt().with_env_filter(filter).with_timer(VirtualTime).with_ansi(false).try_init();
}

struct VirtualTime;

impl FormatTime for VirtualTime {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{:>8}", NOW_MS.get())
    }
}
