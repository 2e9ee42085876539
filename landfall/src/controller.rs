//! `landfall controller`: the controller library, with a client, until told to stop.

use anyhow::Context;
use clap::Args;

use crate::client::Connection;
use crate::shutdown;

/// How to give out addresses.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Serve only Services of class landfall.dev/landfall, and leave those without a class to another provider.
    /// By default Landfall is the provider of Services without a class.
    #[arg(long, env = "LANDFALL_ONLY_CLASS")]
    only_class: bool,
}

/// Runs until SIGTERM.
pub(crate) async fn run(connection: &Connection, options: Options) -> anyhow::Result<()> {
    let client = connection.client().await?;
    let config = controller::Config { default_class: !options.only_class, election: None };
    let stop = async {
        if let Err(error) = shutdown::requested().await {
            tracing::error!(%error, "can't wait for signals: stopping");
        }
    };
    controller::run(client, config, stop).await.context("give out addresses")
}
