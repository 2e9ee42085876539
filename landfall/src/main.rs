//! The one binary of Landfall: the controller, the node agent, and the user's command line.
//!
//! Here the libraries are composed, and only here: `controller` decides who gets which address, `dataplane` makes the
//! kernel forward it, `speaker` announces it. `agent` joins the latter two.

mod agent_command;
mod cli;
mod client;
mod controller_command;
mod http;
mod logging;
mod nowhere;
mod shutdown;

use clap::{Parser, Subcommand};

use cli::{output, status, uninstall};

/// Landfall gives Services of type LoadBalancer an address that answers, on clusters without a cloud.
///
/// On the cluster run `landfall controller` (two, of which one works) and `landfall node` (on every node):
/// deploy/landfall.yaml does. At your desk run `landfall status` to see pools, Services, why one is pending, addresses and
/// who announces them; it uses your kubeconfig as kubectl does.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    connection: client::Connection,

    #[command(flatten)]
    logging: logging::Logging,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Give addresses of pools to Services (runs in the cluster; of several one works, and the others stand by).
    Controller(controller_command::Options),
    /// Forward and announce addresses (runs on every node, in the node's network).
    Node(agent_command::Options),
    /// Show pools (used and free by family, drained, exhausted), Services (and why one is pending), addresses (shared,
    /// reserved), and who announces them.
    Status(status::Options),
    /// Print the definitions of Landfall's objects, for `kubectl apply -f -`.
    Crds,
    /// Take Landfall off the cluster and leave nothing behind.
    Uninstall(uninstall::Options),
}

// One thread is enough for waiting on the API server. What must not wait for it (the wire, the kernel) has threads of
// its own.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    cli.logging.start();
    match cli.command {
        Command::Controller(options) => controller_command::run(&cli.connection, options).await,
        Command::Node(options) => agent_command::run(&cli.connection, options).await,
        Command::Status(options) => status::run(&cli.connection, options).await,
        Command::Crds => output::print(&crds::manifest::yaml()?),
        Command::Uninstall(options) => uninstall::run(&cli.connection, options).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
