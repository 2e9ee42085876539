//! `lab`: real Kubernetes clusters on this machine, from the command line.
//!
//! Reads arguments, calls the library, prints. Everything it makes outlives it, until `lab down`.
#![allow(clippy::print_stdout, reason = "a command's output is what it prints")]

mod cli;

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match cli::run().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
