//! The one binary of Landfall: the controller, the node agent, and the commands for users.
//!
//! The binary composes the libraries: `controller` assigns addresses; `agent` runs `dataplane`, which makes the kernel
//! forward them, and `speaker`, which announces them. This crate has the options, the client, the log and the HTTP
//! server.

mod agent_command;
mod cli;
mod client;
mod controller_command;
mod http;
mod logging;
#[cfg(test)]
mod reference;
mod shutdown;

use clap::{Parser, Subcommand};

use cli::{output, status, uninstall};

/// Landfall provides Services of type LoadBalancer on Kubernetes clusters outside a cloud.
///
/// `controller` and `node` run in the cluster; deploy/landfall.yaml starts them. The other commands run on your
/// workstation and use your kubeconfig, as kubectl does.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 120, after_help = FIRST_STEPS)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    connection: client::Connection,

    #[command(flatten)]
    logging: logging::Logging,
}

/// The end of the help text, below the options.
const FIRST_STEPS: &str = "\
First steps:
  kubectl apply -f deploy/landfall.yaml
                                     Install Landfall
  kubectl apply -f my-pool.yaml      Create an IPAddressPool: unused addresses of your nodes' network
                                     (example: deploy/examples/pool.yaml)
  landfall status                    Show Services, their addresses, and the reason of each pending one
  kubectl explain ipaddresspools.spec --api-version=landfall.dev/v1alpha1
                                     Describe the fields of a pool";

#[derive(Debug, Subcommand)]
enum Command {
    /// Assign addresses of pools to Services (runs in the cluster; one instance leads, the others stand by).
    Controller(controller_command::ControllerOptions),
    /// Forward and announce addresses (runs on every node, in the node's network).
    Node(agent_command::AgentOptions),
    /// Show pools, Services with their addresses or why they are pending, announcing nodes, and the last moves.
    Status(status::StatusOptions),
    /// Print the definitions of Landfall's objects, for `kubectl apply -f -`.
    Crds,
    /// Remove Landfall from the cluster completely. Without --yes, only show what would be removed.
    Uninstall(uninstall::UninstallOptions),
}

// Requests to the API server need only this one thread. The speaker and the dataplane must not wait for such requests,
// so they have threads of their own.
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
