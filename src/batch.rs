//! An atomic batch of operations, encoded once for log, memtable and recovery.
