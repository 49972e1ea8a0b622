//! Many workers in a process of their own, so that what a manager pays for them can be told from what they pay
//! themselves. Each has its own certificate, connection and session, and runs nothing.
//!
//! The process is told what to do by lines of JSON on its input, and answers each by one line. It ends with
//! its input, so that it never outlives who started it.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use raft_kv::client::enrol;
use raft_kv::pki::{Credentials, Identity};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::fleet_worker::{Seen, work};
use crate::load::Seen as Latencies;

/// Enrolments and openings at a time.
const AT_A_TIME: usize = 32;
/// How long all sessions may take to open.
const OPENING: Duration = Duration::from_secs(300);
/// How long answers may take behind the last report.
const ANSWERS: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Fleet {
    workers: Vec<Credentials>,
    nodes: Vec<u64>,
    seen: Arc<Seen>,
    asks: Vec<mpsc::UnboundedSender<Instant>>,
    tasks: JoinSet<()>,
}

/// Does what the lines of the input say, until it ends.
///
/// # Errors
/// Only where nobody reads its answers.
pub async fn run() -> Result<(), String> {
    let (line, mut lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for said in std::io::stdin().lock().lines().map_while(Result::ok) {
            if line.blocking_send(said).is_err() {
                return;
            }
        }
    });
    let mut fleet = Fleet::default();
    while let Some(said) = lines.recv().await {
        let said: Value = serde_json::from_str(&said).map_err(|error| error.to_string())?;
        let answer = fleet.obey(&said).await.unwrap_or_else(|error| json!({ "error": error }));
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}").and_then(|()| out.flush()).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn text<'a>(said: &'a Value, name: &str) -> Result<&'a str, String> {
    said[name].as_str().ok_or_else(|| format!("{name} is missing"))
}

fn number(said: &Value, name: &str) -> Result<u64, String> {
    said[name].as_u64().ok_or_else(|| format!("{name} is missing"))
}

impl Fleet {
    async fn obey(&mut self, said: &Value) -> Result<Value, String> {
        match text(said, "do")? {
            "enrol" => self.enrol(text(said, "token")?, text(said, "member")?, number(said, "count")?).await,
            "open" => {
                let doors: Vec<String> = said["doors"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|door| door.as_str().map(str::to_owned))
                    .collect();
                self.open(&doors).await
            }
            "all open" => self.all_open().await,
            "report" => self.report(number(said, "rate")?, number(said, "seconds")?).await,
            "close" => {
                self.asks.clear();
                self.tasks.shutdown().await;
                Ok(json!({}))
            }
            other => Err(format!("{other} is nothing that can be done")),
        }
    }

    /// Answers the nodes' ids.
    async fn enrol(&mut self, token: &str, member: &str, count: u64) -> Result<Value, String> {
        let mut enrolling = JoinSet::new();
        for number in 0..count {
            if enrolling.len() >= AT_A_TIME {
                self.enrolled(&mut enrolling).await?;
            }
            let (token, member) = (token.to_owned(), member.to_owned());
            enrolling.spawn(async move { enrol(&token, &[member], &format!("w{number}")).await });
        }
        while !enrolling.is_empty() {
            self.enrolled(&mut enrolling).await?;
        }
        Ok(json!({ "nodes": self.nodes }))
    }

    async fn enrolled(
        &mut self,
        enrolling: &mut JoinSet<Result<Credentials, raft_kv::error::Error>>,
    ) -> Result<(), String> {
        let Some(one) = enrolling.join_next().await else { return Ok(()) };
        let own = one.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let shown = own.chain.first().and_then(|cert| Identity::from_cert(cert).ok());
        self.nodes.push(shown.ok_or("a certificate without a node's id")?.node.0);
        self.workers.push(own);
        Ok(())
    }

    /// Opens every worker's session anew, spread over the doors.
    async fn open(&mut self, doors: &[String]) -> Result<Value, String> {
        if doors.is_empty() {
            return Err("there is no door".to_owned());
        }
        self.asks.clear();
        self.tasks.shutdown().await;
        self.seen = Arc::new(Seen::default());
        let began = Instant::now();
        for (number, own) in self.workers.iter().enumerate() {
            let (ask, asks) = mpsc::unbounded_channel();
            self.asks.push(ask);
            self.tasks.spawn(work(own.clone(), doors.to_vec(), number, asks, self.seen.clone()));
            // Not all at once: a door lets in so many at a time.
            while self.tasks.len() as u64 > self.seen.open.load(Ordering::Relaxed) + AT_A_TIME as u64 {
                if began.elapsed() > OPENING {
                    return Err("the sessions do not open".to_owned());
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        let mut opened = self.all_open().await?;
        opened["seconds"] = json!(began.elapsed().as_secs_f64());
        Ok(opened)
    }

    /// Waits until all are open; what was sent to them since the last such answer.
    async fn all_open(&self) -> Result<Value, String> {
        let began = Instant::now();
        while self.seen.open.load(Ordering::Relaxed) < self.workers.len() as u64 {
            if began.elapsed() > OPENING {
                let open = self.seen.open.load(Ordering::Relaxed);
                return Err(format!("{open} of {} sessions are open", self.workers.len()));
            }
            tokio::time::sleep(LOOK).await;
        }
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        Ok(json!({
            "seconds": began.elapsed().as_secs_f64(),
            "opened": take(&self.seen.opened),
            "sent_whole": take(&self.seen.whole),
            "tasks_sent": take(&self.seen.tasks),
            "bytes_sent": take(&self.seen.bytes),
        }))
    }

    /// One status at a time, the workers in turn, at a steady rate: late answers make nobody wait.
    async fn report(&self, rate: u64, seconds: u64) -> Result<Value, String> {
        let asks: Vec<&mpsc::UnboundedSender<Instant>> = self.asks.iter().collect();
        if asks.is_empty() || rate == 0 {
            return Err("there is nobody to report".to_owned());
        }
        let (all, began) = (rate * seconds, Instant::now());
        let mut asked = 0;
        while asked < all {
            let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
            while asked < due.min(all) {
                // As of when it should have begun: a late start counts as waiting.
                let at = began + Duration::from_secs_f64(asked as f64 / rate as f64);
                let _ = asks[asked as usize % asks.len()].send(at);
                asked += 1;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let over = Instant::now();
        let counted = || self.seen.latencies.lock().expect("nobody panics with it").len() as u64;
        while counted() + self.seen.lost.load(Ordering::Relaxed) < all && over.elapsed() < ANSWERS {
            tokio::time::sleep(LOOK).await;
        }
        let mut latencies = std::mem::take(&mut *self.seen.latencies.lock().expect("nobody panics with it"));
        latencies.sort_unstable();
        let errors = all - latencies.len() as u64;
        let took = began.elapsed();
        let seen = Latencies { latencies, errors, took };
        let round = |value: f64| (value * 100.0).round() / 100.0;
        Ok(json!({
            "reports": seen.done(),
            "not_taken": errors,
            "reports_per_second": seen.rate().round(),
            "p50_ms": round(seen.quantile(0.5)),
            "p99_ms": round(seen.quantile(0.99)),
            "max_ms": round(seen.quantile(1.0)),
        }))
    }
}
