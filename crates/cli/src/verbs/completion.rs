//! `completion`: what the shell should know.

use crate::{args::Cli, stop::Done};
use clap::{Args, CommandFactory, ValueEnum};
use std::io::Write;

/// Prints the completion script of a shell, for example: source <(img-storage completion bash)
#[derive(Debug, Args)]
pub struct Completion {
    /// Which shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completion {
    pub fn run(self) -> Done {
        let shell = match self.shell {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "img-storage", &mut script);
        Ok(std::io::stdout().lock().write_all(&script)?)
    }
}
