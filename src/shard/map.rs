//! The slot map: which shard has which slots of the keys, and what is under way.
//!
//! It is the file `SHARDS` in the root directory, replaced as a whole: written as `SHARDS.tmp`,
//! synced, renamed, and the directory synced. That rename is the one moment at which slots change
//! their owner and keyspaces come and go.
//!
//! ```text
//!   offset  size  field
//!        0     8  magic "eskerSHM"
//!        8     4  compatible feature bits: unknown ones are ignored
//!       12     4  incompatible feature bits: unknown ones are refused
//!       16    16  id of the database, random; the shards carry it too
//!       32     8  version: grows with every replacement
//!       40     4  length of the body
//!       44        body
//!                   slots                varint
//!                   forming              1 byte, 1 until all shards were created
//!                   partition            kind (1 byte), then of kind 1: the separator (1 byte),
//!                                        of kind 2: the function's name as bytes
//!                   shards               varint, then of each: its directory as bytes
//!                   owners               of each stretch of slots with one owner: its length,
//!                                        its shard, as varints, until all slots are named
//!                   goal                 1 byte, 1 if owners are to become others: then as owners
//!                   move under way       1 byte, 1 if there is one: from, to, set of slots
//!                   leftovers            varint, then of each: shard, set of slots
//!                   keyspaces            varint, then of each: its name as bytes, sorted
//!     then     4  checksum of all before, bound to (id, offset 0)
//! ```
//!
//! *Leftovers* are slots of which a shard still has keys that are not its own: what a move has left
//! behind, or one that was given up has brought. A shard has nothing of any other slot that is not
//! its own, but for the target of the move under way.

use std::path::{Path, PathBuf};

use crate::checksum::{Checksum, FileId};
use crate::coding::{DecodeError, Decoded, Decoder, put_bytes, put_varint};
use crate::error::{Error, ErrorKind, Result};
use crate::fs;
use crate::shard::slots::{self, ShardIndex, Slot, SlotSet};

/// Slots of a database whose owner says nothing else.
pub(crate) const SLOTS_DEFAULT: usize = 1024;
/// The most slots that a database may have.
pub(crate) const SLOTS_MAX: usize = 1 << 16;
/// The most shards that a database may have.
pub(crate) const SHARDS_MAX: usize = 256;

const MAGIC: &[u8; 8] = b"eskerSHM";
const HEADER_BYTES: usize = 44;

/// What of a key decides its slot, as it is persisted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PartitionName {
    /// The whole key. On disk: 0.
    WholeKey,
    /// What comes before the first of these bytes, or the whole key. On disk: 1.
    Before(u8),
    /// What a function of the user's takes out of it. On disk: 2.
    Named(String),
}

/// Slots that are on their way to another shard, which does not own them yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MoveUnderWay {
    pub from: ShardIndex,
    pub to: ShardIndex,
    pub slots: SlotSet,
}

/// Slots of which a shard still has keys that are not its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leftover {
    pub shard: ShardIndex,
    pub slots: SlotSet,
}

/// See the module's comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotMap {
    pub id: FileId,
    pub version: u64,
    /// Not all shards were created yet: those that are missing may be.
    pub is_forming: bool,
    pub partition: PartitionName,
    /// Relative to the root unless absolute.
    pub directories: Vec<String>,
    /// By slot.
    pub owners: Vec<ShardIndex>,
    /// What the owners are to become.
    pub goal: Option<Vec<ShardIndex>>,
    pub moving: Option<MoveUnderWay>,
    /// At most one for each shard, sorted by it; none is empty.
    pub leftovers: Vec<Leftover>,
    /// Names of the keyspaces, sorted; without hidden ones.
    pub keyspaces: Vec<String>,
}

impl SlotMap {
    /// The map of a database that is being created.
    pub fn new(
        id: FileId,
        slot_count: usize,
        partition: PartitionName,
        directories: Vec<String>,
        keyspace: &str,
    ) -> SlotMap {
        SlotMap {
            id,
            version: 1,
            is_forming: true,
            partition,
            owners: slots::even(slot_count, directories.len()),
            directories,
            goal: None,
            moving: None,
            leftovers: Vec::new(),
            keyspaces: vec![keyspace.to_string()],
        }
    }

    #[inline]
    pub fn owner(&self, slot: Slot) -> ShardIndex {
        self.owners[usize::from(slot)]
    }

    pub fn slot_count(&self) -> usize {
        self.owners.len()
    }

    pub fn shard_count(&self) -> usize {
        self.directories.len()
    }

    /// The directory of a shard.
    pub fn directory(&self, root: &Path, shard: ShardIndex) -> PathBuf {
        // An absolute one replaces the root.
        root.join(&self.directories[usize::from(shard)])
    }

    /// True if some shard may have keys that are not its own.
    pub fn has_strangers(&self) -> bool {
        self.moving.is_some() || !self.leftovers.is_empty()
    }

    /// Adds to what a shard has too much.
    pub fn leave(&mut self, shard: ShardIndex, slots: &SlotSet) {
        let at = self.leftovers.binary_search_by_key(&shard, |leftover| leftover.shard);
        let at = at.unwrap_or_else(|at| {
            self.leftovers.insert(at, Leftover { shard, slots: SlotSet::default() });
            at
        });
        slots.iter().for_each(|slot| self.leftovers[at].slots.insert(slot));
        self.leftovers.retain(|leftover| !leftover.slots.is_empty());
    }

    /// Takes slots out of what a shard has too much.
    pub fn clear_leftover(&mut self, shard: ShardIndex, slots: &SlotSet) {
        for leftover in self.leftovers.iter_mut().filter(|leftover| leftover.shard == shard) {
            slots.iter().for_each(|slot| leftover.slots.remove(slot));
        }
        self.leftovers.retain(|leftover| !leftover.slots.is_empty());
    }

    /// The next move towards the goal: all slots that go from one shard to another.
    pub fn next_move(&self) -> Option<MoveUnderWay> {
        let goal = self.goal.as_ref()?;
        let differs = |slot: &usize| self.owners[*slot] != goal[*slot];
        let first = (0..self.slot_count()).find(differs)?;
        let (from, to) = (self.owners[first], goal[first]);
        let of_it = |slot: &usize| self.owners[*slot] == from && goal[*slot] == to;
        let slots = (0..self.slot_count()).filter(of_it).map(|slot| slot as Slot).collect();
        Some(MoveUnderWay { from, to, slots })
    }

    /// What is wrong with it, if anything.
    pub fn check(&self) -> Decoded<()> {
        let wrong =
            |bad: bool, what: &'static str| if bad { Err(DecodeError(what)) } else { Ok(()) };
        let (slots, shards) = (self.slot_count(), self.shard_count());
        wrong(slots == 0 || slots > SLOTS_MAX, "a number of slots out of range")?;
        wrong(shards == 0 || shards > SHARDS_MAX, "a number of shards out of range")?;
        let is_shard = |shard: ShardIndex| usize::from(shard) < shards;
        wrong(self.owners.iter().any(|owner| !is_shard(*owner)), "an owner that is no shard")?;
        if let Some(goal) = &self.goal {
            wrong(goal.len() != slots, "a goal for other slots")?;
            wrong(goal.iter().any(|owner| !is_shard(*owner)), "a goal that is no shard")?;
        }
        if let Some(moving) = &self.moving {
            wrong(!is_shard(moving.from) || !is_shard(moving.to), "a move of no shards")?;
            wrong(moving.from == moving.to, "a move from a shard to itself")?;
            wrong(moving.slots.is_empty(), "a move of no slots")?;
            let owned = |slot| usize::from(slot) < slots && self.owner(slot) == moving.from;
            wrong(!moving.slots.iter().all(owned), "a move of slots that are elsewhere")?;
            let is_left = |leftover: &Leftover| {
                let mut left = leftover.slots.iter();
                leftover.shard == moving.to && left.any(|slot| moving.slots.contains(slot))
            };
            wrong(self.leftovers.iter().any(is_left), "leftovers of what is being moved")?;
        }
        let order = self.leftovers.windows(2).all(|pair| pair[0].shard < pair[1].shard);
        wrong(!order, "leftovers out of order")?;
        for Leftover { shard, slots: left } in &self.leftovers {
            wrong(!is_shard(*shard) || left.is_empty(), "leftovers of nothing")?;
            let not_its_own = |slot| usize::from(slot) < slots && self.owner(slot) != *shard;
            wrong(!left.iter().all(not_its_own), "leftovers of a shard's own slots")?;
        }
        let sorted = self.keyspaces.windows(2).all(|pair| pair[0] < pair[1]);
        wrong(!sorted || self.keyspaces.is_empty(), "names of keyspaces out of order")
    }

    pub fn encode(&self) -> Vec<u8> {
        debug_assert_eq!(self.check(), Ok(()));
        let mut body = Vec::new();
        put_varint(&mut body, self.slot_count() as u64);
        body.push(u8::from(self.is_forming));
        match &self.partition {
            PartitionName::WholeKey => body.push(0),
            PartitionName::Before(separator) => body.extend([1, *separator]),
            PartitionName::Named(name) => {
                body.push(2);
                put_bytes(&mut body, name.as_bytes());
            }
        }
        put_varint(&mut body, self.directories.len() as u64);
        self.directories.iter().for_each(|directory| put_bytes(&mut body, directory.as_bytes()));
        put_owners(&mut body, &self.owners);
        body.push(u8::from(self.goal.is_some()));
        if let Some(goal) = &self.goal {
            put_owners(&mut body, goal);
        }
        body.push(u8::from(self.moving.is_some()));
        if let Some(MoveUnderWay { from, to, slots }) = &self.moving {
            put_varint(&mut body, u64::from(*from));
            put_varint(&mut body, u64::from(*to));
            slots.encode(&mut body);
        }
        put_varint(&mut body, self.leftovers.len() as u64);
        for Leftover { shard, slots } in &self.leftovers {
            put_varint(&mut body, u64::from(*shard));
            slots.encode(&mut body);
        }
        put_varint(&mut body, self.keyspaces.len() as u64);
        self.keyspaces.iter().for_each(|name| put_bytes(&mut body, name.as_bytes()));

        let mut out = Vec::with_capacity(HEADER_BYTES + body.len() + 4);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&self.id.0.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&body);
        let checksum = Checksum::new(self.id).of(0, &out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Reads the file's bytes; `path` is for errors.
    ///
    /// # Errors
    /// `Corruption` if it is not as it was written, `Unsupported` if a newer version wrote it.
    pub fn decode(bytes: &[u8], path: &Path) -> Result<SlotMap> {
        let bad = |offset: usize, expected: &str, found: String| {
            Error::corruption(path, offset as u64, expected, found)
        };
        let length = bytes.len();
        if length < HEADER_BYTES + 4 || bytes[..8] != *MAGIC {
            return Err(bad(0, "a slot map", format!("{length} bytes of something else")));
        }
        let at = |from: usize| u32::from_le_bytes(bytes[from..from + 4].try_into().expect("four"));
        let body_end = HEADER_BYTES + at(40) as usize;
        if !fs::length_fits("shards.bytes", body_end + 4 == length) {
            return Err(bad(
                40,
                &format!("a body of {} bytes", length - HEADER_BYTES - 4),
                format!("{}", at(40)),
            ));
        }
        let id = FileId(u128::from_le_bytes(bytes[16..32].try_into().expect("sixteen")));
        let (found, computed) = (at(body_end), Checksum::new(id).of(0, &bytes[..body_end]));
        if found != computed {
            let expected = format!("checksum {computed:#010x}");
            return Err(bad(body_end, &expected, format!("{found:#010x}")));
        }
        if at(12) != 0 {
            let what = format!("{}: feature bits {:#x}", path.display(), at(12));
            return Err(Error::new(ErrorKind::Unsupported).context(what));
        }
        let version = u64::from_le_bytes(bytes[32..40].try_into().expect("eight"));
        let body = &bytes[HEADER_BYTES..body_end];
        decode_body(id, version, body)
            .map_err(|error| bad(HEADER_BYTES, "a slot map", error.0.to_string()))
    }
}

fn decode_body(id: FileId, version: u64, body: &[u8]) -> Decoded<SlotMap> {
    let mut decoder = Decoder::new(body);
    let slot_count = decoder.varint()? as usize;
    if slot_count > SLOTS_MAX {
        return Err(DecodeError("a number of slots out of range"));
    }
    let is_forming = flag(&mut decoder)?;
    let partition = match decoder.u8()? {
        0 => PartitionName::WholeKey,
        1 => PartitionName::Before(decoder.u8()?),
        2 => PartitionName::Named(text(&mut decoder)?),
        _ => return Err(DecodeError("an unknown kind of partition")),
    };
    let mut directories = Vec::new();
    for _ in 0..decoder.varint()? {
        directories.push(text(&mut decoder)?);
    }
    let owners = owners(&mut decoder, slot_count)?;
    let goal = flag(&mut decoder)?.then(|| self::owners(&mut decoder, slot_count)).transpose()?;
    let moving = match flag(&mut decoder)? {
        false => None,
        true => {
            let (from, to) = (number(&mut decoder)?, number(&mut decoder)?);
            Some(MoveUnderWay { from, to, slots: SlotSet::decode(&mut decoder, slot_count)? })
        }
    };
    let mut leftovers = Vec::new();
    for _ in 0..decoder.varint()? {
        let shard = number(&mut decoder)?;
        leftovers.push(Leftover { shard, slots: SlotSet::decode(&mut decoder, slot_count)? });
    }
    let mut keyspaces = Vec::new();
    for _ in 0..decoder.varint()? {
        keyspaces.push(text(&mut decoder)?);
    }
    if !decoder.is_empty() {
        return Err(DecodeError("more than a slot map"));
    }
    let map = SlotMap {
        id,
        version,
        is_forming,
        partition,
        directories,
        owners,
        goal,
        moving,
        leftovers,
        keyspaces,
    };
    map.check()?;
    Ok(map)
}

fn put_owners(out: &mut Vec<u8>, owners: &[ShardIndex]) {
    for stretch in owners.chunk_by(|a, b| a == b) {
        put_varint(out, stretch.len() as u64);
        put_varint(out, u64::from(stretch[0]));
    }
}

fn owners(decoder: &mut Decoder<'_>, slot_count: usize) -> Decoded<Vec<ShardIndex>> {
    let mut owners = Vec::with_capacity(slot_count);
    while owners.len() < slot_count {
        let (length, shard) = (decoder.varint()?, number(decoder)?);
        if length == 0 || length > (slot_count - owners.len()) as u64 {
            return Err(DecodeError("owners of other slots"));
        }
        owners.resize(owners.len() + length as usize, shard);
    }
    Ok(owners)
}

fn flag(decoder: &mut Decoder<'_>) -> Decoded<bool> {
    match decoder.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError("neither yes nor no")),
    }
}

fn number(decoder: &mut Decoder<'_>) -> Decoded<ShardIndex> {
    ShardIndex::try_from(decoder.varint()?).map_err(|_| DecodeError("a shard out of range"))
}

fn text(decoder: &mut Decoder<'_>) -> Decoded<String> {
    let bytes = decoder.bytes()?;
    String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError("a name that is no text"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::SHARDS;

    fn full() -> SlotMap {
        let directories = vec!["shard-000".to_string(), "/disk/é".to_string(), "c".to_string()];
        let partition = PartitionName::Named("by tenant".to_string());
        let mut map = SlotMap::new(FileId(0x1234), 96, partition, directories, "default");
        map.version = 7;
        map.owners = slots::even(96, 2);
        map.goal = Some(slots::share_with(&map.owners, 2));
        map.moving = map.next_move();
        map.leave(1, &(3..7).collect());
        map.keyspaces = vec!["counts".to_string(), "default".to_string()];
        map
    }

    #[test]
    fn it_round_trips() {
        let path = Path::new(SHARDS);
        for partition in [PartitionName::WholeKey, PartitionName::Before(b':')] {
            let mut map =
                SlotMap::new(FileId(1), SLOTS_DEFAULT, partition, vec!["a".into()], "default");
            assert_eq!(SlotMap::decode(&map.encode(), path).unwrap(), map);
            map.owners = vec![0; SLOTS_MAX];
            assert_eq!(SlotMap::decode(&map.encode(), path).unwrap(), map);
        }
        assert_eq!(SlotMap::decode(&full().encode(), path).unwrap(), full());
    }

    #[test]
    fn every_flipped_bit_and_every_length_is_corruption() {
        let (bytes, path) = (full().encode(), Path::new(SHARDS));
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = SlotMap::decode(&bytes, path).unwrap_err();
            assert!(error.is_corruption(), "bit {bit}: {error}");
        }
        for length in 0..bytes.len() {
            let error = SlotMap::decode(&bytes[..length], path).unwrap_err();
            assert!(error.is_corruption(), "{length} bytes: {error}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(SlotMap::decode(&longer, path).unwrap_err().is_corruption());
    }

    #[test]
    fn a_map_of_another_database_or_version_has_another_checksum() {
        let (one, mut other) = (full(), full());
        other.id = FileId(0x1235);
        let (one, other) = (one.encode(), other.encode());
        let mut mixed = one.clone();
        mixed[16..32].copy_from_slice(&other[16..32]);
        assert!(SlotMap::decode(&mixed, Path::new(SHARDS)).unwrap_err().is_corruption());
    }

    #[test]
    fn unknown_feature_bits_are_unsupported() {
        let mut bytes = full().encode();
        bytes[12] = 1;
        let end = bytes.len() - 4;
        let checksum = Checksum::new(full().id).of(0, &bytes[..end]);
        bytes[end..].copy_from_slice(&checksum.to_le_bytes());
        let error = SlotMap::decode(&bytes, Path::new(SHARDS)).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Unsupported);
    }

    #[test]
    fn a_map_that_contradicts_itself_is_refused() {
        let wrong = |change: fn(&mut SlotMap)| {
            let mut map = full();
            change(&mut map);
            assert!(map.check().is_err(), "{map:?}");
        };
        assert_eq!(full().check(), Ok(()));
        wrong(|map| map.owners[0] = 3);
        wrong(|map| map.owners.clear());
        wrong(|map| map.goal.as_mut().unwrap()[0] = 3);
        wrong(|map| map.goal.as_mut().unwrap().truncate(3));
        wrong(|map| map.moving.as_mut().unwrap().to = map.moving.as_ref().unwrap().from);
        wrong(|map| map.moving.as_mut().unwrap().slots.insert(95));
        wrong(|map| map.moving.as_mut().unwrap().slots.insert(200));
        wrong(|map| map.leave(0, &[1].into_iter().collect()));
        wrong(|map| {
            let moving = map.moving.clone().unwrap();
            map.leave(moving.to, &moving.slots);
        });
        wrong(|map| map.keyspaces.reverse());
    }

    #[test]
    fn moves_lead_to_the_goal() {
        let mut map = full();
        map.leftovers.clear();
        let mut moves = 0;
        while let Some(next) = map.next_move() {
            map.moving = Some(next.clone());
            map.check().unwrap();
            next.slots.iter().for_each(|slot| map.owners[usize::from(slot)] = next.to);
            map.moving = None;
            map.leave(next.from, &next.slots);
            map.check().unwrap();
            moves += 1;
        }
        assert_eq!((Some(&map.owners), moves), (map.goal.as_ref(), 2));
        for leftover in map.leftovers.clone() {
            map.clear_leftover(leftover.shard, &leftover.slots);
        }
        assert!(map.leftovers.is_empty());
    }
}
