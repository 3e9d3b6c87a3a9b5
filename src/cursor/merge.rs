//! Several cursors as one, in entry order.
