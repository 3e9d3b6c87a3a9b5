//! Many engines, one database.
//!
//! - `slots`: sets and assignments of slots. `map`: the slot map and its bytes. `map_file`: the map on
//!   the disk. `partition`: which part of a key decides its slot.

pub(crate) mod slots;

pub(crate) mod map;

pub(crate) mod map_file;
pub(crate) mod partition;
