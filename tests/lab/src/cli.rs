//! The commands of `lab`: their arguments, and the library's functions behind them.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use lab::cluster::{names, remove};
use lab::image::{Image, write_archive};
use lab::{Cluster, Direction, KubeProxy, Topology};

/// Real Kubernetes clusters of several nodes on this machine, without Docker.
///
/// A cluster is a switch with hosts on it: the control plane `cp`, nodes `n1`.. with containerd and kubelet, light
/// nodes `l1`.. (a Node object and a network namespace), clients `c1`.. on the same LAN. It stays until `lab down`;
/// several can be up at once. It needs root; tests/lab/setup.sh installs and builds the rest. `lab doctor` checks the
/// machine.
///
///   lab up demo --nodes 3
///   lab kubectl demo -- get nodes -o wide
///   lab exec demo c1 -- curl -s http://192.0.2.200/
///   lab capture demo -- arp
///   lab power-off demo n1
///   lab down demo
///
/// Addresses are the same in every cluster: LAN 192.0.2.0/24 and 2001:db8::/64 (cp .1, nodes from .11, light nodes from
/// .41, clients from .101, .200 to .250 unused, for load-balancer addresses), pods 10.244.0.0/16 and fd00:10:244::/48,
/// Services 10.96.0.0/16 and fd00:10:96::/112.
#[derive(Parser)]
#[command(name = "lab", version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Subcommand)]
enum LabCommand {
    /// Check whether this machine can run the lab, and state the fix of each problem.
    #[command(long_about = doctor::HELP)]
    Doctor {
        /// Print only lines that are not ok.
        #[arg(long)]
        quiet: bool,
    },
    /// Start a cluster and wait until it is Ready; replaces a cluster of that name.
    Up(UpArgs),
    /// Remove a cluster: processes, namespaces, mounts, files, control groups.
    Down {
        /// The cluster.
        #[arg(default_value = "lab")]
        name: String,
        /// Remove all clusters except those of running tests.
        #[arg(long)]
        all: bool,
    },
    /// List clusters.
    List,
    /// Show a cluster: hosts, their daemons, kubeconfig and API server.
    Status {
        /// The cluster.
        name: String,
    },
    /// Run kubectl against a cluster.
    Kubectl {
        /// The cluster.
        name: String,
        /// kubectl's arguments, after --.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Print the path of an administrator's kubeconfig: `export KUBECONFIG=$(lab kubeconfig demo)`.
    Kubeconfig {
        /// The cluster.
        name: String,
    },
    /// Run a command on a host: on a node with its mounts and processes, on other hosts only in their network.
    Exec {
        /// The cluster.
        name: String,
        /// A host: n1, l1, c1, cp, switch.
        host: String,
        /// The command, after --; without one, a shell.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Show frames with tcpdump: on the switch's bridge, or at a host.
    Capture {
        /// The cluster.
        name: String,
        /// At this host's interfaces instead of the switch.
        #[arg(long)]
        host: Option<String>,
        /// Arguments of tcpdump, after --: a filter, `-w FILE`, `-i n1` for one port of the switch.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Cut a host's cable at the switch, silently: the carrier stays.
    Cut {
        /// The cluster.
        name: String,
        /// The host.
        host: String,
        /// The direction of the dropped frames, as seen from the host.
        #[arg(long, value_enum, default_value_t = Direction::Both)]
        direction: Direction,
    },
    /// End a cut.
    Heal {
        /// The cluster.
        name: String,
        /// The host.
        host: String,
    },
    /// Drop a part of a host's frames.
    Loss {
        /// The cluster.
        name: String,
        /// The host.
        host: String,
        /// Percentage of dropped frames; 0 ends the loss.
        percent: f64,
        /// The direction of the dropped frames, as seen from the host.
        #[arg(long, value_enum, default_value_t = Direction::Both)]
        direction: Direction,
    },
    /// Freeze all processes of a host, or those that match a pattern.
    Freeze(ProcessArgs),
    /// Thaw frozen processes, with the same pattern.
    Thaw(ProcessArgs),
    /// Kill processes of a host (SIGKILL).
    Kill {
        /// The cluster.
        name: String,
        /// The host.
        host: String,
        /// Pattern in the command line; includes processes of containers.
        #[arg(long)]
        process: String,
    },
    /// Start an ended daemon again: kubelet, kube-proxy, kube-apiserver, etcd, ..
    Start {
        /// The cluster.
        name: String,
        /// The host.
        host: String,
        /// The daemon, by its name in `lab status` and log/.
        daemon: String,
    },
    /// Power off a host: cut its cable, then remove its processes, containers and kernel state. Its disk stays.
    PowerOff {
        /// The cluster.
        name: String,
        /// The host: a node, a light node or a client.
        host: String,
    },
    /// Power on a host, and wait until all nodes are Ready.
    PowerOn {
        /// The cluster.
        name: String,
        /// The host.
        host: String,
    },
    /// List the paths of logs; with --to, collect logs, objects, kernels' state and the last frames.
    Logs {
        /// The cluster.
        name: String,
        /// Only the logs of this host.
        host: Option<String>,
        /// Collect everything into this directory.
        #[arg(long)]
        to: Option<PathBuf>,
    },
    /// Load the images of docker-archive tars on every node.
    LoadImage {
        /// The cluster.
        name: String,
        /// The tars, from `lab image` or `docker save`.
        #[arg(required = true)]
        tars: Vec<PathBuf>,
    },
    /// Build an image of a static binary:
    /// `lab image target/x86_64-unknown-linux-musl/release/landfall landfall:dev out.tar`.
    Image {
        /// The binary, which becomes the entrypoint.
        binary: PathBuf,
        /// NAME:TAG; with a tag other than latest, kubelets never pull it.
        image: String,
        /// The tar to write.
        out: PathBuf,
    },
}

#[derive(clap::Args)]
struct UpArgs {
    /// The cluster's name: up to 32 of a-z, 0-9 and -.
    #[arg(default_value = "lab")]
    name: String,
    /// Nodes with containerd and kubelet.
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// Nodes with only a Node object and a network namespace.
    #[arg(long, default_value_t = 0)]
    light_nodes: u8,
    /// Hosts on the LAN outside of the cluster.
    #[arg(long, default_value_t = 1)]
    clients: u8,
    /// The service proxy on the nodes.
    #[arg(long, value_enum, default_value_t = KubeProxy::Nftables)]
    kube_proxy: KubeProxy,
    /// Seconds until a node without heartbeats is not Ready.
    #[arg(long, default_value_t = 50)]
    node_monitor_grace: u64,
    /// An image for every node (docker-archive tar); may be repeated.
    #[arg(long)]
    image: Vec<PathBuf>,
    /// Do not capture the last frames on the switch.
    #[arg(long)]
    no_capture: bool,
}

#[derive(clap::Args)]
struct ProcessArgs {
    /// The cluster.
    name: String,
    /// The host.
    host: String,
    /// Only processes with this pattern in their command line (SIGSTOP and SIGCONT).
    #[arg(long)]
    process: Option<String>,
}

/// Parses the command line and runs its command.
pub async fn run() -> Result<ExitCode> {
    match Cli::parse().command {
        LabCommand::Doctor { quiet } => {
            let (text, is_suitable) = doctor::examine(doctor::Options { quiet, ..Default::default() });
            print!("{text}");
            return Ok(if is_suitable { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        LabCommand::Up(arguments) => start_cluster(arguments).await?,
        LabCommand::Down { all: true, .. } => {
            for name in names() {
                // If the cluster of a running test stays, the others are still removed.
                match remove(&name) {
                    Ok(_) => println!("{name} is removed"),
                    Err(error) => println!("{name} stays: {error:#}"),
                }
            }
        }
        LabCommand::Down { name, all: false } => {
            let start = Instant::now();
            let existed = remove(&name)?;
            match existed {
                true => println!("{name} is removed after {:.1} s", start.elapsed().as_secs_f64()),
                false => println!("{name} did not exist"),
            }
        }
        LabCommand::List => print_clusters().await,
        LabCommand::Status { name } => print_status(&Cluster::attach(&name).await?).await?,
        LabCommand::Kubectl { name, arguments } => {
            return Err(Cluster::attach(&name).await?.kubectl_command()?.args(arguments).exec()).context("run kubectl");
        }
        LabCommand::Kubeconfig { name } => println!("{}", Cluster::attach(&name).await?.kubeconfig().display()),
        LabCommand::Exec { name, host, command } => {
            let host = Cluster::attach(&name).await?.host(&host)?;
            let (program, arguments) = command.split_first().map_or(("bash", &[][..]), |(p, a)| (p.as_str(), a));
            return Err(host.command(program)?.args(arguments).exec()).with_context(|| format!("run {program}"));
        }
        LabCommand::Capture { name, host, arguments } => return capture(&name, host.as_deref(), &arguments).await,
        LabCommand::Cut { name, host, direction } => Cluster::attach(&name).await?.cut(&host, direction)?,
        LabCommand::Heal { name, host } => Cluster::attach(&name).await?.heal(&host)?,
        LabCommand::Loss { name, host, percent, direction } => {
            Cluster::attach(&name).await?.lose(&host, direction, percent)?
        }
        LabCommand::Freeze(arguments) => freeze_or_thaw(&arguments, true).await?,
        LabCommand::Thaw(arguments) => freeze_or_thaw(&arguments, false).await?,
        LabCommand::Kill { name, host, process } => {
            for (pid, line) in Cluster::attach(&name).await?.host(&host)?.kill(&process)? {
                println!("killed {pid} {line}");
            }
        }
        LabCommand::Start { name, host, daemon } => {
            Cluster::attach(&name).await?.host(&host)?.process(&daemon).start()?
        }
        LabCommand::PowerOff { name, host } => Cluster::attach(&name).await?.power_off(&host)?,
        LabCommand::PowerOn { name, host } => power_on(&name, &host).await?,
        LabCommand::Logs { name, to: Some(to), .. } => {
            Cluster::attach(&name).await?.collect(&to)?;
            println!("collected into {}", to.display());
        }
        LabCommand::Logs { name, host, to: None } => print_logs(&Cluster::attach(&name).await?, host.as_deref())?,
        LabCommand::LoadImage { name, tars } => {
            let cluster = Cluster::attach(&name).await?;
            tars.iter().try_for_each(|tar| cluster.load_image(tar))?;
        }
        LabCommand::Image { binary, image, out } => write_archive(&[Image { binary: &binary, name: &image }], &out)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints one line per cluster.
async fn print_clusters() {
    for name in names() {
        match Cluster::attach(&name).await {
            Ok(cluster) => {
                let t = cluster.topology();
                println!(
                    "{name}: {} nodes, {} light nodes, {} clients, kube-proxy {}, up for {} min",
                    t.nodes,
                    t.light_nodes,
                    t.clients,
                    t.kube_proxy,
                    cluster.age().as_secs() / 60
                );
            }
            Err(_) => {
                println!("{name}: starting, or unfinished after an interrupted start (`lab down {name}`)")
            }
        }
    }
}

/// Replaces this process by a tcpdump on a host, or on the switch. Returns only if tcpdump cannot start.
async fn capture(name: &str, host: Option<&str>, arguments: &[String]) -> Result<ExitCode> {
    let cluster = Cluster::attach(name).await?;
    let (host, interface) = match host {
        Some(host) => (cluster.host(host)?, "eth0"),
        None => (cluster.switch().clone(), "br0"),
    };
    let mut tcpdump = host.command("tcpdump")?;
    if !arguments.iter().any(|argument| argument.starts_with("-i")) {
        tcpdump.args(["-i", interface]);
    }
    Err(tcpdump.args(["-n", "-e", "-l"]).args(arguments).exec()).context("run tcpdump")
}

async fn power_on(name: &str, host: &str) -> Result<()> {
    let (cluster, start) = (Cluster::attach(name).await?, Instant::now());
    cluster.power_on(host)?;
    println!("{host} booted after {:.1} s", start.elapsed().as_secs_f64());
    cluster.wait_ready(Duration::from_secs(120)).await?;
    println!("all nodes Ready after {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

async fn start_cluster(arguments: UpArgs) -> Result<()> {
    /// Start of the command.
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    let topology = Topology {
        nodes: arguments.nodes,
        light_nodes: arguments.light_nodes,
        clients: arguments.clients,
        kube_proxy: arguments.kube_proxy,
        node_monitor_grace: Duration::from_secs(arguments.node_monitor_grace),
        images: arguments.image,
        capture: !arguments.no_capture,
    };
    let cluster = Cluster::start_detached(&arguments.name, &topology, |step| {
        let elapsed = START.get().map_or(Duration::ZERO, Instant::elapsed);
        println!("{:5.1} s  {step}", elapsed.as_secs_f64());
    })
    .await?;
    println!("{:5.1} s  Ready: {} nodes", start.elapsed().as_secs_f64(), arguments.nodes + arguments.light_nodes);
    let name = cluster.name();
    println!("next: lab kubectl {name} -- get nodes; lab exec {name} c1; lab status {name}; lab down {name}");
    Ok(())
}

async fn print_status(cluster: &Cluster) -> Result<()> {
    println!("cluster     {}", cluster.name());
    println!("kubeconfig  {}", cluster.kubeconfig().display());
    match tokio::time::timeout(Duration::from_secs(5), cluster.api_latency()).await {
        Ok(Ok(latency)) => println!("API server  ready ({} ms)", latency.as_millis()),
        Ok(Err(error)) => println!("API server  {error:#}"),
        Err(_) => println!("API server  does not answer"),
    }
    println!("switch      {}", cluster.switch().name());
    for host in cluster.hosts()? {
        let pods = host.pods().map_or_else(String::new, |pods| format!("  pods {} {}", pods.v4(), pods.v6()));
        let state = if host.is_up() { "on " } else { "off" };
        println!("{:10}  {state} {} {}{pods}", host.name(), host.ipv4(), host.ipv6());
        let running = host.daemons();
        if !running.is_empty() {
            println!("            runs {}", running.join(", "));
        }
    }
    Ok(())
}

async fn freeze_or_thaw(arguments: &ProcessArgs, freeze: bool) -> Result<()> {
    let cluster = Cluster::attach(&arguments.name).await?;
    let Some(pattern) = &arguments.process else {
        return if freeze { cluster.freeze(&arguments.host) } else { cluster.thaw(&arguments.host) };
    };
    let signal = if freeze { lab::Signal::SIGSTOP } else { lab::Signal::SIGCONT };
    for (pid, line) in cluster.host(&arguments.host)?.signal(pattern, signal)? {
        println!("{signal} {pid} {line}");
    }
    Ok(())
}

fn print_logs(cluster: &Cluster, host: Option<&str>) -> Result<()> {
    let hosts = match host {
        Some(host) => vec![cluster.host(host)?],
        None => cluster.hosts()?,
    };
    for host in hosts {
        let entries = std::fs::read_dir(host.logs()).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths.iter().for_each(|path| println!("{}", path.display()));
    }
    Ok(())
}
