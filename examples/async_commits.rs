//! Orders are acknowledged once they survive a power loss, without a thread that waits for each:
//! commits go in one after the other, the disk syncs many of them at once, and tickets tell when.
//!
//! `cargo run --example async_commits`

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use esker::{Db, Durability, Ticket};

const ORDERS: u32 = 1_000;
/// So many commits may be on their way to the disk: it bounds what is not yet acknowledged.
const IN_FLIGHT_MAX: usize = 64;

/// Public, so that `tests/it/examples.rs` runs it as well.
pub fn main() -> esker::Result<()> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("orders");
    let db = Db::open(&path)?;

    let mut in_flight: VecDeque<(u32, Ticket)> = VecDeque::new();
    let mut acknowledged = 0;
    for order in 0..ORDERS {
        if in_flight.len() == IN_FLIGHT_MAX {
            // Tickets resolve in the order of commits, so the oldest is the one to wait for.
            let (oldest, ticket) = in_flight.pop_front().expect("it is full");
            ticket.wait()?;
            assert_eq!(oldest, acknowledged);
            acknowledged += 1;
        }
        in_flight.push_back((order, submit(&db, order)?));
        // Everyone sees the order at once; only the customer's receipt waits for the disk.
        assert!(db.contains(order.to_be_bytes())?);
    }
    // A ticket is a future as well and needs no particular runtime. When the last one resolves,
    // every earlier commit is on the disk, so that the others need no waiting.
    let (last, ticket) = in_flight.pop_back().expect("the last order is on its way");
    block_on(ticket)?;
    assert_eq!(last, ORDERS - 1);
    println!("{ORDERS} orders on the disk, at most {IN_FLIGHT_MAX} waiting for it at a time");

    // Dropping a ticket cancels nothing.
    drop(submit(&db, ORDERS)?);
    db.close()?;
    assert_eq!(Db::open(&path)?.iter().count(), ORDERS as usize + 1);
    Ok(())
}

fn submit(db: &Db, order: u32) -> esker::Result<Ticket> {
    let mut batch = db.batch();
    batch.put(db, order.to_be_bytes(), format!("order {order}: one book"));
    batch.commit_async_with(Durability::Disk)
}

/// The smallest executor: parks this thread until the future wakes it.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
