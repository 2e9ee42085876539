//! Clusters come, live side by side and go, and nothing stays, however their makers end.

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
async fn two_clusters_with_the_same_addresses_know_nothing_of_each_other() -> Result<()> {
    let topology = small();
    let (a, b) = tokio::join!(Cluster::up("lab-side-a", &topology), Cluster::up("lab-side-b", &topology));
    let (a, b) = (a?, b?);
    a.apply(&whoami("only-here", "n1", ", hostNetwork: true"))?;
    let server = addresses(&a, "only-here").await?[0];
    assert_eq!(a.client_host("c1").ask_tcp(server, ANSWER)?.client.ip(), a.client_host("c1").ipv4());
    let other = b.client_host("c1").ask_tcp(server, ANSWER).expect_err("nobody listens there");
    assert!(format!("{other:#}").contains("refused"), "{other:#}");

    // The end of one is none of the other's business.
    b.down()?;
    assert_eq!(traces("lab-side-b"), Vec::<String>::new());
    assert_eq!(a.client_host("c1").ask_tcp(server, ANSWER)?.client.ip(), a.client_host("c1").ipv4());

    // While it is held, nobody else can take its name or take it down.
    for arguments in [&["up", "lab-side-a"][..], &["down", "lab-side-a"]] {
        let output = Command::new(LAB).args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("belongs to the running process"), "{said}");
    }
    a.down()?;
    assert_eq!(traces("lab-side-a"), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn what_a_killed_run_leaves_is_gone_after_the_next() -> Result<()> {
    // Killed at the worst moment: in the middle of things. No record says what there is.
    let mut maker = Command::new(LAB).args(["up", "lab-killed", "--nodes", "2"]).stdout(Stdio::null()).spawn()?;
    wait_until(SOON, "the making to be under way", async || {
        let traces = traces("lab-killed");
        ensure!(traces.iter().any(|trace| trace.starts_with("process")), "{traces:?}");
        Ok(())
    })
    .await?;
    maker.kill()?;
    maker.wait()?;
    assert_ne!(traces("lab-killed"), Vec::<String>::new());

    // The next run of any name removes it.
    let cluster = Cluster::up("lab-after", &small()).await?;
    assert_eq!(traces("lab-killed"), Vec::<String>::new());
    cluster.down()?;
    assert_eq!(traces("lab-after"), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn a_cluster_from_the_command_line_stays_until_it_is_made_again_or_taken_down() -> Result<()> {
    let lab = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(LAB).args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "lab {}: {said}", arguments.join(" "));
        Ok(said)
    };
    let up = ["up", "lab-cli", "--nodes", "1", "--kube-proxy", "none"];
    lab(&up)?;
    lab(&["kubectl", "lab-cli", "--", "create", "namespace", "first-life"])?;
    assert!(lab(&["list"])?.contains("lab-cli: 1 nodes, 0 light nodes, 1 clients, kube-proxy none"));
    assert!(lab(&["status", "lab-cli"])?.contains("kube-apiserver"));
    assert_eq!(lab(&["exec", "lab-cli", "n1", "--", "hostname"])?, "n1\n");

    // The sweep of another run lets it be, and others can use it.
    let cluster = Cluster::attach("lab-cli").await?;
    drop(cluster);
    Cluster::up("lab-passing", &small()).await?.down()?;
    assert!(lab(&["kubectl", "lab-cli", "--", "get", "namespaces"])?.contains("first-life"));

    // Made again, it is a new one.
    lab(&up)?;
    let cluster = Cluster::attach("lab-cli").await?;
    let namespaces = Api::<Namespace>::all(cluster.client()).list(&ListParams::default()).await?;
    assert!(!namespaces.items.iter().any(|namespace| namespace.metadata.name.as_deref() == Some("first-life")));

    // What is left for one who asks why.
    let kept = std::env::temp_dir().join(format!("lab-kept-{}", std::process::id()));
    cluster.collect(&kept)?;
    let kernel = std::fs::read_to_string(kept.join("n1/kernel.txt"))?;
    let api = std::fs::metadata(kept.join("cp/log/kube-apiserver.log"))?.len();
    std::fs::remove_dir_all(&kept)?;
    assert!(kernel.contains("192.0.2.11/24") && api > 0);

    lab(&["down", "lab-cli"])?;
    assert_eq!(traces("lab-cli"), Vec::<String>::new());
    assert!(lab(&["down", "lab-cli"])?.contains("was not there"));
    let error = lab(&["status", "lab-cli"]).expect_err("it is gone").to_string();
    assert!(error.contains("make one with `lab up lab-cli`"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_cluster_goes_with_the_test_that_panics_and_its_logs_stay() -> Result<()> {
    let cluster = Cluster::up("lab-panic", &small()).await?;
    let died = std::thread::spawn(move || {
        let _held = cluster;
        panic!("as a failed assertion would");
    });
    assert!(died.join().is_err());
    wait_until(Duration::from_secs(5), "every trace to go", async || {
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
