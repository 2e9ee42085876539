//! The commands for users at a terminal.

pub(crate) mod dry_run;
pub(crate) mod output;
pub(crate) mod status;
pub(crate) mod uninstall;
