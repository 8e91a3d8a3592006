//! `cargo xtask`: `test`, `demo`, `bench` and `lab`. Each installs what it needs and the machine lacks.

mod bench;
mod command;
mod demo;
mod disk_image;
mod lab;
mod packages;
mod screen;
mod test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// What is done with img-storage besides building it.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Test(test::Test),
    Demo(demo::Demo),
    Bench(bench::Bench),
    Lab(lab::LabArgs),
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Test(test) => test.run(),
        Verb::Demo(demo) => demo.run(),
        Verb::Bench(bench) => bench.run(),
        Verb::Lab(lab) => lab.run(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
