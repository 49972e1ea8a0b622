//! What a number depends on: the machine, its disk, and what else it does at the moment.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Clock ticks of `/proc` in a second; the same on every Linux that Rust supports.
const TICKS: f64 = 100.0;
/// Bytes that one probe of the disk writes before it syncs.
const PROBE_BYTES: usize = 4096;
/// Bytes of the file that is probed.
const PROBE_FILE_BYTES: usize = 16 * 1024 * 1024;

/// Kernel, processors and load averages.
pub fn describe() -> Value {
    let word = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    json!({
        "kernel": word("/proc/sys/kernel/osrelease"),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "load": word("/proc/loadavg"),
    })
}

/// Processor time that this process has used.
pub fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    ticks(&stat).map_or(Duration::ZERO, |ticks| Duration::from_secs_f64(ticks as f64 / TICKS))
}

/// Processor time that another process has used; none for one that has ended.
pub fn processor_time_of(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    ticks(&stat).map_or(Duration::ZERO, |ticks| Duration::from_secs_f64(ticks as f64 / TICKS))
}

/// User and system time in a line of `/proc/PID/stat`.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(number(11)? + number(12)?)
}

/// Resident memory of a process, in bytes.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// What the disk under `dir` does on its own: writes of 4 KiB into a file that is allocated and
/// written, each followed by `fdatasync`, for `during`. Returns their number in a second.
///
/// # Errors
/// The disk's.
pub fn syncs_per_second(dir: &Path, during: Duration) -> std::io::Result<f64> {
    let path = dir.join("probe");
    let mut file = File::create(&path)?;
    file.write_all(&vec![0; PROBE_FILE_BYTES])?;
    file.sync_all()?;
    let bytes = [7; PROBE_BYTES];
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < during {
        let at = count % (PROBE_FILE_BYTES / PROBE_BYTES) * PROBE_BYTES;
        file.write_all_at(&bytes, at as u64)?;
        file.sync_data()?;
        count += 1;
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    fs::remove_file(path)?;
    Ok(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        assert_eq!(ticks("1 (a) b) S 0 1 1 0 -1 0 0 0 0 0 30 12 0 0 20 0"), Some(42));
        assert_eq!(ticks("nothing"), None);
    }

    #[test]
    fn this_process_is_resident_and_the_disk_syncs() {
        assert!(resident_bytes(std::process::id()).unwrap() > 1 << 20);
        let dir = tempfile::tempdir().unwrap();
        assert!(syncs_per_second(dir.path(), Duration::from_millis(20)).unwrap() > 0.0);
        assert!(dir.path().read_dir().unwrap().next().is_none());
    }
}
