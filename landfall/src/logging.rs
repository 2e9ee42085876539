//! Where log lines go and what they look like.

use std::io::IsTerminal;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;

/// What the log says and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct Logging {
    /// What to log: error, warn, info, debug or trace; also per part, as in `info,speaker=debug`.
    #[arg(long, global = true, env = "LANDFALL_LOG", default_value = "info", value_name = "FILTER")]
    log: String,

    /// How a line looks. Lines go to standard error.
    #[arg(long, global = true, env = "LANDFALL_LOG_FORMAT", value_enum, default_value_t = Format::Text)]
    log_format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people: time, level, part, message, fields.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

impl Logging {
    /// Starts the log of this process. A filter that can't be read is said on the log, and `info` is used.
    pub(crate) fn start(&self) {
        let (filter, problem) = match EnvFilter::try_new(&self.log) {
            Ok(filter) => (filter, None),
            Err(problem) => (EnvFilter::new("info"), Some(problem)),
        };
        // The client reports every failed connection as an error of its own; whoever asked says it once, with what it means.
        let filter =
            filter.add_directive(Directive::from_str("kube_client=off").expect("invariant: a valid directive"));
        let lines = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr);
        match self.log_format {
            Format::Text => lines.init(),
            Format::Json => lines.json().flatten_event(true).init(),
        }
        if let Some(problem) = problem {
            tracing::warn!(filter = %self.log, %problem, "the log filter can't be read; logging at info");
        }
    }
}
