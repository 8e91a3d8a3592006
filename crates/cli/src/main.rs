//! `img-storage`: the daemons' one binary, and the command line that talks to them.

mod args;
mod client;
mod confirm;
mod follow;
mod human;
mod meter;
mod output;
mod rocks;
mod rows;
mod stop;
mod table;
mod verbs;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some((at, argument)) = std::env::args_os().enumerate().skip(1).find(|(_, argument)| argument.to_str().is_none()) {
        let fault = img_storage_model::Fault::invalid(format!("argument {at}, {argument:?}, is not UTF-8"))
            .next("names are ASCII; give files a name or a directory that is UTF-8");
        return stop::report(fault.into());
    }
    let cli = args::Cli::parse();
    match verbs::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => stop::report(stop),
    }
}
