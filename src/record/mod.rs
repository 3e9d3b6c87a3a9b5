//! Record framing, shared by the write-ahead log and the manifest.
