//! Idempotent commits: an event takes effect once, however often it is committed.
//!
//! The token of an event is written by the batch that carries its effect, so after a crash both are
//! there or neither. Tokens lie in two hidden keyspaces, made at the first idempotent commit:
//!
//! ```text
//! keyspace "\0tokens": one entry for each event with an id of its own
//!   key    source (1 byte length, bytes), id
//!   value  nothing; the entry's sequence number is that of the commit
//!
//! keyspace "\0sources"
//!   key    0                 window of time: marks, in milliseconds that the database was open
//!          1, source         growing source: its last number as a varint
//!          2, source         window of a source: marks, in tokens of the source
//!   marks  varints: position now, dead upto; then (position, sequence number) of each mark,
//!          oldest first
//! ```
//!
//! # How a duplicate is found
//! The key of the token is read, and the commit may take its place only if nobody wrote that key
//! since ([`crate::write::stamps`]). Of two that race, the second one meets the stamp of the first,
//! waits until that is published, looks again and finds its token. Nothing is latched, so events
//! that are not the same never wait for each other.
//!
//! Nearly every event is new. That is seen by a filter in memory that knows every token since some
//! number ([`crate::db::recent`]): only where a token is older than that, or the filter says perhaps,
//! its key is read.
//!
//! # How tokens end
//! A token is dead once its sequence number is not above the watermark "dead upto", the larger one
//! of its source and of the whole window. Watermarks are persisted in commits like any other, and
//! they alone decide: whether a dead token is still there plays no part. Compactions leave the dead
//! out of what they read anyway, and drop tables of nothing else unread
//! ([`crate::compaction::dead`]); the log is synced before, or power loss could take a watermark
//! back whose tokens are gone.
//!
//! Watermarks rise by marks. At every sixteenth of the window a mark (position, newest number) is
//! added; the newest mark that lies a window back becomes the watermark. That costs one more entry
//! for every sixteenth of a window, and needs no order by age.

use std::collections::VecDeque;
use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::batch::BatchBuilder;
use crate::coding::{DecodeError, Decoded, Decoder, put_varint};
use crate::db::engine::Engine;
use crate::db::guard::Guard;
use crate::db::keyspace::KeyspaceOptions;
use crate::db::recent::{Noting, Recent};
use crate::error::{Error, Result};
use crate::key::{self, EntryKind, SeqNo};
use crate::memtable::{ArenaPool, Memtable};
use crate::options::TokenWindow;
use crate::read::get::newest_with;
use crate::runtime::{Mutex, MutexGuard};
use crate::table::{Table, TableFacts};
use crate::tree::{Tree, View};
use crate::write::pressure::Patience;
use crate::write::ring::Place;
use crate::write::stamps::{Check, Stripe};

pub(crate) const TOKENS: &str = "\0tokens";
pub(crate) const SOURCES: &str = "\0sources";
const CLOCK_KEY: &[u8] = &[0];
const GROWING: u8 = 1;
const WINDOW: u8 = 2;

/// The longest name of a source in bytes.
const SOURCE_BYTES_MAX: usize = 255;
/// The longest id of an event in bytes.
const ID_BYTES_MAX: usize = 1024;
/// Marks in a window.
const MARKS: u64 = 16;
/// The age of the database is persisted at least so often, in milliseconds, or short sessions would
/// never add up.
const AGE_STEP_MS: u64 = 60_000;
/// Sources whose counts are kept in memory, in each of [`SHARDS`] maps: together about 10 MiB. What
/// is put out begins to count anew at its last mark.
const SHARD_SOURCES_MAX: usize = 4096;
const SHARDS: usize = 16;

/// What part of the memory budget the filter of recent tokens takes: with 256 MiB it knows the last
/// one to two million.
const RECENT_SHARE: usize = 64;

/// Names an event, for [`Batch::commit_once`](crate::Batch::commit_once): who made it, and which of
/// its events it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventId<'a> {
    source: &'a [u8],
    id: Id<'a>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Id<'a> {
    Own(&'a [u8]),
    Number(u64),
}

impl<'a> EventId<'a> {
    /// An event with an id of its own, in any order: a UUID, the hash of a request, an offset.
    ///
    /// `source` has 1 to 255 bytes, `id` up to 1024. It is recognized within the
    /// [`TokenWindow`].
    pub fn new(
        source: &'a (impl AsRef<[u8]> + ?Sized),
        id: &'a (impl AsRef<[u8]> + ?Sized),
    ) -> EventId<'a> {
        EventId { source: source.as_ref(), id: Id::Own(id.as_ref()) }
    }

    /// An event of a source that numbers its events upward and commits them in that order: every
    /// number that is not above the last one committed is a duplicate. One entry for the whole
    /// source, kept for ever. Do not use both kinds of ids for one source: they do not know each
    /// other.
    pub fn growing(source: &'a (impl AsRef<[u8]> + ?Sized), number: u64) -> EventId<'a> {
        EventId { source: source.as_ref(), id: Id::Number(number) }
    }

    /// Who made it.
    pub(crate) fn source(&self) -> &'a [u8] {
        self.source
    }

    /// The hidden entry that says that it was committed: the keyspace's name, and the key.
    pub(crate) fn entry(&self) -> (&'static str, Vec<u8>) {
        match self.id {
            Id::Own(id) => (TOKENS, token_key(self.source, id).to_vec()),
            Id::Number(_) => (SOURCES, source_key(GROWING, self.source).to_vec()),
        }
    }

    fn check(&self) -> Result<()> {
        if self.source.is_empty() || self.source.len() > SOURCE_BYTES_MAX {
            let found = self.source.len();
            return Err(Error::invalid(format!(
                "the source of an event has 1 to 255 bytes, not {found}"
            )));
        }
        match self.id {
            Id::Own(id) if id.len() > ID_BYTES_MAX => {
                let found = id.len();
                Err(Error::invalid(format!(
                    "the id of an event has at most 1024 bytes, not {found}"
                )))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for EventId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.source.escape_ascii())?;
        match self.id {
            Id::Own(id) => write!(f, "{}", id.escape_ascii()),
            Id::Number(number) => write!(f, "{number}"),
        }
    }
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was committed now.
    Applied {
        /// Its place in the order of commits.
        seqno: u64,
    },
    /// It had been committed before; nothing was done.
    Duplicate {
        /// The place of the commit that it was; of a growing source the place of the last one,
        /// which is that commit or a later one.
        seqno: u64,
    },
}

impl Outcome {
    /// The place in the order of commits.
    #[must_use]
    pub fn seqno(&self) -> u64 {
        let (Outcome::Applied { seqno } | Outcome::Duplicate { seqno }) = self;
        *seqno
    }

    /// True if it was committed before.
    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Outcome::Duplicate { .. })
    }
}

/// What the engine knows of tokens.
pub(crate) struct Tokens {
    window: TokenWindow,
    opened: OnceLock<Opened>,
    /// Held while the keyspaces are opened. Lock order: before the catalog.
    opening: Mutex<()>,
}

struct Opened {
    tokens: Arc<Tree>,
    sources: Arc<Tree>,
    /// The runtime's clock when the age was that of the record, both in milliseconds.
    opened_at_ms: u64,
    age_ms: u64,
    clock: Window,
    recent: Recent,
    /// Up to here all tokens were in tables when these keyspaces were opened.
    in_tables_upto: SeqNo,
    shards: [Mutex<Sources>; SHARDS],
}

/// By the hash of the name.
type Sources = HashTable<Arc<Source>>;

/// A source of events with ids of their own.
struct Source {
    name: Box<[u8]>,
    /// Tokens so far, those since the last persisted mark of an earlier session left out.
    count: AtomicU64,
    window: Window,
}

/// A window over positions: time, or tokens of a source.
struct Window {
    /// Positions that the window spans.
    span: u64,
    /// The position from which on the marks are persisted anew.
    due: AtomicU64,
    dead_upto: AtomicU64,
    /// Held while a commit carries them. Only ever tried: who comes second has nothing to do.
    marks: Mutex<Marks>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Marks {
    position: u64,
    dead_upto: SeqNo,
    list: VecDeque<(u64, SeqNo)>,
}

/// Marks that a commit is about to persist.
struct Turn<'a> {
    window: &'a Window,
    now: MutexGuard<'a, Marks>,
    next: Marks,
    step: u64,
}

impl Marks {
    /// The marks at `position`, when everything through `seqno` lies behind it.
    fn advance(&self, position: u64, seqno: SeqNo, span: u64) -> Marks {
        let mut next = Marks { position, ..self.clone() };
        while let Some((at, upto)) = next.list.front().copied()
            && at.saturating_add(span) <= position
        {
            next.dead_upto = next.dead_upto.max(upto);
            next.list.pop_front();
        }
        let spacing = (span / MARKS).max(1);
        if next.list.back().is_none_or(|(at, _)| at + spacing <= position) {
            next.list.push_back((position, seqno));
        }
        next
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, self.position);
        put_varint(&mut out, self.dead_upto.0);
        for (position, seqno) in &self.list {
            put_varint(&mut out, *position);
            put_varint(&mut out, seqno.0);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Decoded<Marks> {
        let mut decoder = Decoder::new(bytes);
        let (position, dead_upto) = (decoder.varint()?, SeqNo(decoder.varint()?));
        let mut list = VecDeque::new();
        while !decoder.is_empty() {
            list.push_back((decoder.varint()?, SeqNo(decoder.varint()?)));
        }
        if !list.iter().is_sorted() || list.back().is_some_and(|(at, _)| *at > position) {
            return Err(DecodeError("marks out of order"));
        }
        Ok(Marks { position, dead_upto, list })
    }
}

impl Window {
    /// `step`: positions between two records of it.
    fn new(span: u64, step: u64, marks: Marks) -> Window {
        Window {
            span,
            due: AtomicU64::new(marks.position.saturating_add(step)),
            dead_upto: AtomicU64::new(marks.dead_upto.0),
            marks: Mutex::new(marks),
        }
    }

    fn dead_upto(&self) -> SeqNo {
        SeqNo(self.dead_upto.load(Ordering::Acquire))
    }

    /// The marks to persist, if it is time and nobody else does.
    fn turn(&self, position: u64, step: u64, visible: impl FnOnce() -> SeqNo) -> Option<Turn<'_>> {
        if position < self.due.load(Ordering::Relaxed) {
            return None;
        }
        let now = self.marks.try_lock()?;
        if position < self.due.load(Ordering::Relaxed) {
            return None;
        }
        let next = now.advance(position, visible(), self.span);
        Some(Turn { window: self, now, next, step })
    }
}

impl Turn<'_> {
    /// They are committed, and published.
    fn done(mut self) {
        self.window.dead_upto.store(self.next.dead_upto.0, Ordering::Release);
        self.window.due.store(self.next.position.saturating_add(self.step), Ordering::Relaxed);
        *self.now = self.next;
    }
}

/// A key built on the stack.
type Key = SmallVec<[u8; 64]>;

fn token_key(source: &[u8], id: &[u8]) -> Key {
    let mut key = Key::new();
    key.push(source.len() as u8);
    key.extend_from_slice(source);
    key.extend_from_slice(id);
    key
}

/// An empty memtable for a keyspace of this name: tokens come in no order, and hardly any is looked for.
pub(crate) fn fresh_memtable(keyspace: &str, pool: &Arc<ArenaPool>) -> Arc<Memtable> {
    Arc::new(if keyspace == TOKENS { Memtable::piled(pool) } else { Memtable::new(pool) })
}

/// The source that an entry of a hidden keyspace belongs to; `None` if it is about sequence numbers
/// of this database, which mean nothing in another one.
pub(crate) fn source_of<'a>(keyspace: &str, key: &'a [u8]) -> Option<&'a [u8]> {
    match (keyspace, key.first()) {
        (TOKENS, Some(_)) => source_prefix(key).get(1..),
        (SOURCES, Some(&GROWING)) => key.get(1..),
        _ => None,
    }
}

/// The part of a token's key that says its source.
fn source_prefix(key: &[u8]) -> &[u8] {
    let bytes = 1 + usize::from(key.first().copied().unwrap_or(0));
    &key[..bytes.min(key.len())]
}

fn source_key(kind: u8, source: &[u8]) -> Key {
    let mut key = Key::new();
    key.push(kind);
    key.extend_from_slice(source);
    key
}

impl Tokens {
    pub fn new(window: TokenWindow) -> Tokens {
        Tokens { window, opened: OnceLock::new(), opening: Mutex::new(()) }
    }

    /// Tells of a table of this keyspace whether all that is in it is dead; `None` if that is never
    /// so.
    pub fn dead_tables(&self, tree: &Tree) -> Option<impl Fn(&TableFacts) -> bool + use<'_>> {
        let opened = self.opened.get().filter(|opened| tree.id == opened.tokens.id)?;
        let of_time = opened.clock.dead_upto();
        Some(move |facts: &TableFacts| {
            facts.seqno_max <= of_time || {
                // Of one source alone?
                let prefix = source_prefix(&facts.smallest);
                facts.largest.starts_with(prefix)
                    && facts.seqno_max
                        <= opened.known_dead_upto(prefix.get(1..).unwrap_or_default())
            }
        })
    }

    /// Bytes of memory of the filter of recent tokens.
    pub fn recent_bytes(&self) -> usize {
        self.opened.get().map_or(0, |opened| opened.recent.bytes())
    }

    fn time_span_ms(&self) -> u64 {
        u64::try_from(self.window.time.as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn time_step_ms(&self) -> u64 {
        (self.time_span_ms() / MARKS).clamp(1, AGE_STEP_MS)
    }

    fn source_step(&self) -> u64 {
        (self.window.per_source / MARKS).max(1)
    }
}

impl Opened {
    /// The sources of names with this hash. (The table of a shard looks at other bits of it.)
    fn shard(&self, hash: u64) -> &Mutex<Sources> {
        &self.shards[(hash >> 32) as usize % SHARDS]
    }

    /// The watermark of a source, as far as it is in memory.
    fn known_dead_upto(&self, name: &[u8]) -> SeqNo {
        let hash = key::hash(name);
        let shard = self.shard(hash).lock();
        let source = shard.find(hash, |source| *source.name == *name);
        source.map_or(SeqNo::ZERO, |source| source.window.dead_upto())
    }

    /// True if there may be a token of this key above `dead_upto` that is too old for the filter of
    /// recent ones.
    fn may_have_older(&self, key: &[u8], hash: u64, recent: &Noting<'_>, dead_upto: SeqNo) -> bool {
        let since = recent.since();
        if since <= dead_upto {
            return false;
        }
        let view = self.tokens.view();
        // Memtables are flushed in the order of their numbers: if a table reaches so far, no
        // memtable has anything older.
        let is_flushed = since <= self.in_tables_upto
            || view.version.tables().any(|(_, table)| table.facts().seqno_max >= since);
        let has_older = |table: &Table| {
            let facts = table.facts();
            facts.seqno_min <= since && facts.seqno_max > dead_upto && table.may_contain(hash)
        };
        !is_flushed || view.version.runs().any(|(_, run)| run.candidate(key).is_some_and(has_older))
    }

    fn age_ms(&self, engine: &Engine) -> u64 {
        self.age_ms + now_ms(engine).saturating_sub(self.opened_at_ms)
    }
}

fn now_ms(engine: &Engine) -> u64 {
    engine.runtime.now_coarsely().as_millis() as u64
}

/// A batch that is to be committed.
pub(crate) struct Draft<'a> {
    pub builder: &'a mut BatchBuilder,
    /// The keyspaces that it names.
    pub trees: &'a [Arc<Tree>],
    pub guards: &'a [Guard],
    pub patience: Patience,
}

/// What a commit rests on: see [`Engine::write_checked`].
pub(crate) type Look<'a> = dyn FnMut(&mut Check) -> Result<ControlFlow<SeqNo>> + 'a;

/// Commits if the last argument finds that it may: see [`Engine::write_checked`].
pub(crate) type CommitChecked<'a> = dyn FnMut(&mut BatchBuilder, &[&Tree], Patience, &mut Look<'_>) -> Result<ControlFlow<SeqNo, Place>>
    + 'a;

/// What an idempotent commit came to.
pub(crate) enum Once {
    Placed(Place),
    Duplicate(SeqNo),
}

impl Engine {
    /// The keyspaces of tokens, which are made if they are not there.
    fn opened_tokens(&self) -> Result<&Opened> {
        if let Some(opened) = self.tokens.opened.get() {
            return Ok(opened);
        }
        let _one_at_a_time = self.tokens.opening.lock();
        if let Some(opened) = self.tokens.opened.get() {
            return Ok(opened);
        }
        let sources = self.open_named(SOURCES, KeyspaceOptions::new())?;
        let tokens = self.open_named(TOKENS, KeyspaceOptions::new())?;
        let (view, reading) = self.pin(&sources);
        let marks = self.read_marks(&view, CLOCK_KEY, reading.seqno)?;
        let (span, step) = (self.tokens.time_span_ms(), self.tokens.time_step_ms());
        let age_ms = marks.position;
        let clock = Window::new(span, step, marks);
        let (opened_at_ms, shards) = (now_ms(self), Default::default());
        // Nobody commits tokens yet, and an open leaves nothing in memtables.
        let in_tables_upto = self.pipeline.ring.visible();
        let recent = Recent::new(self.options.memory / RECENT_SHARE, in_tables_upto);
        let opened =
            Opened { tokens, sources, opened_at_ms, age_ms, clock, recent, in_tables_upto, shards };
        Ok(self.tokens.opened.get_or_init(|| opened))
    }

    /// Makes the keyspaces of tokens, if they are not there.
    pub fn open_tokens(&self) -> Result<()> {
        self.opened_tokens().map(|_| ())
    }

    /// Commits a batch that brings tokens from another shard, with these keys, so that the filter of
    /// recent tokens knows them.
    pub fn write_moved<T>(
        &self,
        keys: &[impl AsRef<[u8]>],
        commit: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Opened { recent, .. } = self.opened_tokens()?;
        let noting = recent.noting();
        keys.iter().for_each(|key| noting.note(key::hash(key.as_ref())));
        let committed = commit();
        drop(noting);
        keys.iter().for_each(|_| recent.noted(|| self.pipeline.ring.visible()));
        committed
    }

    fn read_marks(&self, sources: &View, key: &[u8], at: SeqNo) -> Result<Marks> {
        let marks = newest_with(sources, key, at, |_, _, value| Marks::decode(value))?;
        marks.unwrap_or(Ok(Marks::default())).map_err(|error| self.bad_token(key, error))
    }

    #[cold]
    fn bad_token(&self, key: &[u8], error: DecodeError) -> Error {
        let file: PathBuf = self.dir.clone();
        let expected = format!("a record of key {} in a keyspace of tokens", key.escape_ascii());
        Error::corruption(file, 0, expected, error.0)
    }

    /// Commits a batch together with the token of `event`, unless that is there.
    pub fn write_once(&self, event: &EventId<'_>, draft: Draft<'_>) -> Result<Once> {
        self.write_once_by(event, draft, &mut |builder, trees, patience, look| {
            self.write_checked(builder, trees, patience, look)
        })
    }

    /// The same, where `commit` does what [`Engine::write_checked`] does, and may do it in other
    /// shards too.
    pub fn write_once_by(
        &self,
        event: &EventId<'_>,
        mut draft: Draft<'_>,
        commit: &mut CommitChecked<'_>,
    ) -> Result<Once> {
        event.check()?;
        let opened = self.opened_tokens()?;
        opened.tokens.check_live()?;
        let before = draft.builder.position();
        let written = match event.id {
            Id::Own(id) => self.write_token(opened, event.source, id, &mut draft, commit),
            Id::Number(number) => {
                self.write_number(opened, event.source, number, &mut draft, commit)
            }
        };
        if !matches!(written, Ok(Once::Placed(_))) {
            draft.builder.rewind(before);
        }
        written
    }

    fn write_token(
        &self,
        opened: &Opened,
        source_name: &[u8],
        id: &[u8],
        draft: &mut Draft<'_>,
        commit: &mut CommitChecked<'_>,
    ) -> Result<Once> {
        let Draft { builder, trees, guards, patience } = draft;
        let key = token_key(source_name, id);
        let hash = key::hash(&key);
        let stripe = Stripe::of_hash(opened.tokens.id, hash);
        // They arrive while the batch is made ready.
        opened.recent.prefetch(hash);
        self.pipeline.stamps.prefetch(stripe);
        let noting = opened.recent.noting();
        let source = match self.tokens.window.per_source {
            u64::MAX => None,
            _ => Some(self.source(opened, source_name)?),
        };
        let visible = || self.pipeline.ring.visible();
        let age = opened.age_ms(self);
        let of_time = opened.clock.turn(age, self.tokens.time_step_ms(), visible);
        let of_source = source.as_ref().and_then(|source| {
            let count = source.count.load(Ordering::Acquire);
            source.window.turn(count, self.tokens.source_step(), visible)
        });
        if let Some(turn) = &of_time {
            builder.put(opened.sources.id, CLOCK_KEY, &turn.next.encode());
        }
        if let Some(turn) = &of_source {
            builder.put(opened.sources.id, &source_key(WINDOW, source_name), &turn.next.encode());
        }
        // The last operation, so that its number is the commit's.
        builder.put(opened.tokens.id, &key, &[]);

        let mut all: SmallVec<[&Tree; 4]> = trees.iter().map(|tree| &**tree).collect();
        all.push(&opened.tokens);
        if of_time.is_some() || of_source.is_some() {
            all.push(&opened.sources);
        }
        let mut is_noted = false;
        let written = commit(builder, &all, *patience, &mut |check: &mut Check| {
            let of_source = source.as_ref().map_or(SeqNo::ZERO, |source| source.window.dead_upto());
            let dead_upto = opened.clock.dead_upto().max(of_source);
            let mut now = visible();
            let may_be_there = is_noted
                || noting.may_know(hash)
                || opened.may_have_older(&key, hash, &noting, dead_upto);
            if may_be_there {
                // What a move of the key between shards has removed is not there.
                let put = |seqno, kind, _: &[u8]| (kind == EntryKind::Put).then_some(seqno);
                let (read_at, found) = self.newest_with(&opened.tokens, &key, put)?;
                now = read_at;
                if let Some(first) = found.flatten().filter(|first| *first > dead_upto) {
                    return Ok(ControlFlow::Break(first));
                }
            }
            if !is_noted {
                noting.note(hash);
                is_noted = true;
            }
            check.read.push((stripe, now));
            check.written.push(stripe);
            self.look_at(guards, check)?;
            Ok(ControlFlow::Continue(()))
        })?;
        let place = match written {
            ControlFlow::Break(first) => return Ok(Once::Duplicate(first)),
            ControlFlow::Continue(place) => place,
        };
        self.pipeline.wait_published(place)?;
        drop(noting);
        opened.recent.noted(visible);
        if let Some(source) = &source {
            source.count.fetch_add(1, Ordering::Release);
        }
        let had_marks = of_time.is_some() || of_source.is_some();
        of_source.into_iter().chain(of_time).for_each(Turn::done);
        if had_marks {
            // There may be tables that are dead now.
            self.wake_workers();
        }
        Ok(Once::Placed(place))
    }

    fn write_number(
        &self,
        opened: &Opened,
        source: &[u8],
        number: u64,
        draft: &mut Draft<'_>,
        commit: &mut CommitChecked<'_>,
    ) -> Result<Once> {
        let Draft { builder, trees, guards, patience } = draft;
        let key = source_key(GROWING, source);
        let mut value = Vec::with_capacity(10);
        put_varint(&mut value, number);
        builder.put(opened.sources.id, &key, &value);
        let mut all: SmallVec<[&Tree; 4]> = trees.iter().map(|tree| &**tree).collect();
        all.push(&opened.sources);
        let stripe = Stripe::of(opened.sources.id, &key);
        let written = commit(builder, &all, *patience, &mut |check: &mut Check| {
            let decode = |seqno, kind, value: &[u8]| {
                (kind == EntryKind::Put).then(|| (seqno, Decoder::new(value).varint()))
            };
            let (now, found) = self.newest_with(&opened.sources, &key, decode)?;
            if let Some((seqno, last)) = found.flatten()
                && number <= last.map_err(|error| self.bad_token(&key, error))?
            {
                return Ok(ControlFlow::Break(seqno));
            }
            check.read.push((stripe, now));
            check.written.push(stripe);
            self.look_at(guards, check)?;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(match written {
            ControlFlow::Break(last) => Once::Duplicate(last),
            ControlFlow::Continue(place) => Once::Placed(place),
        })
    }

    /// What is known of a source.
    fn source(&self, opened: &Opened, name: &[u8]) -> Result<Arc<Source>> {
        let hash = key::hash(name);
        let is_it = |source: &Arc<Source>| *source.name == *name;
        let shard = opened.shard(hash);
        if let Some(source) = shard.lock().find(hash, is_it) {
            return Ok(source.clone());
        }
        let key = source_key(WINDOW, name);
        let (view, reading) = self.pin(&opened.sources);
        let marks = self.read_marks(&view, &key, reading.seqno)?;
        let count = AtomicU64::new(marks.position);
        let window = Window::new(self.tokens.window.per_source, self.tokens.source_step(), marks);
        let mut shard = shard.lock();
        if shard.len() >= SHARD_SOURCES_MAX {
            // Not one that a commit holds: it may be about to persist its marks.
            let idle = shard.iter().find(|source| Arc::strong_count(source) == 1).cloned();
            if let Some(idle) = idle {
                let is_idle = |source: &Arc<Source>| Arc::ptr_eq(source, &idle);
                if let Ok(found) = shard.find_entry(key::hash(&idle.name), is_idle) {
                    found.remove();
                }
            }
        }
        let source = || Arc::new(Source { name: name.into(), count, window });
        let entry = shard.entry(hash, is_it, |source| key::hash(&source.name));
        Ok(entry.or_insert_with(source).get().clone())
    }

    /// True if a commit of `event`, which has an id of its own, is seen at this registered number.
    pub fn saw(&self, event: &EventId<'_>, at: SeqNo) -> Result<bool> {
        let Id::Own(id) = event.id else { unreachable!("not asked of numbers") };
        let Some(opened) = self.tokens.opened.get() else { return Ok(false) };
        let key = token_key(event.source, id);
        Ok(newest_with(&opened.tokens.view(), &key, at, |_, _, _| ())?.is_some())
    }

    // Compaction.

    /// Makes the watermarks durable by which tokens are about to be removed.
    pub fn sync_before_removal(&self) -> Result<()> {
        self.pipeline.wait_durable(self.pipeline.ring.copied())
    }

    /// Tells a compaction of this keyspace which entries are dead; `None` if none ever are.
    pub fn dead_entries<'a>(&'a self, tree: &Tree) -> Result<Option<IsDead<'a>>> {
        let of_tokens = tree.name == TOKENS;
        if !of_tokens && tree.name != SOURCES {
            return Ok(None);
        }
        let Some(sources) = self.tree(SOURCES) else { return Ok(None) };
        // Later marks than those that are synced now must not count.
        let visible = || self.pipeline.ring.visible();
        let seqno = self.snapshots.register(self.runtime.now(), visible);
        let moment = Moment { engine: self, seqno };
        self.sync_before_removal()?;
        let of_time = self.read_marks(&sources.view(), CLOCK_KEY, seqno)?.dead_upto;
        let (mut prefix, mut of_source) = (Vec::new(), SeqNo::ZERO);
        Ok(Some(Box::new(move |key: &[u8], seqno: SeqNo| {
            if !of_tokens {
                // Marks of a source whose tokens are all dead.
                return Ok(key.first() == Some(&WINDOW) && seqno <= of_time);
            }
            if prefix.is_empty() || !key.starts_with(&prefix) {
                prefix = source_prefix(key).to_vec();
                let name = prefix.get(1..).unwrap_or_default();
                let (view, key) = (sources.view_arc(), source_key(WINDOW, name));
                of_source = self.read_marks(&view, &key, moment.seqno)?.dead_upto;
            }
            Ok(seqno <= of_time.max(of_source))
        })))
    }
}

/// Whether the entry with this key and number is dead.
type IsDead<'a> = Box<dyn FnMut(&[u8], SeqNo) -> Result<bool> + 'a>;

/// A registered number, as long as this lives.
struct Moment<'a> {
    engine: &'a Engine,
    seqno: SeqNo,
}

impl Drop for Moment<'_> {
    fn drop(&mut self) {
        self.engine.snapshots.release(self.seqno);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_follows_a_window_behind() {
        let mut marks = Marks::default();
        let mut pushed = 0;
        for position in 0..1000u64 {
            // Positions and numbers run side by side here.
            let next = marks.advance(position, SeqNo(position), 160);
            assert!(
                next.dead_upto >= marks.dead_upto && next.dead_upto.0 + 160 <= position.max(160)
            );
            assert!(
                position < 200 || next.dead_upto.0 + 160 + 2 * 10 >= position,
                "not far behind"
            );
            assert!(next.list.len() <= MARKS as usize + 2);
            pushed += usize::from(next.list.back() != marks.list.back());
            assert_eq!(Marks::decode(&next.encode()), Ok(next.clone()));
            marks = next;
        }
        assert_eq!(pushed, 100);
    }

    #[test]
    fn a_window_that_is_never_left_keeps_everything() {
        let marks = (1..100).fold(Marks::default(), |marks, position| {
            marks.advance(position << 50, SeqNo(position), u64::MAX)
        });
        assert_eq!(marks.dead_upto, SeqNo::ZERO);
        assert_eq!(marks.list.len(), 1);
    }

    #[test]
    fn damaged_marks_are_refused() {
        let marks = Marks::default().advance(5, SeqNo(3), 1).advance(9, SeqNo(7), 1).encode();
        for cut in 0..marks.len() {
            let _ = Marks::decode(&marks[..cut]);
        }
        assert!(Marks::decode(&[]).is_err());
        assert!(Marks::decode(&[9, 0, 5]).is_err());
        assert!(Marks::decode(&[9, 0, 5, 1, 4, 2]).is_err(), "out of order");
        assert!(Marks::decode(&[3, 0, 5, 1]).is_err(), "beyond the position");
    }

    #[test]
    fn tokens_of_sources_with_common_beginnings_are_told_apart() {
        assert_ne!(token_key(b"a", b"bc"), token_key(b"ab", b"c"));
        let key = token_key(b"ab", b"c");
        assert_eq!(source_prefix(&key), b"\x02ab");
        assert_eq!(source_prefix(b""), b"");
    }
}
