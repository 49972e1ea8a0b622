//! A cut direction lets nothing through, and only that one. Alone in its file: the test's process moves
//! into a namespace of its own.

use std::io::Read;
use std::process::{Child, Stdio};

use raft_kv_jepsen::network::{Network, enter};

/// Takes one datagram, or gives up after a second; says which.
const HEAR: &str = r#"use IO::Socket::INET; my $s = IO::Socket::INET->new(Proto => "udp", LocalPort => 9) or die; $| = 1; print "r"; my $set = ""; vec($set, fileno($s), 1) = 1; print select($set, undef, undef, 1) ? "heard" : "silence";"#;
const SAY: &str = r#"use IO::Socket::INET; my $s = IO::Socket::INET->new(Proto => "udp", PeerAddr => $ARGV[0], PeerPort => 9) or die; $s->send("x") for 1..3;"#;

fn perl(network: &Network, member: usize, script: &str, to: &str) -> Child {
    let mut command = network.command(member, "perl".as_ref());
    command.args(["-e", script, to]).stdout(Stdio::piped()).spawn().expect("perl starts")
}

fn hears(network: &Network, addresses: &[String], from: usize, to: usize) -> bool {
    let mut listener = perl(network, to, HEAR, "");
    let mut out = listener.stdout.take().unwrap();
    let mut ready = [0];
    out.read_exact(&mut ready).expect("it listens");
    assert!(perl(network, from, SAY, &addresses[to]).wait().unwrap().success());
    let mut said = String::new();
    out.read_to_string(&mut said).unwrap();
    listener.wait().unwrap();
    said == "heard"
}

#[test]
fn a_cut_direction_is_silent_and_no_other() {
    enter().unwrap();
    let mut network = Network::new().unwrap();
    let addresses: Vec<String> = (0..3).map(|_| network.add().unwrap()).collect();
    let check = |network: &Network, from: usize, to: usize, expect: bool| {
        assert_eq!(hears(network, &addresses, from, to), expect, "{from} to {to}");
    };
    check(&network, 0, 1, true);
    network.cut(0, 1).unwrap();
    check(&network, 0, 1, false);
    check(&network, 1, 0, true);
    check(&network, 0, 2, true);
    network.heal().unwrap();
    check(&network, 0, 1, true);
}
