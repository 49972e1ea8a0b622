//! Each entry against a pair of answers as the two servers gave it, and against pairs that miss it
//! by one thing.

use super::table;

#[test]
fn the_document_holds_the_same_table() {
    let document = include_str!("../../../docs/etcd-differences.md");
    assert!(document.contains(&table()), "docs/etcd-differences.md has to hold:\n{}", table());
}
