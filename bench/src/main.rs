//! The meridian-bench command.

fn main() -> std::process::ExitCode {
    meridian_bench::command::run()
}
