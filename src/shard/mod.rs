//! Several engines as one database.
//!
//! - `rates`: reads and writes a second, by slot. `sketch`: the heaviest keys.

#[cfg_attr(not(test), expect(dead_code, reason = "until the sharded database counts with it"))]
pub(crate) mod rates;
#[cfg_attr(not(test), expect(dead_code, reason = "until the sharded database counts with it"))]
pub(crate) mod sketch;
