//! Clusters start, run side by side and are removed completely, however their creators end.

mod support;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ListParams};
use lab::{Cluster, KubeProxy, Topology, wait_until};
use support::{ANSWER, SOON, addresses, traces, whoami};

const LAB: &str = env!("CARGO_BIN_EXE_lab");

fn small() -> Topology {
    Topology { nodes: 1, kube_proxy: KubeProxy::None, ..Topology::default() }
}

#[tokio::test]
async fn clusters_with_the_same_addresses_are_isolated() -> Result<()> {
    let topology = small();
    let (a, b) = tokio::join!(Cluster::start("lab-side-a", &topology), Cluster::start("lab-side-b", &topology));
    let (a, b) = (a?, b?);
    a.apply(&whoami("only-here", "n1", ", hostNetwork: true"))?;
    let server = addresses(&a, "only-here").await?[0];
    assert_eq!(a.client_host("c1").query_tcp(server, ANSWER)?.client.ip(), a.client_host("c1").ipv4());
    let other = b.client_host("c1").query_tcp(server, ANSWER).expect_err("no pod listens in cluster b");
    assert!(format!("{other:#}").contains("refused"), "{other:#}");

    // Removing one does not affect the other.
    b.remove()?;
    assert_eq!(traces("lab-side-b"), Vec::<String>::new());
    assert_eq!(a.client_host("c1").query_tcp(server, ANSWER)?.client.ip(), a.client_host("c1").ipv4());

    // While this process holds a cluster, no other process can replace or remove it.
    for arguments in [&["up", "lab-side-a"][..], &["down", "lab-side-a"]] {
        let output = Command::new(LAB).args(arguments).output()?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains("belongs to the running process"), "{message}");
    }
    a.remove()?;
    assert_eq!(traces("lab-side-a"), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn the_next_start_removes_the_cluster_of_a_killed_run() -> Result<()> {
    // The creator is killed during the start, before the description of the cluster is written.
    let mut creator = Command::new(LAB).args(["up", "lab-killed", "--nodes", "2"]).stdout(Stdio::null()).spawn()?;
    wait_until(SOON, "a process of the cluster to run", async || {
        let traces = traces("lab-killed");
        ensure!(traces.iter().any(|trace| trace.starts_with("process")), "{traces:?}");
        Ok(())
    })
    .await?;
    creator.kill()?;
    creator.wait()?;
    assert_ne!(traces("lab-killed"), Vec::<String>::new());

    // The next start, of any name, removes it.
    let cluster = Cluster::start("lab-after", &small()).await?;
    assert_eq!(traces("lab-killed"), Vec::<String>::new());
    cluster.remove()?;
    assert_eq!(traces("lab-after"), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn a_cluster_of_the_command_line_stays_until_it_is_replaced_or_removed() -> Result<()> {
    let lab = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(LAB).args(arguments).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "lab {}: {text}", arguments.join(" "));
        Ok(text)
    };
    let up = ["up", "lab-cli", "--nodes", "1", "--kube-proxy", "none"];
    lab(&up)?;
    lab(&["kubectl", "lab-cli", "--", "create", "namespace", "first-life"])?;
    assert!(lab(&["list"])?.contains("lab-cli: 1 nodes, 0 light nodes, 1 clients, kube-proxy none"));
    assert!(lab(&["status", "lab-cli"])?.contains("kube-apiserver"));
    assert_eq!(lab(&["exec", "lab-cli", "n1", "--", "hostname"])?, "n1\n");

    // The sweep of another run leaves the cluster alone, and other processes can use it.
    let cluster = Cluster::attach("lab-cli").await?;
    drop(cluster);
    Cluster::start("lab-passing", &small()).await?.remove()?;
    assert!(lab(&["kubectl", "lab-cli", "--", "get", "namespaces"])?.contains("first-life"));

    // A second `up` replaces it.
    lab(&up)?;
    let cluster = Cluster::attach("lab-cli").await?;
    let namespaces = Api::<Namespace>::all(cluster.client()).list(&ListParams::default()).await?;
    assert!(!namespaces.items.iter().any(|namespace| namespace.metadata.name.as_deref() == Some("first-life")));

    // Evidence can be collected.
    let kept = std::env::temp_dir().join(format!("lab-kept-{}", std::process::id()));
    cluster.collect(&kept)?;
    let kernel = std::fs::read_to_string(kept.join("n1/kernel.txt"))?;
    let api = std::fs::metadata(kept.join("cp/log/kube-apiserver.log"))?.len();
    std::fs::remove_dir_all(&kept)?;
    assert!(kernel.contains("192.0.2.11/24") && api > 0);

    lab(&["down", "lab-cli"])?;
    assert_eq!(traces("lab-cli"), Vec::<String>::new());
    assert!(lab(&["down", "lab-cli"])?.contains("did not exist"));
    let error = lab(&["status", "lab-cli"]).expect_err("the cluster is removed").to_string();
    assert!(error.contains("make one with `lab up lab-cli`"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_panic_removes_the_cluster_and_keeps_its_logs() -> Result<()> {
    let cluster = Cluster::start("lab-panic", &small()).await?;
    let panicking = std::thread::spawn(move || {
        let _cluster = cluster;
        panic!("like a failed assertion");
    });
    assert!(panicking.join().is_err());
    wait_until(Duration::from_secs(5), "every trace to be removed", async || {
        let traces = traces("lab-panic");
        ensure!(traces.is_empty(), "{traces:?}");
        Ok(())
    })
    .await?;
    let failures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/lab/failures");
    let failures = std::env::var_os("LANDFALL_EVIDENCE").map_or_else(|| failures.into(), PathBuf::from);
    let kept = failures.join("lab-panic");
    let log = std::fs::read_to_string(kept.join("n1/log/kubelet.log"))?;
    assert!(!log.is_empty());
    std::fs::remove_dir_all(kept)?;
    Ok(())
}
