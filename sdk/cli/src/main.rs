//! `omnitrace`: logs to traces, and a place to look at them.

mod convert;
mod input;
mod interrupt;
mod replay;
mod say;
mod serve;
mod stats;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use say::say;

/// Where does the time of an LLM request go?
///
/// Results go to stdout, progress and messages to stderr. Exit status: 0 done,
/// 1 failed, 2 wrong usage.
#[derive(Parser)]
#[command(name = "omnitrace", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Convert(convert::ConvertArgs),
    Replay(replay::ReplayArgs),
    Serve(serve::ServeArgs),
    Stats(stats::StatsArgs),
}

fn main() -> ExitCode {
    omnitrace::diagnostics::route(|_, message| say(message));
    let result = match Cli::parse().command {
        Command::Convert(args) => convert::run(&args).map_err(|e| e.to_string()),
        Command::Replay(args) => replay::run(&args).map_err(|e| e.to_string()),
        Command::Serve(args) => serve::run(args).map_err(|e| e.to_string()),
        Command::Stats(args) => stats::run(&args).map_err(|e| e.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            say(message);
            ExitCode::FAILURE
        }
    }
}
