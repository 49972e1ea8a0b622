//! That each byte of a capture belongs to TLS 1.3 or to QUIC: everything that is in clear on the wire is
//! framing, hellos and alerts.

use super::capture::{Flow, Kind, Way};

/// What of TLS there is in clear, by type of record.
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const SUPPORTED_VERSIONS: u16 = 43;

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// Whether `flow` is nothing but TLS 1.3 or QUIC from its first byte on, or what else it is.
pub fn check(flow: &Flow) -> Result<(), String> {
    match flow.kind {
        Kind::Tcp => {
            records(&flow.stream(Way::There), CLIENT_HELLO)?;
            records(&flow.stream(Way::Back), SERVER_HELLO)
        }
        Kind::Udp => datagrams(flow),
    }
}

/// One direction of a TLS connection: one hello, and from there on nothing that can be read.
fn records(mut rest: &[u8], hello: u8) -> Result<(), String> {
    let mut hellos = 0;
    while !rest.is_empty() {
        // A connection that was cut ends anywhere.
        if rest.len() < 5 {
            return if rest[0] <= APPLICATION_DATA { Ok(()) } else { Err(format!("{rest:x?} at the end")) };
        }
        let (kind, version, len) = (rest[0], number(&rest[1..3]), number(&rest[3..5]));
        if !(0x0301..=0x0303).contains(&version) || len == 0 || len > 16_384 + 256 {
            return Err(format!("no TLS record: {:x?}", &rest[..rest.len().min(40)]));
        }
        let Some(body) = rest.get(5..5 + len) else { return Ok(()) };
        match kind {
            HANDSHAKE if hellos == 0 => {
                if body[0] != hello {
                    return Err(format!("the first message is {}", body[0]));
                }
                versions(&body[4..], hello)?;
                hellos += 1;
            }
            APPLICATION_DATA if hellos == 1 => {}
            CHANGE_CIPHER_SPEC if body == [1] && hellos == 1 => {}
            // In clear only while there are no keys: nothing but its two bytes.
            ALERT if len == 2 => {}
            _ => return Err(format!("a record of type {kind} in clear after {hellos} hellos")),
        }
        rest = &rest[5 + len..];
    }
    Ok(())
}

/// A hello offers, or chooses, TLS 1.3 and nothing else.
fn versions(hello: &[u8], kind: u8) -> Result<(), String> {
    let cut = || "a hello that is cut short".to_owned();
    let take = |at: usize, len: usize| hello.get(at..at + len).ok_or_else(cut);
    // Version, random, session id.
    let mut at = 35 + number(take(34, 1)?);
    if kind == CLIENT_HELLO {
        at += 2 + number(take(at, 2)?);
        at += 1 + number(take(at, 1)?);
    } else {
        at += 3;
    }
    let end = at + 2 + number(take(at, 2)?);
    at += 2;
    while at < end {
        let (name, len) = (number(take(at, 2)?), number(take(at + 2, 2)?));
        let body = take(at + 4, len)?;
        if name == usize::from(SUPPORTED_VERSIONS) {
            let expect: &[u8] = if kind == CLIENT_HELLO { &[2, 3, 4] } else { &[3, 4] };
            return if body == expect { Ok(()) } else { Err(format!("versions {body:x?}")) };
        }
        at += 4 + len;
    }
    Err("a hello without TLS 1.3".into())
}

/// The datagrams of one address: QUIC version 1, the first one an Initial, never 0-RTT.
fn datagrams(flow: &Flow) -> Result<(), String> {
    for (index, (way, bytes)) in flow.pieces.iter().enumerate() {
        let first = *bytes.first().ok_or("an empty datagram")?;
        let shown = || format!("{:x?}", &bytes[..bytes.len().min(40)]);
        // The second bit is chance once both ends know each other. A reset looks like a short packet.
        if first & 0x80 == 0 {
            if index == 0 || bytes.len() < 21 {
                return Err(format!("no QUIC: {}", shown()));
            }
            continue;
        }
        if bytes.get(1..5).map(number) != Some(1) {
            return Err(format!("not version 1: {}", shown()));
        }
        match (first >> 4) & 3 {
            0 if index == 0 && (*way != Way::There || bytes.len() < 1200 || first & 0x40 == 0) => {
                return Err(format!("a first datagram that is none: {}", shown()));
            }
            0 => {}
            1 => return Err("early data".into()),
            kind if index == 0 => return Err(format!("the first packet is of type {kind}")),
            _ => {}
        }
    }
    Ok(())
}

/// What of a flow must look like chance: payloads without heads.
fn payloads(flow: &Flow) -> Vec<Vec<u8>> {
    if flow.kind == Kind::Udp {
        // Behind the first byte and the longest id that is used.
        return flow.pieces.iter().map(|(_, bytes)| bytes.get(9..).unwrap_or_default().to_vec()).collect();
    }
    let mut all = Vec::new();
    for stream in [flow.stream(Way::There), flow.stream(Way::Back)] {
        let mut rest = &stream[..];
        while let [kind, _, _, high, low, after @ ..] = rest {
            let len = number(&[*high, *low]).min(after.len());
            if *kind == APPLICATION_DATA {
                all.push(after[..len].to_vec());
            }
            rest = &after[len..];
        }
    }
    all
}

/// The longest text by chance: of 100 MB, one in 20,000 has a longer one.
const LONGEST_TEXT: usize = 32;

/// That nothing in `flow` can be read: no text, and each byte as often as any other.
pub fn unreadable(flow: &Flow) -> Result<(), String> {
    let (mut counts, mut total) = ([0u32; 256], 0u32);
    for payload in payloads(flow) {
        let mut run = 0;
        for (at, byte) in payload.iter().enumerate() {
            run = if (0x20..0x7f).contains(byte) { run + 1 } else { 0 };
            if run > LONGEST_TEXT {
                return Err(format!("text: {:?}", String::from_utf8_lossy(&payload[at - LONGEST_TEXT..=at])));
            }
            // Heads of long packets are none of it.
            if flow.kind == Kind::Tcp || payload.len() < 1000 || at >= 64 {
                counts[usize::from(*byte)] += 1;
                total += 1;
            }
        }
    }
    if total < 16_384 {
        return Ok(());
    }
    let expect = f64::from(total) / 256.0;
    let off: f64 = counts.iter().map(|count| (f64::from(*count) - expect).powi(2) / expect).sum();
    // 255 is expected, with a deviation of 23.
    if off > 500.0 { Err(format!("bytes are not equally frequent: {off}")) } else { Ok(()) }
}
