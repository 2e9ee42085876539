//! `doctor`: checks whether this machine can run the lab. `lab doctor` is the same, once the lab is compiled.
#![allow(clippy::print_stdout, reason = "a command prints its output")]

use std::process::ExitCode;

use doctor::{HELP, Options, examine};

const OPTIONS: &str = "
Options:
      --quiet         Print only lines that are not ok
      --before-setup  Before tests/setup.sh has run: a program that it installs is not missing
      --packages      Print only the names of missing Debian packages
  -h, --help          Print this help
";

fn main() -> ExitCode {
    let mut options = Options::default();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--quiet" => options.quiet = true,
            "--before-setup" => options.before_setup = true,
            "--packages" => options.packages = true,
            "-h" | "--help" => {
                print!("{HELP}{OPTIONS}");
                return ExitCode::SUCCESS;
            }
            other => {
                eprintln!("doctor: there is no option {other}\n{OPTIONS}");
                return ExitCode::from(2);
            }
        }
    }
    let (text, is_suitable) = examine(options);
    print!("{text}");
    if is_suitable { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
