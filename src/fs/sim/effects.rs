//! What was done to a simulated file or directory and is not durable yet, in order.

use std::sync::Arc;

use bytes::Bytes;

/// Something done to the bytes of a file.
#[derive(Clone, Debug)]
pub(super) enum DataEffect {
    /// A write or a store. `grows` says that it changed the length.
    Write { offset: u64, data: Bytes, grows: bool },
    /// A change of the length, also by the creation of a log.
    SetLen { bytes: u64 },
}

/// What a name stands for, by the number of a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    File(u64),
    Dir(u64),
}

/// Something done to the names of a directory.
#[derive(Clone, Debug)]
pub(super) enum DirEffect {
    Link {
        name: Arc<str>,
        entry: Entry,
    },
    Unlink {
        name: Arc<str>,
    },
    /// Both names change or neither does.
    Rename {
        from: Arc<str>,
        to: Arc<str>,
        entry: Entry,
    },
}

/// Effects in order. A list from the last to the first, so that a copy is one reference count and
/// a run of thousands of stores can be copied after each.
pub(super) struct Pending<E> {
    last: Option<Arc<Node<E>>>,
    count: usize,
}

/// An effect and its place among all effects of the file system.
pub(super) struct Node<E> {
    pub(super) sequence: u64,
    pub(super) effect: E,
    previous: Option<Arc<Node<E>>>,
}

impl<E> Pending<E> {
    pub(super) const fn new() -> Pending<E> {
        Pending { last: None, count: 0 }
    }

    pub(super) fn push(&mut self, sequence: u64, effect: E) {
        let previous = self.last.take();
        self.last = Some(Arc::new(Node { sequence, effect, previous }));
        self.count += 1;
    }

    /// Takes the last effect back if it is the one with this place.
    pub(super) fn take_back(&mut self, sequence: u64) -> Option<Arc<Node<E>>> {
        let last = self.last.take_if(|node| node.sequence == sequence)?;
        self.last = last.previous.clone();
        self.count -= 1;
        Some(last)
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// First to last.
    pub(super) fn in_order(&self) -> Vec<&Node<E>> {
        let mut nodes = Vec::with_capacity(self.count);
        let mut next = self.last.as_deref();
        while let Some(node) = next {
            nodes.push(node);
            next = node.previous.as_deref();
        }
        nodes.reverse();
        nodes
    }
}

impl<E> Clone for Pending<E> {
    fn clone(&self) -> Pending<E> {
        Pending { last: self.last.clone(), count: self.count }
    }
}

impl<E> Drop for Pending<E> {
    /// Node by node: the list may be longer than the stack is deep.
    fn drop(&mut self) {
        let mut next = self.last.take();
        while let Some(mut node) = next.and_then(Arc::into_inner) {
            next = node.previous.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_independent_and_long_lists_drop() {
        let mut pending = Pending::new();
        (0..10).for_each(|i| pending.push(i, i));
        let copy = pending.clone();
        assert!(pending.take_back(8).is_none());
        assert_eq!(pending.take_back(9).unwrap().effect, 9);
        pending.push(20, 20);
        let effects = |p: &Pending<u64>| p.in_order().iter().map(|n| n.effect).collect::<Vec<_>>();
        assert_eq!(effects(&pending), [0, 1, 2, 3, 4, 5, 6, 7, 8, 20]);
        assert_eq!(effects(&copy), (0..10).collect::<Vec<_>>());
        assert_eq!((pending.count(), copy.count()), (10, 10));
        (0..1_000_000).for_each(|i| pending.push(i, i));
    }
}
