//! The commands of `lab`: what each takes, and which call of the library it is.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use lab::cluster::{down, names};
use lab::image::{Image, write_archive};
use lab::{Cluster, Direction, KubeProxy, Topology};

/// Real Kubernetes clusters of several nodes on this machine, without Docker.
///
/// A cluster is a switch with hosts on it: the control plane `cp`, nodes `n1`.. with containerd and kubelet, light nodes
/// `l1`.. (a Node object and a network namespace), clients `c1`.. on the same LAN. It stays until `lab down`; several can
/// be up at once. It needs root, and what tests/lab/setup.sh installs and builds.
///
///   lab up demo --nodes 3
///   lab kubectl demo -- get nodes -o wide
///   lab exec demo c1 -- curl -s http://192.0.2.200/
///   lab capture demo -- arp
///   lab power-off demo n1
///   lab down demo
///
/// Addresses are the same in every cluster: LAN 192.0.2.0/24 and 2001:db8::/64 (cp .1, nodes from .11, light nodes from
/// .41, clients from .101, .200 to .250 free for LoadBalancers), pods 10.244.0.0/16 and fd00:10:244::/48, Services
/// 10.96.0.0/16 and fd00:10:96::/112.
#[derive(Parser)]
#[command(name = "lab", version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a cluster and wait until it is Ready; whatever is left of one of that name goes first.
    Up(Up),
    /// Remove a cluster: processes, namespaces, mounts, files, control groups.
    Down {
        /// Its name.
        #[arg(default_value = "lab")]
        name: String,
        /// Every cluster that no running test holds.
        #[arg(long)]
        all: bool,
    },
    /// List clusters.
    List,
    /// Show a cluster: hosts, what runs on them, how to reach it.
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
    /// Run a command on a host; on a node with its mounts and processes, elsewhere in its network.
    Exec {
        /// The cluster.
        name: String,
        /// A host: n1, l1, c1, cp, switch.
        host: String,
        /// The command, after --; a shell if there is none.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Watch frames with tcpdump: on the switch's bridge, or at a host.
    Capture {
        /// The cluster.
        name: String,
        /// At this host's interfaces instead of the switch.
        #[arg(long)]
        host: Option<String>,
        /// More for tcpdump, after --: a filter, `-w FILE`, `-i n1` for one port of the switch.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Cut a host's cable at the switch, silently: the carrier stays.
    Cut {
        /// The cluster.
        name: String,
        /// The host.
        host: String,
        /// Which frames go missing, as seen from the host.
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
    /// Lose a part of a host's frames, in both directions.
    Loss {
        /// The cluster.
        name: String,
        /// The host.
        host: String,
        /// How many of 100 go missing; 0 ends it.
        percent: f64,
    },
    /// Stop every process of a host where it is, or those that match.
    Freeze(OnProcesses),
    /// Let what was frozen go on; with the same pattern.
    Thaw(OnProcesses),
    /// End processes of a host by SIGKILL.
    Kill {
        /// The cluster.
        name: String,
        /// The host.
        host: String,
        /// Processes with this in their command line; containers' count too.
        #[arg(long)]
        process: String,
    },
    /// Start a daemon of a host again that has ended: kubelet, kube-proxy, kube-apiserver, etcd, ..
    Start {
        /// The cluster.
        name: String,
        /// The host.
        host: String,
        /// The daemon, as `lab status` and log/ call it.
        daemon: String,
    },
    /// Take the power from a host: silence first, then no process, no container, no kernel state. Its disk stays.
    PowerOff {
        /// The cluster.
        name: String,
        /// The host: a node, a light node or a client.
        host: String,
    },
    /// Give a host its power back, and wait until it is Ready if it is a node.
    PowerOn {
        /// The cluster.
        name: String,
        /// The host.
        host: String,
    },
    /// Say where logs are; with --to, collect them together with objects, kernels' state and the last frames.
    Logs {
        /// The cluster.
        name: String,
        /// Only this host's.
        host: Option<String>,
        /// Collect everything into this directory.
        #[arg(long)]
        to: Option<PathBuf>,
    },
    /// Give every node the images in docker-archive tars.
    LoadImage {
        /// The cluster.
        name: String,
        /// The tars, as `lab image` and `docker save` make them.
        #[arg(required = true)]
        tars: Vec<PathBuf>,
    },
    /// Make an image of a static binary: `lab image target/x86_64-unknown-linux-musl/release/landfall landfall:dev out.tar`.
    Image {
        /// The binary; it is the entrypoint.
        binary: PathBuf,
        /// NAME:TAG; with a tag other than latest it is never pulled.
        image: String,
        /// The tar to write.
        out: PathBuf,
    },
}

#[derive(clap::Args)]
struct Up {
    /// What to call it: up to 32 of a-z, 0-9 and -.
    #[arg(default_value = "lab")]
    name: String,
    /// Nodes with containerd and kubelet.
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// Nodes that are only a Node object and a network namespace.
    #[arg(long, default_value_t = 0)]
    light_nodes: u8,
    /// Hosts on the LAN that are not part of the cluster.
    #[arg(long, default_value_t = 1)]
    clients: u8,
    /// What serves ClusterIPs.
    #[arg(long, value_enum, default_value_t = KubeProxy::Nftables)]
    kube_proxy: KubeProxy,
    /// How long a silent node stays Ready, in seconds.
    #[arg(long, default_value_t = 50)]
    node_monitor_grace: u64,
    /// An image every node has from the start (docker-archive tar); may be repeated.
    #[arg(long)]
    image: Vec<PathBuf>,
    /// Don't keep the last frames on the switch.
    #[arg(long)]
    no_capture: bool,
}

#[derive(clap::Args)]
struct OnProcesses {
    /// The cluster.
    name: String,
    /// The host.
    host: String,
    /// Only processes with this in their command line (by SIGSTOP and SIGCONT).
    #[arg(long)]
    process: Option<String>,
}

/// Does what the command line says.
pub async fn run() -> Result<ExitCode> {
    let done = ExitCode::SUCCESS;
    match Cli::parse().verb {
        Verb::Up(wanted) => up(wanted).await?,
        Verb::Down { all: true, .. } => {
            for name in names() {
                // One that is held is no reason to keep the others.
                match down(&name) {
                    Ok(_) => println!("{name} is gone"),
                    Err(error) => println!("{name} stays: {error:#}"),
                }
            }
        }
        Verb::Down { name, all: false } => {
            let start = Instant::now();
            let existed = down(&name)?;
            match existed {
                true => println!("{name} is gone after {:.1} s", start.elapsed().as_secs_f64()),
                false => println!("{name} was not there"),
            }
        }
        Verb::List => {
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
                    Err(_) => println!("{name}: being made, or left by a run that was cut short (`lab down {name}`)"),
                }
            }
        }
        Verb::Status { name } => status(&Cluster::attach(&name).await?).await?,
        Verb::Kubectl { name, arguments } => {
            return Err(Cluster::attach(&name).await?.kubectl_command()?.args(arguments).exec()).context("run kubectl");
        }
        Verb::Kubeconfig { name } => println!("{}", Cluster::attach(&name).await?.kubeconfig().display()),
        Verb::Exec { name, host, command } => {
            let host = Cluster::attach(&name).await?.host(&host)?;
            let (program, arguments) = command.split_first().map_or(("bash", &[][..]), |(p, a)| (p.as_str(), a));
            return Err(host.command(program)?.args(arguments).exec()).with_context(|| format!("run {program}"));
        }
        Verb::Capture { name, host, arguments } => {
            let cluster = Cluster::attach(&name).await?;
            let (host, interface) = match host {
                Some(host) => (cluster.host(&host)?, "eth0"),
                None => (cluster.switch().clone(), "br0"),
            };
            let mut tcpdump = host.command("tcpdump")?;
            if !arguments.iter().any(|argument| argument.starts_with("-i")) {
                tcpdump.args(["-i", interface]);
            }
            return Err(tcpdump.args(["-n", "-e", "-l"]).args(arguments).exec()).context("run tcpdump");
        }
        Verb::Cut { name, host, direction } => Cluster::attach(&name).await?.cut(&host, direction)?,
        Verb::Heal { name, host } => Cluster::attach(&name).await?.heal(&host)?,
        Verb::Loss { name, host, percent } => Cluster::attach(&name).await?.lose(&host, percent)?,
        Verb::Freeze(on) => signal(&on, true).await?,
        Verb::Thaw(on) => signal(&on, false).await?,
        Verb::Kill { name, host, process } => {
            for (pid, line) in Cluster::attach(&name).await?.host(&host)?.kill(&process)? {
                println!("killed {pid} {line}");
            }
        }
        Verb::Start { name, host, daemon } => Cluster::attach(&name).await?.host(&host)?.process(&daemon).start()?,
        Verb::PowerOff { name, host } => Cluster::attach(&name).await?.power_off(&host)?,
        Verb::PowerOn { name, host } => {
            let (cluster, start) = (Cluster::attach(&name).await?, Instant::now());
            cluster.power_on(&host)?;
            println!("{host} booted after {:.1} s", start.elapsed().as_secs_f64());
            cluster.wait_ready(Duration::from_secs(120)).await?;
            println!("all nodes Ready after {:.1} s", start.elapsed().as_secs_f64());
        }
        Verb::Logs { name, to: Some(to), .. } => {
            Cluster::attach(&name).await?.collect(&to)?;
            println!("collected into {}", to.display());
        }
        Verb::Logs { name, host, to: None } => logs(&Cluster::attach(&name).await?, host.as_deref())?,
        Verb::LoadImage { name, tars } => {
            let cluster = Cluster::attach(&name).await?;
            tars.iter().try_for_each(|tar| cluster.load_image(tar))?;
        }
        Verb::Image { binary, image, out } => write_archive(&[Image { binary: &binary, name: &image }], &out)?,
    }
    Ok(done)
}

async fn up(wanted: Up) -> Result<()> {
    /// When the command began.
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    let topology = Topology {
        nodes: wanted.nodes,
        light_nodes: wanted.light_nodes,
        clients: wanted.clients,
        kube_proxy: wanted.kube_proxy,
        node_monitor_grace: Duration::from_secs(wanted.node_monitor_grace),
        images: wanted.image,
        capture: !wanted.no_capture,
    };
    let cluster = Cluster::up_to_stay(&wanted.name, &topology, |what| {
        let elapsed = START.get().map_or(Duration::ZERO, Instant::elapsed);
        println!("{:5.1} s  {what}", elapsed.as_secs_f64());
    })
    .await?;
    println!("{:5.1} s  Ready: {} nodes", start.elapsed().as_secs_f64(), wanted.nodes + wanted.light_nodes);
    let name = cluster.name();
    println!("next: lab kubectl {name} -- get nodes; lab exec {name} c1; lab status {name}; lab down {name}");
    Ok(())
}

async fn status(cluster: &Cluster) -> Result<()> {
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

async fn signal(on: &OnProcesses, stop: bool) -> Result<()> {
    let cluster = Cluster::attach(&on.name).await?;
    let Some(pattern) = &on.process else {
        return if stop { cluster.freeze(&on.host) } else { cluster.thaw(&on.host) };
    };
    let signal = if stop { lab::Signal::SIGSTOP } else { lab::Signal::SIGCONT };
    for (pid, line) in cluster.host(&on.host)?.signal(pattern, signal)? {
        println!("{signal} {pid} {line}");
    }
    Ok(())
}

fn logs(cluster: &Cluster, host: Option<&str>) -> Result<()> {
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
