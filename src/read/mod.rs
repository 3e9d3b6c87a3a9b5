//! The read path: from a view and a snapshot number to values.
//!
//! - `get`: point reads.
//! - `scan`: the cursor over live keys. `iter`: the iterator over a range of them.
//! - `range`: a range of keys.

pub(crate) mod get;
pub(crate) mod iter;
pub(crate) mod range;
pub(crate) mod scan;
