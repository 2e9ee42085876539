//! How the API server is found.

use anyhow::Context;
use clap::Args;
use kube::{Client, Config};

/// How the API server is found. By default as kubectl does: `$KUBECONFIG`, `~/.kube/config`, and in a pod its service
/// account.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// Address of the API server, such as https://192.0.2.1:6443, in place of the one that kubeconfig or the pod's
    /// environment names. Nodes without a Service proxy (kube-proxy) need it: there the in-cluster address leads
    /// nowhere.
    #[arg(long, global = true, env = "LANDFALL_APISERVER", value_name = "URL")]
    apiserver: Option<http::Uri>,
}

impl Connection {
    /// A client for it. Nothing is sent yet: whether the API server answers is seen at the first request.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        let mut config = Config::infer()
            .await
            .context("find the API server: there is no kubeconfig ($KUBECONFIG, ~/.kube/config), and this is no pod")?;
        if let Some(apiserver) = &self.apiserver {
            config.cluster_url = apiserver.clone();
        }
        // Whoever asks decides when to ask again: a retry inside of a request would hold up what has changed meanwhile.
        config.default_retry = false;
        let url = config.cluster_url.clone();
        Client::try_from(config).with_context(|| format!("make a client for the API server at {url}"))
    }
}
