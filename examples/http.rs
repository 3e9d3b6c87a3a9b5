//! A small HTTP service in front of a database, which tells its clients the truth about load: a
//! request that would have to wait is answered with 429 and `Retry-After`, and one that cannot be
//! served since the disk fails with 503. Reads are served always.
//!
//! ```text
//! POST /events/KEY   counts an event for KEY, through an ingest queue: 202 once it is accepted
//! GET  /events/KEY   how many were counted
//! PUT  /values/KEY   the body becomes the value of KEY: 204
//! GET  /values/KEY   the value: 200 or 404
//! GET  /health       200 if both take writes, else 503, with the pressure of both
//! ```
//!
//! `cargo run --example http` starts it, uses it once, and ends it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use esker::{
    Batch, BreakerState, Counter, Db, Error, ErrorKind, Event, IngestOptions, IngestQueue,
    Keyspace, KeyspaceOptions,
};
use tiny_http::{Header, Method, Request, Response, Server};

/// A value longer than this is refused.
const BODY_BYTES_MAX: u64 = 1 << 20;

/// What the requests are about.
pub struct Service {
    /// Takes values.
    pub db: Db,
    /// Takes events.
    pub queue: IngestQueue,
    counts: Keyspace,
}

/// An answer: status, text, and after how long to come again.
type Answer = (u16, Vec<u8>, Option<Duration>);

impl Service {
    /// A service in front of this database, with a queue of these bounds.
    pub fn new(db: Db, options: IngestOptions) -> esker::Result<Service> {
        let counts = db.keyspace("counts", KeyspaceOptions::new().merge(Counter::default()))?;
        let into = counts.clone();
        let handler = move |events: &[Event<'_>], batch: &mut Batch| {
            events.iter().for_each(|event| _ = batch.merge(&into, event.key, 1));
            Ok(())
        };
        let queue = IngestQueue::open(&db, "events", options, handler)?;
        Ok(Service { db, queue, counts })
    }

    fn answer(&self, method: &Method, path: &str, body: &[u8]) -> Answer {
        let done = match (method, path.split_once('/').unwrap_or((path, ""))) {
            (Method::Post, ("events", key)) => {
                self.queue.try_push(key, body).map(|()| (202, Vec::new()))
            }
            (Method::Get, ("events", key)) => self.counts.get(key).map(|count| {
                let count = count.map_or(0, |count| Counter::decode(&count).unwrap_or(0));
                (200, count.to_string().into_bytes())
            }),
            (Method::Put, ("values", key)) => {
                self.db.try_put(key, body).map(|()| (204, Vec::new()))
            }
            (Method::Get, ("values", key)) => self.db.get(key).map(|value| match value {
                Some(value) => (200, value.to_vec()),
                None => (404, Vec::new()),
            }),
            (Method::Get, ("health", "")) => Ok(self.health()),
            _ => Ok((404, b"no such place".to_vec())),
        };
        match done {
            Ok((status, text)) => (status, text, None),
            Err(error) => refusal(&error),
        }
    }

    fn health(&self) -> (u16, Vec<u8>) {
        let closed = |state| state == BreakerState::Closed;
        let is_well = closed(self.db.breaker().0) && closed(self.queue.breaker().0);
        let text = format!("database {}\nqueue {}\n", self.db.pressure(), self.queue.pressure());
        (if is_well { 200 } else { 503 }, text.into_bytes())
    }
}

/// How an error is put to a client: its kind says whose turn it is.
fn refusal(error: &Error) -> Answer {
    let text = error.to_string().into_bytes();
    match error.kind() {
        // The client's: too much at once.
        ErrorKind::Busy { retry_after, .. } => (429, text, Some(*retry_after)),
        // The operator's. A full disk heals by itself once somebody makes room.
        ErrorKind::NoSpace => (503, text, Some(Duration::from_secs(10))),
        ErrorKind::Degraded { .. } | ErrorKind::Closed => (503, text, None),
        ErrorKind::InvalidArgument => (400, text, None),
        ErrorKind::Conflict => (409, text, None),
        _ => (500, text, None),
    }
}

fn respond(service: &Service, mut request: Request) -> std::io::Result<()> {
    let mut body = Vec::new();
    request.as_reader().take(BODY_BYTES_MAX + 1).read_to_end(&mut body)?;
    let path = request.url().trim_start_matches('/').to_string();
    let (status, text, wait) = match body.len() as u64 > BODY_BYTES_MAX {
        true => (413, b"too large".to_vec(), None),
        false => service.answer(request.method(), &path, &body),
    };
    let mut response = Response::from_data(text).with_status_code(status);
    if let Some(wait) = wait {
        // Whole seconds, and never too early.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let header = Header::from_bytes("Retry-After", seconds.to_string());
        response.add_header(header.expect("a number is a value"));
    }
    request.respond(response)
}

/// A service that listens on a port of the loopback device.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    server: Arc<Server>,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    /// Listens, with so many threads that answer.
    pub fn start(service: &Arc<Service>, threads: usize) -> Running {
        let server = Arc::new(Server::http("127.0.0.1:0").expect("a free port"));
        let address = server.server_addr().to_ip().expect("an address of the internet");
        let serve = |_| {
            let (server, service) = (server.clone(), service.clone());
            std::thread::spawn(move || {
                for request in server.incoming_requests() {
                    // A client that has gone away needs no answer.
                    let _ = respond(&service, request);
                }
            })
        };
        let threads = (0..threads).map(serve).collect();
        Running { address, server, threads }
    }

    /// Answers what has come, and ends.
    pub fn stop(self) {
        self.threads.iter().for_each(|_| self.server.unblock());
        self.threads.into_iter().for_each(|thread| thread.join().expect("a request panicked"));
    }
}

/// The least that a client needs: one connection, one request after the other.
pub struct Client(BufReader<TcpStream>);

/// Status, the header Retry-After, and the body.
pub type Reply = (u16, Option<u64>, String);

impl Client {
    /// A connection.
    pub fn connect(address: SocketAddr) -> std::io::Result<Client> {
        Ok(Client(BufReader::new(TcpStream::connect(address)?)))
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, method: &str, path: &str, body: &str) -> std::io::Result<Reply> {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.0.get_mut().write_all(request.as_bytes())?;
        let (mut status, mut length, mut wait, mut line) = (0, 0, None, String::new());
        while self.0.read_line(&mut line)? > 2 {
            let lower = line.trim().to_ascii_lowercase();
            if let Some(rest) = lower.strip_prefix("http/1.1 ") {
                status = rest[..3].parse().unwrap_or(0);
            } else if let Some(rest) = lower.strip_prefix("content-length:") {
                length = rest.trim().parse().unwrap_or(0);
            } else if let Some(rest) = lower.strip_prefix("retry-after:") {
                wait = rest.trim().parse().ok();
            }
            line.clear();
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((status, wait, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// Public, so that `tests/it/examples.rs` runs it as well.
pub fn main() -> esker::Result<()> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let db = Db::open(dir.path().join("data"))?;
    let service = Arc::new(Service::new(db, IngestOptions::default())?);
    let running = Running::start(&service, 2);
    println!("listening on http://{}", running.address);

    let mut client = Client::connect(running.address).expect("it listens");
    let mut ask = |method, path, body| client.ask(method, path, body).expect("an answer");
    assert_eq!(ask("PUT", "/values/greeting", "hello").0, 204);
    assert_eq!(ask("GET", "/values/greeting", ""), (200, None, "hello".to_string()));
    for _ in 0..100 {
        assert_eq!(ask("POST", "/events/article-42", "a view").0, 202);
    }
    service.queue.flush()?;
    assert_eq!(ask("GET", "/events/article-42", "").2, "100");
    let (status, _, health) = ask("GET", "/health", "");
    assert_eq!(status, 200);
    print!("{health}");

    running.stop();
    service.queue.close()
}
