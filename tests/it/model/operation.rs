//! What a sequence does, drawn from a seed before anything runs, so that a failing sequence can be
//! made shorter and a trace of it can be read.

use std::fmt;
use std::ops::Bound;

use fastrand::Rng;

/// A keyspace of the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// The default one, without an operator.
    Default,
    /// With `Counter`.
    Counters,
    /// With `Append`.
    Texts,
    /// Created and dropped in the course of the sequence, with `Append`.
    Passing,
}

pub const SPACES: [Space; 4] = [Space::Default, Space::Counters, Space::Texts, Space::Passing];

/// One of the few keys, by number: of several lengths, with common prefixes, one of them empty.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(pub u8);

impl Key {
    pub fn bytes(self) -> Vec<u8> {
        let number = self.0;
        match number % 5 {
            _ if number == 0 => Vec::new(),
            0 => vec![0xff; usize::from(number) / 5],
            1 => format!("k{number:02}").into_bytes(),
            2 => format!("k{number:02}\0").into_bytes(),
            3 => format!("a common prefix longer than a head {number:02}").into_bytes(),
            _ => vec![b'k', number, 0, number],
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:\"{}\"", self.0, self.bytes().escape_ascii())
    }
}

/// A value or an operand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Value {
    Number(i64),
    /// So many bytes that begin with a number which is another in every write.
    Text {
        tag: u32,
        bytes: u16,
    },
}

impl Value {
    pub fn bytes(self) -> Vec<u8> {
        match self {
            Value::Number(number) => number.to_le_bytes().to_vec(),
            Value::Text { tag, bytes } => {
                let text = format!("<{tag}>");
                text.bytes().cycle().take(bytes.into()).collect()
            }
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(number) => write!(f, "{number}"),
            Value::Text { tag, bytes } => write!(f, "<{tag}>x{bytes}"),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Write {
    Put(Space, Key, Value),
    Delete(Space, Key),
    Merge(Space, Key, Value),
}

impl Write {
    pub fn space(self) -> Space {
        match self {
            Write::Put(space, ..) | Write::Delete(space, ..) | Write::Merge(space, ..) => space,
        }
    }
}

/// How a batch is committed.
#[derive(Clone, Copy, Debug)]
pub enum Commit {
    Plain,
    Disk,
    Ticket,
    DiskTicket,
    DroppedTicket,
    Try,
    Within,
}

/// What is read: the present, or a snapshot that is held.
#[derive(Clone, Copy, Debug)]
pub enum When {
    Now,
    Snapshot(usize),
}

/// A range of keys.
#[derive(Clone, Copy, Debug)]
pub enum Range {
    All,
    Prefix(Key, usize),
    Bounds(Bound<Key>, Bound<Key>),
}

/// From which ends a scan is taken: one bit a step, in turn; a set bit is the back.
#[derive(Clone, Copy)]
pub struct Ends(pub u64);

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("forward"),
            u64::MAX => f.write_str("backward"),
            bits => write!(f, "mixed {bits:#x}"),
        }
    }
}

#[derive(Clone, Debug)]
pub enum Read {
    Get(Key),
    GetWith(Key),
    Contains(Key),
    MultiGet(Vec<Key>),
    Scan(Range, Ends),
}

#[derive(Clone, Copy, Debug)]
pub enum Move {
    First,
    Last,
    Seek(Key),
    SeekBefore(Key),
    Next,
    Prev,
}

/// How a database is let go before it is opened again.
#[derive(Clone, Copy, Debug)]
pub enum Leave {
    Close,
    Drop,
}

/// How slots are moved between shards, where there are any.
#[derive(Clone, Copy, Debug)]
pub enum Reshard {
    /// Half of a shard's goes to another one, new or not, while the sequence goes on.
    Split(usize),
    /// All get about the same.
    Rebalance,
    /// What is under way is given up.
    Abort,
    /// What is under way is awaited.
    Wait,
}

#[derive(Clone, Debug)]
pub enum Operation {
    Write(Write),
    TryWrite(Write),
    Batch(Vec<Write>, Commit),
    Read(When, Space, Read),
    OpenCursor(When, Space),
    MoveCursor(usize, Vec<Move>),
    DropCursor(usize),
    OpenScan(When, Space, Range),
    StepScan(usize, u8, Ends),
    DropScan(usize),
    TakeSnapshot,
    DropSnapshot(usize),
    Flush,
    FlushSpace(Space),
    Compact(Space, Range),
    Settle,
    Sync,
    Reshard(Reshard),
    Checkpoint,
    CreatePassing,
    DropPassing,
    Reopen(Leave),
}

/// Draws the operations of a sequence.
pub struct Draw {
    pub rng: Rng,
    key_count: u8,
    tag: u32,
    /// Of 8 writes, about so many are deletes.
    deletes: u8,
}

impl Draw {
    pub fn new(seed: u64) -> Draw {
        let mut rng = Rng::with_seed(seed);
        let (key_count, deletes) = (rng.u8(30..=60), rng.u8(0..4));
        Draw { rng, key_count, tag: 0, deletes }
    }

    pub fn operations(&mut self, count: usize) -> Vec<Operation> {
        (0..count).map(|_| self.operation()).collect()
    }

    fn operation(&mut self) -> Operation {
        match self.rng.u8(..208) {
            0..70 => Operation::Write(self.write()),
            70..74 => Operation::TryWrite(self.write()),
            74..92 => self.batch(),
            92..128 => Operation::Read(self.when(), self.space(), self.read()),
            128..132 => Operation::OpenCursor(self.when(), self.space()),
            132..150 => Operation::MoveCursor(self.index(), self.moves()),
            150..152 => Operation::DropCursor(self.index()),
            152..155 => Operation::OpenScan(self.when(), self.space(), self.range()),
            155..164 => Operation::StepScan(self.index(), self.rng.u8(1..8), self.ends()),
            164..166 => Operation::DropScan(self.index()),
            166..171 => Operation::TakeSnapshot,
            171..174 => Operation::DropSnapshot(self.index()),
            174..178 => Operation::Flush,
            178..182 => Operation::FlushSpace(self.space()),
            182..186 => Operation::Compact(self.space(), self.range()),
            186..188 => Operation::Settle,
            188..190 => Operation::Sync,
            190..194 => Operation::CreatePassing,
            194..196 => Operation::DropPassing,
            196..198 => Operation::Reopen(Leave::Close),
            198..200 => Operation::Reopen(Leave::Drop),
            200..206 => Operation::Reshard(self.reshard()),
            _ => Operation::Checkpoint,
        }
    }

    fn reshard(&mut self) -> Reshard {
        match self.rng.u8(..8) {
            0..3 => Reshard::Split(self.index()),
            3..5 => Reshard::Rebalance,
            5 => Reshard::Abort,
            _ => Reshard::Wait,
        }
    }

    fn index(&mut self) -> usize {
        self.rng.usize(..1000)
    }

    fn space(&mut self) -> Space {
        SPACES[self.rng.usize(..4)]
    }

    fn key(&mut self) -> Key {
        Key(self.rng.u8(..self.key_count))
    }

    fn when(&mut self) -> When {
        if self.rng.u8(..3) == 0 { When::Snapshot(self.index()) } else { When::Now }
    }

    fn value(&mut self, space: Space, bytes_max: u16) -> Value {
        if space == Space::Counters {
            let huge = self.rng.u8(..16) == 0;
            return Value::Number(if huge { self.rng.i64(..) } else { self.rng.i64(-9..10) });
        }
        self.tag += 1;
        let bytes = match self.rng.u8(..32) {
            0 => 0,
            1..24 => self.rng.u16(1..24),
            24..29 => self.rng.u16(24..120),
            29..31 => self.rng.u16(120..600),
            _ => self.rng.u16(600..1500),
        };
        Value::Text { tag: self.tag, bytes: bytes.min(bytes_max) }
    }

    fn write(&mut self) -> Write {
        let space = self.space();
        self.write_of(space, 1500)
    }

    fn write_of(&mut self, space: Space, bytes_max: u16) -> Write {
        let key = self.key();
        if self.rng.u8(..8) < self.deletes {
            return Write::Delete(space, key);
        }
        if space != Space::Default && self.rng.u8(..4) > 0 {
            return Write::Merge(space, key, self.value(space, bytes_max.min(40)));
        }
        Write::Put(space, key, self.value(space, bytes_max))
    }

    fn batch(&mut self) -> Operation {
        let count = self.rng.usize(..9);
        let writes = (0..count).map(|_| {
            let space = self.space();
            self.write_of(space, 120)
        });
        let writes = writes.collect();
        let commit = match self.rng.u8(..10) {
            0..4 => Commit::Plain,
            4 => Commit::Disk,
            5 => Commit::Ticket,
            6 => Commit::DiskTicket,
            7 => Commit::DroppedTicket,
            8 => Commit::Try,
            _ => Commit::Within,
        };
        Operation::Batch(writes, commit)
    }

    fn read(&mut self) -> Read {
        match self.rng.u8(..8) {
            0 | 1 => Read::Get(self.key()),
            2 => Read::GetWith(self.key()),
            3 => Read::Contains(self.key()),
            4 => {
                let count = self.rng.usize(..8);
                Read::MultiGet((0..count).map(|_| self.key()).collect())
            }
            _ => Read::Scan(self.range(), self.ends()),
        }
    }

    fn range(&mut self) -> Range {
        match self.rng.u8(..6) {
            0 | 1 => Range::All,
            2 => Range::Prefix(self.key(), self.rng.usize(..4)),
            _ => Range::Bounds(self.bound(), self.bound()),
        }
    }

    fn bound(&mut self) -> Bound<Key> {
        match self.rng.u8(..5) {
            0 => Bound::Unbounded,
            1 | 2 => Bound::Included(self.key()),
            _ => Bound::Excluded(self.key()),
        }
    }

    fn ends(&mut self) -> Ends {
        match self.rng.u8(..3) {
            0 => Ends(0),
            1 => Ends(u64::MAX),
            _ => Ends(self.rng.u64(..)),
        }
    }

    fn moves(&mut self) -> Vec<Move> {
        let count = self.rng.usize(1..8);
        let bias = self.rng.u8(2..8);
        let moves = (0..count).map(|_| match self.rng.u8(..14) {
            0 => Move::First,
            1 => Move::Last,
            2 => Move::Seek(self.key()),
            3 => Move::SeekBefore(self.key()),
            _ if self.rng.u8(..10) < bias => Move::Next,
            _ => Move::Prev,
        });
        moves.collect()
    }
}
