//! Forwarding beside each kind of Service proxy, and without one.
//!
//! | file | content |
//! |---|---|
//! | [`first_answer`] | from `<pending>` to an answer on the LAN |
//! | [`health_checks`] | health checks for external load balancers |
//! | [`truth_table`] | the outcome of requests, by source, traffic policy and endpoints |

mod first_answer;
mod health_checks;
mod truth_table;

use anyhow::Result;
use e2e::{Scenes, World};
use lab::{KubeProxy, Topology};

async fn check_forwarding(name: &str, kube_proxy: KubeProxy) -> Result<()> {
    let world = World::with_landfall(name, Topology { kube_proxy, ..Topology::default() }).await?;
    let mut scenes = Scenes::new(&world);
    scenes.add(first_answer::a_pending_service_gets_an_address_that_answers);
    if kube_proxy == KubeProxy::None {
        scenes.add(health_checks::health_checks_work_without_kube_proxy);
    }
    scenes.add(truth_table::the_truth_table_holds);
    scenes.play().await?;
    world.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_forwarded_beside_kube_proxy_nftables() -> Result<()> {
    check_forwarding("e2e-nftables", KubeProxy::Nftables).await
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_forwarded_beside_kube_proxy_iptables() -> Result<()> {
    check_forwarding("e2e-iptables", KubeProxy::Iptables).await
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_forwarded_without_kube_proxy() -> Result<()> {
    check_forwarding("e2e-noproxy", KubeProxy::None).await
}
