//! A block: sorted entries that are searched through an array of 8-byte key heads.
//!
//! ```text
//! offset  size           field
//!      0  4              count of rows, at least 1
//!      4  2              bytes of the shared prefix
//!      6  1              w, bytes of a row's seqno field, 0 to 8
//!      7  1              flags: bit 0 = offsets are u32, else u16; the others are zero
//!      8  8              smallest seqno of the block
//!     16  prefix         the bytes that every key begins with
//!         8 * count      heads: bytes 0..8 of each key after the prefix, padded with zeros, as a
//!                        number that sorts as the bytes do
//!         2|4 * count    offsets of the rows, from the end of this array
//!                        rows, without gaps; the last one ends with the block
//!
//! row     1              low 4 bits: kind; high 4 bits: bytes of the key after the prefix (the
//!                        suffix), or 15 if there are more than 14
//!         varint         only after a 15: suffix bytes - 15
//!         w              seqno - smallest seqno
//!         suffix - 8     the suffix after its head; nothing if the suffix has at most 8 bytes
//!                        value: the rest of the row
//! ```
//!
//! The one entry `apple#7,PUT = "x"` (all of its key is prefix, so its head is 0):
//!
//! ```text
//! 01000000 0500 00 00 0700000000000000 6170706c65 0000000000000000 0000 01 78
//! ```
//!
//! A lookup compares the prefix once, searches the heads without branches, and compares whole
//! keys among equal heads only: 51 ns in cache and 460 ns cold, where restart points as LevelDB
//! has them take 147 and 1,019 ns. Rows are reached in O(1), so going backwards is free. Heads are
//! not repeated in the rows: that saves 6.5 % of a 116-byte entry, and every byte of a table is
//! written as often as the tree has levels; cursors put keys together in a buffer anyway. The
//! value's length is not stored: the next row's offset gives it.
//!
//! [`Block::new`] checks what costs O(1) and [`Block::validate`] everything else. A block is
//! validated once, when its checksum is; reading a row checks bounds always, because a mapped page
//! can rot after it was verified.

use std::cmp::Ordering;
use std::hint::select_unpredictable;
use std::ops::Range;

use crate::coding::{DecodeError, Decoded, Decoder, put_varint, varint_len};
use crate::key::{self, EntryKind, SeqNo};
use crate::table::filter::prefetch;

const HEADER_BYTES: usize = 16;
/// On disk: never renumber.
const FLAG_WIDE_OFFSETS: u8 = 1;
/// Suffix lengths from this one on do not fit the row's first byte.
const SUFFIX_LONG: usize = 15;
/// The prefix's length is a u16; a key can be one byte longer.
const PREFIX_BYTES_MAX: usize = u16::MAX as usize;

/// Of longer rows the processor notices by itself that they are read in order.
const ROW_PREFETCHED_BYTES: usize = 256;

/// Some rows of the usual size, as many as the processor takes to notice where it goes.
const WALK_PREFETCHED_BYTES: usize = 512;

const BAD_ROW: DecodeError = DecodeError("a row past its bounds");

/// Where the parts of a block begin.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shape {
    pub count: usize,
    prefix_bytes: usize,
    seqno_bytes: usize,
    /// Ones where the seqno field has bits.
    seqno_mask: u64,
    offset_bytes: usize,
    heads_at: usize,
    offsets_at: usize,
    rows_at: usize,
    seqno_min: u64,
}

/// The content of a block, uncompressed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block<'a> {
    bytes: &'a [u8],
    shape: Shape,
}

/// One entry of a block, without its key's prefix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    head: u64,
    suffix_bytes: usize,
    /// The suffix after its head.
    tail: &'a [u8],
    /// `tail` and then `value`, side by side.
    tail_and_value: &'a [u8],
    pub seqno: SeqNo,
    pub kind: EntryKind,
    pub value: &'a [u8],
    /// Where `value` begins in the block.
    pub value_at: usize,
}

impl Shape {
    fn decode(bytes: &[u8]) -> Decoded<Shape> {
        let mut header = Decoder::new(bytes);
        let count = header.u32()? as usize;
        let prefix_bytes = header.u16()? as usize;
        let seqno_bytes = header.u8()? as usize;
        let flags = header.u8()?;
        let seqno_min = header.u64()?;
        if count == 0 {
            return Err(DecodeError("a block without rows"));
        }
        if seqno_bytes > 8 {
            return Err(DecodeError("seqno fields over 8 bytes"));
        }
        if flags & !FLAG_WIDE_OFFSETS != 0 {
            return Err(DecodeError("unknown block flags"));
        }
        let offset_bytes = if flags & FLAG_WIDE_OFFSETS != 0 { 4 } else { 2 };
        let heads_at = HEADER_BYTES + prefix_bytes;
        // Below 2^32 * 12: no overflow in a usize of 64 bits.
        let offsets_at = heads_at + count * 8;
        let rows_at = offsets_at + count * offset_bytes;
        if rows_at >= bytes.len() {
            return Err(DecodeError("a block shorter than its row count"));
        }
        let shape = Shape {
            count,
            prefix_bytes,
            seqno_bytes,
            seqno_mask: u64::MAX.checked_shr(64 - 8 * seqno_bytes as u32).unwrap_or(0),
            offset_bytes,
            heads_at,
            offsets_at,
            rows_at,
            seqno_min,
        };
        Ok(shape)
    }
}

impl<'a> Block<'a> {
    /// The block with this content; its rows are not looked at.
    pub fn new(bytes: &'a [u8]) -> Decoded<Block<'a>> {
        Ok(Block { bytes, shape: Shape::decode(bytes)? })
    }

    /// The block again, from its content and the shape that [`Block::new`] found in it.
    #[inline]
    pub fn with_shape(bytes: &'a [u8], shape: Shape) -> Block<'a> {
        debug_assert!(bytes.len() >= shape.rows_at);
        Block { bytes, shape }
    }

    #[inline]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// How many rows there are.
    #[inline]
    pub fn count(&self) -> usize {
        self.shape.count
    }

    /// The bytes that every key begins with.
    #[inline]
    pub fn prefix(&self) -> &'a [u8] {
        &self.bytes[HEADER_BYTES..self.shape.heads_at]
    }

    /// The heads of all rows, ascending.
    #[inline]
    pub fn heads(&self) -> &'a [[u8; 8]] {
        self.bytes[self.shape.heads_at..self.shape.offsets_at].as_chunks().0
    }

    #[inline]
    fn offset(&self, index: usize) -> Option<usize> {
        let at = self.shape.offsets_at + index * self.shape.offset_bytes;
        if self.shape.offset_bytes == 2 {
            Some(u16::from_le_bytes(*self.bytes.get(at..)?.first_chunk()?) as usize)
        } else {
            Some(u32::from_le_bytes(*self.bytes.get(at..)?.first_chunk()?) as usize)
        }
    }

    /// Asks at once for all that is read of some of the rows from `index` on: their heads, their
    /// offsets, and the lines where the rows are if all are of about the same size. One after the
    /// other they would be three misses.
    #[inline]
    pub fn prefetch_rows(&self, index: usize, count: usize) {
        let Shape { heads_at, offsets_at, offset_bytes, rows_at, count: all, .. } = self.shape;
        let row_bytes = (self.bytes.len() - rows_at) / all;
        for (start, bytes) in [(heads_at, 8), (offsets_at, offset_bytes), (rows_at, row_bytes)] {
            let start = start + index * bytes;
            prefetch_lines(self.bytes, start..start + count * bytes);
        }
    }

    /// Asks for the first lines of row `index`: where its value begins is known only when the row
    /// has come, and that the value's next line is wanted as well.
    #[inline]
    pub fn prefetch_row(&self, index: usize) {
        if index < self.shape.count
            && let Some(offset) = self.offset(index)
        {
            let start = self.shape.rows_at + offset;
            let next = if index + 1 < self.shape.count { self.offset(index + 1) } else { None };
            let end = next.map_or(self.bytes.len(), |next| self.shape.rows_at + next);
            prefetch_lines(self.bytes, start..end.min(start + ROW_PREFETCHED_BYTES));
        }
    }

    /// The same for a cursor that goes on from row `index`, towards later rows or earlier ones.
    #[inline]
    pub fn prefetch_walk(&self, index: usize, forwards: bool) {
        if index < self.shape.count
            && let Some(offset) = self.offset(index)
        {
            let start = self.shape.rows_at + offset;
            let from = if forwards { start } else { start.saturating_sub(WALK_PREFETCHED_BYTES) };
            prefetch_lines(self.bytes, from..from + WALK_PREFETCHED_BYTES);
        }
    }

    /// Row `index`, which is less than [`Block::count`].
    #[inline]
    pub fn row(&self, index: usize) -> Decoded<Row<'a>> {
        self.row_in_place(index)
    }

    /// The same, always inlined, for scans: a row that is given back in memory is written in pieces and read
    /// in larger ones, which waits until the pieces have left the store buffer.
    #[inline(always)]
    pub fn row_in_place(&self, index: usize) -> Decoded<Row<'a>> {
        self.row_from(index, self.shape.rows_at + self.offset(index).ok_or(BAD_ROW)?)
    }

    /// The same for who knows where it begins: where the row before it ended.
    #[inline(always)]
    pub fn row_from(&self, index: usize, start: usize) -> Decoded<Row<'a>> {
        let head = u64::from_le_bytes(*self.heads().get(index).ok_or(BAD_ROW)?);
        let end = if index + 1 < self.shape.count {
            self.shape.rows_at + self.offset(index + 1).ok_or(BAD_ROW)?
        } else {
            self.bytes.len()
        };
        let row = self.bytes.get(start..end).ok_or(BAD_ROW)?;
        let (&first, mut rest) = row.split_first().ok_or(BAD_ROW)?;
        let kind = EntryKind::from_u8(first & 15).ok_or(DecodeError("an unknown entry kind"))?;
        let mut suffix_bytes = usize::from(first >> 4);
        if suffix_bytes == SUFFIX_LONG {
            let mut decoder = Decoder::new(rest);
            let more = decoder.varint_u32()? as usize;
            if more > key::KEY_BYTES_MAX {
                return Err(DecodeError("a key over 64 KiB"));
            }
            suffix_bytes += more;
            rest = decoder.rest();
        }
        let (delta, tail_and_value) = self.split_seqno(rest).ok_or(BAD_ROW)?;
        let seqno =
            self.shape.seqno_min.checked_add(delta).ok_or(DecodeError("a seqno over 64 bits"))?;
        let tail_bytes = suffix_bytes.saturating_sub(8);
        let (tail, value) = tail_and_value.split_at_checked(tail_bytes).ok_or(BAD_ROW)?;
        let (seqno, value_at) = (SeqNo(seqno), end - value.len());
        Ok(Row { head, suffix_bytes, tail, tail_and_value, seqno, kind, value, value_at })
    }

    /// The seqno field at the front of `rest`, and what follows it.
    #[inline]
    fn split_seqno<'r>(&self, rest: &'r [u8]) -> Option<(u64, &'r [u8])> {
        let Shape { seqno_bytes, seqno_mask, .. } = self.shape;
        // One load and a mask instead of a loop over the field's bytes.
        if let Some(eight) = rest.first_chunk::<8>() {
            return Some((u64::from_le_bytes(*eight) & seqno_mask, rest.get(seqno_bytes..)?));
        }
        let (field, after) = rest.split_at_checked(seqno_bytes)?;
        let delta = field.iter().rev().fold(0, |delta, &byte| delta << 8 | u64::from(byte));
        Some((delta, after))
    }

    /// The first row at or after (key, seqno) in entry order; the count if there is none.
    #[inline]
    pub fn lower_bound(&self, key: &[u8], seqno: SeqNo) -> Decoded<usize> {
        self.lower_bound_by(key, seqno, first_head_at_least)
    }

    /// The same, where `find_head` finds the first of the heads that is at least a number, or
    /// how many there are.
    #[inline]
    pub fn lower_bound_by(
        &self,
        key: &[u8],
        seqno: SeqNo,
        find_head: impl FnOnce(&[[u8; 8]], u64) -> usize,
    ) -> Decoded<usize> {
        let prefix = self.prefix();
        let shared = key.len().min(prefix.len());
        match key[..shared].cmp(&prefix[..shared]) {
            Ordering::Less => return Ok(0),
            Ordering::Greater => return Ok(self.count()),
            Ordering::Equal if key.len() < prefix.len() => return Ok(0),
            Ordering::Equal => {}
        }
        let suffix = &key[prefix.len()..];
        let head = key::head(suffix);
        let heads = self.heads();
        let mut low = find_head(heads, head);
        if heads.get(low).is_none_or(|found| u64::from_le_bytes(*found) != head) {
            return Ok(low);
        }
        let mut high = match head.checked_add(1) {
            Some(next) => low + 1 + first_head_at_least(&heads[low + 1..], next),
            None => heads.len(),
        };
        while low < high {
            let middle = low.midpoint(high);
            let row = self.row(middle)?;
            if row.compare_suffix(suffix).then_with(|| seqno.cmp(&row.seqno)) == Ordering::Less {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// True if `row`, which is one of this block, has this user key.
    #[inline]
    pub fn row_has_key(&self, row: &Row<'_>, key: &[u8]) -> bool {
        key.len() == self.shape.prefix_bytes + row.suffix_bytes
            && key.strip_prefix(self.prefix()).is_some_and(|suffix| {
                key::head(suffix) == row.head && row.compare_suffix(suffix).is_eq()
            })
    }

    /// Checks what [`Block::new`] did not: that every row can be read, and that the entries
    /// ascend. No seqno may be above `seqno_max`.
    pub fn validate(&self, seqno_max: u64) -> Decoded<()> {
        self.validate_each(seqno_max, |_| Ok(()))
    }

    /// The same, and checks each row by `check` besides.
    pub fn validate_each(
        &self,
        seqno_max: u64,
        mut check: impl FnMut(&Row<'a>) -> Decoded<()>,
    ) -> Decoded<()> {
        if self.offset(0) != Some(0) {
            return Err(DecodeError("a gap before the first row"));
        }
        let mut before = None;
        for index in 0..self.count() {
            // Reading a row checks that its end is not before its start: the rows tile.
            let row = self.row(index)?;
            if row.seqno.0 > seqno_max {
                return Err(DecodeError("a seqno over 56 bits"));
            }
            if row.kind == EntryKind::Delete && !row.value.is_empty() {
                return Err(DecodeError("a tombstone with a value"));
            }
            if row.suffix_bytes < 8 && row.head.trailing_zeros() < 64 - 8 * row.suffix_bytes as u32
            {
                return Err(DecodeError("a head longer than its key"));
            }
            if self.shape.prefix_bytes + row.suffix_bytes > key::KEY_BYTES_MAX {
                return Err(DecodeError("a key over 64 KiB"));
            }
            if before.is_some_and(|before: Row<'_>| before.compare(&row) != Ordering::Less) {
                return Err(DecodeError("rows out of order"));
            }
            check(&row)?;
            before = Some(row);
        }
        Ok(())
    }
}

impl Row<'_> {
    /// Compares keys whose heads are equal.
    #[inline]
    fn compare_suffix(&self, suffix: &[u8]) -> Ordering {
        if self.suffix_bytes < 8 || suffix.len() < 8 {
            // Equal heads: the shorter suffix is a prefix of the other one, or the same.
            self.suffix_bytes.cmp(&suffix.len())
        } else {
            self.tail.cmp(&suffix[8..])
        }
    }

    /// Entry order of two rows of one block.
    #[inline]
    fn compare(&self, other: &Row<'_>) -> Ordering {
        let tails = || {
            if self.suffix_bytes < 8 || other.suffix_bytes < 8 {
                self.suffix_bytes.cmp(&other.suffix_bytes)
            } else {
                self.tail.cmp(other.tail)
            }
        };
        self.head.cmp(&other.head).then_with(tails).then_with(|| other.seqno.cmp(&self.seqno))
    }

    /// The first 16 bytes of the key, as [`key::long_head`] gives them, if its prefix has so many bytes and
    /// that head. Not read from where [`Row::put_suffix`] has just written them: a load across two stores
    /// waits for both.
    #[inline]
    pub fn long_head(&self, prefix_head: u128, prefix_bytes: usize) -> u128 {
        if prefix_bytes >= key::LONG_HEAD_BYTES {
            return prefix_head;
        }
        // A head is padded with zeros already.
        let mut suffix = u128::from(self.head) << 64;
        if self.suffix_bytes > 8 {
            let tail = match self.tail_and_value.first_chunk::<8>() {
                Some(eight) => u64::from_be_bytes(*eight),
                None => key::head(self.tail),
            };
            let beyond = u64::MAX.checked_shr(8 * (self.suffix_bytes - 8) as u32).unwrap_or(0);
            suffix |= u128::from(tail & !beyond);
        }
        prefix_head | suffix >> (8 * prefix_bytes)
    }

    /// Replaces what `key` holds after its first `prefix_bytes` bytes by this row's suffix.
    #[inline]
    pub fn put_suffix(&self, key: &mut Vec<u8>, prefix_bytes: usize) {
        key.truncate(prefix_bytes);
        match self.tail_and_value.first_chunk::<8>() {
            // A copy of a fixed size is two moves: what is too much is cut off again.
            Some(eight) if self.tail.len() <= 8 => {
                let suffix = u128::from(self.head) << 64 | u128::from(u64::from_be_bytes(*eight));
                key.extend_from_slice(&suffix.to_be_bytes());
            }
            _ => {
                key.extend_from_slice(&self.head.to_be_bytes());
                key.extend_from_slice(self.tail);
            }
        }
        key.truncate(prefix_bytes + self.suffix_bytes);
    }
}

/// Asks for the lines that hold `range` of `bytes`.
#[inline]
fn prefetch_lines(bytes: &[u8], range: Range<usize>) {
    let mut at = range.start;
    while at < range.end {
        prefetch(bytes, at);
        at += 64;
    }
    prefetch(bytes, range.end.saturating_sub(1));
}

/// The first of the ascending `heads` that is at least `head`, or how many there are.
#[inline]
fn first_head_at_least(heads: &[[u8; 8]], head: u64) -> usize {
    first_at_least(heads.len(), head, |at| u64::from_le_bytes(heads[at]))
}

/// The first of `count` ascending numbers that is at least `least`, or `count`.
///
/// Without branches: each step is a conditional move, because its outcome is a coin toss.
#[inline]
pub(crate) fn first_at_least(count: usize, least: u64, number: impl Fn(usize) -> u64) -> usize {
    let mut base = 0;
    let mut left = count;
    while left > 0 {
        let half = left.div_ceil(2);
        let less = number(base + half - 1) < least;
        base = select_unpredictable(less, base + half, base);
        left -= half;
    }
    base
}

/// Collects sorted entries and writes them as a block.
#[derive(Default)]
pub(crate) struct BlockBuilder {
    /// Key and value of each entry, one after the other.
    bytes: Vec<u8>,
    rows: Vec<Pending>,
    seqno_min: u64,
    seqno_max: u64,
}

struct Pending {
    key_at: u32,
    value_at: u32,
    seqno: u64,
    kind: EntryKind,
}

impl BlockBuilder {
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// About how large the block would be now, without counting on a shared prefix.
    #[inline]
    pub fn bytes_estimate(&self) -> usize {
        HEADER_BYTES + self.bytes.len() + self.rows.len() * 6
    }

    /// Adds an entry after those that were added before.
    #[inline]
    pub fn add(&mut self, key: &[u8], seqno: u64, kind: EntryKind, value: &[u8]) {
        if self.rows.is_empty() {
            self.seqno_min = seqno;
            self.seqno_max = seqno;
        } else {
            self.seqno_min = self.seqno_min.min(seqno);
            self.seqno_max = self.seqno_max.max(seqno);
        }
        let key_at = self.bytes.len() as u32;
        self.bytes.extend_from_slice(key);
        let value_at = self.bytes.len() as u32;
        self.bytes.extend_from_slice(value);
        assert!(u32::try_from(self.bytes.len()).is_ok(), "blocks end below 4 GiB");
        self.rows.push(Pending { key_at, value_at, seqno, kind });
    }

    fn key(&self, index: usize) -> &[u8] {
        let row = &self.rows[index];
        &self.bytes[row.key_at as usize..row.value_at as usize]
    }

    /// Appends the block to `out` and is empty again. There must be an entry.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        assert!(!self.rows.is_empty(), "a block has a row");
        let count = self.rows.len();
        let prefix_bytes = shared_prefix(self.key(0), self.key(count - 1)).min(PREFIX_BYTES_MAX);
        let seqno_bytes = (64 - (self.seqno_max - self.seqno_min).leading_zeros()).div_ceil(8);
        let rows_bytes = self.rows_bytes(prefix_bytes, seqno_bytes as usize);
        let wide = rows_bytes > usize::from(u16::MAX);
        let offset_bytes = if wide { 4 } else { 2 };
        let rows_at = HEADER_BYTES + prefix_bytes + count * (8 + offset_bytes);

        let start = out.len();
        out.reserve(rows_at + rows_bytes);
        out.extend_from_slice(&(count as u32).to_le_bytes());
        out.extend_from_slice(&(prefix_bytes as u16).to_le_bytes());
        out.extend_from_slice(&[seqno_bytes as u8, if wide { FLAG_WIDE_OFFSETS } else { 0 }]);
        out.extend_from_slice(&self.seqno_min.to_le_bytes());
        out.extend_from_slice(&self.key(0)[..prefix_bytes]);
        let heads_at = out.len();
        out.resize(start + rows_at, 0);
        self.put_rows(out, heads_at, prefix_bytes, seqno_bytes as usize, wide);
        assert_eq!(out.len(), start + rows_at + rows_bytes, "rows as large as computed");
        self.bytes.clear();
        self.rows.clear();
    }

    /// Appends the rows, and fills in the heads at `heads_at` and the offsets after them.
    fn put_rows(
        &self,
        out: &mut Vec<u8>,
        heads_at: usize,
        prefix_bytes: usize,
        seqno_bytes: usize,
        wide: bool,
    ) {
        let offsets_at = heads_at + 8 * self.rows.len();
        let rows_at = out.len();
        for (index, row) in self.rows.iter().enumerate() {
            let offset = out.len() - rows_at;
            if wide {
                let at = offsets_at + 4 * index;
                out[at..at + 4].copy_from_slice(&(offset as u32).to_le_bytes());
            } else {
                let at = offsets_at + 2 * index;
                out[at..at + 2].copy_from_slice(&(offset as u16).to_le_bytes());
            }
            let suffix_at = row.key_at as usize + prefix_bytes;
            let suffix_bytes = row.value_at as usize - suffix_at;
            let head = key::head(&self.bytes[suffix_at..row.value_at as usize]);
            let at = heads_at + 8 * index;
            out[at..at + 8].copy_from_slice(&head.to_le_bytes());

            out.push(row.kind as u8 | (suffix_bytes.min(SUFFIX_LONG) as u8) << 4);
            if suffix_bytes >= SUFFIX_LONG {
                put_varint(out, (suffix_bytes - SUFFIX_LONG) as u64);
            }
            let delta = (row.seqno - self.seqno_min).to_le_bytes();
            out.extend_from_slice(&delta[..seqno_bytes]);
            // The tail of the key and the value lie side by side: one copy moves both.
            let tail_at = suffix_at + suffix_bytes.min(8);
            let end =
                self.rows.get(index + 1).map_or(self.bytes.len(), |next| next.key_at as usize);
            out.extend_from_slice(&self.bytes[tail_at..end]);
        }
    }

    fn rows_bytes(&self, prefix_bytes: usize, seqno_bytes: usize) -> usize {
        let mut total = self.bytes.len() + self.rows.len() * (1 + seqno_bytes);
        for row in &self.rows {
            let suffix_bytes = (row.value_at - row.key_at) as usize - prefix_bytes;
            total -= prefix_bytes + suffix_bytes.min(8);
            if suffix_bytes >= SUFFIX_LONG {
                total += varint_len((suffix_bytes - SUFFIX_LONG) as u64);
            }
        }
        total
    }
}

/// How many bytes `a` and `b` begin with alike.
#[inline]
pub(crate) fn shared_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys of a shared prefix of each length up to 20, and after it of each length up to 20.
    #[test]
    fn the_long_head_of_a_row_is_that_of_its_key() {
        for prefix_bytes in 0..=20 {
            let prefix = vec![0xa5; prefix_bytes];
            for value in [&b""[..], b"v", &[0xff; 30]] {
                let mut builder = BlockBuilder::default();
                let mut keys: Vec<Vec<u8>> = Vec::new();
                for suffix_bytes in 0..=20_u8 {
                    let suffix: Vec<u8> = (0..suffix_bytes).map(|n| n * 12 + 1).collect();
                    keys.push([&prefix[..], &suffix].concat());
                }
                // One that keeps the prefix from being longer.
                keys.push([&prefix[..], &[0xf0]].concat());
                for key in &keys {
                    builder.add(key, 7, EntryKind::Put, value);
                }
                let mut bytes = Vec::new();
                builder.finish(&mut bytes);
                let block = Block::new(&bytes).unwrap();
                assert_eq!(block.prefix(), prefix);
                let prefix_head = key::long_head(&prefix);
                for (row, key) in keys.iter().enumerate() {
                    let head = block.row(row).unwrap().long_head(prefix_head, prefix_bytes);
                    assert_eq!(
                        head,
                        key::long_head(key),
                        "{} {}",
                        prefix_bytes,
                        key.escape_ascii()
                    );
                }
            }
        }
    }
}
