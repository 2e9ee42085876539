//! The commands for a user's workstation.

pub(crate) mod dry_run;
pub(crate) mod output;
pub(crate) mod status;
pub(crate) mod uninstall;
