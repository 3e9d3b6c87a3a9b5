//! Moving slots without being asked: a decision about rates, made again and again, without effects.
//!
//! 1. Somebody looks every second ([`Decider::decide`]). There is a *cause* if one shard is asked for
//!    much more than the others are, or for more than a shard is to have.
//! 2. The same cause must last. Then a goal is computed, by what is asked of each slot now.
//! 3. A goal that does not make the heaviest shard lighter is none: one key, or one slot, that is
//!    heavier than all others stays where it is.
//! 4. After a goal, and after every move whoever wanted it, and after a goal that was none, nothing is
//!    decided for a while.
//!
//! So it does not swing: what triggers it, a factor of [`Automatic::factor`], is far from what a goal
//! ends with, [`TOLERANCE`] of the mean; what it does takes at least [`LEAST_GAIN`] off the heaviest
//! shard; and two things that it does are at least a cooldown apart.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::shard::map::SHARDS_MAX;
use crate::shard::slots::{self, ShardIndex};

/// A goal ends with shards that have at most so much more than the mean, where slots allow it.
const TOLERANCE: f64 = 0.05;
/// A goal takes at least this part of its load off the heaviest shard: that is what copying must be
/// worth.
const LEAST_GAIN: f64 = 0.15;

/// When a database moves slots by itself, so that its shards have about the same to do. Off unless
/// given to [`ShardedDbBuilder::automatic`](crate::ShardedDbBuilder::automatic).
///
/// It goes by reads and writes a second ([`ShardedStats`](crate::ShardedStats)), and moves the
/// heaviest slots of the heaviest shard to the lightest ones. Moves that it wants go at the rate of
/// [`ShardedDb::set_move_rate`](crate::ShardedDb::set_move_rate), are shown by
/// [`ShardedDb::moves`](crate::ShardedDb::moves) and can be aborted like others; it waits for those
/// that others want.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use = "nothing happens until a database is opened with it"]
pub struct Automatic {
    factor: f64,
    lasting: Duration,
    cooldown: Duration,
    least_rate: f64,
    split: Option<Split>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Split {
    above: f64,
    shards_max: usize,
}

impl Default for Automatic {
    fn default() -> Automatic {
        Automatic::new()
    }
}

impl Automatic {
    /// Moves slots once a shard has been asked for twice as much as the others for 30 seconds, and at
    /// most every minute; adds no shards.
    pub fn new() -> Automatic {
        Automatic {
            factor: 2.0,
            lasting: Duration::from_secs(30),
            cooldown: Duration::from_secs(60),
            least_rate: 1_000.0,
            split: None,
        }
    }

    /// A shard is too heavy that is asked for so many times the mean of the others. Default 2. Lower
    /// where shards run near their limits; it must be above 1.
    pub fn factor(mut self, factor: f64) -> Automatic {
        self.factor = factor;
        self
    }

    /// It must be so for this long. Default 30 seconds. Longer than the bursts that are not worth a
    /// copy of what they are about.
    pub fn lasting(mut self, lasting: Duration) -> Automatic {
        self.lasting = lasting;
        self
    }

    /// After a move nothing is decided for this long. Default 60 seconds. It bounds what is copied if
    /// the load moves about.
    pub fn cooldown(mut self, cooldown: Duration) -> Automatic {
        self.cooldown = cooldown;
        self
    }

    /// Nothing is decided while all shards together are asked for less than this, in operations a
    /// second. Default 1,000: one shard does that without effort, however uneven it is.
    pub fn least_rate(mut self, operations: f64) -> Automatic {
        self.least_rate = operations;
        self
    }

    /// Adds shards, in the database's own directory, up to `shards_max`, while one of those that are
    /// there is asked for more than `above` operations a second and moving slots among them does not
    /// change that. Default: no shard is added. Pays where shards have cores and disks to themselves;
    /// shards cannot be taken away again.
    pub fn split_above(mut self, above: f64, shards_max: usize) -> Automatic {
        self.split = Some(Split { above, shards_max });
        self
    }

    /// # Errors
    /// `InvalidArgument` for numbers that make no sense.
    pub(crate) fn check(&self) -> Result<()> {
        let is_number = |number: f64| number.is_finite() && number >= 0.0;
        let split = self.split.unwrap_or(Split { above: 0.0, shards_max: 1 });
        let what = if !is_number(self.factor) || self.factor <= 1.0 {
            "the factor of an automatic policy must be above 1".to_string()
        } else if !is_number(self.least_rate) || !is_number(split.above) {
            "the rates of an automatic policy must be numbers from 0 on".to_string()
        } else if split.shards_max > SHARDS_MAX {
            format!("a database has at most {SHARDS_MAX} shards")
        } else {
            return Ok(());
        };
        Err(Error::invalid(what))
    }
}

/// What is to be done: who has which slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Among the shards that are there.
    Move(Vec<ShardIndex>),
    /// With one more, whose number is the next.
    Split(Vec<ShardIndex>),
}

/// Why something should be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// This shard is heavier than the others.
    Uneven(ShardIndex),
    /// Some shard has more than a shard is to have.
    Full,
}

/// What an automatic policy remembers.
pub(crate) struct Decider {
    policy: Automatic,
    /// What has been so since when.
    cause: Option<(Cause, Duration)>,
    quiet_until: Duration,
}

impl Decider {
    /// Decides nothing during a first cooldown: after an opening nothing is as usual.
    pub fn new(policy: Automatic, now: Duration) -> Decider {
        Decider { policy, cause: None, quiet_until: now + policy.cooldown }
    }

    /// Something was moved, or could not be: decides nothing for a while.
    pub fn rest(&mut self, now: Duration) {
        self.cause = None;
        self.quiet_until = now + self.policy.cooldown;
    }

    /// To be called about every second, while nothing is moved. `loads` has a number for each slot.
    pub fn decide(
        &mut self,
        now: Duration,
        owners: &[ShardIndex],
        shard_count: usize,
        loads: &[f64],
    ) -> Option<Goal> {
        if now < self.quiet_until {
            return None;
        }
        let Some(cause) = self.cause_of(&totals(owners, shard_count, loads)) else {
            self.cause = None;
            return None;
        };
        match self.cause {
            Some((before, since)) if before == cause => {
                if now - since < self.policy.lasting {
                    return None;
                }
            }
            _ => {
                self.cause = Some((cause, now));
                return None;
            }
        }
        self.rest(now);
        self.goal(owners, shard_count, loads)
    }

    fn cause_of(&self, totals: &[f64]) -> Option<Cause> {
        let Automatic { factor, least_rate, split, .. } = self.policy;
        let total: f64 = totals.iter().sum();
        let (heaviest, most) =
            totals.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1))?;
        if total < least_rate || total <= 0.0 {
            return None;
        }
        if split.is_some_and(|split| most > split.above) {
            return Some(Cause::Full);
        }
        let others = (total - most) / (totals.len() - 1).max(1) as f64;
        let is_uneven = totals.len() > 1 && most > factor * others;
        is_uneven.then_some(Cause::Uneven(heaviest as ShardIndex))
    }

    fn goal(&self, owners: &[ShardIndex], shard_count: usize, loads: &[f64]) -> Option<Goal> {
        let heaviest = |owners: &[ShardIndex], shard_count: usize| {
            totals(owners, shard_count, loads).into_iter().fold(0.0, f64::max)
        };
        let now = heaviest(owners, shard_count);
        let pays = |then: f64| then <= now * (1.0 - LEAST_GAIN);
        let moved = slots::balance(owners, shard_count, loads, TOLERANCE);
        let then = heaviest(&moved, shard_count);
        if let Some(Split { above, shards_max }) = self.policy.split
            && then > above
            && shard_count < shards_max
        {
            let split = slots::balance(owners, shard_count + 1, loads, TOLERANCE);
            // Not if it is one slot that is too much.
            let with_one_more = heaviest(&split, shard_count + 1);
            if pays(with_one_more) && with_one_more <= then * (1.0 - LEAST_GAIN) {
                return Some(Goal::Split(split));
            }
        }
        pays(then).then_some(Goal::Move(moved))
    }
}

fn totals(owners: &[ShardIndex], shard_count: usize, loads: &[f64]) -> Vec<f64> {
    let mut totals = vec![0.0; shard_count];
    for (owner, load) in owners.iter().zip(loads) {
        totals[usize::from(*owner)] += load;
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const SLOTS: usize = 256;

    /// A database in which goals come true at once.
    struct World {
        decider: Decider,
        owners: Vec<ShardIndex>,
        shard_count: usize,
        second: u32,
        goals: usize,
        slots_moved: usize,
    }

    impl World {
        fn new(policy: Automatic, shard_count: usize) -> World {
            World {
                decider: Decider::new(policy, Duration::ZERO),
                owners: slots::even(SLOTS, shard_count),
                shard_count,
                second: 0,
                goals: 0,
                slots_moved: 0,
            }
        }

        fn run(&mut self, seconds: u32, loads: impl Fn(usize) -> f64) {
            let loads: Vec<f64> = (0..SLOTS).map(loads).collect();
            for _ in 0..seconds {
                self.second += 1;
                let now = SECOND * self.second;
                let owners = match self.decider.decide(now, &self.owners, self.shard_count, &loads)
                {
                    None => continue,
                    Some(Goal::Move(owners)) => owners,
                    Some(Goal::Split(owners)) => {
                        self.shard_count += 1;
                        owners
                    }
                };
                self.goals += 1;
                self.slots_moved += self.owners.iter().zip(&owners).filter(|(a, b)| a != b).count();
                self.owners = owners;
                self.decider.rest(now);
            }
        }

        /// The heaviest shard as a multiple of the mean.
        fn worst(&self, loads: impl Fn(usize) -> f64) -> f64 {
            let loads: Vec<f64> = (0..SLOTS).map(loads).collect();
            let totals = totals(&self.owners, self.shard_count, &loads);
            let mean = totals.iter().sum::<f64>() / totals.len() as f64;
            totals.into_iter().fold(0.0, f64::max) / mean
        }
    }

    /// The first of four shards has six times what the others have.
    fn skewed(slot: usize) -> f64 {
        if slot < SLOTS / 4 { 120.0 } else { 20.0 }
    }

    #[test]
    fn a_heavy_shard_is_relieved_once_it_has_lasted_and_then_it_is_quiet() {
        let mut world = World::new(Automatic::new(), 4);
        world.run(89, skewed);
        assert_eq!(world.goals, 0, "the first cooldown, and 29 seconds");
        world.run(3, skewed);
        assert_eq!(world.goals, 1);
        assert!(world.worst(skewed) < 1.06, "{}", world.worst(skewed));
        assert!(world.slots_moved < SLOTS / 4, "{}", world.slots_moved);
        world.run(10_000, skewed);
        assert_eq!(world.goals, 1);
        // Not of what is next to nothing.
        let mut world = World::new(Automatic::new(), 4);
        world.run(10_000, |slot| skewed(slot) / 20.0);
        assert_eq!(world.goals, 0);
    }

    #[test]
    fn an_even_load_moves_nothing_however_it_jitters() {
        let mut world = World::new(Automatic::new().factor(1.3), 8);
        let random = std::cell::RefCell::new(fastrand::Rng::with_seed(5));
        for _ in 0..3_000 {
            world.run(1, |_| 100.0 * (0.3 + 1.4 * random.borrow_mut().f64()));
        }
        assert_eq!(world.goals, 0);
    }

    #[test]
    fn bursts_shorter_than_what_must_last_move_nothing() {
        let mut world = World::new(Automatic::new(), 4);
        for turn in 0..200 {
            world.run(29, |slot| skewed((slot + turn * SLOTS / 4) % SLOTS));
        }
        assert_eq!(world.goals, 0);
    }

    #[test]
    fn a_load_that_alternates_slowly_is_divided_and_then_left_alone() {
        let mut world = World::new(Automatic::new(), 2);
        for turn in 0..100 {
            // All of it in one half of the slots, then all in the other.
            let heavy =
                |slot: usize| if (slot < SLOTS / 2) == (turn % 2 == 0) { 100.0 } else { 0.0 };
            world.run(200, heavy);
        }
        assert_eq!(world.goals, 2);
        assert!(world.slots_moved <= SLOTS / 2, "{}", world.slots_moved);
    }

    #[test]
    fn one_hot_slot_goes_nowhere_to_and_fro() {
        // Alone, and with company that is worth moving away, once.
        for company in [0.0, 1.0, 10.0, 40.0, 100.0] {
            let hot = |slot: usize| if slot == 3 { 10_000.0 } else { company };
            for shard_count in 2..6 {
                let policy = Automatic::new().split_above(5_000.0, 5);
                let mut world = World::new(policy, shard_count);
                world.run(2_000, hot);
                let (goals, shards) = (world.goals, world.shard_count);
                assert!(goals <= 3, "company {company}: {goals} goals");
                assert!(company > 10.0 || shards == shard_count, "{shards} shards");
                world.run(20_000, hot);
                assert_eq!((world.goals, world.shard_count), (goals, shards), "{company}");
            }
        }
    }

    #[test]
    fn shards_are_added_while_they_are_too_full_and_no_more_than_allowed() {
        let even = |_| 100.0;
        let mut world = World::new(Automatic::new().split_above(7_000.0, 16), 1);
        world.run(2_000, even);
        assert_eq!((world.shard_count, world.goals), (4, 3), "of 25,600");
        assert!(world.worst(even) < 1.06);
        let mut world = World::new(Automatic::new().split_above(7_000.0, 3), 1);
        world.run(10_000, even);
        assert_eq!((world.shard_count, world.goals), (3, 2));
        // Moving is tried first.
        let mut world = World::new(Automatic::new().split_above(7_000.0, 16), 4);
        world.run(2_000, |slot| if slot < SLOTS / 4 { 200.0 } else { 30.0 });
        assert_eq!((world.shard_count, world.goals), (4, 1));
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        assert!(Automatic::new().check().is_ok());
        assert!(Automatic::new().split_above(1e6, SHARDS_MAX).check().is_ok());
        for wrong in [
            Automatic::new().factor(1.0),
            Automatic::new().factor(f64::NAN),
            Automatic::new().least_rate(-1.0),
            Automatic::new().split_above(f64::INFINITY, 2),
            Automatic::new().split_above(1e6, SHARDS_MAX + 1),
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }
}
