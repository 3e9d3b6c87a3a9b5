//! Dead letters: events that the handler failed too often, with the error, in a keyspace that users
//! can read like any other.
//!
//! ```text
//! key    number of the event in its queue, 8 bytes, big-endian: in the order of the events
//! value  version u8 = 1, varint tries, then as bytes: partition key, event, error
//! ```

use crate::coding::{DecodeError, Decoded, Decoder, put_bytes, put_varint};
use crate::error::{Error, Result};
use crate::key::SeqNo;

const VERSION: u8 = 1;
/// The text of an error is cut after so many bytes.
const ERROR_BYTES_MAX: usize = 1024;
/// What a dead letter takes beyond its event at most.
pub(crate) const OVERHEAD_BYTES: usize = ERROR_BYTES_MAX + 64;

/// An event that was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The partition key that it was pushed with.
    pub key: Vec<u8>,
    /// The event.
    pub event: Vec<u8>,
    /// What the handler said the last time.
    pub error: String,
    /// How often it was tried by itself.
    pub tries: u32,
}

impl DeadLetter {
    /// Reads the value of an entry of a keyspace of dead letters.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not one.
    pub fn decode(value: &[u8]) -> Result<DeadLetter> {
        let not = |why: DecodeError| Error::invalid(format!("this is no dead letter: {}", why.0));
        DeadLetter::read(value).map_err(not)
    }

    fn read(value: &[u8]) -> Decoded<DeadLetter> {
        let mut decoder = Decoder::new(value);
        if decoder.u8()? != VERSION {
            return Err(DecodeError("another version"));
        }
        let tries = decoder.varint_u32()?;
        let (key, event) = (decoder.bytes()?.to_vec(), decoder.bytes()?.to_vec());
        let error = std::str::from_utf8(decoder.bytes()?);
        decoder.finish()?;
        let error = error.map_err(|_| DecodeError("an error that is no text"))?.to_string();
        Ok(DeadLetter { key, event, error, tries })
    }

    pub(crate) fn encode(key: &[u8], event: &[u8], error: &str, tries: u32) -> Vec<u8> {
        let mut out = vec![VERSION];
        put_varint(&mut out, u64::from(tries));
        put_bytes(&mut out, key);
        put_bytes(&mut out, event);
        put_bytes(&mut out, &error.as_bytes()[..error.floor_char_boundary(ERROR_BYTES_MAX)]);
        out
    }
}

/// The key of the dead letter of this event.
pub(crate) fn dead_key(number: SeqNo) -> [u8; 8] {
    number.0.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_comes_back_with_its_error_cut_short() {
        let error = "é".repeat(2000);
        let value = DeadLetter::encode(b"k", b"event", &error, 5);
        assert!(value.len() <= 1 + 5 + OVERHEAD_BYTES);
        let letter = DeadLetter::decode(&value).unwrap();
        let (key, event) = (b"k".to_vec(), b"event".to_vec());
        assert_eq!(letter, DeadLetter { key, event, error: "é".repeat(512), tries: 5 });
        for len in 0..value.len() {
            assert!(DeadLetter::decode(&value[..len]).is_err());
        }
        assert!(dead_key(SeqNo(255)) < dead_key(SeqNo(256)));
    }
}
