//! The verbs that look into a database or change one entry of it: get, put, delete, merge, scan,
//! stats, checkpoint, dump, verify, repair.
//!
//! Keys and values on the command line are bytes as they stand, or, with `--escaped`, as `scan`
//! prints them. In a keyspace whose merge operator works on numbers, values are written and
//! printed as numbers, unless `--raw` asks for the bytes.

use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use esker::{Append, Counter, Db, Keyspace, KeyspaceOptions, Max, Min, ShardedDb, tools};

use crate::failure::{Failure, Result};
use crate::text::unescape;

/// Where an entry is: the first arguments of most verbs.
#[derive(Args)]
struct Target {
    /// The database's directory
    dir: PathBuf,
    /// The keyspace
    #[arg(long, value_name = "NAME", default_value = "default")]
    keyspace: String,
    /// Keys and values are written as scan prints them: \x00, \n, \\
    #[arg(short, long)]
    escaped: bool,
    /// Bytes as they are, also where the keyspace's merge operator works on numbers
    #[arg(long)]
    raw: bool,
}

/// Print the value of a key, byte for byte
///
/// In a keyspace whose merge operator works on numbers the value is printed as a number; --raw
/// prints its 8 bytes. Nothing is added, except a newline if standard output is a terminal.
/// A missing key is an error: exit status 1.
#[derive(Args)]
pub struct Get {
    #[command(flatten)]
    target: Target,
    /// The key; after `--` it may begin with a dash
    key: OsString,
}

/// Set a key to a value
#[derive(Args)]
#[command(after_help = "Example:\n  esker put data greeting hello --create")]
pub struct Put {
    #[command(flatten)]
    target: Target,
    /// The key
    key: OsString,
    /// The value; a number where the keyspace's merge operator works on numbers
    #[arg(allow_negative_numbers = true)]
    value: OsString,
    /// Make the database and the keyspace if they are missing
    #[arg(long)]
    create: bool,
}

/// Remove a key; one that is not there is no error
#[derive(Args)]
pub struct Delete {
    #[command(flatten)]
    target: Target,
    /// The key
    key: OsString,
}

/// Fold an operand into the value of a key, say add to a counter
#[derive(Args)]
#[command(after_help = "Example:\n  \
    esker merge data visits 5 --keyspace counters --operator counter --create\n  \
    esker merge data visits -2 --keyspace counters\n  \
    esker get data visits --keyspace counters        prints 3")]
pub struct Merge {
    #[command(flatten)]
    target: Target,
    /// The key
    key: OsString,
    /// The operand: a number for counter, max and min, bytes for append
    #[arg(allow_negative_numbers = true)]
    operand: OsString,
    /// The merge operator, for a keyspace that has none yet; it is remembered
    #[arg(long)]
    operator: Option<Operator>,
    /// Make the database and the keyspace if they are missing
    #[arg(long)]
    create: bool,
}

/// Print keys and values in order, one entry a line, separated by a tab
///
/// Keys and values are escaped (\x00, \n, \\), so that a line is an entry; --raw prints the bytes.
/// The scan is a consistent snapshot.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    esker scan data --from a --to m\n  \
    esker scan data --prefix user: --reverse --limit 10")]
pub struct Scan {
    #[command(flatten)]
    target: Target,
    /// First key
    #[arg(long, value_name = "KEY")]
    from: Option<OsString>,
    /// End: the first key that is not printed any more
    #[arg(long, value_name = "KEY")]
    to: Option<OsString>,
    /// Only keys that begin with these bytes
    #[arg(long, value_name = "KEY", conflicts_with_all = ["from", "to"])]
    prefix: Option<OsString>,
    /// From the last key to the first
    #[arg(long)]
    reverse: bool,
    /// At most so many entries
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// Print levels, memory and bytes written
#[derive(Args)]
pub struct Stats {
    /// The database's directory
    dir: PathBuf,
}

/// Copy a database, of one or of several shards, to a new directory
///
/// Tables get a second name there instead of a copy where the file system has such, so that it takes
/// little time and space. The copy is complete or, after a crash, not there. A program that has the
/// database open makes one with Db::checkpoint.
#[derive(Args)]
#[command(after_help = "Example:\n  esker checkpoint data backups/monday")]
pub struct Checkpoint {
    /// The database's directory
    dir: PathBuf,
    /// The directory to make; it must not be there
    target: PathBuf,
}

/// Print any file of a database as text
#[derive(Args)]
pub struct Dump {
    /// A log, table or manifest
    file: PathBuf,
}

/// Read every byte of a database and check it
///
/// Prints what was checked and each damage with its file and offset; exit status 1 if there is any.
#[derive(Args)]
pub struct Verify {
    /// The database's directory
    dir: PathBuf,
}

/// Make a damaged database one that opens, from everything that can be read
///
/// Prints what was lost. What is not used is moved to the directory `lost` within the database's;
/// nothing is deleted, and a database that needs no repair is not changed.
#[derive(Args)]
pub struct Repair {
    /// The database's directory
    dir: PathBuf,
    /// Only print what would be done
    #[arg(long)]
    dry_run: bool,
}

/// The built-in merge operators.
#[derive(Clone, Copy, ValueEnum)]
enum Operator {
    /// Adds numbers; wraps around at the ends of 64 bits
    Counter,
    /// Adds numbers; stops at the ends of 64 bits
    CounterSaturating,
    /// Adds numbers; a sum that does not fit 64 bits is an error
    CounterChecked,
    /// Keeps the largest number
    Max,
    /// Keeps the smallest number
    Min,
    /// Appends bytes
    Append,
}

impl Operator {
    fn options(self) -> KeyspaceOptions {
        let options = KeyspaceOptions::new();
        match self {
            Operator::Counter => options.merge(Counter::wrapping()),
            Operator::CounterSaturating => options.merge(Counter::saturating()),
            Operator::CounterChecked => options.merge(Counter::checked()),
            Operator::Max => options.merge(Max),
            Operator::Min => options.merge(Min),
            Operator::Append => options.merge(Append),
        }
    }
}

impl Get {
    /// Prints the value.
    pub fn run(self) -> Result<()> {
        let (db, keyspace) = self.target.open()?;
        let key = self.target.bytes(&self.key)?;
        let value = keyspace.get(&key)?.ok_or_else(|| {
            let (name, dir) = (keyspace.name(), self.target.dir.display());
            Failure::new(format!("no key {} in keyspace {name} of {dir}", key.escape_ascii()))
        })?;
        let mut out = io::stdout().lock();
        match Counter::decode(&value) {
            Some(number) if self.target.has_numbers(&keyspace) => write!(out, "{number}")?,
            _ => out.write_all(&value)?,
        }
        if out.is_terminal() {
            out.write_all(b"\n")?;
        }
        out.flush()?;
        drop((keyspace, value));
        Ok(db.close()?)
    }
}

impl Put {
    /// Writes the value.
    pub fn run(self) -> Result<()> {
        let (db, keyspace) = self.target.open_or_create(self.create, None)?;
        let key = self.target.bytes(&self.key)?;
        let value = self.target.value(&keyspace, &self.value)?;
        keyspace.put(key, value)?;
        drop(keyspace);
        Ok(db.close()?)
    }
}

impl Delete {
    /// Removes the key.
    pub fn run(self) -> Result<()> {
        let (db, keyspace) = self.target.open()?;
        keyspace.delete(self.target.bytes(&self.key)?)?;
        drop(keyspace);
        Ok(db.close()?)
    }
}

impl Merge {
    /// Writes the operand.
    pub fn run(self) -> Result<()> {
        let (db, keyspace) = self.target.open_or_create(self.create, self.operator)?;
        if keyspace.operator_name().is_none() {
            return Err(Failure::new(format!(
                "keyspace {} has no merge operator yet: choose one with --operator, for example \
                 --operator counter",
                keyspace.name()
            )));
        }
        let key = self.target.bytes(&self.key)?;
        let operand = self.target.value(&keyspace, &self.operand)?;
        keyspace.merge(key, &operand)?;
        drop(keyspace);
        Ok(db.close()?)
    }
}

impl Scan {
    /// Prints the entries.
    pub fn run(self) -> Result<()> {
        let (db, keyspace) = self.target.open()?;
        let bound = |key: &Option<OsString>| key.as_ref().map(|k| self.target.bytes(k)).transpose();
        let (from, to, prefix) = (bound(&self.from)?, bound(&self.to)?, bound(&self.prefix)?);
        let mut entries = match prefix {
            Some(prefix) => keyspace.prefix(prefix),
            None => keyspace.range((
                from.map_or(Bound::Unbounded, Bound::Included),
                to.map_or(Bound::Unbounded, Bound::Excluded),
            )),
        };
        let numbers = self.target.has_numbers(&keyspace);
        let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
        for _ in 0..self.limit.unwrap_or(usize::MAX) {
            let entry = if self.reverse { entries.next_back() } else { entries.next() };
            let Some(entry) = entry else { break };
            let (key, value) = entry?;
            self.print(&mut out, numbers, &key, &value)?;
        }
        out.flush()?;
        drop((entries, keyspace));
        Ok(db.close()?)
    }

    fn print(
        &self,
        out: &mut impl Write,
        numbers: bool,
        key: &[u8],
        value: &[u8],
    ) -> io::Result<()> {
        if self.target.raw {
            out.write_all(key)?;
            out.write_all(b"\t")?;
            out.write_all(value)?;
            return out.write_all(b"\n");
        }
        match Counter::decode(value) {
            Some(number) if numbers => writeln!(out, "{}\t{number}", key.escape_ascii()),
            _ => writeln!(out, "{}\t{}", key.escape_ascii(), value.escape_ascii()),
        }
    }
}

impl Stats {
    /// Prints the statistics.
    pub fn run(self) -> Result<()> {
        let db = open(&self.dir, false)?;
        let text = db.stats().to_string();
        let mut out = io::stdout().lock();
        writeln!(out, "{}", text.trim_end())?;
        Ok(db.close()?)
    }
}

impl Checkpoint {
    /// Makes the copy.
    pub fn run(self) -> Result<()> {
        check_directory(&self.dir)?;
        if self.dir.join("SHARDS").exists() {
            let db = ShardedDb::builder(&self.dir).create(false).open()?;
            db.checkpoint(&self.target)?;
            return Ok(db.close()?);
        }
        let db = open(&self.dir, false)?;
        db.checkpoint(&self.target)?;
        Ok(db.close()?)
    }
}

impl Dump {
    /// Prints the file.
    pub fn run(self) -> Result<()> {
        if self.file.is_dir() {
            let text = "is a directory: give one of its files; `esker stats` shows a database";
            return Err(Failure::new(format!("{} {text}", self.file.display())));
        }
        let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
        tools::dump(&self.file, &mut out)?;
        Ok(out.flush()?)
    }
}

impl Verify {
    /// Prints the report.
    pub fn run(self) -> Result<()> {
        check_directory(&self.dir)?;
        let watched = io::stderr().is_terminal();
        let report = tools::verify(&self.dir, &mut |file| {
            if watched {
                eprint!("\r\x1b[Kverifying {file}");
            }
        });
        if watched {
            eprint!("\r\x1b[K");
        }
        let report = report?;
        let mut out = io::stdout().lock();
        writeln!(out, "{}", report.to_string().trim_end())?;
        if !report.is_ok() {
            return Err(Failure::new(format!("{} is damaged, see above", self.dir.display())));
        }
        Ok(())
    }
}

impl Repair {
    /// Repairs, and prints the report.
    pub fn run(self) -> Result<()> {
        check_directory(&self.dir)?;
        let watched = io::stderr().is_terminal();
        let mode = match self.dry_run {
            true => tools::RepairMode::DryRun,
            false => tools::RepairMode::InPlace,
        };
        let report = tools::repair(&self.dir, mode, &mut |file| {
            if watched {
                eprint!("\r\x1b[Kreading {file}");
            }
        });
        if watched {
            eprint!("\r\x1b[K");
        }
        let report = report?;
        let mut out = io::stdout().lock();
        if self.dry_run && report.needed {
            writeln!(out, "a repair would do this; nothing was changed")?;
        }
        writeln!(out, "{}", report.to_string().trim_end())?;
        Ok(())
    }
}

impl Target {
    /// Opens a database and a keyspace that are there.
    fn open(&self) -> Result<(Db, Keyspace)> {
        self.open_or_create(false, None)
    }

    /// Opens the database and the keyspace, making what is missing only if `create` says so.
    fn open_or_create(&self, create: bool, operator: Option<Operator>) -> Result<(Db, Keyspace)> {
        let db = open(&self.dir, create)?;
        let names = db.keyspace_names();
        if !create && !names.contains(&self.keyspace) {
            return Err(Failure::new(format!(
                "no keyspace {} in {}; it has: {}",
                self.keyspace,
                self.dir.display(),
                names.join(", ")
            )));
        }
        let options = operator.map_or_else(KeyspaceOptions::new, Operator::options);
        let keyspace = db.keyspace(&self.keyspace, options)?;
        Ok((db, keyspace))
    }

    /// The bytes that a key or a bound stands for.
    fn bytes(&self, text: &OsString) -> Result<Vec<u8>> {
        let bytes = text.as_bytes();
        if !self.escaped {
            return Ok(bytes.to_vec());
        }
        unescape(bytes).map_err(|what| Failure::new(format!("{}: {what}", text.display())))
    }

    /// The bytes that a value or an operand for this keyspace stands for.
    fn value(&self, keyspace: &Keyspace, text: &OsString) -> Result<Vec<u8>> {
        if !self.has_numbers(keyspace) {
            return self.bytes(text);
        }
        let number = text.to_str().and_then(|text| text.parse::<i64>().ok()).ok_or_else(|| {
            Failure::new(format!(
                "{} is no 64-bit number, and keyspace {} holds numbers",
                text.display(),
                keyspace.name()
            ))
        })?;
        Ok(number.to_le_bytes().to_vec())
    }

    /// Whether the keyspace's values are written and printed as numbers: by the name of its merge
    /// operator.
    fn has_numbers(&self, keyspace: &Keyspace) -> bool {
        let numbers = |name: &str| {
            name.starts_with("esker.counter.") || name == "esker.max" || name == "esker.min"
        };
        !self.raw && keyspace.operator_name().is_some_and(numbers)
    }
}

/// Opens the database in `dir`; makes one only if `create` says so.
fn open(dir: &Path, create: bool) -> Result<Db> {
    if !create {
        check_directory(dir)?;
    }
    Db::builder(dir).create(create).open().map_err(|error| match Failure::from(error) {
        Failure::Message(text) if !text.contains(&*dir.to_string_lossy()) => {
            Failure::new(format!("{}: {text}", dir.display()))
        }
        failure => failure,
    })
}

/// Refuses what cannot be a database, with a hint to what would be right.
fn check_directory(dir: &Path) -> Result<()> {
    let hint = if !dir.exists() {
        "no such directory; `esker put … --create` makes a database"
    } else if !dir.is_dir() {
        "not a directory; give the directory of a database, or `esker dump` this file"
    } else {
        return Ok(());
    };
    Err(Failure::new(format!("{}: {hint}", dir.display())))
}
