//! The HTTP service of the examples under load, over the loopback device: what the client is told
//! when the queue is full, when the database fails, and when both are well again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use esker::fs::fault::{Fault, FaultFs, FaultKind};
use esker::fs::intercept::Select;
use esker::fs::sim::SimFs;
use esker::runtime::Runtime;
use esker::{Db, IngestOptions, Options};

use crate::examples::http::{Client, Running, Service};

const CLIENTS: u64 = 4;
const REQUESTS: u64 = 500;

#[test]
fn the_service_tells_the_truth_under_load() {
    let fs = FaultFs::over_sim(SimFs::new());
    let db = Db::open_on(Arc::new(fs.clone()), Runtime::threads(), "/db", Options::tiny()).unwrap();
    let mut options = IngestOptions::default();
    // Nothing is applied until the first client was told to wait.
    (options.bytes_max, options.drain_rate) = (20_000, Some(0));
    let service = Arc::new(Service::new(db, options).unwrap());
    let running = Running::start(&service, CLIENTS as usize);
    let (busy, address) = (AtomicU64::new(0), running.address);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (service, busy) = (&service, &busy);
            scope.spawn(move || {
                let mut http = Client::connect(address).unwrap();
                for _ in 0..REQUESTS {
                    loop {
                        let path = format!("/events/client-{client}");
                        match http.ask("POST", &path, "an event of some length").unwrap() {
                            (202, None, _) => break,
                            (429, Some(seconds), text) => {
                                assert!(seconds >= 1 && text.contains("Queue"), "{text}");
                                busy.fetch_add(1, Ordering::SeqCst);
                                service.queue.set_drain_rate(None);
                                service.queue.flush().unwrap();
                            }
                            other => panic!("{other:?}"),
                        }
                    }
                }
            });
        }
    });
    assert!(busy.load(Ordering::SeqCst) > 0, "20,000 bytes hold some 200 events");
    service.queue.flush().unwrap();
    let mut http = Client::connect(address).unwrap();
    for client in 0..CLIENTS {
        let (status, _, count) = http.ask("GET", &format!("/events/client-{client}"), "").unwrap();
        assert_eq!((status, count), (200, REQUESTS.to_string()), "client {client}");
    }

    let stores = Select::all().name("store").file(".log").within("/db/0");
    fs.arm(Fault::new(FaultKind::Io).on(stores));
    let mut ask = |method: &str, path: &str| http.ask(method, path, "x").unwrap();
    let first = ask("PUT", "/values/a").0;
    assert!(first == 500 || first == 503, "{first}: the disk fails under it");
    assert_eq!(ask("PUT", "/values/a").0, 503, "the breaker is open");
    assert_eq!(ask("GET", "/health").0, 503);
    assert_eq!(ask("GET", "/values/a").0, 404, "reads go on");
    assert_eq!(ask("POST", "/events/late").0, 202, "events are taken");
    service.db.resume().unwrap();
    assert_eq!(ask("PUT", "/values/a").0, 204);
    assert_eq!(ask("GET", "/health").0, 200);
    service.queue.flush().unwrap();
    assert_eq!(ask("GET", "/events/late").2, "1");
    assert_eq!(ask("PUT", "/values/").0, 204, "a key may be empty");
    assert_eq!(ask("DELETE", "/values/a").0, 404);
    running.stop();
}

/// Clients that offer more than is drained, and wait as long as they are told to: nine in ten are let
/// in when they come back, and every event that was accepted is counted once.
#[test]
fn who_waits_as_long_as_retry_after_says_is_let_in() {
    const WAITS_EACH: u64 = 3;
    let fs = Arc::new(SimFs::new());
    let db = Db::open_on(fs, Runtime::threads(), "/db", Options::tiny()).unwrap();
    let mut options = IngestOptions::default();
    // Some 200 events fit in, and the clients are faster than this.
    (options.bytes_max, options.drain_rate) = (20_000, Some(1_000));
    let service = Arc::new(Service::new(db, options).unwrap());
    let running = Running::start(&service, CLIENTS as usize);
    let (accepted, let_in, waits) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    // On a slow machine the last of the clients alone may be slower than the drain.
    let until = Instant::now() + Duration::from_secs(60);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut http = Client::connect(running.address).unwrap();
                let mut ask =
                    || http.ask("POST", "/events/all", "an event of some length").unwrap();
                let mut waits_left = WAITS_EACH;
                loop {
                    let (status, mut wait, text) = ask();
                    accepted.fetch_add(u64::from(status == 202), Ordering::SeqCst);
                    if status == 202 {
                        match Instant::now() < until {
                            true => continue,
                            false => return,
                        }
                    }
                    while let Some(seconds) = wait {
                        if waits_left == 0 {
                            return;
                        }
                        waits_left -= 1;
                        waits.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_secs(seconds));
                        let again = ask();
                        let is_in = u64::from(again.0 == 202);
                        accepted.fetch_add(is_in, Ordering::SeqCst);
                        let_in.fetch_add(is_in, Ordering::SeqCst);
                        wait = again.1;
                    }
                    assert!(status == 429, "{status}: {text}");
                }
            });
        }
    });
    let (let_in, waits) = (let_in.into_inner(), waits.into_inner());
    println!("{let_in} of {waits} who waited were let in");
    assert!(waits > 0 && let_in * 10 >= waits * 9, "{let_in} of {waits} who waited were let in");
    service.queue.set_drain_rate(None);
    service.queue.flush().unwrap();
    let mut http = Client::connect(running.address).unwrap();
    assert_eq!(http.ask("GET", "/events/all", "").unwrap().2, accepted.into_inner().to_string());
    running.stop();
}
