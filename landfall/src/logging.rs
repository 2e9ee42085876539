//! The filter and the format of the log.

use std::io::IsTerminal;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;

/// The options of the log.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct Logging {
    /// Lowest level to log: error, warn, info, debug or trace. Per crate: `info,speaker=debug`.
    #[arg(long, global = true, env = "LANDFALL_LOG", default_value = "info", value_name = "FILTER")]
    log: String,

    /// Format of log lines, which go to standard error.
    #[arg(long, global = true, env = "LANDFALL_LOG_FORMAT", value_enum, default_value_t = Format::Text)]
    log_format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Human-readable: time, level, module, message, fields.
    Text,
    /// One JSON object per line.
    Json,
}

impl Logging {
    /// Starts the log. With an invalid filter it warns, and logs at `info`.
    pub(crate) fn start(&self) {
        let (filter, problem) = match EnvFilter::try_new(&self.log) {
            Ok(filter) => (filter, None),
            Err(problem) => (EnvFilter::new("info"), Some(problem)),
        };
        // kube's client logs every failed connection as an error. Landfall itself logs the failure once, with advice.
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
            tracing::warn!(filter = %self.log, %problem, "invalid log filter; logging at info");
        }
    }
}
