//! Tests of the chain: logs in order, torn, cut, missing, flipped, and what proves which of it a crash.

use std::path::Path;

use super::*;
use crate::record::reader::tests::LogBuilder;

const BOOT: u128 = 42;

fn replay(from: Lsn) -> Replay {
    let mode = Mode::Strict;
    let (dir, from_log) = (PathBuf::from("db"), FileNumber(0));
    Replay { dir, from, from_log, begun: false, durable: Lsn(0), boot_id: BOOT, mode }
}

fn file(log: &LogBuilder) -> LogFile {
    let number = log.header.number;
    let path = PathBuf::from(FileKind::Log.name(number));
    let zeros_from = log.bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    let bytes = Bytes::from(log.bytes.clone());
    LogFile { path, number, bytes, zeros_from: zeros_from as u64 }
}

fn files(logs: &[LogBuilder]) -> Vec<LogFile> {
    logs.iter().map(file).collect()
}

/// Payloads and outcome of a replay, which are the same with the later half checked ahead.
fn run(files: Vec<LogFile>, replay: Replay) -> Result<(Vec<String>, Outcome), Error> {
    let plainly = read(files.clone(), replay.clone(), false);
    let ahead = read(files, replay, true);
    let text = |error: &Error| error.to_string();
    assert_eq!(ahead.as_ref().map_err(text), plainly.as_ref().map_err(text));
    plainly
}

fn read(files: Vec<LogFile>, replay: Replay, ahead: bool) -> Result<(Vec<String>, Outcome), Error> {
    let mut chain = LogChain::new(files, replay)?;
    let mut payloads = Vec::new();
    let mut ahead = chain.ahead(0).filter(|_| ahead);
    loop {
        if let Some(ahead) = ahead.take_if(|ahead| chain.lsn() >= ahead.middle()) {
            chain.take_checked(ahead.check());
        }
        let Some(record) = chain.next()? else { break };
        payloads.push(String::from_utf8(record.payload.to_vec()).unwrap());
    }
    assert!(chain.next()?.is_none(), "stays at its end");
    Ok((payloads, chain.finish()))
}

#[test]
fn the_later_half_is_checked_ahead_as_far_as_it_is_intact() {
    let logs = three(1, |_| Lsn(0));
    let (first, last) = (logs[0].header.first_lsn, logs[2].lsn());
    let chain = LogChain::new(files(&logs), replay(first)).unwrap();
    assert!(chain.ahead(u64::MAX).is_none(), "a short log is read by one");
    let ahead = chain.ahead(0).unwrap();
    let middle = Lsn((first.0 + last.0) / 2);
    assert!(ahead.middle().0.abs_diff(middle.0) < 100, "{:?} of {middle:?}", ahead.middle());
    let checked = ahead.check();
    assert!(checked[0].from >= ahead.middle());
    assert!(checked[0].from.0 < ahead.middle().0 + 100, "{checked:?}");
    let links: Vec<_> = checked.iter().map(|checked| checked.link).collect();
    assert_eq!(links, [1, 2]);
    assert_eq!(checked[0].to, logs[2].header.first_lsn);
    assert_eq!(checked[1], Checked { link: 2, from: logs[2].header.first_lsn, to: last });

    // A bad record in the last log: what is before it is checked, and it is not passed.
    let mut damaged = files(&logs);
    let at = damaged[2].bytes.len() - 40;
    let mut bytes = damaged[2].bytes.to_vec();
    bytes[at] ^= 1;
    damaged[2].bytes = Bytes::from(bytes);
    let chain = LogChain::new(damaged, replay(first)).unwrap();
    let checked = chain.ahead(0).unwrap().check();
    assert_eq!(checked[1].from, logs[2].header.first_lsn);
    assert!(checked[1].to < last, "{checked:?}");
}

#[test]
fn what_begins_within_checked_records_but_with_none_of_them_is_checked() {
    let logs = three(1, |_| Lsn(0));
    let from = logs[0].header.first_lsn;
    let expected = run(files(&logs), replay(from)).unwrap();
    let mut chain = LogChain::new(files(&logs), replay(from)).unwrap();
    // Lies: records that nobody looked at, from where none begins.
    let lie = Checked { link: 0, from: Lsn(from.0 + 8), to: Lsn(u64::MAX) };
    chain.take_checked(vec![lie, Checked { link: 2, from, to: Lsn(u64::MAX) }]);
    let mut payloads = Vec::new();
    while let Some(record) = chain.next().unwrap() {
        payloads.push(String::from_utf8(record.payload.to_vec()).unwrap());
        assert_eq!(chain.within, None);
    }
    assert_eq!((payloads, chain.finish()), expected);
}

/// Three logs, 1 to 3, with two commits each: "1a", "1b", "2a" and so on. `durable` says
/// what each commit knew to be durable at the LSN where it begins.
fn three(boot_id: u128, durable: impl Fn(Lsn) -> Lsn) -> Vec<LogBuilder> {
    let mut logs: Vec<LogBuilder> = Vec::new();
    for number in 1..=3 {
        let first = logs.last().map_or(Lsn(64), LogBuilder::lsn);
        let mut log = LogBuilder::new(number, first, boot_id);
        for letter in ["a", "b"] {
            let lsn = log.lsn();
            log.commit(format!("{number}{letter}").as_bytes(), lsn, durable(lsn));
        }
        if number < 3 {
            let lsn = log.lsn();
            log.bare(RecordKind::End, lsn, durable(lsn));
        }
        logs.push(log);
    }
    logs
}

#[test]
fn a_log_that_was_begun_and_is_gone_is_corruption() {
    let logs = three(BOOT, |_| Lsn(0));
    let begun = Replay { from_log: FileNumber(1), begun: true, ..replay(Lsn(64)) };
    // All of them, or the first.
    for files in [Vec::new(), files(&logs[1..])] {
        let error = run(files.clone(), begun.clone()).unwrap_err();
        assert!(error.is_corruption() && error.to_string().contains("000001.log"), "{error}");
        let lost = |mode| run(files.clone(), Replay { mode, ..begun.clone() }).unwrap();
        let (found, outcome) = lost(Mode::PointInTime);
        assert_eq!((found.len(), outcome.breaks.len(), outcome.end), (0, 1, Lsn(64)));
        let (found, outcome) = lost(Mode::Salvage);
        assert_eq!((found.len(), outcome.breaks.len()), (2 * files.len(), 1));
    }
    // Made and not written to is enough.
    let empty = LogFile { bytes: Bytes::from(vec![0; 200]), zeros_from: 0, ..file(&logs[0]) };
    assert_eq!(run(vec![empty], begun.clone()).unwrap().0.len(), 0);
    assert_eq!(run(files(&logs), begun).unwrap().0, ALL);
    let not_yet = Replay { from_log: FileNumber(1), ..replay(Lsn(64)) };
    assert_eq!(run(Vec::new(), not_yet).unwrap().0.len(), 0);
}

const ALL: [&str; 6] = ["1a", "1b", "2a", "2b", "3a", "3b"];

fn offset_of_commit(index: usize) -> usize {
    HEADER_BYTES + 40 * index
}

#[test]
fn logs_in_any_order_are_one_log() {
    let mut logs = three(BOOT, |_| Lsn(0));
    logs[2].zeros(200);
    let mut files = files(&logs);
    files.rotate_left(1);
    let (payloads, outcome) = run(files, replay(Lsn(64))).unwrap();
    assert_eq!(payloads, ALL);
    let end = Lsn(logs[2].lsn().0 - 200);
    assert_eq!(outcome, Outcome { end, ..Outcome::default() });
}

#[test]
fn no_files_are_an_empty_log() {
    let (payloads, outcome) = run(Vec::new(), replay(Lsn(64))).unwrap();
    assert_eq!((payloads.len(), outcome.end), (0, Lsn(64)));
    let known = Replay { durable: Lsn(65), ..replay(Lsn(64)) };
    assert!(run(Vec::new(), known).unwrap_err().is_corruption());
}

#[test]
fn a_replay_from_the_middle_does_not_look_at_what_is_before() {
    let mut logs = three(BOOT, |lsn| lsn);
    let from = Lsn(logs[1].header.first_lsn.0 + 40);
    logs[1].bytes[HEADER_BYTES + 4] ^= 1;
    let with_damage = |damage: &dyn Fn(&mut LogBuilder)| {
        let mut log = LogBuilder::new(1, Lsn(64), BOOT);
        log.bytes = logs[0].bytes.clone();
        damage(&mut log);
        vec![file(&log), file(&logs[1]), file(&logs[2])]
    };
    for files in [
        with_damage(&|log| log.bytes[0] ^= 1),
        with_damage(&|log| log.bytes[HEADER_BYTES] ^= 1),
        with_damage(&|log| log.bytes.truncate(10)),
        with_damage(&|_| {})[1..].to_vec(),
    ] {
        let (payloads, outcome) = run(files, replay(from)).unwrap();
        assert_eq!(payloads, ALL[3..]);
        assert_eq!((outcome.breaks.len(), outcome.discarded.len()), (0, 0));
    }
    let from = logs[2].header.first_lsn;
    let (payloads, _) = run(files(&logs), replay(from)).unwrap();
    assert_eq!(payloads, ALL[4..], "a replay from exactly where a file begins");
}

#[test]
fn a_torn_middle_discards_what_comes_later() {
    let mut logs = three(1, |_| Lsn(0));
    let bad = offset_of_commit(1);
    logs[0].bytes[bad] ^= 1;
    let (payloads, outcome) = run(files(&logs), replay(Lsn(64))).unwrap();
    assert_eq!(payloads, ["1a"]);
    assert_eq!(outcome.end, Lsn(64 + 40));
    assert_eq!(outcome.discarded, [Path::new("000002.log"), Path::new("000003.log")]);
    let [cut] = &outcome.breaks[..] else { panic!("{outcome:?}") };
    assert_eq!((cut.offset, cut.from, cut.to), (bad as u64, Lsn(104), None));
}

#[test]
fn a_torn_middle_is_corruption_if_a_later_file_proves_it_durable() {
    let mut logs = three(1, |lsn| lsn);
    // Only the last record of the last file is left to say so.
    for log in &mut logs[1..] {
        log.bytes[offset_of_commit(0)] ^= 1;
    }
    logs[0].bytes[offset_of_commit(0)] ^= 1;
    logs[0].bytes[offset_of_commit(1)] ^= 1;
    logs[0].bytes[offset_of_commit(2)] ^= 1;
    let error = run(files(&logs), replay(Lsn(64))).unwrap_err();
    assert!(error.is_corruption());
    let text = error.to_string();
    assert!(text.contains("000001.log at offset 128"), "{text}");
    assert!(text.contains("000002.log at offset 168 says durable"), "{text}");
}

#[test]
fn on_the_same_boot_a_copied_lsn_is_proof() {
    for (boot_id, corrupt) in [(BOOT, true), (BOOT + 1, false)] {
        let mut logs = three(boot_id, |_| Lsn(0));
        logs[1].bytes[offset_of_commit(0) + 32] ^= 1;
        let result = run(files(&logs), replay(Lsn(64)));
        match result {
            Err(error) => {
                assert!(corrupt && error.to_string().contains("on this boot"), "{error}");
            }
            Ok((payloads, _)) => {
                assert!(!corrupt);
                assert_eq!(payloads, ALL[..2]);
            }
        }
    }
}

#[test]
fn a_missing_file_is_a_cut_or_corruption_as_the_later_ones_prove() {
    for missing in [0, 1] {
        let mut logs = three(1, |_| Lsn(0));
        logs.remove(missing);
        let (payloads, outcome) = run(files(&logs), replay(Lsn(64))).unwrap();
        assert_eq!(payloads, ALL[..2 * missing], "missing {missing}");
        assert_eq!(outcome.discarded.len(), 2 - missing);
        assert_eq!(outcome.breaks.len(), 1);

        let mut logs = three(1, |lsn| lsn);
        logs.remove(missing);
        let error = run(files(&logs), replay(Lsn(64))).unwrap_err();
        assert!(error.to_string().contains("a log file at LSN"), "{error}");
    }
}

#[test]
fn a_cut_file_gives_way_to_the_next_one() {
    // Recovery cut log 1 at its second commit, and went on in log 2.
    let mut one = LogBuilder::new(1, Lsn(0), 1);
    one.commit(b"kept", Lsn(0), Lsn(0));
    let cut = one.commit(b"torn", Lsn(0), Lsn(0));
    one.commit(b"stale", Lsn(0), Lsn(0));
    one.bytes[offset_of_commit(1) + 33] ^= 1;
    let mut two = LogBuilder::new(2, cut, 1);
    two.commit(b"new", cut, cut);
    two.bare(RecordKind::SyncMark, two.lsn(), two.lsn());
    // Log 3 was created at the same place by a recovery that crashed; 4 by the next one.
    let three = LogBuilder::new(3, two.lsn(), 1);
    let four = LogBuilder::new(4, two.lsn(), 1);
    let all = [one, two, three, four];
    let (payloads, outcome) = run(files(&all), replay(Lsn(0))).unwrap();
    assert_eq!(payloads, ["kept", "new", ""]);
    assert_eq!(outcome, Outcome { end: all[2].lsn(), ..Outcome::default() });
}

#[test]
fn an_intact_record_where_the_next_file_begins_is_corruption() {
    for first in [40, 48] {
        let mut one = LogBuilder::new(1, Lsn(0), 1);
        one.commit(b"a", Lsn(0), Lsn(0));
        one.commit(b"b", Lsn(0), Lsn(0));
        let two = LogBuilder::new(2, Lsn(first), 1);
        let error = run(vec![file(&one), file(&two)], replay(Lsn(0))).unwrap_err();
        assert!(error.to_string().contains("where 000002.log begins"), "{error}");
    }
}

#[test]
fn a_log_that_was_being_created_is_discarded() {
    for damage in [0, 8, 100, HEADER_BYTES] {
        let mut logs = three(1, |_| Lsn(0));
        let last = &mut logs[2].bytes;
        match damage {
            HEADER_BYTES => last.truncate(60),
            size => last[size..].fill(0),
        }
        let (payloads, outcome) = run(files(&logs), replay(Lsn(64))).unwrap();
        assert_eq!(payloads, ALL[..4]);
        assert_eq!(outcome.end, logs[2].header.first_lsn);
        assert_eq!(outcome.discarded, [Path::new("000003.log")]);
    }
}

#[test]
fn a_flipped_bit_in_the_header_of_a_newest_log_with_durable_records_is_corruption() {
    for bit in 0..HEADER_BYTES * 8 {
        let mut logs = three(1, |lsn| lsn);
        logs[2].bytes[bit / 8] ^= 1 << (bit % 8);
        let error = run(files(&logs), replay(Lsn(64))).unwrap_err();
        assert!(error.is_corruption(), "bit {bit}: {error}");
    }
}

#[test]
fn every_flipped_bit_of_three_logs_is_seen_or_harmless() {
    let logs = three(1, |lsn| lsn);
    let last = logs[2].bytes.len() - 40;
    for (index, log) in logs.iter().enumerate() {
        for bit in 0..log.bytes.len() * 8 {
            let mut files = files(&logs);
            let mut bytes = log.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            files[index].bytes = Bytes::from(bytes);
            match run(files, replay(Lsn(64))) {
                Err(error) => assert!(error.is_corruption(), "{error}"),
                Ok((payloads, outcome)) => {
                    assert!(index == 2 && bit / 8 >= last, "log {index} bit {bit}");
                    assert_eq!(payloads, ALL[..5], "the un-witnessed last record");
                    assert_eq!(outcome.breaks.len(), 1);
                }
            }
        }
    }
}

#[test]
fn every_truncation_of_every_log_gives_a_prefix_or_corruption() {
    for proof in [false, true] {
        let logs = three(1, |lsn| if proof { lsn } else { Lsn(0) });
        for (index, log) in logs.iter().enumerate() {
            for len in 0..log.bytes.len() {
                let mut files = files(&logs);
                files[index].bytes.truncate(len);
                let result = run(files, replay(Lsn(64)));
                match result {
                    Ok((payloads, _)) => {
                        assert!(!proof || index == 2, "log {index} length {len}");
                        assert_eq!(payloads, ALL[..payloads.len()]);
                    }
                    Err(error) => assert!(proof && error.is_corruption(), "{error}"),
                }
            }
        }
    }
}

#[test]
fn what_is_known_from_elsewhere_is_proof() {
    let mut logs = three(1, |_| Lsn(0));
    logs[2].bytes[offset_of_commit(1)] ^= 1;
    let bad = Lsn(logs[2].header.first_lsn.0 + 40);
    let known = Replay { durable: bad, ..replay(Lsn(64)) };
    assert_eq!(run(files(&logs), known).unwrap().0, ALL[..5]);
    let known = Replay { durable: Lsn(bad.0 + 8), ..replay(Lsn(64)) };
    assert!(run(files(&logs), known).unwrap_err().is_corruption());
}

#[test]
fn a_replay_that_begins_past_the_end_of_its_file_is_corruption() {
    let logs = three(1, |_| Lsn(0));
    let from = Lsn(logs[2].lsn().0 + 8);
    assert!(run(files(&logs), replay(from)).unwrap_err().is_corruption());
    let (payloads, outcome) = run(files(&logs), replay(logs[2].lsn())).unwrap();
    assert_eq!((payloads.len(), outcome.end), (0, logs[2].lsn()));
}

#[test]
fn files_under_wrong_names_are_corruption() {
    let logs = three(1, |_| Lsn(0));
    let mut renamed = files(&logs);
    renamed[0].number = FileNumber(9);
    assert!(run(renamed, replay(Lsn(64))).unwrap_err().is_corruption());
    let mut swapped = files(&three(1, |_| Lsn(0)));
    let mut high = LogBuilder::new(9, Lsn(64), 1);
    high.commit(b"1a", Lsn(64), Lsn(64));
    swapped[0] = file(&high);
    assert!(run(swapped, replay(Lsn(64))).unwrap_err().is_corruption());
}

#[test]
fn point_in_time_cuts_whatever_the_proof() {
    let mut logs = three(1, |lsn| lsn);
    logs[1].bytes[offset_of_commit(1)] ^= 1;
    let mode = Replay { mode: Mode::PointInTime, ..replay(Lsn(64)) };
    let (payloads, outcome) = run(files(&logs), mode).unwrap();
    assert_eq!(payloads, ALL[..3]);
    assert_eq!(outcome.discarded, [Path::new("000003.log")]);
}

#[test]
fn salvage_skips_what_is_bad_and_says_what() {
    let salvage = || Replay { mode: Mode::Salvage, ..replay(Lsn(64)) };
    let mut logs = three(1, |lsn| lsn);
    logs[0].bytes[offset_of_commit(0)] ^= 1;
    logs[1].bytes[offset_of_commit(1) + 33] ^= 1;
    logs[2].bytes[18] ^= 1;
    let (payloads, outcome) = run(files(&logs), salvage()).unwrap();
    assert_eq!(payloads, ["1b", "2a", "3a", "3b"], "the header of log 3 is repaired");
    assert_eq!(outcome.end, logs[2].lsn());
    assert_eq!(outcome.discarded, Vec::<PathBuf>::new());
    let skipped: Vec<_> = outcome.breaks.iter().map(|b| (b.offset, b.from, b.to)).collect();
    let second = logs[1].header.first_lsn.0;
    assert_eq!(
        skipped,
        [(128, Lsn(64), Some(Lsn(104))), (168, Lsn(second + 40), Some(Lsn(second + 80))),]
    );

    let mut logs = three(1, |lsn| lsn);
    logs.remove(1);
    let (payloads, _) = run(files(&logs), salvage()).unwrap();
    assert_eq!(payloads, ["1a", "1b", "3a", "3b"], "over a missing file");
    logs[1].bytes[offset_of_commit(1)] ^= 1;
    let (payloads, outcome) = run(files(&logs), salvage()).unwrap();
    assert_eq!(payloads, ["1a", "1b", "3a"]);
    assert_eq!(outcome.breaks.last().unwrap().to, None);
}

#[test]
fn any_damage_at_all_gives_a_prefix_or_corruption() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..2000 {
        let mut logs = three(rng.u128(41..=42), |lsn| lsn);
        for _ in 0..rng.usize(1..4) {
            let log = rng.choice(&mut logs).unwrap();
            let from = rng.usize(..log.bytes.len());
            let to = (from + rng.usize(..100)).min(log.bytes.len());
            match rng.u8(..3) {
                0 => log.bytes[from..to].fill(0),
                1 => log.bytes[from..to].fill_with(|| rng.u8(..)),
                _ => log.bytes.truncate(from.max(1)),
            }
        }
        let mode = if rng.bool() { Mode::Strict } else { Mode::PointInTime };
        match run(files(&logs), Replay { mode, ..replay(Lsn(64)) }) {
            Ok((payloads, _)) => assert_eq!(payloads, ALL[..payloads.len()]),
            Err(error) => assert!(error.is_corruption(), "{error}"),
        }
        let salvage = Replay { mode: Mode::Salvage, ..replay(Lsn(64)) };
        let (payloads, _) = run(files(&logs), salvage).unwrap();
        assert!(payloads.iter().all(|payload| ALL.contains(&payload.as_str())));
        assert!(payloads.is_sorted());
    }
}
