//! Little-endian integers, varints and length-prefixed bytes, written to a `Vec` and read back
//! from a `&[u8]` by a [`Decoder`] that never panics and never allocates.
//!
//! ```text
//! varint   LEB128: 7 bits a byte, low first, high bit = more follow; at most 10 bytes for u64;
//!          the shortest form only (a trailing zero byte is refused), so that equal values have
//!          equal bytes
//! bytes    varint length, then so many bytes
//! ```

/// Appends `value` as a varint.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// How many bytes [`put_varint`] appends for `value`.
#[inline]
#[must_use]
pub fn varint_len(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// Appends a varint length and the bytes.
#[inline]
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Why bytes could not be decoded: a short phrase for an error's `found`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError(pub &'static str);

/// Reads values off the front of a byte slice.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

/// A value or the reason why there is none.
pub type Decoded<T> = Result<T, DecodeError>;

impl<'a> Decoder<'a> {
    /// A decoder at the front of `bytes`.
    #[inline]
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Decoder<'a> {
        Decoder { rest: bytes }
    }

    /// True if every byte has been read.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What has not been read.
    #[inline]
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `len` bytes.
    #[inline]
    pub fn take(&mut self, len: usize) -> Decoded<&'a [u8]> {
        if len > self.rest.len() {
            return Err(DecodeError("ends early"));
        }
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(taken)
    }

    /// One byte.
    #[inline]
    pub fn u8(&mut self) -> Decoded<u8> {
        Ok(self.take(1)?[0])
    }

    /// A little-endian u16.
    #[inline]
    pub fn u16(&mut self) -> Decoded<u16> {
        let bytes = self.take(2)?;
        Ok(u16::from_le_bytes(bytes.try_into().expect("two bytes")))
    }

    /// A little-endian u32.
    #[inline]
    pub fn u32(&mut self) -> Decoded<u32> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    /// A little-endian u64.
    #[inline]
    pub fn u64(&mut self) -> Decoded<u64> {
        let bytes = self.take(8)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    }

    /// A little-endian u128.
    #[inline]
    pub fn u128(&mut self) -> Decoded<u128> {
        let bytes = self.take(16)?;
        Ok(u128::from_le_bytes(bytes.try_into().expect("sixteen bytes")))
    }

    /// A varint that fits a u64, in its shortest form.
    #[inline]
    pub fn varint(&mut self) -> Decoded<u64> {
        let mut value = 0u64;
        for (index, &byte) in self.rest.iter().enumerate().take(10) {
            let bits = u64::from(byte & 0x7f);
            if index == 9 && bits > 1 {
                return Err(DecodeError("varint over 64 bits"));
            }
            value |= bits << (7 * index);
            if byte < 0x80 {
                if byte == 0 && index > 0 {
                    return Err(DecodeError("varint not in its shortest form"));
                }
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        Err(DecodeError("varint without an end"))
    }

    /// A varint that fits a u32.
    #[inline]
    pub fn varint_u32(&mut self) -> Decoded<u32> {
        u32::try_from(self.varint()?).map_err(|_| DecodeError("number over 32 bits"))
    }

    /// A varint length and so many bytes.
    #[inline]
    pub fn bytes(&mut self) -> Decoded<&'a [u8]> {
        let len = self.varint()?;
        if len > self.rest.len() as u64 {
            return Err(DecodeError("length past the end"));
        }
        self.take(len as usize)
    }

    /// Succeeds only if every byte has been read.
    #[inline]
    pub fn finish(&self) -> Decoded<()> {
        if self.is_empty() { Ok(()) } else { Err(DecodeError("bytes left over")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_in_their_shortest_form() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) - 1, (1u64 << shift) | 1] {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                assert_eq!(out.len(), varint_len(value), "{value}");
                let mut decoder = Decoder::new(&out);
                assert_eq!(decoder.varint(), Ok(value));
                assert_eq!(decoder.finish(), Ok(()));
                for cut in 0..out.len() {
                    assert!(Decoder::new(&out[..cut]).varint().is_err());
                }
            }
        }
        assert!(Decoder::new(&[0x80, 0x00]).varint().is_err());
        assert!(Decoder::new(&[0xff; 10]).varint().is_err());
    }

    #[test]
    fn a_length_past_the_end_is_an_error_and_consumes_nothing_more() {
        let mut decoder = Decoder::new(&[5, b'a', b'b']);
        assert_eq!(decoder.bytes(), Err(DecodeError("length past the end")));
        let mut decoder = Decoder::new(&[1, 2, 3]);
        assert!(decoder.u32().is_err());
        assert_eq!(decoder.u8(), Ok(1));
    }
}
