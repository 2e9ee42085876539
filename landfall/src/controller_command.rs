//! `landfall controller`: runs the controller library until SIGTERM.

use agent::keys;
use anyhow::Context;
use clap::Args;

use crate::client::{Connection, create_client};
use crate::{http, shutdown};

/// The options of `landfall controller`.
#[derive(Debug, Args)]
pub(crate) struct ControllerOptions {
    /// Serve only Services with `loadBalancerClass: landfall.dev/landfall`. By default Landfall also serves Services
    /// without a class.
    #[arg(long, env = "LANDFALL_ONLY_CLASS")]
    only_class: bool,

    /// Namespace of the Lease landfall-controller. Of several controllers one holds the Lease and acts; the others
    /// stand by. Without this option there is no election, and only one controller may run.
    #[arg(long, env = "LANDFALL_LEASE_NAMESPACE", value_name = "NAMESPACE")]
    lease_namespace: Option<String>,

    /// Namespace of the Secret landfall-hello-keys, whose keys authenticate Hellos between node agents. The controller
    /// creates a missing Secret, and rotates the keys on request. Without this option the controller does neither.
    #[arg(long, env = "LANDFALL_KEYS_NAMESPACE", value_name = "NAMESPACE")]
    keys_namespace: Option<String>,

    /// Address for /metrics (Prometheus), /healthz and /readyz (probes), over HTTP without TLS; or off.
    #[arg(long, env = "LANDFALL_METRICS_ADDRESS", default_value = "[::]:9646", value_name = "ADDRESS:PORT|off")]
    metrics_address: http::MetricsAddress,
}

/// Runs until SIGTERM.
pub(crate) async fn run(connection: &Connection, options: ControllerOptions) -> anyhow::Result<()> {
    let kube_config = connection.config().await?;
    let client = create_client(kube_config.clone())?;
    let metrics = controller::Metrics::default();
    let (obstacle_tx, obstacle_rx) = tokio::sync::watch::channel(None);
    let config = controller::Config {
        default_class: !options.only_class,
        lease: options.lease_namespace.map(|namespace| controller::LeaseConfig { namespace, kube_config }),
        metrics: metrics.clone(),
        obstacle: obstacle_rx,
    };
    let secret = options.keys_namespace.map(|namespace| keys::KeySecret { client: client.clone(), namespace });
    let keep_keys = async {
        match secret {
            Some(secret) => keys::keeper::keep(secret, obstacle_tx).await,
            None => std::future::pending().await,
        }
    };
    let state = metrics.clone();
    let text = move || metrics.text();
    let unready = move || (!state.is_ready()).then_some("waiting for the initial lists from the API server");
    let stop = async {
        if let Err(error) = shutdown::wait_for_signal().await {
            tracing::error!(%error, "cannot wait for signals; stopping");
        }
    };
    tokio::select! {
        ended = controller::run(client, config, stop) => ended.context("run the controller"),
        never = http::serve(options.metrics_address, text, unready) => match never {},
        never = keep_keys => match never {},
    }
}
