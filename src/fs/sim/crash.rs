//! Images of the simulated file system, and what a power cut leaves of them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::fs::sim::SimFs;
use crate::fs::sim::contents::Contents;
use crate::fs::sim::effects::{DataEffect, DirEffect, Entry};
use crate::fs::sim::state::{DirState, FileState, Names, ROOT, State, apply, apply_names};

/// The file system at one moment: durable contents, pending effects and live contents. Costs one
/// reference count to take and to clone.
#[derive(Clone)]
pub struct Image {
    state: Arc<State>,
}

/// Which of the pending effects a power cut leaves. What was synced is left by all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Survival {
    /// None.
    NothingUnsynced,
    /// All.
    Everything,
    /// Those of names, none of bytes.
    DirectoryOnly,
    /// Those of bytes and lengths, none of names.
    DataOnly,
    /// The last one of names, and nothing else.
    LastDirectoryOperationOnly,
    /// Effect i, counted over all files and directories in the order they were made, if bit i is
    /// set; none beyond the 64th.
    Subset {
        /// The effects that survive.
        mask: u64,
    },
    /// Only effect i.
    Only {
        /// The one that survives.
        kept: usize,
    },
    /// All but effect i.
    AllBut {
        /// The one that does not.
        dropped: usize,
    },
    /// Each with a chance that is drawn for each file and directory; writes in units each of its
    /// own, at multiples of the unit; lengths apart from the bytes that changed them.
    Random {
        /// Draws everything.
        seed: u64,
        /// Bytes that are written whole or not at all: 1, 16, 512 or 4096.
        tear: usize,
        /// What is read where the length survived and the bytes did not.
        hole: Hole,
    },
}

/// What is read where a file is longer than what was written into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hole {
    /// Zeros.
    Zero,
    /// Random bytes.
    Garbage,
}

/// The units in which disks and kernels tear writes; 16 finds what 512 does not.
pub const TEAR_UNITS: [usize; 4] = [1, 16, 512, 4096];

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.describe_pending()).finish()
    }
}

impl Image {
    pub(super) fn of(state: Arc<State>) -> Image {
        Image { state }
    }

    /// How many effects are pending.
    #[must_use]
    pub fn pending_effects(&self) -> usize {
        let data = self.state.files.values().map(|file| file.pending.count());
        let names = self.state.dirs.values().map(|dir| dir.pending.count());
        data.chain(names).sum()
    }

    /// The pending effects as text, in the order they were made: line i is effect i.
    #[must_use]
    pub fn describe_pending(&self) -> Vec<String> {
        let mut lines = BTreeMap::new();
        for (number, file) in &self.state.files {
            for node in file.pending.in_order() {
                let effect = match &node.effect {
                    DataEffect::Write { offset, data, .. } => {
                        format!("write {}+{}", offset, data.len())
                    }
                    DataEffect::SetLen { bytes } => format!("set_len {bytes}"),
                };
                lines.insert(node.sequence, format!("{}: {effect}", self.name_of(*number)));
            }
        }
        for dir in self.state.dirs.values() {
            for node in dir.pending.in_order() {
                let line = match &node.effect {
                    DirEffect::Link { name, .. } => format!("link {name}"),
                    DirEffect::Unlink { name } => format!("unlink {name}"),
                    DirEffect::Rename { from, to, .. } => format!("rename {from} {to}"),
                };
                lines.insert(node.sequence, line);
            }
        }
        lines.into_values().collect()
    }

    fn name_of(&self, number: u64) -> String {
        let dirs = self.state.dirs.values();
        let mut names = dirs.flat_map(|dir| dir.live.iter().chain(&dir.durable));
        let name = names.find(|(_, entry)| **entry == Entry::File(number)).map(|(name, _)| name);
        name.map_or_else(|| format!("unnamed file {number}"), ToString::to_string)
    }

    /// The survivals worth trying on this image: all 2ⁿ subsets if at most `exhaustive_max`
    /// effects are pending, otherwise the fixed ones and `samples` single drops and single keeps;
    /// and in both cases `samples` torn ones. The same seed gives the same list.
    #[must_use]
    pub fn survivals(&self, exhaustive_max: usize, samples: usize, seed: u64) -> Vec<Survival> {
        let count = self.pending_effects();
        if count == 0 {
            return vec![Survival::NothingUnsynced];
        }
        let mut random = fastrand::Rng::with_seed(seed);
        let mut all = Vec::new();
        if count <= exhaustive_max.min(63) {
            all.extend((0..1 << count).map(|mask| Survival::Subset { mask }));
        } else {
            all.extend([Survival::NothingUnsynced, Survival::Everything, Survival::DirectoryOnly]);
            all.extend([Survival::DataOnly, Survival::LastDirectoryOperationOnly]);
            let some = random.choose_multiple(0..count, samples);
            all.extend(some.into_iter().map(|dropped| Survival::AllBut { dropped }));
            let some = random.choose_multiple(0..count, samples);
            all.extend(some.into_iter().map(|kept| Survival::Only { kept }));
        }
        all.extend((0..samples).map(|_| {
            let tear = TEAR_UNITS[random.usize(..TEAR_UNITS.len())];
            let hole = if random.bool() { Hole::Zero } else { Hole::Garbage };
            Survival::Random { seed: random.u64(..), tear, hole }
        }));
        all
    }

    /// The file system after a process was killed: everything it handed to the kernel is there,
    /// pending effects are still pending, its locks are gone. The boot is the same.
    #[must_use]
    pub fn kill(&self) -> SimFs {
        SimFs::from_state(Arc::clone(&self.state))
    }

    /// The file system after a power cut that leaves what `survival` says. The boot is another.
    #[must_use]
    pub fn crash(&self, survival: &Survival) -> SimFs {
        let mut after = State::clone(&self.state);
        let sieve = Sieve::new(&self.state, survival);
        for (number, file) in &mut after.files {
            if !file.is_settled() {
                *file = Arc::new(FileState::settled(sieve.contents(*number, file)));
            }
        }
        for (number, dir) in &mut after.dirs {
            if dir.pending.count() > 0 {
                *dir = Arc::new(DirState::settled(sieve.names(*number, dir)));
            }
        }
        drop_lost(&mut after);
        after.boots += 1;
        SimFs::from_state(Arc::new(after))
    }
}

/// What a failed sync leaves of a file: what `survival` says of its effects.
pub(super) fn contents_after(state: &State, number: u64, survival: &Survival) -> Contents {
    Sieve::new(state, survival).contents(number, &state.files[&number])
}

/// Drops directories and files that no surviving name leads to.
fn drop_lost(state: &mut State) {
    let (mut reached, mut next) = (vec![ROOT], 0);
    while let Some(dir) = reached.get(next) {
        let names = state.dirs[dir].live.values();
        let dirs = names.filter_map(|entry| match entry {
            Entry::Dir(number) => Some(*number),
            Entry::File(_) => None,
        });
        let dirs: Vec<u64> = dirs.collect();
        reached.extend(dirs);
        next += 1;
    }
    state.dirs.retain(|number, _| reached.contains(number));
    state.drop_unreachable(|_| false);
}

/// A survival, prepared for one image.
enum Sieve {
    /// Whole effects.
    Whole { data: Whole, names: Whole },
    /// Torn ones.
    Torn { seed: u64, tear: usize, hole: Hole },
}

enum Whole {
    None,
    All,
    /// The places of the survivors.
    These(Vec<u64>),
    AllBut(u64),
}

impl Whole {
    fn survives(&self, sequence: u64) -> bool {
        match self {
            Whole::None => false,
            Whole::All => true,
            Whole::These(survivors) => survivors.contains(&sequence),
            Whole::AllBut(dropped) => sequence != *dropped,
        }
    }
}

impl Sieve {
    fn new(state: &State, survival: &Survival) -> Sieve {
        let whole = |data, names| Sieve::Whole { data, names };
        let these = |places: Vec<u64>| whole(Whole::These(places.clone()), Whole::These(places));
        match survival {
            Survival::NothingUnsynced => whole(Whole::None, Whole::None),
            Survival::Everything => whole(Whole::All, Whole::All),
            Survival::DirectoryOnly => whole(Whole::None, Whole::All),
            Survival::DataOnly => whole(Whole::All, Whole::None),
            Survival::LastDirectoryOperationOnly => {
                let last = name_places(state).into_iter().max();
                whole(Whole::None, Whole::These(last.into_iter().collect()))
            }
            Survival::Subset { mask } => {
                let places = places(state).into_iter().take(64).enumerate();
                these(places.filter(|(i, _)| mask >> i & 1 == 1).map(|(_, place)| place).collect())
            }
            Survival::Only { kept } => {
                these(places(state).get(*kept).into_iter().copied().collect())
            }
            Survival::AllBut { dropped } => match places(state).get(*dropped) {
                Some(place) => whole(Whole::AllBut(*place), Whole::AllBut(*place)),
                None => whole(Whole::All, Whole::All),
            },
            Survival::Random { seed, tear, hole } => {
                assert!(*tear > 0, "a unit has bytes");
                Sieve::Torn { seed: *seed, tear: *tear, hole: *hole }
            }
        }
    }

    fn contents(&self, number: u64, file: &FileState) -> Contents {
        match self {
            Sieve::Whole { data, .. } => {
                let mut contents = file.durable.clone();
                for node in file.pending.in_order() {
                    if data.survives(node.sequence) {
                        apply(&mut contents, &node.effect);
                    }
                }
                contents
            }
            Sieve::Torn { seed, tear, hole } => torn(file, &mut draw(*seed, number), *tear, *hole),
        }
    }

    fn names(&self, number: u64, dir: &DirState) -> Names {
        let mut names = dir.durable.clone();
        let mut chance = match self {
            Sieve::Torn { seed, .. } => Some(Chance::drawn(draw(*seed, number))),
            Sieve::Whole { .. } => None,
        };
        for node in dir.pending.in_order() {
            let survives = match (self, &mut chance) {
                (Sieve::Whole { names, .. }, _) => names.survives(node.sequence),
                (Sieve::Torn { .. }, chance) => chance.as_mut().is_some_and(Chance::next),
            };
            if survives {
                apply_names(&mut names, &node.effect);
            }
        }
        names
    }
}

/// The places of all pending effects, first to last.
fn places(state: &State) -> Vec<u64> {
    let mut all = name_places(state);
    let files = state.files.values();
    all.extend(files.flat_map(|file| file.pending.in_order()).map(|node| node.sequence));
    all.sort_unstable();
    all
}

fn name_places(state: &State) -> Vec<u64> {
    let dirs = state.dirs.values();
    dirs.flat_map(|dir| dir.pending.in_order()).map(|node| node.sequence).collect()
}

/// A generator of its own for each file and directory, so that one more effect in one of them
/// does not change what happens to the others.
fn draw(seed: u64, number: u64) -> fastrand::Rng {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    fastrand::Rng::with_seed(xxh3_64(&bytes))
}

/// Coin flips whose odds were drawn first: with fair coins only, a list of a hundred effects
/// would never survive nearly whole, or nearly not at all.
struct Chance {
    random: fastrand::Rng,
    /// Of 16.
    odds: u8,
}

impl Chance {
    fn drawn(mut random: fastrand::Rng) -> Chance {
        let odds = [0, 1, 8, 8, 15, 16][random.usize(..6)];
        Chance { random, odds }
    }

    fn next(&mut self) -> bool {
        self.random.u8(..16) < self.odds
    }
}

/// The file after its writes were torn.
fn torn(file: &FileState, random: &mut fastrand::Rng, tear: usize, hole: Hole) -> Contents {
    let effects = file.pending.in_order();
    // First the lengths, since a hole is filled before the bytes around it are.
    let mut chance = Chance::drawn(random.fork());
    let mut len = file.durable.len();
    let lengths: Vec<bool> = effects.iter().map(|_| chance.next()).collect();
    for (node, survives) in effects.iter().zip(&lengths) {
        match &node.effect {
            DataEffect::SetLen { bytes } if *survives => len = *bytes,
            DataEffect::Write { offset, data, grows: true } if *survives => {
                len = len.max(offset + data.len() as u64);
            }
            _ => {}
        }
    }
    let mut contents = file.durable.clone();
    if let (Hole::Garbage, Some(bytes)) = (hole, len.checked_sub(file.durable.len())) {
        let garbage: Vec<u8> = (0..bytes).map(|_| random.u8(..)).collect();
        contents.put(file.durable.len(), &garbage);
    }
    let mut chance = Chance::drawn(random.fork());
    for (node, survives) in effects.iter().zip(&lengths) {
        match &node.effect {
            DataEffect::SetLen { bytes } if *survives => contents.set_len(*bytes),
            DataEffect::SetLen { .. } => {}
            DataEffect::Write { offset, data, .. } => {
                for (at, unit) in units(*offset, data, tear) {
                    if chance.next() {
                        contents.put(at, unit);
                    }
                }
            }
        }
    }
    contents.set_len(len);
    contents
}

/// The parts of a write between multiples of `tear`.
fn units(offset: u64, data: &[u8], tear: usize) -> impl Iterator<Item = (u64, &[u8])> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let room = tear - (at % tear as u64) as usize;
        let unit = &data[done..][..room.min(data.len() - done)];
        done += unit.len();
        (!unit.is_empty()).then_some((at, unit))
    })
}

/// Used by [`SimFs::state_hash`]: names and contents, depth first.
pub(super) fn hash_tree(state: &State, dir: u64, hasher: &mut Xxh3) {
    for (name, entry) in &state.dirs[&dir].live {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        match entry {
            Entry::File(number) => hasher.update(&state.files[number].hash().to_le_bytes()),
            Entry::Dir(number) => {
                hasher.update(b"(");
                hash_tree(state, *number, hasher);
                hasher.update(b")");
            }
        }
    }
}
