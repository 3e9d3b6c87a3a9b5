//! The command-line program `esker`: benchmarks, and a look into a database from a shell.
//!
//! - `main`: the verbs, and what becomes of their errors.
//! - `failure`: why a verb ended without success, in one line.
//! - `text`: how bytes, numbers and sizes are written on a command line.
//! - `verbs`: get, put, delete, merge, scan, stats, checkpoint, dump, verify, repair.
//! - `bench`: db_bench's workloads.

mod failure;
mod text;

mod bench;
mod verbs;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::bench::Bench;
use crate::failure::Failure;
use crate::verbs::{Checkpoint, Delete, Dump, Get, Merge, Put, Repair, Scan, Stats, Verify};

#[derive(Parser)]
#[command(name = "esker", version, max_term_width = 100, after_help = EXAMPLES)]
/// An embedded LSM storage engine: run its benchmarks, and look into its databases.
struct Program {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  esker bench                                 measure this machine, about a minute
  esker bench fillrandom readrandom --records 10M --threads 4
  esker put data greeting hello --create      make a database in ./data
  esker get data greeting
  esker merge data visits 5 --keyspace counters --operator counter --create
  esker scan data --prefix user: --reverse --limit 10
  esker checkpoint data backups/monday
  esker verify data
  esker repair data --dry-run

Exit status: 0 on success, 1 if something failed or a key is missing, 2 for wrong arguments.";

#[derive(Subcommand)]
enum Verb {
    Bench(Box<Bench>),
    Get(Get),
    Put(Put),
    Delete(Delete),
    Merge(Merge),
    Scan(Scan),
    Stats(Stats),
    Checkpoint(Checkpoint),
    Dump(Dump),
    Verify(Verify),
    Repair(Repair),
}

fn main() -> ExitCode {
    let program = match Program::try_parse() {
        Ok(program) => program,
        Err(error) => return wrong_arguments(&error),
    };
    let outcome = match program.verb {
        Verb::Bench(bench) => bench.run(),
        Verb::Get(get) => get.run(),
        Verb::Put(put) => put.run(),
        Verb::Delete(delete) => delete.run(),
        Verb::Merge(merge) => merge.run(),
        Verb::Scan(scan) => scan.run(),
        Verb::Stats(stats) => stats.run(),
        Verb::Checkpoint(checkpoint) => checkpoint.run(),
        Verb::Dump(dump) => dump.run(),
        Verb::Verify(verify) => verify.run(),
        Verb::Repair(repair) => repair.run(),
    };
    bench::wait_if_interrupted();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // What a shell reports for a program that SIGPIPE ended, which is what happened.
        Err(Failure::BrokenPipe) => ExitCode::from(128 + 13),
        Err(Failure::Message(text)) => {
            eprintln!("esker: {text}");
            ExitCode::FAILURE
        }
    }
}

/// Prints help where it was asked for, otherwise what is wrong, in one line that ends with what
/// would be right.
fn wrong_arguments(error: &clap::Error) -> ExitCode {
    let help = [
        ErrorKind::DisplayHelp,
        ErrorKind::DisplayVersion,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
    ];
    if help.contains(&error.kind()) {
        // A reader of the help that goes away is no failure.
        drop(error.print());
        return ExitCode::from(u8::from(error.use_stderr()) * 2);
    }
    let text = error.render().to_string();
    let parts: Vec<&str> = text
        .lines()
        .map(|line| line.trim().trim_start_matches("error: "))
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .collect();
    let line = parts.join("; ").replace(":; ", ": ").replace("'; [", "' [");
    eprintln!("esker: {line}; --help says more");
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        Program::command().debug_assert();
    }
}
