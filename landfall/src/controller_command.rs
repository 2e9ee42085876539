//! `landfall controller`: the controller library, with a client, until told to stop.

use agent::keys;
use anyhow::Context;
use clap::Args;

use crate::client::Connection;
use crate::{http, nowhere, shutdown};

/// How to give out addresses.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Serve only Services of class landfall.dev/landfall, and leave those without a class to another provider.
    /// By default Landfall is the provider of Services without a class.
    #[arg(long, env = "LANDFALL_ONLY_CLASS")]
    only_class: bool,

    /// Namespace in which controllers elect one that leads, by the Lease landfall-controller. Several can run then: the
    /// others stand by and take over. Without it this one takes itself for the only one.
    #[arg(long, env = "LANDFALL_LEASE_NAMESPACE", value_name = "NAMESPACE")]
    lease_namespace: Option<String>,

    /// Namespace of the Secret landfall-hello-keys, with which the nodes' agents seal what they say to each other: it is
    /// made if it is missing, and its keys are rotated when asked for. Without this option nobody does so here.
    #[arg(long, env = "LANDFALL_KEYS_NAMESPACE", value_name = "NAMESPACE")]
    keys_namespace: Option<String>,

    /// Where to answer /metrics (for Prometheus), /healthz and /readyz (for probes), over HTTP without TLS; or off.
    #[arg(long, env = "LANDFALL_METRICS_ADDRESS", default_value = "[::]:9646", value_name = "ADDRESS:PORT|off")]
    metrics_address: http::Address,
}

/// Runs until SIGTERM.
pub(crate) async fn run(connection: &Connection, options: Options) -> anyhow::Result<()> {
    let client = connection.client().await?;
    let election = options.lease_namespace.map(|namespace| controller::Election { namespace });
    let numbers = controller::Metrics::default();
    let judge = Some(nowhere::nowhere as controller::Judge);
    let (hinder, obstacle) = tokio::sync::watch::channel(None);
    let default_class = !options.only_class;
    let config = controller::Config { default_class, election, metrics: numbers.clone(), judge, obstacle };
    let place = options.keys_namespace.map(|namespace| keys::Place { client: client.clone(), namespace });
    let keep = async {
        match place {
            Some(place) => keys::keeper::keep(place, hinder).await,
            None => std::future::pending().await,
        }
    };
    let stop = async {
        if let Err(error) = shutdown::requested().await {
            tracing::error!(%error, "can't wait for signals: stopping");
        }
    };
    tokio::select! {
        ended = controller::run(client, config, stop) => ended.context("give out addresses"),
        never = http::serve(options.metrics_address, numbers) => match never {},
        never = keep => match never {},
    }
}
