//! `landfall node`: the agent library, with a client, until told to stop.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use clap::{Args, ValueEnum};
use crds::Backend;
use dataplane::reply_path::Mask;

use crate::cli::dry_run;
use crate::client::Connection;
use crate::{http, shutdown};

/// What this node does.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The name of this node, as Kubernetes has it.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node_name: String,

    /// What forwards. With `off` Landfall only announces, and another proxy on the node has to forward.
    #[arg(long, env = "LANDFALL_DATAPLANE", value_enum, default_value_t = Dataplane::Nft)]
    dataplane: Dataplane,

    /// Whether the node that announces an address hands what comes to it on to the nodes with endpoints, which then see
    /// the client. With `off` it translates all of it itself. The same on all nodes.
    #[arg(long, env = "LANDFALL_SPREAD", value_enum, default_value_t = Switch::On)]
    spread: Switch,

    /// What packets to a Service are sent to that does not say so itself (annotation landfall.dev/backend): its endpoints, or
    /// what the Service proxy of the node serves: its node port, or its ClusterIP. The same on all nodes.
    #[arg(long, env = "LANDFALL_BACKEND", value_parser = backend, default_value_t = Backend::Endpoints)]
    backend: Backend,

    /// Which bits of the marks of packets and connections tell by which link a connection came in, on a node with several
    /// links: 1 to 8 bits side by side, which nothing else on the node uses. Its answers leave by the same link then. With
    /// `off` they take the node's own routes.
    #[arg(long, env = "LANDFALL_RETURN_MARK", default_value_t = ReturnMark::default(), value_name = "MASK|off")]
    return_mark: ReturnMark,

    /// Whether packets and bytes are counted for each Service. That costs every packet that comes to this node a tenth of a
    /// microsecond or two; new connections, and what is dropped or refused, are counted in any case.
    #[arg(long, env = "LANDFALL_COUNT_TRAFFIC", value_enum, default_value_t = Switch::Off)]
    count_traffic: Switch,

    /// For how many Services, each at each of its addresses, /metrics has numbers of their own: the busiest ones. The others
    /// are summed up. With 0 all are.
    #[arg(long, env = "LANDFALL_SERVICE_METRICS", default_value_t = 1000, value_name = "NUMBER")]
    service_metrics: usize,

    /// Namespace of the Secret landfall-hello-keys, with which what agents say to each other is sealed. Without a key
    /// nothing is announced.
    #[arg(long, env = "LANDFALL_KEYS_NAMESPACE", default_value = "landfall-system", value_name = "NAMESPACE")]
    keys_namespace: String,

    /// Where to answer /metrics (for Prometheus), /healthz and /readyz (for probes), over HTTP without TLS; or off.
    #[arg(long, env = "LANDFALL_METRICS_ADDRESS", default_value = "[::]:9647", value_name = "ADDRESS:PORT|off")]
    metrics_address: crate::http::Address,

    /// Print what would be programmed into the kernel of this node, as the cluster is now, and end. Nothing is programmed,
    /// announced or written: it can be run anywhere, for any node.
    #[arg(long)]
    dry_run: bool,
}

/// Reads a backend as users write it.
fn backend(text: &str) -> Result<Backend, String> {
    text.parse()
        .map_err(|_| format!("one of {} is expected", Backend::ALL.map(|backend| backend.to_string()).join(", ")))
}

/// The bits of marks that are used, if any.
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
    /// It does.
    On,
    /// It does not.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dataplane {
    /// Landfall, with nftables.
    Nft,
    /// Somebody else.
    Off,
}

/// Runs until SIGTERM.
pub(crate) async fn run(connection: &Connection, options: Options) -> Result<()> {
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
    let address = options.metrics_address;
    agent::run(client, config, |metrics| http::serve(address, metrics), shutdown::requested()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bits_of_marks_can_be_chosen_or_none() {
        let read = |text: &str| text.parse::<ReturnMark>().map(|mark| mark.to_string());
        assert_eq!(read("off").as_deref(), Ok("off"));
        assert_eq!(read(&ReturnMark::default().to_string()).as_deref(), Ok("0x70"));
        assert!(read("0x5").is_err());
    }
}
