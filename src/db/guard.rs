//! Conditional commits: a batch that is committed only if its guards hold.
//!
//! A guard is checked twice, and plain writers never wait for it:
//!
//! 1. Outside every lock, as of a moment v: the key is read, operands folded by the user's operator.
//!    A guard that does not hold then is a `Conflict`.
//! 2. Under the commit lock, at the commit's own place in the order: nobody has written the key
//!    since v ([`crate::write::stamps`]). If somebody has, or a neighbour in the same stripe, step 1
//!    is done again once that write can be read.
//!
//! So what holds at v holds at the commit, against plain writes as well as against other
//! conditional ones, and nothing with another number lies between. A loser is always beaten by a
//! commit that went through: there is no livelock, though a key that others write without pause can
//! keep one commit waiting.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::batch::BatchBuilder;
use crate::db::engine::Engine;
use crate::db::snapshot::Snapshot;
use crate::error::{Error, ErrorKind, Result};
use crate::read::get::{get_with, newest_with};
use crate::tree::Tree;
use crate::write::pressure::Patience;
use crate::write::ring::Place;
use crate::write::stamps::{Check, Stripe};

/// What must hold of a key.
pub(crate) struct Guard {
    pub tree: Arc<Tree>,
    pub key: Box<[u8]>,
    pub must: Must,
}

#[derive(Clone)]
pub(crate) enum Must {
    BeAbsent,
    Equal(Box<[u8]>),
    /// Have no version that the snapshot does not see.
    BeUnchangedSince(Snapshot),
}

impl Engine {
    /// Commits a batch if `look` finds that it may be; `look` notes in the check what it read, and
    /// is called again if that was written before the commit had its place. It may break off.
    ///
    /// # Errors
    /// As `look` and the commit say; nothing was written then, or it is unknown.
    pub fn write_checked<T>(
        &self,
        builder: &mut BatchBuilder,
        trees: &[&Tree],
        patience: Patience,
        mut look: impl FnMut(&mut Check) -> Result<ControlFlow<T>>,
    ) -> Result<ControlFlow<T, Place>> {
        loop {
            let mut check = Check::default();
            let admitted = self.admit_batch(builder)?;
            // Made ready before the look: what that has begun to load arrives meanwhile.
            let payload = builder.finish();
            if let ControlFlow::Break(instead) = look(&mut check)? {
                return Ok(ControlFlow::Break(instead));
            }
            if let Some(place) = self.submit_batch(payload, trees, patience, Some(&check))? {
                return Ok(ControlFlow::Continue(place));
            }
            drop(admitted);
            self.pipeline.wait_for_missed(&check)?;
        }
    }

    /// Reads the keys of all guards.
    ///
    /// # Errors
    /// `Conflict` if a guard does not hold; from the read otherwise.
    pub fn look_at(&self, guards: &[Guard], check: &mut Check) -> Result<()> {
        if !guards.is_empty() {
            self.pipeline.stamp_keys();
        }
        for guard in guards {
            let Guard { tree, key, must } = guard;
            tree.check_live()?;
            let (view, reading) = self.pin(tree);
            let now = reading.seqno;
            let holds = match must {
                Must::BeAbsent => get_with(tree, &view, key, now, |_| ())?.is_none(),
                Must::Equal(expected) => {
                    let equal = |value: crate::cursor::ValueRef<'_>| *value.bytes == **expected;
                    get_with(tree, &view, key, now, equal)? == Some(true)
                }
                Must::BeUnchangedSince(snapshot) => {
                    let newest = newest_with(&view, key, now, |seqno, _, _| seqno)?;
                    newest.is_none_or(|newest| newest <= snapshot.seqno())
                }
            };
            if !holds {
                return Err(guard.conflict());
            }
            check.read.push((Stripe::of(tree.id, key), now));
        }
        Ok(())
    }
}

impl Guard {
    #[cold]
    fn conflict(&self) -> Error {
        let must = match &self.must {
            Must::BeAbsent => "is there already",
            Must::Equal(_) => "has another value than expected",
            Must::BeUnchangedSince(_) => "was written since the snapshot",
        };
        let (name, key) = (&self.tree.name, self.key.escape_ascii());
        Error::new(ErrorKind::Conflict).context(format!("key {key} of keyspace {name:?} {must}"))
    }
}
