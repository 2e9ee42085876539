//! The basics that every other test relies on: nodes, pods and Services answer, over both families.

mod support;

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Service;
use kube::api::Api;
use lab::{Cluster, KubeProxy, Topology, wait_until};
use support::{ANSWER, SOON, addresses, nodes, whoami};

#[tokio::test]
async fn pods_and_services_answer_through_nftables() -> Result<()> {
    pods_and_services_answer("lab-nftables", KubeProxy::Nftables).await
}

#[tokio::test]
async fn pods_and_services_answer_through_iptables() -> Result<()> {
    pods_and_services_answer("lab-iptables", KubeProxy::Iptables).await
}

async fn pods_and_services_answer(name: &str, kube_proxy: KubeProxy) -> Result<()> {
    let cluster = Cluster::start(name, &Topology { nodes: 2, kube_proxy, ..Topology::default() }).await?;
    let (n1, n2, c1) = (cluster.node("n1"), cluster.node("n2"), cluster.client_host("c1"));

    // Nodes are dual-stack.
    for node in nodes(&cluster).await? {
        let host = cluster.node(node.metadata.name.as_deref().unwrap_or_default());
        let known: Vec<String> =
            node.status.unwrap_or_default().addresses.unwrap_or_default().into_iter().map(|a| a.address).collect();
        assert_eq!(known, [host.ipv4().to_string(), host.ipv6().to_string(), host.name().to_owned()]);
        let pods = host.pods().expect("a node has pods");
        assert_eq!(node.spec.and_then(|spec| spec.pod_cidrs), Some(vec![pods.v4(), pods.v6()]));
    }

    cluster.apply(&(whoami("far", "n2", "") + &whoami("host", "n1", ", hostNetwork: true")))?;
    cluster.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: far}, spec: {selector: {app: far}, ipFamilyPolicy: RequireDualStack,
           ports: [{name: tcp, port: 80, targetPort: 8080}, {name: udp, protocol: UDP, port: 80, targetPort: 8080}]}}",
    )?;

    // A pod, from the other node and its own, in both families. Its own node uses the pods' gateway address.
    let pod = addresses(&cluster, "far").await?;
    assert_eq!(pod.len(), 2, "both families: {pod:?}");
    for server in pod {
        for node in [&n1, &n2] {
            for answer in [node.query_tcp(server, ANSWER)?, node.query_udp(server, ANSWER)?] {
                assert_eq!(answer.pod, "far");
                assert!(
                    node.name() == "n2" || [n1.ipv4().into(), n1.ipv6().into()].contains(&answer.client.ip()),
                    "{answer:?}"
                );
            }
        }
    }

    // A pod on the host network answers the LAN, which doesn't know pods.
    for server in addresses(&cluster, "host").await? {
        let answer = c1.query_tcp(server, ANSWER)?;
        assert_eq!((answer.pod.as_str(), answer.client.is_ipv6()), ("n1", server.is_ipv6()));
    }

    // A ClusterIP, from both nodes. kube-proxy receives the Service a moment after this test.
    let service = Api::<Service>::default_namespaced(cluster.client()).get("far").await?;
    let ips = service.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
    assert_eq!(ips.len(), 2, "both families: {ips:?}");
    for ip in ips {
        let server = SocketAddr::new(ip.parse()?, 80);
        for node in [&n1, &n2] {
            wait_until(SOON, &format!("{server} to answer on {}", node.name()), async || {
                let answers = [node.query_tcp(server, ANSWER)?, node.query_udp(server, ANSWER)?];
                ensure!(answers.iter().all(|answer| answer.pod == "far"), "{answers:?}");
                Ok(())
            })
            .await?;
        }
    }

    // Pods and nodes reach the API server through its Service, with a ServiceAccount's rights.
    let config = cluster.service_account_kubeconfig("default", "default").await?;
    let token =
        std::fs::read_to_string(config)?.split_once("token: ").expect("a token").1.split('}').next().map(str::to_owned);
    let bearer = format!("Authorization: Bearer {}", token.unwrap_or_default());
    let url = "https://10.96.0.1/api/v1/namespaces/default";
    let ca = "/var/lib/lab/ca.crt";
    let response = n1.output(["curl", "-s", "-m", "5", "--cacert", ca, "-H", &bearer, url])?;
    assert!(response.contains(r#"User \"system:serviceaccount:default:default\" cannot get"#), "{response}");

    // Logs are read through the kubelet.
    wait_until(SOON, "the pod's log", async || {
        let log = cluster.kubectl(["logs", "far"])?;
        ensure!(log == "far answers on port 8080\n", "{log:?}");
        Ok(())
    })
    .await?;
    cluster.remove()
}
