//! The `meridian` command.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Memory that is not needed for a second goes back. By default it takes ten: a fifth more memory after a snapshot, and
/// not a microsecond less per write.
#[allow(unsafe_code, reason = "jemalloc reads its settings under this name, and nothing else has it")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_SETTINGS: &[u8; 20] = b"dirty_decay_ms:1000\0";

fn main() -> ExitCode {
    meridian_node::command::run()
}
