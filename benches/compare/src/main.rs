//! Runs esker and its peers side by side.
//!
//! - `cli`: the options.
//! - `parent`: starts a child for each engine and database, and collects what they tell.
//! - `job`: what parent and child say to each other.
//! - `child`: runs workloads on one engine.
//! - `engine`: what an engine has to do, and the engines.
//! - `workload`, `keys`: what is run, and on which records.
//! - `meter`, `machine`, `pauses`: what is measured.
//! - `facet`, `report`: what is compared, and how it is shown.

mod child;
mod cli;
mod engine;
mod facet;
mod failure;
mod job;
mod keys;
mod machine;
mod meter;
mod parent;
mod pauses;
mod report;
mod workload;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Child, Cli};
use crate::job::Job;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.child {
        Some(Child::RunOne { job }) => match serde_json::from_str::<Job>(&job) {
            Ok(job) => Ok(child::run(&job)),
            Err(error) => Err(error.into()),
        },
        None => parent::run(&cli.compare),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("compare: {failure}");
            ExitCode::FAILURE
        }
    }
}
