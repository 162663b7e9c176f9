//! Processor time of processes, as Linux counts it.

use std::time::Duration;

use anyhow::Context;

/// The processor time, user and system, that a process has used so far. Counted in ticks of 10 ms as a
/// rule.
///
/// # Errors
/// If there is no such process, or no `/proc`.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let file = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&file).with_context(|| format!("no process {pid}: {file}"))?;
    let ticks = ticks(&stat).with_context(|| format!("{file} is not as proc(5) says"))?;
    let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
    Ok(Duration::from_nanos(ticks.saturating_mul(1_000_000_000 / ticks_per_second)))
}

/// The sum of [`cpu_time`] over several processes.
///
/// # Errors
/// As [`cpu_time`].
pub fn cpu_time_of_all(pids: &[u32]) -> anyhow::Result<Duration> {
    pids.iter().map(|pid| cpu_time(*pid)).sum()
}

/// The memory that a process has resident, in bytes.
///
/// # Errors
/// If there is no such process, or no `/proc`.
pub fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let file = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&file).with_context(|| format!("no process {pid}: {file}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

/// utime and stime, the 14th and 15th fields. The 2nd is the program's name in brackets, in which there
/// may be anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_fields() {
        let stat = "42 (a b) S 1 ) R 1 2 3 4 5 6 7 8 9 10 250 50 13 14 15";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("42 (a) R 1 2"), None);
        assert_eq!(ticks(""), None);
    }

    #[test]
    fn this_process_is_counted() {
        let before = cpu_time(std::process::id()).unwrap();
        while cpu_time(std::process::id()).unwrap() == before {
            std::hint::black_box(before);
        }
        assert!(cpu_time(u32::MAX).is_err());
    }
}
