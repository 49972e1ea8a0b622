//! Every file reads back; none that was changed, cut or put together does.

use proptest::prelude::*;

use super::*;
use crate::types::{ClusterId, NodeId};

fn info(bytes: usize) -> BackupInfo {
    let (cluster, member, version) = (ClusterId(1), NodeId(2), "0".to_owned());
    BackupInfo { cluster, member, revision: 3, version, bytes: bytes as u64, ..BackupInfo::default() }
}

fn written(content: &[u8], form: Form<'_>) -> Vec<u8> {
    let mut sealer = Sealer::new(Vec::new(), &info(content.len()), form).unwrap();
    sealer.write_all(content).unwrap();
    let (file, len) = sealer.finish().unwrap();
    assert_eq!((file.len() as u64, file.len() % 512), (len, 0));
    file
}

fn read(file: &[u8], key: Option<&BackupKey>) -> Result<Vec<u8>, Fault> {
    let mut opener = Opener::new(file, key)?;
    assert_eq!(opener.info().cluster, ClusterId(1));
    let mut content = Vec::new();
    let _ = opener.read_to_end(&mut content);
    let totals = opener.finish()?;
    assert_eq!((totals.file, totals.content), (file.len() as u64, content.len() as u64));
    let whole = file.len() - file.len() % 512;
    assert_eq!(totals.digest, digest_of(&file[..whole]));
    Ok(content)
}

fn forms(key: &BackupKey) -> [(Form<'_>, Option<&BackupKey>); 3] {
    [(Form::Plain, None), (Form::Small, None), (Form::Secret(key), Some(key))]
}

/// Half of it can be compressed.
fn content(len: usize) -> Vec<u8> {
    let noise = |at: usize| ((at as u32).wrapping_mul(2_654_435_761) >> 13) as u8;
    (0..len).map(|at| if at / 4096 % 2 == 0 { 7 } else { noise(at) }).collect()
}

#[test]
fn what_is_written_reads_back_and_a_plain_files_length_is_known_before() {
    let key = BackupKey::generate();
    for len in [0, 1, 511, PART - 1, PART, PART + 1, 3 * PART + 17] {
        let content = content(len);
        for (form, key) in forms(&key) {
            let mut file = written(&content, form);
            if matches!(form, Form::Plain) {
                assert_eq!(plain_len(&info(len)), file.len() as u64);
            }
            assert_eq!(read(&file, key).unwrap(), content, "{len} bytes, {form:?}");
            // As etcd's clients keep it.
            file.extend(digest_of(&file));
            assert_eq!(read(&file, key).unwrap(), content);
            let last = file.len() - 1;
            file[last] ^= 1;
            assert!(matches!(read(&file, key), Err(Fault::Damaged { .. })));
        }
    }
    let small = written(&vec![7; 2 * PART], Form::Small);
    assert!(small.len() < PART / 10, "{}", small.len());
}

#[test]
fn an_encrypted_file_needs_its_key_and_shows_nothing() {
    let (key, other) = (BackupKey::generate(), BackupKey::generate());
    let content = b"a secret that is told from noise".repeat(20);
    let file = written(&content, Form::Secret(&key));
    assert!(!file.windows(8).any(|part| part == b"a secret"));
    for wrong in [None, Some(&other)] {
        let Err(Fault::Refused(refusal)) = read(&file, wrong) else { panic!("it opened") };
        assert!(refusal.to_string().contains("key"), "{refusal}");
    }
    // One that needs none is read whatever is given.
    assert_eq!(read(&written(&content, Form::Small), Some(&key)).unwrap(), content);
}

/// With checksums made anew, as somebody would who has not the key.
#[test]
fn parts_of_an_encrypted_file_can_be_neither_moved_nor_left_out() {
    let key = BackupKey::generate();
    let file = written(&content(3 * PART), Form::Secret(&key));
    let head = 16 + u32::from_le_bytes(file[12..16].try_into().unwrap()) as usize + 4;
    let mut parts = Vec::new();
    let mut at = head;
    while parts.len() < 4 {
        let len = FRAME + u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        parts.push(file[at..at + len].to_vec());
        at += len;
    }
    let put_together = |order: &[usize]| {
        let mut forged = file[..head].to_vec();
        for (number, part) in (0u64..).zip(order) {
            let mut part = parts[*part].clone();
            let sum = checksum(number, &part[..FRAME - 4], &part[FRAME..]);
            part[FRAME - 4..FRAME].copy_from_slice(&sum.to_le_bytes());
            forged.extend(part);
        }
        forged.resize(forged.len().next_multiple_of(512), 0);
        forged
    };
    assert!(read(&put_together(&[0, 1, 2, 3]), Some(&key)).is_ok());
    for order in [&[1, 0, 2, 3][..], &[0, 1, 3], &[0, 1, 2, 2, 3], &[3], &[0, 1, 2]] {
        let found = read(&put_together(order), Some(&key));
        assert!(matches!(found, Err(Fault::Damaged { .. })), "{order:?}: {found:?}");
    }
}

#[test]
fn what_is_not_a_backup_is_refused() {
    for foreign in [&b""[..], b"short", &[1; 600], b"raft-kv copy 1 and some more"] {
        assert!(matches!(read(foreign, None), Err(Fault::Refused(_))), "{foreign:?}");
    }
    let mut newer = written(b"x", Form::Small);
    newer[8] = 2;
    let len = 16 + u32::from_le_bytes(newer[12..16].try_into().unwrap()) as usize;
    let sum = crc32c::crc32c(&newer[..len]).to_le_bytes();
    newer[len..len + 4].copy_from_slice(&sum);
    let Err(Fault::Refused(refusal)) = read(&newer, None) else { panic!("it was read") };
    assert!(refusal.to_string().contains("version 2"), "{refusal}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn foreign_bytes_never_panic(
        head in prop::collection::vec(any::<u8>(), 0..200),
        parts in prop::collection::vec(any::<u8>(), 0..600),
        len in prop_oneof![0..64u32, any::<u32>()],
    ) {
        let _ = read(&[MAGIC, &head[..]].concat(), None);
        // Behind a head that is whole.
        let mut file = written(b"", Form::Small);
        file.truncate(20 + u32::from_le_bytes(file[12..16].try_into().unwrap()) as usize);
        file.extend(frame_of(len as usize, len as usize, CONTENT, LZ4));
        file.extend(&parts);
        prop_assert!(read(&file, None).is_err());
    }

    #[test]
    fn a_flipped_bit_and_a_cut_end_are_found(at: prop::sample::Index, bit in 0..8u8, len in 0..2 * PART, which in 0..3usize) {
        let key = BackupKey::generate();
        let (form, key) = forms(&key)[which];
        let content = content(len);
        let file = written(&content, form);
        let at = at.index(file.len());
        let mut bent = file.clone();
        bent[at] ^= 1 << bit;
        prop_assert!(read(&bent, key).is_err(), "bit {bit} of byte {at}");
        prop_assert!(read(&file[..at], key).is_err(), "cut at {at}");
        if let Err(Fault::Damaged { offset, .. }) = read(&bent, key) {
            // Within the part that is damaged.
            prop_assert!(offset <= at as u64 && at as u64 - offset <= (PART + TAG + FRAME) as u64, "{offset} for {at}");
        }
    }
}
