//! The read path: from a view and a snapshot number to values.
//!
//! - `get`: point reads.
//! - `scan`: the cursor over live keys, and the iterator over a range of them.

pub(crate) mod get;
pub(crate) mod scan;
