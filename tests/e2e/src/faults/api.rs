//! Faults of the Kubernetes API: slow, missing and lost answers, silent watches, revoked tokens, and an API server that
//! is down.
//!
//! All but the last two need [`World::with_api_proxy`]. They affect Landfall alone: the kubelets, the test and the
//! observer use the API server directly. An agent has its node's address and a ServiceAccount, so a fault can affect
//! one agent.
//!
//! While agents cannot read or write, the status of an address cannot follow the wire. So these faults permit a late
//! status of the addresses that exist at their start. A scene must check at its end that status and wire agree.

use std::time::Duration;

use anyhow::{Context, Result};
use crds::LoadBalancerIP;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use lab::Process;
use observer::Fault;
use tokio::runtime::Handle;

use crate::api_proxy::{ApiProxy, Clients, Fate, InjectedFault, InjectedFaults, Requests};
use crate::world::{AGENT_PROCESS, SOON, SYSTEM, World};

/// The ServiceAccount of the agents.
const AGENT_ACCOUNT: &str = "landfall-node";

/// The token of a pod.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// The processes of Landfall that a fault affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiClients<'a> {
    /// The agents and the controllers.
    All,
    /// The agents on all nodes.
    Agents,
    /// The agent on this node.
    AgentOn(&'a str),
}

/// Writes that are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostWrites {
    /// A part of their path: `/loadbalancerips/`.
    pub path: &'static str,
    /// The number of lost writes of each client.
    pub count: usize,
    pub loss: Loss,
}

/// The lost part of a write. The client sees a broken connection in each case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The write has no effect.
    Request,
    /// The write takes effect.
    Answer,
    /// The write takes effect after this time.
    Late(Duration),
}

/// A present fault. Dropping it ends the fault.
pub struct ApiFault<'a> {
    proxy: &'a ApiProxy<InjectedFaults>,
    number: u32,
    clients: Clients,
}

/// An API server that is down. Dropping it starts the API server, and waits until it is ready.
pub struct StoppedApiServer<'a> {
    world: &'a World,
    process: Process,
}

impl World {
    /// Delays each answer by this time. Events of open watches are not delayed. Permits no breach.
    pub fn delay_api_answers(&self, clients: ApiClients<'_>, delay: Duration) -> Result<ApiFault<'_>> {
        self.inject(clients, Requests::All, Fate::Delay(delay))
    }

    /// Ends all open requests, and answers new ones with this status, such as 429, 500 or 503.
    pub async fn refuse_api_requests(&self, clients: ApiClients<'_>, status: u16) -> Result<ApiFault<'_>> {
        self.permit_late_status().await?;
        let fault = self.inject(clients, Requests::All, Fate::Refuse(status))?;
        fault.close_connections();
        Ok(fault)
    }

    /// Accepts connections and requests, and answers none. Open watches become silent. All these connections break when
    /// the fault ends.
    pub async fn hang_api(&self, clients: ApiClients<'_>) -> Result<ApiFault<'_>> {
        self.permit_late_status().await?;
        self.inject(clients, Requests::All, Fate::Hang)
    }

    /// Withholds events and the end of all watches, also of new ones. Other requests are answered. The connections of
    /// these watches break when the fault ends.
    pub async fn silence_watches(&self, clients: ApiClients<'_>) -> Result<ApiFault<'_>> {
        self.permit_late_status().await?;
        self.inject(clients, Requests::All, Fate::Silence)
    }

    /// Breaks all connections to the API, and each new one at its first request.
    pub async fn cut_api_off(&self, clients: ApiClients<'_>) -> Result<ApiFault<'_>> {
        self.permit_late_status().await?;
        let fault = self.inject(clients, Requests::All, Fate::LoseRequest)?;
        fault.close_connections();
        Ok(fault)
    }

    /// Loses the next writes to some objects. Permits no breach: clients repeat them.
    pub fn lose_api_writes(&self, clients: ApiClients<'_>, writes: LostWrites) -> Result<ApiFault<'_>> {
        let LostWrites { path, count, loss } = writes;
        let fate = match loss {
            Loss::Request => Fate::LoseRequest,
            Loss::Answer => Fate::LoseAnswer,
            Loss::Late(delay) => Fate::Late(delay),
        };
        self.inject(clients, Requests::FirstWrites { path, count }, fate)
    }

    /// Kills the API server.
    pub async fn stop_api_server(&self) -> Result<StoppedApiServer<'_>> {
        self.permit_late_status().await?;
        let process = self.cluster.control_plane().process("kube-apiserver");
        process.kill()?;
        Ok(StoppedApiServer { world: self, process })
    }

    /// Deletes the ServiceAccount of the agents, and creates another one of its name: the API server refuses the tokens
    /// that the agents have. They get others when their pods are replaced.
    pub async fn revoke_agent_tokens(&self) -> Result<()> {
        self.permit_late_status().await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), SYSTEM);
        let ServiceAccount { metadata: ObjectMeta { name, labels, .. }, .. } = accounts.get(AGENT_ACCOUNT).await?;
        accounts.delete(AGENT_ACCOUNT, &DeleteParams::default()).await.context("delete the ServiceAccount")?;
        let metadata = ObjectMeta { name, labels, ..ObjectMeta::default() };
        let account = ServiceAccount { metadata, ..ServiceAccount::default() };
        accounts.create(&PostParams::default(), &account).await.context("create the ServiceAccount")?;
        Ok(())
    }

    /// Whether the API server accepts the token of the agent on a node.
    pub async fn is_agent_token_valid(&self, node: &str) -> Result<bool> {
        let processes = self.cluster.node(node).processes(AGENT_PROCESS);
        let (pid, _) = processes.first().with_context(|| format!("no agent on {node}"))?;
        let token = std::fs::read_to_string(format!("/proc/{pid}/root{TOKEN}")).context("read the token")?;
        let spec = TokenReviewSpec { token: token.trim().to_owned(), ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let review = Api::<TokenReview>::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        Ok(review.status.and_then(|status| status.authenticated).unwrap_or(false))
    }

    /// Deletes all pods of Landfall at once, and waits until others run. These have new connections and new tokens.
    pub async fn replace_landfall(&self) -> Result<()> {
        self.permit_late_status().await?;
        self.kubectl(&["-n", SYSTEM, "delete", "pods", "--all", "--now"])?;
        for host in self.cluster.hosts()?.iter().filter(|host| host.pods().is_some()) {
            self.wait_for_agent(host.name(), SOON).await?;
        }
        self.wait_until_installed().await
    }

    /// The number of requests that an agent has sent to the API so far.
    pub fn api_requests(&self, node: &str) -> Result<usize> {
        let address = self.cluster.node(node).ipv4();
        Ok(self.api_proxy()?.script().agent_requests(address.into()))
    }

    fn inject(&self, clients: ApiClients<'_>, requests: Requests, fate: Fate) -> Result<ApiFault<'_>> {
        let (proxy, clients) = (self.api_proxy()?, self.client_addresses(clients)?);
        let number = proxy.script().add(InjectedFault { clients: clients.clone(), requests, fate });
        Ok(ApiFault { proxy, number, clients })
    }

    fn client_addresses(&self, clients: ApiClients<'_>) -> Result<Clients> {
        let nodes = self.cluster.hosts()?.into_iter().filter(|host| host.pods().is_some());
        Ok(match clients {
            ApiClients::All => Clients::All,
            ApiClients::Agents => Clients::AgentsAt(nodes.map(|node| node.ipv4().into()).collect()),
            ApiClients::AgentOn(node) => Clients::AgentsAt([self.cluster.node(node).ipv4().into()].into()),
        })
    }

    /// Permits that the status of the present addresses is late.
    async fn permit_late_status(&self) -> Result<()> {
        let records = Api::<LoadBalancerIP>::all(self.client.clone()).list(&ListParams::default()).await;
        for record in records.context("list the addresses")? {
            self.declare(Fault::late_status(record.address()?));
        }
        Ok(())
    }
}

impl ApiFault<'_> {
    /// The number of affected requests so far.
    pub fn count_affected(&self) -> usize {
        self.proxy.script().count_affected(self.number)
    }

    fn close_connections(&self) {
        self.proxy.close_connections(|client| self.clients.contain(client));
    }
}

impl Drop for ApiFault<'_> {
    fn drop(&mut self) {
        let is_open_ended = self.proxy.script().remove(self.number);
        // Their requests would never end.
        if is_open_ended {
            self.close_connections();
        }
    }
}

impl Drop for StoppedApiServer<'_> {
    fn drop(&mut self) {
        let start = || -> Result<()> {
            self.process.start()?;
            tokio::task::block_in_place(|| Handle::current().block_on(self.world.cluster.wait_for_api(SOON)))
        };
        // The next request of the test fails.
        if let Err(error) = start() {
            eprintln!("start the API server again: {error:#}");
        }
    }
}
