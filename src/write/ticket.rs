//! The handle of an asynchronous commit.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::error::Result;
use crate::options::Durability;
use crate::write::commit::Pipeline;
use crate::write::ring::Place;

/// Resolves when its commit has the durability it asked for.
///
/// Wait with [`Ticket::wait`], or `await` it: no runtime is needed. Tickets of one durability
/// level resolve in commit order. Dropping a ticket cancels nothing.
#[must_use = "dropping a ticket cancels nothing, but then nobody learns how the commit ended"]
pub struct Ticket {
    pipeline: Arc<Pipeline>,
    place: Place,
    durability: Durability,
}

impl Ticket {
    pub(crate) fn new(pipeline: Arc<Pipeline>, place: Place, durability: Durability) -> Ticket {
        if durability == Durability::Disk {
            pipeline.request_durable(place.end_lsn);
        }
        Ticket { pipeline, place, durability }
    }

    /// The ticket of a commit that had nothing to do.
    pub(crate) fn done(pipeline: Arc<Pipeline>) -> Ticket {
        let place = pipeline.ring.published_place();
        Ticket { pipeline, place, durability: Durability::Process }
    }

    /// Blocks until the commit is acknowledged.
    ///
    /// # Errors
    /// If the log could not be written or synced: the commit is then unknown until
    /// `Db::resume` or the next open, and afterwards there wholly or not at all.
    pub fn wait(self) -> Result<()> {
        self.pipeline.wait_published(self.place)?;
        match self.durability {
            Durability::Process => Ok(()),
            Durability::Disk => self.pipeline.wait_durable(self.place.end_lsn),
        }
    }

    /// True if [`Ticket::wait`] would not block.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let published = self.pipeline.ring.visible() >= self.place.last_seqno;
        let durable = match self.durability {
            Durability::Process => true,
            Durability::Disk => self.pipeline.syncer.durable() >= self.place.end_lsn,
        };
        (published && durable) || self.pipeline.breaker.check().is_err()
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket({:?}, done: {})", self.durability, self.is_done())
    }
}

impl Future for Ticket {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        // Publication is never further away than another writer's memtable insert.
        if let Err(error) = self.pipeline.wait_published(self.place) {
            return Poll::Ready(Err(error));
        }
        if self.durability == Durability::Process {
            return Poll::Ready(Ok(()));
        }
        let syncer = &self.pipeline.syncer;
        if !syncer.wake_when_durable(self.place.end_lsn, context.waker()) {
            // The request of `new` may have been served by a sync whose sample came before this
            // commit was copied.
            self.pipeline.request_durable(self.place.end_lsn);
            return Poll::Pending;
        }
        Poll::Ready(self.pipeline.wait_durable(self.place.end_lsn))
    }
}
