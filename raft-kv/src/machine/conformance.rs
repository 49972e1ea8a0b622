//! What every [`Store`] must do, as one suite that each implementation runs.

use bytes::Bytes;

use super::store::{Batch, Read, Store, Table};

/// Runs the suite. `make` gives an empty store; `crash` ends it as a power cut would and opens it
/// again. Panics where a promise of [`Store`] is broken.
pub fn store_conformance<S: Store>(make: impl Fn() -> S, crash: impl Fn(S) -> S) {
    scans_are_ordered_and_bounded(&make());
    tables_are_apart(&make());
    later_writes_win(&make());
    views_are_frozen(&make());
    flushed_is_kept(make(), &crash);
    unflushed_survives_as_a_prefix(make(), &crash);
}

type Write<'a> = (Table, &'a [u8], Option<&'a [u8]>);

fn write<S: Store>(store: &S, writes: &[Write]) {
    let own = |(table, key, value): &Write| {
        (*table, Bytes::copy_from_slice(key), value.map(Bytes::copy_from_slice))
    };
    store.write(Batch { writes: writes.iter().map(own).collect() }).expect("a batch is written");
}

fn get<S: Store>(store: &S, table: Table, key: &[u8]) -> Option<Vec<u8>> {
    store.view(|view| view.get(table, key).expect("a read works").map(|value| value.to_vec()))
}

fn scan(view: &dyn Read, table: Table, from: &[u8], to: Option<&[u8]>) -> Vec<Vec<u8>> {
    view.scan(table, from, to).map(|pair| pair.expect("a scan works").0.to_vec()).collect()
}

fn scans_are_ordered_and_bounded<S: Store>(store: &S) {
    let mut keys: Vec<&[u8]> =
        vec![b"b", b"", b"a", b"\xff\xff", b"a\0", b"\xff", b"ab", b"\0", b"aa", b"a\xff", b"\0\0", b"c"];
    let writes: Vec<Write> = keys.iter().map(|key| (Table::Live, *key, Some(*key))).collect();
    write(store, &writes);
    keys.sort();
    let mut bounds: Vec<Option<&[u8]>> = keys.iter().map(|key| Some(*key)).collect();
    bounds.extend([None, Some(&b"bb"[..]), Some(b"\xff\xff\xff")]);
    for from in bounds.iter().flatten() {
        for to in &bounds {
            let expected: Vec<Vec<u8>> = keys
                .iter()
                .filter(|key| *key >= from && to.is_none_or(|to| **key < to))
                .map(|key| key.to_vec())
                .collect();
            let found = store.view(|view| scan(view, Table::Live, from, *to));
            assert_eq!(found, expected, "from {from:?} to {to:?}");
        }
    }
    let first = store.view(|view| {
        let pair = view.scan(Table::Live, b"aa", None).next().expect("there is a pair").expect("it is read");
        (pair.0.to_vec(), pair.1.to_vec())
    });
    assert_eq!(first, (b"aa".to_vec(), b"aa".to_vec()));
}

fn tables_are_apart<S: Store>(store: &S) {
    for table in Table::ALL {
        write(store, &[(table, b"key", Some(table.name().as_bytes()))]);
    }
    for table in Table::ALL {
        assert_eq!(get(store, table, b"key"), Some(table.name().as_bytes().to_vec()));
        assert_eq!(store.view(|view| scan(view, table, b"", None)), vec![b"key".to_vec()]);
    }
    write(store, &[(Table::Log, b"key", None)]);
    assert_eq!(get(store, Table::Log, b"key"), None);
    assert!(get(store, Table::Live, b"key").is_some());
}

fn later_writes_win<S: Store>(store: &S) {
    write(
        store,
        &[
            (Table::Live, b"a", Some(b"1")),
            (Table::Live, b"a", None),
            (Table::Live, b"b", None),
            (Table::Live, b"b", Some(b"")),
            (Table::Live, b"c", Some(b"1")),
            (Table::Live, b"c", Some(b"2")),
        ],
    );
    assert_eq!(get(store, Table::Live, b"a"), None);
    assert_eq!(get(store, Table::Live, b"b"), Some(vec![]), "an empty value is a value");
    assert_eq!(get(store, Table::Live, b"c"), Some(b"2".to_vec()));
    write(store, &[(Table::Live, b"c", None), (Table::Live, b"never", None)]);
    assert_eq!(get(store, Table::Live, b"c"), None);
    write(store, &[]);
}

fn views_are_frozen<S: Store>(store: &S) {
    write(store, &[(Table::Live, b"a", Some(b"1")), (Table::Past, b"p", Some(b"1"))]);
    store.view(|view| {
        let mut pairs = view.scan(Table::Live, b"", None);
        write(
            store,
            &[(Table::Live, b"a", Some(b"2")), (Table::Live, b"b", Some(b"2")), (Table::Past, b"p", None)],
        );
        assert_eq!(view.get(Table::Live, b"a").expect("read").expect("there").as_ref(), b"1");
        assert_eq!(view.get(Table::Live, b"b").expect("read"), None);
        assert!(view.get(Table::Past, b"p").expect("read").is_some(), "one view over all tables");
        let first = pairs.next().expect("one pair").expect("read");
        assert_eq!((first.0.as_ref(), first.1.as_ref()), (&b"a"[..], &b"1"[..]));
        assert!(pairs.next().is_none());
    });
    assert_eq!(get(store, Table::Live, b"a"), Some(b"2".to_vec()));
    assert_eq!(get(store, Table::Past, b"p"), None);
}

fn flushed_is_kept<S: Store>(store: S, crash: &impl Fn(S) -> S) {
    for table in Table::ALL {
        write(&store, &[(table, b"a", Some(b"1")), (table, b"b", Some(b"1"))]);
        write(&store, &[(table, b"b", None)]);
    }
    store.flush().expect("a flush works");
    store.flush().expect("a flush of nothing works");
    let store = crash(store);
    for table in Table::ALL {
        assert_eq!(get(&store, table, b"a"), Some(b"1".to_vec()), "{table:?}");
        assert_eq!(get(&store, table, b"b"), None, "{table:?}");
    }
}

/// Each batch writes its number to two tables and removes the record of the one before.
fn unflushed_survives_as_a_prefix<S: Store>(store: S, crash: &impl Fn(S) -> S) {
    const FLUSHED: u8 = 3;
    const WRITTEN: u8 = 10;
    for number in 1..=WRITTEN {
        write(
            &store,
            &[
                (Table::Live, b"newest", Some(&[number])),
                (Table::Log, &[number], Some(&[number])),
                (Table::Log, &[number - 1], None),
                (Table::Meta, b"applied", Some(&[number])),
            ],
        );
        if number == FLUSHED {
            store.flush().expect("a flush works");
        }
    }
    let store = crash(store);
    let newest = get(&store, Table::Live, b"newest").expect("the flushed part is there")[0];
    assert!((FLUSHED..=WRITTEN).contains(&newest));
    assert_eq!(get(&store, Table::Meta, b"applied"), Some(vec![newest]), "a batch is whole or absent");
    let log = store.view(|view| scan(view, Table::Log, b"", None));
    assert_eq!(log, vec![vec![newest]], "no gap, no half batch");
    // What has survived once is not taken back by the next crash.
    let store = crash(store);
    assert_eq!(get(&store, Table::Live, b"newest"), Some(vec![newest]));
}
