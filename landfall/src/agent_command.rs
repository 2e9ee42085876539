//! `landfall node`: runs the agent library until SIGTERM.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use clap::{Args, ValueEnum};
use crds::Backend;
use dataplane::reply_path::Mask;

use crate::cli::dry_run;
use crate::client::Connection;
use crate::{http, shutdown};

/// The options of `landfall node`.
#[derive(Debug, Args)]
pub(crate) struct AgentOptions {
    /// Name of this node in Kubernetes.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node_name: String,

    /// The part that forwards packets. With `off` Landfall only announces addresses, and another proxy on the node must
    /// forward packets.
    #[arg(long, env = "LANDFALL_DATAPLANE", value_enum, default_value_t = Dataplane::Nft)]
    dataplane: Dataplane,

    /// Whether the announcing node spreads frames over the nodes with endpoints, so that the endpoints see the address
    /// of the client. With `off` the announcing node translates all packets itself. Must be the same on all nodes.
    #[arg(long, env = "LANDFALL_SPREAD", value_enum, default_value_t = Switch::On)]
    spread: Switch,

    /// Default backend for Services without the annotation landfall.dev/backend: their endpoints, or the node port or
    /// ClusterIP that the Service proxy of the node serves. Must be the same on all nodes.
    #[arg(long, env = "LANDFALL_BACKEND", value_parser = parse_backend, default_value_t = Backend::Endpoints)]
    backend: Backend,

    /// Bits of packet and connection marks that store the link on which a connection arrived. Its replies then leave by
    /// the same link, which matters on nodes with several links. The mask has 1 to 8 adjacent bits that nothing else on
    /// the node uses. With `off` replies follow the node's routes.
    #[arg(long, env = "LANDFALL_RETURN_MARK", default_value_t = ReturnMark::default(), value_name = "MASK|off")]
    return_mark: ReturnMark,

    /// Whether to count packets and bytes of each Service. This delays each packet that arrives at this node by 0.1 to
    /// 0.2 µs. New connections and dropped packets are always counted.
    #[arg(long, env = "LANDFALL_COUNT_TRAFFIC", value_enum, default_value_t = Switch::Off)]
    count_traffic: Switch,

    /// Number of Services with metrics of their own in /metrics: the busiest ones. A Service counts once for each of
    /// its addresses. The others are summed. With 0 all are summed.
    #[arg(long, env = "LANDFALL_SERVICE_METRICS", default_value_t = 1000, value_name = "NUMBER")]
    service_metrics: usize,

    /// Namespace of Landfall: of the Secret landfall-hello-keys, whose keys authenticate Hellos between agents, and of
    /// the DaemonSet landfall-node, whose deletion means that Landfall is being removed. Without a key nothing is
    /// announced.
    #[arg(long, env = "LANDFALL_KEYS_NAMESPACE", default_value = "landfall-system", value_name = "NAMESPACE")]
    keys_namespace: String,

    /// Address for /metrics (Prometheus), /healthz and /readyz (probes), over HTTP without TLS; or off.
    #[arg(long, env = "LANDFALL_METRICS_ADDRESS", default_value = "[::]:9647", value_name = "ADDRESS:PORT|off")]
    metrics_address: http::MetricsAddress,

    /// Print the nftables rules of this node for the current state of the cluster, and exit. Nothing is programmed,
    /// announced or written, so the command can run on any machine, for any node.
    #[arg(long)]
    dry_run: bool,
}

fn parse_backend(text: &str) -> Result<Backend, String> {
    text.parse().map_err(|_| format!("expected one of {}", Backend::ALL.map(|backend| backend.to_string()).join(", ")))
}

/// The bits of marks for reply paths; `None` if the option is `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ReturnMark(Option<Mask>);

impl Default for ReturnMark {
    fn default() -> Self {
        Self(Some(Mask::default()))
    }
}

impl fmt::Display for ReturnMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(mask) => write!(f, "{mask}"),
            None => f.write_str("off"),
        }
    }
}

impl FromStr for ReturnMark {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" { Ok(Self(None)) } else { text.parse().map(|mask| Self(Some(mask))) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dataplane {
    /// Landfall, with nftables.
    Nft,
    /// Another proxy.
    Off,
}

pub(crate) async fn run(connection: &Connection, options: AgentOptions) -> Result<()> {
    let client = connection.client().await?;
    let count_traffic = options.count_traffic == Switch::On;
    if options.dry_run {
        return dry_run::run(&client, &options.node_name, options.backend, count_traffic).await;
    }
    let ReturnMark(return_mark) = options.return_mark;
    let config = agent::Config {
        node: options.node_name,
        forwards: options.dataplane == Dataplane::Nft,
        spread: options.spread == Switch::On,
        backend: options.backend,
        return_mark,
        count_traffic,
        service_metrics: options.service_metrics,
        keys_namespace: options.keys_namespace,
    };
    let serve = |metrics: agent::Metrics| {
        let state = metrics.clone();
        http::serve(options.metrics_address, move || metrics.text(), move || state.unready())
    };
    agent::run(client, config, serve, shutdown::wait_for_signal()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_return_mark_is_a_mask_or_off() {
        let parse = |text: &str| text.parse::<ReturnMark>().map(|mark| mark.to_string());
        assert_eq!(parse("off").as_deref(), Ok("off"));
        assert_eq!(parse(&ReturnMark::default().to_string()).as_deref(), Ok("0x70"));
        assert!(parse("0x5").is_err());
    }
}
