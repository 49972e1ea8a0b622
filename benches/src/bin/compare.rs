//! `compare`: Debian's etcd and ours, three members each, in one run: the same machine, client
//! program, kind of certificates and disk, fsync on. While one is measured the other is stopped
//! (SIGSTOP). They take turns, so that what drifts meets both.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use raft_kv_benches::compare::clusters::{Cluster, Etcd, RaftKv};
use raft_kv_benches::compare::report::{Row, many_json, many_markdown, markdown, rows_json};
use raft_kv_benches::compare::work::{self, Many, Seen, WORKS};
use raft_kv_benches::host;
use serde_json::json;

/// Measures Debian's etcd and raft-kv under the same load
#[derive(Parser)]
struct Args {
    /// The binary raft-kv; without it etcd is measured against itself, which shows the noise
    #[arg(long)]
    bin: Option<PathBuf>,
    /// For the members' data, on the disk that is meant; removed at the end
    #[arg(long)]
    dir: PathBuf,
    /// Seconds of each cell in each round
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Turns of each server
    #[arg(long, default_value_t = 2)]
    rounds: u64,
    /// Clients at a time
    #[arg(long, value_delimiter = ',', default_value = "1,64,512")]
    clients: Vec<u64>,
    /// Only work whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Also so many leases with keep-alives
    #[arg(long, default_value_t = 0)]
    leases: u64,
    /// Also so many watchers of one key each
    #[arg(long, default_value_t = 0)]
    watchers: u64,
    /// Write everything here as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the tables here
    #[arg(long)]
    markdown: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<(), String> {
    let args = Args::parse();
    std::fs::create_dir_all(&args.dir).map_err(|error| format!("{}: {error}", args.dir.display()))?;
    let dir = tempfile::Builder::new().prefix("compare-").tempdir_in(&args.dir).map_err(|e| e.to_string())?;
    let before = host::describe();
    let syncs = host::syncs_per_second(dir.path(), Duration::from_secs(2)).map_err(|e| e.to_string())?;
    let clusters = start(&args, dir.path()).await?;
    let names = [clusters[0].name(), clusters[1].name()];
    let mut rows: Vec<Row> = Vec::new();
    for work in WORKS.into_iter().filter(|work| work.name().contains(&args.only)) {
        let row = |clients: &u64| Row { work, clients: *clients, seen: [Seen::default(), Seen::default()] };
        rows.extend(args.clients.iter().map(row));
    }
    for round in 1..=args.rounds {
        for (turn, cluster) in clusters.iter().enumerate() {
            only_runs(&clusters, turn).await?;
            for row in &mut rows {
                let (warm_up, during) = (Duration::from_secs(1), Duration::from_secs(args.seconds));
                let seen = work::cell(cluster.as_ref(), row.work, row.clients, warm_up, during).await;
                eprintln!(
                    "compare: round {round}, {}: {}, {} clients: {:.0}/s, {:.1} µs of CPU each, {} errors {}",
                    cluster.name(),
                    row.work.name(),
                    row.clients,
                    seen.rate(),
                    seen.cost(),
                    seen.errors,
                    seen.first_error.as_deref().unwrap_or_default()
                );
                row.seen[turn].join(seen);
            }
        }
    }
    let resident = [clusters[0].resident(), clusters[1].resident()];
    let (mut leases, mut watchers): ([Option<Many>; 2], [Option<Many>; 2]) = Default::default();
    for (turn, cluster) in clusters.iter().enumerate() {
        only_runs(&clusters, turn).await?;
        let during = Duration::from_secs(args.seconds);
        if args.watchers > 0 {
            watchers[turn] = said(work::watchers(cluster.as_ref(), args.watchers, during).await);
        }
        if args.leases > 0 {
            leases[turn] = said(work::leases(cluster.as_ref(), args.leases, during).await);
        }
    }
    for cluster in &clusters {
        cluster.run(true)?;
    }
    let mut tables = format!(
        "Three members each, {} rounds of {} s a cell, {:.0} fdatasync/s of the disk alone, host {before}; \
         resident MB of the members at the end: {} {:?}, {} {:?}.\n\n",
        args.rounds,
        args.seconds,
        syncs,
        names[0],
        resident[0].iter().map(|bytes| bytes >> 20).collect::<Vec<_>>(),
        names[1],
        resident[1].iter().map(|bytes| bytes >> 20).collect::<Vec<_>>(),
    );
    tables.push_str(&markdown(&names, &rows));
    if args.leases > 0 {
        let what = format!("{} leases", args.leases);
        tables.push_str(&format!("\n{}", many_markdown(&what, "keep-alives", &names, &leases)));
    }
    if args.watchers > 0 {
        let what = format!("{} watchers", args.watchers);
        tables.push_str(&format!("\n{}", many_markdown(&what, "events", &names, &watchers)));
    }
    print!("{tables}");
    let all = json!({
        "host": before,
        "syncs_per_second": syncs,
        "seconds": args.seconds,
        "rounds": args.rounds,
        "rows": rows_json(&names, &rows),
        "leases": many_json(&names, &leases),
        "watchers": many_json(&names, &watchers),
    });
    let write = |path: &Option<PathBuf>, text: String| match path {
        None => Ok(()),
        Some(path) => std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display())),
    };
    write(&args.json, format!("{all:#}\n"))?;
    write(&args.markdown, tables)
}

/// Both servers with their keys, etcd first.
async fn start(args: &Args, dir: &Path) -> Result<[Box<dyn Cluster>; 2], String> {
    let etcd = Etcd::start("etcd", &dir.join("etcd"))?;
    work::prepare(&etcd).await?;
    etcd.run(false)?;
    let second: Box<dyn Cluster> = match &args.bin {
        Some(bin) => Box::new(RaftKv::start(bin, &dir.join("raft-kv")).await?),
        None => Box::new(Etcd::start("etcd again", &dir.join("again"))?),
    };
    work::prepare(second.as_ref()).await?;
    second.run(false)?;
    Ok([Box::new(etcd), second])
}

/// Stops all but one, and waits until that one serves.
async fn only_runs(clusters: &[Box<dyn Cluster>; 2], turn: usize) -> Result<(), String> {
    clusters[1 - turn].run(false)?;
    clusters[turn].run(true)?;
    work::ready(clusters[turn].as_ref()).await
}

/// A measurement that failed is said and shows in the table.
fn said(many: Result<Many, String>) -> Option<Many> {
    many.inspect_err(|why| eprintln!("compare: {why}")).ok()
}
