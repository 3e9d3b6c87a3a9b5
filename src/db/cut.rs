//! Where the recovery of a database over several shards ends each shard's log: a pure function of
//! what the logs hold.
//!
//! Each shard by itself may have lost the end of its log. A commit over several shards whose part is
//! gone in one of them must be gone in all, and with it everything that came after a part of it, which
//! can be parts again. What is left is the largest set of prefixes, one of each log, in which every
//! part has all the others.
//!
//! A part, which is known by where its record begins, *is there* if
//!
//! - it lies before where the shard's replay begins, and that was not given up (a *void*): it is in
//!   tables, or what it did is gone for good; or
//! - it lies in the log before the cut.
//!
//! Nothing that was promised is cut. A commit that a kill must not lose was acknowledged after all
//! parts, with everything before them, were with the kernel; one that power loss must not lose, once
//! all joint commits before it were closed ([`crate::write::closing`]).
//!
//! The shards are recovered one after the other. A crash in between leads to the same cuts: those
//! recovered already say what they gave up, and take no commits before all are recovered.

use std::collections::BTreeMap;

use crate::batch::Participant;
use crate::file::{Lsn, ShardNumber};

/// What is known of a shard's log before anything is recovered.
pub(crate) struct Found<'a> {
    /// Where its replay begins.
    pub replay_from: Lsn,
    /// True of a position before that if it was given up.
    pub is_void: &'a dyn Fn(Lsn) -> bool,
    /// Where the log ends, as a crash of this shard alone would leave it.
    pub end: Lsn,
    /// The parts in the log, where each begins, and all participants; by rising position.
    pub parts: &'a [(Lsn, Vec<Participant>)],
}

/// Where each shard's log is to end.
///
/// # Errors
/// The shard and position of a part that names a shard which is not among these.
pub(crate) fn cuts(
    shards: &BTreeMap<ShardNumber, Found<'_>>,
) -> Result<BTreeMap<ShardNumber, Lsn>, (ShardNumber, Lsn)> {
    let mut cuts: BTreeMap<ShardNumber, Lsn> =
        shards.iter().map(|(&shard, found)| (shard, found.end)).collect();
    loop {
        let mut changed = false;
        for (shard, found) in shards {
            let of_shard = found.parts.iter().take_while(|(lsn, _)| *lsn < cuts[shard]);
            for (lsn, participants) in of_shard {
                let mut is_whole = true;
                for &Participant { shard: other, lsn: at } in participants {
                    let found = shards.get(&other).ok_or((*shard, *lsn))?;
                    is_whole &= match at < found.replay_from {
                        true => !(found.is_void)(at),
                        false => at < cuts[&other],
                    };
                }
                if !is_whole {
                    cuts.insert(*shard, *lsn);
                    changed = true;
                    break;
                }
            }
        }
        if !changed {
            return Ok(cuts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log from LSN 100 on: its end, and at which position which parts (shard, LSN) are.
    type Log<'a> = (u64, &'a [(u64, &'a [(u32, u64)])]);

    fn cut(logs: &[Log<'_>], void: Option<(u32, u64)>) -> Result<Vec<u64>, (u32, u64)> {
        let participant =
            |(shard, lsn): &(u32, u64)| Participant { shard: ShardNumber(*shard), lsn: Lsn(*lsn) };
        let part = |(lsn, others): &(u64, &[(u32, u64)])| {
            (Lsn(*lsn), others.iter().map(participant).collect::<Vec<_>>())
        };
        let parts: Vec<Vec<_>> =
            logs.iter().map(|(_, parts)| parts.iter().map(part).collect()).collect();
        let is_void = |shard: u32| move |lsn: Lsn| void == Some((shard, lsn.0));
        let voids: Vec<_> = (0..logs.len() as u32).map(is_void).collect();
        let found = |(index, (end, _)): (usize, &Log<'_>)| {
            let (replay_from, parts) = (Lsn(100), &*parts[index]);
            let found = Found { replay_from, is_void: &voids[index], end: Lsn(*end), parts };
            (ShardNumber(index as u32), found)
        };
        let found = logs.iter().enumerate().map(found).collect();
        let cuts = cuts(&found).map_err(|(shard, lsn)| (shard.0, lsn.0))?;
        Ok(cuts.into_values().map(|lsn| lsn.0).collect())
    }

    #[test]
    fn whole_commits_are_kept_and_others_cut_with_all_that_follows() {
        let joint: &[(u32, u64)] = &[(0, 108), (1, 200)];
        let a: Log<'_> = (500, &[(108, joint)]);
        assert_eq!(cut(&[a, (208, &[(200, joint)])], None), Ok(vec![500, 208]));
        assert_eq!(cut(&[a, (200, &[])], None), Ok(vec![108, 200]), "its part is lost");
        // 0 lost its end, and with it what made a commit of 1 and 2 whole.
        let second: &[(u32, u64)] = &[(0, 300), (1, 160)];
        let third: &[(u32, u64)] = &[(1, 180), (2, 140)];
        let logs: [Log<'_>; 3] = [
            (300, &[(108, &[(0, 108), (1, 120)])]),
            (900, &[(120, &[(0, 108), (1, 120)]), (160, second), (180, third)]),
            (900, &[(140, third)]),
        ];
        assert_eq!(cut(&logs, None), Ok(vec![300, 160, 140]));
    }

    #[test]
    fn what_is_in_tables_is_there_unless_it_is_void() {
        let joint: &[(u32, u64)] = &[(0, 60), (1, 200)];
        let logs: [Log<'_>; 2] = [(100, &[]), (400, &[(200, joint)])];
        assert_eq!(cut(&logs, None), Ok(vec![100, 400]));
        assert_eq!(cut(&logs, Some((0, 60))), Ok(vec![100, 200]));
    }

    #[test]
    fn a_shard_that_is_not_there_is_told() {
        let joint: &[(u32, u64)] = &[(0, 108), (7, 200)];
        assert_eq!(cut(&[(400, &[(108, joint)])], None), Err((0, 108)));
    }
}
