//! What was measured, as a table for people and README files, and as JSON. It must never leave a
//! bad number out.

use std::fmt::Write;

use serde_json::{Value, json};

use super::work::{Many, Seen, Work};

/// One row: the same work on both servers.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was done.
    pub work: Work,
    /// By so many at a time.
    pub clients: u64,
    /// What the first server did, then the second.
    pub seen: [Seen; 2],
}

fn ratio(first: f64, second: f64) -> String {
    if first > 0.0 { format!("{:.2}", second / first) } else { "-".to_owned() }
}

/// The rows as a table in Markdown; ratios are the second server's to the first's.
pub fn markdown(names: &[String; 2], rows: &[Row]) -> String {
    let [first, second] = names;
    let mut out = format!(
        "| work | clients | {first} /s | {second} /s | ratio | {first} CPU µs | {second} CPU µs | ratio | \
         {first} p50, p99 ms | {second} p50, p99 ms | errors |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    );
    for row in rows {
        let [one, two] = &row.seen;
        let latency = |seen: &Seen| match seen.latencies.is_empty() {
            true => "-".to_owned(),
            false => format!("{:.1}, {:.1}", seen.quantile(0.5), seen.quantile(0.99)),
        };
        let _ = writeln!(
            out,
            "| {} | {} | {:.0} | {:.0} | {} | {:.1} | {:.1} | {} | {} | {} | {} |",
            row.work.name(),
            row.clients,
            one.rate(),
            two.rate(),
            ratio(one.rate(), two.rate()),
            one.cost(),
            two.cost(),
            ratio(one.cost(), two.cost()),
            latency(one),
            latency(two),
            if one.errors + two.errors == 0 {
                "0".to_owned()
            } else {
                format!("{}, {}", one.errors, two.errors)
            },
        );
    }
    out
}

/// Many leases or watchers, as a table in Markdown.
pub fn many_markdown(what: &str, doing: &str, names: &[String; 2], seen: &[Option<Many>; 2]) -> String {
    let mut out = format!(
        "| {what} | made /s | {doing} /s | CPU µs each | MB of each member before | after |\n|---|---:|---:|---:|---:|---:|\n"
    );
    let megabytes = |bytes: &[u64]| {
        let list: Vec<String> = bytes.iter().map(|bytes| format!("{}", bytes >> 20)).collect();
        list.join(", ")
    };
    for (name, many) in names.iter().zip(seen) {
        let _ = match many {
            None => writeln!(out, "| {name} | failed | | | | |"),
            Some(many) => writeln!(
                out,
                "| {name} | {:.0} | {:.0} | {:.1} | {} | {} |",
                many.made_rate,
                many.rate,
                many.cost,
                megabytes(&many.before),
                megabytes(&many.after)
            ),
        };
    }
    out
}

/// The rows as JSON.
pub fn rows_json(names: &[String; 2], rows: &[Row]) -> Value {
    let side = |seen: &Seen| {
        json!({
            "done": seen.done,
            "per_second": seen.rate(),
            "server_cpu_micros": seen.cost(),
            "p50_ms": seen.quantile(0.5),
            "p99_ms": seen.quantile(0.99),
            "errors": seen.errors,
            "first_error": seen.first_error,
        })
    };
    rows.iter()
        .map(|row| {
            json!({
                "work": row.work.name(),
                "clients": row.clients,
                &names[0]: side(&row.seen[0]),
                &names[1]: side(&row.seen[1]),
            })
        })
        .collect()
}

/// Many leases or watchers as JSON.
pub fn many_json(names: &[String; 2], seen: &[Option<Many>; 2]) -> Value {
    let side = |many: &Many| {
        json!({
            "made_per_second": many.made_rate,
            "per_second": many.rate,
            "server_cpu_micros": many.cost,
            "resident_before": many.before,
            "resident_after": many.after,
        })
    };
    json!({ &names[0]: seen[0].as_ref().map(side), &names[1]: seen[1].as_ref().map(side) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ratios_are_of_the_second_to_the_first() {
        let seen = |done, micros| Seen {
            done,
            took: Duration::from_secs(1),
            processor: Duration::from_micros(micros),
            latencies: vec![1000],
            ..Seen::default()
        };
        let row = Row { work: Work::Put, clients: 64, seen: [seen(100, 1000), seen(250, 1250)] };
        let names = ["etcd".to_owned(), "ours".to_owned()];
        let table = markdown(&names, &[row]);
        let last = table.lines().last().unwrap();
        assert_eq!(last, "| put | 64 | 100 | 250 | 2.50 | 10.0 | 5.0 | 0.50 | 1.0, 1.0 | 1.0, 1.0 | 0 |");
    }
}
