//! What is done at the end of a scope, come what may: a test that fails shall end the threads that wait
//! for it, and be seen to fail rather than to hang.

/// Calls its function when it is dropped.
pub struct Finally<F: Fn()>(pub F);

impl<F: Fn()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
